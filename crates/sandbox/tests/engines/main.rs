//! Every engine on its real ground: Docker's against the Docker Engine that `DOCKER_HOST` names, the local one against
//! bubblewrap and this kernel. Both keep one contract.
//!
//! Where something is missing, each test says `SKIPPED` and how to enable it; with `TEST_REQUIRE=1` it fails instead.

#![expect(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]
#![expect(clippy::future_not_send, reason = "each test runs on one thread")]

mod contract;
mod docker;
mod local;
mod places;

/// The same test for every engine, each under its engine's name.
macro_rules! contract {
    ($($promise:ident)*) => {
        mod on_docker {
            $(
                #[tokio::test]
                async fn $promise() {
                    crate::docker::bench::on_bench(async |bench| {
                        let make = |script: &str| bench.sandbox(script);
                        crate::contract::$promise(&bench.ground(&make)).await;
                    })
                    .await;
                }
            )*
        }

        mod on_local {
            $(
                #[tokio::test]
                async fn $promise() {
                    crate::local::bench::on_bench(async |bench| {
                        let make = |script: &str| bench.sandbox(script);
                        crate::contract::$promise(&bench.ground(&make).await).await;
                    })
                    .await;
                }
            )*
        }
    };
}

contract! {
    a_life_goes_from_created_over_running_to_exited
    wait_answers_as_often_as_asked
    exit_codes_are_told_as_they_are
    destroy_is_fine_in_every_state_and_twice
    an_unknown_sandbox_is_not_found
    an_id_is_used_once
    start_is_repeatable_while_it_runs_and_not_after
    stop_asks_first_and_kills_after_the_grace
    a_wait_ends_when_the_sandbox_is_destroyed
    a_stop_ends_when_the_sandbox_is_destroyed
    a_list_shows_only_this_server_s_own
    usage_is_told_while_it_runs
    want_of_memory_ends_the_sandbox
    want_of_memory_that_ends_only_a_child_is_not_the_sandbox_s_end
    processes_are_limited
    a_program_that_cannot_run_is_refused_at_start
    boot_arguments_and_disks_of_the_host_are_not_told
}
