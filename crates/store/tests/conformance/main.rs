//! What every database behind the store must do, tested on each of them: real files, an injected clock, no sleep.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and its helpers are part of it")]

/// Makes a test of each function for every database. A function left out is an unused one, which the lints refuse.
macro_rules! conformance {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test]
                async fn $name() {
                    super::$name(crate::fixture::Fixture::sqlite().await).await;
                }
            )+
        }
        mod postgres {
            $(
                #[tokio::test]
                async fn $name() {
                    if let Some(fixture) = crate::fixture::Fixture::postgres().await {
                        super::$name(fixture).await;
                    }
                }
            )+
        }
    };
}

/// Makes a test of each function for one database alone, because of what only that one has, such as a file.
macro_rules! only_sqlite {
    ($($name:ident),+ $(,)?) => {
        mod only_sqlite {
            $(
                #[tokio::test]
                async fn $name() {
                    super::$name(crate::fixture::Fixture::sqlite().await).await;
                }
            )+
        }
    };
}

mod approvals;
mod artifacts;
mod attachments;
mod audit;
mod automagik;
mod breaker;
mod budgets;
mod cancel;
mod caps;
mod checks;
mod corrupt;
mod credentials;
mod credentials_together;
mod crowd;
mod database;
mod deleting;
mod door;
mod durability;
mod events;
mod expiry;
mod fencing;
mod fixture;
mod forks;
mod going_on;
mod hints;
mod homes;
mod idempotency;
mod inputs;
mod journal;
mod keys;
mod knock;
mod lists;
mod lost;
mod messages;
mod migrated;
mod model;
mod moved;
mod outdated;
mod places;
mod projects;
mod pushes;
mod queue;
mod removal;
mod retention;
mod runs;
mod sandboxes;
mod schema;
mod servers;
mod silence;
mod soft_budgets;
mod tls;
mod together;
mod turns;
mod upgrade;
mod upkeep;
mod usage;
mod usage_reports;
mod users;
mod vault;
mod workflows;
