//! The figures of the model door as text; pure.

use std::fmt::Write;

use anyhow::Context;

use super::super::cores;
use super::super::stats::{Summary, median};
use super::scene::Compared;

/// Most that the door may add to the time to the first byte, in milliseconds (median).
const ADDED_MS: f64 = 1.0;

/// Everything that was measured; of each pair the direct way comes first.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) compared: Compared,
    /// Time to the first byte of calls one after another, in milliseconds.
    pub(super) first_bytes: [Vec<f64>; 2],
    /// Megabytes a second of all streams of a round together.
    pub(super) rates: [Vec<f64>; 2],
    /// Time to the first byte while all of them begin at once, in milliseconds.
    pub(super) waits: [Vec<f64>; 2],
    pub(super) streams: usize,
}

impl Figures {
    /// What the door adds to the first byte, call by call, in milliseconds: the median.
    fn added_ms(&self) -> Option<f64> {
        let [direct, door] = &self.first_bytes;
        let added: Vec<f64> = direct.iter().zip(door).map(|(direct, door)| door - direct).collect();
        median(&added)
    }

    /// A line for each bar that is missed.
    pub(super) fn short(&self) -> Vec<String> {
        match self.added_ms() {
            Some(added) if added < ADDED_MS => Vec::new(),
            added => vec![format!(
                "model-bench short: added_first_byte_p50_ms {:.2} {ADDED_MS}",
                added.unwrap_or(f64::NAN)
            )],
        }
    }
}

/// The report.
///
/// # Errors
/// A series is empty.
pub(super) fn render(figures: &Figures) -> anyhow::Result<String> {
    let compared = &figures.compared;
    let added = figures.added_ms().context("nothing was measured")?;
    let verdict = if figures.short().is_empty() { "met" } else { "SHORT" };
    let mut text = format!(
        "`make model-bench` on {} cores; {} calls one after another each way, {} rounds of {} streams at once each way.\n\n\
         Added to the first byte, call by call, p50: **{added:.2} ms** (at most {ADDED_MS:.2}: {verdict}).\n\n",
        cores(),
        figures.first_bytes[0].len(),
        figures.rates[0].len(),
        figures.streams,
    );
    text.push_str(
        "|                                             | direct p50 | door p50 | direct p99 | door p99 |\n",
    );
    text.push_str(
        "| ------------------------------------------- | ---------: | -------: | ---------: | -------: |\n",
    );
    for (name, pair, digits) in [
        ("first byte, one call at a time, ms", &figures.first_bytes, 2),
        ("first byte, all streams at once, ms", &figures.waits, 0),
        ("all streams together, MB/s", &figures.rates, 0),
    ] {
        let [direct, door] = [&pair[0], &pair[1]].map(|series| Summary::of(series));
        let (direct, door) = direct.zip(door).with_context(|| format!("nothing was measured: {name}"))?;
        let cells = [direct.p50, door.p50, direct.p99, door.p99].map(|figure| format!("{figure:.digits$}"));
        let [a, b, c, d] = cells;
        writeln!(text, "| {name:<43} | {a:>10} | {b:>8} | {c:>10} | {d:>8} |").context("text")?;
    }
    write!(
        text,
        "\nSeen alike at both ends of either way: {} bytes of request, {} of its headers, {} bytes of reply, {} headers of it.\n",
        compared.request_bytes, compared.request_headers, compared.reply_bytes, compared.reply_headers
    )
    .context("text")?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(added: f64) -> Figures {
        let pair = |by: f64| [vec![1.0, 2.0, 3.0], vec![1.0 + by, 2.0 + by, 3.0 + by]];
        Figures {
            compared: Compared { request_bytes: 1, request_headers: 2, reply_bytes: 3, reply_headers: 4 },
            first_bytes: pair(added),
            rates: pair(0.0),
            waits: pair(0.0),
            streams: 50,
        }
    }

    #[test]
    fn the_bar_is_on_what_is_added_call_by_call() {
        assert!(figures(0.99).short().is_empty());
        assert_eq!(figures(1.5).short(), ["model-bench short: added_first_byte_p50_ms 1.50 1"]);
        let text = render(&figures(0.5)).unwrap();
        assert!(text.contains("**0.50 ms** (at most 1.00: met)"), "{text}");
        let lengths: Vec<_> = text.lines().filter(|line| line.starts_with('|')).map(str::len).collect();
        assert!(lengths.len() == 5 && lengths.iter().all(|length| *length == lengths[0]), "{text}");
        assert!(render(&figures(1.5)).unwrap().contains("SHORT"));
    }
}
