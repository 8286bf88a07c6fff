//! Whether a `PostgreSQL` that takes over would have every commit.

use crate::database::{Database, sql};
use crate::{Store, StoreError};

/// Everybody may count those who take the log from the server, whatever else of them is hidden.
const STANDBYS: &str = "select count(*), current_setting('synchronous_standby_names'), \
     current_setting('synchronous_commit') from pg_stat_replication";

impl Store {
    /// What a failover would lose, if anything: none without a standby, and on a database that nothing can take over from.
    ///
    /// # Errors
    /// As every read.
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn failover_weakness(&self) -> Result<Option<String>, StoreError> {
        let Database::Postgres(_) = &self.shared.database else { return Ok(None) };
        let found: Option<(i64, String, String)> =
            sql::query_as(STANDBYS).fetch_optional(self.reader()).await?;
        Ok(found.and_then(|(standbys, names, commit)| weakness(standbys, &names, &commit)))
    }
}

fn weakness(standbys: i64, names: &str, commit: &str) -> Option<String> {
    let why = match (standbys, names.trim(), commit) {
        (..=0, ..) => return None,
        (_, "", _) => "synchronous_standby_names is empty".to_owned(),
        (_, _, "local" | "off") => format!("synchronous_commit is {commit}"),
        (..) => return None,
    };
    let (standbys, are) =
        if standbys == 1 { ("a standby".to_owned(), "is") } else { (format!("{standbys} standbys"), "are") };
    Some(format!(
        "{standbys} {are} connected and no commit waits for one, since {why}: a failover may lose what was acknowledged; see \
         \"When another PostgreSQL takes over\" in docs/operations.md"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_that_no_commit_waits_for_is_told_of() {
        for (standbys, names, commit) in
            [(0, "", "on"), (0, "", "local"), (1, "a", "on"), (2, "ANY 1 (a, b)", "remote_write")]
        {
            assert_eq!(weakness(standbys, names, commit), None, "{standbys}, {names}, {commit}");
        }
        let told = weakness(1, " ", "on").unwrap();
        assert!(
            told.starts_with("a standby is connected") && told.contains("standby_names is empty"),
            "{told}"
        );
        let told = weakness(2, "a", "local").unwrap();
        assert!(told.starts_with("2 standbys are") && told.contains("synchronous_commit is local"), "{told}");
    }
}
