//! The shim as a process, against a gateway that speaks the door's protocol, with real git and scripted agents; and,
//! where it is there, with the real Claude Code.

mod gateway;
mod publishing;
mod runs;
mod sandbox;
