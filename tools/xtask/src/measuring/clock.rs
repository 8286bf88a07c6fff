//! Wall time in microseconds: the one clock that the bench, the server, the agent and the script share, since all of
//! them are on one machine.

/// Microseconds of a day.
const DAY_US: i64 = 24 * 60 * 60 * 1_000_000;

/// Now, in Unix microseconds.
#[must_use]
pub(crate) fn wall_us() -> i64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "the events and lines that are compared with it carry wall time"
    )]
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// From one moment to another, in milliseconds; less than zero if the second came first. Differences of more than half
/// an hour, which no measurement has, count as half an hour.
#[must_use]
pub(crate) fn ms_between(from_us: i64, to_us: i64) -> f64 {
    let difference = to_us.saturating_sub(from_us);
    let bounded = i32::try_from(difference).unwrap_or(if difference < 0 { i32::MIN } else { i32::MAX });
    f64::from(bounded) / 1000.0
}

/// Reads the form in which the agent stamps its lines, `2026-11-22T10:36:32.123Z`, as Unix microseconds.
#[must_use]
pub(crate) fn parse_stamp(text: &str) -> Option<i64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let date = numbers(date, '-')?;
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let clock = numbers(clock, ':')?;
    let ([year, month, day], [hour, minute, second]) = (date, clock);
    let in_range =
        (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 61;
    if !in_range || fraction.is_empty() || fraction.len() > 6 || !fraction.bytes().all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let micros: i64 = format!("{fraction:0<6}").parse().ok()?;
    let seconds = (hour * 60 + minute) * 60 + second;
    Some(days(year, month, day) * DAY_US + seconds * 1_000_000 + micros)
}

/// Reads `1732271792.123456`, the form of bash's `EPOCHREALTIME`, as Unix microseconds.
#[must_use]
pub(crate) fn parse_epoch(text: &str) -> Option<i64> {
    // Bash writes the locale's decimal sign.
    let (seconds, micros) = text.split_once(['.', ','])?;
    (micros.len() == 6).then_some(())?;
    Some(seconds.parse::<i64>().ok()? * 1_000_000 + micros.parse::<i64>().ok()?)
}

/// The day of a moment, `2026-11-22`, in UTC.
#[must_use]
pub(crate) fn date(at_us: i64) -> String {
    // The reverse of `days`, from the same source.
    let shifted = at_us.div_euclid(DAY_US) + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Days since 1970-01-01. Source: Howard Hinnant, "chrono-compatible low-level date algorithms", `days_from_civil`.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let from_march = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * from_march + 2) / 5 + day - 1;
    let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
    era * 146_097 + of_era - 719_468
}

fn numbers(text: &str, separator: char) -> Option<[i64; 3]> {
    let mut parts = text.split(separator).map(|part| part.parse::<i64>().ok().filter(|number| *number >= 0));
    let numbers = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_of_the_agent_are_read_to_the_millisecond() {
        assert_eq!(parse_stamp("1970-01-01T00:00:00.000Z"), Some(0));
        assert_eq!(parse_stamp("2026-11-22T10:36:32.123Z"), Some(1_795_343_792_123_000));
        assert_eq!(parse_stamp("2024-02-29T23:59:59Z"), Some(1_709_251_199_000_000));
        for bad in
            ["", "2026-11-22", "2026-11-22T10:36:32.123", "2026-13-01T00:00:00.0Z", "x-11-22T10:36:32.1Z"]
        {
            assert_eq!(parse_stamp(bad), None, "{bad}");
        }
    }

    #[test]
    fn stamps_of_the_script_are_read_to_the_microsecond() {
        assert_eq!(parse_epoch("1732271792.123456"), Some(1_732_271_792_123_456));
        assert_eq!(parse_epoch("1,000002"), Some(1_000_002));
        for bad in ["", "1732271792", "1732271792.1", "x.123456"] {
            assert_eq!(parse_epoch(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_date_is_the_one_its_stamp_has() {
        for day in ["1970-01-01", "2000-02-29", "2026-11-22", "2026-12-31", "2100-03-01"] {
            let at_us = parse_stamp(&format!("{day}T23:59:59.999Z")).unwrap();
            assert_eq!(date(at_us), day);
        }
    }

    #[test]
    fn differences_are_milliseconds_and_bounded() {
        assert!((ms_between(1_000, 3_500) - 2.5).abs() < 1e-9);
        assert!(ms_between(3_500, 1_000) < 0.0);
        assert!(ms_between(0, i64::MAX) > 2_000_000.0 && ms_between(i64::MAX, 0) < -2_000_000.0);
    }
}
