//! What this crate believes of the CLI, asked of the CLI itself: set `TEST_CLAUDE_BIN` to its path.
//!
//! The model is a few lines of HTTP in this process; no other address is reachable or needed.

mod cli;
mod model;

use std::fs;

use caisson_claude::{
    Action, Exit, Launch, Line, PermissionMode, PermissionPrompts, Reason, SessionMode, Unanswered, Verdict,
    end_session, interrupt, judge,
};
use cli::{Cli, Place, uuid};
use model::{Model, Reply};

/// Starts a test's place, or says that it is skipped.
macro_rules! place {
    () => {
        match Place::new() {
            Some(place) => place,
            None => {
                eprintln!("SKIPPED: TEST_CLAUDE_BIN does not name the CLI");
                return;
            }
        }
    };
}

/// How long the CLI may take to start a tool.
const TOOL_START: std::time::Duration = std::time::Duration::from_secs(20);

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

#[test]
fn every_argument_is_taken_as_it_is_meant() {
    let place = place!();
    let inside = place.workspace().join("(group)/made.txt");
    let outside = place.workspace().join("made.txt");
    let write = |path: &std::path::Path| {
        Reply::tool("Write", &format!("{{\"file_path\":{path:?},\"content\":\"x\"}}"))
    };
    let model = Model::start(vec![write(&inside), write(&outside), Reply::text("done")]);
    let hook = "{\"hooks\":{\"UserPromptSubmit\":[{\"hooks\":[{\"type\":\"command\",\"command\":\"touch hooked\"}]}]}}";
    fs::create_dir(place.workspace().join(".claude")).unwrap();
    fs::write(place.workspace().join(".claude/settings.json"), hook).unwrap();
    fs::write(place.workspace().join("CLAUDE.md"), "memory-of-the-repository").unwrap();

    let session = uuid(1);
    let launch = Launch {
        model: Some("--version".to_owned()),
        tools: Some(texts(&["Edit", "Write"])),
        allowed_tools: texts(&["Edit((group)/**)"]),
        disallowed_tools: texts(&["Bash(echo a, b)"]),
        max_turns: Some(5),
        append_system_prompt: Some("--dangerously-skip-permissions\nsecond line".to_owned()),
        mcp_config: Some("{\"mcpServers\":{}}".to_owned()),
        ..Launch::new(SessionMode::New(session.clone()))
    };
    let mut cli = Cli::start(&place, &model, &launch);
    let prompt = uuid(2);
    cli.prompt(&prompt, "--help\nsecond \"line\" \u{2028} third");
    let finished = cli.finished();
    assert_eq!(finished.prompts, [prompt.to_string()]);
    assert_eq!(judge(&finished.result), Verdict::Succeeded);
    let denied: Vec<_> = finished.result.permission_denials.iter().map(|d| d.tool_name.as_str()).collect();
    assert_eq!(denied, ["Write"]);
    assert_eq!(cli.end(), (Exit::Code(0), true));

    let init = cli
        .lines
        .iter()
        .find_map(|line| if let Line::Init(init) = line { Some(init) } else { None })
        .unwrap();
    assert_eq!((init.session_id.as_str(), init.model.as_str()), (session.as_str(), "--version"));
    assert_eq!(init.permission_mode, "dontAsk");
    assert_eq!(init.tools, ["Edit", "Write"]);
    assert!(inside.exists() && !outside.exists());
    assert!(!place.workspace().join("hooked").exists());

    let requests = model.requests();
    assert_eq!(requests.len(), 3);
    for request in &requests {
        assert!(request.path.starts_with("/model/v1/messages"), "{}", request.path);
        assert!(
            request.head.to_ascii_lowercase().contains("authorization: bearer grant-1"),
            "{}",
            request.head
        );
        assert!(request.body.contains("--dangerously-skip-permissions\\nsecond line"));
        assert!(request.body.contains("--help\\nsecond \\\"line\\\" \u{2028} third"));
        assert!(!request.body.contains("memory-of-the-repository"));
    }
    let grown: String = cli.texts_as_they_grew();
    assert_eq!(grown, "done");
}

/// What lies there the CLI would take for instructions of its user.
#[test]
fn a_memory_in_the_home_is_not_read() {
    let place = place!();
    let workspace = place.workspace().to_str().unwrap().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let memory = place.path("home").join(".claude/projects").join(workspace).join("memory");
    fs::create_dir_all(&memory).unwrap();
    fs::write(memory.join("MEMORY.md"), "- memory-of-an-earlier-agent\n").unwrap();
    let model = Model::start(vec![Reply::text("answered")]);
    let mut cli = Cli::start(&place, &model, &Launch::new(SessionMode::New(uuid(1))));
    cli.prompt(&uuid(2), "What do you know?");
    assert_eq!(judge(&cli.finished().result), Verdict::Succeeded);
    assert_eq!(cli.end(), (Exit::Code(0), true));
    let body = &model.requests()[0].body;
    assert!(!body.contains("memory-of-an-earlier-agent") && !body.contains("MEMORY.md"), "{body}");
}

#[test]
fn a_prompt_with_a_slash_reaches_the_model() {
    let place = place!();
    let model = Model::start(vec![Reply::text("answered")]);
    let mut cli = Cli::start(&place, &model, &Launch::new(SessionMode::New(uuid(1))));
    cli.prompt(&uuid(2), "/cost");
    assert_eq!(judge(&cli.finished().result), Verdict::Succeeded);
    assert_eq!(cli.end(), (Exit::Code(0), true));
    assert_eq!(model.requests().len(), 1);
}

#[test]
fn a_resumed_session_knows_what_it_was_told_and_takes_no_prompt_twice() {
    let place = place!();
    let model = Model::start(vec![Reply::text("first answer"), Reply::text("second answer")]);
    let session = uuid(1);
    let mut cli = Cli::start(&place, &model, &Launch::new(SessionMode::New(session.clone())));
    cli.prompt(&uuid(2), "first question");
    assert_eq!(judge(&cli.finished().result), Verdict::Succeeded);
    assert_eq!(cli.end(), (Exit::Code(0), true));

    let mut cli = Cli::start(&place, &model, &Launch::new(SessionMode::Resume(session.clone())));
    cli.prompt(&uuid(2), "first question");
    let seen = Action::Unanswered { prompt: uuid(2).to_string(), why: Unanswered::SeenBefore };
    assert_eq!(cli.next_action(), Some(seen));
    cli.prompt(&uuid(3), "second question");
    let finished = cli.finished();
    assert_eq!(finished.prompts, [uuid(3).to_string()]);
    assert_eq!(finished.result.text.as_deref(), Some("second answer"));
    assert_eq!(cli.end(), (Exit::Code(0), true));
    let requests = model.requests();
    assert_eq!(requests.len(), 2);
    assert!(requests[1].body.contains("first answer"));

    let mut cli = Cli::start(&place, &model, &Launch::new(SessionMode::New(session)));
    let Verdict::Failed { reason: Reason::Start { stderr } } = cli.verdict_without_prompt() else {
        panic!("the id is in use")
    };
    assert!(stderr.contains("already in use"), "{stderr}");
}

#[test]
fn an_unknown_session_is_said_to_be_unknown() {
    let place = place!();
    let model = Model::start(vec![Reply::text("never")]);
    let mut cli = Cli::start(&place, &model, &Launch::new(SessionMode::Resume(uuid(9))));
    cli.prompt(&uuid(2), "hello");
    let finished = cli.finished();
    assert_eq!(finished.prompts, [uuid(2).to_string()]);
    assert_eq!(judge(&finished.result), Verdict::Failed { reason: Reason::UnknownSession });
    assert_eq!(cli.end(), (Exit::Code(1), true));
    assert!(model.requests().is_empty());
}

#[test]
fn a_refused_request_does_not_stop_the_turn() {
    let place = place!();
    let made = place.workspace().join("made.txt");
    let write = Reply::tool("Write", &format!("{{\"file_path\":{made:?},\"content\":\"x\"}}"));
    let model = Model::start(vec![write, Reply::text("done")]);
    let launch = Launch {
        permission_mode: PermissionMode::Default,
        permission_prompts: PermissionPrompts::Driver,
        ..Launch::new(SessionMode::New(uuid(1)))
    };
    let mut cli = Cli::start(&place, &model, &launch);
    cli.prompt(&uuid(2), "write");
    let Some(Action::Write(refusal)) = cli.next_action() else { panic!("the CLI asks") };
    cli.write(&refusal);
    let finished = cli.finished();
    assert_eq!(judge(&finished.result), Verdict::Succeeded);
    assert_eq!(finished.result.permission_denials.len(), 1);
    assert_eq!(cli.end(), (Exit::Code(0), true));
    assert!(!made.exists());
}

/// Waits until a process has these words on its command line.
fn wait_for_process(words: &str) {
    let runs = || {
        let lines = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        lines
            .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
            .any(|line| String::from_utf8_lossy(&line).replace('\0', " ").contains(words))
    };
    let start = std::time::Instant::now();
    while !runs() {
        assert!(start.elapsed() < TOOL_START, "no process has \"{words}\" on its command line");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn an_interrupted_session_goes_on_until_it_is_ended() {
    let place = place!();
    let empty = place.workspace().join("empty");
    std::fs::write(&empty, "").unwrap();
    let command = format!("tail -f {}", empty.display());
    let endless = Reply::tool("Bash", &format!("{{\"command\":{command:?},\"description\":\"wait\"}}"));
    let model = Model::start(vec![endless, Reply::text("after")]);
    let launch = Launch { allowed_tools: texts(&["Bash(tail:*)"]), ..Launch::new(SessionMode::New(uuid(1))) };
    let mut cli = Cli::start(&place, &model, &launch);
    cli.prompt(&uuid(2), "wait");
    cli.until(|line| matches!(line, Line::Assistant(_)));
    // The line comes before the tool is started, and until then there is nothing to interrupt.
    wait_for_process(&command);
    cli.write(&interrupt("i1"));
    let finished = cli.finished();
    assert_eq!(judge(&finished.result), Verdict::Cancelled);
    assert_eq!(finished.prompts, [uuid(2).to_string()]);
    cli.prompt(&uuid(3), "go on");
    assert_eq!(judge(&cli.finished().result), Verdict::Succeeded);
    cli.write(&end_session("e1"));
    assert_eq!(cli.wait(), (Exit::Code(0), true));
    assert!(cli.lines.iter().any(|line| matches!(line, Line::ControlResponse(r) if r.request_id == "e1")));
}
