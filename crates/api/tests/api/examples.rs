//! The examples of `docs/api.md` and `docs/automagik.md`: each request is sent to the API, from top to bottom, and what comes
//! is compared with what stands there. Each document has an API of its own.
//!
//! To add one, write a heading, a sentence and a block ```` ```http ```` with the request into the document, as those beside
//! it have it: method and path, headers if it needs any, a blank line and the body. Then let
//! `UPDATE_DOCS=1 cargo nextest run -p caisson-api -E 'test(examples)'` write the answer behind it, and read what it wrote.
//! `lines=N` behind `http` shows the first lines of a long answer. What a request names with a `$` is an id of [`scene`],
//! or the id of what an earlier example made (see [`Ids::learn`]); a route that needs something else to be there has it made
//! in [`scene`].

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use axum::body::Body;
use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::id::{ApprovalId, ProjectId, ServerId};
use caisson_domain::limits::SERVER_LOST_MS_DEFAULT;
use caisson_domain::workflow::Workflow;
use caisson_store::{MasterKeyFile, NewArtifact, PutArtifact};
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};

use crate::approvals::asking;
use crate::support::{Answer, Api, NOW_MS};
use crate::usage::call;

const PATCH: &str = "diff --git a/calendar.py b/calendar.py\n--- a/calendar.py\n+++ b/calendar.py\n@@ -1 +1 @@\n\
     -    return year % 4 == 0\n+    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)\n";
/// The document of the native API.
const NATIVE: &str = "api.md";
/// The document of the compatible API.
const COMPATIBLE: &str = "automagik.md";
/// What every path of the compatible API begins with, but for three.
const BELOW: &str = "/api/v1/";
/// Workflows that the ends of branches in examples are of.
const WORKFLOWS: [&str; 3] = ["fix", "careful", "bug-fixer"];
/// Headers that an example shows, of the answer.
const SHOWN: [&str; 3] = ["content-type", "location", "content-disposition"];
/// Digits that differ each time have at least so many.
const HASH_DIGITS: usize = 32;

fn document(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name)
}

#[expect(clippy::disallowed_methods, reason = "only the tests ask whether they are to write")]
fn updating() -> bool {
    std::env::var("UPDATE_DOCS").is_ok_and(|value| value == "1")
}

/// A request of the document.
#[derive(Debug, Clone, PartialEq)]
struct Example {
    method: Method,
    path: String,
    headers: Vec<(String, String)>,
    body: String,
    /// How much of the answer is shown.
    lines: Option<usize>,
}

impl Example {
    /// Reads the lines of a block; none if it is no request.
    fn read(info: &str, block: &[&str]) -> Option<Self> {
        let (method, path) = block.first()?.split_once(' ')?;
        if !path.starts_with('/') {
            return None;
        }
        let head = block.iter().position(|line| line.is_empty()).unwrap_or(block.len());
        let headers = block[1..head].iter().map(|line| {
            let (name, value) = line.split_once(": ").expect("a header is NAME: VALUE");
            (name.to_owned(), value.to_owned())
        });
        Some(Self {
            method: method.parse().expect("a method of HTTP"),
            path: path.to_owned(),
            headers: headers.collect(),
            body: block.get(head + 1..).unwrap_or_default().join("\n"),
            lines: info.split_once("lines=").map(|(_, number)| number.parse().expect("a number of lines")),
        })
    }

    fn request(&self, api: &Api, ids: &Ids) -> Request<Body> {
        let mut request = api.request(self.method.clone(), &ids.filled(&self.path));
        for (name, value) in &self.headers {
            request = request.header(name, ids.filled(value));
        }
        if !self.body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        request.body(Body::from(ids.filled(&self.body))).unwrap()
    }
}

/// What the `$` names stand for.
struct Ids(Vec<(&'static str, String)>);

impl Ids {
    fn filled(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (name, id)| text.replace(name, id))
    }

    /// Remembers what a request made.
    fn learn(&mut self, example: &Example, answer: &Answer) {
        if example.method != Method::POST || !answer.status.is_success() {
            return;
        }
        let made: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        // An input of the native API names its run as well.
        let of_run = made["run_id"].as_str().filter(|_| example.path.starts_with(BELOW));
        let id = made["id"].as_str().or(of_run).unwrap_or_default();
        for (name, prefix) in [("$RUN", "run_"), ("$KEY", "key_"), ("$CREDENTIAL", "crd_"), ("$FORK", "ses_")]
        {
            if id.starts_with(prefix) {
                self.remember(name, id);
            }
        }
        if example.path == "/api/v1/users" {
            self.remember("$USER", id);
        }
    }

    fn remember(&mut self, name: &'static str, id: &str) {
        self.0.retain(|(known, _)| *known != name);
        self.0.push((name, id.to_owned()));
    }

    /// The text with names for the ids they stand for, and without what differs each time.
    fn steady(&self, text: &str) -> String {
        let named = self.0.iter().fold(text.to_owned(), |text, (name, id)| text.replace(id, name));
        let (mut out, mut digits) = (String::new(), String::new());
        for character in named.chars().chain(['\n']) {
            if character.is_ascii_hexdigit() && !character.is_ascii_uppercase() {
                digits.push(character);
                continue;
            }
            // The end of a branch's name is of its run's id.
            let of_a_branch = |workflow| out.ends_with(&format!("caisson/{workflow}/"));
            let short = digits.len() == 8 && WORKFLOWS.iter().any(of_a_branch);
            out.push_str(if digits.len() >= HASH_DIGITS || short { "…" } else { &digits });
            digits.clear();
            out.push(character);
        }
        out.truncate(out.len() - 1);
        out
    }
}

/// JSON as it came, in the order in which it came, one field a line.
fn laid_out(json: &str) -> String {
    let (mut out, mut depth, mut in_text, mut escaped) = (String::new(), 0, false, false);
    let mut characters = json.chars().peekable();
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.push_str(&"  ".repeat(depth));
    };
    while let Some(c) = characters.next() {
        if in_text {
            out.push(c);
            in_text = escaped || c != '"';
            escaped = c == '\\' && !escaped;
            continue;
        }
        match c {
            '{' | '[' => {
                out.push(c);
                let end = if c == '{' { '}' } else { ']' };
                if characters.peek() == Some(&end) {
                    out.extend(characters.next());
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth -= 1;
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c if c.is_whitespace() => {}
            c => {
                in_text = c == '"';
                out.push(c);
            }
        }
    }
    out
}

/// What the document shows of an answer.
fn shown(answer: &Answer, ids: &Ids, lines: Option<usize>) -> String {
    let status = answer.status;
    let mut out = format!("HTTP/1.1 {} {}", status.as_str(), status.canonical_reason().unwrap_or_default());
    for name in SHOWN {
        if let Some(value) = answer.headers.get(name) {
            write!(out, "\n{name}: {}", ids.steady(value.to_str().unwrap())).unwrap();
        }
    }
    let text = answer.text();
    let json = answer.header("content-type").ends_with("json");
    let text = ids.steady(&if json { laid_out(&text) } else { text });
    let text = text.trim_end();
    if !text.is_empty() {
        out.push_str("\n\n");
        let most = lines.unwrap_or(usize::MAX);
        out.push_str(&text.lines().take(most).collect::<Vec<_>>().join("\n"));
        if text.lines().count() > most {
            out.push_str("\n…");
        }
    }
    out
}

/// What there is before the first example of a document.
async fn scene(name: &str) -> (Api, Ids) {
    let api = Api::start().await;
    if name == COMPATIBLE {
        let workflow = "---\nname: bug-fixer\ndescription: Fixes bugs.\nmaxTurns: 50\n---\nFix it.\n";
        let workflow = Workflow::parse(workflow).unwrap();
        api.store.put_workflow(&ProjectId::default_project(), &workflow).await.unwrap();
    }
    api.store.unlock(MasterKeyFile::in_state_dir(api.dir.path())).await.unwrap();
    api.clock.set(NOW_MS - SERVER_LOST_MS_DEFAULT - 1);
    let gone = ServerId::new(NOW_MS, [7; 10]);
    api.store.register_server(&gone).await.unwrap();
    api.clock.set(NOW_MS);
    api.store.heartbeat_server(&api.server, &[]).await.unwrap();

    let claimed = api.running().await;
    let run = &claimed.run.id;
    api.clock.advance(1);
    api.say(&claimed, r#"{"type":"assistant","message":{"content":[{"type":"text","text":"The rule for centuries is missing."}]}}"#).await;
    call(&api, run, "claude-sonnet-5", [1_200, 340, 18_000, 2_500, 0]).await;
    call(&api, run, "claude-haiku-5-5", [90, 12, 0, 0, 0]).await;
    let file = api.dir.path().join("artifacts/run/diff.patch");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, PATCH).unwrap();
    let artifact = NewArtifact {
        name: "diff.patch".to_owned(),
        size_bytes: i64::try_from(PATCH.len()).unwrap(),
        sha256: "0".repeat(64),
        path: "run/diff.patch".to_owned(),
    };
    assert_eq!(api.store.put_artifact(run, &artifact).await.unwrap(), PutArtifact::Stored);
    let pushed = NewEvent::new(
        EventKind::Note,
        &json!({"level": "info", "message": "what happened is told in events like this one"}),
    );
    assert!(api.store.append_run_event(run, claimed.epoch, pushed).await.unwrap());
    assert!(api.store.put_transcript(run, "{}\n").await.unwrap());
    api.finish(&claimed).await;
    api.clock.advance(1);
    let (live, _) = asking(&api, &["request"]).await;
    // The first that was said in it.
    let message = format!("msg_{}_1", claimed.run.session.as_str().trim_start_matches("ses_"));
    let ids = Ids(vec![
        ("$MESSAGE", message),
        ("$FINISHED", run.to_string()),
        ("$SESSION", claimed.run.session.to_string()),
        ("$SERVER", gone.to_string()),
        ("$APPROVAL", ApprovalId::of(&live, "request").to_string()),
        ("$LIVE", live.to_string()),
    ]);
    (api, ids)
}

/// The document as it should be, and its requests with how they were answered.
async fn executed(name: &str, text: &str) -> (String, Vec<(Method, String, StatusCode)>) {
    let (api, mut ids) = scene(name).await;
    let (mut out, mut answered) = (Vec::new(), Vec::new());
    let lines: Vec<&str> = text.lines().collect();
    let mut at = 0;
    let block = |at: usize| {
        let info = lines.get(at)?.strip_prefix("```http")?;
        let end = lines[at + 1..].iter().position(|line| *line == "```").expect("a block ends");
        Some((info, &lines[at + 1..at + 1 + end], at + end + 2))
    };
    while at < lines.len() {
        let Some((info, content, end)) = block(at) else {
            out.push(lines[at].to_owned());
            at += 1;
            continue;
        };
        let example = Example::read(info, content)
            .unwrap_or_else(|| panic!("an answer without a request, or no request: {content:?}"));
        out.extend(lines[at..end].iter().map(|line| (*line).to_owned()));
        // What two requests make in the same millisecond has no order that an example could show.
        api.clock.advance(1);
        let answer = api.send(example.request(&api, &ids)).await;
        ids.learn(&example, &answer);
        answered.push((example.method.clone(), ids.filled(&example.path), answer.status));
        let shown = shown(&answer, &ids, example.lines);
        out.extend([String::new(), "```http".to_owned(), shown, "```".to_owned()]);
        at = end;
        // The answer that stands there.
        let blank = lines[at..].iter().take_while(|line| line.is_empty()).count();
        if let Some((_, content, end)) = block(at + blank)
            && content.first().is_some_and(|line| line.starts_with("HTTP/1.1 "))
        {
            at = end;
        }
    }
    (out.join("\n") + "\n", answered)
}

#[tokio::test]
async fn the_examples_of_the_native_api_are_answered_as_the_document_says() {
    assert_answered(NATIVE).await;
}

#[tokio::test]
async fn the_examples_of_the_compatible_api_are_answered_as_the_document_says() {
    assert_answered(COMPATIBLE).await;
}

async fn assert_answered(name: &str) {
    let text = std::fs::read_to_string(document(name)).unwrap();
    let (expected, _) = executed(name, &text).await;
    if updating() {
        std::fs::write(document(name), expected).unwrap();
        return;
    }
    for (number, (stands, comes)) in text.lines().zip(expected.lines()).enumerate() {
        assert_eq!(stands, comes, "line {} of docs/{name}; UPDATE_DOCS=1 writes what comes", number + 1);
    }
    assert_eq!(text, expected, "docs/{name}; UPDATE_DOCS=1 writes what comes");
}

#[tokio::test]
async fn every_route_of_the_native_api_has_an_example_that_succeeds() {
    assert_every_route(NATIVE, |tag| tag != "automagik").await;
}

#[tokio::test]
async fn every_route_of_the_compatible_api_has_an_example_that_succeeds_unless_it_only_refuses() {
    assert_every_route(COMPATIBLE, |tag| tag == "automagik").await;
}

async fn assert_every_route(name: &str, wanted: impl Fn(&Value) -> bool) {
    let text = std::fs::read_to_string(document(name)).unwrap();
    let (_, answered) = executed(name, &text).await;
    let openapi = serde_json::to_value(caisson_api::openapi()).unwrap();
    let mut without = BTreeSet::new();
    for (template, item) in openapi["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let told = operation["responses"].as_object().unwrap();
            let succeeds = told.keys().any(|status| status.starts_with('2'));
            let has = |(of, path, status): &(Method, String, StatusCode)| {
                of.as_str().eq_ignore_ascii_case(method)
                    && fits(template, path)
                    && if succeeds { status.is_success() } else { told.contains_key(status.as_str()) }
            };
            if wanted(&operation["tags"][0]) && !answered.iter().any(has) {
                without.insert(format!("{} {template}", method.to_uppercase()));
            }
        }
    }
    assert!(without.is_empty(), "add examples to docs/{name}, as this file's comment says, for {without:#?}");
}

fn fits(template: &str, path: &str) -> bool {
    let path = path.split('?').next().unwrap_or_default();
    let (template, path): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
    template.len() == path.len()
        && template.iter().zip(&path).all(|(part, text)| part.starts_with('{') || part == text)
}

#[test]
fn json_is_laid_out_without_a_change_to_what_it_says() {
    let json = r#"{"b":[],"a":{"x":"q\"u{o},t: e\\"},"l":[1,{}]}"#;
    let laid = laid_out(json);
    assert_eq!(serde_json::from_str::<Value>(&laid).unwrap(), serde_json::from_str::<Value>(json).unwrap());
    assert_eq!(laid.lines().nth(1), Some("  \"b\": [],"));
    assert!(fits("/v1/runs/{id}", "/v1/runs/x?y=/z") && !fits("/v1/runs/{id}", "/v1/runs/x/diff"));
    assert!(!fits("/v1/workflows/validate", "/v1/workflows/greeter"));
}
