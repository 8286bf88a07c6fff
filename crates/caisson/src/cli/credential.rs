//! `caisson credential`, as it is typed.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{OutputFlag, ServerFlags, name_and_value};

/// Credentials. A secret comes from a file or from standard input, never from an argument.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Credential {
    /// Add a credential; runs use it from their next request on.
    Add(AddCredential),
    /// List credentials, without their secrets.
    List {
        #[command(flatten)]
        server: ServerFlags,
        /// The tenant.
        #[arg(long, default_value = "default")]
        project: String,
        #[command(flatten)]
        output: OutputFlag,
    },
    /// Replace a credential's secret; runs use it from their next request on.
    Rotate {
        #[command(flatten)]
        server: ServerFlags,
        #[command(flatten)]
        secret: SecretFlags,
        /// The credential: its name or id.
        credential: String,
        /// The tenant.
        #[arg(long, default_value = "default")]
        project: String,
        #[command(flatten)]
        output: OutputFlag,
    },
    /// Remove a credential; runs go without it from their next request on.
    Remove {
        #[command(flatten)]
        server: ServerFlags,
        /// The credential: its name or id.
        credential: String,
        /// The tenant.
        #[arg(long, default_value = "default")]
        project: String,
        #[command(flatten)]
        output: OutputFlag,
    },
    /// Make a new master key and wrap every credential with it; what was cut off is ended.
    Rekey {
        #[command(flatten)]
        server: ServerFlags,
        #[command(flatten)]
        output: OutputFlag,
    },
}

/// Flags of `credential add`.
#[derive(Debug, Clone, Args)]
pub(crate) struct AddCredential {
    #[command(flatten)]
    pub server: ServerFlags,
    #[command(flatten)]
    pub secret: SecretFlags,
    /// A name, unique in the project.
    pub name: String,
    /// What it opens: `model_api_key`, `model_oauth`, `git_token`, `git_github_app`, `mcp_header` or `registry_token`.
    #[arg(long)]
    pub kind: String,
    /// What is public about it, such as `url_prefix=https://git.example.com/team`; may be given several times.
    #[arg(long = "set", value_name = "FIELD=VALUE", value_parser = name_and_value)]
    pub settings: Vec<(String, String)>,
    /// PEM file with further certificate authorities of a model API.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// The tenant.
    #[arg(long, default_value = "default")]
    pub project: String,
    #[command(flatten)]
    pub output: OutputFlag,
}

/// Where a secret comes from.
#[derive(Debug, Clone, Args)]
pub(crate) struct SecretFlags {
    /// File with the secret, "-" for standard input: one line for a key or token, PEM for `git_github_app`, and for
    /// `model_oauth` JSON with `access_token`, `refresh_token` and `expires_at_ms`.
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub from: PathBuf,
    /// File with USER:PASSWORD of a model API's outbound proxy.
    #[arg(long, value_name = "FILE")]
    pub proxy_login_file: Option<PathBuf>,
}
