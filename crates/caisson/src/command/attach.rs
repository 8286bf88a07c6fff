//! `caisson attach`: a live run is followed, and what is typed is told to its agent.

use std::collections::BTreeSet;
use std::io::{BufRead, IsTerminal, Read};
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::bail;
use caisson_domain::run::cut;
use serde_json::{Value, json};
use tokio::sync::mpsc::{Receiver, channel};
use tokio_util::sync::CancellationToken;

use super::submit::{Shown, summarise};
use super::{DETACHED, DONE, INPUTS_UNSENT, client, complain, exit_code, terminal};
use crate::cli::{Attach, HELP, Typed};
use crate::client::{Client, Followed, Refused};
use crate::screen::Terminal;

/// Longest line that is read, in bytes; what is longer is not sent.
const LINE_BYTES: u64 = 64 * 1024;
/// Lines that wait to be sent; then nothing more is read.
const LINES: usize = 16;
/// Pause before an input is sent again to a server that did not answer.
const AGAIN: Duration = Duration::from_secs(2);
/// Longest pause before an input is sent again, whatever the server says.
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// How long a pipe is read on when the run is over, for what was not sent of it.
const REST: Duration = Duration::from_millis(200);
/// Lines told one by one that were not sent; of further ones only how many.
const UNSENT_LINES: usize = 20;
/// How much of each is told, in bytes.
const UNSENT_BYTES: usize = 200;

/// Follows and tells.
///
/// # Errors
/// The server refuses, or is not there, or the run has ended.
pub(crate) async fn run(flags: Attach) -> anyhow::Result<u8> {
    let client = client(&flags.client)?;
    let id = client.find_live_run(flags.run.as_deref()).await?;
    let run = client.run(&id).await?;
    if run.is_final() {
        bail!(
            "run {id} has ended as {}, so that nothing can be told to it; see it with: caisson logs {id}",
            run.status
        );
    }
    let (json, piped) = (flags.client.json, !std::io::stdin().is_terminal());
    if !json && !piped {
        complain(&format!(
            "attached to run {id}; what you type is told to its agent, /help tells more, Ctrl-C detaches"
        ));
    }
    let (ended, lost) = match talk(&client, &id, json).await? {
        Left::Over(ended, lost) => (ended, lost),
        Left::Detached => {
            complain(&format!(
                "\ndetached; the run goes on. Come back with: caisson attach {id}\nEnd it with:    caisson cancel {id}"
            ));
            return Ok(DETACHED);
        }
    };
    for told in &lost {
        complain(told);
    }
    ended?;
    let run = client.run(&id).await?;
    if !json {
        summarise(&client, &run).await;
    }
    // Who types has been told, line by line; whoever wrote into a pipe reads the code.
    let lost = piped && !lost.is_empty();
    Ok(match exit_code(&run.status) {
        DONE if lost => INPUTS_UNSENT,
        code => code,
    })
}

/// How following ended.
enum Left {
    /// Somebody left; the run goes on.
    Detached,
    /// The run is over, or cannot be followed any more; and what never reached the agent, for people.
    Over(anyhow::Result<()>, Vec<String>),
}

/// Follows and tells, until the run is over or somebody leaves.
async fn talk(client: &Client, id: &str, json: bool) -> anyhow::Result<Left> {
    // A line that tells the time would write over what is being typed.
    let shown = Shown::new(json, Terminal { status_line: false, ..terminal() });
    let over = CancellationToken::new();
    let late = Mutex::new(BTreeSet::new());
    let mut followed = pin!(client.follow(id, 0, |followed| {
        late.lock().unwrap_or_else(PoisonError::into_inner).extend(came_too_late(followed));
        shown.show(followed);
    }));
    let mut interrupted = pin!(tokio::signal::ctrl_c());
    let mut typed = pin!(tell(client, id, typed_lines(), &over));
    let mut account = None;
    let ended = loop {
        tokio::select! {
            ended = &mut followed => break ended,
            interrupted = &mut interrupted => {
                interrupted?;
                return Ok(Left::Detached);
            }
            told = &mut typed, if account.is_none() => match told {
                Told::Detached => return Ok(Left::Detached),
                // The run is followed to its end all the same.
                Told::Everything(told) => account = Some(told),
            },
        }
    };
    over.cancel();
    let account = match account {
        Some(account) => account,
        // What is being sent has its answer waited for, so that it is known whether it was.
        None => match typed.await {
            Told::Everything(account) => account,
            Told::Detached => Account::default(),
        },
    };
    let late = late.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Left::Over(ended, account.lost(&late)))
}

/// The number of an input that the run ended without giving to its agent.
fn came_too_late(followed: &Followed) -> Option<i64> {
    match followed {
        Followed::Event(event) if event.kind == "input.undelivered" => event.data["input"].as_i64(),
        Followed::Event(_) | Followed::Delta(_) => None,
    }
}

/// Why no more is told.
enum Told {
    Detached,
    /// There is nothing more, or nobody to tell it; and what became of it.
    Everything(Account),
}

/// What became of what was given.
#[derive(Debug, Default)]
struct Account {
    unsent: Lines,
    /// What the server has taken, with its number there; it takes few in a run.
    sent: Vec<(i64, String)>,
}

impl Account {
    /// What never reached the agent, for people: `late` has the numbers of what came too late for it.
    fn lost(self, late: &BTreeSet<i64>) -> Vec<String> {
        let mut undelivered = Lines::default();
        for (_, line) in self.sent.iter().filter(|(number, _)| late.contains(number)) {
            undelivered.add(line);
        }
        let told = [
            self.unsent.told("not sent to the agent"),
            undelivered.told("sent, but not delivered to the agent before the run ended"),
        ];
        told.into_iter().flatten().collect()
    }
}

/// Lines that are told of, up to a bound.
#[derive(Debug, Default)]
struct Lines {
    lines: Vec<String>,
    more: usize,
}

impl Lines {
    fn add(&mut self, line: &str) {
        if self.lines.len() == UNSENT_LINES {
            self.more += 1;
            return;
        }
        let line = line.trim();
        let kept = cut(line, UNSENT_BYTES);
        let end = if kept.len() < line.len() { " …" } else { "" };
        self.lines.push(format!("\n  {kept}{end}"));
    }

    /// For people; none if there are none.
    fn told(&self, what: &str) -> Option<String> {
        let told = format!("{what} ({}):{}", self.lines.len() + self.more, self.lines.concat());
        match (self.lines.is_empty(), self.more) {
            (true, _) => None,
            (false, 0) => Some(told),
            (false, more) => Some(format!("{told}\n  and {more} more")),
        }
    }
}

/// Sends what is typed, line by line, in order, until there is no more or the run is over. A refusal is told, and the next
/// line is read.
async fn tell(client: &Client, id: &str, mut lines: Receiver<Line>, over: &CancellationToken) -> Told {
    let Account { mut unsent, mut sent } = Account::default();
    while let Some(line) = next(&mut lines, over).await {
        let text = line.text();
        let refused = match read(&line) {
            Typed::Nothing => continue,
            Typed::Detach => return Told::Detached,
            Typed::Help => {
                complain(HELP);
                continue;
            }
            Typed::Wrong(what) => what,
            Typed::Input(kind, text) => match send(client, id, (kind, text), over).await {
                Ok(number) => {
                    complain(&format!("sent ({kind})"));
                    sent.push((number, cut(line.text(), UNSENT_BYTES + 1).to_owned()));
                    continue;
                }
                Err(why) => why,
            },
        };
        complain(&format!("not sent: {refused}"));
        unsent.add(text);
    }
    if over.is_cancelled() {
        let rest = async {
            while let Some(line) = lines.recv().await {
                match read(&line) {
                    Typed::Nothing | Typed::Help => {}
                    Typed::Detach => return,
                    Typed::Wrong(_) | Typed::Input(..) => unsent.add(line.text()),
                }
            }
        };
        tokio::time::timeout(REST, rest).await.ok();
    }
    Told::Everything(Account { unsent, sent })
}

/// The next line; none if there is no more, or the run is over.
async fn next(lines: &mut Receiver<Line>, over: &CancellationToken) -> Option<Line> {
    tokio::select! {
        biased;
        () = over.cancelled() => None,
        line = lines.recv() => line,
    }
}

fn read(line: &Line) -> Typed {
    match line {
        Line::Text(text) => Typed::read(text),
        Line::TooLong => Typed::Wrong(format!("a line has {LINE_BYTES} bytes at most")),
    }
}

/// Sends an input, and gives its number; again where the server has no room for it yet, or did not answer, for as long as the run goes on. The
/// same key each time makes sure that it is sent once.
///
/// # Errors
/// Why it was not sent.
async fn send(
    client: &Client,
    id: &str,
    (kind, text): (&'static str, Option<String>),
    over: &CancellationToken,
) -> Result<i64, String> {
    let key = hex::encode(rand::random::<[u8; 16]>());
    let mut body = json!({ "kind": kind });
    if let Some(text) = text {
        body["text"] = Value::from(text);
    }
    let mut waits = false;
    loop {
        let error = match client.send_input(id, &body, Some(&key)).await {
            Ok(sent) => return Ok(sent["seq"].as_i64().unwrap_or_default()),
            Err(error) => error,
        };
        let Some(pause) = pause(&error) else { return Err(format!("{error:#}")) };
        if !waits {
            complain(&format!("not sent yet, and tried again: {error:#}"));
            waits = true;
        }
        tokio::select! {
            () = over.cancelled() => return Err("the run is over".to_owned()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// How long to wait before an input is sent again; none if that changes nothing.
fn pause(error: &anyhow::Error) -> Option<Duration> {
    match error.downcast_ref::<Refused>() {
        Some(refused) => refused.retry_after().map(|pause| pause.min(AGAIN_MAX)),
        None => Some(AGAIN),
    }
}

/// A line of standard input.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Text(String),
    TooLong,
}

impl Line {
    /// As it is told of.
    fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::TooLong => "(a line that is too long)",
        }
    }
}

/// Standard input, line by line. It is read by a thread of its own, which nobody waits for: a read of a terminal cannot be
/// broken off.
fn typed_lines() -> Receiver<Line> {
    let (sender, receiver) = channel(LINES);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        while let Some(line) = next_line(&mut input) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The next line; none at the end, or where nothing can be read.
fn next_line(input: &mut impl BufRead) -> Option<Line> {
    let mut line = Vec::new();
    let read = input.by_ref().take(LINE_BYTES + 1).read_until(b'\n', &mut line).ok()?;
    if read == 0 {
        return None;
    }
    if line.last() != Some(&b'\n') && read as u64 > LINE_BYTES {
        skip_line(input)?;
        return Some(Line::TooLong);
    }
    Some(Line::Text(String::from_utf8_lossy(&line).into_owned()))
}

/// Reads to the line's end and keeps nothing of it.
fn skip_line(input: &mut impl BufRead) -> Option<()> {
    loop {
        let buffer = input.fill_buf().ok()?;
        if buffer.is_empty() {
            return Some(());
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let read = end.map_or(buffer.len(), |end| end + 1);
        input.consume(read);
        if end.is_some() {
            return Some(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_sent_is_told_up_to_its_bounds() {
        let mut unsent = Lines::default();
        let told = |unsent: &Lines| unsent.told("not sent to the agent");
        assert_eq!(told(&unsent), None);
        unsent.add("one\n");
        unsent.add(&"x".repeat(UNSENT_BYTES + 1));
        let cut_off = format!("  {} …", "x".repeat(UNSENT_BYTES));
        assert_eq!(told(&unsent).unwrap(), format!("not sent to the agent (2):\n  one\n{cut_off}"));
        for number in unsent.lines.len()..UNSENT_LINES {
            unsent.add(&number.to_string());
        }
        assert!(told(&unsent).unwrap().ends_with("\n  19"));
        unsent.add("another");
        assert!(told(&unsent).unwrap().starts_with("not sent to the agent (21):"));
        assert!(told(&unsent).unwrap().ends_with("\n  19\n  and 1 more"));
    }

    #[test]
    fn an_input_is_sent_again_where_that_may_help_and_soon_enough() {
        let of = |seconds| pause(&Refused::for_now(Duration::from_secs(seconds)).into());
        assert_eq!(of(1), Some(Duration::from_secs(1)));
        assert_eq!((of(30), of(86_400)), (Some(AGAIN_MAX), Some(AGAIN_MAX)));
        assert_eq!(pause(&anyhow::anyhow!("nobody answers")), Some(AGAIN));
        assert_eq!(pause(&Refused::new("no".to_owned(), None).into()), None);
    }

    #[test]
    fn lines_are_read_up_to_their_bound_and_the_next_one_is_whole() {
        let most = usize::try_from(LINE_BYTES).unwrap();
        let text = |count: usize| "x".repeat(count);
        let typed = format!("a\n{}\n{}\nb\n\nlast", text(most), text(most + 1));
        let mut input = std::io::BufReader::new(typed.as_bytes());
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut input) {
            lines.push(line);
        }
        let whole = |text: &str| Line::Text(text.to_owned());
        let expected = [
            whole("a\n"),
            whole(&format!("{}\n", text(most))),
            Line::TooLong,
            whole("b\n"),
            whole("\n"),
            whole("last"),
        ];
        assert_eq!(lines, expected);
    }
}
