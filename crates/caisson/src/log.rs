//! The log on standard error. Live secrets go out of it: an error of somebody else's library may repeat what it was given.

use std::io::{self, Write};
use std::sync::LazyLock;

use anyhow::{Context, bail};
use caisson_domain::redact::LiveSecrets;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::settings::Environment;

/// The secrets that the log must not show. There is one log in a process, and it begins before any secret is read.
static SECRETS: LazyLock<LiveSecrets> = LazyLock::new(LiveSecrets::default);

/// The secrets that the log must not show; whoever reads one sets them.
pub(crate) fn secrets() -> &'static LiveSecrets {
    &SECRETS
}

/// Begins the log: `CAISSON_LOG` filters; other commands than `serve` say only what went wrong.
///
/// # Errors
/// `CAISSON_LOG` is no filter.
pub(crate) fn start(environment: &Environment, serving: bool) -> anyhow::Result<()> {
    let default = if serving { "info" } else { "error" };
    let text = environment.get("CAISSON_LOG").filter(|text| !text.trim().is_empty());
    let filter = filter(text.unwrap_or(default))?;
    let writer = || Redacting { inner: io::stderr(), secrets: secrets() };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false).init();
    Ok(())
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
        let text = String::from_utf8_lossy(entry);
        self.inner.write_all(self.secrets.text(&text).as_bytes())?;
        Ok(entry.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

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
}
