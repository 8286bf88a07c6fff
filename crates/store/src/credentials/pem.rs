//! PEM (RFC 7468), as far as keys and certificates of operators need it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::zeroize::Zeroizing;

/// The bytes of every block with this label, in order; none if a block cannot be read. Text between blocks is skipped.
pub(super) fn blocks(text: &str, label: &str) -> Option<Vec<Zeroizing<Vec<u8>>>> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((_, block)) = rest.split_once(&begin) {
        let (body, after) = block.split_once(&end)?;
        let digits: Zeroizing<String> =
            Zeroizing::new(body.chars().filter(|character| !character.is_ascii_whitespace()).collect());
        let bytes = Zeroizing::new(STANDARD.decode(&*digits).ok()?);
        // Keys and certificates alike are a DER sequence.
        if bytes.first() != Some(&0x30) {
            return None;
        }
        found.push(bytes);
        rest = after;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_a_label_are_read_in_order() {
        let block =
            |label: &str, text: &str| format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n");
        let two = format!("a note\n{}\r\n{}", block("CERTIFICATE", "MAEA"), block("CERTIFICATE", "MA\r\nEB"));
        let read = blocks(&two, "CERTIFICATE").unwrap();
        assert_eq!(
            read.iter().map(|bytes| bytes.to_vec()).collect::<Vec<_>>(),
            [vec![0x30, 1, 0], vec![0x30, 1, 1]]
        );
        assert!(blocks(&two, "PRIVATE KEY").unwrap().is_empty());
        for bad in ["", "!!!!", "AAAA", "MAE"] {
            assert!(blocks(&block("CERTIFICATE", bad), "CERTIFICATE").is_none(), "{bad}");
        }
        assert!(blocks("-----BEGIN CERTIFICATE-----\nMAEA", "CERTIFICATE").is_none());
    }
}
