//! Which bytes of the journal are in which file. Pure: offsets in, names out.

use std::collections::VecDeque;

/// A segment that has reached this many bytes is followed by a new one, so that acknowledged bytes can be deleted.
pub(super) const SEGMENT_BYTES: u64 = 4 * 1024 * 1024;
/// Ending of a segment's file name.
const ENDING: &str = ".jsonl";
/// Digits of the offset in a segment's file name: names sort by offset.
const DIGITS: usize = 20;

/// One file: the bytes from `base` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// Offset of its first byte.
    pub(super) base: u64,
    /// Its length in bytes.
    pub(super) length: u64,
}

impl Segment {
    /// Offset behind its last byte.
    pub(super) fn end(self) -> u64 {
        self.base + self.length
    }

    /// The name of its file.
    pub(super) fn file_name(self) -> String {
        format!("{:0DIGITS$}{ENDING}", self.base)
    }
}

/// Whether a file's name is that of a segment.
pub(super) fn is_segment(file_name: &str) -> bool {
    let digits = file_name.strip_suffix(ENDING).unwrap_or_default();
    digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// All segments, without gaps; the last one is being written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segments {
    list: VecDeque<Segment>,
}

impl Segments {
    /// One empty segment.
    pub(super) fn new() -> Self {
        Self { list: VecDeque::from([Segment { base: 0, length: 0 }]) }
    }

    /// The one that is being written.
    pub(super) fn active(&self) -> Segment {
        self.list.back().copied().unwrap_or(Segment { base: 0, length: 0 })
    }

    /// Notes that `bytes` were appended to the active segment.
    pub(super) fn grow(&mut self, bytes: u64) {
        if let Some(active) = self.list.back_mut() {
            active.length += bytes;
        }
    }

    /// Begins a new segment if the active one is long enough.
    pub(super) fn rotate(&mut self) -> Option<Segment> {
        if self.active().length < SEGMENT_BYTES {
            return None;
        }
        let next = Segment { base: self.active().end(), length: 0 };
        self.list.push_back(next);
        Some(next)
    }

    /// Forgets the segments that lie wholly before `offset`, except the active one, and names them for deletion.
    pub(super) fn forget_before(&mut self, offset: u64) -> Vec<Segment> {
        let mut forgotten = Vec::new();
        while self.list.len() > 1 {
            match self.list.front() {
                Some(first) if first.end() <= offset => forgotten.extend(self.list.pop_front()),
                Some(_) | None => break,
            }
        }
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn segment(base: u64, length: u64) -> Segment {
        Segment { base, length }
    }

    #[test]
    fn names_carry_the_offset_and_sort_by_it() {
        assert_eq!(segment(0, 1).file_name(), "00000000000000000000.jsonl");
        assert!(is_segment(&segment(u64::MAX, 0).file_name()));
        for other in ["reserve", "1.jsonl", "0000000000000000000x.jsonl"] {
            assert!(!is_segment(other), "{other}");
        }
    }

    #[test]
    fn a_segment_is_followed_by_the_next_at_its_bound() {
        let mut segments = Segments::new();
        segments.grow(SEGMENT_BYTES - 1);
        assert_eq!(segments.rotate(), None);
        segments.grow(1);
        assert_eq!(segments.rotate(), Some(segment(SEGMENT_BYTES, 0)));
    }

    #[test]
    fn only_segments_wholly_acknowledged_are_deleted_and_never_the_active_one() {
        let mut segments = Segments { list: [segment(0, 10), segment(10, 5), segment(15, 5)].into() };
        assert_eq!(segments.forget_before(9), []);
        assert_eq!(segments.forget_before(10), [segment(0, 10)]);
        assert_eq!(segments.forget_before(20), [segment(10, 5)]);
        assert_eq!(segments.list, [segment(15, 5)]);
    }

    proptest! {
        #[test]
        fn every_byte_that_is_not_forgotten_is_in_exactly_one_segment(
            steps in prop::collection::vec((1_u64..SEGMENT_BYTES, 0_u64..=100), 1..20)
        ) {
            let mut segments = Segments::new();
            for (bytes, percent) in steps {
                segments.grow(bytes);
                segments.rotate();
                let (begin, end) = (segments.list[0].base, segments.active().end());
                let offset = begin + (end - begin) * percent / 100;
                segments.forget_before(offset);
                prop_assert!(segments.list[0].base <= offset && segments.active().end() == end);
                let list: Vec<_> = segments.list.iter().collect();
                prop_assert!(list.windows(2).all(|pair| pair[0].end() == pair[1].base));
            }
        }
    }
}
