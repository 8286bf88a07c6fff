//! From the model's word to the reader: pairs the moments at which the model handed out the words of one slow reply
//! with the arrivals of the live text that holds them.

use anyhow::ensure;
use scripted_model::Record;

use super::clock::ms_between;
use super::reader::Arrival;
use super::scenarios::{WORD_COUNT, WORD_PACE_MS, word};

/// A pause at least this long divides the pieces of the reply, in milliseconds.
const GAP_MS: f64 = {
    #[expect(clippy::cast_precision_loss, reason = "a quarter of a second is exact")]
    let pace = WORD_PACE_MS as f64;
    pace / 2.0
};

/// The moments at which a reply grew, noted as they come.
#[derive(Debug, Default)]
pub(crate) struct Growth {
    bytes: u64,
    at_us: Vec<i64>,
}

impl Growth {
    /// Notes what the model's record of the reply says now.
    pub(crate) fn note(&mut self, record: &Record, at_us: i64) {
        if record.bytes_served > self.bytes {
            self.bytes = record.bytes_served;
            self.at_us.push(at_us);
        }
    }

    /// The moments of the words: the first piece of the reply and what comes with it are its head, then each word
    /// comes after a pause, and the end of the reply comes with the last word.
    ///
    /// # Errors
    /// There are more or fewer pauses than words.
    fn words(&self) -> anyhow::Result<Vec<i64>> {
        let pairs = self.at_us.iter().zip(self.at_us.iter().skip(1));
        let words: Vec<_> = pairs
            .filter(|(before, after)| ms_between(**before, **after) > GAP_MS)
            .map(|(_, after)| *after)
            .collect();
        ensure!(
            words.len() == WORD_COUNT,
            "the model's reply came in {} words, not {WORD_COUNT}",
            words.len()
        );
        Ok(words)
    }
}

/// The latency of every word that reached the reader as live text, in milliseconds. Live text may be lost: most of the
/// words must be there.
///
/// # Errors
/// The reply did not come word by word, or too much of it was lost.
pub(crate) fn latencies(growth: &Growth, arrivals: &[Arrival]) -> anyhow::Result<Vec<f64>> {
    let sent = growth.words()?;
    let mut found = Vec::new();
    for (number, sent_us) in sent.iter().enumerate() {
        let arrival =
            arrivals.iter().find(|arrival| arrival.kind == "delta" && arrival.data.contains(&word(number)));
        found.extend(arrival.map(|arrival| ms_between(*sent_us, arrival.at_us)));
    }
    ensure!(
        found.len() * 10 >= WORD_COUNT * 9,
        "only {} of {WORD_COUNT} words came as live text",
        found.len()
    );
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE_US: i64 = WORD_PACE_MS.cast_signed() * 1000;

    fn record(bytes: u64) -> Record {
        serde_json::from_value(serde_json::json!({
            "seq": 1, "at_ms": 0, "method": "POST", "path": "/v1/messages", "body_bytes": 0, "body_sha256": "",
            "headers": {}, "usage_final": false, "bytes_served": bytes, "outcome": "open",
        }))
        .unwrap()
    }

    /// A reply whose head comes in two pieces at once, and whose end comes right behind the last word.
    fn growth(words: usize) -> Growth {
        let mut growth = Growth::default();
        growth.note(&record(0), 0);
        growth.note(&record(10), 1);
        growth.note(&record(20), 2);
        let mut at_us = 2;
        for number in 0..words {
            at_us += PACE_US;
            growth.note(&record(30 + number as u64), at_us);
        }
        growth.note(&record(1_000), at_us + 10);
        growth
    }

    fn delta(number: usize, at_us: i64) -> Arrival {
        let data = serde_json::json!({ "text": word(number) }).to_string();
        Arrival { at_us, kind: "delta".to_owned(), data }
    }

    #[test]
    fn each_word_is_paired_with_the_text_that_holds_it() {
        let at_us = |number: usize| 2 + PACE_US * (i64::try_from(number).unwrap() + 1);
        let arrivals: Vec<_> = (0..WORD_COUNT).map(|number| delta(number, at_us(number) + 7_000)).collect();
        let found = latencies(&growth(WORD_COUNT), &arrivals).unwrap();
        assert_eq!(found.len(), WORD_COUNT);
        assert!(found.iter().all(|latency| (latency - 7.0).abs() < 1e-9), "{found:?}");
    }

    #[test]
    fn a_reply_of_another_shape_and_lost_text_are_told() {
        let error = latencies(&growth(WORD_COUNT - 1), &[]).unwrap_err().to_string();
        assert!(error.contains("59 words"), "{error}");
        let error = latencies(&growth(WORD_COUNT), &[delta(0, 9)]).unwrap_err().to_string();
        assert!(error.starts_with("only 1 of 60"), "{error}");
    }
}
