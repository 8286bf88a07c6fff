//! `caisson image`, as it is typed.

use clap::{Args, Subcommand, ValueEnum};

use super::{OutputFlag, ServerFlags};

/// Images.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Image {
    /// Build the default sandbox image with the engine.
    Build {
        #[command(flatten)]
        server: ServerFlags,
        /// Image to build on.
        #[arg(long, default_value = "debian:bookworm-slim")]
        base: String,
        #[command(flatten)]
        output: OutputFlag,
    },
    /// Print the default image's name.
    Tag {
        #[command(flatten)]
        output: OutputFlag,
    },
    /// List an image's Debian packages, and those with holes that a later version closes.
    ///
    /// Nothing of the image is run: its package database is read through the engine, out of a container that is never
    /// started. Exit code 0: compared, nothing to mend; 3: a later version closes a known hole; 4: the packages could not be
    /// compared with anything; 1: an error.
    Scan(ScanImage),
}

/// Flags of `image scan`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ScanImage {
    #[command(flatten)]
    pub server: ServerFlags,
    /// The image. Default: the default sandbox image.
    pub image: Option<String>,
    /// What is known: the JSON of Debian's security tracker, as a file or a URL. Default: the tracker itself.
    #[arg(long, env = "CAISSON_ADVISORIES", value_name = "FILE|URL")]
    pub advisories: Option<String>,
    /// How it is told; `cyclonedx` is a bill of materials and compares nothing.
    #[arg(long, value_enum, default_value_t = ScanFormat::Text)]
    pub format: ScanFormat,
    /// The same as --format json.
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
}

/// How a scan is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScanFormat {
    /// For people.
    Text,
    /// Packages and findings as JSON.
    Json,
    /// Packages as a `CycloneDX` bill of materials.
    Cyclonedx,
}
