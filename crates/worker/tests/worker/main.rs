//! The worker on a real store and a fake engine: whole lives of runs, trouble, bounds, and a crash at every step.
//!
//! A server of these tests is a thread with its own runtime, its own store on the same file, and a worker. Killing it
//! drops everything it does where it stands, as `kill -9` would. Engine and sandboxes live on outside of it.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail the test, like the test itself")]

mod bounds;
mod calls;
mod crash;
mod damage;
mod disk;
mod engine;
mod going_on;
mod images;
mod kept;
mod life;
mod pushes;
mod retention;
mod server;
mod shim;
mod trouble;
mod unowned;
mod world;
