//! Settings that let more people in, or see more, than most mean them to. `doctor` and the server's log tell of them; none
//! keeps a server from starting.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::settings::Settings;
use crate::settings::database::Place;

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
    let database = match settings.database_place() {
        Ok(Place::Postgres(place)) => place.weakness(),
        // A URL that cannot be read is told of by whoever opens it.
        Ok(Place::File(_)) | Err(_) => None,
    };
    let wide = secret_files(settings);
    plain.into_iter().chain(database).chain(wide.iter().filter_map(|file| self::wide(file))).collect()
}

/// Every file that holds a secret, as far as there is one.
fn secret_files(settings: &Settings) -> Vec<PathBuf> {
    let model = [&settings.model.api_key_file, &settings.model.auth_token_file];
    let named = model.into_iter().chain([&settings.tls.key_file, &settings.database.url_file]);
    let mut files: Vec<PathBuf> = named.flatten().cloned().collect();
    files.extend(settings.git.credentials.iter().map(|credential| credential.token_file.clone()));
    // A directory that holds nothing of ours may be somebody else's, named by mistake.
    if OWN.iter().any(|name| settings.state_dir.join(name).exists()) {
        files.push(settings.state_dir.clone());
    }
    files.extend(["caisson.db", "audit_key"].map(|name| settings.state_dir.join(name)));
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
