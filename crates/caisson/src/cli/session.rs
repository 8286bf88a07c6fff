//! `caisson session`, and how a run goes on with one, as they are typed.

use clap::{Args, Subcommand};

use super::ClientFlags;

/// Sessions.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Session {
    /// List the project's sessions, newest first.
    List {
        #[command(flatten)]
        client: ClientFlags,
        /// How many, 1 to 200.
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Show one session with its runs.
    Show(OneSession),
    /// Print a session as a conversation.
    Messages(OneSession),
    /// Make a session that knows what was said in another one, with the files that it has pushed, on a branch of its own.
    Fork {
        #[command(flatten)]
        client: ClientFlags,
        /// The session: its id, or the last digits of it.
        session: String,
        /// Branch that the fork's runs make and push. Default: one named after workflow and fork.
        #[arg(long)]
        branch: Option<String>,
    },
    /// Delete a session with its runs, their events and what was kept of them; pushed branches stay. Needs the scope `admin`.
    Delete {
        #[command(flatten)]
        client: ClientFlags,
        /// The session: its id, or the last digits of it.
        session: String,
    },
}

/// Flags of commands about one session.
#[derive(Debug, Clone, Args)]
pub(crate) struct OneSession {
    #[command(flatten)]
    pub client: ClientFlags,
    /// The session: its id, the last digits of it, or nothing for the newest.
    pub session: Option<String>,
}

/// Flag of `run` for going on with a session.
#[derive(Debug, Clone, Args)]
pub(crate) struct InSession {
    /// Go on with this session, with its conversation, workspace and branch: its id, or the last digits of it.
    #[arg(long, value_name = "ID", conflicts_with_all = ["repo", "no_repo", "base", "branch"])]
    pub session: Option<String>,
}
