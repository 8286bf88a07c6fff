//! `caisson queue`, `drain` and `resume`, and when a run starts, as they are typed.

use caisson_domain::queue::{CAP, DELAY_S_MAX};
use clap::Args;

use super::{ClientFlags, OutputFlag, ServerFlags};

/// The word for a cap that is the settings' own.
const NONE: &str = "none";

/// When a run starts.
#[derive(Debug, Clone, Args)]
pub(crate) struct StartFlags {
    /// Which of the project's runs start first, -10 to 10; each 10 minutes of waiting count as one step.
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-10..=10))]
    pub priority: Option<i64>,
    /// Do not start before this time (UTC), such as 2030-01-31T22:00:00Z; at most 30 days ahead.
    #[arg(long, value_name = "TIME", value_parser = at_ms, conflicts_with = "delay")]
    pub start_at: Option<i64>,
    /// Do not start before so much time has passed: a number with s, m, h or d behind it, such as 90m.
    #[arg(long, value_name = "TIME", value_parser = delay_s)]
    pub delay: Option<i64>,
}

/// Flags of `queue`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Queue {
    #[command(flatten)]
    pub client: ClientFlags,
}

/// Flags of `drain`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Drain {
    #[command(flatten)]
    pub client: ClientFlags,
    /// The server, by its id; without it all servers, also those that come later.
    #[arg(long, value_name = "ID")]
    pub server: Option<String>,
    /// Wait until what runs there has ended.
    #[arg(long)]
    pub wait: bool,
    /// How long to wait at most, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 90_000, requires = "wait")]
    pub timeout: u64,
}

/// Flags of `resume`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Resume {
    #[command(flatten)]
    pub client: ClientFlags,
    /// The server, by its id; without it all servers, also those that were drained by themselves.
    #[arg(long, value_name = "ID")]
    pub server: Option<String>,
}

/// Flags of `project set`.
#[derive(Debug, Clone, Args)]
#[command(group(clap::ArgGroup::new("which").required(true).multiple(true).args(["weight", "max_running", "max_queued"])))]
pub(crate) struct SetProject {
    #[command(flatten)]
    pub server: ServerFlags,
    /// The project.
    pub name: String,
    /// How many runs of it start for one of a project of weight 1: 1 to 1000.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..=1000))]
    pub weight: Option<i64>,
    /// Most runs of it that run at once, 0 to 10000; none: as the server's settings say.
    #[arg(long, value_name = "N|none", value_parser = cap)]
    pub max_running: Option<Cap>,
    /// Most runs of it that wait, 0 to 10000; none: as the server's settings say.
    #[arg(long, value_name = "N|none", value_parser = cap)]
    pub max_queued: Option<Cap>,
    #[command(flatten)]
    pub output: OutputFlag,
}

/// A cap; none is that of the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cap(pub Option<i64>);

fn cap(text: &str) -> Result<Cap, String> {
    if text == NONE {
        return Ok(Cap(None));
    }
    let number = text.parse().ok().filter(|number| CAP.contains(number));
    number.map(|number| Cap(Some(number))).ok_or_else(|| format!("write 0 to {}, or none", CAP.end()))
}

fn delay_s(text: &str) -> Result<i64, String> {
    let units = [('s', 1), ('m', 60), ('h', 60 * 60), ('d', 24 * 60 * 60)];
    let parsed = units.iter().find_map(|(unit, seconds)| {
        let count = text.strip_suffix(*unit)?;
        let count: i64 = count.bytes().all(|byte| byte.is_ascii_digit()).then(|| count.parse().ok())??;
        count.checked_mul(*seconds)
    });
    parsed.filter(|seconds| *seconds <= DELAY_S_MAX).ok_or_else(|| {
        let days = DELAY_S_MAX / (24 * 60 * 60);
        format!("write a number with s, m, h or d behind it, such as 90m; at most {days}d")
    })
}

/// A time in UTC as `caisson` shows it, as Unix ms.
pub(super) fn at_ms(text: &str) -> Result<i64, &'static str> {
    parse_utc(text).ok_or("write it in UTC, like 2030-01-31T22:00:00Z")
}

fn parse_utc(text: &str) -> Option<i64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    if !(1..=12).contains(&month) || day < 1 || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let month_days = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if day > month_days {
        return None;
    }
    // Days from a date in the Gregorian calendar: H. Hinnant, "chrono-compatible low-level date algorithms".
    let year = year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
    let days = era * 146_097 + of_era - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000)
}

/// Three numbers of so many digits each.
fn numbers(text: &str, separator: char, digits: [usize; 3]) -> Option<[i64; 3]> {
    let mut parts = text.split(separator);
    let mut numbers = [0; 3];
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let part = parts.next()?;
        let plain = part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit());
        *number = plain.then(|| part.parse().ok())??;
    }
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::utc;

    #[test]
    fn a_time_reads_back_as_it_is_shown() {
        for seconds in [0, 86_399, 951_782_400, 1_709_164_800, 1_700_000_000, 4_102_444_799] {
            assert_eq!(at_ms(&utc(seconds * 1000)), Ok(seconds * 1000));
        }
        for bad in [
            "",
            "2030-01-31",
            "2030-01-31T22:00:00",
            "2030-1-31T22:00:00Z",
            "2030-02-29T00:00:00Z",
            "2030-01-31T24:00:00Z",
            "2030-01-31T22:00:00.5Z",
            "2030-01-31T22:00:00:00Z",
            "+030-01-31T22:00:00Z",
        ] {
            assert!(at_ms(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_delay_has_a_unit_and_a_bound() {
        assert_eq!((delay_s("90m"), delay_s("0s"), delay_s("30d")), (Ok(5_400), Ok(0), Ok(DELAY_S_MAX)));
        for bad in ["", "5", "m", "-1m", "+1m", "31d", "2592001s", "9223372036854775807d"] {
            assert!(delay_s(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cap_is_a_number_or_none() {
        assert_eq!(
            (cap("none"), cap("0"), cap("10000")),
            (Ok(Cap(None)), Ok(Cap(Some(0))), Ok(Cap(Some(10_000))))
        );
        for bad in ["", "-1", "10001", "None"] {
            assert!(cap(bad).is_err(), "{bad}");
        }
    }
}
