//! `caisson doctor`: everything a server needs, each with its remedy.

use std::path::Path;

use caisson_domain::id::{ProjectId, ServerId};
use caisson_sandbox::docker::{Capabilities, DockerEngine};
use caisson_sandbox::local::{LimitsBy, LocalCapabilities};

use super::{DONE, print, settings_with_engine};
use crate::agents::Agents;
use crate::cli::Doctor;
use crate::engines::ActiveEngine;
use crate::serve::{chain, find_shim, known_server_id, open_store};
use crate::settings::{Environment, Settings};

/// Exit code when something is missing.
const UNWELL: u8 = 1;

/// One thing looked at.
#[derive(Debug)]
struct Finding {
    what: &'static str,
    result: Result<String, String>,
}

/// Looks at everything and prints one line each.
///
/// # Errors
/// The configuration itself cannot be read.
pub(crate) async fn run(flags: &Doctor, environment: &Environment) -> anyhow::Result<u8> {
    let settings = settings_with_engine(&flags.server, &flags.engine, environment)?;
    let mut findings = engine(&settings).await;
    findings.push(agent(&settings));
    findings.push(Finding { what: "shim", result: shim(&settings) });
    findings.push(Finding { what: "git", result: git() });
    findings.push(Finding { what: "disk", result: disk(&settings) });
    findings.extend(database(&settings).await);
    findings.push(Finding { what: "model", result: model(&settings) });
    findings.push(Finding { what: "repositories", result: repositories(&settings) });
    for finding in &findings {
        match &finding.result {
            Ok(text) => print(&format!("ok    {:<13} {text}", finding.what)),
            Err(text) => print(&format!("FAIL  {:<13} {text}", finding.what)),
        }
    }
    let failed = findings.iter().filter(|finding| finding.result.is_err()).count();
    if failed == 0 {
        print("everything a server needs is there");
        return Ok(DONE);
    }
    print(&format!("{failed} of {} checks failed", findings.len()));
    Ok(UNWELL)
}

async fn engine(settings: &Settings) -> Vec<Finding> {
    let chosen = match choose(settings).await {
        Ok(chosen) => chosen,
        Err(error) => return vec![Finding { what: "engine", result: Err(format!("{error:#}")) }],
    };
    let mut findings = match &chosen {
        ActiveEngine::Local(engine) => {
            let result = engine.check().await.map(|found| describe_local(&found));
            vec![Finding { what: "engine", result: result.map_err(|error| chain(&error)) }]
        }
        ActiveEngine::Docker(engine, image) => docker(engine, image).await,
    };
    findings.extend(chosen.weaknesses().into_iter().map(|text| Finding { what: "weaker", result: Ok(text) }));
    findings
}

/// The engine that a server with these settings would take.
async fn choose(settings: &Settings) -> anyhow::Result<ActiveEngine> {
    let store = open_store(&settings.state_dir).await?;
    let server = known_server_id(&settings.state_dir).unwrap_or_else(|| ServerId::new(0, [0; 10]));
    let chosen = ActiveEngine::choose(settings, &server, &store).await;
    store.close().await.ok();
    chosen
}

async fn docker(engine: &DockerEngine, image: &str) -> Vec<Finding> {
    let (engine_result, image_result) = match engine.check().await {
        Err(error) => (Err(chain(&error)), Err("not looked at, since there is no engine".to_owned())),
        Ok(capabilities) => {
            let image_result = match engine.image_present(image).await {
                Ok(true) => Ok(image.to_owned()),
                Ok(false) => Err(format!("{image} is missing; run `caisson image build`")),
                Err(error) => Err(chain(&error)),
            };
            (Ok(describe(&capabilities)), image_result)
        }
    };
    vec![Finding { what: "engine", result: engine_result }, Finding { what: "image", result: image_result }]
}

fn describe_local(found: &LocalCapabilities) -> String {
    let limits = match &found.limits {
        LimitsBy::ControlGroups { version } => format!("limits by control groups (version {version})"),
        LimitsBy::ProcessLimits { .. } => "limits of single processes".to_owned(),
    };
    let users = if found.own_uids { "a user for each session" } else { "one user for all" };
    format!("local: bubblewrap {}, {limits}, {users}", found.bubblewrap_version)
}

fn describe(found: &Capabilities) -> String {
    let (major, minor) = found.api_version;
    let survives = if found.live_restore {
        "containers outlive its restart"
    } else {
        "containers end with it (no live-restore)"
    };
    format!("Docker Engine {} (API {major}.{minor}), {} cores; {survives}", found.engine_version, found.cores)
}

fn agent(settings: &Settings) -> Finding {
    let agents = Agents::new(settings.agents_dir());
    let result = agents
        .verify(&settings.agent_version)
        .map(|manifest| format!("Claude Code {}, unchanged since it was installed", manifest.version))
        .map_err(|error| format!("{error:#}"));
    Finding { what: "agent", result }
}

fn shim(settings: &Settings) -> Result<String, String> {
    find_shim(settings).map(|path| path.display().to_string()).map_err(|error| error.to_string())
}

fn git() -> Result<String, String> {
    caisson_gateway::find_program(Path::new("git"))
        .map(|path| path.display().to_string())
        .map_err(|_| "git is not installed; repositories on this machine need it".to_owned())
}

fn disk(settings: &Settings) -> Result<String, String> {
    let free_mib = free_mib(&settings.state_dir)
        .map_err(|error| format!("\"{}\" cannot be looked at: {error}", settings.state_dir.display()))?;
    let least = settings.min_free_disk_mib;
    if free_mib < least {
        return Err(format!(
            "{free_mib} MiB are free for \"{}\", and nothing is placed below {least}; make room, or lower min_free_disk_mib",
            settings.state_dir.display()
        ));
    }
    Ok(format!("{free_mib} MiB free for \"{}\"", settings.state_dir.display()))
}

/// Free space of the file system that holds `path` or will hold it.
fn free_mib(path: &Path) -> nix::Result<u64> {
    let existing = path.ancestors().find(|part| part.exists()).unwrap_or(Path::new("/"));
    let stat = nix::sys::statvfs::statvfs(existing)?;
    Ok(stat.blocks_available() * stat.fragment_size() / (1024 * 1024))
}

async fn database(settings: &Settings) -> Vec<Finding> {
    let (database, keys) = match open_store(&settings.state_dir).await {
        Err(error) => {
            (Err(format!("{error:#}")), Err("not looked at, since there is no database".to_owned()))
        }
        Ok(store) => {
            let answer =
                store.ping().await.map(|()| settings.state_dir.join("caisson.db").display().to_string());
            let keys = store.list_api_keys(&ProjectId::default_project()).await;
            store.close().await.ok();
            let keys = keys.map(|keys| keys.iter().filter(|key| key.revoked_at_ms.is_none()).count());
            (
                answer.map_err(|error| chain(&error)),
                match keys {
                    Ok(0) => Err("no valid API key; make one with `caisson key create NAME`".to_owned()),
                    Ok(count) => Ok(format!("{count} valid")),
                    Err(error) => Err(chain(&error)),
                },
            )
        }
    };
    vec![Finding { what: "database", result: database }, Finding { what: "API keys", result: keys }]
}

fn model(settings: &Settings) -> Result<String, String> {
    let model = &settings.model;
    if model.api_key.is_none() && model.api_key_file.is_none() && model.auth_token_file.is_none() {
        return Err("no credential for the model API; set model.api_key_file (CAISSON_MODEL__API_KEY_FILE)"
            .to_owned());
    }
    Ok(format!("{}, credential configured", model.base_url))
}

fn repositories(settings: &Settings) -> Result<String, String> {
    let count = settings.repositories.len() + settings.allow_repo.len();
    if count == 0 {
        return Err("no repository is allowed; set repositories, or allow_repo (--allow-repo DIR)".to_owned());
    }
    Ok(format!("{count} patterns and directories allowed"))
}
