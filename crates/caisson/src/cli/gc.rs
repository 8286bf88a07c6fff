//! `caisson gc` and `caisson project retention`, as they are typed.

use caisson_domain::retention::RETENTION_DAYS;
use clap::Args;

use super::ServerFlags;

/// The word for what the server's settings say.
const DEFAULT: &str = "default";
/// The word for what is never removed.
const EVER: &str = "ever";

/// Flags of `gc`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Gc {
    #[command(flatten)]
    pub server: ServerFlags,
    /// Tell what could be removed, and remove nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON, one document a line.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `project retention`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Retain {
    #[command(flatten)]
    pub server: ServerFlags,
    /// The project.
    #[arg(default_value = "default")]
    pub project: String,
    /// Days that events are kept.
    #[arg(long, value_name = "DAYS|ever|default", value_parser = days)]
    pub events: Option<Days>,
    /// Days that kept files are kept.
    #[arg(long, value_name = "DAYS|ever|default", value_parser = days)]
    pub artifacts: Option<Days>,
    /// Days that workspaces and homes of sessions are kept.
    #[arg(long, value_name = "DAYS|ever|default", value_parser = days)]
    pub volumes: Option<Days>,
    /// Days that sessions are kept, with everything of them.
    #[arg(long, value_name = "DAYS|ever|default", value_parser = days)]
    pub sessions: Option<Days>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Days, 0 for ever; none is what the server's settings say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Days(pub Option<i64>);

fn days(text: &str) -> Result<Days, String> {
    match text {
        DEFAULT => return Ok(Days(None)),
        EVER => return Ok(Days(Some(0))),
        _ => {}
    }
    let days = text.parse().ok().filter(|days| *days > 0 && RETENTION_DAYS.contains(days));
    days.map(|days| Days(Some(days))).ok_or_else(|| {
        format!("write a number of days from 1 to {}, or {EVER}, or {DEFAULT}", RETENTION_DAYS.end())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_a_number_or_a_word() {
        assert_eq!(days("30"), Ok(Days(Some(30))));
        assert_eq!(days("36500"), Ok(Days(Some(36_500))));
        assert_eq!((days("ever"), days("default")), (Ok(Days(Some(0))), Ok(Days(None))));
        for bad in ["", "0", "-1", "1.5", "36501", "never", "30d"] {
            assert!(days(bad).is_err(), "{bad}");
        }
    }
}
