//! The shim as a process, against a gateway that speaks the door's protocol, with real git and scripted agents; and,
//! where it is there, with the real Claude Code.

#![expect(clippy::unwrap_used, reason = "what fails in a test's own machinery fails the test")]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks for one kind of record among all there are"
)]
#![expect(clippy::future_not_send, reason = "a test runs on one thread")]

mod approvals;
mod artifacts;
mod attributes;
mod branches;
mod conflicts;
mod drivers;
mod faults;
mod forks;
mod gateway;
mod hostile;
mod inputs;
mod inputs_between;
mod kept;
mod messages;
mod pristine;
mod publishing;
mod real_cli;
mod revisions;
mod runs;
mod sandbox;
mod servers;
mod set_up;
mod steering;
mod steering_bounds;
mod transcripts;
mod used;
