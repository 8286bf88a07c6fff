//! Attempts at the door, with the checks that are to stop each and the words by which each check refuses.

use caisson_domain::checks::Check;

/// The branch of the run, on which others have worked, and one that has nothing to do with it.
pub(crate) const BRANCH: &str = "team/work";
pub(crate) const SPARE: &str = "spare";

/// One way through the door.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt {
    /// `module.function` of the Python files beside those of the other attempts.
    pub(crate) name: &'static str,
    /// Arguments, `KEY=VALUE`; `{…}` is filled in by the stage.
    pub(crate) arguments: &'static [&'static str],
    /// What is to stop it, each by itself.
    pub(crate) walls: &'static [Wall],
    /// Who says whether it got through.
    pub(crate) sees: Sees,
}

/// A check in the way of an attempt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wall {
    pub(crate) check: Check,
    /// The words by which it refuses.
    pub(crate) refuses: &'static [&'static str],
}

/// Who says whether an attempt got through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sees {
    /// The attempt: whoever is answered so has passed.
    Told,
    /// A listener outside.
    Heard,
    /// The git host's repository, from which it removes this branch.
    Removes(&'static str),
    /// The events of its run and of the sibling's, in which there is a note with its word. It leaves its run's record in
    /// disorder.
    Records,
    /// The artifacts of its run and of the sibling's, and the disk, where one has its word in its name.
    Artifacts,
    /// The outcome of its run, which it ends.
    Outcome,
    /// What its run is said to have cost. It leaves its run's record in disorder.
    Usage,
    /// The audit log: `caisson audit verify`, the records before it, the one that it has to have, and its word in any of another kind.
    /// It leaves its run's record in disorder.
    Audit,
}

/// What becomes of the branch of an attempt's run when its agent lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Becomes {
    /// The repository's default branch.
    Default,
    /// The same, and the run has made it itself.
    MadeDefault,
    /// One that a workflow of the project trusts.
    Trusted,
}

impl Sees {
    /// Whether the attempt needs a run of its own.
    pub(crate) const fn is_alone(self) -> bool {
        matches!(self, Self::Records | Self::Outcome | Self::Usage | Self::Audit)
    }
}

impl Attempt {
    /// Whether it goes for what runs have told, done or kept: then nothing that was told before may be another thing behind it.
    pub(crate) fn is_of_record(&self) -> bool {
        self.name.starts_with("record.")
    }

    /// The words by which it may be refused.
    pub(crate) fn refusals(&self) -> Vec<&'static str> {
        self.walls.iter().flat_map(|wall| wall.refuses.iter().copied()).collect()
    }

    /// The checks, for people.
    pub(crate) fn walls_text(&self) -> String {
        self.walls.iter().map(|wall| wall.check.name()).collect::<Vec<_>>().join("; ")
    }

    /// Whether it needs the name server.
    pub(crate) fn needs_names(&self) -> bool {
        self.arguments
            .iter()
            .any(|word| ["{moving}", "{moved}", "{both}", "{zone}"].iter().any(|name| word.contains(name)))
    }

    /// Whether it goes for addresses that this machine holds only for it.
    pub(crate) fn needs_held(&self) -> bool {
        self.arguments.iter().any(|word| word.contains("{metadata"))
    }

    /// What becomes of its run's branch, if anything does.
    pub(crate) fn branch_becomes(&self) -> Option<Becomes> {
        match self.name {
            "pushes.branch_that_becomes_default" => Some(Becomes::Default),
            "pushes.made_branch_that_becomes_default" => Some(Becomes::MadeDefault),
            "pushes.branch_that_becomes_trusted" => Some(Becomes::Trusted),
            _ => None,
        }
    }

    /// Whether its run makes its branch; to others' runs it is one on which somebody has worked.
    pub(crate) fn makes_branch(&self) -> bool {
        self.branch_becomes() == Some(Becomes::MadeDefault)
    }

    /// Whether it needs a run of its own.
    pub(crate) fn is_alone(&self) -> bool {
        self.sees.is_alone() || self.branch_becomes().is_some()
    }

    /// Whether it aims at another sandbox.
    pub(crate) fn needs_sibling(&self) -> bool {
        self.sees == Sees::Records || self.arguments.iter().any(|word| word.contains("{sibling_"))
    }
}

const fn attempt(name: &'static str, arguments: &'static [&'static str], walls: &'static [Wall]) -> Attempt {
    Attempt { name, arguments, walls, sees: Sees::Told }
}

const fn heard(name: &'static str, arguments: &'static [&'static str], walls: &'static [Wall]) -> Attempt {
    Attempt { name, arguments, walls, sees: Sees::Heard }
}

const fn wall(check: Check, refuses: &'static [&'static str]) -> Wall {
    Wall { check, refuses }
}

const GRANT: Wall = wall(Check::Grant, &["grant_refused"]);
/// The same in the model API's own words.
const MODEL_GRANT: Wall = wall(Check::Grant, &["permission_error"]);
const PROVIDER: Wall = wall(Check::ProviderTools, &["provider_tools"]);
const OUTSIDE: &[&str] = &["denied={denied}", "token={token}"];
const OWN_BRANCH: Wall = wall(Check::OwnBranch, &["own_branch"]);
const TRUSTED_BRANCH: Wall = wall(Check::TrustedBranch, &["trusted_branch"]);
const NO_DELETE: Wall = wall(Check::NoDelete, &["no_delete"]);
const ONE_REF: Wall = wall(Check::OneRef, &["one_ref"]);
const FSCK: Wall = wall(Check::Fsck, &["pack"]);
const SECRETS: Wall = wall(Check::Secrets, &["secret"]);
const RULES: Wall = wall(Check::EgressRules, &["egress_not_allowed"]);
const ADDRESSES: Wall = wall(Check::EgressAddresses, &["egress_private_address"]);
const HOST: Wall = wall(Check::EgressHost, &["egress_host_mismatch"]);
const MCP_PATH: Wall = wall(Check::McpPath, &["mcp_path"]);
const WORD: &[&str] = &["token={token}"];
/// An answer that nobody outside heard of, or a request that is none.
const FRAMING: Wall =
    wall(Check::EgressFraming, &["UNHEARD", "HTTP400", "egress_bad_request", "egress_broken"]);
const OWN_REPOSITORY: Wall = wall(Check::OwnRepository, &["not_found"]);
const FRAMED: &[&str] = &["framed={framed}", "token={token}"];
const STOLEN: &str = "own_control_grant={own_control_grant}";

/// Every attempt.
pub(crate) const ALL: &[Attempt] = &[
    attempt("door.model_without_grant", &[], &[MODEL_GRANT]),
    attempt("door.model_with_siblings_grant", &["sibling_grant={sibling_grant}"], &[MODEL_GRANT]),
    attempt("door.model_with_made_up_grant", &[], &[MODEL_GRANT]),
    attempt("door.model_with_control_grant", &[STOLEN], &[MODEL_GRANT]),
    attempt("door.model_that_fetches", &[], &[PROVIDER]),
    attempt("door.model_that_searches", &[], &[PROVIDER]),
    attempt("door.model_that_executes", &[], &[PROVIDER]),
    attempt("door.model_with_unknown_tool", &[], &[PROVIDER]),
    attempt("door.model_with_connector", OUTSIDE, &[PROVIDER]),
    attempt("door.model_that_shows", OUTSIDE, &[PROVIDER]),
    attempt("door.repository_without_grant", &[], &[GRANT]),
    attempt("door.repository_with_siblings_grant", &["sibling_grant={sibling_grant}"], &[GRANT]),
    attempt("door.outside_without_grant", &["web={web}"], &[GRANT]),
    attempt("door.journal_with_agents_grant", &[], &[GRANT]),
    attempt("door.journal_written_with_agents_grant", &[STOLEN], &[GRANT]),
    attempt("door.artifact_with_agents_grant", &["own_run={own_run}"], &[GRANT]),
    attempt("door.live_text_with_agents_grant", &["own_run={own_run}"], &[GRANT]),
    heard("egress.tunnel_without_grant", &["tunnel_host={tunnel}", "token={token}"], &[GRANT]),
    heard(
        "egress.tunnel_with_siblings_grant",
        &["tunnel_host={tunnel}", "token={token}", "sibling_grant={sibling_grant}"],
        &[GRANT],
    ),
    heard("egress.denied_host", &["denied={denied}", "token={token}"], &[RULES]),
    heard("egress.denied_tunnel", &["denied={denied}", "token={token}"], &[RULES]),
    heard("egress.denied_path", &["web={web}", "token={token}"], &[RULES]),
    heard("egress.denied_method", &["web={web}", "token={token}"], &[RULES]),
    heard("egress.path_in_other_spelling", &["web={web}", "token={token}"], &[RULES]),
    heard("egress.lookups_over_http", &["denied={denied}", "token={token}"], &[RULES]),
    heard("egress.second_request_behind_the_first", &["web={web}", "token={token}"], &[RULES]),
    heard("egress.huge_head", &["web={web}", "token={token}"], &[wall(Check::Heads, &["HTTP431"])]),
    heard("egress.another_host_field", &["web={web}", "denied={denied}", "token={token}"], &[HOST]),
    heard(
        "egress.another_host_field_of_a_tunnel",
        &["tunnel_host={tunnel}", "denied={denied}", "token={token}"],
        &[HOST],
    ),
    heard("egress.private_address_by_name", &["private={private}", "token={token}"], &[ADDRESSES]),
    heard("egress.private_address_by_ipv6", &["private6={private6}", "token={token}"], &[ADDRESSES]),
    heard("egress.private_address_mapped", &["mapped={mapped}", "token={token}"], &[ADDRESSES]),
    heard("egress.private_address_by_http", &["private={private}", "token={token}"], &[ADDRESSES]),
    heard(
        "egress.service_of_the_host",
        &["host_service={host_service}", "token={token}"],
        &[RULES, ADDRESSES],
    ),
    heard("egress.metadata_address", &["metadata={metadata}", "token={token}"], &[RULES, ADDRESSES]),
    heard(
        "egress.metadata_address_by_ipv6",
        &["metadata6={metadata6}", "token={token}"],
        &[RULES, ADDRESSES],
    ),
    heard(
        "egress.metadata_address_by_name",
        &["metadata_name={metadata_name}", "token={token}"],
        &[ADDRESSES],
    ),
    heard(
        "egress.metadata_address_by_name_and_ipv6",
        &["metadata6_name={metadata6_name}", "token={token}"],
        &[ADDRESSES],
    ),
    attempt("egress.repository_by_address", &["other_repository={other_repository}"], &[RULES]),
    heard("mcp.another_workflows_server", WORD, &[wall(Check::McpServers, &["mcp_unknown"])]),
    heard("mcp.denied_host", WORD, &[wall(Check::McpHosts, &["mcp_not_allowed"])]),
    heard("mcp.private_address_by_name", WORD, &[wall(Check::EgressAddresses, &["mcp_private_address"])]),
    heard("mcp.denied_tool", WORD, &[wall(Check::McpTools, &["mcp_tool_denied"])]),
    heard("mcp.denied_tool_by_a_second_name", WORD, &[wall(Check::McpTools, &["mcp_unclear"])]),
    heard("mcp.below_its_url", WORD, &[MCP_PATH]),
    heard("mcp.path_that_leaves", WORD, &[MCP_PATH]),
    heard("mcp.with_a_query", WORD, &[MCP_PATH]),
    heard("mcp.without_grant", WORD, &[GRANT]),
    heard("mcp.with_siblings_grant", &["token={token}", "sibling_grant={sibling_grant}"], &[GRANT]),
    heard("egress.lookup_of_denied_name", &["zone={zone}", "token={token}"], &[RULES]),
    heard(
        "egress.name_that_moves",
        &["moving={moving}", "token={token}"],
        &[wall(Check::EgressPinned, &["UNHEARD"])],
    ),
    heard("egress.name_that_has_moved", &["moved={moved}", "token={token}"], &[ADDRESSES]),
    heard(
        "egress.name_with_two_addresses",
        &["both={both}", "token={token}"],
        &[wall(Check::EgressAddresses, &["egress_unreachable"])],
    ),
    heard("framing.length_before_chunks", FRAMED, &[FRAMING]),
    heard("framing.chunks_before_length", FRAMED, &[FRAMING]),
    heard("framing.chunks_by_another_name", FRAMED, &[FRAMING]),
    heard("framing.chunks_in_odd_spelling", FRAMED, &[FRAMING]),
    heard("framing.size_with_a_sign", FRAMED, &[FRAMING]),
    heard("framing.size_beyond_all_bounds", FRAMED, &[FRAMING]),
    heard("framing.extension_with_a_line_end", FRAMED, &[FRAMING]),
    heard("framing.junk_behind_a_chunk", FRAMED, &[FRAMING]),
    heard("framing.two_lengths", FRAMED, &[FRAMING]),
    attempt("pushes.another_repository", &["token={token}"], &[OWN_REPOSITORY]),
    attempt("pushes.read_another_repository", &[], &[OWN_REPOSITORY]),
    attempt("pushes.another_branch", &["token={token}"], &[OWN_BRANCH]),
    attempt("pushes.default_branch", &["token={token}"], &[OWN_BRANCH]),
    attempt("pushes.branch_that_becomes_default", &["token={token}"], &[TRUSTED_BRANCH]),
    attempt("pushes.made_branch_that_becomes_default", &["token={token}"], &[TRUSTED_BRANCH]),
    attempt("pushes.branch_that_becomes_trusted", &["token={token}"], &[TRUSTED_BRANCH]),
    attempt("pushes.tag", &["token={token}"], &[OWN_BRANCH]),
    attempt("pushes.other_ref", &["token={token}"], &[OWN_BRANCH]),
    Attempt {
        name: "pushes.remove_another_branch",
        arguments: &["branch={spare}"],
        walls: &[OWN_BRANCH, NO_DELETE],
        sees: Sees::Removes(SPARE),
    },
    Attempt {
        name: "pushes.remove_own_branch",
        arguments: &["branch={own_branch}"],
        walls: &[NO_DELETE],
        sees: Sees::Removes(BRANCH),
    },
    attempt("pushes.two_refs", &["token={token}"], &[OWN_BRANCH, ONE_REF]),
    attempt("pushes.mirror", &["token={token}"], &[OWN_BRANCH, NO_DELETE, ONE_REF]),
    attempt("pushes.forged_commands", &["token={token}"], &[OWN_BRANCH, ONE_REF]),
    attempt("pushes.rewrite", &["token={token}"], &[wall(Check::Rewrites, &["no_rewrite"])]),
    attempt(
        "pushes.rewrite_with_forged_parent",
        &["token={token}"],
        &[wall(Check::Rewrites, &["no_rewrite"])],
    ),
    attempt("pushes.with_secret", &["token={token}"], &[SECRETS]),
    attempt("pushes.with_secret_in_history", &["token={token}"], &[SECRETS]),
    attempt("pushes.with_submodule", &[], &[wall(Check::Submodules, &["submodule"])]),
    attempt("pushes.with_submodules_of_a_stranger", &[], &[wall(Check::Submodules, &["submodule"])]),
    attempt("pushes.with_large_file", &[], &[wall(Check::FileSize, &["file_size"])]),
    // First: it adds to the branch only as long as no other attempt has.
    attempt(
        "pushes.with_forbidden_path_of_a_stranger",
        &[],
        &[wall(Check::ForbiddenPaths, &["forbidden_path"])],
    ),
    attempt(
        "pushes.with_forbidden_path",
        &["token={token}"],
        &[wall(Check::ForbiddenPaths, &["forbidden_path"])],
    ),
    attempt(
        "pushes.with_forbidden_path_by_a_merge",
        &["token={token}"],
        &[wall(Check::ForbiddenPaths, &["forbidden_path"])],
    ),
    attempt("pushes.with_git_directory", &["token={token}"], &[FSCK]),
    attempt("pushes.with_linked_gitmodules", &[], &[FSCK, wall(Check::Submodules, &["submodule"])]),
    attempt("pushes.with_path_that_leaves", &[], &[FSCK]),
    // Before the bomb: who has that in a branch, as without this wall, has git take its time for whatever is pushed behind it.
    attempt("pushes.with_odd_modes", &[], &[wall(Check::PushBounds, &["pack"])]),
    attempt("pushes.with_tree_bomb", &[], &[wall(Check::PushBounds, &["pack"])]),
    // Whoever has the memory to unpack it finds how large it is.
    attempt(
        "pushes.with_delta_bomb",
        &[],
        &[wall(Check::PushMemory, &["pack"]), wall(Check::FileSize, &["file_size"])],
    ),
    Attempt {
        name: "record.rewrite_what_is_acknowledged",
        arguments: &[STOLEN, "own_run={own_run}", "token={token}"],
        walls: &[wall(Check::JournalOffset, &["HTTP409"])],
        sees: Sees::Records,
    },
    Attempt {
        name: "record.artifact_of_another_run",
        arguments: &[STOLEN, "sibling_run={sibling_run}", "token={token}"],
        walls: &[wall(Check::ArtifactRun, &["artifact_refused"])],
        sees: Sees::Artifacts,
    },
    Attempt {
        name: "record.artifact_that_leaves_its_place",
        arguments: &[STOLEN, "own_run={own_run}", "token={token}"],
        walls: &[wall(Check::ArtifactName, &["artifact_name"])],
        sees: Sees::Artifacts,
    },
    Attempt {
        name: "record.entry_of_another_run",
        arguments: &[STOLEN, "sibling_run={sibling_run}", "token={token}"],
        walls: &[wall(Check::JournalRun, &["UNSEEN"])],
        sees: Sees::Records,
    },
    Attempt {
        name: "record.false_usage",
        arguments: &[STOLEN, "own_run={own_run}", "cost={claimed_usd}", "tokens=999999999"],
        walls: &[wall(Check::CountedUsage, &["UNCOUNTED"])],
        sees: Sees::Usage,
    },
    Attempt {
        name: "record.audit_log",
        arguments: &[STOLEN, "own_run={own_run}", "denied={denied}", "behind={behind}", "token={token}"],
        walls: &[wall(Check::AuditSource, &["KEPT"])],
        sees: Sees::Audit,
    },
    Attempt {
        name: "record.claim_of_a_push",
        arguments: &[STOLEN, "own_run={own_run}"],
        walls: &[wall(Check::ReportedPush, &["push_rejected"])],
        sees: Sees::Outcome,
    },
];

#[cfg(test)]
mod tests {
    use super::super::super::{races, resources, traces};
    use super::*;

    #[test]
    fn every_check_stops_an_attempt() {
        for check in Check::ALL {
            let stops = |attempt: &Attempt| attempt.walls.iter().any(|wall| wall.check == check);
            let elsewhere = traces::checks().chain([races::CHECK]).chain(resources::checks());
            let is_tried = ALL.iter().any(stops) || elsewhere.into_iter().any(|one| one == check);
            assert!(is_tried, "nobody tries {}", check.name());
        }
    }

    #[test]
    fn who_is_heard_has_a_word_to_say() {
        for attempt in ALL {
            let says = attempt.arguments.contains(&"token={token}");
            assert!(
                says || !matches!(attempt.sees, Sees::Heard | Sees::Records | Sees::Artifacts),
                "{}",
                attempt.name
            );
        }
    }
}
