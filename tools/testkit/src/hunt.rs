//! The hunt for canaries: secrets of a test that must be found nowhere but where they are used, in every form that a leak could
//! have.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use aho_corasick::AhoCorasick;
use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

use crate::engine::lives;
use crate::repository::git;

/// Most of a process's memory that is read at once, in bytes.
const PIECE: u64 = 64 * 1024 * 1024;
/// How often, and how long after each other, a process that starts a program is looked at again.
const STARTING_LOOKS: u32 = 100;
const STARTING: Duration = Duration::from_millis(20);

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

    /// Looks at every file below a directory but `except`, and says how many there were. Links are not followed.
    pub fn tree(&mut self, root: &Path, except: &[&str]) -> usize {
        let mut looked_at = 0;
        let mut pending = vec![root.to_owned()];
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let name = entry.file_name();
                if except.iter().any(|except| name == *except) {
                    continue;
                }
                let Ok(kind) = entry.file_type() else { continue };
                self.look(&entry.path().display().to_string(), name.as_encoded_bytes());
                if kind.is_dir() {
                    pending.push(entry.path());
                } else if kind.is_file()
                    && let Ok(bytes) = fs::read(entry.path())
                {
                    looked_at += 1;
                    self.look(&entry.path().display().to_string(), &bytes);
                }
            }
        }
        looked_at
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
