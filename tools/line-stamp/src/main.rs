//! Stands before the agent where the way of its lines to a client is measured: it starts the program `claude-itself` beside it with the
//! same arguments, and adds to each line that comes the moment at which it came, as `stamp_ns` in Unix nanoseconds.
//!
//! The agent has a stamp of its own on some lines, which says when it made a message. It prints that some time later, longer the
//! more the machine has to do, and that is not the service's time.

use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

/// The agent's file, beside this one.
const AGENT: &str = "claude-itself";
/// Exit code where the agent cannot be started or read.
const FAILED: u8 = 125;
/// Added to the number of the signal that ended the agent, as shells do.
const SIGNALED: i32 = 128;

fn main() -> ExitCode {
    match run() {
        Ok(status) => {
            let code = status.code().unwrap_or_else(|| SIGNALED + status.signal().unwrap_or(0));
            ExitCode::from(u8::try_from(code).unwrap_or(FAILED))
        }
        Err(error) => {
            // Standard error may be closed; there is nobody else to tell.
            drop(writeln!(io::stderr(), "line-stamp: {error}"));
            ExitCode::from(FAILED)
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "it is given the agent's own arguments, and nothing else is started"
)]
fn run() -> io::Result<ExitStatus> {
    let agent = env::current_exe()?.with_file_name(AGENT);
    let mut child = Command::new(agent).args(env::args_os().skip(1)).stdout(Stdio::piped()).spawn()?;
    let lines = child.stdout.take().ok_or_else(|| io::Error::other("the agent has no output"))?;
    pass(BufReader::new(lines), io::stdout().lock())?;
    child.wait()
}

/// Passes every line on with its stamp, as soon as it is there.
fn pass(mut lines: impl BufRead, mut out: impl Write) -> io::Result<()> {
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        stamp(&mut line, now_ns());
        out.write_all(&line)?;
        out.flush()?;
        line.clear();
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the moment itself is what is wanted")]
fn now_ns() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

/// Adds the member to a JSON object that has others, and leaves everything else as it is.
fn stamp(line: &mut Vec<u8>, at_ns: u128) {
    if line.starts_with(b"{\"") && line.ends_with(b"}\n") {
        line.truncate(line.len() - 2);
        line.extend_from_slice(format!(",\"stamp_ns\":{at_ns}}}\n").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_gets_a_stamp_and_nothing_else_is_changed() {
        for (line, wanted) in [
            ("{\"a\":1}\n", "{\"a\":1,\"stamp_ns\":7}\n"),
            ("{\"a\":{}}\n", "{\"a\":{},\"stamp_ns\":7}\n"),
            ("{}\n", "{}\n"),
            ("words\n", "words\n"),
            ("{\"a\":1}", "{\"a\":1}"),
        ] {
            let mut stamped = line.as_bytes().to_vec();
            stamp(&mut stamped, 7);
            assert_eq!(String::from_utf8(stamped).unwrap(), wanted);
        }
    }

    #[test]
    fn every_line_is_passed_on_the_last_one_also_without_an_end() {
        let mut out = Vec::new();
        pass(&b"one\n{\"a\":1}\nlast"[..], &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!((lines.len(), lines[0], lines[2]), (3, "one", "last"));
        assert!(lines[1].starts_with("{\"a\":1,\"stamp_ns\":1"), "{text}");
    }
}
