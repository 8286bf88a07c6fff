//! What the processes of a sandbox use, added up one by one where no control group counts.

use std::fs;

use crate::SandboxUsage;

/// Most processes that are looked at.
const PROCESSES: usize = 65_536;
/// The kernel's clock ticks are hundredths of a second wherever Linux runs with glibc (`sysconf(_SC_CLK_TCK)`).
const TICK_MICROS: u64 = 10_000;

/// Adds up a process and all below it. Shared memory counts as often as it is shared; orphans of a sandbox are below its
/// first process.
pub(super) fn usage(first: i32) -> Option<SandboxUsage> {
    let mut total = SandboxUsage {
        memory_bytes: 0,
        memory_peak_bytes: None,
        cpu_micros: 0,
        pids: 0,
        // Of a limit on each uid the kernel tells nothing.
        pids_refused: None,
    };
    for one in std::iter::once(first).chain(below(first)).filter_map(one) {
        total.memory_bytes += one.memory_bytes;
        total.cpu_micros += one.cpu_micros;
        total.pids += one.threads;
    }
    (total.pids > 0).then_some(total)
}

struct One {
    memory_bytes: u64,
    cpu_micros: u64,
    threads: u64,
}

fn one(pid: i32) -> Option<One> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    // proc(5): utime 14, stime 15, cutime 16, cstime 17, num_threads 20, rss 24; the first one here is 3.
    let number = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<u64>().ok());
    let ticks = [14, 15, 16, 17].into_iter().filter_map(number).sum::<u64>();
    let page = u64::try_from(rustix::param::page_size()).ok()?;
    Some(One { memory_bytes: number(24)? * page, cpu_micros: ticks * TICK_MICROS, threads: number(20)? })
}

/// Every process below one.
pub(super) fn below(pid: i32) -> Vec<i32> {
    let mut found = children(pid);
    let mut next = 0;
    while next < found.len() && found.len() < PROCESSES {
        found.extend(children(found[next]));
        next += 1;
    }
    found
}

fn children(pid: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("children")).unwrap_or_default();
    threads
        .flat_map(|thread| {
            let text = of(thread);
            text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_and_its_children_are_added_up() {
        #[expect(clippy::disallowed_methods, reason = "processes to look at")]
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "sleep 600 & echo ready; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 5];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let usage = usage(pid).unwrap();
        assert_eq!(usage.pids, 2, "the shell and its sleep");
        assert!(usage.memory_bytes > 0);
        for below in children(pid) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(below), nix::sys::signal::Signal::SIGKILL)
                .unwrap();
        }
        child.wait().unwrap();
        assert!(super::usage(pid).is_none());
    }
}
