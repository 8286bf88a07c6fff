//! What a model call asks for, as far as money goes: read from its body before it is forwarded. Pure.

use caisson_domain::usage::{PriceTable, TokenCounts};
use serde_json::value::RawValue;

use super::meter::{UNKNOWN_MODEL, model_name};
use super::usage::{is_plain_geo, is_plain_speed};
use crate::bounds::{
    BYTES_PER_TOKEN, OUTPUT_ESTIMATE_TOKENS, OUTPUT_LAST_TOKENS, OUTPUT_SLICE_TOKENS, OUTPUT_UNSTATED_TOKENS,
};
use crate::members::{each_item, each_member, text};

/// Members of a request that make its reply cost no more than its own input and output. Source: the Messages API's reference
/// of `POST /v1/messages`, 2026. `context_management` is looked into.
const PLAIN: [&str; 18] = [
    "model",
    "messages",
    "system",
    "max_tokens",
    "stream",
    "tools",
    "tool_choice",
    "metadata",
    "thinking",
    "output_config",
    "output_format",
    "stop_sequences",
    "temperature",
    "top_k",
    "top_p",
    "service_tier",
    "cache_control",
    "user_profile_id",
];
/// Edits of the context that only leave something out: what their types begin with.
const FREE_EDITS: &str = "clear_";

/// What a call is counted as until its reply tells better.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) model: String,
    /// Its input counts [`Self::apart_input`] as well.
    pub(super) estimate: TokenCounts,
    /// Whether the reply comes bit by bit, so that it can be cut where its budget ends.
    pub(super) streamed: bool,
    /// Most output tokens that it asks for.
    pub(super) output_most: Option<i64>,
    /// What its input costs at most.
    pub(super) caching: Caching,
    /// Input tokens that its reply may cost beside those that it tells of when it begins.
    pub(super) apart_input: i64,
    /// It asks for what the price list has no price for: another speed, another place.
    pub(super) unpriced: bool,
}

/// For how long a request asks to have its input cached, at most. Writing to the cache costs more than plain input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caching {
    None,
    FiveMinutes,
    Hour,
}

impl Caching {
    /// Looks for the words that ask for it; where they stand does not matter, since too much is reserved at worst. Source:
    /// the Messages API's documentation of prompt caching (`cache_control`, `ttl`).
    fn of(body: &[u8]) -> Self {
        match std::str::from_utf8(body) {
            // A letter that is written as an escape, as no client does, may be one of those words'.
            Ok(text) if has_escaped_letter(text) => Self::Hour,
            Ok(text) if !text.contains("cache_control") => Self::None,
            Ok(text) if !text.contains("\"1h\"") => Self::FiveMinutes,
            Ok(_) | Err(_) => Self::Hour,
        }
    }
}

/// Whether a printable letter of ASCII is written as `\\u00XX`.
fn has_escaped_letter(text: &str) -> bool {
    text.match_indices("\\u00").any(|(at, escape)| {
        text.as_bytes().get(at + escape.len()).is_some_and(|digit| matches!(digit, b'2'..=b'7'))
    })
}

impl Ask {
    /// Output tokens that are reserved before the call is forwarded, at first and at least: a slice of a reply that is
    /// streamed, since it can be cut, and all of one that is not. A request that two readers may take for different ones
    /// (`64000.0`, a name that stands twice) says nothing plainly, so it holds the most that there is.
    pub(super) fn reserved_output(&self) -> [i64; 2] {
        let most = self.output_most.unwrap_or(i64::MAX);
        if self.streamed {
            [most.min(OUTPUT_SLICE_TOKENS), most.min(OUTPUT_LAST_TOKENS)]
        } else {
            [self.output_most.unwrap_or(OUTPUT_UNSTATED_TOKENS); 2]
        }
    }

    /// What must be reserved for so much output of a model. Nobody knows yet how much of the input is in the cache already, so all
    /// of it counts as the dearest kind that the request asks for.
    pub(super) fn needed_micro_usd(&self, model: &str, output: i64, prices: &PriceTable) -> i64 {
        let input = self.estimate.input;
        let none = TokenCounts { output, ..TokenCounts::default() };
        let plain = TokenCounts { input, ..none };
        let dearest = match self.caching {
            Caching::None => plain,
            Caching::FiveMinutes => TokenCounts { cache_write_5m: input, ..none },
            Caching::Hour => TokenCounts { cache_write_1h: input, ..none },
        };
        // A price list is data: caching may well be cheaper there.
        let [plain, dearest] = [plain, dearest].map(|tokens| prices.cost_micro_usd(model, &tokens));
        plain.max(dearest)
    }

    /// The call, where the model API may read its input once more than the reply says when it begins: to sum it up first
    /// (compaction), to ask another model, to go on with what a tool of its own brought. Only the end of the reply tells.
    pub(super) fn read_twice(mut self) -> Self {
        if self.apart_input == 0 {
            self.apart_input = self.estimate.input;
            self.estimate.input = self.estimate.input.saturating_mul(2);
        }
        self
    }
}

/// Looks into the body without minding what it does not know.
pub(super) fn peek(body: &[u8]) -> Ask {
    let mut said = Said::default();
    let read = each_member(body, |name, value| {
        said.take(name, value);
        Ok::<_, serde_json::Error>(())
    });
    if read.is_err() || said.twice {
        // Two readers may take it for different requests.
        (said.model, said.stream, said.max_tokens) = (None, None, None);
    }
    let model = said.model.and_then(text).map(|name| model_name(&name));
    let input = i64::try_from(body.len().div_ceil(BYTES_PER_TOKEN)).unwrap_or(i64::MAX);
    let output_most = said.max_tokens.and_then(|most| most.get().parse().ok()).filter(|most: &i64| *most > 0);
    let output = output_most.map_or(OUTPUT_ESTIMATE_TOKENS, |most| most.min(OUTPUT_ESTIMATE_TOKENS));
    let ask = Ask {
        model: model.filter(|name| !name.is_empty()).unwrap_or_else(|| UNKNOWN_MODEL.to_owned()),
        estimate: TokenCounts { input, output, ..TokenCounts::default() },
        streamed: said.stream.is_some_and(|stream| stream.get() == "true"),
        output_most,
        caching: Caching::of(body),
        apart_input: 0,
        unpriced: said.unpriced,
    };
    if said.apart { ask.read_twice() } else { ask }
}

/// Members of a request that matter here. Their values stay text: as a tree, forty megabytes of body would become four
/// gigabytes.
#[derive(Default)]
struct Said<'a> {
    model: Option<&'a RawValue>,
    stream: Option<&'a RawValue>,
    max_tokens: Option<&'a RawValue>,
    /// One of those stands twice.
    twice: bool,
    /// Something may cost more than the reply says at its top.
    apart: bool,
    unpriced: bool,
}

impl<'a> Said<'a> {
    fn take(&mut self, name: &str, value: &'a RawValue) {
        let place = match name {
            "model" => &mut self.model,
            "stream" => &mut self.stream,
            "max_tokens" => &mut self.max_tokens,
            "speed" => return self.unpriced |= !is_plain_speed(value),
            "inference_geo" => return self.unpriced |= !is_plain_geo(value),
            "context_management" => return self.apart |= !only_leaves_out(value),
            other => return self.apart |= !PLAIN.contains(&other),
        };
        self.twice |= place.replace(value).is_some();
    }
}

/// Whether a configuration of the context does no more than to leave something out of it, which costs nothing.
fn only_leaves_out(value: &RawValue) -> bool {
    /// Something else, or nothing that is understood.
    struct Other;
    impl From<serde_json::Error> for Other {
        fn from(_: serde_json::Error) -> Self {
            Self
        }
    }
    let must = |holds: bool| if holds { Ok(()) } else { Err(Other) };
    let edit = |edit: &RawValue| {
        let mut named = false;
        each_member(edit.get().as_bytes(), |name, value| {
            named |= name == "type";
            must(name != "type" || text(value).is_some_and(|kind| kind.starts_with(FREE_EDITS)))
        })?;
        must(named)
    };
    let looked = each_member(value.get().as_bytes(), |name, edits| {
        must(name == "edits")?;
        each_item(edits.get().as_bytes(), edit)
    });
    value.get() == "null" || looked.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peek_takes_the_model_and_minds_nothing_else() {
        let ask = peek(br#"{"messages":[{"role":"system"}],"model":"claude-x","stream":true}"#);
        assert_eq!((ask.model.as_str(), ask.estimate.output), ("claude-x", OUTPUT_ESTIMATE_TOKENS));
        assert_eq!((ask.streamed, ask.output_most), (true, None));
        assert_eq!(ask.estimate.input, 17);
        for odd in [&b""[..], b"not json", br#"{"model":7}"#, br#"{"model":" \n"}"#, b"[]"] {
            assert_eq!(peek(odd).model, "unknown");
        }
    }

    #[test]
    fn a_streamed_call_reserves_a_slice_and_any_other_all_that_it_may_write() {
        let of = |text: &str| peek(text.as_bytes()).reserved_output();
        let (slice, last) = (OUTPUT_SLICE_TOKENS, OUTPUT_LAST_TOKENS);
        assert_eq!(of(r#"{"stream":true,"max_tokens":64000}"#), [slice, last]);
        assert_eq!(of(r#"{"stream":true,"max_tokens":7}"#), [7, 7]);
        assert_eq!(of(r#"{"stream":false,"max_tokens":64000}"#), [64_000; 2]);
        for unstated in [
            r#"{"max_tokens":-1}"#,
            r#"{"max_tokens":64000.0}"#,
            r#"{"max_tokens":"64000"}"#,
            r#"{"max_tokens":6.4e4}"#,
            r#"{"max_tokens":1,"max_tokens":64000}"#,
            r#"{"stream":true,"stream":false,"max_tokens":1}"#,
            r#"{"stream":"true"}"#,
            "{}",
            "[1]",
        ] {
            assert_eq!(of(unstated), [OUTPUT_UNSTATED_TOKENS; 2], "{unstated}");
        }
        assert_eq!(of(r#"{"stream":true,"max_tokens":64000.0}"#), [slice, last], "it can be cut");
    }

    #[test]
    fn input_is_reserved_as_the_dearest_kind_that_the_request_asks_for() {
        let needed = |body: &[u8]| {
            let mut ask = peek(body);
            ask.estimate.input = 1_000;
            ask.needed_micro_usd(&ask.model, 10, &PriceTable::shipped())
        };
        let opus = |rest: &str| format!(r#"{{"model":"claude-opus-5-5"{rest}}}"#).into_bytes();
        assert_eq!(needed(&opus("")), 4_000 + 200);
        assert_eq!(needed(&opus(r#","system":[{"cache_control":{"type":"ephemeral"}}]"#)), 5_000 + 200);
        let hour = r#","system":[{"cache_control":{"type":"ephemeral", "ttl": "1h"}}]"#;
        assert_eq!(needed(&opus(hour)), 8_000 + 200);
        for hidden in [r#","x":[{"cache_contr\u006fl":1}]"#, r#","cache_control":{"ttl":"1\u0068"}"#] {
            assert_eq!(needed(&opus(hidden)), 8_000 + 200, "{hidden}");
        }
        assert_eq!(needed(&opus(r#","x":"\u001b[0m\u00e9""#)), 4_000 + 200, "as every client writes them");
        assert_eq!(needed(&[&opus("")[..], b"\xff"].concat()), 16_000 + 400, "what cannot be read");
    }
    #[test]
    fn a_call_that_may_cost_more_than_its_reply_says_when_it_begins_counts_its_input_twice() {
        let edits = |edits: &str| format!(r#"{{"model":"m","context_management":{{"edits":{edits}}}}}"#);
        for plain in [
            // As Claude Code 2.1.330 sends it.
            edits(r#"[{"type":"clear_thinking_20251015","keep":"all"}]"#),
            edits(r#"[{"type":"clear_thinking_1"},{"type":"clear_tool_uses_20250919"}]"#),
            edits("[]"),
            r#"{"model":"m","context_management":null}"#.to_owned(),
            r#"{"model":"m","context_management":{}}"#.to_owned(),
            r#"{"messages":[],"system":"","tools":[],"metadata":{},"thinking":{},"output_config":{},"stream":true}"#
                .to_owned(),
        ] {
            let ask = peek(plain.as_bytes());
            let input = i64::try_from(plain.len().div_ceil(BYTES_PER_TOKEN)).unwrap();
            assert_eq!((ask.apart_input, ask.estimate.input), (0, input), "{plain}");
        }
        for apart in [
            edits(r#"[{"type":"compact_20260112"}]"#),
            edits(r#"[{"type":"clear_thinking_1"},{"type":"compact_20260112"}]"#),
            edits(r#"[{"type":"compact_1","type":"clear_1"}]"#),
            edits(r#"[{"type":"c\u006fmpact_1"}]"#),
            edits(r#"[{"keep":"all"}]"#),
            edits(r#"[{"type":7}]"#),
            edits("7"),
            r#"{"context_management":{"edits":[],"compaction":{}}}"#.to_owned(),
            r#"{"context_management":7}"#.to_owned(),
            r#"{"context_management":{"edits":[{"type":"compact_1"}]},"context_management":null}"#.to_owned(),
            r#"{"model":"m","fallbacks":[{"model":"n"}]}"#.to_owned(),
            r#"{"model":"m","of_tomorrow":true}"#.to_owned(),
        ] {
            let ask = peek(apart.as_bytes());
            let input = i64::try_from(apart.len().div_ceil(BYTES_PER_TOKEN)).unwrap();
            assert_eq!((ask.apart_input, ask.estimate.input), (input, 2 * input), "{apart}");
            assert_eq!(ask.clone().read_twice(), ask, "twice is enough");
        }
    }

    #[test]
    fn a_call_at_another_speed_or_place_has_no_price() {
        for (rest, unpriced) in [
            (r#""speed":"standard","inference_geo":"global""#, false),
            (r#""speed":null,"inference_geo":null"#, false),
            (r#""speed":"fast""#, true),
            (r#""speed":7"#, true),
            (r#""inference_geo":"us""#, true),
            (r#""inference_geo":"us","inference_geo":"global""#, true),
        ] {
            let ask = peek(format!(r#"{{"model":"m",{rest}}}"#).as_bytes());
            assert_eq!((ask.unpriced, ask.apart_input), (unpriced, 0), "{rest}");
        }
    }
}
