//! The scripted model as its clients see it: raw HTTP, the program, the examples and the real CLI.

mod cli;
mod client;
mod examples;
mod faults;
mod prices;
mod program;
mod replies;
mod witness;
