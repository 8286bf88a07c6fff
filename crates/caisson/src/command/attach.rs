//! `caisson attach`: a live run is followed, and what is typed is told to its agent.

use std::io::{BufRead, IsTerminal, Read};
use std::pin::pin;

use anyhow::bail;
use serde_json::json;
use tokio::sync::mpsc::{Receiver, channel};

use super::submit::{Shown, summarise};
use super::{DETACHED, client, complain, exit_code, terminal};
use crate::cli::{Attach, HELP, Typed};
use crate::client::Client;
use crate::screen::Terminal;

/// Longest line that is read, in bytes; what is longer is not sent.
const LINE_BYTES: u64 = 64 * 1024;
/// Lines that wait to be sent; then nothing more is read.
const LINES: usize = 16;

/// Follows and tells.
///
/// # Errors
/// The server refuses, or is not there, or the run has ended.
pub(crate) async fn run(flags: Attach) -> anyhow::Result<u8> {
    let client = client(&flags.client)?;
    let id = client.find_run(flags.run.as_deref()).await?;
    let run = client.run(&id).await?;
    if run.is_final() {
        bail!(
            "run {id} has ended as {}, so that nothing can be told to it; see it with: caisson logs {id}",
            run.status
        );
    }
    let json = flags.client.json;
    if !json && std::io::stdin().is_terminal() {
        complain(&format!(
            "attached to run {id}; what you type is told to its agent, /help tells more, Ctrl-C detaches"
        ));
    }
    // A line that tells the time would write over what is being typed.
    let shown = Shown::new(json, Terminal { status_line: false, ..terminal() });
    let mut followed = pin!(client.follow(&id, 0, |followed| shown.show(followed)));
    let mut interrupted = pin!(tokio::signal::ctrl_c());
    let mut typed = pin!(tell(&client, &id, typed_lines()));
    let mut typing = true;
    loop {
        tokio::select! {
            ended = &mut followed => {
                ended?;
                let run = client.run(&id).await?;
                if !json {
                    summarise(&client, &run).await;
                }
                return Ok(exit_code(&run.status));
            }
            interrupted = &mut interrupted => {
                interrupted?;
                break;
            }
            left = &mut typed, if typing => match left {
                Left::Detached => break,
                // The run is followed to its end all the same.
                Left::NothingMore => typing = false,
            },
        }
    }
    complain(&format!(
        "\ndetached; the run goes on. Come back with: caisson attach {id}\nEnd it with:    caisson cancel {id}"
    ));
    Ok(DETACHED)
}

/// Why no more is told.
enum Left {
    Detached,
    NothingMore,
}

/// Sends what is typed, line by line, in order. A refusal is told, and the next line is read.
async fn tell(client: &Client, id: &str, mut lines: Receiver<Line>) -> Left {
    while let Some(line) = lines.recv().await {
        let text = match line {
            Line::Text(text) => text,
            Line::TooLong => {
                complain(&format!("a line has {LINE_BYTES} bytes at most; this one was not sent"));
                continue;
            }
        };
        match Typed::read(&text) {
            Typed::Nothing => {}
            Typed::Detach => return Left::Detached,
            Typed::Help => complain(HELP),
            Typed::Wrong(what) => complain(&what),
            Typed::Input(kind, text) => {
                let key = hex::encode(rand::random::<[u8; 16]>());
                match client.send_input(id, &json!({ "kind": kind, "text": text }), Some(&key)).await {
                    Ok(_) => complain(&format!("sent ({kind})")),
                    Err(error) => complain(&format!("not sent: {error:#}")),
                }
            }
        }
    }
    Left::NothingMore
}

/// A line of standard input.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Text(String),
    TooLong,
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
