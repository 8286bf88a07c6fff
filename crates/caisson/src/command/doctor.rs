//! `caisson doctor`: everything a server needs, each with its remedy.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use caisson_domain::id::{ProjectId, ServerId};
use caisson_sandbox::docker::{Capabilities, DockerEngine, Seccomp};
use caisson_sandbox::local::{LimitsBy, LocalCapabilities};
use caisson_store::{ApiKey, Clock, Look, Store, StoreError};
use caisson_worker::DiskCaps;
use nix::unistd::{AccessFlags, access};

use super::doctor_report::Report;
use super::serve_settings;
use crate::agents::Agents;
use crate::artifacts;
use crate::audit_head;
use crate::cli::Doctor;
use crate::engines::{ActiveEngine, Purpose, image_remedy};
use crate::exposure;
use crate::inputs::{self, Faults, Part};
use crate::render::clean;
use crate::serve::chain;
use crate::server_id::{check_not_lost, known_server_id};
use crate::settings::database::Place;
use crate::settings::{Environment, Settings};
use crate::shared_paths;
use crate::traced;
use crate::vault::{has_model_credential, master_key_file};

/// Keys that never expire which are named one by one.
const LASTING_NAMES: usize = 5;
/// Looks at everything, in the order that the help tells, and prints a line for each. Nothing is changed.
///
/// # Errors
/// The configuration itself cannot be read.
pub(crate) async fn run(flags: Doctor, environment: &Environment) -> anyhow::Result<u8> {
    let settings = serve_settings(flags.serve, environment)?;
    let mut report = Report::new(flags.output.json);
    let faults = inputs::read(&settings).err().unwrap_or_default();
    if let Some(text) = faults.of(Part::Settings) {
        report.tell(Part::Settings.name(), Err(text));
    }
    let server = known_server_id(&settings.state_dir);
    let usable = writable(&settings.state_dir);
    report.tell("state", state(&settings, &server, &usable));
    let server = server.ok().flatten();
    let store = if usable.is_ok() {
        database(&settings, &mut report).await
    } else {
        report.note("state", "database, API keys and master key are not looked at before it can be used");
        None
    };
    if let (None, Some(store)) = (&server, &store)
        && let Err(error) = check_not_lost(&settings.state_dir, store).await
    {
        report.tell("server id", Err(format!("{error:#}")));
    }
    if let Some(store) = &store {
        let looked =
            audit_head::look((&settings.state_dir, &settings.audit_head()), store, server.as_ref()).await;
        report.tell("audit log", looked.map_err(|error| format!("{error:#}")));
    }
    kept_files(&settings, (store.as_ref(), server.as_ref()), &mut report).await;
    if usable.is_ok() {
        report.tell("master key", master_key(&settings, store.as_ref()).await);
    }
    engine(&settings, server.as_ref(), store.as_ref(), &mut report).await;
    report.tell("agent", agent(&settings));
    for part in Part::ALL.into_iter().filter(|part| *part != Part::Settings) {
        if part == Part::Model {
            report.tell("git", git());
            report.tell("disk", disk(&settings));
        }
        let looked = match (part, &store) {
            (Part::Model, Some(store)) if has_model_credential(store).await.unwrap_or(false) => {
                stored_model(&settings, &faults)
            }
            _ => input(&settings, part, &faults, &report),
        };
        report.tell(part.name(), looked);
    }
    report.tell("address", address(&settings, server.as_ref(), store.as_ref()).await);
    if let (Some(store), Some(server)) = (&store, &server)
        && let Some(text) = super::queue::drained(store, server).await
    {
        report.warn("queue", &text);
    }
    exposed(&settings, store.as_ref(), &report).await;
    if let Some(store) = store {
        store.close().await.ok();
    }
    Ok(report.end())
}

/// Where what runs leave is kept, if not in the state directory, and whether others that share the database keep it elsewhere.
async fn kept_files(
    settings: &Settings,
    (store, server): (Option<&Store>, Option<&ServerId>),
    report: &mut Report,
) {
    if let Some(examined) = artifacts::examine(settings, (store, server)).await {
        report.tell("artifacts", examined);
    }
    if let (Some(store), Some(server)) = (store, server)
        && let Ok(shared) = artifacts::look(settings)
        && let Ok(Some(text)) =
            artifacts::difference(store, server, shared.as_ref().map(|shared| shared.id.as_str())).await
    {
        report.warn("artifacts", &text);
    }
}

/// What lets in more people, or shows more, than most mean. A store that cannot be read was told of before.
async fn exposed(settings: &Settings, store: Option<&Store>, report: &Report) {
    let mut found = exposure::weaknesses(settings);
    if let Some(store) = store {
        found.extend(exposure::weaknesses_of_store(store).await.unwrap_or_default());
    }
    let unbounded = exposure::unbounded(settings, store).await.unwrap_or_default();
    for text in found {
        report.warn("exposed", &text);
    }
    for text in exposure::notes(settings, &unbounded).into_iter().chain(traced::note()) {
        report.note("hardening", &text);
    }
}

fn state(
    settings: &Settings,
    server: &anyhow::Result<Option<ServerId>>,
    usable: &Result<&Path, String>,
) -> Result<String, String> {
    let there = usable.clone()?;
    if let Err(error) = server {
        return Err(format!("{error:#}"));
    }
    let directory = &settings.state_dir;
    let yet = if there == directory { "" } else { " (not there yet; it is made when it is needed)" };
    Ok(format!("{}{yet}", directory.display()))
}

/// The part of a state directory's path that is there, if it is a directory that can be written.
fn writable(directory: &Path) -> Result<&Path, String> {
    let there = directory.ancestors().find(|part| part.exists()).unwrap_or(Path::new("/"));
    if there.is_dir() && access(there, AccessFlags::W_OK | AccessFlags::X_OK).is_ok() {
        return Ok(there);
    }
    Err(format!("\"{}\" is no directory that can be written; choose another --state-dir", there.display()))
}

/// The database as it is, for reading alone; none if there is none that can be read.
async fn database(settings: &Settings, report: &mut Report) -> Option<Store> {
    let place = match settings.database_place() {
        Ok(place) => place,
        Err(error) => {
            report.tell("database", Err(format!("{error:#}")));
            return None;
        }
    };
    let unwritable = |place: &Place| match place {
        Place::File(path) => access(path, AccessFlags::W_OK).is_err(),
        Place::Postgres(_) => false,
    };
    let (database, store) = match place.look(Clock::system()).await {
        Ok(Look::Missing) => (Ok("none yet; it is made when it is needed".to_owned()), None),
        Ok(Look::Behind { migrations }) => {
            (Ok(format!("{place}; the next start brings it up to date ({migrations} steps)")), None)
        }
        Ok(Look::Ready(_)) if unwritable(&place) => (Err(format!("\"{place}\" cannot be written")), None),
        Ok(Look::Ready(store)) => (Ok(place.to_string()), Some(store)),
        Err(error) => match place {
            Place::File(_) => (Err(chain(&error)), None),
            Place::Postgres(_) => (Err(format!("{place}: {}", chain(&error))), None),
        },
    };
    report.tell("database", database);
    if let Some(store) = &store
        && let Ok(Some(weakness)) = store.failover_weakness().await
    {
        report.warn("database", &weakness);
    }
    api_keys(store.as_ref(), report).await;
    store
}

/// The valid keys of every project.
async fn valid_keys(store: &Store) -> Result<Vec<ApiKey>, StoreError> {
    let now_ms = Clock::system().now_ms();
    let mut valid = Vec::new();
    for project in exposure::projects(store).await? {
        valid.extend(store.list_api_keys(&project).await?.into_iter().filter(|key| {
            key.revoked_at_ms.is_none() && key.expires_at_ms.is_none_or(|at_ms| at_ms > now_ms)
        }));
    }
    Ok(valid)
}

/// How many keys are valid, and which of them never expire.
async fn api_keys(store: Option<&Store>, report: &mut Report) {
    let valid = match store {
        Some(store) => valid_keys(store).await,
        None => Ok(Vec::new()),
    };
    let name = |key: &ApiKey| {
        let name = clean(&key.name);
        if key.project == ProjectId::default_project() {
            format!("\"{name}\"")
        } else {
            format!("\"{name}\" of {}", key.project)
        }
    };
    let lasting: Vec<_> =
        valid.iter().flatten().filter(|key| key.expires_at_ms.is_none()).map(name).collect();
    report.tell(
        "API keys",
        match valid.map(|valid| valid.len()) {
            Ok(0) => Err("no valid API key; make one with `caisson key create NAME`".to_owned()),
            Ok(count) => Ok(format!("{count} valid")),
            Err(error) => Err(chain(&error)),
        },
    );
    if !lasting.is_empty() {
        let names = lasting.iter().take(LASTING_NAMES).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = if lasting.len() > LASTING_NAMES { " and others" } else { "" };
        let expire = if lasting.len() == 1 { "expires" } else { "expire" };
        report.note(
            "API keys",
            &format!(
                "{names}{more} never {expire}; `caisson key create NAME --expires 30d` makes one that does"
            ),
        );
    }
}

/// The engine that a server with these settings would take. What engines keep in the state directory is put elsewhere.
async fn engine(settings: &Settings, server: Option<&ServerId>, store: Option<&Store>, report: &mut Report) {
    let server = server.cloned().unwrap_or_else(|| ServerId::new(0, [0; 10]));
    let elsewhere = match tempfile::tempdir() {
        Ok(directory) => directory,
        Err(error) => return report.tell("engine", Err(format!("no temporary directory: {error}"))),
    };
    match ActiveEngine::choose(settings, &server, store, Purpose::LookingAt(elsewhere.path())).await {
        Err(error) => report.tell("engine", Err(format!("{error:#}"))),
        Ok(chosen) => {
            match &chosen {
                ActiveEngine::Local(engine) => {
                    let result = engine.check().await.map(|found| describe_local(&found));
                    report.tell("engine", result.map_err(|error| chain(&error)));
                }
                ActiveEngine::Docker(engine, image) => {
                    docker(engine, image, &settings.state_dir, report).await;
                }
            }
            chosen.weaknesses().into_iter().for_each(|text| report.tell("weaker", Ok(text)));
        }
    }
    disk_caps(settings, elsewhere.path(), report);
}

/// How sessions would be kept within their bounds: tried in a directory of its own.
fn disk_caps(settings: &Settings, directory: &Path, report: &mut Report) {
    let caps = DiskCaps::find(settings.limits.volumes, directory);
    let mib = settings.limits.workspace_mib;
    let kind = match caps {
        DiskCaps::Volumes(_) => "in a file system of its own",
        DiskCaps::Measured { .. } => "measured",
    };
    report.tell("sessions", Ok(format!("up to {mib} MiB each, {kind}")));
    caps.weakness().into_iter().for_each(|text| report.tell("weaker", Ok(text)));
}

async fn docker(engine: &DockerEngine, image: &str, state_dir: &Path, report: &mut Report) {
    let capabilities = match engine.check().await {
        Ok(capabilities) => capabilities,
        Err(error) => {
            report.tell("engine", Err(chain(&error)));
            return report.tell("image", Err("not looked at, since there is no engine".to_owned()));
        }
    };
    report.tell("engine", Ok(describe(&capabilities)));
    if capabilities.seccomp == Seccomp::Administrator {
        let own =
            "containers have the engine's own seccomp profile, which may let through more than Caisson's";
        report.tell("weaker", Ok(own.to_owned()));
    }
    report.tell("paths", shared_paths::told(engine, image, &state_dir.join("server_id")).await);
    let image_result = match engine.image_present(image).await {
        Ok(true) => Ok(image.to_owned()),
        Ok(false) => Err(image_remedy(image)),
        Err(error) => Err(chain(&error)),
    };
    report.tell("image", image_result);
}

fn describe_local(found: &LocalCapabilities) -> String {
    let limits = match &found.limits {
        LimitsBy::ControlGroups { version, .. } => format!("limits by control groups (version {version})"),
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

fn agent(settings: &Settings) -> Result<String, String> {
    Agents::new(settings.agents_dir())
        .verify(&settings.agent_version)
        .map(|manifest| format!("Claude Code {}, unchanged since it was installed", manifest.version))
        .map_err(|error| format!("{error:#}"))
}

/// What `serve` would read; beyond that, what no run can do without.
fn input(settings: &Settings, part: Part, faults: &Faults, report: &Report) -> Result<String, String> {
    if let Some(text) = faults.of(part) {
        return Err(text);
    }
    let shown = |file: &Option<PathBuf>| file.as_ref().map(|file| file.display().to_string());
    match part {
        Part::Settings => Ok("every value fits".to_owned()),
        Part::Shim => Ok(shown(&settings.shim).unwrap_or_else(|| "beside this program".to_owned())),
        Part::Model => model(settings),
        Part::Prices => Ok(shown(&settings.prices_file).unwrap_or_else(|| "shipped".to_owned())),
        Part::Repositories => repositories(settings),
        Part::GitHosts => Ok(counted(settings.git.credentials.len(), "credential", "credentials")),
        Part::Egress => egress(settings, report),
        Part::Mcp if settings.mcp.allow.is_empty() => Ok("workflows may name no HTTP servers".to_owned()),
        Part::Mcp => Ok(counted(settings.mcp.allow.len(), "host", "hosts")),
        Part::Gateway if faults.0.is_empty() => Ok("takes these settings".to_owned()),
        Part::Gateway => Ok("nothing else is wrong".to_owned()),
        Part::Tls if settings.tls.cert_file.is_none() => Ok("none; the API speaks plain HTTP".to_owned()),
        Part::Tls => Ok("certificate and key belong together".to_owned()),
        Part::Workflows => {
            Ok(shown(&settings.workflows_dir)
                .map_or("shipped".to_owned(), |dir| format!("shipped, and {dir}")))
        }
    }
}

async fn address(
    settings: &Settings,
    server: Option<&ServerId>,
    store: Option<&Store>,
) -> Result<String, String> {
    let is_live = match (server, store) {
        (Some(server), Some(store)) => {
            store.live_servers().await.is_ok_and(|live| live.iter().any(|live| live.id == *server))
        }
        (None, _) | (_, None) => false,
    };
    can_listen(settings.listen, std::net::TcpListener::bind(settings.listen).map(drop), is_live)
}

/// What it means that the address could be listened on or not, and that a server was alive lately: one that has stopped
/// counts as alive for a while.
fn can_listen(listen: SocketAddr, tried: std::io::Result<()>, is_live: bool) -> Result<String, String> {
    match tried {
        Ok(()) => Ok(format!("{listen} is free")),
        Err(_) if is_live => Ok("a server runs with this state directory".to_owned()),
        Err(error) => Err(format!("{listen} cannot be listened on ({error}); choose another with --listen")),
    }
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

/// The model where the store has a credential for it; settings that cannot be used keep a server from starting all the same.
fn stored_model(settings: &Settings, faults: &Faults) -> Result<String, String> {
    match faults.of(Part::Model) {
        Some(text) => Err(text),
        None => Ok(format!("{}, credential in the store", settings.model.base_url)),
    }
}

/// The master key that the server would find.
async fn master_key(settings: &Settings, store: Option<&Store>) -> Result<String, String> {
    let file = master_key_file(settings);
    let Some(store) = store else {
        return Ok("looked at when there is a database of this version".to_owned());
    };
    match store.check_master_key(&file).await {
        Ok(true) => Ok(file.path().display().to_string()),
        Ok(false) => Ok("none yet; it is made when it is needed".to_owned()),
        Err(error) => Err(chain(&error)),
    }
}

fn model(settings: &Settings) -> Result<String, String> {
    let model = &settings.model;
    if model.api_key.is_none() && model.api_key_file.is_none() && model.auth_token_file.is_none() {
        return Err("no credential for the model API; add one with `caisson credential add`, or set model.api_key_file \
                    (CAISSON_MODEL__API_KEY_FILE)"
            .to_owned());
    }
    Ok(format!("{}, credential configured", model.base_url))
}

fn repositories(settings: &Settings) -> Result<String, String> {
    let (patterns, directories) = (settings.repositories.len(), settings.allow_repo.len());
    if patterns + directories == 0 {
        return Err(
            "no repository is allowed; name a directory with --allow-repo DIR (CAISSON_ALLOW_REPO), or URLs with \
             repositories (CAISSON_REPOSITORIES)"
                .to_owned(),
        );
    }
    let urls = counted(patterns, "URL", "URLs");
    Ok(format!("{urls} and {} allowed", counted(directories, "directory", "directories")))
}

/// As a server does, warns of a preset that came to nothing.
fn egress(settings: &Settings, report: &Report) -> Result<String, String> {
    let (upstreams, notes) =
        settings.egress.upstreams(&settings.clients).map_err(|error| format!("{error:#}"))?;
    for note in &notes {
        report.warn(Part::Egress.name(), note);
    }
    let rules = upstreams.rules.len() + upstreams.presets.iter().map(|(_, rules)| rules.len()).sum::<usize>();
    Ok(match (rules, upstreams.learn) {
        (_, true) => {
            format!("{}, and every public host while egress.learn is on", counted(rules, "rule", "rules"))
        }
        (0, false) => "tools reach nothing outside".to_owned(),
        (_, false) => format!("{}; the workflow may choose among them", counted(rules, "rule", "rules")),
    })
}

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use caisson_sandbox::docker::DEFAULT_IMAGE;

    use super::*;

    #[test]
    fn a_server_that_has_just_stopped_does_not_run() {
        let listen: SocketAddr = "127.0.0.1:7070".parse().unwrap();
        let taken = || Err(std::io::ErrorKind::AddrInUse.into());
        for is_live in [true, false] {
            assert_eq!(can_listen(listen, Ok(()), is_live), Ok("127.0.0.1:7070 is free".to_owned()));
        }
        assert!(can_listen(listen, taken(), true).unwrap().contains("a server runs"));
        assert!(can_listen(listen, taken(), false).unwrap_err().contains("--listen"));
    }

    #[test]
    fn only_the_default_image_is_built_here() {
        assert!(image_remedy(DEFAULT_IMAGE).contains("caisson image build"));
        let own = image_remedy("r.example/x@sha256:0");
        assert!(own.contains("docker pull r.example/x@sha256:0") && !own.contains("image build"), "{own}");
    }
}
