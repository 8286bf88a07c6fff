//! `caisson usage`, as it is typed.

use caisson_domain::budget::DAY_MS;
use caisson_domain::run::UnknownText;
use caisson_domain::usage::{USAGE_REPORT_DAYS, UsageBy};
use clap::Args;

use super::ClientFlags;
use super::queue::at_ms;

/// Most groups that are shown.
const GROUPS_MAX: i64 = 10_000;

/// Flags of `usage`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Usage {
    #[command(flatten)]
    pub client: ClientFlags,
    /// What is added up by: day, model, workflow, session, run or project.
    #[arg(long, value_name = "WHAT", default_value = "day", value_parser = by)]
    pub by: UsageBy,
    /// Count calls begun since then: a number with m, h, d or w behind it, such as 7d, or a time (UTC), such as
    /// 2030-01-31T22:00:00Z. Default: 30 days.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<Moment>,
    /// Count calls begun before then, written as for --since. Default: now.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<Moment>,
    /// Only calls of that run.
    #[arg(long, value_name = "ID")]
    pub run: Option<String>,
    /// Only calls of that session.
    #[arg(long, value_name = "ID")]
    pub session: Option<String>,
    /// Only calls of runs of that workflow.
    #[arg(long, value_name = "NAME")]
    pub workflow: Option<String>,
    /// Only calls that this model answered.
    #[arg(long, value_name = "ID")]
    pub model: Option<String>,
    /// Of that project. Needs an admin key of the default project. Default: the key's own.
    #[arg(long, value_name = "NAME", conflicts_with = "all_projects")]
    pub project: Option<String>,
    /// Of all projects. Needs an admin key of the default project.
    #[arg(long)]
    pub all_projects: bool,
    /// Most groups to show, 1 to 10000.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=GROUPS_MAX))]
    pub limit: u32,
}

/// A moment, before now or by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// So many milliseconds before now.
    Ago(i64),
    /// Unix ms.
    At(i64),
}

impl Moment {
    /// The moment as Unix ms.
    pub(crate) const fn ms(self, now_ms: i64) -> i64 {
        match self {
            Self::Ago(ms) => now_ms - ms,
            Self::At(at_ms) => at_ms,
        }
    }
}

fn by(text: &str) -> Result<UsageBy, String> {
    text.parse().map_err(|error: UnknownText| error.to_string())
}

fn moment(text: &str) -> Result<Moment, String> {
    let units = [('m', 60_000), ('h', 60 * 60_000), ('d', DAY_MS), ('w', 7 * DAY_MS)];
    let ago = units.iter().find_map(|(unit, ms)| {
        let count = text.strip_suffix(*unit)?;
        let count: i64 = count.bytes().all(|byte| byte.is_ascii_digit()).then(|| count.parse().ok())??;
        count.checked_mul(*ms)
    });
    match (ago, at_ms(text)) {
        (Some(ms), _) if ms <= USAGE_REPORT_DAYS * DAY_MS => Ok(Moment::Ago(ms)),
        (Some(_), _) => Err(format!("a report covers {USAGE_REPORT_DAYS} days at most")),
        (None, Ok(at_ms)) => Ok(Moment::At(at_ms)),
        (None, Err(_)) => Err(
            "write a number with m, h, d or w behind it, such as 7d, or a time in UTC, like 2030-01-31T22:00:00Z".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_so_long_ago_or_a_time() {
        assert_eq!(moment("7d"), Ok(Moment::Ago(7 * DAY_MS)));
        assert_eq!(moment("2w"), Ok(Moment::Ago(14 * DAY_MS)));
        assert_eq!((moment("90m"), moment("0h")), (Ok(Moment::Ago(5_400_000)), Ok(Moment::Ago(0))));
        assert_eq!(moment("366d"), Ok(Moment::Ago(USAGE_REPORT_DAYS * DAY_MS)));
        assert_eq!(moment("1970-01-01T00:00:01Z"), Ok(Moment::At(1_000)));
        assert_eq!((Moment::Ago(5).ms(100), Moment::At(5).ms(100)), (95, 5));
        for bad in ["", "7", "d", "-1d", "1.5d", "367d", "99999999999999999999d", "2030-01-31", "7 d"] {
            assert!(moment(bad).is_err(), "{bad}");
        }
    }
}
