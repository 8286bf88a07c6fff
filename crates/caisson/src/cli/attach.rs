//! `caisson attach`, as it is typed, and what is typed into it.

use clap::Args;

use super::ClientFlags;

/// Flags of `attach`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Attach {
    #[command(flatten)]
    pub client: ClientFlags,
    /// The run: its id, the last digits of it, a session's id for the run of it that is live, or nothing for the newest that is live.
    pub run: Option<String>,
}

/// What a typed line means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Typed {
    /// Nothing.
    Nothing,
    /// An input for the agent: its kind as the API has it, and its text, without which an interruption may go.
    Input(&'static str, Option<String>),
    /// To leave, and leave the run alone.
    Detach,
    /// To be told what can be typed.
    Help,
    /// Something that cannot be done; what to type instead.
    Wrong(String),
}

/// What can be typed.
pub(crate) const HELP: &str = "\
TEXT             told to the agent within its turn
/queue TEXT      told to the agent when its turn is over
/interrupt TEXT  what it does is broken off, and this is done instead
/interrupt       what it does is broken off
/detach          leave, as Ctrl-C does; the run goes on
//TEXT           a text that begins with a slash";

impl Typed {
    /// Reads a line.
    pub(crate) fn read(line: &str) -> Self {
        let line = line.trim();
        if line.is_empty() {
            return Self::Nothing;
        }
        let Some(command) = line.strip_prefix('/') else {
            return Self::input("steer", line);
        };
        if command.starts_with('/') {
            return Self::input("steer", command);
        }
        let (name, text) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let text = text.trim_start();
        match (name, text) {
            ("queue" | "steer", "") => Self::Wrong(format!("write what is to be told: /{name} TEXT")),
            ("interrupt", "") => Self::Input("interrupt", None),
            ("queue", text) => Self::input("queue", text),
            ("steer", text) => Self::input("steer", text),
            ("interrupt", text) => Self::input("interrupt", text),
            ("detach", "") => Self::Detach,
            ("help", "") => Self::Help,
            ("detach" | "help", _) => Self::Wrong(format!("/{name} stands alone")),
            (name, _) => Self::Wrong(format!("there is no /{name}; /help tells what there is")),
        }
    }

    fn input(kind: &'static str, text: &str) -> Self {
        Self::Input(kind, Some(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_input_unless_it_begins_with_a_slash() {
        let input = Typed::input;
        for (line, expected) in [
            ("", Typed::Nothing),
            ("  \r", Typed::Nothing),
            (" use Python 3 ", input("steer", "use Python 3")),
            ("/steer use Python 3", input("steer", "use Python 3")),
            ("/queue then  the docs", input("queue", "then  the docs")),
            ("/interrupt", Typed::Input("interrupt", None)),
            ("/interrupt  ", Typed::Input("interrupt", None)),
            ("/interrupt no, the other file", input("interrupt", "no, the other file")),
            ("//etc/hosts is wrong", input("steer", "/etc/hosts is wrong")),
            ("/detach", Typed::Detach),
            ("/help", Typed::Help),
        ] {
            assert_eq!(Typed::read(line), expected, "{line}");
        }
        for (line, told) in [
            ("/queue", "/queue TEXT"),
            ("/steer  ", "/steer TEXT"),
            ("/quit", "there is no /quit"),
            ("/detach now", "stands alone"),
            ("/", "there is no /;"),
        ] {
            let Typed::Wrong(text) = Typed::read(line) else { panic!("{line} can be done") };
            assert!(text.contains(told), "{line}: {text}");
        }
    }
}
