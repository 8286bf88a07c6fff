//! Settings that let more people in, or see more, than most mean them to. `doctor` and the server's log tell of them; none
//! keeps a server from starting.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use caisson_sandbox::docker::DEFAULT_IMAGE;

use crate::settings::Settings;

/// Bits of a file's mode that let others than its owner read or write it.
const OTHERS: u32 = 0o077;

/// Files by which a state directory is known that has been used.
const OWN: [&str; 4] = ["caisson.db", "audit_key", "master.key", "server_id"];

/// Every weakness of the settings and of the files they name, each with what to do.
pub(crate) fn weaknesses(settings: &Settings) -> Vec<String> {
    let plain = settings.tls.cert_file.is_none() && !settings.listen.ip().is_loopback();
    let plain = plain.then(|| {
        format!(
            "the API listens on {} without TLS: API keys can be read on the way; set tls.cert_file and tls.key_file, \
             or listen on 127.0.0.1 behind a proxy that speaks TLS",
            settings.listen
        )
    });
    let others = [unpinned(settings), unlimited(settings)];
    let files = secret_files(settings);
    plain
        .into_iter()
        .chain(files.iter().filter_map(|file| wide(file)))
        .chain(others.into_iter().flatten())
        .collect()
}

/// An image named by its tag is whatever its registry, or whoever builds on this engine, puts there next.
fn unpinned(settings: &Settings) -> Option<String> {
    let image =
        settings.default_image.as_deref().filter(|image| !image.contains('@') && *image != DEFAULT_IMAGE)?;
    Some(format!(
        "default_image \"{image}\" is named by its tag: another image may stand there tomorrow; name it by its digest, as in \
         {image}@sha256:… (`docker inspect --format '{{{{index .RepoDigests 0}}}}' {image}` shows it)"
    ))
}

fn unlimited(settings: &Settings) -> Option<String> {
    let unlimited = settings.api.rate_per_minute == 0;
    unlimited.then(|| {
        "api.rate_per_minute is 0: one API key may use up the whole server; leave it out for 3000 a minute".to_owned()
    })
}

/// Every file that holds a secret, as far as there is one.
fn secret_files(settings: &Settings) -> Vec<PathBuf> {
    let named = [&settings.model.api_key_file, &settings.model.auth_token_file, &settings.tls.key_file];
    let mut files: Vec<PathBuf> = named.into_iter().flatten().cloned().collect();
    files.extend(settings.git.credentials.iter().map(|credential| credential.token_file.clone()));
    files.extend(settings.egress.credentials.iter().map(|credential| credential.token_file.clone()));
    // A directory that holds nothing of ours may be somebody else's, named by mistake.
    if OWN.iter().any(|name| settings.state_dir.join(name).exists()) {
        files.push(settings.state_dir.clone());
    }
    files.extend(["caisson.db", "caisson.db-wal", "audit_key"].map(|name| settings.state_dir.join(name)));
    files
}

fn wide(file: &Path) -> Option<String> {
    let mode = fs::metadata(file).ok()?.permissions().mode() & 0o777;
    let narrow = mode & !OTHERS;
    (mode & OTHERS != 0).then(|| {
        let file = file.display();
        format!("\"{file}\" has mode {mode:04o}: others can use it; `chmod {narrow:04o} {file}`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Environment, Overrides};

    fn settings(directory: &Path, listen: &str) -> Settings {
        let key = directory.join("model-key");
        let environment = Environment {
            variables: vec![
                ("CAISSON_STATE_DIR".to_owned(), directory.join("state").display().to_string()),
                ("CAISSON_MODEL__API_KEY_FILE".to_owned(), key.display().to_string()),
            ],
            root: false,
        };
        let overrides = Overrides { listen: Some(listen.parse().unwrap()), ..Overrides::default() };
        Settings::load(None, &environment, overrides).unwrap()
    }

    fn chmod(file: &Path, mode: u32) {
        fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn an_image_by_its_tag_and_keys_without_a_limit_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let of = |image: Option<&str>, rate_per_minute: u32| {
            let mut settings = settings(directory.path(), "127.0.0.1:1");
            settings.default_image = image.map(str::to_owned);
            settings.api.rate_per_minute = rate_per_minute;
            weaknesses(&settings)
        };
        let pinned = format!("r.example/x:1@sha256:{}", "a".repeat(64));
        for fine in [None, Some(DEFAULT_IMAGE), Some(pinned.as_str())] {
            assert_eq!(of(fine, 1), Vec::<String>::new());
        }
        let told = of(Some("r.example/x:1"), 0);
        assert!(
            told.len() == 2
                && told[0].contains("r.example/x:1@sha256:")
                && told[1].contains("rate_per_minute"),
            "{told:?}"
        );
    }

    #[test]
    fn a_token_for_a_registry_that_others_can_read_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("registry-token");
        fs::write(&file, "t").unwrap();
        let configuration = directory.path().join("caisson.toml");
        let lines = format!(
            "[[egress.credentials]]\nurl_prefix = \"http://r.example/\"\ntoken_file = \"{}\"\n",
            file.display()
        );
        fs::write(&configuration, lines).unwrap();
        let environment = Environment {
            variables: vec![(
                "CAISSON_STATE_DIR".to_owned(),
                directory.path().join("state").display().to_string(),
            )],
            root: false,
        };
        let told = |mode: u32| {
            chmod(&file, mode);
            weaknesses(&Settings::load(Some(&configuration), &environment, Overrides::default()).unwrap())
        };
        assert_eq!(told(0o600), Vec::<String>::new());
        assert!(told(0o644)[0].contains("registry-token"));
    }

    #[test]
    fn an_open_address_and_files_that_others_can_use_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let (key, state) = (directory.path().join("model-key"), directory.path().join("state"));
        fs::write(&key, "k").unwrap();
        fs::create_dir(&state).unwrap();
        chmod(&key, 0o600);
        chmod(&state, 0o700);
        for narrow in ["127.0.0.1:7070", "[::1]:7070"] {
            assert_eq!(weaknesses(&settings(directory.path(), narrow)), Vec::<String>::new());
        }
        for open in ["0.0.0.0:7070", "[::]:7070", "192.0.2.1:7070"] {
            let told = weaknesses(&settings(directory.path(), open));
            assert!(
                told.len() == 1 && told[0].contains(open) && told[0].contains("tls.cert_file"),
                "{told:?}"
            );
        }
        let mut secured = settings(directory.path(), "0.0.0.0:7070");
        secured.tls.cert_file = Some(key.clone());
        assert_eq!(weaknesses(&secured), Vec::<String>::new());
        let told_of = |file: &Path, mode: u32| {
            chmod(file, mode);
            weaknesses(&settings(directory.path(), "127.0.0.1:1"))
        };
        for mode in [0o640, 0o604, 0o620, 0o601] {
            let told = told_of(&key, mode);
            assert!(
                told.len() == 1 && told[0].contains("model-key") && told[0].contains("chmod 0600"),
                "{told:?}"
            );
        }
        chmod(&key, 0o600);
        assert_eq!(told_of(&state, 0o755), Vec::<String>::new(), "it may be anybody's");
        fs::write(state.join("audit_key"), "x").unwrap();
        chmod(&state.join("audit_key"), 0o600);
        let told = told_of(&state, 0o755);
        let remedy = format!("`chmod 0700 {}`", state.display());
        assert!(told.len() == 1 && told[0].ends_with(&remedy), "{told:?}");
        chmod(&state, 0o700);
        assert!(told_of(&state.join("audit_key"), 0o644)[0].contains("audit_key"));
    }
}
