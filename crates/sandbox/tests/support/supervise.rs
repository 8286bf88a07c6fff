//! The supervisor as a program of its own, for tests of the local engine; in the product it is a command of the one binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    match caisson_sandbox::local::supervise() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
