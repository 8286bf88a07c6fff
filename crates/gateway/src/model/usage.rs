//! The `usage` of a reply. Source: the Messages API's reference of it, 2026. Its top level leaves out what the model API did
//! beside the message, such as summing the conversation up first or asking another model: that stands in `iterations` alone,
//! where each item says what one pass over the input came to, and of which model if it was another one.

use caisson_domain::run::cut;
use caisson_domain::usage::TokenCounts;
use serde_json::value::RawValue;

use super::meter::{Reading, model_name};
use crate::bounds::{MODEL_NAME_BYTES, USAGE_PARTS};
use crate::members::{each_item, each_member, text};

/// Kinds of `iterations` that cost what their tokens cost.
const KINDS: [&str; 3] = ["message", "compaction", "advisor_message"];
/// The speed that the price list has prices for.
const PLAIN_SPEED: &str = "standard";
/// Places that cost no more than any: all of them, or those of a model that has no choice of them.
const PLAIN_GEOS: [&str; 2] = ["global", "not_available"];

/// What one pass over the input came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Part {
    /// Its model, if it is not the reply's.
    pub(super) model: Option<String>,
    pub(super) tokens: TokenCounts,
}

/// Takes what a reply says of its usage: counts that are named replace those told before; the others stay.
pub(super) fn take(reading: &mut Reading, usage: &RawValue) {
    let Some(told) = Told::of(usage) else { return };
    told.counts.put_into(reading.tokens.get_or_insert_default());
    reading.unpriced |= told.unpriced;
    let parts = told.iterations.map(|list| parts(reading, list)).unwrap_or_default();
    if !parts.is_empty() {
        reading.parts = parts;
    }
}

/// The passes one by one, as far as they are kept so. What is not understood makes an estimate.
fn parts(reading: &mut Reading, list: &RawValue) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let read = each_item(list.get().as_bytes(), |item| {
        let told = Told::of(item).unwrap_or_default();
        let known = told.kind.and_then(text).is_some_and(|kind| KINDS.contains(&kind.as_ref()));
        reading.unpriced |= told.unpriced || !known;
        // Only a price is looked up by it.
        let model =
            told.model.and_then(text).map(|name| cut(&model_name(&name), MODEL_NAME_BYTES).to_owned());
        let mut part = Part { model, ..Part::default() };
        told.counts.put_into(&mut part.tokens);
        if parts.len() < USAGE_PARTS {
            parts.push(part);
        } else if let Some(last) = parts.last_mut() {
            // Of no model: it has the dearest price.
            *last = Part { model: Some(String::new()), tokens: last.tokens.plus(&part.tokens) };
            reading.unpriced = true;
        }
        Ok::<_, serde_json::Error>(())
    });
    reading.unpriced |= read.is_err() && list.get() != "null";
    parts
}

/// Whether a `speed` is the one that has a price.
pub(super) fn is_plain_speed(value: &RawValue) -> bool {
    value.get() == "null" || text(value).is_some_and(|speed| speed == PLAIN_SPEED)
}

/// Whether an `inference_geo` is one that costs nothing more.
pub(super) fn is_plain_geo(value: &RawValue) -> bool {
    value.get() == "null" || text(value).is_some_and(|geo| PLAIN_GEOS.contains(&geo.as_ref()))
}

/// What is read of a `usage`, or of one of its `iterations`.
#[derive(Default)]
struct Told<'a> {
    counts: Counts,
    kind: Option<&'a RawValue>,
    model: Option<&'a RawValue>,
    iterations: Option<&'a RawValue>,
    unpriced: bool,
}

impl<'a> Told<'a> {
    /// None if it is no object.
    fn of(usage: &'a RawValue) -> Option<Self> {
        let mut told = Self::default();
        let read = each_member(usage.get().as_bytes(), |name, value| {
            match name {
                "type" => told.kind = Some(value),
                "model" if value.get() != "null" => told.model = Some(value),
                "iterations" => told.iterations = Some(value),
                "server_tool_use" => told.unpriced |= counts_any(value),
                "speed" => told.unpriced |= !is_plain_speed(value),
                "inference_geo" => told.unpriced |= !is_plain_geo(value),
                "cache_creation" => told.counts.take_split(value),
                other => told.counts.take(other, value),
            }
            Ok::<_, serde_json::Error>(())
        });
        read.is_ok().then_some(told)
    }
}

/// Whether the model API ran tools of its own. Whatever they are called: each count that is not zero costs something.
fn counts_any(tools: &RawValue) -> bool {
    let mut any = false;
    // What is no object names none.
    let _no_object = each_member(tools.get().as_bytes(), |_, value| {
        any |= count(value) > Some(0);
        Ok::<_, serde_json::Error>(())
    });
    any
}

fn count(value: &RawValue) -> Option<i64> {
    value.get().parse().ok().map(|count: i64| count.max(0))
}

/// Counts as far as they are named.
#[derive(Default)]
struct Counts {
    input: Option<i64>,
    output: Option<i64>,
    cache_read: Option<i64>,
    /// All that was written to the cache.
    written: Option<i64>,
    /// Of it, for five minutes.
    minutes: Option<i64>,
    /// Of it, for an hour.
    hour: Option<i64>,
}

impl Counts {
    fn take(&mut self, name: &str, value: &RawValue) {
        let place = match name {
            "input_tokens" => &mut self.input,
            "output_tokens" => &mut self.output,
            "cache_read_input_tokens" => &mut self.cache_read,
            "cache_creation_input_tokens" => &mut self.written,
            _ => return,
        };
        *place = count(value).or(*place);
    }

    fn take_split(&mut self, split: &RawValue) {
        // What is no object splits nothing.
        let _no_object = each_member(split.get().as_bytes(), |name, value| {
            match name {
                "ephemeral_5m_input_tokens" => self.minutes = count(value).or(self.minutes),
                "ephemeral_1h_input_tokens" => self.hour = count(value).or(self.hour),
                _ => {}
            }
            Ok::<_, serde_json::Error>(())
        });
    }

    fn put_into(&self, tokens: &mut TokenCounts) {
        tokens.input = self.input.unwrap_or(tokens.input);
        tokens.output = self.output.unwrap_or(tokens.output);
        tokens.cache_read = self.cache_read.unwrap_or(tokens.cache_read);
        if self.written.is_none() && self.hour.is_none() && self.minutes.is_none() {
            return;
        }
        // The end of a streamed reply tells the sum once more, without the split that its beginning told.
        let before = if self.minutes.is_some() { 0 } else { tokens.cache_write_1h };
        let hour = self.hour.unwrap_or(before);
        // What the split leaves out was written for the default time, five minutes.
        let rest = self.written.map_or(0, |written| written.saturating_sub(hour));
        tokens.cache_write_1h = hour;
        tokens.cache_write_5m = self.minutes.unwrap_or(0).max(rest);
    }
}

#[cfg(test)]
#[path = "usage_tests.rs"]
mod tests;
