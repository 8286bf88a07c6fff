//! A followed run on a terminal: its account, and below it one line that tells where the run stands. Where nobody looks, in a
//! file or behind a pipe, there is the account alone.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::{EventInfo, Followed};
use crate::render::{Account, clean, dollars};

/// To the line's start, and everything of it gone (ECMA-48, EL).
const WIPE: &str = "\r\u{1b}[2K";
/// Longest tool argument in the line, in characters.
const ARGUMENT_CHARS: usize = 40;

/// What a terminal can do that shows a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terminal {
    /// Whether it shows colours.
    pub colour: bool,
    /// Whether a line can be written over.
    pub status_line: bool,
}

/// What is shown of a run. It writes nothing itself: it answers with what is to be written.
#[derive(Debug)]
pub(crate) struct Screen {
    account: Account,
    terminal: Terminal,
    status: Status,
    /// Whether the line is on the screen, with the cursor behind it.
    drawn: bool,
}

impl Screen {
    /// An empty one.
    pub(crate) fn new(terminal: Terminal) -> Self {
        Self { account: Account::new(terminal.colour), terminal, status: Status::default(), drawn: false }
    }

    /// What to write for the next thing that happened; `columns` is the terminal's width.
    pub(crate) fn show(&mut self, followed: &Followed, now: Instant, columns: usize) -> String {
        if let Followed::Event(event) = followed {
            self.status.observe(event, now);
        }
        let told = self.account.tell(followed);
        if !self.terminal.status_line {
            return told;
        }
        // Live text goes on where it stopped.
        let wiped = if told.is_empty() { String::new() } else { self.end() };
        format!("{wiped}{told}{}", self.tick(now, columns))
    }

    /// What to write when time has passed.
    pub(crate) fn tick(&mut self, now: Instant, columns: usize) -> String {
        // Not in the middle of a line of the account.
        if !self.terminal.status_line || self.account.is_within_a_line() || self.status.ended {
            return String::new();
        }
        let wiped = self.end();
        self.drawn = true;
        // The last column stays free: some terminals begin a new line there.
        let text: String =
            self.status.line(now, &self.account).chars().take(columns.saturating_sub(1)).collect();
        let text = if self.terminal.colour { format!("\u{1b}[2m{text}\u{1b}[0m") } else { text };
        format!("{wiped}{text}")
    }

    /// What to write when nothing more comes, or something else is to be written.
    pub(crate) fn end(&mut self) -> String {
        if std::mem::take(&mut self.drawn) { WIPE.to_owned() } else { String::new() }
    }
}

/// Where a run stands, by its events.
#[derive(Debug, Default)]
struct Status {
    phase: Option<String>,
    tool: Option<String>,
    turns: u32,
    /// The model's message that was counted last: each comes in several lines.
    message: Option<String>,
    started_at_ms: Option<i64>,
    last: Option<(i64, Instant)>,
    ended: bool,
}

impl Status {
    fn observe(&mut self, event: &EventInfo, now: Instant) {
        self.started_at_ms.get_or_insert(event.at_ms);
        self.last = Some((event.at_ms, now));
        let data = &event.data;
        match event.kind.as_str() {
            "run.queued" | "run.requeued" => self.enter("queued"),
            "run.phase" => self.enter(data["phase"].as_str().unwrap_or_default()),
            "run.stop_requested" => self.enter("stopping"),
            "run.finished" => self.ended = true,
            "agent.line" => self.agent(data),
            _ => {}
        }
    }

    fn enter(&mut self, phase: &str) {
        self.phase = Some(clean(phase));
        self.tool = None;
    }

    fn agent(&mut self, line: &Value) {
        let blocks = line["message"]["content"].as_array().map(Vec::as_slice).unwrap_or_default();
        match line["type"].as_str() {
            Some("assistant") => {
                // A subagent's turns are its own.
                let message = line["message"]["id"].as_str();
                if line["parent_tool_use_id"].is_null()
                    && (message.is_none() || message != self.message.as_deref())
                {
                    self.turns += 1;
                    self.message = message.map(str::to_owned);
                }
                if let Some(tool) = blocks.iter().rev().find(|block| block["type"] == "tool_use") {
                    self.tool = Some(named(tool));
                }
            }
            Some("user") if blocks.iter().any(|block| block["type"] == "tool_result") => self.tool = None,
            Some(_) | None => {}
        }
    }

    fn line(&self, now: Instant, account: &Account) -> String {
        let mut parts = vec![self.phase.clone().unwrap_or_else(|| "waiting".to_owned())];
        parts.extend(self.tool.clone());
        if self.turns > 0 {
            parts.push(format!("{} turn{}", self.turns, if self.turns == 1 { "" } else { "s" }));
        }
        parts.push(dollars(account.cost_micro_usd()));
        parts.push(elapsed(self.elapsed(now)));
        format!("  {}", parts.join(" · "))
    }

    /// Since the run was submitted, by the server's clock up to its last event and by ours from there.
    fn elapsed(&self, now: Instant) -> Duration {
        let (Some(start), Some((last, seen))) = (self.started_at_ms, self.last) else {
            return Duration::ZERO;
        };
        let until_last = Duration::from_millis(u64::try_from(last - start).unwrap_or(0));
        until_last + now.saturating_duration_since(seen)
    }
}

/// A tool with the beginning of what it was called with.
fn named(block: &Value) -> String {
    let name = clean(block["name"].as_str().unwrap_or_default());
    let input = &block["input"];
    let argument = ["command", "file_path", "pattern", "path", "description"]
        .iter()
        .find_map(|field| input[*field].as_str())
        .unwrap_or_default();
    let one_line = clean(argument).replace(['\n', '\t'], " ");
    let mut short: String = one_line.chars().take(ARGUMENT_CHARS).collect();
    if one_line.chars().count() > ARGUMENT_CHARS {
        short.push('…');
    }
    format!("{name} {short}").trim_end().to_owned()
}

fn elapsed(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m {seconds:02}s"),
        (hours, minutes, _) => format!("{hours}h {minutes:02}m"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LINE: Terminal = Terminal { colour: false, status_line: true };
    const COLUMNS: usize = 200;

    fn event(at_ms: i64, kind: &str, data: Value) -> Followed {
        Followed::Event(EventInfo { seq: 1, at_ms, kind: kind.to_owned(), data })
    }

    fn assistant(id: &str, content: &Value) -> Value {
        json!({"type": "assistant", "message": {"id": id, "content": [content]}})
    }

    fn tool(command: &str) -> Value {
        json!({"type": "tool_use", "name": "Bash", "input": {"command": command}})
    }

    /// What a terminal shows in its last line.
    fn last_line(written: &str) -> String {
        let line = written.rsplit('\n').next().unwrap_or_default();
        line.rsplit(WIPE).next().unwrap_or_default().to_owned()
    }

    #[test]
    fn the_line_tells_phase_tool_turns_cost_and_time() {
        let start = Instant::now();
        let mut screen = Screen::new(LINE);
        let mut show = |followed: Followed, s: u64| {
            last_line(&screen.show(&followed, start + Duration::from_secs(s), COLUMNS))
        };
        assert_eq!(
            show(event(1_000, "run.queued", json!({"workflow": "fix"})), 0),
            "  queued · $0.0000 · 0s"
        );
        assert_eq!(show(event(3_000, "run.phase", json!({"phase": "agent"})), 2), "  agent · $0.0000 · 2s");
        let call = assistant("m1", &tool("make\ttest\u{1b}[2J"));
        assert_eq!(
            show(event(4_000, "agent.line", call), 3),
            "  agent · Bash make test[2J · 1 turn · $0.0000 · 3s"
        );
        let same = assistant("m1", &json!({"type": "text", "text": "x"}));
        assert!(show(event(4_000, "agent.line", same), 3).contains(" · 1 turn · "));
        let theirs =
            json!({"type": "assistant", "parent_tool_use_id": "t", "message": {"id": "m9", "content": []}});
        assert!(show(event(4_000, "agent.line", theirs), 3).contains(" · 1 turn · "));
        show(event(4_500, "model.call", json!({"cost_micro_usd": 12_300})), 4);
        let result =
            json!({"type": "user", "message": {"content": [{"type": "tool_result", "content": "ok"}]}});
        assert_eq!(show(event(5_000, "agent.line", result), 4), "  agent · 1 turn · $0.0123 · 4s");
        let second = assistant("m2", &tool(&"x".repeat(50)));
        let long = show(event(66_000, "agent.line", second), 5);
        assert_eq!(long, format!("  agent · Bash {}… · 2 turns · $0.0123 · 1m 05s", "x".repeat(40)));
        assert_eq!(show(event(67_000, "run.finished", json!({"status": "succeeded"})), 6), "");
    }

    #[test]
    fn time_goes_on_between_events_and_the_line_is_written_over() {
        let start = Instant::now();
        let mut screen = Screen::new(LINE);
        screen.show(&event(0, "run.queued", json!({})), start, COLUMNS);
        let later = screen.tick(start + Duration::from_secs(3_725), COLUMNS);
        assert_eq!(later, format!("{WIPE}  queued · $0.0000 · 1h 02m"));
        assert_eq!((screen.end(), screen.end()), (WIPE.to_owned(), String::new()));
    }

    #[test]
    fn a_line_of_the_account_takes_the_place_of_the_line_and_live_text_is_left_alone() {
        let now = Instant::now();
        let mut screen = Screen::new(LINE);
        screen.show(&event(0, "run.queued", json!({"workflow": "fix"})), now, COLUMNS);
        let told = screen.show(&event(0, "note", json!({"message": "hm"})), now, COLUMNS);
        assert!(told.starts_with(WIPE) && told.contains("! hm\n  queued"), "{told:?}");
        let delta = |text: &str| {
            let (kind, message_id) = ("text".to_owned(), "m1".to_owned());
            Followed::Delta(crate::client::LiveText { kind, message_id, block: 0, text: text.to_owned() })
        };
        let begun = screen.show(&delta("I "), now, COLUMNS);
        assert!(begun.starts_with(WIPE) && begun.ends_with("I "), "{begun:?}");
        assert_eq!(screen.show(&delta("see"), now, COLUMNS), "see");
        assert_eq!(screen.tick(now, COLUMNS), "", "nothing is drawn into a text");
        let said = assistant("m1", &json!({"type": "text", "text": "I see"}));
        let told = screen.show(&event(0, "agent.line", said), now, COLUMNS);
        assert!(told.starts_with('\n') && told.contains("1 turn"), "{told:?}");
    }

    #[test]
    fn the_line_is_never_longer_than_the_terminal_is_wide() {
        let now = Instant::now();
        let mut screen = Screen::new(LINE);
        let call = assistant("m1", &tool(&"ü".repeat(80)));
        for columns in [1, 20, 60] {
            let told = screen.show(&event(0, "agent.line", call.clone()), now, columns);
            assert_eq!(last_line(&told).chars().count(), columns - 1, "{told:?}");
        }
    }

    #[test]
    fn where_there_is_no_line_nothing_is_written_over() {
        let now = Instant::now();
        let mut screen = Screen::new(Terminal { colour: false, status_line: false });
        let told = screen.show(&event(0, "run.phase", json!({"phase": "agent"})), now, COLUMNS)
            + &screen.tick(now, COLUMNS)
            + &screen.end();
        assert_eq!(told, "    0.0s  · phase agent\n");
    }
}
