//! `caisson key`: API keys, made on the server's machine.

use anyhow::Context;
use caisson_api::view::{KeyView, NewKeyView};
use caisson_domain::id::ApiKeyId;
use caisson_domain::limits::{API_KEY_NAME_CHARS, API_KEYS};
use caisson_domain::principal::Scope;
use caisson_store::{Actor, ApiKey, NewApiKey};
use comfy_table::{Table, presets};
use serde_json::json;

use super::machine::{Machine, look};
use super::project::require;
use super::{DONE, complain, print, print_json, settings, tell};
use crate::cli::Key;
use crate::render::{clean, utc};
use crate::settings::Environment;

/// Makes, lists or revokes.
///
/// # Errors
/// The database cannot be used, or an argument is bad.
pub(crate) async fn run(command: Key, environment: &Environment) -> anyhow::Result<u8> {
    match command {
        Key::Create { server, name, scope, expires, project, output } => {
            let mut new = NewApiKey {
                project: project.parse()?,
                name,
                scopes: scopes(&scope)?,
                expires_at_ms: None,
                by: Actor::Operator,
            };
            check(&new)?;
            let machine = Machine::open(&server, environment).await?;
            if let Err(error) = require(&machine.store, &new.project).await {
                machine.close().await;
                return Err(error);
            }
            new.expires_at_ms = expires.map(|life_s| machine.store.now_ms() + i64::from(life_s) * 1000);
            let made = machine.store.make_api_key(&new).await?;
            machine.close().await;
            let (key, token) = made.with_context(|| {
                format!("there are {API_KEYS} valid keys; revoke those that nobody needs")
            })?;
            if output.json {
                print_json(&NewKeyView { key: key.into(), secret: token.expose().to_owned() })?;
                return Ok(DONE);
            }
            let until = key.expires_at_ms.map(|at_ms| format!(", valid until {}", utc(at_ms)));
            complain(&format!(
                "key {} \"{}\"{}: this is the only time it is shown",
                key.id,
                key.name,
                until.unwrap_or_default()
            ));
            print(token.expose());
        }
        Key::List { server, project, output } => {
            let project = project.parse()?;
            let store = look(&settings(&server, environment)?).await?;
            let (keys, now_ms) = (store.list_api_keys(&project).await, store.now_ms());
            store.close().await.ok();
            let keys = keys?;
            if output.json {
                keys.into_iter().map(KeyView::from).try_for_each(|key| print_json(&key))?;
            } else {
                print(&table(&keys, now_ms));
            }
        }
        Key::Revoke { server, id, output } => {
            let id: ApiKeyId = id.parse().context("`caisson key list` shows the ids")?;
            let machine = Machine::open_known(&server, environment).await?;
            let revoked = machine.store.revoke_api_key(&id).await?;
            machine.close().await;
            anyhow::ensure!(revoked, "there is no valid key {id}");
            tell(output, &json!({"id": id, "revoked": true}), &format!("key {id} is revoked"))?;
        }
    }
    Ok(DONE)
}

fn check(new: &NewApiKey) -> anyhow::Result<()> {
    let fits = !new.name.trim().is_empty()
        && new.name.chars().count() <= API_KEY_NAME_CHARS
        && !new.name.chars().any(char::is_control);
    anyhow::ensure!(fits, "a key's name is 1 to {API_KEY_NAME_CHARS} characters without control characters");
    Ok(())
}

fn table(keys: &[ApiKey], now_ms: i64) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["KEY", "NAME", "SCOPES", "STATE", "EXPIRES", "LAST USED"]);
    for key in keys {
        let scopes: Vec<_> = key.scopes.iter().map(|scope| scope.as_str()).collect();
        let state = match (key.revoked_at_ms, key.expires_at_ms) {
            (Some(_), _) => "revoked",
            (None, Some(at_ms)) if at_ms <= now_ms => "expired",
            (None, Some(_) | None) => "valid",
        };
        let time = |at_ms: Option<i64>| at_ms.map_or_else(|| "never".to_owned(), utc);
        table.add_row([
            key.id.as_str(),
            &clean(&key.name),
            &scopes.join(" "),
            state,
            &time(key.expires_at_ms),
            &time(key.last_used_at_ms),
        ]);
    }
    table.trim_fmt()
}

fn scopes(given: &[String]) -> anyhow::Result<Vec<Scope>> {
    if given.is_empty() {
        return Ok(vec![Scope::RunsRead, Scope::RunsWrite]);
    }
    given.iter().map(|text| Ok(text.parse()?)).collect()
}

#[cfg(test)]
mod tests {
    use caisson_domain::id::ProjectId;

    use super::*;

    #[test]
    fn the_list_tells_what_became_of_a_key() {
        let key = |number: u8, revoked_at_ms, expires_at_ms| ApiKey {
            id: ApiKeyId::new(1, [number; 10]),
            project: ProjectId::default_project(),
            name: format!("k{number}\u{9b}2J"),
            scopes: vec![Scope::RunsRead, Scope::Audit],
            created_at_ms: 0,
            revoked_at_ms,
            expires_at_ms,
            last_used_at_ms: Some(1_700_000_000_000),
        };
        let keys =
            [key(1, None, None), key(2, None, Some(100)), key(3, Some(5), Some(9)), key(4, None, Some(101))];
        let text = table(&keys, 100);
        let states: Vec<_> =
            text.lines().skip(1).map(|line| line.split_whitespace().nth(4).unwrap()).collect();
        assert_eq!(states, ["valid", "expired", "revoked", "valid"]);
        assert!(text.contains("2023-11-14T22:13:20Z") && !text.contains('\u{9b}'), "{text}");
    }
}
