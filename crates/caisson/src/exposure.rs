//! Settings that let more people in, or see more, than most mean them to. `doctor` and the server's log tell of them; none
//! keeps a server from starting. What each is good for: `docs/hardening.md`.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use caisson_domain::credential::{CredentialSettings, OVER_TLS};
use caisson_domain::egress::{self, AddressRange, HostPattern, Rule, Scope, Target, Via, Wanted};
use caisson_domain::id::ProjectId;
use caisson_domain::limits::PAGE_ITEMS;
use caisson_sandbox::docker::{DEFAULT_HOST, DEFAULT_IMAGE};
use caisson_store::{ProjectSpending, Spending, Store, StoreError};
use url::{Host, Url};

use crate::logins::without_logins;
use crate::render::clean;
use crate::settings::database::Place;
use crate::settings::{EngineChoice, Settings};
use crate::vault::master_key_file;

/// Bits of a file's mode that let others than its owner read or write it.
const OTHERS: u32 = 0o077;
/// Bits of a file's mode that let others than its owner write it.
const OTHERS_WRITE: u32 = 0o022;

/// Bit of a directory's mode that keeps everybody but its owner from renaming and removing what is not their own.
const STICKY: u32 = 0o1000;

/// Files by which a state directory is known that has been used.
const OWN: [&str; 4] = ["caisson.db", "audit_key", "master.key", "server_id"];
/// How many projects a note names.
const PROJECTS_NAMED: usize = 5;
/// Which users of the machine have further uids.
const SUBORDINATE: &str = "/etc/subuid";
/// Where clouds tell a machine its own credentials (`169.254.169.254`, `fd00:ec2::254`), and the machine itself.
const INSIDE: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// Every weakness of the settings, of the files they name and of the machine, each with what to do.
pub(crate) fn weaknesses(settings: &Settings) -> Vec<String> {
    let mut found = of_settings(settings);
    if settings.engine != EngineChoice::Local {
        let host = settings.docker.host.as_deref().unwrap_or(DEFAULT_HOST);
        found.extend(host.strip_prefix("unix://").and_then(|socket| open_socket(Path::new(socket))));
    }
    if nix::unistd::geteuid().is_root() {
        let users = fs::read_to_string(SUBORDINATE).unwrap_or_default();
        found.extend(shared_uids(settings.uid_base, &users));
    }
    found.iter().map(|text| without_logins(text)).collect()
}

fn of_settings(settings: &Settings) -> Vec<String> {
    let plain = settings.tls.cert_file.is_none() && !settings.listen.ip().is_loopback();
    let plain = plain.then(|| {
        format!(
            "the API listens on {} without TLS: API keys can be read on the way; set tls.cert_file and tls.key_file, \
             or listen on 127.0.0.1 behind a proxy that speaks TLS",
            settings.listen
        )
    });
    let own_uid = nix::unistd::geteuid().as_raw();
    let files = secret_files(settings);
    let database = match settings.database_place() {
        Ok(Place::Postgres(place)) => place.weakness(),
        // A URL that cannot be read is told of by whoever opens it.
        Ok(Place::File(_)) | Err(_) => None,
    };
    let mut found: Vec<String> = plain.into_iter().chain(database).collect();
    found.extend(files.iter().filter_map(|file| wide(file)));
    let parent = settings.file.as_deref().and_then(Path::parent);
    let directory = parent.map(|parent| if parent == Path::new("") { Path::new(".") } else { parent });
    let configuration = settings.file.as_deref().into_iter().chain(directory);
    found.extend(configuration.clone().filter_map(writable));
    // Its mode is looked at by whoever reads it, and refused.
    let master_key = master_key_file(settings);
    let owned = configuration.chain(files.iter().map(PathBuf::as_path)).chain([master_key.path()]);
    found.extend(owned.filter_map(|file| foreign(file, own_uid)));
    found.extend(unpinned(settings));
    found.extend(unlimited(settings));
    found.extend(fills_all(settings));
    found.extend(unencrypted(settings));
    found.extend(never_sent(settings));
    found.extend(wide_ways(settings));
    found.extend((settings.min_free_disk_mib == 0).then(|| {
        "min_free_disk_mib is 0: nothing keeps sandboxes from filling the disk; leave it out for 1024"
            .to_owned()
    }));
    found
}

/// What may well be meant so, and is worth a second look before others use the server; `unbounded` are the projects without a
/// budget ([`unbounded`]).
pub(crate) fn notes(settings: &Settings, unbounded: &[ProjectId]) -> Vec<String> {
    let beside = |file: &Path| file.starts_with(&settings.state_dir);
    let hosts = !settings.repositories.is_empty();
    let notes = [
        (
            hosts && settings.git.forbidden_paths.is_empty(),
            "pushes may change what a git host runs with its own secrets; set git.forbidden_paths, such as .github/workflows \
             and .gitlab-ci.yml",
        ),
        (
            !settings.model.provider_tools.is_empty(),
            "model.provider_tools lets agents reach outside through the model API's provider, where no rule of egress holds",
        ),
        (settings.git.any_submodules, "git.any_submodules lets pushes add submodules from everywhere"),
        (
            !settings.git.secret_rules_off.is_empty(),
            "git.secret_rules_off leaves out rules for secrets in pushes; keep the list short",
        ),
        (
            settings.model.api_key.is_some(),
            "model.api_key holds the key itself, which backups and `systemctl show` show; use `caisson credential add`, or \
             model.api_key_file",
        ),
        (
            settings.master_key_file.as_deref().is_none_or(beside),
            "the master key lies beside the database that it opens, and so in each copy of both; set master_key_file",
        ),
        (
            beside(&settings.audit_head()),
            "the audit log's head lies beside the database; set audit_head to where only heads are kept, or copy it elsewhere",
        ),
    ];
    let budgets = spend_freely(unbounded);
    let notes = notes.into_iter().filter(|(is_so, _)| *is_so).map(|(_, text)| text.to_owned());
    budgets.into_iter().chain(notes).collect()
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

/// The key of one project is then enough to keep all others from working, for as long as starts can be put off.
fn fills_all(settings: &Settings) -> Option<String> {
    settings.queue.lets_one_fill_all().then(|| {
        "queue.max_queued_per_project is no less than queue.max_queued: one project may fill the queue of all; leave it out \
         for half, and give a project that needs more its own with `caisson project set PROJECT --max-queued N`"
            .to_owned()
    })
}

/// Every file that holds a secret, as far as there is one.
fn secret_files(settings: &Settings) -> Vec<PathBuf> {
    let model = [&settings.model.api_key_file, &settings.model.auth_token_file];
    let named = model.into_iter().chain([&settings.tls.key_file, &settings.database.url_file]);
    let mut files: Vec<PathBuf> = named.flatten().cloned().collect();
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

/// A file that others can write, or a directory in which they can put another in its place: whoever does that says where the server
/// sends its credentials.
fn writable(file: &Path) -> Option<String> {
    let metadata = fs::metadata(file).ok()?;
    let mode = metadata.permissions().mode();
    // There, nobody takes away what is another's.
    let is_sticky = metadata.is_dir() && mode & STICKY != 0;
    let mode = mode & 0o777;
    let narrow = mode & !OTHERS_WRITE;
    (mode & OTHERS_WRITE != 0 && !is_sticky).then(|| {
        let file = file.display();
        format!(
            "\"{file}\" has mode {mode:04o}: others can change the configuration; `chmod {narrow:04o} {file}`"
        )
    })
}

/// A file of another user's, who can change it whatever its mode is. Root's is nobody else's.
fn foreign(file: &Path, own_uid: u32) -> Option<String> {
    let owner = fs::metadata(file).ok()?.uid();
    (owner != own_uid && owner != 0).then(|| {
        let file = file.display();
        format!("\"{file}\" belongs to uid {owner}, who can change it; `chown {own_uid} {file}`")
    })
}

/// Whoever may use the engine's socket is root on this machine.
fn open_socket(socket: &Path) -> Option<String> {
    let mode = fs::metadata(socket).ok()?.permissions().mode() & 0o777;
    (mode & 0o002 != 0).then(|| {
        let socket = socket.display();
        format!(
            "the engine's socket \"{socket}\" has mode {mode:04o}: every user of this machine can become root by it; \
             `chmod o-rwx {socket}`"
        )
    })
}

/// Lines of subuid(5), `user:first:count`, whose users have sandboxes' uids. A session gets the next uid from `base` on.
fn shared_uids(base: u32, users: &str) -> Option<String> {
    let ranges = users.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (user, first, count) = (fields.next()?, fields.next()?, fields.next()?);
        let end = first.parse::<u64>().ok()?.checked_add(count.parse().ok()?)?;
        (end > u64::from(base)).then_some((user, end))
    });
    let (user, end) = ranges.max_by_key(|(_, end)| *end)?;
    Some(format!(
        "{SUBORDINATE} gives \"{}\" uids that sandboxes have, too, from uid_base {base} on: that user can enter them; set \
         uid_base to {end} or more on a server without sessions",
        user.escape_debug()
    ))
}

/// The projects without a budget of a day or for good, neither of the settings, which are the default project's, nor set over the
/// API; without a store, which has the others, the default one alone is looked at. What earlier settings named is none: it goes
/// at the next start.
///
/// # Errors
/// As every read of the store.
pub(crate) async fn unbounded(
    settings: &Settings,
    store: Option<&Store>,
) -> Result<Vec<ProjectId>, StoreError> {
    let default = ProjectId::default_project();
    let named = settings.budget.project_micro_usd.or(settings.budget.day_micro_usd).is_some();
    let mut found = Vec::new();
    let projects = match store {
        Some(store) => projects(store).await?,
        None => vec![default.clone()],
    };
    for project in projects {
        let spending = match store {
            Some(store) => store.project_spending(&project).await?.unwrap_or_default(),
            None => ProjectSpending::default(),
        };
        let is_set = |part: Spending| part.budget_micro_usd.is_some() && !part.is_setting;
        let by_settings = named && project == default;
        if !by_settings && !is_set(spending.total()) && !is_set(spending.today()) {
            found.push(project);
        }
    }
    Ok(found)
}

/// What is said of projects without a budget: one note of the default project, and one of all others.
fn spend_freely(unbounded: &[ProjectId]) -> Vec<String> {
    let default = ProjectId::default_project();
    let own = unbounded.contains(&default).then(|| {
        "no budget bounds what agents may spend; set budget.day_micro_usd, or use `caisson budget set --day`".to_owned()
    });
    let others: Vec<_> =
        unbounded.iter().filter(|project| **project != default).map(ProjectId::as_str).collect();
    let more = others.len().saturating_sub(PROJECTS_NAMED);
    let named = others[..others.len() - more].join(", ");
    let and_more = if more == 0 { String::new() } else { format!(" and {more} more") };
    let others = (!others.is_empty()).then(|| {
        format!(
            "no budget bounds what agents of other projects may spend: {named}{and_more}; use `caisson budget set --day` with a \
             key of the project that has the scope admin"
        )
    });
    own.into_iter().chain(others).collect()
}

/// Every project.
///
/// # Errors
/// As every read of the store.
pub(crate) async fn projects(store: &Store) -> Result<Vec<ProjectId>, StoreError> {
    let mut all: Vec<ProjectId> = Vec::new();
    loop {
        let page = store.list_projects(all.last(), PAGE_ITEMS).await?;
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page.into_iter().map(|project| project.id));
    }
}

/// Ways on which a credential, or what a page says, can be read and changed by others.
fn unencrypted(settings: &Settings) -> Vec<String> {
    let mut found = Vec::new();
    if is_open(&settings.model.base_url) {
        found.push(format!(
            "model.base_url {} is plain HTTP: the model's key and all that agents read can be read on the way; use https",
            settings.model.base_url
        ));
    }
    let prefixes = settings.git.credentials.iter().map(|credential| &credential.url_prefix);
    found.extend(prefixes.filter(|url| is_open(url)).map(|url| {
        format!("git.credentials sends a token to {url} over plain HTTP, where it can be read; use https")
    }));
    let prefixes = settings.egress.credentials.iter().map(|credential| &credential.url_prefix);
    found.extend(prefixes.filter(|url| is_open(url)).map(|url| {
        format!(
            "egress.credentials sends a token to {url} over plain HTTP, where it can be read; write https:// before the host, there \
             and in the rule of egress.allow"
        )
    }));
    let origins =
        settings.api.cors_origins.iter().filter(|origin| origin.parse().is_ok_and(|url| is_open(&url)));
    found.extend(origins.map(|origin| {
        format!("api.cors_origins has {origin}: whoever is on the way to that page can use the API through it; use https")
    }));
    found
}

/// Tokens for TLS of which no rule has the server send anything over TLS.
fn never_sent(settings: &Settings) -> Vec<String> {
    let rules: Vec<Rule> = settings.egress.allow.iter().filter_map(|text| text.parse().ok()).collect();
    let prefixes = settings.egress.credentials.iter().map(|credential| &credential.url_prefix);
    let unsent = prefixes.filter(|url| url.scheme() == "https" && !rules.iter().any(|rule| meets(rule, url)));
    unsent
        .map(|url| {
            format!(
                "egress.credentials has a token for {url}, and no rule of egress.allow has the server speak TLS there, so that it is \
                 never sent; add the rule \"{url}\""
            )
        })
        .collect()
}

/// Whether a request that the rule sends over TLS may lie below the URL.
fn meets(rule: &Rule, url: &Url) -> bool {
    let Scope::Https { methods, path } = &rule.scope else { return false };
    let (host, port) = (url.host_str().unwrap_or_default(), url.port_or_known_default());
    let (Ok(host), Some(port)) = (egress::Host::parse(host), port) else { return false };
    let below = url.path().trim_end_matches('/');
    // The longer one of the two paths lies below both, if any does.
    [path.as_str(), url.path()].into_iter().filter(|path| path.starts_with(below)).any(|path| {
        let (method, path) = (methods.first().cloned().unwrap_or_default(), path.to_owned());
        rule.allows(&Wanted { target: Target { host: host.clone(), port }, via: Via::Https { method, path } })
    })
}

/// Whether what is said to the URL leaves this machine without encryption.
fn is_open(url: &Url) -> bool {
    let is_here = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    url.scheme() == "http" && !is_here
}

/// Ways outside that are wider than a rule should be, for tools and for MCP. What cannot be read is told elsewhere.
fn wide_ways(settings: &Settings) -> Vec<String> {
    let (egress, mcp) = (&settings.egress, &settings.mcp);
    let mut found = wide_section("egress", &egress.allow, &egress.allow_private);
    found.extend(wide_section("mcp", &mcp.allow, &mcp.allow_private));
    found
}

fn wide_section(section: &str, allow: &[String], allow_private: &[String]) -> Vec<String> {
    let rules = allow.iter().filter(|text| {
        let rule = text.parse::<Rule>();
        rule.is_ok_and(|rule| matches!(rule.host, HostPattern::Below(suffix) if !suffix.contains('.')))
    });
    let rules = rules.map(|text| {
        format!(
            "{section}.allow has {text}: everybody can have a name there; allow the hosts that are needed"
        )
    });
    let inside = |text: &&String| {
        text.parse::<AddressRange>().is_ok_and(|range| INSIDE.iter().any(|address| range.contains(*address)))
    };
    let ranges = allow_private.iter().filter(inside).map(|text| {
        format!(
            "{section}.allow_private has {text}: agents may reach this machine's own services, or the credentials that a cloud \
             gives to it; allow the addresses that are needed"
        )
    });
    rules.chain(ranges).collect()
}

/// What the store holds that is sent where others can read it, each with what to do.
///
/// # Errors
/// As every read of the store.
pub(crate) async fn weaknesses_of_store(store: &Store) -> Result<Vec<String>, StoreError> {
    let mut found = Vec::new();
    for project in projects(store).await? {
        let credentials = store.list_credentials(&project).await?;
        found.extend(credentials.iter().filter_map(|one| open_credential(&one.name, &one.settings)));
    }
    Ok(found)
}

fn open_credential(name: &str, settings: &CredentialSettings) -> Option<String> {
    let (name, kind) = (clean(name), settings.kind());
    let destinations = settings.destinations();
    let open: Vec<_> = destinations.iter().filter(|url| is_open(url)).map(Url::as_str).collect();
    if open.is_empty() {
        return None;
    }
    let urls = open.join(" and to ");
    let anew = match settings {
        CredentialSettings::RegistryToken { host, .. } => {
            format!("with host={OVER_TLS}{host}, and an https:// rule in egress.allow")
        }
        CredentialSettings::ModelApiKey { .. }
        | CredentialSettings::ModelOauth { .. }
        | CredentialSettings::GitToken { .. }
        | CredentialSettings::GitGithubApp { .. }
        | CredentialSettings::McpHeader { .. } => "for an https URL".to_owned(),
    };
    Some(format!(
        "the credential \"{name}\" ({kind}) is sent to {urls} over plain HTTP, where it can be read; add it anew {anew}, then \
         `caisson credential remove` it"
    ))
}

#[cfg(test)]
#[path = "exposure_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "exposure_stored_tests.rs"]
mod stored_tests;
