//! Reading the one form of time that GitHub writes: `2026-07-11T22:14:10Z`.

/// Unix ms; none if it is another form or no date.
pub(super) fn utc_ms(text: &str) -> Option<i64> {
    let text = text.strip_suffix('Z')?;
    let (date, time) = text.split_once('T')?;
    let numbers = |text: &str, mark: char| -> Option<[i64; 3]> {
        let mut parts = text.split(mark).map(|part| {
            let digits = !part.is_empty() && part.len() <= 4 && part.bytes().all(|b| b.is_ascii_digit());
            part.parse().ok().filter(|_| digits)
        });
        let three = [parts.next()??, parts.next()??, parts.next()??];
        parts.next().is_none().then_some(three)
    };
    // Fractions of a second are dropped.
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time.split('.').next()?, ':')?;
    let fits = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second);
    fits.then(|| (((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second) * 1000)
}

/// Days from 1970-01-01 in the Gregorian calendar: the year is taken to begin in March, so that the leap day is its last.
const fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_anything_else_is_not() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:00Z", 951_825_600_000),
            ("2016-07-11T22:14:10Z", 1_468_275_250_000),
            ("2026-12-31T23:59:59.5Z", 1_798_761_599_000),
            ("2100-03-01T00:00:00Z", 4_107_542_400_000),
        ] {
            assert_eq!(utc_ms(text), Some(expected), "{text}");
        }
        for bad in [
            "",
            "Z",
            "2016-07-11",
            "2016-07-11T22:14:10",
            "2016-07-11T22:14:10+02:00",
            "2016-13-01T00:00:00Z",
            "2016-01-01T24:00:00Z",
            "2016-01-01T00:00Z",
            "2016-01-01T00:00:00:00Z",
            "99999-01-01T00:00:00Z",
            "+016-01-01T00:00:00Z",
        ] {
            assert_eq!(utc_ms(bad), None, "{bad}");
        }
    }
}
