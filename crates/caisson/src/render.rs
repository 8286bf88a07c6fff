//! A run as people like to watch it: one line per thing that happened, live text as it comes.
//!
//! Everything shown comes from a sandbox or a repository, so control characters are taken out first: no output of an
//! agent can move the cursor or change a title.

use caisson_domain::checks::{Check, stands};
use serde_json::Value;

use crate::asked;
use crate::checks;
use crate::client::{EventInfo, Followed};
use crate::told::Told;

/// Longest tool argument or result shown on one line, in characters.
const PREVIEW_CHARS: usize = 100;
/// Longest part of what an agent asks to give to a tool that is shown on one line, in characters.
const ASKED_CHARS: usize = 200;
/// What stands before the second and every further line of a text, as wide as time and mark.
const INDENT: &str = "           ";

/// Turns what happens in a run into lines for a terminal.
#[derive(Debug)]
pub(crate) struct Account {
    started_at_ms: Option<i64>,
    colour: bool,
    /// Live text behind which the cursor stands; none at the start of a line.
    live: Option<String>,
    told: Told,
    cost_micro_usd: i64,
    calls: i64,
}

impl Account {
    /// An account that uses colours or not.
    #[must_use]
    pub(crate) fn new(colour: bool) -> Self {
        Self { started_at_ms: None, colour, live: None, told: Told::default(), cost_micro_usd: 0, calls: 0 }
    }

    /// The text to print for the next thing that happened; empty when there is nothing to show.
    pub(crate) fn tell(&mut self, followed: &Followed) -> String {
        match followed {
            Followed::Delta(live) if live.kind == "text" && !self.told.has(live) => self.delta(&live.text),
            Followed::Delta(_) => String::new(),
            Followed::Event(event) => self.event(event),
        }
    }

    /// Whether the cursor stands behind live text, in the middle of a line.
    #[must_use]
    pub(crate) const fn is_within_a_line(&self) -> bool {
        self.live.is_some()
    }

    /// What the model calls told of so far have cost, in micro-USD.
    #[must_use]
    pub(crate) const fn cost_micro_usd(&self) -> i64 {
        self.cost_micro_usd
    }

    fn delta(&mut self, text: &str) -> String {
        let text = clean(text);
        let shown = indent(self.live.as_deref().unwrap_or("\n"), &text);
        self.live.get_or_insert_default().push_str(&text);
        shown
    }

    fn event(&mut self, event: &EventInfo) -> String {
        let start = *self.started_at_ms.get_or_insert(event.at_ms);
        self.told.note(&event.data);
        let mut lines = self.lines(event);
        if lines.is_empty() {
            return String::new();
        }
        let mut out = String::new();
        if let Some(live) = self.live.take() {
            // Live text is lossy; its event has all of it.
            let whole = lines.first().filter(|(sign, _)| *sign == Sign::Said).map(|(_, text)| text.clone());
            if let Some(rest) = whole.as_deref().and_then(|whole| whole.strip_prefix(live.as_str())) {
                out.push_str(&indent(&live, rest));
                lines.remove(0);
            }
            out.push('\n');
        }
        let elapsed_ms = (event.at_ms - start).max(0);
        let (seconds, tenths) = (elapsed_ms / 1000, elapsed_ms % 1000 / 100);
        for (sign, line) in lines {
            let time = self.paint("2", &format!("{seconds:>5}.{tenths}s"));
            let mark = self.paint(sign.colour(), sign.mark());
            out.extend([time.as_str(), "  ", &mark, " ", &indent("", &line), "\n"]);
        }
        out
    }

    fn lines(&mut self, event: &EventInfo) -> Vec<(Sign, String)> {
        let data = &event.data;
        let one = |sign, text: String| vec![(sign, text)];
        match event.kind.as_str() {
            "run.queued" => one(Sign::Step, format!("queued ({})", text(data, "workflow"))),
            "run.requeued" => one(Sign::Warn, format!("back in the queue: {}", text(data, "reason"))),
            "run.phase" => one(Sign::Step, format!("phase {}", text(data, "phase"))),
            "run.budget_soft" => one(Sign::Warn, budget_soft(data)),
            "run.stop_requested" => one(Sign::Warn, format!("told to stop: {}", text(data, "reason"))),
            "sandbox.started" => sandbox_lines(data),
            "sandbox.kept" => {
                let seconds = data["keep_alive_s"].as_u64().unwrap_or_default();
                one(Sign::Step, format!("sandbox waits {seconds} s for a follow-up"))
            }
            "sandbox.reused" => one(Sign::Step, "sandbox of the run before goes on".to_owned()),
            "sandbox.exited" => one(Sign::Warn, sandbox_exited(data)),
            "workspace.prepared" => one(Sign::Step, prepared(data)),
            "workspace.steered" => steered(data),
            "agent.line" => agent_lines(data),
            "git.commit" => one(
                Sign::Good,
                format!("commit {} {}", short(&text(data, "commit")), first_line(&text(data, "message"))),
            ),
            "git.push" if data["ok"] == Value::Bool(true) => {
                one(Sign::Good, format!("pushed {} to {}", short(&text(data, "new")), text(data, "ref")))
            }
            "git.push" => one(Sign::Bad, format!("push refused: {}", text(data, "message"))),
            "gateway.denied" => one(Sign::Bad, gateway_denied(data) + &more(data)),
            "mcp.denied" => one(Sign::Bad, mcp_denied(data)),
            "egress.denied" => one(Sign::Bad, denied(data)),
            "gateway.upstream_failed" => {
                one(Sign::Bad, format!("upstream failed: {}{}", upstream_failed(data), more(data)))
            }
            "input.accepted" | "input.undelivered" | "approval.requested" | "approval.answered" => {
                said(&event.kind, data)
            }
            "note" => one(Sign::Warn, text(data, "message")),
            "model.call" => {
                self.calls += 1;
                self.cost_micro_usd += data["cost_micro_usd"].as_i64().unwrap_or(0);
                Vec::new()
            }
            "run.finished" => checked(data).chain(self.finished(data)).collect(),
            _ => Vec::new(),
        }
    }

    fn finished(&self, data: &Value) -> Vec<(Sign, String)> {
        let status = text(data, "status");
        let plural = if self.calls == 1 { "" } else { "s" };
        let cost = format!("{} model call{plural}, {}", self.calls, dollars(self.cost_micro_usd));
        match data["failure"].as_object() {
            Some(failure) => {
                let kind = failure.get("kind").and_then(Value::as_str).unwrap_or("unknown");
                let message = failure.get("message").and_then(Value::as_str).unwrap_or_default();
                vec![(Sign::Bad, format!("{status}: {kind}: {}\n{cost}", clean(message)))]
            }
            None if status == "succeeded" => vec![(Sign::Good, format!("{status} ({cost})"))],
            None => vec![(Sign::Warn, format!("{status} ({cost})"))],
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// How the repository's checks ended.
fn checked(data: &Value) -> impl Iterator<Item = (Sign, String)> {
    let results = data["checks"].as_array().map(Vec::as_slice).unwrap_or_default();
    results.iter().map(|check| {
        let sign = if checks::passed(check) { Sign::Good } else { Sign::Bad };
        (sign, format!("check {}", checks::line(check)))
    })
}

/// The mark before a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    Step,
    Tool,
    Said,
    Good,
    Warn,
    Bad,
}

impl Sign {
    const fn mark(self) -> &'static str {
        match self {
            Self::Step => "·",
            Self::Tool => ">",
            Self::Said => "|",
            Self::Good => "+",
            Self::Warn => "!",
            Self::Bad => "x",
        }
    }

    const fn colour(self) -> &'static str {
        match self {
            Self::Step => "2",
            Self::Tool => "36",
            Self::Said => "0",
            Self::Good => "32",
            Self::Warn => "33",
            Self::Bad => "31",
        }
    }
}

/// What people and the agent say to one another.
fn said(kind: &str, data: &Value) -> Vec<(Sign, String)> {
    let said = match kind {
        "input.accepted" => format!("told to ({}): {}", text(data, "kind"), first_line(&text(data, "text"))),
        "input.undelivered" => format!("input {} came too late for the agent", data["input"]),
        "approval.requested" => {
            let cut_bytes = data["cut_bytes"].as_i64().unwrap_or(0);
            let input = asked::beginning(&data["input"], cut_bytes, ASKED_CHARS);
            format!(
                "asks to use {}: {input} (caisson approvals RUN shows all of it; then approve or deny)",
                text(data, "tool")
            )
        }
        _ => format!("{} is {}", text(data, "tool"), text(data, "state")),
    };
    vec![(Sign::Warn, said)]
}

/// By what it runs, and what of its walls and limits is weaker than it could be.
fn sandbox_lines(data: &Value) -> Vec<(Sign, String)> {
    let engine = if data["image"].is_string() { text(data, "image") } else { text(data, "engine") };
    let weaknesses = data["weaknesses"].as_array().into_iter().flatten().filter_map(Value::as_str);
    std::iter::once((Sign::Step, format!("sandbox runs ({engine})")))
        .chain(
            weaknesses.map(|weakness| (Sign::Warn, format!("weaker than it could be: {}", clean(weakness)))),
        )
        .collect()
}

/// The branch that is worked on, and what it begins with.
fn prepared(data: &Value) -> String {
    let Some(branch) = data["branch"].as_str().map(clean) else { return "empty workspace".to_owned() };
    match short(&text(data, "base_commit")) {
        "" => format!("branch {branch}, the first of the repository"),
        commit => format!("branch {branch} from {commit}"),
    }
}

/// Whose files steer the agent, and how many of the branch's do not.
fn steered(data: &Value) -> Vec<(Sign, String)> {
    let anchor = data["anchor"].as_str().map_or_else(|| "the default branch".to_owned(), clean);
    let commit = text(data, "commit");
    let replaced = data["replaced_count"].as_u64().unwrap_or_default();
    let steered = (Sign::Step, format!("steered by {anchor} at {}", short(&commit)));
    let first = data["replaced"][0].as_str().map(clean).unwrap_or_default();
    let other = (replaced > 0).then(|| {
        (Sign::Warn, format!("the branch has {replaced} such files of its own that do not steer: {first}, …"))
    });
    std::iter::once(steered).chain(other).collect()
}

/// What was denied, and what would allow it.
fn denied(data: &Value) -> String {
    let port = data["port"].as_u64().map(|port| format!(":{port}")).unwrap_or_default();
    let count = data["count"].as_u64().filter(|count| *count > 1);
    let times = count.map(|count| format!(" ({count} times)")).unwrap_or_default();
    let rule = data["rule"].as_str().map(|rule| format!("; {} = \"{}\"", text(data, "setting"), clean(rule)));
    let rule = rule.unwrap_or_default();
    // What is told by its count alone has no host.
    let host = if data["host"].is_null() { "others".to_owned() } else { text(data, "host") };
    format!("denied the way to {host}{port}: {}{rule}{times}", text(data, "reason"))
}

/// A request to an MCP server that was refused.
fn mcp_denied(data: &Value) -> String {
    let rule = data["rule"].as_str().map(|rule| format!("; {} = \"{}\"", text(data, "setting"), clean(rule)));
    format!(
        "denied the MCP server {}: {}{}",
        text(data, "server"),
        text(data, "reason"),
        rule.unwrap_or_default()
    )
}

/// How a sandbox ended by itself or was killed, and what that means for the work in it.
fn sandbox_exited(data: &Value) -> String {
    let ended =
        if data["killed"] == true { "the sandbox did not stop and was killed" } else { "the sandbox ended" };
    match data["message"].as_str() {
        Some(message) => format!("{ended}: {}", clean(message)),
        None => ended.to_owned(),
    }
}

/// A git host's failure comes with a sentence, the model API's with a kind alone.
fn upstream_failed(data: &Value) -> String {
    match data["message"].as_str() {
        Some(message) => clean(message),
        None => format!("{} ({})", text(data, "upstream"), text(data, "kind")),
    }
}

/// What a line of the agent's own output says to a person.
fn agent_lines(line: &Value) -> Vec<(Sign, String)> {
    let blocks = line["message"]["content"].as_array().map(Vec::as_slice).unwrap_or_default();
    match line["type"].as_str() {
        Some("assistant") => blocks
            .iter()
            .filter_map(|block| match block["type"].as_str() {
                Some("text") => Some((Sign::Said, text(block, "text"))),
                Some("tool_use") => Some((Sign::Tool, tool_line(block))),
                Some(_) | None => None,
            })
            .collect(),
        Some("user") => blocks
            .iter()
            .filter(|block| block["type"] == "tool_result")
            // A command's output is worth a line; what was read or written is not.
            .filter(|block| {
                block["is_error"] == Value::Bool(true) || line["tool_use_result"]["stdout"].is_string()
            })
            .map(|block| {
                let sign = if block["is_error"] == Value::Bool(true) { Sign::Bad } else { Sign::Good };
                (sign, preview(&result_text(&block["content"])))
            })
            .collect(),
        Some("system") if line["subtype"] == "api_retry" => {
            let attempt = line["attempt"].as_i64().unwrap_or(0);
            vec![(Sign::Warn, format!("the model API failed; retry {attempt}"))]
        }
        Some(_) | None => Vec::new(),
    }
}

fn tool_line(block: &Value) -> String {
    let input = &block["input"];
    let argument = ["command", "file_path", "pattern", "path", "description", "prompt"]
        .iter()
        .find_map(|name| input[*name].as_str())
        .unwrap_or_default();
    format!("{} {}", text(block, "name"), preview(argument))
}

fn result_text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => blocks.iter().filter_map(|block| block["text"].as_str()).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => String::new(),
    }
}

/// The last line that has something in it: of a test run it is the verdict.
fn preview(text: &str) -> String {
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("(no output)");
    let mut short: String = clean(line).chars().take(PREVIEW_CHARS).collect();
    if line.chars().count() > PREVIEW_CHARS {
        short.push('…');
    }
    short
}

/// Sets every line of `text` but the one that `before` began under the first one; an empty line stays empty.
fn indent(before: &str, text: &str) -> String {
    let mut out = String::new();
    let mut at_start = before.ends_with('\n');
    for c in text.chars() {
        if at_start && c != '\n' {
            out.push_str(INDENT);
        }
        out.push(c);
        at_start = c == '\n';
    }
    out
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn short(commit: &str) -> &str {
    commit.get(..10).unwrap_or(commit)
}

fn text(value: &Value, field: &str) -> String {
    clean(value[field].as_str().unwrap_or_default())
}

/// Takes out every control character but line feeds and tabs, and what turns or hides text.
#[must_use]
pub(crate) fn clean(text: &str) -> String {
    if !stands(Check::PrintedText) {
        return text.to_owned();
    }
    text.chars().filter(|c| matches!(c, '\n' | '\t') || !(c.is_control() || is_invisible(*c))).collect()
}

/// Marks of direction and width that can make a line read as something else (Unicode category Cf).
const fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
    )
}

/// JSON in which characters that a terminal acts upon, or that make a line read as something else, are written as `\u`
/// escapes: those that JSON itself lets through. They stand within texts alone, so the document means the same.
#[must_use]
pub(crate) fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut units = [0; 2];
    for c in json.chars() {
        if matches!(c, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}') || is_invisible(c) {
            for unit in c.encode_utf16(&mut units) {
                out.extend(["\\u", &format!("{unit:04x}")]);
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// As [`escaped`], over several lines.
#[must_use]
pub(crate) fn pretty(document: &Value) -> String {
    escaped(&format!("{document:#}"))
}

/// A time for people: UTC, to the second, as RFC 3339 has it.
#[must_use]
pub(crate) fn utc(at_ms: i64) -> String {
    let seconds = at_ms.div_euclid(1000);
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // From days to a date in the Gregorian calendar: H. Hinnant, "chrono-compatible low-level date algorithms".
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// A budget has no remedy of its own: the run's failure says it.
fn gateway_denied(data: &Value) -> String {
    let what = text(data, "what");
    let why = match (data["remedy"].as_str(), data["budget_micro_usd"].as_i64()) {
        (Some(remedy), _) => clean(remedy),
        (None, Some(budget)) => {
            let amount = |name: &str| dollars(data[name].as_i64().unwrap_or(0));
            format!(
                "the budget of {} ({}) has no room: {} is spent, other calls hold {}, this one needs {}",
                dollars(budget),
                text(data, "scope"),
                amount("spent_micro_usd"),
                amount("reserved_micro_usd"),
                amount("needed_micro_usd")
            )
        }
        (None, None) => text(data, "rule"),
    };
    format!("denied {what}: {why}")
}

/// How often it came again, where that is told.
fn more(data: &Value) -> String {
    data["count"].as_u64().map_or_else(String::new, |count| format!(" ({count} more)"))
}

/// Of which budget the agent was told.
fn budget_soft(data: &Value) -> String {
    let number = |name: &str| data[name].as_i64().unwrap_or_default();
    let used = number("spent_micro_usd").saturating_add(number("under_way_micro_usd"));
    let whose = match data["scope"].as_str() {
        Some("day") => "the project's budget of this day",
        Some("project") => "the project's budget",
        _ => "the run's budget",
    };
    format!(
        "told to wrap up: {} of {} of {whose} are used",
        dollars(used),
        dollars(number("budget_micro_usd"))
    )
}

/// Micro-USD for people.
#[must_use]
pub(crate) fn dollars(micro_usd: i64) -> String {
    format!("${}.{:04}", micro_usd / 1_000_000, micro_usd % 1_000_000 / 100)
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
