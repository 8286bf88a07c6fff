//! When a run starts: its priority, and a start that is put off.

use std::ops::RangeInclusive;

use caisson_domain::id::SessionId;
use caisson_domain::queue::{DELAY_S_MAX, PRIORITY};
use caisson_domain::run::RunSpec;
use caisson_domain::server::{ProblemCode, Server};
use caisson_store::{QueueEstimate, QueuePlace, SessionHome, Store};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::request::CreateRun;
use crate::extract::{Fields, whole_number};
use crate::problem::{ApiError, Faults};

/// Delays, in seconds.
const DELAY_S: RangeInclusive<i64> = 0..=DELAY_S_MAX;
/// Times that any clock may show, Unix ms; which of them are too late depends on when it is.
const TIME_MS: RangeInclusive<i64> = 0..=i64::MAX;

/// About when a waiting run starts: `mean_run_ms` × `queue_position` / `running`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueueEstimateView {
    /// In about how many seconds.
    pub seconds: i64,
    /// What a run took from its start to its end, on average, in milliseconds.
    pub mean_run_ms: i64,
    /// The runs, of all projects, that this was seen of: the last ones that ended, 3 to 20.
    pub runs_measured: i64,
    /// How many runs run now, which is taken for how many can.
    pub running: i64,
}

impl From<QueueEstimate> for QueueEstimateView {
    fn from(estimate: QueueEstimate) -> Self {
        let QueueEstimate { seconds, mean_run_ms, runs_measured, running } = estimate;
        Self { seconds, mean_run_ms, runs_measured, running }
    }
}

/// Something that keeps every server that may start a waiting run from doing so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HeldByView {
    /// The class: that of a server's problem, `drained`, `no_server`, or `home_away`: the server that has the session's workspace
    /// is away.
    #[schema(example = "disk_low")]
    pub code: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// What keeps every server that may start the run from doing so, each thing once; empty as long as one of them can. A run of a
/// session that has a home may start there alone.
pub(super) async fn held_by(store: &Store, session: &SessionId) -> Result<Vec<HeldByView>, ApiError> {
    // At the same time: a status has to be answered within two milliseconds.
    let (home, servers) = tokio::try_join!(store.home_that_holds(session), store.live_servers_and_drains())?;
    if let Some(home) = home {
        return Ok(held_at_home(&home, store.server_lost_after_ms()));
    }
    let mut held: Vec<HeldByView> = Vec::new();
    for (server, drained) in &servers {
        if server.problems.is_empty() && !drained {
            return Ok(Vec::new());
        }
        for reason in held_at(server, *drained, "") {
            if !held.contains(&reason) {
                held.push(reason);
            }
        }
    }
    if servers.is_empty() {
        let message =
            "no server that takes runs was heard of in the last 30 s; start one with `caisson serve`";
        held.push(HeldByView { code: "no_server".to_owned(), message: message.to_owned() });
    }
    Ok(held)
}

fn held_at_home(home: &SessionHome, lost_after_ms: i64) -> Vec<HeldByView> {
    if !home.is_away {
        return held_at(&home.server, home.drained, ", which has the session's workspace,").collect();
    }
    let (server, silence_s) = (&home.server.id, lost_after_ms / 1_000);
    let message = if home.is_lost {
        format!(
            "server {server}, which has the session's workspace, is lost; start it again, or wait until another server has been \
             heard of for {silence_s} s without a pause, which then goes on from what is archived and pushed"
        )
    } else {
        format!(
            "server {server}, which has the session's workspace, was not heard of in the last 30 s; start it again, or wait \
             until it has been silent for {silence_s} s, when the run goes on elsewhere from what is archived and pushed"
        )
    };
    vec![HeldByView { code: "home_away".to_owned(), message }]
}

fn held_at<'s>(server: &'s Server, drained: bool, which: &str) -> impl Iterator<Item = HeldByView> + use<'s> {
    let by_drain = drained.then(|| HeldByView {
        code: ProblemCode::Drained.to_string(),
        message: format!("server {}{which} is drained; `caisson resume` ends that", server.id),
    });
    let problems = server
        .problems
        .iter()
        .map(|problem| HeldByView { code: problem.code.to_string(), message: problem.message.clone() });
    by_drain.into_iter().chain(problems)
}

/// Position and estimate as a view has them.
pub(super) fn told(place: Option<QueuePlace>) -> (Option<i64>, Option<QueueEstimateView>) {
    let estimate = place.and_then(|place| place.estimate).map(QueueEstimateView::from);
    (place.map(|place| place.position), estimate)
}

pub(super) fn take_priority(fields: &mut Fields, faults: &mut Faults) -> Option<i64> {
    take("priority", &PRIORITY, fields, faults)
}

pub(super) fn take_start_at_ms(fields: &mut Fields, faults: &mut Faults) -> Option<i64> {
    take("start_at_ms", &TIME_MS, fields, faults)
}

pub(super) fn take_delay_s(fields: &mut Fields, faults: &mut Faults) -> Option<i64> {
    take("delay_s", &DELAY_S, fields, faults)
}

/// Takes a whole number that may be absent or `null`, and must lie in `range`.
fn take(
    name: &'static str,
    range: &RangeInclusive<i64>,
    fields: &mut Fields,
    faults: &mut Faults,
) -> Option<i64> {
    let value: Value = fields.take_value(name).filter(|value| !value.is_null())?;
    let number = whole_number(&value);
    let taken = number.filter(|number| range.contains(number));
    if taken.is_none() {
        let code = if number.is_some() { "out_of_range" } else { "wrong_type" };
        let message = if *range.end() == i64::MAX {
            "it is not a time in Unix milliseconds".to_owned()
        } else {
            format!("it is not a whole number from {} to {}", range.start(), range.end())
        };
        faults.add(&fields.path(name), code, message);
    }
    taken
}

/// Writes into the specification when the run starts.
pub(super) fn complete(spec: &mut RunSpec, request: &CreateRun, now_ms: i64, faults: &mut Faults) {
    if request.start_at_ms.is_some() && request.delay_s.is_some() {
        faults.add("delay_s", "contradiction", "there is a start_at_ms as well; give one of them");
    }
    let latest_ms = now_ms.saturating_add(DELAY_S_MAX * 1_000);
    if request.start_at_ms.is_some_and(|start_ms| start_ms > latest_ms) {
        let message = format!("it is more than {DELAY_S_MAX} s ahead");
        faults.add("start_at_ms", "out_of_range", message);
    }
    let delayed = request.delay_s.map(|delay_s| now_ms.saturating_add(delay_s.saturating_mul(1_000)));
    spec.priority = request.priority.unwrap_or_default();
    // What has come already is now.
    spec.start_at_ms = request.start_at_ms.or(delayed).filter(|start_ms| *start_ms > now_ms);
}
