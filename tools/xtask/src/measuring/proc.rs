//! What the kernel says of a process: `/proc`, read on the host.

use std::fs;

use anyhow::Context;

/// Ticks of a second in `/proc/<pid>/stat` (`USER_HZ`, fixed at 100 on Linux).
const TICKS: f64 = 100.0;

/// Memory of a process, in MiB.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Memory {
    /// Its share: pages that several processes have count in parts.
    pub(crate) pss_mib: f64,
    /// All its pages.
    pub(crate) rss_mib: f64,
}

impl Memory {
    /// The greater of each.
    #[must_use]
    pub(crate) fn peak(self, other: Self) -> Self {
        Self { pss_mib: self.pss_mib.max(other.pss_mib), rss_mib: self.rss_mib.max(other.rss_mib) }
    }
}

/// CPU time of a process since its start, in milliseconds, user and system together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Cpu {
    /// Its own, threads that ended among it.
    pub(crate) own_ms: f64,
    /// That of children that ended and were waited for.
    pub(crate) children_ms: f64,
}

impl Cpu {
    /// What was used since `earlier`.
    #[must_use]
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self { own_ms: self.own_ms - earlier.own_ms, children_ms: self.children_ms - earlier.children_ms }
    }
}

/// Memory of a living process.
///
/// # Errors
/// It has ended, or may not be looked at.
pub(crate) fn memory(pid: u32) -> anyhow::Result<Memory> {
    parse_memory(&read(pid, "smaps_rollup")?)
        .with_context(|| format!("the memory of process {pid} is not told"))
}

/// CPU time of a living process, in steps of 10 ms.
///
/// # Errors
/// It has ended.
pub(crate) fn cpu(pid: u32) -> anyhow::Result<Cpu> {
    parse_cpu(&read(pid, "stat")?).with_context(|| format!("the CPU time of process {pid} is not told"))
}

/// CPU time of the living threads of a process, in milliseconds, to the nanosecond.
///
/// # Errors
/// It has ended.
pub(crate) fn fine_cpu_ms(pid: u32) -> anyhow::Result<f64> {
    let mut sum = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while it is looked at.
        let text = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        sum += parse_schedstat_ms(&text).unwrap_or(0.0);
    }
    Ok(sum)
}

/// CPU time that the whole machine has used since it was started, in milliseconds, on all its cores together.
///
/// # Errors
/// `/proc` is not there.
pub(crate) fn machine_cpu_ms() -> anyhow::Result<f64> {
    parse_busy_ms(&fs::read_to_string("/proc/stat")?).context("/proc/stat does not tell the CPU time")
}

/// Every process of this machine, as `/proc/<pid>/stat` tells of it; those that end meanwhile are left out.
///
/// # Errors
/// `/proc` is not there.
pub(crate) fn all() -> anyhow::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        found.extend(parse_process(pid, &stat));
    }
    Ok(found)
}

/// A process at a moment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Process {
    /// Its number.
    pub(crate) pid: u32,
    /// When it was started, in ticks since the machine was: with the number, this names it for good.
    pub(crate) started: u64,
    /// What it is called.
    pub(crate) name: String,
    /// Its CPU time so far.
    pub(crate) cpu: Cpu,
}

/// The machine's memory in GiB.
///
/// # Errors
/// `/proc` is not there.
pub(crate) fn machine_memory_gib() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    kibibytes(&text, "MemTotal:").map(|kib| kib / 1024.0 / 1024.0).context("/proc/meminfo names no total")
}

/// Memory that the machine could give to new processes, in MiB.
///
/// # Errors
/// `/proc` is not there.
pub(crate) fn available_mib() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    kibibytes(&text, "MemAvailable:").map(|kib| kib / 1024.0).context("/proc/meminfo names nothing available")
}

/// The kernel's version, without what its builder added.
///
/// # Errors
/// `/proc` is not there.
pub(crate) fn kernel() -> anyhow::Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(text.trim().split('-').next().unwrap_or_default().to_owned())
}

fn read(pid: u32, file: &str) -> anyhow::Result<String> {
    fs::read_to_string(format!("/proc/{pid}/{file}"))
        .with_context(|| format!("process {pid} cannot be looked at"))
}

fn parse_memory(text: &str) -> Option<Memory> {
    Some(Memory { pss_mib: kibibytes(text, "Pss:")? / 1024.0, rss_mib: kibibytes(text, "Rss:")? / 1024.0 })
}

fn kibibytes(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

fn parse_cpu(text: &str) -> Option<Cpu> {
    // The name in parentheses may hold anything, parentheses too. What follows its last one begins with field 3.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11).map(str::parse::<f64>);
    let mut next = || fields.next()?.ok();
    let [user, system, children_user, children_system] = [next()?, next()?, next()?, next()?];
    let ms = |ticks: f64| ticks * 1000.0 / TICKS;
    Some(Cpu { own_ms: ms(user + system), children_ms: ms(children_user + children_system) })
}

fn parse_process(pid: u32, stat: &str) -> Option<Process> {
    let (head, rest) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let started = rest.split_whitespace().nth(19)?.parse().ok()?;
    Some(Process { pid, started, name, cpu: parse_cpu(stat)? })
}

/// Everything in the first line but idling and waiting for the disk. What guests use is in there already.
fn parse_busy_ms(stat: &str) -> Option<f64> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks = line.split_whitespace().take(8).map(str::parse::<f64>).collect::<Result<Vec<_>, _>>().ok()?;
    let [user, nice, system, _idle, _waiting, interrupts, soft, stolen] = <[f64; 8]>::try_from(ticks).ok()?;
    Some((user + nice + system + interrupts + soft + stolen) * 1000.0 / TICKS)
}

fn parse_schedstat_ms(text: &str) -> Option<f64> {
    text.split(' ').next()?.parse::<f64>().ok().map(|nanos| nanos / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_mebibytes() {
        let text = "55d0-7ffe ---p 00000000 00:00 0    [rollup]\nRss:    2048 kB\nPss:       512 kB\nPss_Dirty: 9 kB\n";
        let memory = parse_memory(text).unwrap();
        assert!((memory.rss_mib - 2.0).abs() < 1e-9 && (memory.pss_mib - 0.5).abs() < 1e-9);
        assert_eq!(parse_memory("Rss: 1 kB\n"), None);
        let peak = memory.peak(Memory { pss_mib: 1.0, rss_mib: 1.0 });
        assert!((peak.pss_mib - 1.0).abs() < 1e-9 && (peak.rss_mib - 2.0).abs() < 1e-9);
    }

    #[test]
    fn cpu_is_read_behind_a_name_with_parentheses() {
        let text = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 30 20 20 0 1 0";
        let cpu = parse_cpu(text).unwrap();
        assert!((cpu.own_ms - 2000.0).abs() < 1e-9 && (cpu.children_ms - 500.0).abs() < 1e-9);
        let since = cpu.since(Cpu { own_ms: 500.0, children_ms: 500.0 });
        assert!((since.own_ms - 1500.0).abs() < 1e-9 && since.children_ms.abs() < 1e-9);
        assert_eq!(parse_cpu("7 (a) S 1"), None);
    }

    #[test]
    fn a_process_is_known_by_number_and_start() {
        let text = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 30 20 20 0 1 0 4711 9";
        let found = parse_process(7, text).unwrap();
        assert_eq!((found.pid, found.started, found.name.as_str()), (7, 4711, "a) b"));
        assert_eq!(parse_process(7, "7 (a) S 1"), None);
        let me = std::process::id();
        assert!(all().unwrap().iter().any(|process| process.pid == me));
    }

    #[test]
    fn idling_is_no_cpu_time() {
        assert!(
            (parse_busy_ms("cpu  100 10 50 9000 800 5 5 30 7 7\ncpu0 1\n").unwrap() - 2000.0).abs() < 1e-9
        );
        assert_eq!(parse_busy_ms("cpu 1 2"), None);
        assert!(machine_cpu_ms().unwrap() > 0.0);
    }

    #[test]
    fn this_process_can_be_looked_at() {
        let pid = std::process::id();
        assert!(memory(pid).unwrap().rss_mib > 0.0);
        assert!(cpu(pid).unwrap().own_ms >= 0.0);
        assert!(fine_cpu_ms(pid).unwrap() > 0.0);
        assert!(memory(u32::MAX).is_err() && cpu(u32::MAX).is_err() && fine_cpu_ms(u32::MAX).is_err());
        assert!(machine_memory_gib().unwrap() * 1024.0 > available_mib().unwrap());
        assert!(!kernel().unwrap().is_empty());
    }

    #[test]
    fn scheduler_time_is_nanoseconds() {
        assert!((parse_schedstat_ms("1500000 2 3\n").unwrap() - 1.5).abs() < 1e-9);
        assert_eq!(parse_schedstat_ms(""), None);
    }
}
