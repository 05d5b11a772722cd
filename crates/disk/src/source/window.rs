//! What is kept of a remote file, what is on its way, and how much to ask for.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Unit of what is asked for and kept.
pub(crate) const BLOCK: u64 = 64 << 10;
/// Most blocks that are kept: 16 MiB.
const MAX_KEPT: usize = 256;
/// Most blocks of one request: 4 MiB.
const MAX_RUN: u64 = 64;
/// Readers whose way is followed.
const MAX_READERS: usize = 8;

/// The blocks that are kept and those that are on their way.
#[derive(Default)]
pub(crate) struct Window {
    kept: HashMap<u64, (Arc<[u8]>, u64)>,
    /// Counts uses, to tell which block was not used for longest.
    clock: u64,
    coming: Vec<Range<u64>>,
    /// Where readers will go on if they read in order, and how many blocks they got at once; the last one used is last.
    readers: Vec<(u64, u64)>,
}

impl Window {
    pub fn get(&mut self, number: u64) -> Option<Arc<[u8]>> {
        self.clock += 1;
        let (block, used) = self.kept.get_mut(&number)?;
        *used = self.clock;
        Some(Arc::clone(block))
    }

    pub fn insert(&mut self, number: u64, block: Arc<[u8]>) {
        if self.kept.len() >= MAX_KEPT && !self.kept.contains_key(&number) {
            let oldest =
                self.kept.iter().min_by_key(|(_, (_, used))| *used).map(|(&number, _)| number);
            oldest.map(|oldest| self.kept.remove(&oldest));
        }
        self.clock += 1;
        self.kept.insert(number, (block, self.clock));
    }

    pub fn is_coming(&self, number: u64) -> bool {
        self.coming.iter().any(|run| run.contains(&number))
    }

    /// Decides which blocks are fetched for a reader who wants `number` and those up to `last` of the `blocks` that there
    /// are; nobody else fetches them until [`end`](Self::end).
    pub fn begin(&mut self, number: u64, last: u64, blocks: u64) -> Range<u64> {
        let known = self.readers.iter().position(|&(next, _)| next == number);
        let ahead = known.map_or(1, |index| (self.readers.remove(index).1 * 2).min(MAX_RUN));
        let count = (last - number + 1).max(ahead).min(MAX_RUN).min(blocks - number);
        let free = |number: &u64| !self.kept.contains_key(number) && !self.is_coming(*number);
        let end = (number + 1..number + count).take_while(free).last().unwrap_or(number) + 1;
        if self.readers.len() >= MAX_READERS {
            self.readers.remove(0);
        }
        self.readers.push((end, count));
        self.coming.push(number..end);
        number..end
    }

    /// The run that began with this block is no longer on its way.
    pub fn end(&mut self, first: u64) {
        self.coming.retain(|run| run.start != first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_in_order_gets_more_at_once_and_who_jumps_does_not() {
        let mut window = Window::default();
        let mut at = 0;
        let mut sizes = Vec::new();
        for _ in 0..9 {
            let run = window.begin(at, at, 10_000);
            window.end(run.start);
            sizes.push(run.end - run.start);
            at = run.end;
        }
        assert_eq!(sizes, [1, 2, 4, 8, 16, 32, 64, 64, 64]);
        assert_eq!(window.begin(5000, 5001, 10_000), 5000..5002);
        assert_eq!(window.begin(9_999, 9_999, 10_000), 9_999..10_000);
    }

    #[test]
    fn what_is_kept_or_coming_is_not_asked_for_again() {
        let mut window = Window::default();
        window.insert(4, vec![1].into());
        assert_eq!(window.begin(1, 9, 100), 1..4);
        assert!(window.is_coming(3) && !window.is_coming(4));
        assert_eq!(window.begin(0, 9, 100), 0..1);
        window.end(1);
        assert!(!window.is_coming(3));
    }

    #[test]
    fn no_more_is_kept_than_allowed_and_what_is_used_stays() {
        let mut window = Window::default();
        for number in 0..MAX_KEPT as u64 * 4 {
            window.insert(number, vec![0].into());
            assert!(window.get(0).is_some());
            assert!(window.kept.len() <= MAX_KEPT);
        }
        assert!(window.get(1).is_none());
    }
}
