//! Limits how many bytes and operations a device handles per second.
//!
//! Two token buckets, filled by time. A request that fits waits for nothing; one larger than a whole
//! bucket is let through once the bucket is full and leaves a debt that later requests wait out, so
//! the rate holds in the long run whatever the sizes are.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How much a device may do. The default limits nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimit {
    /// Bytes per second; without a limit if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<NonZeroU64>,
    /// Operations (block requests, network frames) per second; without a limit if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operations_per_second: Option<NonZeroU64>,
    /// How many milliseconds' worth of unused rate may be saved up and spent at once; one second's if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

/// Decides whether a request may go on now. Shared by threads.
pub struct RateLimiter {
    clock: Clock,
    /// `None` where nothing is limited, so that this costs nothing.
    buckets: Option<Mutex<Buckets>>,
}

/// Tells the time; it need not be monotonic.
type Clock = Box<dyn Fn() -> Instant + Send + Sync>;

struct Buckets {
    filled: Instant,
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

/// Amounts are counted in billionths of a token, so that a rate of tokens per second is a rate of these
/// per nanosecond and nothing is ever rounded.
struct Bucket {
    rate: i128,
    capacity: i128,
    /// At most `capacity`; negative while there is a debt.
    level: i128,
}

const BILLIONTHS: i128 = 1_000_000_000;
const NANOSECONDS_PER_MILLISECOND: i128 = 1_000_000;
const DEFAULT_BURST: u32 = 1000;
/// Debts end here: far beyond any request, far from overflow.
const LOWEST_LEVEL: i128 = -(1 << 120);

impl RateLimiter {
    /// A limiter with full buckets.
    pub fn new(limit: &RateLimit) -> Self {
        Self::with_clock(limit, Instant::now)
    }

    /// A limiter that takes the time from `clock`.
    pub fn with_clock(
        limit: &RateLimit,
        clock: impl Fn() -> Instant + Send + Sync + 'static,
    ) -> Self {
        let burst = limit.burst.unwrap_or(DEFAULT_BURST);
        let bytes = limit.bytes_per_second.map(|rate| Bucket::new(rate, burst));
        let operations = limit.operations_per_second.map(|rate| Bucket::new(rate, burst));
        let limited = bytes.is_some() || operations.is_some();
        let buckets = limited.then(|| Mutex::new(Buckets { filled: clock(), bytes, operations }));
        Self { clock: Box::new(clock), buckets }
    }

    /// Whether anything is limited at all.
    pub fn is_limited(&self) -> bool {
        self.buckets.is_some()
    }

    /// Takes a request of `operations` and `bytes` out of the buckets, or nothing and says after what time to
    /// try again. Asking for nothing at all succeeds unless there is a debt.
    pub fn take(&self, operations: u64, bytes: u64) -> Result<(), Duration> {
        let Some(buckets) = &self.buckets else { return Ok(()) };
        let mut buckets = buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.fill((self.clock)());
        let wait =
            buckets.pairs(operations, bytes).map(|(bucket, tokens)| bucket.wait(tokens)).max();
        match wait {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                buckets.pairs(operations, bytes).for_each(|(bucket, tokens)| bucket.spend(tokens));
                Ok(())
            }
        }
    }

    /// Counts what was done without asking, where the size is known only afterwards; it may leave a debt.
    pub fn charge(&self, operations: u64, bytes: u64) {
        let Some(buckets) = &self.buckets else { return };
        let mut buckets = buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.fill((self.clock)());
        buckets.pairs(operations, bytes).for_each(|(bucket, tokens)| bucket.spend(tokens));
    }
}

impl Buckets {
    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled);
        self.filled = self.filled.max(now);
        for bucket in [&mut self.bytes, &mut self.operations].into_iter().flatten() {
            bucket.fill(elapsed);
        }
    }

    fn pairs(&mut self, operations: u64, bytes: u64) -> impl Iterator<Item = (&mut Bucket, u64)> {
        let bytes = self.bytes.as_mut().map(|bucket| (bucket, bytes));
        let operations = self.operations.as_mut().map(|bucket| (bucket, operations));
        [bytes, operations].into_iter().flatten()
    }
}

impl Bucket {
    fn new(rate: NonZeroU64, burst: u32) -> Self {
        let rate = i128::from(rate.get());
        // At most 2^64 * 2^32 * 2^20 = 2^116.
        let capacity = rate * i128::from(burst) * NANOSECONDS_PER_MILLISECOND;
        Self { rate, capacity, level: capacity }
    }

    fn fill(&mut self, elapsed: Duration) {
        // 2^63 nanoseconds are 292 years.
        let elapsed = i128::from(i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX));
        let gain = self.rate.saturating_mul(elapsed);
        self.level = self.level.saturating_add(gain).min(self.capacity);
    }

    /// Until `tokens` may be spent.
    fn wait(&self, tokens: u64) -> Duration {
        let needed = (i128::from(tokens) * BILLIONTHS).min(self.capacity);
        let missing = needed - self.level;
        if missing <= 0 {
            return Duration::ZERO;
        }
        let nanoseconds = (missing + self.rate - 1) / self.rate;
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    fn spend(&mut self, tokens: u64) {
        self.level = (self.level - i128::from(tokens) * BILLIONTHS).max(LOWEST_LEVEL);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::*;

    use super::*;

    fn limiter(limit: &RateLimit) -> (RateLimiter, impl Fn(Duration) + use<>) {
        let now = Arc::new(AtomicU64::new(0));
        let start = Instant::now();
        let clock = Arc::clone(&now);
        let limiter = RateLimiter::with_clock(limit, move || {
            start + Duration::from_nanos(clock.load(Ordering::SeqCst))
        });
        let pass = move |time: Duration| {
            now.fetch_add(time.as_nanos() as u64, Ordering::SeqCst);
        };
        (limiter, pass)
    }

    fn limit(bytes: u64, operations: u64, burst: u32) -> RateLimit {
        RateLimit {
            bytes_per_second: NonZeroU64::new(bytes),
            operations_per_second: NonZeroU64::new(operations),
            burst: Some(burst),
        }
    }

    #[test]
    fn without_a_limit_everything_passes() {
        let (limiter, _) = limiter(&RateLimit::default());
        assert!(!limiter.is_limited());
        assert_eq!(limiter.take(u64::MAX, u64::MAX), Ok(()));
        assert_eq!(limiter.take(u64::MAX, u64::MAX), Ok(()));
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let (limiter, pass) = limiter(&limit(1000, 0, 1000));
        assert_eq!(limiter.take(1, 1000), Ok(()));
        assert_eq!(limiter.take(1, 500), Err(Duration::from_millis(500)));
        pass(Duration::from_millis(499));
        assert_eq!(limiter.take(1, 500), Err(Duration::from_millis(1)));
        pass(Duration::from_millis(1));
        assert_eq!(limiter.take(1, 500), Ok(()));
        assert_eq!(limiter.take(1, 1), Err(Duration::from_millis(1)));
    }

    #[test]
    fn the_stricter_bucket_decides_and_a_refusal_takes_nothing() {
        let (limiter, pass) = limiter(&limit(1000, 10, 1000));
        for _ in 0..10 {
            assert_eq!(limiter.take(1, 10), Ok(()));
        }
        assert_eq!(limiter.take(1, 900), Err(Duration::from_millis(100)));
        assert_eq!(limiter.take(0, 900), Ok(()));
        pass(Duration::from_millis(100));
        assert_eq!(limiter.take(1, 100), Ok(()));
    }

    #[test]
    fn a_request_larger_than_the_bucket_passes_when_it_is_full_and_leaves_a_debt() {
        let (limiter, pass) = limiter(&limit(1000, 0, 100));
        assert_eq!(limiter.take(1, 5000), Ok(()));
        assert_eq!(limiter.take(1, 1), Err(Duration::from_millis(4901)));
        assert_eq!(limiter.take(0, 0), Err(Duration::from_millis(4900)));
        pass(Duration::from_millis(4900));
        assert_eq!(limiter.take(0, 0), Ok(()));
        assert_eq!(limiter.take(1, 5000), Err(Duration::from_millis(100)));
        pass(Duration::from_millis(100));
        assert_eq!(limiter.take(1, 5000), Ok(()));
    }

    #[test]
    fn without_a_burst_requests_are_paced() {
        let (limiter, pass) = limiter(&limit(0, 100, 0));
        for _ in 0..5 {
            assert_eq!(limiter.take(1, 0), Ok(()));
            assert_eq!(limiter.take(1, 0), Err(Duration::from_millis(10)));
            pass(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_charge_is_never_refused_and_is_waited_out() {
        let (limiter, _) = limiter(&limit(1000, 0, 1000));
        limiter.charge(1, 1500);
        assert_eq!(limiter.take(0, 0), Err(Duration::from_millis(500)));
    }

    #[test]
    fn the_configuration_reads_as_it_is_written() {
        let limit = limit(5, 0, 7);
        let text = serde_json::to_string(&limit).unwrap();
        assert_eq!(text, r#"{"bytes_per_second":5,"burst":7}"#);
        assert_eq!(serde_json::from_str::<RateLimit>(&text).unwrap(), limit);
        assert!(serde_json::from_str::<RateLimit>(r#"{"bytes_per_second":0}"#).is_err());
        assert!(serde_json::from_str::<RateLimit>(r#"{"bytes":1}"#).is_err());
    }

    proptest! {
        #[test]
        fn nothing_overflows(
            bytes: u64,
            operations: u64,
            burst: u32,
            steps in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u32>()), 0..50),
        ) {
            let (limiter, pass) = limiter(&limit(bytes, operations, burst));
            for (operations, bytes, time) in steps {
                let _ = limiter.take(operations, bytes);
                limiter.charge(operations, bytes);
                pass(Duration::from_nanos(time.into()));
            }
        }

        #[test]
        fn who_waits_as_told_gets_it_and_never_more_than_the_rate(
            rate in 1u64..1_000_000,
            burst in 0u32..2000,
            requests in prop::collection::vec(0u64..3_000_000, 1..50),
        ) {
            let (limiter, pass) = limiter(&limit(rate, 0, burst));
            let mut elapsed = Duration::ZERO;
            let mut before_last = 0u128;
            for bytes in requests {
                if let Err(wait) = limiter.take(1, bytes) {
                    pass(wait);
                    elapsed += wait;
                    prop_assert_eq!(limiter.take(1, bytes), Ok(()));
                }
                // Debts aside, which the last request may leave, the bytes that passed were paid for.
                let paid = u128::from(rate) * (elapsed.as_nanos() + u128::from(burst) * 1_000_000);
                prop_assert!(before_last * 1_000_000_000 <= paid);
                before_last += u128::from(bytes);
            }
        }
    }
}
