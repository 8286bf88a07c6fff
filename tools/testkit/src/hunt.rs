//! The hunt for canaries: secrets of a test that must be found nowhere but where they are used, in every form that a leak could
//! have.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use aho_corasick::AhoCorasick;
use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

use crate::docker::{docker, inspect};
use crate::engine::{Engine, lives};
use crate::repository::git;
use crate::world::World;

/// Most of a process's memory that is read at once, in bytes.
const PIECE: u64 = 64 * 1024 * 1024;
/// How often, and how long after each other, a process that starts a program is looked at again.
const STARTING_LOOKS: u32 = 100;
const STARTING: Duration = Duration::from_millis(20);
/// What of a sandbox's file system is its own, or may be: the rest is the host's, or the image's and read-only.
const OWN: [&str; 9] =
    ["etc", "tmp", "run", "var", "dev/shm", "caisson/door", "caisson/journal", "home", "workspace"];
/// Least of an image's files, in bytes.
const EXPORT_BYTES: usize = 50_000_000;
/// Fewest files that a sandbox has of its own.
const OWN_FILES: usize = 30;

/// A command by which an agent leaves a mark in each place of its sandbox that is in memory; see [`Hunt::prove_in_memory`].
pub const LEAVE_MARKS: &str =
    "for place in /tmp /dev/shm; do echo a-mark-of-the-agent-5c17e0 > $place/mark; done";
const MARK: Canary<'static> = Canary { name: "mark", secret: "a-mark-of-the-agent-5c17e0" };
const MARKED: [&str; 2] = ["/tmp/mark", "/dev/shm/mark"];

/// A secret, and what it is called.
#[derive(Debug, Clone, Copy)]
pub struct Canary<'a> {
    /// Such as `git token`.
    pub name: &'a str,
    /// The secret.
    pub secret: &'a str,
}

/// A hunt: what is looked for, where it was looked for, and what was found.
#[derive(Debug)]
pub struct Hunt {
    searcher: AhoCorasick,
    names: Vec<String>,
    /// How many places were looked at: files, answers, objects, pieces of memory.
    pub places: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What was found, and where.
    pub found: BTreeSet<String>,
}

impl Hunt {
    /// A hunt for these canaries.
    ///
    /// # Errors
    /// A canary has fewer than eight bytes, which would be found by chance.
    pub fn new(canaries: &[Canary<'_>]) -> anyhow::Result<Self> {
        let (mut names, mut needles) = (Vec::new(), Vec::new());
        for canary in canaries {
            ensure!(canary.secret.len() >= 8, "the canary \"{}\" is too short", canary.name);
            for (form, needle) in forms(canary.secret) {
                names.push(format!("{}, {form}", canary.name));
                needles.push(needle);
            }
        }
        Ok(Self { searcher: AhoCorasick::new(needles)?, names, places: 0, bytes: 0, found: BTreeSet::new() })
    }

    /// How many forms of canaries are looked for.
    #[must_use]
    pub fn needles(&self) -> usize {
        self.names.len()
    }

    /// Looks at bytes.
    pub fn look(&mut self, place: &str, bytes: &[u8]) {
        self.places += 1;
        self.bytes += bytes.len() as u64;
        for hit in self.searcher.find_overlapping_iter(bytes) {
            self.found.insert(format!("{} in {place}", self.names[hit.pattern().as_usize()]));
        }
    }

    /// Looks at every file below a directory but `except`, and says how many there were. Links are not followed, and what cannot be
    /// read is left out.
    pub fn tree(&mut self, root: &Path, except: &[&str]) -> usize {
        self.walk(root, except).looked_at
    }

    /// The same of a directory that is there and of which everything can be read; what goes meanwhile is no fault.
    ///
    /// # Errors
    /// It cannot be listed, or something below it cannot be read.
    pub fn whole_tree(&mut self, root: &Path) -> anyhow::Result<usize> {
        fs::read_dir(root).with_context(|| format!("{} cannot be listed", root.display()))?;
        let Walked { looked_at, faults } = self.walk(root, &[]);
        ensure!(faults.is_empty(), "not everything was looked at: {}", faults.join("; "));
        Ok(looked_at)
    }

    fn walk(&mut self, root: &Path, except: &[&str]) -> Walked {
        let mut walked = Walked::default();
        let mut pending = vec![root.to_owned()];
        while let Some(directory) = pending.pop() {
            for entry in walked.take(&directory, fs::read_dir(&directory)).into_iter().flatten() {
                let Some(entry) = walked.take(&directory, entry) else { continue };
                let (path, name) = (entry.path(), entry.file_name());
                if except.iter().any(|except| name == *except) {
                    continue;
                }
                let Some(kind) = walked.take(&path, entry.file_type()) else { continue };
                self.look(&path.display().to_string(), name.as_encoded_bytes());
                if kind.is_dir() {
                    pending.push(path);
                } else if kind.is_file()
                    && let Some(bytes) = walked.take(&path, fs::read(&path))
                {
                    walked.looked_at += 1;
                    self.look(&path.display().to_string(), &bytes);
                }
            }
        }
        walked
    }

    /// Looks at what the engine shows of a living sandbox, its settings, its log and its image, and at the files that are its own as
    /// its first process sees them, with what is mounted there: an engine exports no file system that is in memory.
    ///
    /// # Errors
    /// It does not run, one of its places cannot be read, or there is less than a sandbox has.
    pub fn sandbox(&mut self, world: &World, sandbox: &str) -> anyhow::Result<()> {
        match world.engine {
            Engine::Docker => {
                let parts = &world.spec.parts;
                self.look("docker inspect", inspect(parts, sandbox)?.to_string().as_bytes());
                self.look("docker logs", &docker(parts, &["logs", sandbox])?);
                let export = docker(parts, &["export", sandbox])?;
                ensure!(export.len() > EXPORT_BYTES, "the export has {} bytes, and no image", export.len());
                self.look("docker export", &export);
            }
            // Records and log are in the state directory. Of the file system, `/usr` is the host's own.
            Engine::Local => {}
        }
        let looked_at = self.own(world, sandbox)?;
        ensure!(looked_at > OWN_FILES, "only {looked_at} files of the sandbox were looked at");
        Ok(())
    }

    /// Looks at the files that are a living sandbox's own, and says how many there were.
    fn own(&mut self, world: &World, sandbox: &str) -> anyhow::Result<usize> {
        let processes = world.processes(sandbox)?;
        let root = Path::new("/proc").join(processes[0].to_string()).join("root");
        let mut looked_at = 0;
        for place in OWN {
            looked_at += self.whole_tree(&root.join(place))?;
        }
        Ok(looked_at)
    }

    /// Shows that what an agent has left by [`LEAVE_MARKS`] is found in its sandbox while that lives.
    ///
    /// # Errors
    /// It is not, or as of [`Self::sandbox`].
    pub fn prove_in_memory(world: &World, sandbox: &str) -> anyhow::Result<()> {
        let mut hunt = Self::new(&[MARK])?;
        hunt.own(world, sandbox)?;
        for place in MARKED {
            let left = |found: &String| found.ends_with(place);
            ensure!(hunt.found.iter().any(left), "what the agent left as {place} is not found");
        }
        Ok(())
    }

    /// Looks at a process's environment, its command line and what it has in memory of its own, and says how many bytes of memory
    /// there were; none if the process ended before all of that was looked at.
    ///
    /// # Errors
    /// A process that lives cannot be read, for which it takes root.
    pub fn process(&mut self, pid: u32) -> anyhow::Result<Option<u64>> {
        let read = ["environ", "cmdline"]
            .into_iter()
            .try_for_each(|file| self.shown(pid, file))
            .and_then(|()| self.memory(pid).with_context(|| format!("memory of process {pid}")));
        match read {
            Ok(bytes) => Ok(Some(bytes)),
            Err(_) if !lives(pid) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the kernel shows of a process in a file that is empty for a moment while the process starts a program.
    fn shown(&mut self, pid: u32, file: &str) -> anyhow::Result<()> {
        let path = format!("/proc/{pid}/{file}");
        for _ in 0..STARTING_LOOKS {
            let bytes = fs::read(&path).with_context(|| format!("{path} cannot be read from the host"))?;
            if !bytes.is_empty() {
                self.look(&format!("{file} of {pid}"), &bytes);
                return Ok(());
            }
            ensure!(lives(pid), "process {pid} has ended");
            std::thread::sleep(STARTING);
        }
        anyhow::bail!("{path} is empty, although the process lives")
    }

    /// What a process has in memory of its own.
    fn memory(&mut self, pid: u32) -> anyhow::Result<u64> {
        let open = |file: &str| format!("/proc/{pid}/{file} cannot be opened from the host");
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).with_context(|| open("maps"))?;
        let mut memory = File::open(format!("/proc/{pid}/mem")).with_context(|| open("mem"))?;
        let mut total = 0;
        for line in maps.lines().filter(|line| line.contains(" rw")) {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let (begin, end) = range.with_context(|| format!("a line of maps has no range: {line}"))?;
            let (mut at, end) = (u64::from_str_radix(begin, 16)?, u64::from_str_radix(end, 16)?);
            while at < end {
                let mut piece = vec![0; usize::try_from((end - at).min(PIECE))?];
                // What is reserved and not there cannot be read, and holds nothing.
                let read =
                    memory.seek(SeekFrom::Start(at)).and_then(|_| memory.read(&mut piece)).unwrap_or(0);
                if read == 0 {
                    break;
                }
                piece.truncate(read);
                self.look(&format!("memory of {pid}"), &piece);
                (at, total) = (at + read as u64, total + read as u64);
            }
        }
        Ok(total)
    }

    /// Looks at every object of a repository, unpacked, and at its refs.
    ///
    /// # Errors
    /// Git fails.
    pub fn repository(&mut self, directory: &Path) -> anyhow::Result<()> {
        let owned = format!("safe.directory={}", directory.display());
        for arguments in [&["cat-file", "--batch-all-objects", "--batch"][..], &["for-each-ref"]] {
            let output = git(directory).args(["-c", &owned]).args(arguments).output();
            let output = output.context("git cannot be started")?;
            ensure!(output.status.success(), "git: {}", String::from_utf8_lossy(&output.stderr));
            self.look(&format!("git {} of {}", arguments[0], directory.display()), &output.stdout);
        }
        Ok(())
    }

    /// Shows that each form of each canary would be found: writes all of them into a file below `directory`, as a leak would,
    /// and looks at it.
    ///
    /// # Errors
    /// One is not found, or the disk refuses.
    pub fn prove(canaries: &[Canary<'_>], directory: &Path) -> anyhow::Result<()> {
        for canary in canaries {
            for (form, needle) in forms(canary.secret) {
                let place = directory.join("planted");
                let leak = [b"x".repeat(70_000), needle, b"y".repeat(70_000)].concat();
                fs::write(&place, leak).with_context(|| format!("{} cannot be written", place.display()))?;
                let mut hunt = Self::new(&[*canary])?;
                hunt.tree(directory, &[]);
                fs::remove_file(&place).with_context(|| format!("{} cannot be removed", place.display()))?;
                let planted = |found: &String| found.contains(&form) && found.ends_with("planted");
                ensure!(hunt.found.iter().any(planted), "{}, {form} would not be found", canary.name);
            }
        }
        Ok(())
    }
}

/// What came of looking at a directory.
#[derive(Debug, Default)]
struct Walked {
    /// Files.
    looked_at: usize,
    /// What could not be read, and why.
    faults: Vec<String>,
}

impl Walked {
    /// What was read; none if it could not be, which is a fault unless it is no longer there.
    fn take<T>(&mut self, place: &Path, read: io::Result<T>) -> Option<T> {
        match read {
            Ok(read) => Some(read),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.faults.push(format!("{}: {error}", place.display()));
                None
            }
        }
    }
}

/// A secret in every form that is looked for.
fn forms(secret: &str) -> Vec<(String, Vec<u8>)> {
    let mut forms = vec![("raw".to_owned(), secret.as_bytes().to_vec())];
    for (name, encoding) in [("base64", &STANDARD), ("url-safe base64", &URL_SAFE)] {
        // Behind nothing, one byte and two: what a text before it shifts it by. What depends on the neighbours is left out.
        for shift in 0..3 {
            let text = encoding.encode([&vec![0; shift], secret.as_bytes()].concat());
            let begin = [0, 2, 3][shift];
            let whole = (shift + secret.len()) / 3 * 4;
            forms.push((format!("{name} behind {shift}"), text.as_bytes()[begin..whole].to_vec()));
        }
    }
    let lower = secret.bytes().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
    forms.push(("hex".to_owned(), lower.clone().into_bytes()));
    forms.push(("upper hex".to_owned(), lower.to_uppercase().into_bytes()));
    let every = secret.bytes().map(|byte| format!("%{byte:02X}")).collect::<Vec<_>>().concat();
    forms.push(("every byte URL-encoded".to_owned(), every.into_bytes()));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let needed: String = secret
        .bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect();
    forms.push(("URL-encoded".to_owned(), needed.into_bytes()));
    let escaped = secret.escape_default().to_string();
    forms.push(("escaped".to_owned(), escaped.into_bytes()));
    let mut known = BTreeSet::new();
    forms.retain(|(_, needle)| known.insert(needle.clone()));
    forms
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANARY: Canary<'static> = Canary { name: "token", secret: "canary/4f7a+b2c1=" };

    #[test]
    fn every_form_is_found_wherever_it_stands_and_a_part_of_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        Hunt::prove(&[CANARY], directory.path()).unwrap();
        let mut hunt = Hunt::new(&[CANARY]).unwrap();
        let basic = STANDARD.encode(format!("x-access-token:{}", CANARY.secret));
        hunt.look("a header", basic.as_bytes());
        assert_eq!(hunt.found.len(), 1, "{:?}", hunt.found);
        hunt.found.clear();
        hunt.look("a part", b"canary/4f7a+b2c1");
        assert!(hunt.found.is_empty(), "{:?}", hunt.found);
        assert_eq!((hunt.places, hunt.needles()), (2, forms(CANARY.secret).len()));
        assert!(Hunt::new(&[Canary { name: "x", secret: "short" }]).is_err());
    }

    #[test]
    fn a_place_that_is_not_there_or_cannot_be_read_is_a_fault_and_one_that_goes_meanwhile_is_none() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("x"), CANARY.secret).unwrap();
        let mut hunt = Hunt::new(&[CANARY]).unwrap();
        assert_eq!(hunt.whole_tree(directory.path()).unwrap(), 1);
        assert_eq!(hunt.found.len(), 1);
        let missing = hunt.whole_tree(&directory.path().join("missing")).unwrap_err();
        assert!(missing.to_string().ends_with("missing cannot be listed"), "{missing}");
        let mut walked = Walked::default();
        let mut take = |kind: io::ErrorKind| walked.take(Path::new("/a"), io::Result::<()>::Err(kind.into()));
        assert_eq!((take(io::ErrorKind::NotFound), take(io::ErrorKind::PermissionDenied)), (None, None));
        assert_eq!(walked.faults, ["/a: permission denied"]);
        // `flush` in it can be written only, even by root.
        let write_only = Path::new("/proc/sys/net/ipv4/route");
        let unreadable = hunt.whole_tree(write_only).unwrap_err().to_string();
        assert!(unreadable.contains("/flush: "), "{unreadable}");
        assert!(hunt.tree(write_only, &[]) > 1, "there it is left out");
    }

    #[test]
    fn a_secret_in_a_repository_is_found_although_it_is_compressed() {
        let (project, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(project.path().join("x"), format!("a {} b", CANARY.secret)).unwrap();
        let bare = crate::repository::bare_from(root.path(), "x.git", project.path()).unwrap();
        let mut hunt = Hunt::new(&[CANARY]).unwrap();
        assert!(hunt.tree(&bare, &[]) > 5 && hunt.found.is_empty());
        hunt.repository(&bare).unwrap();
        assert_eq!(hunt.found.len(), 1);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a process to be hunted, with an argument vector")]
    fn a_process_is_hunted_in_its_environment_and_memory_and_passed_over_once_it_has_ended() {
        let mut hunt = Hunt::new(&[CANARY]).unwrap();
        let mut sleeping =
            std::process::Command::new("sleep").arg("60").env("CANARY", CANARY.secret).spawn().unwrap();
        assert!(hunt.process(sleeping.id()).unwrap().is_some_and(|bytes| bytes > 0));
        let place = format!("environ of {}", sleeping.id());
        assert!(hunt.found.iter().any(|found| found.ends_with(&place)), "{:?}", hunt.found);
        sleeping.kill().unwrap();
        while lives(sleeping.id()) {
            std::thread::sleep(STARTING);
        }
        assert_eq!(hunt.process(sleeping.id()).unwrap(), None, "left for its parent");
        sleeping.wait().unwrap();
        assert_eq!(hunt.process(sleeping.id()).unwrap(), None, "gone");
    }
}
