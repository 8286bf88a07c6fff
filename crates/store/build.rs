//! Tells cargo to build again when a migration is added: `sqlx::migrate!` alone notices changed ones only.

#[expect(clippy::print_stdout, reason = "cargo reads a build script's standard output")]
fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
