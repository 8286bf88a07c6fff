//! The secrets that are live now: those of the server's configuration for everybody, those of a project for that project.
//!
//! What one project keeps takes no room from another, and its runs cost what they themselves may say.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use secrecy::{ExposeSecret, SecretString};

use super::{Redactor, apart, replaced};
use crate::id::{CredentialId, ProjectId};

/// How long what was rotated out or removed is looked for, in milliseconds: what is under way may still say it.
pub const GRACE_MS: i64 = 60 * 60 * 1000;
/// Earlier values of a credential that are looked for in that time, the newest of them: one a minute, more often than any is
/// renewed.
pub const EARLIER: usize = 60;
/// Bytes of the earlier values of a credential, but for the newest two, beyond which the oldest are looked for no more.
pub const EARLIER_BYTES: usize = 64 * 1024;
/// Earlier values that are looked for however long they are.
const EARLIER_LEAST: usize = 2;

/// Where secrets of a credential come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// They are stored.
    Stored,
    /// Somebody outside issued them for it.
    Issued,
}

/// The secrets of one credential.
#[derive(Debug, Clone)]
pub struct Held {
    /// Whose they are.
    pub credential: CredentialId,
    /// Where they come from.
    pub origin: Origin,
    /// Grows with each value that the credential has, by origin: what is read late does not count as new.
    pub version: i64,
    /// Every text that must not be shown.
    pub secrets: Vec<SecretString>,
}

/// The secrets that are live now, for everybody who stores something; clones share them.
///
/// Those of the configuration are set at the start, those of the store whenever some are opened. Times are Unix ms, by the
/// caller's clock.
#[derive(Debug, Clone, Default)]
pub struct LiveSecrets(Arc<RwLock<Live>>);

/// The secrets that what a project says is looked through for: its own, and the server's.
#[derive(Debug, Clone)]
pub struct ProjectSecrets {
    live: LiveSecrets,
    project: ProjectId,
}

#[derive(Debug, Default)]
struct Live {
    configured: Vec<SecretString>,
    /// For those who have none of their own.
    redactor: Arc<Redactor>,
    projects: BTreeMap<ProjectId, Project>,
}

#[derive(Debug, Default)]
struct Project {
    /// The newest value first.
    credentials: BTreeMap<(CredentialId, Origin), Vec<Value>>,
    /// Raised by every change of what is looked for.
    revision: u64,
    redactor: Arc<Redactor>,
}

#[derive(Debug)]
struct Value {
    version: i64,
    secrets: Vec<SecretString>,
    /// Since when it is not the credential's any more.
    out_since_ms: Option<i64>,
}

impl LiveSecrets {
    /// These secrets of the configuration.
    #[must_use]
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a SecretString>) -> Self {
        let live = Self::default();
        live.replace(secrets);
        live
    }

    /// From now on these secrets of the configuration and no others of it.
    pub fn replace<'a>(&self, secrets: impl IntoIterator<Item = &'a SecretString>) {
        let configured: Vec<SecretString> = secrets.into_iter().cloned().collect();
        let redactor = Arc::new(Redactor::new(&configured));
        let mut live = self.write();
        (live.configured, live.redactor) = (configured, redactor);
        let projects: Vec<ProjectId> = live.projects.keys().cloned().collect();
        for project in live.projects.values_mut() {
            project.revision += 1;
        }
        drop(live);
        for project in &projects {
            self.renew(project);
        }
    }

    /// Those that what the project says is looked through for.
    #[must_use]
    pub fn of(&self, project: &ProjectId) -> ProjectSecrets {
        ProjectSecrets { live: self.clone(), project: project.clone() }
    }

    /// From now on these secrets of a project's credential, and those before for [`GRACE_MS`] more, the newest [`EARLIER`] of
    /// them.
    pub fn keep(&self, project: &ProjectId, held: Held, now_ms: i64) {
        self.change(project, |project| project.keep(held, now_ms));
    }

    /// The project has the credentials `listed`, and of them `opened` could be opened. What is held of others goes after
    /// [`GRACE_MS`].
    pub fn update(&self, project: &ProjectId, listed: &[CredentialId], opened: Vec<Held>, now_ms: i64) {
        self.change(project, |project| {
            project.leave(listed, now_ms);
            opened.into_iter().fold(false, |changed, held| project.keep(held, now_ms) | changed)
        });
        self.forget(now_ms);
    }

    /// Forgets everything whose time is over.
    pub fn forget(&self, now_ms: i64) {
        let projects: Vec<ProjectId> = self.read().projects.keys().cloned().collect();
        for project in &projects {
            self.change(project, |project| project.forget(now_ms));
        }
        // One that is used again meanwhile has something.
        self.write().projects.retain(|_, project| !project.credentials.is_empty());
    }

    /// The text without any secret of any project: for what they all share, such as the log.
    #[must_use]
    pub fn text<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let redactors: Vec<Arc<Redactor>> = {
            let live = self.read();
            // Those of projects have the server's secrets as well.
            let of_projects = live.projects.values().map(|project| &project.redactor);
            of_projects.chain([&live.redactor]).map(Arc::clone).collect()
        };
        let found = redactors.iter().flat_map(|redactor| redactor.find(text.as_bytes())).collect();
        replaced(text, apart(found))
    }

    /// Makes a change that says whether something else is looked for from then on, and has it looked for.
    fn change(&self, id: &ProjectId, change: impl FnOnce(&mut Project) -> bool) {
        let mut live = self.write();
        // Until its own are looked for the server's are.
        let redactor = Arc::clone(&live.redactor);
        let fresh = || Project { redactor, ..Project::default() };
        let project = live.projects.entry(id.clone()).or_insert_with(fresh);
        if !change(project) {
            return;
        }
        project.revision += 1;
        drop(live);
        self.renew(id);
    }

    /// Has everything looked for that is held of the project. It takes its time, in which others are not kept waiting.
    fn renew(&self, id: &ProjectId) {
        loop {
            let (revision, secrets) = {
                let live = self.read();
                let Some(project) = live.projects.get(id) else { return };
                (project.revision, live.all(id).cloned().collect::<Vec<_>>())
            };
            let redactor = Arc::new(Redactor::new(&secrets));
            let mut live = self.write();
            let Some(project) = live.projects.get_mut(id) else { return };
            if project.revision == revision {
                project.redactor = redactor;
                return;
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Live> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Live> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProjectSecrets {
    /// What takes them out.
    #[must_use]
    pub fn redactor(&self) -> Arc<Redactor> {
        Arc::clone(self.live.read().redactor(&self.project))
    }

    /// All of them, and what takes them out; as long as that is the same, so are they.
    #[must_use]
    pub fn now(&self) -> (Arc<Redactor>, Vec<SecretString>) {
        let live = self.live.read();
        (Arc::clone(live.redactor(&self.project)), live.all(&self.project).cloned().collect())
    }
}

impl Live {
    fn redactor(&self, project: &ProjectId) -> &Arc<Redactor> {
        self.projects.get(project).map_or(&self.redactor, |project| &project.redactor)
    }

    fn all(&self, project: &ProjectId) -> impl Iterator<Item = &SecretString> {
        let values = self.projects.get(project).into_iter().flat_map(|project| project.credentials.values());
        self.configured.iter().chain(values.flatten().flat_map(|value| &value.secrets))
    }
}

impl Project {
    /// Whether something else is held from now on.
    fn keep(&mut self, held: Held, now_ms: i64) -> bool {
        let Held { credential, origin, version, secrets } = held;
        let values = self.credentials.entry((credential, origin)).or_default();
        let mut is_new = true;
        if let Some(known) = values.iter_mut().find(|known| known.is(version, &secrets)) {
            is_new = false;
            known.out_since_ms = None;
        } else {
            values.insert(0, Value { version, secrets, out_since_ms: None });
            values.sort_by_key(|value| std::cmp::Reverse(value.version));
        }
        for earlier in values.iter_mut().skip(1) {
            earlier.out_since_ms.get_or_insert(now_ms);
        }
        values.truncate(1 + EARLIER.min(within_bytes(&values[1..])));
        is_new
    }

    /// Notes which credentials are gone.
    fn leave(&mut self, listed: &[CredentialId], now_ms: i64) {
        let gone = self.credentials.iter_mut().filter(|((credential, _), _)| !listed.contains(credential));
        for value in gone.flat_map(|(_, values)| values) {
            value.out_since_ms.get_or_insert(now_ms);
        }
    }

    /// Whether something is held no more.
    fn forget(&mut self, now_ms: i64) -> bool {
        let mut changed = false;
        for values in self.credentials.values_mut() {
            let before = values.len();
            // A clock that jumped back must not keep them for ever.
            values.retain_mut(|value| match &mut value.out_since_ms {
                Some(since_ms) => {
                    *since_ms = now_ms.min(*since_ms);
                    now_ms - *since_ms < GRACE_MS
                }
                None => true,
            });
            changed |= values.len() != before;
        }
        self.credentials.retain(|_, values| !values.is_empty());
        changed
    }
}

/// How many of the earlier values are looked for, the newest first.
fn within_bytes(earlier: &[Value]) -> usize {
    let mut bytes = 0;
    let fits = |value: &&Value| {
        bytes += value.secrets.iter().map(|secret| secret.expose_secret().len()).sum::<usize>();
        bytes <= EARLIER_BYTES
    };
    earlier.iter().take_while(fits).count().max(EARLIER_LEAST)
}

impl Value {
    fn is(&self, version: i64, secrets: &[SecretString]) -> bool {
        let same = |(one, two): (&SecretString, &SecretString)| one.expose_secret() == two.expose_secret();
        self.version == version
            && self.secrets.len() == secrets.len()
            && self.secrets.iter().zip(secrets).all(same)
    }
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
