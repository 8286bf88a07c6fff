//! What is the same in every sandbox, whichever engine made it.

/// Where a sandbox may write without leaving a trace.
pub(crate) const TMP_PATH: &str = "/tmp";
/// The name that a sandbox sees as its host's. `/etc/hosts` maps it to loopback, so that looking it up never fails.
pub(crate) const HOSTNAME: &str = "sandbox";
/// What a sandbox's `/etc/hosts` says: what Docker writes into one, for a host that has only loopback.
pub(crate) const HOSTS: &str = "127.0.0.1\tlocalhost sandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n";
/// A nameserver that is not there: a look-up fails at once, and the host's own resolvers are not shown to the agent.
pub(crate) const NO_NAMESERVER: &str = "127.0.0.1";
/// `/dev/shm`, in bytes: Docker's own default, said aloud because it is a place to write to. It counts as memory.
pub(crate) const SHM_BYTES: i64 = 64 * 1024 * 1024;
/// When the host itself runs out of memory, the kernel takes sandboxes (0 is usual, 1000 the first to go) before servers.
pub(crate) const OOM_SCORE_ADJ: i64 = 500;
/// Open files of one process. Many build tools want thousands; an unbounded number makes some of them loop over all.
pub(crate) const OPEN_FILES: u64 = 16_384;
/// Longest core file, in bytes. Not 0: with 0 the kernel still hands a dump to a program that the host's `core_pattern` may name, and
/// with 1 to none (core(5)).
pub(crate) const CORE_BYTES: u64 = 1;
/// Kernel views that tell of the host and of other sandboxes: boot arguments, and which disks and volumes there are and what is written
/// to them.
pub(crate) const HIDDEN_FILES: [&str; 4] =
    ["/proc/cmdline", "/proc/diskstats", "/proc/partitions", "/proc/swaps"];
/// The same, directories.
pub(crate) const HIDDEN_DIRECTORIES: [&str; 1] = ["/proc/fs"];
/// Most that is kept of what the shim writes as its own diagnostics, in bytes.
pub(crate) const LOG_BYTES: usize = 1024 * 1024;
