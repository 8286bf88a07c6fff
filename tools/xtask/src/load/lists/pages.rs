//! Pages of events among millions: from the beginning of one long run to its end, which is the end of all events.

use anyhow::{Context, ensure};
use serde_json::Value;

use super::{Kind, Sizes, WARM_UP, caller_page};
use crate::load::databases;
use crate::load::http::Caller;
use crate::measuring::stats::Summary;

/// Events of a page when nobody says how many, as the API has it.
pub(in crate::load) const PAGE: u32 = 100;
/// Pages that one place is asked for by turns, so that it is not one page that is always at hand.
const WINDOW: u32 = 100;
/// How far apart runs are that are asked for one after another: no divisor of their number.
const STRIDE: usize = 7_919;

/// What was measured.
#[derive(Debug, Clone)]
pub(in crate::load) struct Pages {
    /// Where the events are.
    pub(in crate::load) database: databases::Kind,
    /// How many there are, and how many of them one run has.
    pub(in crate::load) events: u32,
    pub(in crate::load) long: u32,
    /// Each place that was asked for.
    pub(in crate::load) kinds: Vec<Kind>,
    /// A last page's time by a first page's, both asked for one after the other.
    pub(in crate::load) ratio: Summary,
}

/// Where pages are asked for.
struct Place {
    name: &'static str,
    path: String,
    /// What the first page is behind.
    after: u32,
}

impl Place {
    /// Asks for one of its pages, and returns how long that took, in milliseconds.
    async fn ask(&self, caller: &mut Caller, round: u32, long: u32) -> anyhow::Result<f64> {
        let after = self.after + round % window(long) * PAGE;
        let path = format!("{}?after={after}", self.path);
        let reply = caller.get(&path).await?;
        let page = reply.json(200)?;
        let (last, more) = (after + PAGE, after + PAGE < long);
        ensure!(numbers(&page) == (after + 1..=last).collect::<Vec<_>>(), "{path} is not gapless: {page:#}");
        ensure!(page["more"] == more && page["next_after"] == last, "{path} does not go on as it should");
        Ok(reply.took_ms())
    }
}

/// The numbers of a page's events.
fn numbers(page: &Value) -> Vec<u32> {
    let items = page["items"].as_array().into_iter().flatten();
    items.filter_map(|event| event["seq"].as_u64().and_then(|seq| u32::try_from(seq).ok())).collect()
}

/// Pages of a place. A short run has fewer.
fn window(long: u32) -> u32 {
    (long / 4 / PAGE).clamp(1, WINDOW)
}

/// Asks every place by turns. The runs are told newest first: the run that was copied, and its copies.
pub(super) async fn measure(
    caller: &mut Caller,
    database: databases::Kind,
    runs: &[String],
    sizes: &Sizes,
) -> anyhow::Result<Pages> {
    let long = sizes.long();
    let [_, run, others @ ..] = runs else { anyhow::bail!("there are too few runs") };
    let session = caller_page(caller, &format!("/v1/runs/{run}")).await?["session_id"].take();
    let session = session.as_str().context("a run without a session")?;
    let of_run = format!("/v1/runs/{run}/events");
    let place = |name, path: &str, after| Place { name, path: path.to_owned(), after };
    let last = long - window(long) * PAGE;
    let places = [
        place("of the long run: the first", &of_run, 0),
        place("from its middle", &of_run, long / 2),
        place("its last, which are the last of all", &of_run, last),
        place("the last of its session", &format!("/v1/sessions/{session}/events"), last),
    ];
    let mut took_ms = places.each_ref().map(|_| Vec::new());
    let (mut of_others_ms, mut ratios) = (Vec::new(), Vec::new());
    for round in 0..WARM_UP + sizes.requests * 3 {
        let mut now_ms = [0.0; 4];
        for (place, now_ms) in places.iter().zip(&mut now_ms) {
            *now_ms = place.ask(caller, u32::try_from(round)?, long).await?;
        }
        let path = format!("/v1/runs/{}/events", others[round * STRIDE % others.len()]);
        let reply = caller.get(&path).await?;
        let events = (1..=sizes.events_each).collect::<Vec<_>>();
        ensure!(numbers(&reply.json(200)?) == events, "{path} does not show what the run has");
        if round < WARM_UP {
            continue;
        }
        took_ms.iter_mut().zip(now_ms).for_each(|(all, now_ms)| all.push(now_ms));
        ratios.push(now_ms[2] / now_ms[0]);
        of_others_ms.push(reply.took_ms());
    }
    let names = places.iter().map(|place| place.name).chain(["all of a run that has few, of all runs"]);
    let mut kinds = Vec::new();
    for (name, took_ms) in names.zip(took_ms.iter().chain([&of_others_ms])) {
        kinds.push(Kind { name, took_ms: Summary::of(took_ms).context("nothing was asked")? });
    }
    let ratio = Summary::of(&ratios).context("nothing was asked")?;
    Ok(Pages { database, events: sizes.events, long, kinds, ratio })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_page_of_a_place_ends_within_its_run() {
        assert_eq!(window(1_000_040), 100);
        assert_eq!(window(10_010), 25);
        assert_eq!(window(PAGE), 1);
    }

    #[test]
    fn what_is_no_page_has_no_numbers() {
        assert_eq!(numbers(&json!({ "items": [{ "seq": 7 }, { "seq": 9 }] })), [7, 9]);
        assert_eq!(numbers(&json!({ "items": [{ "seq": "7" }] })), Vec::<u32>::new());
        assert_eq!(numbers(&json!({ "title": "not found" })), Vec::<u32>::new());
    }
}
