//! Approvals: the agent asks before it uses a tool, and somebody outside answers. They are the agent's own restraint; the wall is
//! the sandbox.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::id::{ApprovalId, RunId};
use crate::run::text_enum;
use crate::tools;

/// Approvals that may wait in one run; the agent is refused one more at once.
pub const APPROVALS_WAITING: usize = 16;
/// Approvals of one run; beyond them the agent is refused at once.
pub const RUN_APPROVALS: usize = 200;
/// Requests of one run that the server denies because it does not keep them, beside the answers to those that it keeps: an
/// agent can be in want of no more, since its shim passes [`RUN_APPROVALS`] on. A sandbox that makes more up gets none.
pub const APPROVAL_REFUSALS: usize = RUN_APPROVALS;
/// What is kept of the input that the agent wants to give to a tool, in bytes of JSON.
pub const APPROVAL_INPUT_BYTES: usize = 64 * 1024;
/// What a tool may be given in place of what the agent wanted, in bytes of JSON.
pub const CHANGED_INPUT_BYTES: usize = 256 * 1024;
/// Longest message with a denial, in bytes.
pub const APPROVAL_MESSAGE_BYTES: usize = 8 * 1024;
/// Longest name of a tool or of a request, and longest description, in bytes.
pub const APPROVAL_TEXT_BYTES: usize = 512;
/// Shortest and longest time until an approval has its default answer, in seconds.
pub const APPROVAL_EXPIRES_S: std::ops::RangeInclusive<u32> = 1..=24 * 60 * 60;
/// The same if the workflow names none, in seconds (15 minutes).
pub const APPROVAL_EXPIRES_S_DEFAULT: u32 = 15 * 60;

text_enum! {
    /// What an approval that nobody answers comes to.
    DefaultAnswer, "default answer" {
        /// The tool is not used, and the agent is told that nobody answered.
        Deny = "deny",
        /// The tool is used.
        Allow = "allow",
    }
}

text_enum! {
    /// Where an approval stands.
    ApprovalState, "approval state" {
        /// Nobody has answered.
        Waiting = "waiting",
        /// Somebody allowed it.
        Allowed = "allowed",
        /// Somebody denied it.
        Denied = "denied",
        /// Nobody answered in time: it has the default answer.
        Expired = "expired",
        /// The agent no longer waits for it, or its run has ended.
        Withdrawn = "withdrawn",
    }
}

/// The answer to an approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum Answer {
    /// The tool is used.
    Allow {
        /// What it is given in place of what the agent wanted; none changes nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        input: Option<Map<String, Value>>,
    },
    /// It is not used.
    Deny {
        /// What the agent is told.
        message: String,
    },
}

impl Answer {
    /// The answer that an approval has which nobody answered for `seconds`.
    #[must_use]
    pub fn expired(default: DefaultAnswer, seconds: i64) -> Self {
        match default {
            DefaultAnswer::Allow => Self::Allow { input: None },
            DefaultAnswer::Deny => Self::Deny {
                message: format!("Nobody answered within {seconds} s, which means no. Go on without it."),
            },
        }
    }
}

impl ApprovalId {
    /// The id of what a run's agent asks under a name of its own, the same whenever it is told.
    ///
    /// # Panics
    /// Never: the digits of a hash are those of an id.
    #[must_use]
    pub fn of(run: &RunId, request: &str) -> Self {
        let digest = hex::encode(Sha256::digest(format!("{run} {request}")));
        format!("apv_{}", &digest[..crate::id::ID_DIGITS])
            .parse()
            .expect("32 hexadecimal digits behind the prefix are an id")
    }
}

/// How the shim starts an agent that asks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalWork {
    /// Rules for calls that are asked about in every permission mode.
    #[serde(default)]
    pub ask: Vec<String>,
}

/// How a workflow has its agent ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ApprovalsBlock {
    /// Rules for calls that are asked about in every permission mode, as Claude Code's settings have them in `permissions.ask`.
    pub ask: Vec<String>,
    /// How long an answer is waited for, in seconds.
    pub expires_s: u32,
    /// The answer after that.
    pub default: DefaultAnswer,
}

impl Default for ApprovalsBlock {
    fn default() -> Self {
        Self { ask: Vec::new(), expires_s: APPROVAL_EXPIRES_S_DEFAULT, default: DefaultAnswer::Deny }
    }
}

impl ApprovalsBlock {
    /// Checks every value against its range.
    ///
    /// # Errors
    /// The field and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if !APPROVAL_EXPIRES_S.contains(&self.expires_s) {
            let (least, most) = (APPROVAL_EXPIRES_S.start(), APPROVAL_EXPIRES_S.end());
            let reason = format!("{} is not from {least} to {most}", self.expires_s);
            return Err(("caisson.approvals.expires_s", reason));
        }
        let bad = |rule: &&String| rule.len() > tools::TOOL_BYTES || !tools::is_rule(rule);
        let reason = match self.ask.iter().find(bad) {
            Some(rule) => format!("\"{}\" is not a tool", crate::run::cut(rule, 64).escape_debug()),
            None if self.ask.len() > tools::TOOLS => {
                format!("it has more than {} entries", tools::TOOLS)
            }
            None => return Ok(()),
        };
        Err(("caisson.approvals.ask", reason))
    }
}

/// The block as written in a workflow file: a key that is not known is a mistake of whoever wrote it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApprovalsFront {
    ask: Vec<String>,
    expires_s: Option<u32>,
    default: Option<DefaultAnswer>,
}

impl From<ApprovalsFront> for ApprovalsBlock {
    fn from(front: ApprovalsFront) -> Self {
        let default = Self::default();
        Self {
            ask: front.ask,
            expires_s: front.expires_s.unwrap_or(default.expires_s),
            default: front.default.unwrap_or(default.default),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_request_has_the_same_id_and_another_one_another() {
        let (one, two) = (RunId::new(1, [1; 10]), RunId::new(1, [2; 10]));
        assert_eq!(ApprovalId::of(&one, "a"), ApprovalId::of(&one, "a"));
        assert_ne!(ApprovalId::of(&one, "a"), ApprovalId::of(&one, "b"));
        assert_ne!(ApprovalId::of(&one, "a"), ApprovalId::of(&two, "a"));
    }

    #[test]
    fn a_block_is_checked_at_its_bounds() {
        let block = |ask: &[&str], expires_s| ApprovalsBlock {
            ask: ask.iter().map(|&rule| rule.to_owned()).collect(),
            expires_s,
            ..ApprovalsBlock::default()
        };
        for good in [1, 24 * 60 * 60] {
            assert_eq!(block(&["Write", "Bash(git push *)"], good).check(), Ok(()));
        }
        for bad in [0, 24 * 60 * 60 + 1] {
            assert_eq!(block(&[], bad).check().unwrap_err().0, "caisson.approvals.expires_s");
        }
        assert_eq!(block(&["Bash(a)b, Edit(x)"], 1).check().unwrap_err().0, "caisson.approvals.ask");
        let many = vec!["Write"; tools::TOOLS];
        assert_eq!(block(&many, 1).check(), Ok(()));
        let more = vec!["Write"; tools::TOOLS + 1];
        assert!(block(&more, 1).check().unwrap_err().1.contains("more than"));
    }

    #[test]
    fn an_answer_is_written_with_its_decision() {
        let json = |answer: &Answer| serde_json::to_string(answer).unwrap();
        assert_eq!(json(&Answer::Allow { input: None }), r#"{"decision":"allow"}"#);
        let no = Answer::Deny { message: "no".to_owned() };
        assert_eq!(json(&no), r#"{"decision":"deny","message":"no"}"#);
        assert_eq!(serde_json::from_str::<Answer>(&json(&no)).unwrap(), no);
    }
}
