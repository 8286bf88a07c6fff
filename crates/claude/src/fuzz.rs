//! What the fuzz target calls: what must hold whatever the agent prints.

use crate::limits::{AWAITING_MAX, STDERR_BYTES_MAX};
use crate::{Action, Conversation, Ending, Exit, Line, Reason, Uuid, Verdict, conclude, judge, parse};

/// Lines of the agent's stream-json, as the driver takes them in: each is some line, what is to be written to the agent is one
/// line of JSON, each prompt is settled at most once, and only a result says that something succeeded.
///
/// # Panics
/// A find.
pub fn agent_lines(data: &[u8]) {
    let mut conversation = Conversation::new(&["can_use_tool"]);
    let prompt = Uuid::parse("00000000-0000-4000-8000-000000000001").expect("it is one");
    conversation.prompt_sent(&prompt).expect("it is the first");
    let mut settled = 0;
    let mut last = None;
    for bytes in data.split(|byte| *byte == b'\n') {
        let line = parse(bytes);
        assert!(!line.is_delta() || matches!(line, Line::StreamDelta(_)));
        match conversation.observe(&line) {
            Some(Action::Write(text)) => one_line(&text),
            Some(Action::Finished(finished)) => {
                settled += finished.prompts.iter().filter(|settles| *settles == prompt.as_str()).count();
                let succeeded = judge(&finished.result) == Verdict::Succeeded;
                assert!(!succeeded || !finished.result.is_error, "{:?}", finished.result);
                last = Some(finished.result);
            }
            Some(Action::Unanswered { .. }) => settled += 1,
            Some(Action::Answer(_) | Action::Withdrawn { .. }) | None => {}
        }
        assert!(conversation.awaiting().len() <= AWAITING_MAX);
    }
    assert!(settled <= 1, "a prompt was settled {settled} times");
    conversation.refuse_awaiting().iter().for_each(|text| one_line(text));
    ended(last.as_deref(), data, conversation.spoke());
}

fn one_line(text: &str) {
    let line = text.strip_suffix('\n').unwrap_or(text);
    assert!(!line.contains('\n') && serde_json::from_str::<serde_json::Value>(line).is_ok(), "{text:?}");
}

/// A process that ended without a result never succeeded, whatever it wrote to its standard error.
fn ended(result: Option<&crate::ResultLine>, data: &[u8], spoke: bool) {
    let stderr = String::from_utf8_lossy(data);
    for exit in [Exit::Code(0), Exit::Code(1), Exit::Code(143), Exit::Signal(9)] {
        let ending = Ending { result, exit, spoke, stderr: &stderr };
        let verdict = conclude(&ending);
        assert!(result.is_some() || verdict != Verdict::Succeeded);
        if let Verdict::Failed { reason: Reason::Start { stderr } | Reason::Exited { stderr, .. } } = verdict
        {
            assert!(stderr.len() <= STDERR_BYTES_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seeds of `make fuzz`, so that the target stays true without it.
    #[test]
    fn the_target_takes_its_seeds() {
        let seeds = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/agent_lines"));
        let taken = seeds.unwrap().map(|file| agent_lines(&std::fs::read(file.unwrap().path()).unwrap()));
        assert!(taken.count() > 0);
        agent_lines(&[]);
    }
}
