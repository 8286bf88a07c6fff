//! `caisson budget`, as it is typed.

use caisson_domain::budget::PROJECT_BUDGET_MICRO_USD_MAX;
use clap::{Args, Subcommand};

use super::ClientFlags;

/// The word for a budget that bounds nothing.
const NONE: &str = "none";

/// What the project's runs may spend on the model API, together.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Budget {
    /// Show what may be spent, what is spent, and what calls under way hold.
    Show {
        #[command(flatten)]
        client: ClientFlags,
    },
    /// Set what may be spent, in all and each day; calls have it from the next one on. Needs a key with the scope admin.
    Set(SetBudget),
}

/// Flags of `budget set`.
#[derive(Debug, Clone, Args)]
#[command(group(clap::ArgGroup::new("which").required(true).multiple(true).args(["total", "day"])))]
pub(crate) struct SetBudget {
    #[command(flatten)]
    pub client: ClientFlags,
    /// In all, in USD, such as 250 or 0.50; none: no bound.
    #[arg(long, value_name = "USD|none", value_parser = bound)]
    pub total: Option<Bound>,
    /// Each day from midnight to midnight UTC, in USD; none: no bound.
    #[arg(long, value_name = "USD|none", value_parser = bound)]
    pub day: Option<Bound>,
}

/// A bound in micro-USD; none is no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bound(pub Option<i64>);

fn bound(text: &str) -> Result<Bound, String> {
    if text == NONE {
        return Ok(Bound(None));
    }
    let micro = micro_usd(text)?;
    if micro > PROJECT_BUDGET_MICRO_USD_MAX {
        return Err(format!("a project may have up to {} USD", PROJECT_BUDGET_MICRO_USD_MAX / 1_000_000));
    }
    Ok(Bound(Some(micro)))
}

/// An amount in USD as whole micro-USD; nothing is rounded.
pub(super) fn micro_usd(text: &str) -> Result<i64, String> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if text.is_empty() || part.len() > 6 || !digits(whole) || !digits(part) || text == "." {
        return Err("write it like 1.50, with at most six digits behind the point".to_owned());
    }
    // More digits than a number has are more than any budget.
    Ok(format!("{whole}{part:0<6}").parse().unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_projects_bound_is_an_amount_or_none() {
        assert_eq!(bound("none"), Ok(Bound(None)));
        assert_eq!(bound("0"), Ok(Bound(Some(0))));
        assert_eq!(bound("250.000001"), Ok(Bound(Some(250_000_001))));
        assert_eq!(bound("1000000000"), Ok(Bound(Some(PROJECT_BUDGET_MICRO_USD_MAX))));
        for bad in ["", "None", "-1", "1000000000.000001", "99999999999999999999", "1,5", "0.0000001"] {
            assert!(bound(bad).is_err(), "{bad}");
        }
    }
}
