use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;

/// 2023-11-14 22:13:20 UTC.
const NOW: u64 = 1_700_000_000;

struct Bench {
    nanoseconds: Arc<AtomicU64>,
    rtc: Rtc,
}

impl Bench {
    fn new() -> Self {
        let nanoseconds = Arc::new(AtomicU64::new(NOW * 1_000_000_000));
        let clock = Arc::clone(&nanoseconds);
        let clock: WallClock = Arc::new(move || Duration::from_nanos(clock.load(Ordering::SeqCst)));
        Self { nanoseconds, rtc: Rtc::with_clock("rtc", clock) }
    }

    fn advance(&self, nanoseconds: u64) {
        self.nanoseconds.fetch_add(nanoseconds, Ordering::SeqCst);
    }

    fn read(&self, index: usize) -> u8 {
        self.rtc.write(INDEX, &[index as u8]);
        let mut data = [0];
        self.rtc.read(DATA, &mut data);
        data[0]
    }

    fn write(&self, index: usize, byte: u8) {
        self.rtc.write(INDEX, &[index as u8]);
        self.rtc.write(DATA, &[byte]);
    }

    fn time(&self) -> [u8; 8] {
        [CENTURY_AT, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS]
            .map(|index| self.read(index))
    }
}

#[test]
fn it_shows_the_time_of_the_host_in_utc() {
    let bench = Bench::new();
    assert_eq!(bench.time(), [0x20, 0x23, 0x11, 0x14, 3, 0x22, 0x13, 0x20]);
    bench.advance(1_000_000_000);
    assert_eq!(bench.read(SECONDS), 0x21);
    bench.write(REGISTER_B, BINARY);
    assert_eq!(bench.time(), [20, 23, 11, 14, 3, 10 | 0x80, 13, 21]);
}

#[test]
fn linux_finds_a_clock_that_works() {
    // mc146818_does_rtc_work() and cmos_do_probe().
    let bench = Bench::new();
    assert_eq!(bench.read(REGISTER_A) & UPDATE_IN_PROGRESS, 0);
    assert_eq!(bench.read(REGISTER_D), VALID);
    assert_eq!(bench.read(REGISTER_B) & (SET | BINARY | WHOLE_DAY), WHOLE_DAY);
}

#[test]
fn an_update_is_announced_244_microseconds_before() {
    let bench = Bench::new();
    bench.advance(999_755_999);
    assert_eq!(bench.read(REGISTER_A), REGISTER_A_DEFAULT);
    bench.advance(1);
    assert_eq!(bench.read(REGISTER_A), REGISTER_A_DEFAULT | UPDATE_IN_PROGRESS);
    bench.advance(243_999);
    assert_eq!(bench.read(REGISTER_A), REGISTER_A_DEFAULT | UPDATE_IN_PROGRESS);
    bench.advance(1);
    assert_eq!(bench.read(REGISTER_A), REGISTER_A_DEFAULT);
}

#[test]
fn linux_sets_the_time() {
    // mc146818_set_time(): 2031-02-03 04:05:06, with the divider in reset.
    let bench = Bench::new();
    let (control, rate) = (bench.read(REGISTER_B), bench.read(REGISTER_A));
    bench.write(REGISTER_B, control | SET);
    bench.write(REGISTER_A, rate | 0x70);
    let fields = [(YEAR, 0x31), (MONTH, 2), (DAY, 3), (HOURS, 4), (MINUTES, 5), (SECONDS, 6)];
    for (index, value) in fields {
        bench.write(index, value);
    }
    bench.advance(3_000_000_000);
    assert_eq!(bench.read(SECONDS), 6, "it stands still");
    bench.write(REGISTER_B, control);
    bench.write(REGISTER_A, rate);
    assert_eq!(bench.time(), [0x20, 0x31, 2, 3, 2, 4, 5, 6]);
    bench.advance(499_999_999);
    assert_eq!(bench.read(SECONDS), 6);
    bench.advance(1);
    assert_eq!(bench.read(SECONDS), 7, "half a second after the divider was let go");
}

#[test]
fn a_register_can_be_set_while_the_clock_runs() {
    let bench = Bench::new();
    bench.advance(400_000_000);
    bench.write(HOURS, 0x01);
    assert_eq!(bench.time(), [0x20, 0x23, 0x11, 0x14, 3, 0x01, 0x13, 0x20]);
    bench.advance(600_000_000);
    assert_eq!(bench.read(SECONDS), 0x21);
}

#[test]
fn the_update_flag_is_set_once_a_second_and_cleared_by_reading() {
    let bench = Bench::new();
    assert_eq!(bench.read(REGISTER_C), 0);
    bench.advance(1_000_000_000);
    assert_eq!(bench.read(REGISTER_C), UPDATE_ENDED);
    assert_eq!(bench.read(REGISTER_C), 0);
    bench.write(REGISTER_B, WHOLE_DAY | UPDATE_INTERRUPT);
    bench.advance(1_000_000_000);
    assert_eq!(bench.read(REGISTER_C), UPDATE_ENDED | INTERRUPT_REQUEST);
}

#[test]
fn memory_and_alarm_keep_what_is_written_and_a_reset_too() {
    let bench = Bench::new();
    let kept = (1..REGISTER_A).filter(|index| position(*index).is_none());
    let kept: Vec<usize> = kept.chain(0x0e..0x80).filter(|index| *index != CENTURY_AT).collect();
    for index in &kept {
        bench.write(*index, *index as u8 ^ 0xa5);
    }
    bench.write(REGISTER_B, WHOLE_DAY | INTERRUPTS_ENABLED);
    bench.rtc.reset().unwrap();
    for index in &kept {
        assert_eq!(bench.read(*index), *index as u8 ^ 0xa5, "{index:#x}");
    }
    assert_eq!(bench.read(REGISTER_B), WHOLE_DAY);
}

#[test]
fn a_clock_saved_while_it_is_set_goes_on_elsewhere() {
    let bench = Bench::new();
    bench.write(0x40, 0x77);
    bench.write(REGISTER_B, WHOLE_DAY | SET);
    bench.write(YEAR, 0x40);
    bench.write(SECONDS, 0xff);
    let state = bench.rtc.save().unwrap();
    let later = Bench::new();
    later.advance(86_400_000_000_000);
    later.rtc.restore(&state).unwrap();
    assert_eq!(later.rtc.save().unwrap(), state);
    assert_eq!([later.read(YEAR), later.read(SECONDS), later.read(0x40)], [0x40, 0xff, 0x77]);
}

#[test]
fn a_restored_clock_shows_the_time_of_day_plus_what_was_set() {
    let bench = Bench::new();
    bench.write(YEAR, 0x40);
    let state = bench.rtc.save().unwrap();
    let later = Bench::new();
    later.advance(86_400_000_000_000);
    later.rtc.restore(&state).unwrap();
    assert_eq!(later.time(), [0x20, 0x40, 0x11, 0x15, 5, 0x22, 0x13, 0x20]);
}

#[test]
fn impossible_states_are_refused() {
    let bench = Bench::new();
    let good = bench.rtc.save().unwrap();
    let mut short = good.clone();
    short.0["memory"] = serde_json::json!([1, 2, 3]);
    assert!(matches!(bench.rtc.restore(&short), Err(Error::InvalidState(_))));
    let mut both = good.clone();
    both.0["held"] = serde_json::json!([0, 0, 0, 0, 0, 0, 0, 0]);
    assert!(matches!(bench.rtc.restore(&both), Err(Error::InvalidState(_))));
    bench.rtc.restore(&good).unwrap();
}

proptest! {
    #[test]
    fn any_sequence_of_accesses_is_survived_and_saved(
        accesses in prop::collection::vec(
            (
                prop_oneof![8 => 0..2u64, 1 => any::<u64>(), 1 => Just(u64::MAX)],
                any::<bool>(),
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 1..9),
                    (prop::sample::select(vec![0u8, 2, 4, 6, 7, 8, 9, 0x0a, 0x0b, 0x0c, 0x32]), any::<u8>())
                        .prop_map(|(index, value)| vec![index, value]),
                ],
                any::<u32>(),
            ),
            0..64,
        ),
    ) {
        let bench = Bench::new();
        for (offset, write, mut data, passed) in accesses {
            bench.advance(passed.into());
            if write {
                bench.rtc.write(offset, &data);
            } else {
                bench.rtc.read(offset, &mut data);
            }
        }
        let state = bench.rtc.save().unwrap();
        let restored = Bench::new();
        restored.rtc.restore(&state).unwrap();
        prop_assert_eq!(restored.rtc.save().unwrap(), state);
    }

    #[test]
    fn any_skew_is_survived(
        seconds in prop_oneof![any::<i64>(), Just(i64::MIN), Just(i64::MAX)], nanoseconds: u32,
    ) {
        let bench = Bench::new();
        let mut state = bench.rtc.save().unwrap();
        state.0["skew_seconds"] = seconds.into();
        state.0["skew_nanoseconds"] = nanoseconds.into();
        bench.rtc.restore(&state).unwrap();
        bench.time();
        bench.write(HOURS, 0xff);
        bench.rtc.save().unwrap();
    }
}
