//! Times as texts: ISO 8601 with exactly three decimals, since Python 3.10 reads none, three or six alone.

use caisson_domain::budget::{DAY_MS, date_of, day_of};

/// With its zone, written as an offset: not every reader knows the letter.
pub(super) fn zoned(at_ms: i64) -> String {
    format!("{}+00:00", naive(at_ms))
}

/// Without a zone, in UTC.
pub(super) fn naive(at_ms: i64) -> String {
    let (year, month, day) = date_of(day_of(at_ms));
    let rest = at_ms.rem_euclid(DAY_MS);
    let (seconds, ms) = (rest / 1000, rest % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}")
}

/// Milliseconds as seconds.
#[expect(clippy::cast_precision_loss, reason = "a duration of 285,000 years would lose a millisecond")]
pub(super) fn seconds(duration_ms: i64) -> f64 {
    duration_ms as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_to_the_millisecond() {
        for (at_ms, expected) in [
            (0, "1970-01-01T00:00:00.000"),
            (951_827_696_789, "2000-02-29T12:34:56.789"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999"),
            (1_709_251_200_000, "2024-03-01T00:00:00.000"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000"),
            (-1, "1969-12-31T23:59:59.999"),
        ] {
            assert_eq!(naive(at_ms), expected);
        }
        assert_eq!(zoned(0), "1970-01-01T00:00:00.000+00:00");
    }
}
