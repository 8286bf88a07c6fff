//! A floor under the server: before its own disk runs full, sandboxes that fill it are ended.
//!
//! Below `min_free_disk_bytes` nothing new is placed. Below half of that, which is kept for the database, runs end: of those
//! that grow the largest first, since ending one that does not grow gives nothing back. One at a time, and the next one
//! only when a quarter of what was left then is gone as well, so that few end and the last ones never do for nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info, warn};

use super::Amount;
use super::places::{Cut, Growth};
use crate::context::{Context, Halt, described};
use crate::dirs::blocking;

/// The part of `min_free_disk_bytes` below which runs are ended: one half.
pub const FLOOR_PARTS: u64 = 2;
/// Free space up to this many times `min_free_disk_bytes` counts as near the floor: it is looked at often.
pub const NEAR_TIMES: u64 = 4;
/// Less growth within [`super::places::GROWTH_WINDOW`] does not count, in bytes.
pub const GROWTH_BYTES: u64 = 1024 * 1024;
/// Less growth in files does not count.
pub const GROWTH_FILES: u64 = 1_000;
/// Fewer free files (inodes) on the server's disk are as bad as too little space.
pub const FREE_FILES: u64 = 10_000;
/// How long an ended sandbox is waited for before the next look.
pub const END_WAIT: Duration = Duration::from_secs(15);

/// What is free on the server's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Free {
    pub(crate) bytes: u64,
    /// None where the file system does not count them.
    pub(crate) files: Option<u64>,
}

/// What is running out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scarce {
    Space,
    Files,
}

/// From which amount of free space on the next sandbox is ended: pure.
#[derive(Debug)]
struct Floor {
    bytes: u64,
    mark: Free,
}

impl Floor {
    fn new(min_free_bytes: u64) -> Self {
        let bytes = min_free_bytes / FLOOR_PARTS;
        Self { bytes, mark: Self::top(bytes) }
    }

    fn top(bytes: u64) -> Free {
        Free { bytes, files: Some(FREE_FILES) }
    }

    /// What is so scarce that a sandbox has to end.
    fn broken(&mut self, free: Free) -> Option<Scarce> {
        let files = free.files.unwrap_or(u64::MAX);
        let mark = self.mark.files.unwrap_or(0);
        if free.bytes >= self.bytes && files >= FREE_FILES {
            self.mark = Self::top(self.bytes);
        }
        if free.bytes < self.mark.bytes {
            Some(Scarce::Space)
        } else if files < mark {
            Some(Scarce::Files)
        } else {
            None
        }
    }

    /// A sandbox was ended when so much was free.
    fn lower(&mut self, free: Free) {
        let lower = |mark: u64, free: u64| mark.min(free / 4 * 3);
        self.mark.bytes = lower(self.mark.bytes, free.bytes);
        self.mark.files = Some(lower(self.mark.files.unwrap_or(0), free.files.unwrap_or(u64::MAX)));
    }
}

/// Of those that grow, the largest: pure.
fn largest_growing(growths: &[Growth], scarce: Scarce) -> Option<&Growth> {
    let of = |amount: &Amount| match scarce {
        Scarce::Space => amount.bytes,
        Scarce::Files => amount.files,
    };
    let least = match scarce {
        Scarce::Space => GROWTH_BYTES,
        Scarce::Files => GROWTH_FILES,
    };
    growths.iter().filter(|growth| of(&growth.grown) >= least).max_by_key(|growth| of(&growth.used))
}

/// Watches the server's disk until the server goes down.
pub(crate) async fn keep(ctx: &Arc<Context>) -> Result<(), Halt> {
    let least = ctx.config.min_free_disk_bytes;
    let mut floor = Floor::new(least);
    loop {
        let near = *ctx.near_floor.borrow();
        ctx.pause(if near { ctx.timing().disk_look_near } else { ctx.timing().disk_look }).await?;
        let dirs = ctx.dirs.clone();
        let free = match blocking(move || dirs.free()).await {
            Ok(free) => free,
            Err(error) => {
                warn!(error = described(&error), "could not look at the server's disk");
                continue;
            }
        };
        let is_near = free.bytes < least.saturating_mul(NEAR_TIMES)
            || free.files.is_some_and(|files| files < FREE_FILES * NEAR_TIMES);
        ctx.near_floor.send_if_modified(|near| std::mem::replace(near, is_near) != is_near);
        if free.bytes < least && !ctx.health.is_disk_low() {
            // Not only at the next check: what is claimed until then would begin on a disk that is nearly full.
            ctx.health.suspect();
        }
        let Some(scarce) = floor.broken(free) else { continue };
        if let Some(growth) = largest_growing(&ctx.places.growths(), scarce) {
            ctx.health.suspect();
            end(ctx, growth, free).await?;
            floor.lower(free);
        }
    }
}

async fn end(ctx: &Context, growth: &Growth, free: Free) -> Result<(), Halt> {
    let sandbox = &growth.place.sandbox;
    error!(
        sandbox.id = %sandbox,
        "the server's disk has {} bytes free: ending sandbox {sandbox}, of those that grow the largest with {} bytes",
        free.bytes, growth.used.bytes
    );
    growth.place.cut(Cut::Floor { free_bytes: free.bytes, used: growth.used });
    let until = Instant::now() + END_WAIT;
    while !growth.place.was_killed() && ctx.places.has(sandbox) && Instant::now() < until {
        ctx.pause(ctx.timing().disk_look_near).await?;
    }
    info!(sandbox.id = %sandbox, "sandbox {sandbox} grows no more");
    Ok(())
}

#[cfg(test)]
mod tests {
    use caisson_domain::id::SandboxId;

    use super::*;
    use crate::disk::places::Places;

    const GIB: u64 = 1 << 30;

    fn free(bytes: u64) -> Free {
        Free { bytes, files: Some(FREE_FILES) }
    }

    #[test]
    fn the_floor_is_half_of_what_placing_needs_and_is_hit_below_it() {
        let mut floor = Floor::new(GIB);
        assert_eq!(floor.broken(free(GIB / 2)), None);
        assert_eq!(floor.broken(free(GIB / 2 - 1)), Some(Scarce::Space));
        assert_eq!(floor.broken(Free { files: Some(FREE_FILES - 1), ..free(GIB) }), Some(Scarce::Files));
        assert_eq!(floor.broken(Free { files: None, ..free(GIB) }), None);
        assert_eq!(Floor::new(0).broken(free(0)), None, "no floor is wanted");
    }

    #[test]
    fn after_one_has_ended_the_next_does_only_when_much_less_is_left() {
        let mut floor = Floor::new(GIB);
        let left = GIB / 2 - 4;
        assert!(floor.broken(free(left)).is_some());
        floor.lower(free(left));
        assert_eq!(floor.broken(free(left / 4 * 3)), None);
        assert_eq!(floor.broken(free(left / 4 * 3 - 1)), Some(Scarce::Space));
        let mut ends = 0;
        let mut bytes = left;
        while bytes > 0 {
            if floor.broken(free(bytes)).is_some() {
                floor.lower(free(bytes));
                ends += 1;
            }
            bytes = bytes / 10 * 9;
        }
        assert!((10..100).contains(&ends), "bounded whatever happens: {ends}");
        assert_eq!(floor.broken(free(GIB)), None);
        assert_eq!(floor.broken(free(GIB / 2 - 1)), Some(Scarce::Space), "it is whole again");
    }

    #[tokio::test]
    async fn the_largest_of_those_that_grow_ends_first_and_whoever_does_not_grow_never() {
        let places = Places::default();
        let amount = |bytes: u64, files: u64| Amount { bytes, files, too_deep: false };
        let sizes =
            [(1, 9 * GIB, 9 * GIB), (2, GIB, 2 * GIB), (3, 0, GIB), (4, 3 * GIB, 3 * GIB + GROWTH_BYTES - 1)];
        let entered: Vec<_> = sizes
            .iter()
            .map(|(number, before, now)| {
                let place = places.enter(&SandboxId::new(1, [*number; 10]));
                place.note(amount(*before, 0));
                place.note(amount(*now, u64::from(*number) * GROWTH_FILES));
                place
            })
            .collect();
        let of =
            |scarce| largest_growing(&places.growths(), scarce).map(|growth| growth.place.sandbox.clone());
        assert_eq!(of(Scarce::Space), Some(entered[1].sandbox.clone()));
        assert_eq!(of(Scarce::Files), Some(entered[3].sandbox.clone()));
        entered[1].cut(Cut::Time);
        assert_eq!(of(Scarce::Space), Some(entered[2].sandbox.clone()));
        entered[2].cut(Cut::Time);
        assert_eq!(of(Scarce::Space), None);
    }
}
