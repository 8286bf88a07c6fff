//! Messages of JSON-RPC 2.0, as the Model Context Protocol has them: one at a time.

use serde_json::{Value, json};

use crate::body::check_values;
use crate::problem::ApiError;

/// The method is not known.
pub(super) const METHOD_NOT_FOUND: i64 = -32601;
/// The parameters cannot be used.
pub(super) const INVALID_PARAMS: i64 = -32602;
/// Longest part of an unknown name that an error repeats, in bytes.
const ECHO_BYTES: usize = 100;
/// Longest id that is taken, in bytes of JSON: it is sent back.
const ID_BYTES: usize = 256;

/// A message from a client.
#[derive(Debug, PartialEq)]
pub(super) enum Message {
    /// It waits for an answer.
    Request {
        /// What the answer names: a text or a number.
        id: Value,
        /// What is asked for.
        method: String,
        /// With what.
        params: Value,
    },
    /// It does not; nor does the answer to a request, of which this server sends none.
    Notification,
}

/// Why a request has no result.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RpcError {
    code: i64,
    message: String,
}

impl RpcError {
    pub(super) fn method(method: &str) -> Self {
        let method = caisson_domain::run::cut(method, ECHO_BYTES);
        let message = format!("there is no method \"{method}\"; this server has tools and nothing else");
        Self { code: METHOD_NOT_FOUND, message }
    }

    pub(super) fn params(message: impl Into<String>) -> Self {
        Self { code: INVALID_PARAMS, message: message.into() }
    }

    #[cfg(test)]
    pub(super) const fn code(&self) -> i64 {
        self.code
    }
}

/// The answer to a request.
pub(super) fn response(id: &Value, answer: Result<Value, RpcError>) -> Value {
    match answer {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(RpcError { code, message }) => {
            json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } })
        }
    }
}

impl Message {
    /// Reads a message.
    ///
    /// # Errors
    /// [`ApiError::BodyTooComplex`], [`ApiError::Malformed`] if it is not JSON, [`ApiError::Body`] if it is no message, or several: the protocol has no batches.
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        check_values(body)?;
        let mut message: Value =
            serde_json::from_slice(body).map_err(|error| ApiError::Malformed(error.to_string()))?;
        let bad = |why: &str| Err(ApiError::Body(why.to_owned()));
        if message.is_array() {
            return bad("it is a batch; send one message at a time");
        }
        if message["jsonrpc"] != "2.0" {
            return bad("it is no message of JSON-RPC: \"jsonrpc\" is not \"2.0\"");
        }
        let method = match message.get("method") {
            Some(Value::String(method)) => Some(method.clone()),
            Some(_) => return bad("\"method\" is not a text"),
            None => None,
        };
        let is_answer = message.get("result").is_some() || message.get("error").is_some();
        match (method, message.get("id")) {
            (Some(_), None) => Ok(Self::Notification),
            (Some(method), Some(id)) if (id.is_string() || id.is_number()) && fits(id) => {
                let id = id.clone();
                let params = message.get_mut("params").map_or_else(|| json!({}), Value::take);
                if !params.is_object() {
                    return bad("\"params\" is not an object");
                }
                Ok(Self::Request { id, method, params })
            }
            (Some(_), Some(_)) => bad("\"id\" is neither a text nor a number, or longer than 256 bytes"),
            (None, Some(_)) if is_answer => Ok(Self::Notification),
            (None, _) => bad("it has no \"method\""),
        }
    }
}

fn fits(id: &Value) -> bool {
    id.to_string().len() <= ID_BYTES
}

#[cfg(test)]
mod tests {
    use caisson_domain::json::JSON_VALUES;

    use super::*;

    fn parse(text: &str) -> Result<Message, ApiError> {
        Message::parse(text.as_bytes())
    }

    #[test]
    fn requests_have_ids_and_notifications_have_none() {
        for id in ["1", "\"a\""] {
            let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#);
            let Ok(Message::Request { id: read, method, params }) = parse(&text) else { panic!("{text}") };
            assert_eq!((read.to_string().as_str(), method.as_str(), params), (id, "ping", json!({})));
        }
        for text in [
            r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"x"}}"#,
        ] {
            assert_eq!(parse(text).unwrap(), Message::Notification, "{text}");
        }
    }

    #[test]
    fn what_is_no_message_is_refused_with_its_reason() {
        for text in ["", "{", "nonsense"] {
            assert!(matches!(parse(text), Err(ApiError::Malformed(_))), "{text}");
        }
        let long = format!(r#"{{"jsonrpc":"2.0","id":"{}","method":"ping"}}"#, "x".repeat(ID_BYTES - 1));
        for (text, part) in [
            (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, "batch"),
            (r#"{"id":1,"method":"ping"}"#, "2.0"),
            ("1", "2.0"),
            (r#"{"jsonrpc":"2.0","id":1,"method":1}"#, "method"),
            (r#"{"jsonrpc":"2.0","id":1}"#, "method"),
            (r#"{"jsonrpc":"2.0"}"#, "method"),
            (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, "id"),
            (r#"{"jsonrpc":"2.0","id":[1],"method":"ping"}"#, "id"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":[1]}"#, "params"),
            (&long, "256"),
        ] {
            let Err(ApiError::Body(why)) = parse(text) else { panic!("{text}") };
            assert!(why.contains(part), "{why}");
        }
        let fits = format!(r#"{{"jsonrpc":"2.0","id":"{}","method":"ping"}}"#, "x".repeat(ID_BYTES - 2));
        assert!(parse(&fits).is_ok());
    }

    #[test]
    fn a_message_of_too_many_values_is_refused_before_it_is_read() {
        let message = |items: usize| {
            json!({ "jsonrpc": "2.0", "id": 1, "method": "ping", "params": { "x": vec![0; items] } })
                .to_string()
        };
        // The message, its four members, and the list within the last.
        assert!(parse(&message(JSON_VALUES - 6)).is_ok());
        assert!(matches!(parse(&message(JSON_VALUES - 5)), Err(ApiError::BodyTooComplex)));
    }

    #[test]
    fn an_error_is_told_by_its_code() {
        let told = response(&json!(7), Err(RpcError::method(&"m".repeat(ECHO_BYTES + 1))));
        assert_eq!((&told["id"], &told["error"]["code"]), (&json!(7), &json!(METHOD_NOT_FOUND)));
        let message = told["error"]["message"].as_str().unwrap();
        assert!(message.contains(&"m".repeat(ECHO_BYTES)) && !message.contains(&"m".repeat(ECHO_BYTES + 1)));
        assert_eq!(response(&json!("a"), Ok(json!({})))["result"], json!({}));
    }
}
