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

/// Reads the offset in a segment's file name; none for other files.
pub(super) fn base_of(file_name: &str) -> Option<u64> {
    let digits = file_name.strip_suffix(ENDING)?;
    (digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| digits.parse().ok())
        .flatten()
}

/// All segments, without gaps; the last one is being written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segments {
    list: VecDeque<Segment>,
}

impl Segments {
    /// Takes the segments that were found, sorted by base. One that does not begin where the one before ended is
    /// moved there: the order of the records counts, and nothing of them is dropped.
    pub(super) fn recovered(found: &[Segment]) -> Self {
        let mut list: VecDeque<Segment> = VecDeque::new();
        for segment in found {
            let base = list.back().map_or(segment.base, |before| before.end());
            list.push_back(Segment { base, length: segment.length });
        }
        if list.is_empty() {
            list.push_back(Segment { base: 0, length: 0 });
        }
        Self { list }
    }

    /// All of them, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = Segment> + '_ {
        self.list.iter().copied()
    }

    /// Offset of the oldest byte that is still there.
    pub(super) fn begin(&self) -> u64 {
        self.list.front().map_or(0, |first| first.base)
    }

    /// Offset behind the newest byte.
    pub(super) fn end(&self) -> u64 {
        self.active().end()
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
        let next = Segment { base: self.end(), length: 0 };
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

    /// The segment that holds the byte at `offset`.
    pub(super) fn holding(&self, offset: u64) -> Option<Segment> {
        self.iter().find(|segment| segment.base <= offset && offset < segment.end())
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
        assert_eq!(base_of(&segment(u64::MAX, 0).file_name()), Some(u64::MAX));
        for other in ["reserve", "1.jsonl", "0000000000000000000x.jsonl", "99999999999999999999.jsonl"] {
            assert_eq!(base_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_segment_is_followed_by_the_next_at_its_bound() {
        let mut segments = Segments::recovered(&[]);
        segments.grow(SEGMENT_BYTES - 1);
        assert_eq!(segments.rotate(), None);
        segments.grow(1);
        assert_eq!(segments.rotate(), Some(segment(SEGMENT_BYTES, 0)));
        assert_eq!((segments.begin(), segments.end()), (0, SEGMENT_BYTES));
    }

    #[test]
    fn only_segments_wholly_acknowledged_are_deleted_and_never_the_active_one() {
        let mut segments = Segments::recovered(&[segment(0, 10), segment(10, 5), segment(15, 5)]);
        assert_eq!(segments.forget_before(9), []);
        assert_eq!(segments.forget_before(10), [segment(0, 10)]);
        assert_eq!(segments.forget_before(20), [segment(10, 5)]);
        assert_eq!((segments.begin(), segments.end()), (15, 20));
        assert_eq!(segments.holding(19), Some(segment(15, 5)));
        assert_eq!((segments.holding(14), segments.holding(20)), (None, None));
    }

    #[test]
    fn a_gap_is_closed_and_nothing_dropped() {
        let segments = Segments::recovered(&[segment(5, 10), segment(40, 5)]);
        assert_eq!(segments.iter().collect::<Vec<_>>(), [segment(5, 10), segment(15, 5)]);
    }

    proptest! {
        #[test]
        fn every_byte_that_is_not_forgotten_is_in_exactly_one_segment(
            steps in prop::collection::vec((1_u64..SEGMENT_BYTES, 0.0_f64..1.0), 1..20)
        ) {
            let mut segments = Segments::recovered(&[]);
            for (bytes, acknowledged) in steps {
                segments.grow(bytes);
                segments.rotate();
                let (begin, end) = (segments.begin(), segments.end());
                #[expect(
                    clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss,
                    reason = "any offset between the two will do"
                )]
                let offset = begin + ((end - begin) as f64 * acknowledged) as u64;
                segments.forget_before(offset);
                prop_assert!(segments.begin() <= offset && segments.end() == end);
                let list: Vec<_> = segments.iter().collect();
                prop_assert!(list.windows(2).all(|pair| pair[0].end() == pair[1].base));
                if offset < end {
                    prop_assert!(segments.holding(offset).is_some());
                }
            }
        }
    }
}
