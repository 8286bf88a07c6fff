//! `caisson workflow`, as it is typed.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ClientFlags, OutputFlag, name_and_value};

/// Workflows.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Workflow {
    /// List the project's workflows.
    List {
        #[command(flatten)]
        client: ClientFlags,
    },
    /// Show one workflow.
    Show {
        #[command(flatten)]
        client: ClientFlags,
        /// Its name.
        name: String,
    },
    /// Look whether workflow files and folders can be used; no server is asked.
    Validate {
        /// Files, and folders in Automagik's format.
        #[arg(required = true, value_name = "FILE|DIR")]
        paths: Vec<PathBuf>,
        #[command(flatten)]
        output: OutputFlag,
    },
    /// Write the file of a new workflow, to be edited.
    New {
        /// Its name: lower-case letters, digits and hyphens.
        name: String,
        /// Directory for the file.
        #[arg(long, value_name = "DIR", default_value = ".")]
        dir: PathBuf,
        #[command(flatten)]
        output: OutputFlag,
    },
    /// Give a workflow to the project, over the server's of the same name. Needs a key with the scope workflows.
    Put {
        #[command(flatten)]
        client: ClientFlags,
        /// Its file, or a folder in Automagik's format.
        #[arg(value_name = "FILE|DIR")]
        path: PathBuf,
    },
    /// Take a workflow of the project's own away; the server's of the same name is in effect again.
    Remove {
        #[command(flatten)]
        client: ClientFlags,
        /// Its name.
        name: String,
    },
}

/// Flags of `run` that depend on the workflow.
#[derive(Debug, Clone, Args)]
pub(crate) struct RunOfWorkflow {
    /// Value of a parameter of the workflow, as JSON or as a text; may be given several times.
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = name_and_value)]
    pub parameters: Vec<(String, String)>,
    /// File with a JSON Schema that the run's structured output must fit.
    #[arg(long, value_name = "FILE")]
    pub output_schema: Option<PathBuf>,
}
