//! What a fork begins with: the conversation and the files of another session.

use crate::run::text_enum;

text_enum! {
    /// What of a fork was older than the other when it was made.
    Older, "part of a fork" {
        /// The conversation: it does not know of everything that is in the files.
        Conversation = "conversation",
        /// The files: not everything that the conversation tells of is in them.
        Files = "files",
    }
}

impl Older {
    /// What it means, in words for people and for the agent's log.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Conversation => {
                "the fork's conversation is older than its files: the other session has pushed work of a run that \
                 did not archive what was said in it, so the agent finds files that it knows nothing of"
            }
            Self::Files => {
                "the fork's files are older than its conversation: the other session has pushed nothing since a run \
                 of which the conversation tells, so what that run changed is not in the files"
            }
        }
    }
}
