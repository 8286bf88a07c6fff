//! The recorded output of the real CLI is read as what it was.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use caisson_claude::{
    Action, Block, Conversation, Delta, Ending, Exit, Line, Reason, ResultLine, Unanswered, Uuid, Verdict,
    conclude, judge, parse,
};

/// What a transcript holds.
struct Case {
    /// The file's name without its end.
    file: &'static str,
    /// What the driver is told, in order. Numbers are prompts, in the order they were sent.
    story: &'static [&'static str],
    /// Tools that were called, in order.
    tools: &'static [&'static str],
    /// Denied calls, by the results.
    denials: usize,
    /// Model calls that were tried again.
    retries: usize,
}

const fn case(file: &'static str, story: &'static [&'static str]) -> Case {
    Case { file, story, tools: &[], denials: 0, retries: 0 }
}

const FOUR_TOOLS: &[&str] = &["Bash", "Write", "Edit", "Read"];

const CASES: &[Case] = &[
    case("text-only", &["succeeded"]),
    Case { tools: FOUR_TOOLS, ..case("tool-use", &["succeeded"]) },
    Case { tools: &["Bash", "Bash"], ..case("parallel-tools", &["succeeded"]) },
    Case { tools: FOUR_TOOLS, ..case("partial-messages", &["succeeded"]) },
    Case { tools: FOUR_TOOLS, ..case("hook-events", &["succeeded"]) },
    Case { tools: FOUR_TOOLS, denials: 1, ..case("permission-denial", &["succeeded"]) },
    case("resume", &["succeeded"]),
    case("resume-unknown-id", &["failed: the agent does not know the session"]),
    case("resume-duplicate-prompt", &["seen before 1", "succeeded 2"]),
    Case { retries: 1, ..case("error-cut_once", &["succeeded"]) },
    Case { retries: 2, ..case("fallback-model", &["succeeded"]) },
    case("error-e400", &["api_error 400 invalid_request_error"]),
    Case { retries: 10, ..case("error-e401", &["api_error 401 authentication_error"]) },
    case("error-e403", &["api_error 403 permission_error"]),
    Case { retries: 10, ..case("error-e429", &["api_error 429 rate_limit_error"]) },
    Case { retries: 10, ..case("error-e500", &["api_error 500 api_error"]) },
    Case { retries: 2, ..case("error-e529", &["api_error 529 overloaded_error"]) },
    Case { retries: 10, ..case("error-connrefused", &["api_error connection_failed"]) },
    case("toolong", &["api_error 400 invalid_request_error"]),
    case("maxtok", &["api_error max_output_tokens"]),
    case("refusal", &["refused"]),
    Case { tools: &["Bash", "Bash"], ..case("max-turns", &["max_turns"]) },
    Case { tools: &["Bash"], ..case("max-budget", &["budget"]) },
    Case {
        tools: &["StructuredOutput"; 5],
        ..case("json-schema-fail", &["failed: the turn ended with structured_output_retry_exhausted"])
    },
    case("slash-command", &["failed 1: the prompt was taken for a command of the agent"]),
    case("interrupt-text", &["cancelled", "succeeded"]),
    Case { tools: &["Bash"], ..case("interrupt-tool", &["cancelled 1", "succeeded 2"]) },
    Case { tools: &["Bash"], ..case("interrupt-with-queued", &["cancelled 1", "succeeded 2"]) },
    Case { tools: &["Bash"], ..case("cancel-queued", &["dropped 1", "cancelled"]) },
    Case { tools: FOUR_TOOLS, ..case("stream-input-queued", &["succeeded 1 2"]) },
    case("prompts-at-once", &["succeeded 1", "succeeded 2 3"]),
    Case {
        tools: &["Write"],
        denials: 1,
        ..case("can-use-tool-unsupported", &["asked can_use_tool Write", "succeeded 1"])
    },
    Case {
        tools: &["Write"],
        denials: 1,
        ..case("can-use-tool-withdrawn", &["asked can_use_tool Write", "withdrawn", "cancelled 1"])
    },
    Case {
        tools: &["mcp__probe__add"],
        ..case(
            "sdk-mcp-and-hook-callback",
            &[
                "refused mcp_message",
                "refused mcp_message",
                "refused mcp_message",
                "refused hook_callback",
                "refused mcp_message",
                "succeeded",
            ],
        )
    },
    Case { tools: &["Agent", "Bash"], ..case("subagent", &["succeeded", "succeeded"]) },
    Case { tools: &["Bash"], ..case("background-bash", &["succeeded", "succeeded"]) },
    Case { tools: &["Bash"], ..case("lone-surrogate", &["succeeded 1"]) },
    Case { tools: &["Bash"], ..case("signal-sigterm-tool", &[]) },
];

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts")
}

fn lines(file: &str) -> Vec<Line> {
    let text = fs::read(directory().join(format!("{file}.jsonl"))).expect("the transcript is there");
    text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).map(parse).collect()
}

/// What a driver sees of a transcript.
#[derive(Default)]
struct Reading {
    conversation: Conversation,
    sent: Vec<String>,
    story: Vec<String>,
    tools: Vec<String>,
    results: Vec<ResultLine>,
    denials: usize,
    retries: usize,
    deltas: String,
}

impl Reading {
    fn of(file: &str) -> Self {
        let mut reading = Self { conversation: Conversation::new(&["can_use_tool"]), ..Self::default() };
        for line in lines(file) {
            reading.take(&line);
        }
        reading
    }

    fn take(&mut self, line: &Line) {
        if let Line::CommandLifecycle(lifecycle) = line
            && !self.sent.contains(&lifecycle.command_uuid)
        {
            self.sent.push(lifecycle.command_uuid.clone());
            let prompt = Uuid::parse(&lifecycle.command_uuid).expect("prompts had UUIDs");
            self.conversation.prompt_sent(&prompt).expect("it is new");
        }
        if let Line::ApiRetry(_) = line {
            self.retries += 1;
        }
        if let Line::Assistant(assistant) = line {
            self.tools.extend(assistant.blocks.iter().filter_map(|block| match block {
                Block::ToolUse { name, .. } => Some(name.clone()),
                Block::Text(_) | Block::Thinking(_) | Block::Other { .. } => None,
            }));
        }
        if let Line::StreamDelta(piece) = line
            && let Delta::Text(text) = &piece.delta
        {
            self.deltas.push_str(text);
        }
        if let Some(action) = self.conversation.observe(line) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        let told = match action {
            Action::Finished(finished) => {
                let told = told(&judge(&finished.result), &self.numbers(&finished.prompts));
                self.denials += finished.result.permission_denials.len();
                self.results.push(*finished.result);
                told
            }
            Action::Unanswered { prompt, why } => {
                let why = match why {
                    Unanswered::SeenBefore => "seen before",
                    Unanswered::Dropped => "dropped",
                };
                format!("{why}{}", self.numbers(&[prompt]))
            }
            Action::Answer(request) => {
                format!("asked {} {}", request.subtype, request.tool_name.unwrap_or_default())
            }
            Action::Withdrawn { .. } => "withdrawn".to_owned(),
            Action::Write(line) => {
                let answer: serde_json::Value = serde_json::from_str(&line).expect("an answer is JSON");
                assert_eq!(answer["response"]["error_code"], "unsupported_request");
                let error = answer["response"]["error"].as_str().expect("it says what");
                format!("refused {}", error.trim_start_matches("unsupported request: "))
            }
        };
        self.story.push(told);
    }

    fn numbers(&self, prompts: &[String]) -> String {
        let number = |prompt| self.sent.iter().position(|sent| sent == prompt).map_or(0, |at| at + 1);
        prompts.iter().flat_map(|prompt| [" ".to_owned(), number(prompt).to_string()]).collect()
    }
}

fn told(verdict: &Verdict, prompts: &str) -> String {
    match verdict {
        Verdict::Succeeded => format!("succeeded{prompts}"),
        Verdict::Cancelled => format!("cancelled{prompts}"),
        Verdict::MaxTurns => format!("max_turns{prompts}"),
        Verdict::Budget => format!("budget{prompts}"),
        Verdict::Refused { text } => {
            assert!(text.contains("safeguards"), "{text}");
            format!("refused{prompts}")
        }
        Verdict::ApiError { status, kind, text } => {
            assert!(!text.is_empty());
            let status = status.map(|status| format!(" {status}")).unwrap_or_default();
            format!("api_error{prompts}{status} {kind}")
        }
        Verdict::Failed { reason: Reason::Execution { word, .. } } => {
            format!("failed{prompts}: the turn ended with {word}")
        }
        Verdict::Failed { reason } => format!("failed{prompts}: {reason}"),
    }
}

#[test]
fn every_transcript_is_read_as_what_it_was() {
    for case in CASES {
        let reading = Reading::of(case.file);
        assert_eq!(reading.story, case.story, "{}: story", case.file);
        assert_eq!(reading.tools, case.tools, "{}: tools", case.file);
        assert_eq!(reading.denials, case.denials, "{}: denials", case.file);
        assert_eq!(reading.retries, case.retries, "{}: retries", case.file);
        let results = u32::try_from(reading.results.len()).unwrap();
        assert_eq!(reading.conversation.results(), results, "{}: results", case.file);
        assert!(reading.conversation.spoke(), "{}", case.file);
    }
}

#[test]
fn every_transcript_is_in_the_table() {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(directory()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        files.extend(name.strip_suffix(".jsonl").map(str::to_owned));
    }
    assert_eq!(files, CASES.iter().map(|case| case.file.to_owned()).collect());
}

#[test]
fn nothing_runs_after_the_last_result() {
    for case in CASES {
        let reading = Reading::of(case.file);
        let cut_off = case.file == "signal-sigterm-tool";
        assert_eq!(reading.conversation.is_running(), cut_off, "{}", case.file);
    }
}

#[test]
fn results_are_numbered_as_they_come() {
    for case in CASES {
        let indexes: Vec<_> = Reading::of(case.file).results.iter().filter_map(|r| r.result_index).collect();
        let expected: Vec<u32> = (0..).take(indexes.len()).collect();
        assert_eq!(indexes, expected, "{}", case.file);
    }
}

#[test]
fn a_result_that_a_background_task_began_says_so() {
    let origins: Vec<_> = Reading::of("background-bash").results.into_iter().map(|r| r.origin).collect();
    assert_eq!(origins, [None, Some("task-notification".to_owned())]);
}

#[test]
fn a_process_killed_in_a_tool_has_no_result() {
    let reading = Reading::of("signal-sigterm-tool");
    let ending = Ending {
        result: reading.results.last(),
        exit: Exit::Code(143),
        spoke: reading.conversation.spoke(),
        stderr: "",
    };
    assert_eq!(conclude(&ending), Verdict::Failed { reason: Reason::Killed { signal: 15 } });
}

#[test]
fn text_that_was_cut_inside_a_character_is_not_lost() {
    let reading = Reading::of("lone-surrogate");
    assert_eq!(reading.results[0].text.as_deref(), Some("half \u{fffd} emoji"));
}

#[test]
fn deltas_add_up_to_the_text() {
    let reading = Reading::of("partial-messages");
    assert_eq!(reading.deltas, "I'll look around first.Done: hello.txt written and edited.");
    let deltas = lines("partial-messages").iter().filter(|line| line.is_delta()).count();
    assert_eq!(deltas, 48);
}

#[test]
fn a_subagent_is_told_from_the_agent() {
    let parents: Vec<_> = lines("subagent")
        .into_iter()
        .filter_map(
            |line| if let Line::Assistant(said) = line { Some(said.parent_tool_use_id) } else { None },
        )
        .map(|parent| parent.is_some())
        .collect();
    assert_eq!(parents, [false, false, true, true, false]);
}
