//! `caisson credential`: credentials, kept on the server's machine.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use caisson_domain::credential::{
    CredentialFault, CredentialFields, CredentialKind, CredentialSecret, SECRET_FIELDS, SETTING_FIELDS,
};
use caisson_domain::id::{CredentialId, ProjectId};
use caisson_store::{Actor, Credential as Stored, NewCredential, Rekeyed, Store};
use comfy_table::{Table, presets};
use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;
use serde_json::{Value, json};

use super::machine::{Machine, look};
use super::project::require;
use super::{DONE, complain, print, print_json, settings, tell};
use crate::cli::{AddCredential, Credential, SecretFlags};
use crate::settings::Environment;
use crate::vault::{master_key_file, unlock};

/// Longest file with a secret, in bytes.
const FILE_BYTES: u64 = 64 * 1024;

/// Adds, lists, rotates, removes, or replaces the master key.
///
/// # Errors
/// The database or the master key cannot be used, or what was given is bad.
pub(crate) async fn run(command: Credential, environment: &Environment) -> anyhow::Result<u8> {
    match command {
        Credential::Add(flags) => add(flags, environment).await?,
        Credential::List { server, project, output } => {
            let project = project.parse()?;
            let store = look(&settings(&server, environment)?).await?;
            let (credentials, now_ms) = (store.list_credentials(&project).await, store.now_ms());
            store.close().await.ok();
            list(&credentials?, now_ms, output.json)?;
        }
        Credential::Rotate { server, secret, credential, project, output } => {
            let project = project.parse()?;
            let machine = Machine::open_known(&server, environment).await?;
            let rotated = rotate(&machine, &project, &credential, &secret).await;
            machine.close().await;
            let id = rotated?;
            tell(output, &json!({"id": id, "rotated": true}), &format!("credential {id} is rotated"))?;
        }
        Credential::Remove { server, credential, project, output } => {
            let project = project.parse()?;
            let machine = Machine::open_known(&server, environment).await?;
            let removed = remove(&machine.store, &project, &credential).await;
            machine.close().await;
            let id = removed?;
            tell(output, &json!({"id": id, "removed": true}), &format!("credential {id} is removed"))?;
        }
        Credential::Rekey { server, output } => {
            let machine = Machine::open_known(&server, environment).await?;
            let rekeyed = rekey(&machine).await;
            let path = master_key_file(&machine.settings).path().display().to_string();
            machine.close().await;
            let rekeyed = rekeyed?;
            let (key, count) = (&rekeyed.key_id, rekeyed.credentials);
            let document = json!({"master_key": key, "credentials": count, "file": path});
            tell(output, &document, &format!("master key {key} wraps {count} credentials"))?;
            complain(&format!("\"{path}\" is another file now: back it up, apart from the database"));
        }
    }
    Ok(DONE)
}

async fn rotate(
    machine: &Machine,
    project: &ProjectId,
    credential: &str,
    secret: &SecretFlags,
) -> anyhow::Result<CredentialId> {
    let found = find(&machine.store, project, credential).await?;
    let given = read_secret(found.settings.kind(), secret)?;
    unlock(&machine.settings, &machine.store).await?;
    let gone = || format!("the credential \"{credential}\" was removed meanwhile");
    // The proxy's login is somebody else's, and does not change with the key. What no longer opens is replaced all the same.
    let given = match machine.store.open_credential(project, &found.id).await {
        Ok(opened) => given.or_login_of(&opened.with_context(gone)?.secret),
        Err(error) => {
            complain(&format!(
                "the old secret cannot be opened, so a proxy's login in it is not kept: {error}"
            ));
            given
        }
    };
    let rotated = machine.store.rotate_credential((project, &found.id), &given, &Actor::Operator).await?;
    rotated.map(|_| found.id).with_context(gone)
}

async fn remove(store: &Store, project: &ProjectId, credential: &str) -> anyhow::Result<CredentialId> {
    let found = find(store, project, credential).await?;
    store.remove_credential(project, &found.id, &Actor::Operator).await?;
    Ok(found.id)
}

async fn rekey(machine: &Machine) -> anyhow::Result<Rekeyed> {
    unlock(&machine.settings, &machine.store).await?;
    machine.store.rekey().await.context("the master key was not replaced")
}

async fn add(flags: AddCredential, environment: &Environment) -> anyhow::Result<()> {
    let project: ProjectId = flags.project.parse()?;
    let kind: CredentialKind = flags.kind.parse()?;
    let mut fields = CredentialFields::default();
    for (name, value) in flags.settings {
        let Some(field) = SETTING_FIELDS.iter().find(|field| **field == name) else {
            bail!("there is no field \"{name}\"; docs/credentials.md lists those of each kind");
        };
        ensure!(fields.settings.insert(*field, value).is_none(), "{name} is given more than once");
    }
    if let Some(file) = &flags.ca_file {
        fields.settings.insert("ca_pem", read_file(file)?.to_string());
    }
    let public = fields.settings(kind).map_err(faults)?;
    let secret = read_secret(kind, &flags.secret)?;
    let new = NewCredential { project, name: flags.name, settings: public, secret };
    let machine = Machine::open(&flags.server, environment).await?;
    let added = put(&machine, new).await;
    machine.close().await;
    let added = added?;
    tell(flags.output, &shown(&added), &format!("credential {} \"{}\" is added", added.id, added.name))
}

async fn put(machine: &Machine, new: NewCredential) -> anyhow::Result<Stored> {
    require(&machine.store, &new.project).await?;
    unlock(&machine.settings, &machine.store).await?;
    Ok(machine.store.add_credential(new, &Actor::Operator).await?)
}

/// The credential of that name or id.
async fn find(store: &Store, project: &ProjectId, text: &str) -> anyhow::Result<Stored> {
    let id: Option<CredentialId> = text.parse().ok();
    let all = store.list_credentials(project).await?;
    let found = all.into_iter().find(|one| one.name == text || Some(&one.id) == id.as_ref());
    found.with_context(|| format!("there is no credential \"{text}\"; `caisson credential list` shows them"))
}

fn list(credentials: &[Stored], now_ms: i64, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return credentials.iter().try_for_each(|one| print_json(&shown(one)));
    }
    let mut table = Table::new();
    let head = ["CREDENTIAL", "NAME", "KIND", "SCOPE", "VERSION", "ROTATED", "LAST USED"];
    table.load_style(presets::NOTHING).set_header(head);
    for one in credentials {
        table.add_row([
            one.id.to_string(),
            one.name.clone(),
            one.settings.kind().to_string(),
            one.settings.scope().unwrap_or("the server's model API").to_owned(),
            one.version.to_string(),
            one.rotated_at_ms.map_or_else(|| "never".to_owned(), |at_ms| ago(now_ms - at_ms)),
            one.last_used_at_ms.map_or_else(|| "never".to_owned(), |at_ms| ago(now_ms - at_ms)),
        ]);
    }
    print(&table.trim_fmt());
    Ok(())
}

/// How long something is past, as people say it.
fn ago(ms: i64) -> String {
    match ms / 60_000 {
        ..1 => "just now".to_owned(),
        minutes @ 1..120 => format!("{minutes} min ago"),
        minutes @ 120..2880 => format!("{} h ago", minutes / 60),
        minutes => format!("{} days ago", minutes / 1440),
    }
}

fn shown(one: &Stored) -> Value {
    json!({
        "id": one.id, "name": one.name, "kind": one.settings.kind(), "scope": one.settings.scope(),
        "version": one.version, "created_at_ms": one.created_at_ms, "rotated_at_ms": one.rotated_at_ms,
        "last_used_at_ms": one.last_used_at_ms,
    })
}

/// Reads a secret of that kind. Nothing of it is ever repeated.
fn read_secret(kind: CredentialKind, flags: &SecretFlags) -> anyhow::Result<CredentialSecret> {
    let text = read_file(&flags.from)?;
    let mut fields = CredentialFields::default();
    match kind {
        CredentialKind::ModelOauth => read_tokens(&text, &mut fields)?,
        CredentialKind::GitGithubApp => {
            fields.secret.insert("private_key", SecretString::from(text.as_str()));
        }
        CredentialKind::ModelApiKey
        | CredentialKind::GitToken
        | CredentialKind::McpHeader
        | CredentialKind::RegistryToken => {
            fields.secret.insert("value", SecretString::from(text.trim_end_matches(['\r', '\n'])));
        }
    }
    if let Some(file) = &flags.proxy_login_file {
        let login = read_file(file)?;
        fields.secret.insert("proxy_login", SecretString::from(login.trim_end_matches(['\r', '\n'])));
    }
    fields.secret(kind).map_err(faults)
}

/// Tokens as JSON: an object of our own names, or Claude Code's own `.credentials.json`.
fn read_tokens(text: &str, fields: &mut CredentialFields) -> anyhow::Result<()> {
    // The parser's message could quote a token.
    let Ok(Value::Object(mut object)) = serde_json::from_str::<Value>(text) else {
        bail!("the secret is no JSON object; give access_token, refresh_token and expires_at_ms");
    };
    if let Some(Value::Object(theirs)) = object.remove("claudeAiOauth") {
        let names = [
            ("accessToken", "access_token"),
            ("refreshToken", "refresh_token"),
            ("expiresAt", "expires_at_ms"),
        ];
        object = names
            .into_iter()
            .filter_map(|(their, ours)| Some((ours.to_owned(), theirs.get(their)?.clone())))
            .collect();
    }
    for (name, value) in object {
        let Some(field) = SECRET_FIELDS.iter().find(|field| **field == name) else {
            bail!(
                "the secret has a field that no credential has; give access_token, refresh_token and expires_at_ms"
            );
        };
        let text = match value {
            Value::String(text) => text,
            Value::Number(number) => number.to_string(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => bail!("{field} is no text"),
        };
        fields.secret.insert(*field, SecretString::from(text));
    }
    Ok(())
}

/// The text of a file, or of standard input.
fn read_file(file: &Path) -> anyhow::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(FILE_BYTES).unwrap_or(0) + 1));
    let read = if file == Path::new("-") {
        let input = std::io::stdin();
        if input.is_terminal() {
            complain("type the secret, then Return and Ctrl-D; the terminal shows it, a file would not");
        }
        input.lock().take(FILE_BYTES + 1).read_to_string(&mut text)
    } else {
        let opened = File::open(file).with_context(|| format!("\"{}\" cannot be read", file.display()))?;
        opened.take(FILE_BYTES + 1).read_to_string(&mut text)
    };
    let bytes = read.with_context(|| format!("\"{}\" cannot be read as text", file.display()))?;
    ensure!(bytes as u64 <= FILE_BYTES, "\"{}\" is longer than {FILE_BYTES} bytes", file.display());
    Ok(text)
}

fn faults(found: Vec<CredentialFault>) -> anyhow::Error {
    let lines: Vec<String> =
        found.into_iter().map(|fault| format!("\n  - {}: {}", fault.field, fault.message)).collect();
    anyhow::anyhow!("the credential cannot be used:{}", lines.concat())
}
