//! `caisson key`: API keys, made on the server's machine.

use anyhow::Context;
use caisson_domain::id::{ApiKeyId, DEFAULT_PROJECT, ProjectId};
use caisson_domain::principal::Scope;
use comfy_table::{Table, presets};

use super::{DONE, complain, print, settings};
use crate::cli::Key;
use crate::serve::open_store;
use crate::settings::Environment;

/// Longest name of a key, in characters.
const NAME_CHARS: usize = 100;

/// Makes, lists or revokes.
///
/// # Errors
/// The database cannot be used, or an argument is bad.
pub(crate) async fn run(command: Key, environment: &Environment) -> anyhow::Result<u8> {
    match command {
        Key::Create { server, name, scope, project } => {
            let project: ProjectId = project.parse()?;
            anyhow::ensure!(
                project == ProjectId::default_project(),
                "there is no project \"{project}\"; this version has the project \"{DEFAULT_PROJECT}\" alone"
            );
            let scopes = scopes(&scope)?;
            let fits = !name.trim().is_empty()
                && name.chars().count() <= NAME_CHARS
                && !name.chars().any(char::is_control);
            anyhow::ensure!(fits, "a key's name is 1 to {NAME_CHARS} characters without control characters");
            let store = open_store(&settings(&server, environment)?.state_dir).await?;
            let (id, token) = store.create_api_key(&project, &name, &scopes).await?;
            store.close().await.ok();
            complain(&format!("key {id} \"{name}\": this is the only time it is shown"));
            print(token.expose());
        }
        Key::List { server, project } => {
            let store = open_store(&settings(&server, environment)?.state_dir).await?;
            let mut table = Table::new();
            table.load_style(presets::NOTHING).set_header(["KEY", "NAME", "SCOPES", "STATE"]);
            for key in store.list_api_keys(&project.parse()?).await? {
                let scopes: Vec<_> = key.scopes.iter().map(|scope| scope.as_str()).collect();
                let state = if key.revoked_at_ms.is_some() { "revoked" } else { "valid" };
                table.add_row([key.id.as_str(), &key.name, &scopes.join(" "), state]);
            }
            print(&table.trim_fmt());
        }
        Key::Revoke { server, id } => {
            let id: ApiKeyId = id.parse().context("`caisson key list` shows the ids")?;
            let store = open_store(&settings(&server, environment)?.state_dir).await?;
            anyhow::ensure!(store.revoke_api_key(&id).await?, "there is no valid key {id}");
            print(&format!("key {id} is revoked"));
        }
    }
    Ok(DONE)
}

fn scopes(given: &[String]) -> anyhow::Result<Vec<Scope>> {
    if given.is_empty() {
        return Ok(vec![Scope::RunsRead, Scope::RunsWrite]);
    }
    given.iter().map(|text| Ok(text.parse()?)).collect()
}
