//! Reads usage from a reply of the model API while its bytes pass unchanged.
//!
//! Source of the shapes: the Messages API's documentation of streaming. `message_start` carries the input's
//! counts, `message_delta` the output's (cumulative), `message_stop` ends the message; a reply that is not
//! streamed is one JSON object with `model` and `usage`. Of both only what matters becomes more than text: as a tree, a reply
//! may take a hundred times its size.

use std::io::{self, Write};

use caisson_domain::usage::TokenCounts;
use flate2::write::MultiGzDecoder;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use serde_json::value::RawValue;

use super::sse::Parser;
use super::usage::{self, Part};
use crate::bounds::{BYTES_PER_TOKEN, JSON_COPY_BYTES, MODEL_NAME_READ_BYTES};
use crate::members::{each_member, text};

/// What a model is called that has no name of its own.
pub(super) const UNKNOWN_MODEL: &str = "unknown";

/// What a reply told about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Reading {
    /// The model that answered.
    pub(super) model: Option<String>,
    /// The counts so far; none means that nothing was told.
    pub(super) tokens: Option<TokenCounts>,
    /// Bytes of text that the model wrote, as far as they were seen; all bytes of a reply that is not read.
    pub(super) text_bytes: usize,
    /// The counts are final.
    pub(super) exact: bool,
    /// Pass by pass, where it is told so.
    pub(super) parts: Vec<Part>,
    /// It cost something that the price list has no price for: tools of the model API's own, another speed or place.
    pub(super) unpriced: bool,
}

impl Reading {
    /// Output tokens so far: what the reply says, or what its text comes to. Thinking that the reply does not show is known
    /// at its end only.
    pub(super) fn output_so_far(&self) -> i64 {
        let written = i64::try_from(self.text_bytes / BYTES_PER_TOKEN).unwrap_or(i64::MAX);
        self.tokens.map_or(written, |tokens| tokens.output.max(written))
    }
}

/// Reads one reply.
pub(super) struct Meter(Decoder);

enum Decoder {
    Plain(Reader),
    Gzip(Box<MultiGzDecoder<Reader>>),
    /// The encoding is not one that is read, or the bytes were not what they should be.
    Blind(Reading),
}

impl Meter {
    /// A meter for a successful reply with these headers.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kind = text(CONTENT_TYPE).split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let form = match kind.as_str() {
            "text/event-stream" => Form::Stream(Parser::default()),
            "application/json" => Form::Whole(Some(Vec::new())),
            _ => return Self::blind(),
        };
        let reader = Reader { form, reading: Reading::default(), stopped: false };
        match text(CONTENT_ENCODING).trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Self(Decoder::Plain(reader)),
            "gzip" | "x-gzip" => Self(Decoder::Gzip(Box::new(MultiGzDecoder::new(reader)))),
            _ => Self::blind(),
        }
    }

    /// A meter that reads nothing.
    pub(super) fn blind() -> Self {
        Self(Decoder::Blind(Reading::default()))
    }

    /// Takes the next bytes of the reply, as they came.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        let read = match &mut self.0 {
            Decoder::Plain(reader) => reader.write_all(bytes),
            Decoder::Gzip(decoder) => decoder.write_all(bytes).and_then(|()| decoder.flush()),
            Decoder::Blind(reading) => {
                reading.text_bytes = reading.text_bytes.saturating_add(bytes.len());
                Ok(())
            }
        };
        if read.is_err() {
            let reading = Reading { exact: false, ..self.reading().clone() };
            self.0 = Decoder::Blind(reading);
        }
    }

    /// The reply ended as it should.
    pub(super) fn end(&mut self) {
        match &mut self.0 {
            Decoder::Plain(reader) => reader.end(),
            Decoder::Gzip(decoder) => {
                if decoder.try_finish().is_ok() {
                    decoder.get_mut().end();
                }
            }
            Decoder::Blind(_) => {}
        }
    }

    /// Whether nothing that follows can change the counts.
    pub(super) fn is_complete(&self) -> bool {
        self.reading().exact
    }

    /// Whether completeness shows only when the last byte is there, so that the last piece must wait for it.
    pub(super) fn ends_with_its_last_byte(&self) -> bool {
        match &self.0 {
            Decoder::Plain(reader) => matches!(reader.form, Form::Whole(_)),
            Decoder::Gzip(decoder) => matches!(decoder.get_ref().form, Form::Whole(_)),
            Decoder::Blind(_) => false,
        }
    }

    pub(super) fn reading(&self) -> &Reading {
        match &self.0 {
            Decoder::Plain(reader) => &reader.reading,
            Decoder::Gzip(decoder) => &decoder.get_ref().reading,
            Decoder::Blind(reading) => reading,
        }
    }
}

enum Form {
    Stream(Parser),
    /// The copy; none when it became longer than [`JSON_COPY_BYTES`].
    Whole(Option<Vec<u8>>),
}

struct Reader {
    form: Form,
    reading: Reading,
    /// `message_stop` came.
    stopped: bool,
}

impl Write for Reader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.form {
            Form::Stream(parser) => {
                let (reading, stopped) = (&mut self.reading, &mut self.stopped);
                parser.feed(bytes, &mut |data| take_event(reading, stopped, data));
            }
            Form::Whole(copy) => {
                let fits = copy.as_ref().is_some_and(|copy| copy.len() + bytes.len() <= JSON_COPY_BYTES);
                match copy {
                    Some(copy) if fits => copy.extend_from_slice(bytes),
                    Some(_) | None => *copy = None,
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Reader {
    fn end(&mut self) {
        match &mut self.form {
            Form::Stream(parser) => {
                let (reading, stopped) = (&mut self.reading, &mut self.stopped);
                parser.end(&mut |data| take_event(reading, stopped, data));
            }
            Form::Whole(copy) => {
                let copy = copy.take().unwrap_or_default();
                take_message(&mut self.reading, &copy);
                self.reading.exact = self.reading.tokens.is_some();
            }
        }
    }
}

/// One event of a streamed reply.
fn take_event(reading: &mut Reading, stopped: &mut bool, data: &[u8]) {
    let (mut kind, mut message, mut delta, mut usage) = (None, None, None, None);
    let read = each_member(data, |name, value| {
        match name {
            "type" => kind = text(value),
            "message" => message = Some(value),
            "delta" => delta = Some(value),
            "usage" => usage = Some(value),
            _ => {}
        }
        Ok::<_, serde_json::Error>(())
    });
    if read.is_err() {
        return;
    }
    match (kind.as_deref().unwrap_or_default(), message, delta, usage) {
        ("message_start", Some(message), ..) => take_message(reading, message.get().as_bytes()),
        ("content_block_delta", _, Some(delta), _) => take_text(reading, delta),
        ("message_delta", .., Some(told)) => usage::take(reading, told),
        ("message_stop", ..) => *stopped = true,
        _ => {}
    }
    reading.exact = *stopped && reading.tokens.is_some();
}

/// Text, thinking, a tool's input, a signature: whatever it is called, but for the word that says which.
fn take_text(reading: &mut Reading, delta: &RawValue) {
    // What is no object has no text.
    let _no_object = each_member(delta.get().as_bytes(), |name, part| {
        if name != "type" && part.get().starts_with('"') {
            let bytes = text(part).map_or(part.get().len(), |text| text.len());
            reading.text_bytes = reading.text_bytes.saturating_add(bytes);
        }
        Ok::<_, serde_json::Error>(())
    });
}

/// A whole message, or how a streamed one begins.
fn take_message(reading: &mut Reading, message: &[u8]) {
    let (mut model, mut told) = (None, None);
    let read = each_member(message, |name, value| {
        match name {
            "model" => model = text(value),
            "usage" => told = Some(value),
            _ => {}
        }
        Ok::<_, serde_json::Error>(())
    });
    if read.is_err() {
        return;
    }
    if let Some(model) = model {
        reading.model = Some(model_name(&model));
    }
    if let Some(told) = told {
        usage::take(reading, told);
    }
}

/// A model's name as it is read: printable ASCII, and [`UNKNOWN_MODEL`] if it is longer than any.
pub(super) fn model_name(text: &str) -> String {
    let name: String = text.chars().filter(char::is_ascii_graphic).take(MODEL_NAME_READ_BYTES + 1).collect();
    if name.len() > MODEL_NAME_READ_BYTES { UNKNOWN_MODEL.to_owned() } else { name }
}

#[cfg(test)]
#[path = "meter_tests.rs"]
mod tests;
