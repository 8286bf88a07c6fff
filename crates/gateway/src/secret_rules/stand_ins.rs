//! What people write in place of a secret, and secrets that everybody knows: neither is worth refusing a push. Pure.

use std::collections::{BTreeSet, HashSet};
use std::sync::LazyLock;

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

/// A SHA-256.
pub(super) type Hash = [u8; 32];

/// Words that stand in for a secret in documents and tests, wherever they are in it.
const ANYWHERE: [&str; 9] =
    ["example", "changeme", "placeholder", "dummy", "redacted", "xxxxxx", "your_", "your-", "notreal"];

/// Words of which a name for a token that is to be put in is made, such as `your-bot-token-goes-here`.
static WORDS: LazyLock<Vec<&str>> = LazyLock::new(|| {
    "access account actual add admin api app auth bar bearer bot change changeme client company \
     credential credentials demo dev dummy enter example fake fill foo from generated github gitlab goes \
     here id insert invalid key level me mock my need none not org password paste personal placeholder \
     private project put real redacted replace sample secret secrets service slack some team test testing \
     the this todo token tokens url user value vault webhook with workspace your"
        .split(' ')
        .collect()
});
/// Longest word that is taken for one although it is not among these, in letters.
const WORD_LETTERS: usize = 16;
/// Fewest letters of one kind that stand for any.
const SAME_LETTERS: usize = 3;
/// Most digits that any number may have, such as a version; a longer one must count.
const NUMBER_DIGITS: usize = 2;

/// How secrets end that the documentation of their makers shows; no other one ends so.
const DOCUMENTED_ENDS: [&[u8]; 2] = [b"EXAMPLE", b"EXAMPLEKEY"];

/// SHA-256 of secrets that programs for developers have built in, the same for everybody: the account key of Azure's emulator of
/// its storage (Azurite), and that of its emulator of Cosmos DB.
const BUILT_IN: [&str; 2] = [
    "0011cc25eb4320717494d2703e8cba85743e71b500283c21c8b88147992f9059",
    "aa6547439583c3a275d4542a0df6c1ad6a863971be9f2a2220f027cc02aef615",
];
static BUILT_IN_HASHES: LazyLock<HashSet<Hash>> =
    LazyLock::new(|| BUILT_IN.iter().filter_map(|text| hash(text)).collect());

/// Base64 as web tokens have it, whatever the bits are that are left over.
const WEB_TOKEN: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// What a web token may say by which everybody's are known.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Claims {
    iss: String,
    sub: String,
    name: String,
}

/// A SHA-256 in hexadecimal digits.
pub(super) fn hash(text: &str) -> Option<Hash> {
    let mut hash = Hash::default();
    hex::decode_to_slice(text, &mut hash).ok().map(|()| hash)
}

/// Whether it is of a secret that programs for developers have built in.
pub(super) fn is_built_in(hash: &Hash) -> bool {
    BUILT_IN_HASHES.contains(hash)
}

/// Whether one of the words that stand in for a secret is in it.
pub(super) fn has_word(secret: &[u8]) -> bool {
    let lower = String::from_utf8_lossy(secret).to_ascii_lowercase();
    ANYWHERE.iter().any(|word| lower.contains(word))
}

/// Whether nobody would take it for a secret, although it is made as one: half of it or more is one letter, or it is an example
/// of its maker's documentation.
pub(super) fn is_made_up(secret: &[u8]) -> bool {
    let characters: Vec<u8> = secret.iter().copied().filter(u8::is_ascii_alphanumeric).collect();
    let runs = characters.chunk_by(|one, next| one == next).filter(|run| run[0].is_ascii_alphabetic());
    runs.map(<[u8]>::len).max().is_some_and(|longest| longest * 2 >= characters.len())
        || DOCUMENTED_ENDS.iter().any(|end| secret.ends_with(end))
        || is_everybodys_web_token(secret)
}

/// Whether it is a JSON web token of jwt.io, whose subject is 1234567890, John Doe, or of a local Supabase, which has the same
/// ones everywhere.
fn is_everybodys_web_token(secret: &[u8]) -> bool {
    let parts: Vec<&[u8]> = secret.split(|byte| *byte == b'.').collect();
    let [_, payload, _] = parts[..] else { return false };
    let Ok(payload) = WEB_TOKEN.decode(payload) else { return false };
    let Ok(Claims { iss, sub, name }) = serde_json::from_slice(&payload) else { return false };
    iss == "supabase-demo" || (sub == "1234567890" && name == "John Doe")
}

/// Whether the body of a token, what is behind its prefix, is a name for one, as in `your-bot-token-goes-here`: words and numbers
/// that count (`1234567890`), and half of the letters or more are in words that such names have. What is made by chance is not, also
/// with such a word in it: it mixes letters and digits.
pub(super) fn is_named(body: &[u8]) -> bool {
    let (mut named, mut all) = (0, 0);
    for part in body.split(|byte| !byte.is_ascii_alphanumeric()).filter(|part| !part.is_empty()) {
        let letters = part.iter().filter(|byte| byte.is_ascii_alphabetic()).count();
        all += letters;
        if is_covered(part) {
            named += letters;
        } else if !is_word(part) {
            return false;
        }
    }
    named > 0 && named * 2 >= all
}

/// Whether words, numbers and letters that stand for any make all of it.
fn is_covered(part: &[u8]) -> bool {
    let lower = part.to_ascii_lowercase();
    let mut open = BTreeSet::from([0]);
    while let Some(at) = open.pop_first() {
        let rest = &lower[at..];
        if rest.is_empty() {
            return true;
        }
        open.extend(
            WORDS.iter().filter(|word| rest.starts_with(word.as_bytes())).map(|word| at + word.len()),
        );
        open.extend(filler(rest).map(|length| at + length));
    }
    false
}

/// How much at the beginning is a number that says nothing, or letters that stand for any.
fn filler(rest: &[u8]) -> Option<usize> {
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits > 0 {
        let counts = |pair: &[u8]| pair[0] == pair[1] || (pair[0] - b'0' + 1) % 10 == pair[1] - b'0';
        return (digits <= NUMBER_DIGITS || rest[..digits].windows(2).all(counts)).then_some(digits);
    }
    let same = rest.iter().take_while(|byte| **byte == rest[0]).count();
    (same >= SAME_LETTERS).then_some(same)
}

/// Whether it may be a word: letters alone, and no capital among small ones.
fn is_word(part: &[u8]) -> bool {
    part.len() <= WORD_LETTERS
        && part.iter().all(u8::is_ascii_alphabetic)
        && (part[1..].iter().all(u8::is_ascii_lowercase) || part.iter().all(u8::is_ascii_uppercase))
}
