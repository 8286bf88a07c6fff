//! The log on standard error. Live secrets go out of it: an error of somebody else's library may repeat what it was given, and so
//! may a panic, which is told here and nowhere else.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::panic::PanicHookInfo;
use std::sync::LazyLock;

use anyhow::{Context, bail};
use caisson_domain::redact::LiveSecrets;
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::settings::Environment;

/// The secrets that the log must not show. There is one log in a process, and it begins before any secret is read.
static SECRETS: LazyLock<LiveSecrets> = LazyLock::new(LiveSecrets::default);

/// The secrets that the log must not show; whoever reads one sets them.
pub(crate) fn secrets() -> &'static LiveSecrets {
    &SECRETS
}

thread_local! {
    /// Whether this thread writes an entry.
    static WRITING: Cell<bool> = const { Cell::new(false) };
}

/// Begins the log: `CAISSON_LOG` filters; other commands than `serve` say only what went wrong. From then on panics are told in it.
///
/// # Errors
/// `CAISSON_LOG` is no filter.
pub(crate) fn start(environment: &Environment, serving: bool) -> anyhow::Result<()> {
    let default = if serving { "info" } else { "error" };
    let text = environment.get("CAISSON_LOG").filter(|text| !text.trim().is_empty());
    let filter = filter(text.unwrap_or(default))?;
    let writer = || Redacting { inner: io::stderr(), secrets: secrets() };
    // A log that cannot be written, whose reader is gone for example, is no reason to end: its own complaint would be a panic.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    log.log_internal_errors(false).init();
    std::panic::set_hook(Box::new(tell_panic));
    Ok(())
}

/// Tells of a panic what Rust's own hook would: its message, its place, its thread, and the backtrace if `RUST_BACKTRACE` asks for
/// one. What becomes of the thread and the process is not decided here.
fn tell_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    if WRITING.get() {
        // What takes secrets out, or standard error itself, may have failed: neither is used, and nothing is waited for.
        tell_bare(&format!("panicked at {place} while it wrote to the log; the message is left out\n"));
        return;
    }
    let message = panic.payload_as_str().unwrap_or("no message");
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then_some(backtrace);
    if !tracing::enabled!(Level::ERROR) {
        // No filter hides the end of a thread.
        let backtrace = backtrace.map_or_else(String::new, |backtrace| format!("\n{backtrace}"));
        let entry = format!("thread {thread} panicked at {place}: {message}{backtrace}\n");
        drop(Redacting { inner: io::stderr(), secrets: secrets() }.write_all(entry.as_bytes()));
        return;
    }
    let backtrace = backtrace.map(tracing::field::display);
    // Without its span: what panicked may have been writing to that, and holds it.
    tracing::error!(parent: None, thread, backtrace, "panicked at {place}: {message}");
}

/// Writes to standard error past the lock of this process's.
fn tell_bare(entry: &str) {
    let told = io::stderr().as_fd().try_clone_to_owned();
    // Where there is none, nobody is told.
    drop(told.and_then(|told| File::from(told).write_all(entry.as_bytes())));
}

/// Reads a filter. A word by itself must be a level: taken as a part of the program, a misspelt one would silence all others.
fn filter(text: &str) -> anyhow::Result<EnvFilter> {
    let unfit = |what: &str| {
        format!(
            "CAISSON_LOG is \"{text}\", {what}; give off, error, warn, info, debug or trace, also for a part: \
             info,caisson_gateway=debug"
        )
    };
    let filter = EnvFilter::try_new(text).with_context(|| unfit("which is no filter"))?;
    let word = text
        .split(',')
        .map(str::trim)
        .find(|part| part.bytes().all(is_of_a_word) && part.parse::<LevelFilter>().is_err());
    match word {
        Some(word) => bail!(unfit(&format!("and \"{word}\" is no level"))),
        None => Ok(filter),
    }
}

/// Whether it can stand in the name of a level or of a part of the program; others belong to spans and their fields.
fn is_of_a_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':' | b'-' | b' ')
}

/// Takes secrets out of what is written. Each write is one whole entry: so the log's formatter does it.
struct Redacting<W> {
    inner: W,
    secrets: &'static LiveSecrets,
}

impl<W: Write> Write for Redacting<W> {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        let _writing = Writing::begin();
        let text = String::from_utf8_lossy(entry);
        self.inner.write_all(self.secrets.text(&text).as_bytes())?;
        Ok(entry.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// This thread writes an entry, until this is dropped.
struct Writing;

impl Writing {
    fn begin() -> Self {
        WRITING.set(true);
        Self
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        WRITING.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Output;
    use std::sync::{Arc, Mutex};
    use std::thread;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_filter_that_says_nothing_is_refused() {
        for good in [
            "info",
            "DEBUG",
            "off",
            "info,caisson_gateway=debug",
            "info,sqlx=off",
            "warn,[run{id=\"x\"}]=debug",
        ] {
            assert!(filter(good).is_ok(), "{good}: {:?}", filter(good).err());
        }
        for (bad, part) in [
            ("debugg", "\"debugg\" is no level"),
            ("info,caisson_gateway", "\"caisson_gateway\" is no level"),
            ("nonsense=zz", "no filter"),
            ("info,a=b=c", "no filter"),
        ] {
            let error = format!("{:#}", filter(bad).unwrap_err());
            assert!(error.contains(part) && error.contains("give off, error"), "{bad}: {error}");
        }
    }

    #[test]
    fn an_entry_shows_no_secret_in_its_message_or_its_fields() {
        static LIVE: LazyLock<LiveSecrets> =
            LazyLock::new(|| LiveSecrets::new(&["log-canary-1234".to_owned().into()]));
        let kept = Kept::default();
        let inner = kept.clone();
        let writer = move || Redacting { inner: inner.clone(), secrets: &LIVE };
        let subscriber = tracing_subscriber::fmt().with_writer(writer).with_ansi(false).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(error = "sent log-canary-1234", "could not reach log-canary-1234@host");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert!(!text.contains("canary") && text.matches("[redacted]").count() == 2, "{text}");
    }

    const PANIC_CANARY: &str = "panic-canary-5678";

    /// Who panics when it is shown.
    #[derive(Debug)]
    struct Unshowable;

    impl std::fmt::Display for Unshowable {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            panic!("cannot show {PANIC_CANARY}")
        }
    }

    /// Has the test of that name do something in a process of its own that has a log and a secret, and a thread for it; answers
    /// what came of it. In that process there is no answer.
    #[expect(
        clippy::disallowed_methods,
        reason = "a test starts itself anew, and is told so by its environment"
    )]
    fn alone(name: &str, variables: &[(&str, &str)], act: fn()) -> Option<Output> {
        const ALONE: &str = "CAISSON_TEST_ALONE";
        if std::env::var_os(ALONE).is_some() {
            let variables = std::env::vars().collect();
            start(&Environment { variables, root: false }, true).unwrap();
            secrets().replace(&[PANIC_CANARY.to_owned().into()]);
            let ended = thread::Builder::new().name("doomed".to_owned()).spawn(act).unwrap().join();
            assert!(ended.is_err());
            tracing::info!("the process goes on");
            return None;
        }
        let mut child = std::process::Command::new("timeout");
        child.arg("60").arg(std::env::current_exe().unwrap());
        child.args(["--exact", &format!("log::tests::{name}"), "--nocapture"]);
        child.env_remove("RUST_BACKTRACE").env_remove("RUST_LIB_BACKTRACE").env_remove("CAISSON_LOG");
        Some(child.env(ALONE, "1").envs(variables.iter().copied()).output().unwrap())
    }

    /// What it printed, if the panic ended its thread alone.
    fn printed(output: &Output) -> String {
        let out = String::from_utf8_lossy(&output.stdout);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && out.contains("1 passed"), "{}: {out}{text}", output.status);
        assert!(!text.contains("canary") && !out.contains("canary"), "{out}{text}");
        text
    }

    #[test]
    fn a_panic_is_an_entry_of_the_log_that_shows_no_secret() {
        let name = "a_panic_is_an_entry_of_the_log_that_shows_no_secret";
        let act = || panic!("sent {PANIC_CANARY} to the host");
        let Some(plain) = alone(name, &[], act) else { return };
        let text = printed(&plain);
        let entry = text.lines().next().unwrap();
        assert!(entry.contains(" ERROR caisson::log: panicked at crates/caisson/src/log.rs:"), "{text}");
        assert!(entry.ends_with(": sent [redacted] to the host thread=\"doomed\""), "{text}");
        assert!(text.lines().count() == 2 && text.contains("the process goes on"), "{text}");

        let asked = printed(&alone(name, &[("RUST_BACKTRACE", "1")], act).unwrap());
        let traced = asked.contains("sent [redacted] to the host thread=\"doomed\" backtrace=   0: ");
        assert!(traced && asked.contains("log::tests::a_panic_is_an_entry_of"), "{asked}");

        // The log takes nothing of this: neither level nor part.
        for filter in ["off", "caisson_gateway=debug"] {
            let hidden = printed(&alone(name, &[("CAISSON_LOG", filter)], act).unwrap());
            assert!(hidden.starts_with("thread doomed panicked at crates/caisson/src/log.rs:"), "{hidden}");
            assert!(hidden.ends_with(": sent [redacted] to the host\n"), "{hidden}");
        }
    }

    #[test]
    fn a_log_that_nobody_reads_any_more_ends_no_process() {
        let name = "a_log_that_nobody_reads_any_more_ends_no_process";
        let act = || {
            let (reader, writer) = io::pipe().unwrap();
            drop(reader);
            nix::unistd::dup2_stderr(&writer).unwrap();
            tracing::info!("nobody reads this");
            tracing::error!("nor this");
            panic!("nor that, and the thread ends by it alone");
        };
        let Some(output) = alone(name, &[], act) else { return };
        assert_eq!(printed(&output), "");
    }

    #[test]
    fn what_panics_while_it_is_shown_to_the_log_is_told_and_nothing_hangs() {
        let name = "what_panics_while_it_is_shown_to_the_log_is_told_and_nothing_hangs";
        let entry = || tracing::error!(value = %Unshowable, "shown");
        let Some(output) = alone(name, &[], entry) else { return };
        let text = printed(&output);
        assert!(text.contains(": cannot show [redacted] thread=\"doomed\"\n"), "{text}");
    }

    #[test]
    fn what_panics_while_it_is_noted_in_its_own_span_is_told_and_nothing_hangs() {
        let name = "what_panics_while_it_is_noted_in_its_own_span_is_told_and_nothing_hangs";
        let noted = || {
            let span = tracing::info_span!("work", value = tracing::field::Empty);
            let _in_span = span.enter();
            span.record("value", tracing::field::display(Unshowable));
        };
        let Some(output) = alone(name, &[], noted) else { return };
        let text = printed(&output);
        assert!(text.contains(": cannot show [redacted] thread=\"doomed\"\n"), "{text}");
    }

    #[test]
    fn a_panic_while_an_entry_is_written_is_told_without_its_message() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
                panic!("{}", String::from_utf8_lossy(entry))
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let name = "a_panic_while_an_entry_is_written_is_told_without_its_message";
        let write = || {
            // As a panic does that holds what the log is written by.
            let _held = io::stderr().lock();
            drop(Redacting { inner: Broken, secrets: secrets() }.write(b"an entry"));
        };
        let Some(output) = alone(name, &[], write) else { return };
        let text = printed(&output);
        let told = " while it wrote to the log; the message is left out\n";
        assert!(text.starts_with("panicked at crates/caisson/src/log.rs:") && text.contains(told), "{text}");
        assert!(text.contains("the process goes on"), "the next entry is written: {text}");
    }
}
