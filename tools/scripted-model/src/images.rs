//! The images of a messages request, by their hashes: enough to tell that each came byte for byte.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// An image that a request carried in a message of its own, and not in a tool's result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenImage {
    /// Role of the message.
    pub role: String,
    /// Its media type, as the request says.
    pub media_type: String,
    /// SHA-256 of its bytes, hexadecimal; of nothing if they are no base64.
    pub sha256: String,
}

/// Reads them in order; none of a body that is no messages request.
pub(crate) fn of(body: &[u8]) -> Vec<SeenImage> {
    // Most have none, and are long.
    if !std::str::from_utf8(body).is_ok_and(|text| text.contains("\"image\"")) {
        return Vec::new();
    }
    let Ok(body) = serde_json::from_slice::<Value>(body) else { return Vec::new() };
    let mut images = Vec::new();
    for message in body["messages"].as_array().into_iter().flatten() {
        for block in message["content"].as_array().into_iter().flatten() {
            let source = &block["source"];
            if block["type"] == "image" {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let bytes = STANDARD.decode(text(&source["data"])).unwrap_or_default();
                let sha256 = hex::encode(Sha256::digest(bytes));
                images.push(SeenImage {
                    role: text(&message["role"]),
                    media_type: text(&source["media_type"]),
                    sha256,
                });
            }
        }
    }
    images
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn images_of_messages_are_seen_and_those_of_tools_are_not() {
        let image = |data: &str| json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}});
        let result = json!({"type": "tool_result", "content": [image("eA==")]});
        let messages = json!([
            {"role": "user", "content": "x"},
            {"role": "user", "content": [image("aGVsbG8K"), {"type": "text", "text": "look"}, result]},
        ]);
        let seen = of(json!({ "messages": messages }).to_string().as_bytes());
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].media_type.as_str(), seen[0].sha256.as_str()), ("image/png", sha256));
        assert_eq!(of(b"{"), []);
    }
}
