//! What clients and servers ask again and again, and how a database is to read for it: by the index that is named here, with
//! no table read from end to end. Tests hold it on little data; [`explain`] tells of whatever data there is, so that the
//! plans of much of it can be kept as evidence.

mod explain;
mod judge;

use crate::credentials::uses;
use crate::{
    audit, claim, drain, events, forks, keys, lost, moved, pushes, run_lists, runs, sessions, usage_reports,
    waiting,
};

pub use explain::{Example, Plan, explain};
pub use judge::{FEW_ROWS, PAGES_READ};

/// A statement that is asked again and again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hot {
    /// What it asks for, as people say it.
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
    /// The parameters' types, and their values with the marks of [`Example`], for `PostgreSQL`.
    types: &'static str,
    values: &'static str,
    reads: Reads,
}

/// What it may read.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Reads {
    /// An index, sorting nothing.
    Index {
        /// The first step of `SQLite`'s plan. Every other is a search as well.
        sqlite: &'static str,
        /// `PostgreSQL`'s index, and whether it is read backwards.
        postgres: &'static str,
        planned: Planned,
    },
    /// Of the runs, those that wait and those that run, and none of all those that have ended.
    Queue,
    /// Calls of a project and a time, which are summed up: so something is sorted or hashed, but of these calls alone.
    Calls,
}

/// For what `PostgreSQL` plans.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Planned {
    /// For its values, each time ([`crate::database::sql::Query::planned_for_its_values`]).
    EachTime,
    /// For the values of the first few times, and then perhaps for all.
    Once,
}

/// Every statement.
pub(crate) fn all() -> impl Iterator<Item = Hot> {
    LISTS.into_iter().chain(RECORDS).chain(ONES).chain(EVENTS).chain(QUEUE).chain(REPORTS)
}

const LISTED: &str = "text, text, text, text, text, text, bigint";

/// Pages of lists.
const LISTS: [Hot; 6] = [
    Hot {
        name: "runs, newest first",
        text: run_lists::ALL,
        types: LISTED,
        values: "'default', 'run_g', null, null, null, null, 51",
        reads: Reads::Index {
            sqlite: "SEARCH run USING INDEX run_of_project (project_id=? AND id<?)",
            postgres: "Index Scan Backward using run_of_project",
            planned: Planned::EachTime,
        },
    },
    Hot {
        name: "runs of one status",
        text: run_lists::BY_STATUS,
        types: LISTED,
        values: "'default', 'run_g', 'cancelled', null, null, null, 51",
        reads: Reads::Index {
            sqlite: "SEARCH run USING INDEX run_of_status (project_id=? AND status=? AND id<?)",
            postgres: "Index Scan Backward using run_of_status",
            planned: Planned::EachTime,
        },
    },
    Hot {
        name: "runs of one workflow",
        text: run_lists::BY_WORKFLOW,
        types: LISTED,
        values: "'default', 'run_g', null, '{workflow}', null, null, 51",
        reads: Reads::Index {
            sqlite: "SEARCH run USING INDEX run_of_workflow (project_id=? AND workflow=? AND id<?)",
            postgres: "Index Scan Backward using run_of_workflow",
            planned: Planned::EachTime,
        },
    },
    Hot {
        name: "runs of one session",
        text: run_lists::BY_SESSION,
        types: LISTED,
        values: "'default', 'run_g', null, null, '{session}', null, 51",
        reads: Reads::Index {
            sqlite: "SEARCH run USING INDEX run_of_session (session_id=? AND id<?)",
            postgres: "Index Scan Backward using run_of_session",
            planned: Planned::EachTime,
        },
    },
    Hot {
        name: "runs of one repository",
        text: run_lists::BY_REPOSITORY,
        types: LISTED,
        values: "'default', 'run_g', null, null, null, '{repository}', 51",
        reads: Reads::Index {
            sqlite: "SEARCH run USING INDEX run_of_repository (project_id=? AND repository=? AND id<?)",
            postgres: "Index Scan Backward using run_of_repository",
            planned: Planned::EachTime,
        },
    },
    Hot {
        name: "sessions, newest first",
        text: sessions::LIST,
        types: "text, text, bigint",
        values: "'default', 'ses_g', 51",
        reads: Reads::Index {
            sqlite: "SEARCH session USING INDEX session_of_project (project_id=? AND id<?)",
            postgres: "Index Scan Backward using session_of_project",
            planned: Planned::EachTime,
        },
    },
];

const RECORDED: &str = "text, bigint, text, text, text, bigint";

/// Pages of the audit log.
const RECORDS: [Hot; 4] = [
    Hot {
        name: "audit records, newest first",
        text: audit::ALL,
        types: RECORDED,
        values: "'default', 9223372036854775807, null, null, null, 51",
        reads: Reads::Index {
            sqlite: "SEARCH audit USING INDEX audit_of_project (project_id=? AND number<?)",
            postgres: "Index Scan Backward using audit_of_project",
            planned: Planned::EachTime,
        },
    },
    Hot {
        name: "audit records of one action",
        text: audit::BY_ACTION,
        types: RECORDED,
        values: "'default', 9223372036854775807, 'project.create', null, null, 51",
        reads: Reads::Index {
            sqlite: "SEARCH audit USING INDEX audit_of_action (project_id=? AND action=? AND number<?)",
            postgres: "Index Scan Backward using audit_of_action",
            planned: Planned::EachTime,
        },
    },
    Hot {
        name: "audit records of one run",
        text: audit::BY_RUN,
        types: RECORDED,
        values: "'default', 9223372036854775807, null, '{run}', null, 51",
        reads: Reads::Index {
            sqlite: "SEARCH audit USING INDEX audit_of_run (run_id=? AND number<?)",
            postgres: "Index Scan Backward using audit_of_run",
            planned: Planned::EachTime,
        },
    },
    Hot {
        name: "audit records of one actor",
        text: audit::BY_ACTOR,
        types: RECORDED,
        values: "'default', 9223372036854775807, null, null, 'key_0', 51",
        reads: Reads::Index {
            sqlite: "SEARCH audit USING INDEX audit_of_actor (project_id=? AND actor=? AND number<?)",
            postgres: "Index Scan Backward using audit_of_actor",
            planned: Planned::EachTime,
        },
    },
];

/// What is asked for by its name.
const ONES: [Hot; 4] = [
    Hot {
        name: "one run",
        text: runs::ONE,
        types: "text, text",
        values: "'default', '{run}'",
        reads: Reads::Index {
            sqlite: "SEARCH run USING INDEX sqlite_autoindex_run_1 (id=?)",
            postgres: "Index Scan using run_",
            planned: Planned::Once,
        },
    },
    Hot {
        name: "one run, and whether it has used a credential",
        text: uses::RUN,
        types: "text, text",
        values: "'default', '{run}'",
        reads: Reads::Index {
            sqlite: "SEARCH run USING INDEX sqlite_autoindex_run_1 (id=?)",
            postgres: "Index Scan using run_",
            planned: Planned::Once,
        },
    },
    Hot {
        name: "forks that never had a run",
        text: forks::UNUSED_FORKS,
        types: "text",
        values: "'default'",
        reads: Reads::Index {
            sqlite: "SEARCH session USING INDEX session_of_unused_forks (project_id=?)",
            postgres: "using session_of_unused_forks",
            planned: Planned::Once,
        },
    },
    Hot {
        name: "the API key of a request",
        text: keys::BY_SECRET,
        types: "text, bigint",
        values: "'{secret}', 0",
        reads: Reads::Index {
            sqlite: "SEARCH api_key USING INDEX sqlite_autoindex_api_key_2 (secret_hash=?)",
            postgres: "Index Scan using api_key_secret_hash_key",
            planned: Planned::Once,
        },
    },
];

/// What is read of all events.
const EVENTS: [Hot; 4] = [
    Hot {
        name: "events of a run, behind one of them",
        text: events::OF_RUN,
        types: "text, bigint, bigint",
        values: "'{run}', {after}, 16",
        reads: Reads::Index {
            sqlite: "SEARCH event USING INDEX event_of_run (run_id=? AND seq>?)",
            postgres: "Index Scan using event_of_run",
            planned: Planned::Once,
        },
    },
    Hot {
        name: "events of a session, behind one of them",
        text: events::OF_SESSION,
        types: "text, bigint, bigint",
        values: "'{session}', {after}, 16",
        reads: Reads::Index {
            sqlite: "SEARCH event USING INDEX sqlite_autoindex_event_1 (session_id=? AND seq>?)",
            postgres: "Index Scan using event_pkey",
            planned: Planned::Once,
        },
    },
    Hot {
        name: "pushes of a session",
        text: pushes::OF_SESSION,
        types: "text, bigint",
        values: "'{session}', 10001",
        reads: Reads::Index {
            sqlite: "SEARCH event USING INDEX event_of_push (session_id=?)",
            postgres: "Index Scan using event_of_push",
            planned: Planned::Once,
        },
    },
    Hot {
        name: "what a run has moved outside",
        text: moved::TOLD,
        types: "text, text",
        values: "'{run}', 'egress.used'",
        reads: Reads::Index {
            sqlite: "SEARCH event USING INDEX event_of_moved (run_id=? AND kind=?)",
            postgres: "using event_of_moved",
            planned: Planned::Once,
        },
    },
];

/// What is asked of the queue.
const QUEUE: [Hot; 10] = [
    queue(
        "the place of one that waits",
        waiting::PLACE,
        "text, text, bigint",
        "'default', '{waiting}', {now}",
    ),
    queue("how many wait", waiting::QUEUED, "bigint", "10000"),
    queue("how many of a project wait", waiting::QUEUED_OF, "text, bigint", "'default', 10000"),
    queue("since when the oldest waits", waiting::OLDEST, "bigint", "{now}"),
    queue("how many run", claim::RUNNING, "", ""),
    queue("how many run with a credential", claim::RUNNING_WITH, "text", "''"),
    queue("projects that wait", claim::PROJECTS_WAITING, "bigint, bigint", "{now}, 1000"),
    queue(
        "a claim",
        claim::CLAIM,
        "text, bigint, bigint, text, bigint, text, bigint, bigint",
        "'{server}', {now}, {now}, 'default', 100, '', {now}, {now}",
    ),
    queue("the state of the queue", drain::STATE, "bigint", "{now}"),
    queue(
        "runs of servers that are lost",
        lost::LOST,
        "text, bigint, bigint, bigint",
        "'{server}', {now}, {now}, 1",
    ),
];

/// Reports of usage.
const REPORTS: [Hot; 7] = [
    report("usage by day", usage_reports::BY_DAY[0], DAYS, NEWEST),
    report("usage by model", usage_reports::BY_MODEL[0], NAMED, NEWEST),
    report("usage by workflow", usage_reports::BY_WORKFLOW[0], NAMED, NEWEST),
    report("usage by session", usage_reports::BY_SESSION[0], NAMED, NEWEST),
    report(
        "usage by run",
        usage_reports::BY_RUN[0],
        NAMED,
        "'default', {from}, {to}, null, null, null, null, 'run_g', 51",
    ),
    report("usage by project", usage_reports::BY_PROJECT[0], NAMED, NEWEST),
    report(
        "usage altogether",
        usage_reports::TOTAL[0],
        "text, bigint, bigint, text, text, text, text",
        "'default', {from}, {to}, null, null, null, null",
    ),
];

const DAYS: &str = "text, bigint, bigint, text, text, text, text, bigint, bigint";
const NAMED: &str = "text, bigint, bigint, text, text, text, text, text, bigint";
const NEWEST: &str = "'default', {from}, {to}, null, null, null, null, null, 51";

const fn queue(name: &'static str, text: &'static str, types: &'static str, values: &'static str) -> Hot {
    Hot { name, text, types, values, reads: Reads::Queue }
}

const fn report(name: &'static str, text: &'static str, types: &'static str, values: &'static str) -> Hot {
    Hot { name, text, types, values, reads: Reads::Calls }
}
