//! Looking at a push in its quarantine: git's own checks of its objects, bounds, secrets, paths and submodules.
//!
//! Everything in the pack is looked at, whether a commit leads to it or not: a host keeps all of it. Where something is
//! found that may have been there before, the commits are compared with what the repository has.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::{Buf, Bytes};
use caisson_domain::checks::{Check, stands};
use caisson_domain::git::{AllowList, Repository};
use caisson_domain::globs::{GlobError, Globs};
use caisson_domain::redact::{ProjectSecrets, Redactor};
use futures_util::future::OptionFuture;
use futures_util::stream::StreamExt;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::io::ReaderStream;
use url::Url;

use super::Upstream;
use super::apart::{Stopped, work};
use super::brought::{Foreign, Standing};
use super::compare::{Base, Change, Changes, CompareError, Comparison};
use super::finding::{Finding, Place, shown};
use super::helper::{Helper, HelperError, LACKS_ATTRIBUTES, finish};
use super::objects::{Candidate, Contents, FORMAT, Id, Looking, ReadError};
use super::process::{Pipes, last_words};
use super::quarantine::{PACK, Quarantine, Quarantines};
use super::secrets::Secrets;
use crate::bounds::{Bounds, CHUNKS};
use crate::config::{GatewayError, GitUpstreams, ModelCredential, PushRules};

/// Taken from git's output at once, in bytes.
const PIECE_BYTES: usize = 64 * 1024;

/// What looks at pushes, for the whole server.
pub(super) struct Inspector {
    pub(super) helper: Helper,
    pub(super) quarantines: Quarantines,
    live: Vec<SecretString>,
    /// What is looked for without any credential of the store.
    configured: Arc<Secrets>,
    /// What is looked for, and by which redactor the same secrets are; those of one that is gone go too.
    secrets: Mutex<Vec<(Weak<Redactor>, Arc<Secrets>)>>,
    pub(super) globs: Arc<Globs>,
    rules: PushRules,
    /// [`crate::bounds::INSPECTIONS`].
    turns: Semaphore,
}

/// The parts of an inspector that the configuration decides, found fit.
pub(super) struct Parts {
    helper: Helper,
    /// The credentials of the configuration.
    live: Vec<SecretString>,
    secrets: Arc<Secrets>,
    globs: Globs,
    rules: PushRules,
}

/// Why a push was not looked at to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum InspectError {
    #[error("{0}")]
    Helper(#[from] HelperError),
    #[error("{0}")]
    Read(#[from] ReadError),
    #[error("it could not be compared with what the repository has: {0}")]
    Compare(#[from] CompareError),
    #[error("it took too long")]
    Late,
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// What a push is judged by.
pub(super) struct Case<'a> {
    pub(super) quarantine: &'a Quarantine,
    pub(super) upstream: &'a Upstream,
    pub(super) repository: &'a Repository,
    pub(super) allow: &'a AllowList,
    pub(super) bounds: &'a Bounds,
    pub(super) secrets: Arc<Secrets>,
    /// What the run's workflow forbids beside the settings.
    pub(super) forbidden: Arc<Globs>,
    pub(super) standing: Standing,
    /// Digits of an id.
    pub(super) digits: usize,
}

impl Case<'_> {
    pub(super) fn place(&self, change: &Change) -> Place {
        place(change, &self.secrets, self.digits)
    }
}

impl Parts {
    /// # Errors
    /// [`GatewayError`] for a rule or a credential that cannot be used, and where a program is missing.
    pub(super) fn new(
        git: &Path,
        upstreams: &GitUpstreams,
        model: Option<&ModelCredential>,
        proxies: &[&Url],
    ) -> Result<Self, GatewayError> {
        let mut live: Vec<SecretString> =
            upstreams.credentials.iter().map(|credential| credential.token.clone()).collect();
        match model {
            Some(ModelCredential::ApiKey(key) | ModelCredential::Bearer(key)) => live.push(key.clone()),
            None => {}
        }
        live.extend(proxies.iter().filter_map(|proxy| proxy.password()).map(SecretString::from));
        let rules = upstreams.pushes.clone();
        Ok(Self {
            helper: Helper::new(git)?,
            secrets: Arc::new(Secrets::new(&exposed(&live), &rules.secret_rules)?),
            live,
            globs: Globs::new(&rules.forbidden_paths).map_err(|GlobError { value, reason }| {
                GatewayError::PushRule { which: "git.forbidden_paths", value, reason }
            })?,
            rules,
        })
    }
}

impl Inspector {
    /// `most` pushes are looked at at once.
    ///
    /// # Errors
    /// [`GatewayError::Quarantine`].
    pub(super) fn new(parts: Parts, directory: PathBuf, most: usize) -> Result<Self, GatewayError> {
        let Parts { helper, live, secrets, globs, rules } = parts;
        let quarantines =
            Quarantines::prepare(directory, helper.owner()).map_err(GatewayError::Quarantine)?;
        let turns = Semaphore::new(most);
        Ok(Self {
            helper,
            quarantines,
            live,
            configured: secrets,
            secrets: Mutex::default(),
            globs: Arc::new(globs),
            rules,
            turns,
        })
    }

    /// What is looked for now in pushes of a project: its credentials and those of the configuration, and what looks like one.
    pub(super) fn secrets(&self, of_project: &ProjectSecrets) -> Arc<Secrets> {
        let (version, texts) = of_project.now();
        let mut known = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(of, _)| of.strong_count() > 0);
        if let Some((_, secrets)) = known.iter().find(|(of, _)| of.as_ptr() == Arc::as_ptr(&version)) {
            return Arc::clone(secrets);
        }
        let all = [exposed(&self.live), exposed(&texts)].concat();
        match Secrets::new(&all, &self.rules.secret_rules) {
            Ok(secrets) => {
                let secrets = Arc::new(secrets);
                known.push((Arc::downgrade(&version), Arc::clone(&secrets)));
                secrets
            }
            // There are bounds on how many there can be, so that this does not happen.
            Err(error) => {
                tracing::error!(%error, "credentials cannot be looked for in pushes");
                Arc::clone(&self.configured)
            }
        }
    }

    /// Looks at the pack in the quarantine. Without findings it may be forwarded, but for its commits' order.
    ///
    /// # Errors
    /// [`InspectError`]; a fault of the push itself is a finding.
    /// # Cancel safety
    /// Dropped, it kills its processes.
    pub(super) async fn inspect(&self, case: &Case<'_>) -> Result<(Contents, Vec<Finding>), InspectError> {
        let Ok(_turn) = self.turns.acquire().await else { return Err(Stopped.into()) };
        timeout(case.bounds.push.time, self.look(case)).await.map_err(|_| InspectError::Late)?
    }

    async fn look(&self, case: &Case<'_>) -> Result<(Contents, Vec<Finding>), InspectError> {
        let none = || Contents::default();
        match self.check(case).await {
            Ok(()) => {}
            Err(HelperError::Failed(said)) => {
                return Ok((none(), vec![Finding::pack(&case.secrets.none_in(said))]));
            }
            Err(error @ HelperError::Exceeded) => {
                return Ok((none(), vec![Finding::pack(&error.to_string())]));
            }
            Err(error @ (HelperError::Start(_) | HelperError::Pipes(_))) => return Err(error.into()),
        }
        let contents = match self.read(case).await {
            Ok(contents) => contents,
            Err(InspectError::Read(ReadError::Excess(excess))) => {
                return Ok((none(), vec![Finding::pack(&excess.to_string())]));
            }
            Err(InspectError::Helper(error @ HelperError::Exceeded)) => {
                return Ok((none(), vec![Finding::pack(&error.to_string())]));
            }
            Err(error) => return Err(error),
        };
        let mut findings: Vec<Finding> =
            contents.elsewhere.iter().map(|candidate| outside_files(candidate, &contents, case)).collect();
        if contents.too_many_candidates {
            findings.push(Finding::too_many(case.bounds.push.candidates));
        }
        match self.compare(case, &contents).await {
            Ok(found) => findings.extend(found),
            Err(CompareError::Excess(excess)) => {
                findings.push(Finding::pack(&excess.to_string()));
                findings.extend(self.unplaced(&contents));
            }
            // What was found may have been there before, and nobody can say.
            Err(error) if contents.candidates.is_empty() && contents.oversize.is_empty() => {
                return Err(error.into());
            }
            Err(error) => {
                let error = case.secrets.none_in(error.to_string());
                tracing::warn!(%error, "a push with findings could not be compared");
                findings.extend(self.unplaced(&contents));
            }
        }
        findings.retain(|finding| finding.check().is_none_or(stands));
        Ok((contents, findings))
    }

    /// Git's own checks; they also make the list of the pack's objects. The files that git looks into by their names are mostly not
    /// in the pack, since the repository has them: of `.gitmodules` it only says so, but for want of `.gitattributes` it fails.
    async fn check(&self, case: &Case<'_>) -> Result<(), HelperError> {
        let most = format!("--max-input-size={}", case.bounds.push_bytes);
        let fsck = stands(Check::Fsck).then_some("--fsck-objects");
        let arguments: Vec<&str> =
            ["index-pack"].into_iter().chain(fsck).chain([most.as_str(), PACK]).collect();
        let directory = &case.quarantine.directory;
        self.helper.run_but_for(directory, &arguments, case.bounds, &LACKS_ATTRIBUTES).await
    }

    fn looking(&self, case: &Case<'_>) -> Looking {
        let (secrets, bounds) = (Arc::clone(&case.secrets), case.bounds.push.clone());
        Looking { secrets, bounds, file_bytes: self.rules.file_bytes }
    }

    /// Reads every object once, as git prints them.
    async fn read(&self, case: &Case<'_>) -> Result<Contents, InspectError> {
        let arguments = ["cat-file", "--batch-all-objects", "--unordered", "--buffer", FORMAT];
        let (running, pipes) = self.helper.start(&case.quarantine.directory, &arguments, case.bounds)?;
        let Pipes { stdin, stdout, stderr } = pipes;
        drop(stdin);
        let (sender, receiver) = mpsc::channel(CHUNKS);
        let feeding = async move {
            let Some(stdout) = stdout else { return };
            let mut stdout = ReaderStream::with_capacity(stdout, PIECE_BYTES);
            while let Some(chunk) = stdout.next().await {
                if sender.send(chunk).await.is_err() {
                    return;
                }
            }
        };
        let looking = self.looking(case);
        let reading = work(move || Contents::read(Listing { receiver, chunk: Bytes::new() }, &looking));
        let time = case.bounds.push.time;
        let saying = OptionFuture::from(stderr.map(|stderr| last_words(stderr, time)));
        let ((), contents, said) = tokio::join!(feeding, reading, saying);
        match contents? {
            Err(ReadError::Cut(error)) => {
                // Git says better why.
                finish(running, said).await?;
                Err(ReadError::Cut(error).into())
            }
            Err(error @ ReadError::Excess(_)) => Err(error.into()),
            Ok(contents) => finish(running, said).await.map(|()| contents).map_err(Into::into),
        }
    }

    /// Whether any path is forbidden.
    pub(super) fn forbids_any(&self, case: &Case<'_>) -> bool {
        !self.globs.is_empty() || !case.forbidden.is_empty()
    }

    /// Whether it matters where submodules come from.
    pub(super) fn asks_after_submodules(&self) -> bool {
        !self.rules.any_submodules
    }

    /// Whether there is something that the push alone does not tell.
    fn has_questions(&self, case: &Case<'_>, contents: &Contents) -> bool {
        !contents.candidates.is_empty()
            || !contents.oversize.is_empty()
            || (contents.submodules && self.asks_after_submodules())
            || (self.forbids_any(case) && !contents.commits.is_empty())
    }

    async fn compare(&self, case: &Case<'_>, contents: &Contents) -> Result<Vec<Finding>, CompareError> {
        let comparison = self.comparison(case);
        let mut foreign =
            self.find_foreign((case, &comparison), contents, &HashSet::new(), "beginning").await?;
        if foreign.is_none()
            && !self.has_questions(case, contents)
            && !self.hides_submodules(case, &comparison, contents).await
        {
            return Ok(Vec::new());
        }
        let others = foreign.as_ref().map(Foreign::commits).unwrap_or_default();
        let mut base = comparison.base(contents, &others).await?;
        comparison.have_directories(&mut base, contents).await?;
        let changes = comparison.changes(contents).await?;
        let mut findings = self.paths(case, (&comparison, &mut base), (contents, &changes.all)).await?;
        if !findings.is_empty() {
            let upstream = Arc::new(self.upstream_commits(case, &comparison, contents).await);
            if !upstream.is_empty() {
                let (all, theirs) = (Arc::clone(&changes.all), Arc::clone(&upstream));
                let is_own = move |change: &&Change| !theirs.contains(&change.commit);
                let own = work(move || all.iter().filter(is_own).cloned().collect::<Vec<_>>()).await?;
                findings = self.paths(case, (&comparison, &mut base), (contents, &Arc::new(own))).await?;
                foreign =
                    self.find_foreign((case, &comparison), contents, &upstream, "own-beginning").await?;
                let others = foreign.as_ref().map(Foreign::commits).unwrap_or_default();
                comparison.have_commits(&mut base, contents, &others).await?;
            }
        }
        if let Some(foreign) = &foreign {
            let brought = self.brought(case, (&comparison, &mut base), (contents, foreign)).await?;
            let key = |finding: &Finding| (finding.rule, finding.place.path.clone());
            let told: HashSet<_> = findings.iter().map(key).collect();
            findings.extend(brought.into_iter().filter(|one| !told.contains(&key(one))));
        }
        let large: HashSet<Id> = contents.oversize.iter().map(|(blob, _)| *blob).collect();
        let mut bringing: HashMap<Id, &Change> = HashMap::new();
        for change in changes.all.iter() {
            if let Some(blob) = change.new.filter(|new| large.contains(new)) {
                bringing.entry(blob).or_insert(change);
            }
        }
        for (blob, _) in &contents.oversize {
            let place = bringing.get(blob).map(|change| case.place(change)).unwrap_or_default();
            findings.push(Finding::file_size(self.rules.file_bytes, place));
        }
        if !contents.candidates.is_empty() {
            findings.extend(self.added(case, (&comparison, &mut base), (contents, &changes)).await?);
        }
        Ok(findings)
    }

    /// Whether `new` comes after `old`; see [`Comparison::comes_after`].
    pub(super) async fn comes_after(
        &self,
        case: &Case<'_>,
        contents: &Contents,
        (new, old): (Id, Id),
    ) -> Result<bool, InspectError> {
        let asking = async { Ok(self.comparison(case).comes_after(contents, new, old).await?) };
        timeout(case.bounds.push.time, asking).await.map_err(|_| InspectError::Late)?
    }

    fn comparison<'a>(&'a self, case: &'a Case<'_>) -> Comparison<'a> {
        Comparison {
            helper: &self.helper,
            quarantines: &self.quarantines,
            quarantine: case.quarantine,
            upstream: case.upstream,
            bounds: case.bounds,
            looking: self.looking(case),
            digits: case.digits,
        }
    }

    /// The secrets that commits of the push bring: those that none of the files had that they changed.
    async fn added(
        &self,
        case: &Case<'_>,
        (comparison, base): (&Comparison<'_>, &mut Base),
        (contents, changes): (&Contents, &Changes),
    ) -> Result<Vec<Finding>, CompareError> {
        let mut of_file: HashMap<Id, Vec<&Candidate>> = HashMap::new();
        for candidate in &contents.candidates {
            of_file.entry(candidate.object).or_default().push(candidate);
        }
        let brings = |change: &&Change| change.new.is_some_and(|new| of_file.contains_key(&new));
        let bringing: Vec<&Change> = changes.all.iter().filter(brings).collect();
        let commits: HashSet<Id> = bringing.iter().map(|change| change.commit).collect();
        let known = comparison.known(base, contents, (changes, &commits)).await?;
        let mut findings = Vec::new();
        for change in &bringing {
            let known = known.get(&change.commit);
            let is_known = |hash: &[u8; 32]| known.is_some_and(|known| known.contains(hash));
            let candidates = change.new.and_then(|new| of_file.get(&new)).into_iter().flatten();
            for candidate in candidates.filter(|candidate| !is_known(&candidate.found.hit.hash)) {
                let place = Place { line: Some(candidate.found.line), ..case.place(change) };
                findings.push(Finding::secret(&candidate.found.hit.rule, place));
            }
        }
        // A host would keep what no commit leads to.
        let led_to: HashSet<Id> = bringing.iter().filter_map(|change| change.new).collect();
        let hidden = contents.candidates.iter().filter(|candidate| !led_to.contains(&candidate.object));
        findings.extend(hidden.map(|candidate| Finding::secret(&candidate.found.hit.rule, Place::default())));
        findings.sort_by(|one, other| one.place.cmp(&other.place));
        Ok(findings)
    }

    /// What was found in files, without its place.
    fn unplaced(&self, contents: &Contents) -> Vec<Finding> {
        let secrets = contents.candidates.iter().map(|candidate| {
            let place = Place { line: Some(candidate.found.line), ..Place::default() };
            Finding::secret(&candidate.found.hit.rule, place)
        });
        let large =
            contents.oversize.iter().map(|_| Finding::file_size(self.rules.file_bytes, Place::default()));
        secrets.chain(large).collect()
    }
}

/// Where a change is, without secrets.
pub(super) fn place(change: &Change, secrets: &Secrets, digits: usize) -> Place {
    let hidden = !secrets.find(&change.path, false).is_empty();
    let path = if hidden { "a path that holds a secret".to_owned() } else { shown(&change.path) };
    Place { path: Some(path), line: None, commit: Some(change.commit.hex(digits / 2)) }
}

fn exposed(secrets: &[SecretString]) -> Vec<&str> {
    secrets.iter().map(ExposeSecret::expose_secret).collect()
}

/// A secret in a commit, in a tag or in a file's name.
fn outside_files(candidate: &Candidate, contents: &Contents, case: &Case<'_>) -> Finding {
    let commit =
        contents.commits.contains_key(&candidate.object).then(|| candidate.object.hex(case.digits / 2));
    let place = match commit {
        Some(commit) => Place { path: Some("the message".to_owned()), line: None, commit: Some(commit) },
        None => Place { path: Some("a name".to_owned()), ..Place::default() },
    };
    Finding::secret(&candidate.found.hit.rule, place)
}

/// Git's listing, read where waiting is allowed.
struct Listing {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    chunk: Bytes,
}

impl Read for Listing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.chunk[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Listing {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.chunk.is_empty() {
            match self.receiver.blocking_recv() {
                None => break,
                Some(chunk) => self.chunk = chunk?,
            }
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, count: usize) {
        self.chunk.advance(count);
    }
}
