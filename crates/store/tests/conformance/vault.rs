//! The master key: made once, told when it is lost or wrong, and replaced with a death between any two steps.

use std::os::unix::fs::PermissionsExt;

use caisson_domain::credential::CredentialKind;
use caisson_store::{Actor, CredentialError, MasterKeyError, MasterKeyFile, NewCredential, RekeyStep};

use crate::credentials::{CANARY, add, opened, settings, value};
use crate::fixture::{Fixture, project};

conformance! {
    a_master_key_is_made_at_the_first_start_and_kept,
    a_lost_or_wrong_master_key_is_told_and_replaced_only_when_nothing_needs_it,
    a_named_master_key_must_be_there,
    every_credential_is_wrapped_by_the_new_key_and_the_old_one_opens_nothing,
    a_replacement_may_die_between_any_two_steps,
    a_running_server_follows_a_key_that_another_process_replaced,
    a_damaged_credential_stops_a_replacement_before_it_takes_effect,
    two_replacements_at_once_end_with_one_key,
}

fn key_text(fixture: &Fixture) -> String {
    std::fs::read_to_string(fixture.directory().join("master.key")).unwrap()
}

async fn a_master_key_is_made_at_the_first_start_and_kept(fixture: Fixture) {
    assert!(!fixture.store.check_master_key(&fixture.key_file()).await.unwrap());
    let fixture = fixture.unlocked().await;
    assert!(fixture.store.check_master_key(&fixture.key_file()).await.unwrap());
    let path = fixture.directory().join("master.key");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let text = key_text(&fixture);
    assert_eq!(text.trim().len(), 64);
    let fixture = fixture.reopen().await.unlocked().await;
    assert_eq!(key_text(&fixture), text);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = fixture.store.unlock(fixture.key_file()).await.unwrap_err();
    assert!(matches!(error, MasterKeyError::Open { mode: 0o644, .. }), "{error}");
}

async fn a_lost_or_wrong_master_key_is_told_and_replaced_only_when_nothing_needs_it(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let credential = add(&fixture, "one").await;
    let (path, right) = (fixture.directory().join("master.key"), key_text(&fixture));
    std::fs::remove_file(&path).unwrap();
    let fixture = fixture.reopen().await;
    let error = fixture.store.unlock(fixture.key_file()).await.unwrap_err();
    assert!(matches!(error, MasterKeyError::Lost { credentials: 1, .. }), "{error}");
    assert!(!path.exists(), "none is made in its place");
    let told = fixture.store.check_master_key(&fixture.key_file()).await.unwrap_err();
    assert!(matches!(told, MasterKeyError::Lost { .. }), "{told}");
    std::fs::write(&path, "ab".repeat(32)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let error = fixture.store.unlock(fixture.key_file()).await.unwrap_err();
    assert!(matches!(error, MasterKeyError::Wrong { .. }), "{error}");
    assert!(error.to_string().contains("backup") && !error.to_string().contains("abab"), "{error}");
    std::fs::write(&path, right).unwrap();
    fixture.store.unlock(fixture.key_file()).await.unwrap();
    assert_eq!(opened(&fixture, &credential).await, CANARY);
    // When nothing needs the lost key any more, a new one is made.
    std::fs::remove_file(&path).unwrap();
    let fixture = fixture.reopen().await;
    let removed = fixture.store.remove_credential(&project(), &credential.id, &Actor::Operator).await;
    assert!(removed.unwrap());
    let fixture = fixture.unlocked().await;
    let credential = add(&fixture, "one").await;
    assert_eq!(opened(&fixture, &credential).await, CANARY);
}

async fn a_named_master_key_must_be_there(fixture: Fixture) {
    let path = fixture.directory().join("elsewhere.key");
    let named = || MasterKeyFile::named(path.clone());
    let errors = [
        fixture.store.unlock(named()).await.unwrap_err(),
        fixture.store.check_master_key(&named()).await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, MasterKeyError::Missing { .. }), "{error}");
    }
    std::fs::write(&path, "cd".repeat(32)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    fixture.store.unlock(named()).await.unwrap();
    let credential = add(&fixture, "one").await;
    assert_eq!(opened(&fixture, &credential).await, CANARY);
}

async fn every_credential_is_wrapped_by_the_new_key_and_the_old_one_opens_nothing(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let mut credentials = Vec::new();
    for number in 0..3 {
        credentials.push(add(&fixture, &format!("n{number}")).await);
    }
    let (old, sealed) = (key_text(&fixture), sealed(&fixture).await);
    let rekeyed = fixture.store.rekey().await.unwrap();
    assert_eq!(rekeyed.credentials, 3);
    assert_ne!(key_text(&fixture), old);
    assert_eq!(self::sealed(&fixture).await, sealed, "the secrets themselves stay as they are");
    let wrapped = "select count(*) from credential where key_id = (select key_id from master_key)";
    assert_eq!(fixture.value::<i64>(wrapped).await, 3);
    assert!(!fixture.directory().join("master.key.next").exists());
    for credential in &credentials {
        assert_eq!(opened(&fixture, credential).await, CANARY);
    }
    let audited = "select count(*) from audit where action = 'master_key.replace'";
    assert_eq!(fixture.value::<i64>(audited).await, 1);
    std::fs::write(fixture.directory().join("master.key"), old).unwrap();
    let fixture = fixture.reopen().await;
    let error = fixture.store.unlock(fixture.key_file()).await.unwrap_err();
    assert!(matches!(error, MasterKeyError::Wrong { .. }), "{error}");
}

async fn sealed(fixture: &Fixture) -> Vec<String> {
    let rows = fixture.rows("select sealed from credential order by id").await;
    rows.iter().map(|row| row.get("sealed")).collect()
}

async fn a_replacement_may_die_between_any_two_steps(fixture: Fixture) {
    let mut fixture = fixture.unlocked().await;
    let mut credentials = vec![add(&fixture, "first").await];
    for (number, step) in
        [RekeyStep::Written, RekeyStep::Wrapped, RekeyStep::Done, RekeyStep::Written].into_iter().enumerate()
    {
        let old = key_text(&fixture);
        let begun = fixture.store.rekey_until(step).await.unwrap();
        // What is added by the process that goes on, or by another one that knows the old key alone.
        credentials.push(add(&fixture, &format!("after-{number}")).await);
        // The next start.
        fixture = fixture.reopen().await.unlocked().await;
        for credential in &credentials {
            assert_eq!(opened(&fixture, credential).await, CANARY, "{step:?}");
        }
        credentials.push(add(&fixture, &format!("restarted-{number}")).await);
        match step {
            RekeyStep::Written => assert_eq!(key_text(&fixture), old, "it has not taken effect"),
            RekeyStep::Wrapped | RekeyStep::Done => assert_ne!(key_text(&fixture), old, "the start ended it"),
        }
        // Going on ends it with the key that was written; it never makes a third one beside the two.
        let ended = fixture.store.rekey().await.unwrap();
        assert_eq!(ended.key_id == begun.key_id, step == RekeyStep::Written, "{step:?}");
        assert!(!fixture.directory().join("master.key.next").exists());
        for credential in &credentials {
            assert_eq!(opened(&fixture, credential).await, CANARY, "{step:?}");
        }
    }
    // Without a start in between, the command itself ends what was cut off.
    let begun = fixture.store.rekey_until(RekeyStep::Wrapped).await.unwrap();
    let ended = fixture.store.rekey().await.unwrap();
    assert_eq!((ended.key_id, ended.credentials), (begun.key_id, 0));
    assert!(!fixture.directory().join("master.key.next").exists());
    for credential in &credentials {
        assert_eq!(opened(&fixture, credential).await, CANARY);
    }
}

async fn a_running_server_follows_a_key_that_another_process_replaced(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let credential = add(&fixture, "one").await;
    let (clock, _) = caisson_store::Clock::fixed_at(crate::fixture::START_MS);
    let other = fixture.beside(clock).await.unwrap();
    other.unlock(fixture.key_file()).await.unwrap();
    for step in [RekeyStep::Wrapped, RekeyStep::Done, RekeyStep::Done] {
        other.rekey_until(step).await.unwrap();
        assert_eq!(opened(&fixture, &credential).await, CANARY);
        let at = (&credential.project, &credential.id);
        fixture.store.rotate_credential(at, &value(CANARY), &Actor::Server).await.unwrap().unwrap();
        let opened = other.open_credential(at.0, at.1).await.unwrap();
        assert!(opened.is_some());
    }
}

async fn a_damaged_credential_stops_a_replacement_before_it_takes_effect(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let first = add(&fixture, "first").await;
    let damaged = add(&fixture, "second").await;
    fixture.execute("update credential set data_key = 'AAAA' where name = 'second'").await;
    let old = key_text(&fixture);
    let error = fixture.store.rekey().await.unwrap_err();
    assert!(matches!(&error, MasterKeyError::Damaged { id } if *id == damaged.id.to_string()), "{error}");
    assert_eq!((key_text(&fixture), opened(&fixture, &first).await.as_str()), (old, CANARY));
    let removed = fixture.store.remove_credential(&project(), &damaged.id, &Actor::Operator).await;
    assert!(removed.unwrap());
    assert_eq!(fixture.store.rekey().await.unwrap().credentials, 1);
    assert_eq!(opened(&fixture, &first).await, CANARY);
}

async fn two_replacements_at_once_end_with_one_key(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let credential = add(&fixture, "one").await;
    let model = settings(CredentialKind::ModelApiKey, &[]);
    let new = NewCredential {
        project: project(),
        name: "model".to_owned(),
        settings: model,
        secret: value(CANARY),
    };
    let (one, two, added) = tokio::join!(
        fixture.store.rekey(),
        fixture.store.rekey(),
        fixture.store.add_credential(new, &Actor::Server),
    );
    let busy = |result: &Result<_, MasterKeyError>| matches!(result, Err(MasterKeyError::Busy { .. }));
    assert!(one.is_ok() || two.is_ok(), "{one:?} {two:?}");
    assert!((one.is_ok() || busy(&one)) && (two.is_ok() || busy(&two)), "{one:?} {two:?}");
    let added = added.map_err(|error: CredentialError| error.to_string()).unwrap();
    let fixture = fixture.reopen().await.unlocked().await;
    for credential in [credential, added] {
        assert_eq!(opened(&fixture, &credential).await, CANARY);
    }
}
