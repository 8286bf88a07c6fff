//! What this process takes of its machine, as `/proc` tells it.

use std::io;
use std::path::{Path, PathBuf};

use super::text::{Kind, Page};

/// Ticks of processor time in a second, as Linux tells them to programs on every machine that Caisson runs on.
const TICKS_PER_S: f64 = 100.0;

/// What was found; none where the system does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Taken {
    memory_bytes: Option<f64>,
    cpu_s: Option<f64>,
    files: Option<f64>,
    disk_free_bytes: Option<f64>,
}

/// Writes it; `state` is a place on the state directory's disk.
pub(super) async fn tell(page: &mut Page, state: &Path) {
    let state: PathBuf = state.to_owned();
    let taken = tokio::task::spawn_blocking(move || look(&state)).await.unwrap_or_default();
    for (name, kind, help, value) in [
        (
            "caisson_disk_free_bytes",
            Kind::Gauge,
            "Free space of the file system that holds this process's state directory.",
            taken.disk_free_bytes,
        ),
        ("process_resident_memory_bytes", Kind::Gauge, "Memory of this process.", taken.memory_bytes),
        (
            "process_cpu_seconds_total",
            Kind::Counter,
            "Processor time of this process, without its children.",
            taken.cpu_s,
        ),
        ("process_open_fds", Kind::Gauge, "Open files of this process.", taken.files),
    ] {
        page.family(name, kind, help);
        if let Some(value) = value {
            page.number(name, &[], value);
        }
    }
}

fn look(state: &Path) -> Taken {
    let read = |name: &str| std::fs::read_to_string(Path::new("/proc/self").join(name));
    Taken {
        memory_bytes: read("status").ok().and_then(|text| resident_bytes(&text)),
        cpu_s: read("stat").ok().and_then(|text| cpu_s(&text)),
        files: std::fs::read_dir("/proc/self/fd")
            .ok()
            .and_then(|files| u32::try_from(files.count()).ok())
            .map(f64::from),
        disk_free_bytes: free(state).ok(),
    }
}

fn resident_bytes(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}

/// The 14th and 15th field; the second is a name in brackets, which may hold spaces.
fn cpu_s(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) / TICKS_PER_S)
}

#[expect(clippy::cast_precision_loss, reason = "no disk has 2^53 bytes")]
fn free(state: &Path) -> io::Result<f64> {
    let there = state.ancestors().find(|part| part.exists()).unwrap_or(Path::new("/"));
    let stat = nix::sys::statvfs::statvfs(there)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_tells_of_this_process() {
        let taken = look(Path::new("/nonexistent/state"));
        assert!(taken.memory_bytes.is_some_and(|bytes| bytes > 1_000_000.0), "{taken:?}");
        assert!(taken.cpu_s.is_some() && taken.disk_free_bytes.is_some(), "{taken:?}");
        assert!(taken.files.is_some_and(|files| files >= 3.0), "{taken:?}");
    }

    #[test]
    fn a_name_with_brackets_moves_no_field() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 1 0 100 1 1";
        assert_eq!(cpu_s(stat), Some(2.0));
        assert_eq!(resident_bytes("Name: x\nVmRSS:\t  12 kB\n"), Some(12_288.0));
    }
}
