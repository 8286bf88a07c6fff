//! Credentials: what is kept of them, who opens them, and their uses.

use caisson_domain::credential::{CredentialFields, CredentialKind, CredentialSecret, CredentialSettings};
use caisson_domain::id::{CredentialId, ProjectId};
use caisson_domain::limits::CREDENTIALS;
use caisson_domain::redact::PROJECT_SECRETS_BYTES;
use caisson_domain::run::{Failure, FailureKind, Run, RunStatus};
use caisson_store::{
    Actor, AuditFilter, CREDENTIAL_USES_KEPT, Credential, CredentialError, Finish, MasterKeyError,
    MasterKeyFile, NewCredential, StoreError,
};
use secrecy::ExposeSecret;

use crate::fixture::{Fixture, START_MS, project};

conformance! {
    a_credential_is_added_listed_and_opened,
    a_rotated_credential_opens_with_its_new_secret,
    a_renewal_that_comes_after_a_rotation_is_dropped,
    a_removed_credential_is_gone_with_its_secret,
    credentials_are_kept_apart_by_project,
    a_name_is_taken_once_and_a_project_has_a_bounded_number,
    secrets_of_a_project_have_bounded_room_together,
    a_secret_of_another_kind_or_a_bad_key_is_refused,
    the_secret_is_nowhere_in_the_database,
    a_changed_row_opens_nothing,
    uses_are_counted_by_run_and_written_once_a_minute,
    uses_beyond_the_kept_ones_are_written_one_by_one,
    uses_are_written_when_the_store_closes,
    adding_rotating_and_removing_are_audited,
    a_runs_uses_are_in_the_audit_log_once_when_it_ends,
    a_run_that_ends_otherwise_has_its_uses_in_the_audit_log_as_well,
    without_a_master_key_credentials_are_listed_and_removed_alone,
}

pub(crate) const CANARY: &str = "canary-5d1f0c77";

impl Fixture {
    /// With a master key beside the database.
    pub(crate) async fn unlocked(self) -> Self {
        self.store.unlock(self.key_file()).await.unwrap();
        self
    }

    pub(crate) fn key_file(&self) -> MasterKeyFile {
        MasterKeyFile::in_state_dir(self.directory())
    }
}

pub(crate) fn settings(kind: CredentialKind, fields: &[(&'static str, &str)]) -> CredentialSettings {
    let settings = fields.iter().map(|(name, text)| (*name, (*text).to_owned())).collect();
    CredentialFields { settings, ..CredentialFields::default() }.settings(kind).unwrap()
}

pub(crate) fn value(text: &str) -> CredentialSecret {
    CredentialSecret::Value { value: text.to_owned().into(), proxy_login: None }
}

pub(crate) fn oauth(access: &str) -> CredentialSecret {
    CredentialSecret::Oauth {
        access_token: access.to_owned().into(),
        refresh_token: "r".to_owned().into(),
        expires_at_ms: 5,
        proxy_login: None,
    }
}

fn git(prefix: &str) -> CredentialSettings {
    settings(CredentialKind::GitToken, &[("url_prefix", prefix)])
}

fn new(name: &str) -> NewCredential {
    NewCredential {
        project: project(),
        name: name.to_owned(),
        settings: git("https://git.example.com/"),
        secret: value(CANARY),
    }
}

pub(crate) async fn add(fixture: &Fixture, name: &str) -> Credential {
    fixture.store.add_credential(new(name), &Actor::Server).await.unwrap()
}

pub(crate) async fn opened(fixture: &Fixture, credential: &Credential) -> String {
    let opened = fixture.store.open_credential(&credential.project, &credential.id).await.unwrap().unwrap();
    text(&opened.secret)
}

fn text(secret: &CredentialSecret) -> String {
    match secret {
        CredentialSecret::Value { value, .. } => value.expose_secret().to_owned(),
        CredentialSecret::Oauth { access_token, .. } => access_token.expose_secret().to_owned(),
        CredentialSecret::PrivateKey { private_key } => private_key.expose_secret().to_owned(),
    }
}

async fn a_credential_is_added_listed_and_opened(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let first = add(&fixture, "first").await;
    fixture.clock.advance(1);
    let second = add(&fixture, "second").await;
    assert_eq!((first.version, first.created_at_ms, first.rotated_at_ms), (1, START_MS, None));
    let listed = fixture.store.list_credentials(&project()).await.unwrap();
    assert_eq!(listed, [first.clone(), second]);
    assert_eq!(fixture.store.credential(&project(), &first.id).await.unwrap().unwrap(), first);
    assert_eq!(opened(&fixture, &first).await, CANARY);
    let kinds = |one, two| fixture.store.credentials_of_kinds(&listed[0].project, [one, two]);
    let git = kinds(CredentialKind::GitGithubApp, CredentialKind::GitToken).await.unwrap();
    assert_eq!(git, listed);
    assert!(kinds(CredentialKind::ModelApiKey, CredentialKind::ModelOauth).await.unwrap().is_empty());
    let fixture = fixture.reopen().await.unlocked().await;
    assert_eq!(opened(&fixture, &first).await, CANARY, "after a restart");
}

async fn a_rotated_credential_opens_with_its_new_secret(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let credential = add(&fixture, "one").await;
    fixture.clock.advance(7);
    let at = (&credential.project, &credential.id);
    let rotated = fixture.store.rotate_credential(at, &value("new"), &Actor::Server).await.unwrap();
    let expected = Credential { version: 2, rotated_at_ms: Some(START_MS + 7), ..credential.clone() };
    assert_eq!(rotated.unwrap(), expected);
    assert_eq!(opened(&fixture, &credential).await, "new");
    let nobody = CredentialId::new(1, [9; 10]);
    let at = (&credential.project, &nobody);
    let missing = fixture.store.rotate_credential(at, &value("x"), &Actor::Server).await;
    assert!(missing.unwrap().is_none());
}

async fn a_renewal_that_comes_after_a_rotation_is_dropped(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let oauth_settings =
        settings(CredentialKind::ModelOauth, &[("token_url", "https://id.example.com/token")]);
    let new = NewCredential { settings: oauth_settings, secret: oauth("a1"), ..new("oauth") };
    let first = fixture.store.add_credential(new, &Actor::Server).await.unwrap();
    let renewed = fixture.store.renew_credential(&first, &oauth("a2")).await.unwrap().unwrap();
    assert_eq!((renewed.version, renewed.rotated_at_ms), (2, None), "nobody rotated it");
    assert!(fixture.store.renew_credential(&first, &oauth("late")).await.unwrap().is_none());
    let at = (&first.project, &first.id);
    fixture.store.rotate_credential(at, &oauth("a3"), &Actor::Operator).await.unwrap().unwrap();
    assert!(fixture.store.renew_credential(&renewed, &oauth("late")).await.unwrap().is_none());
    assert_eq!(opened(&fixture, &first).await, "a3");
}

async fn a_removed_credential_is_gone_with_its_secret(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let credential = add(&fixture, "one").await;
    let remove = || fixture.store.remove_credential(&credential.project, &credential.id, &Actor::Server);
    assert!(remove().await.unwrap());
    assert!(!remove().await.unwrap());
    assert!(fixture.store.open_credential(&credential.project, &credential.id).await.unwrap().is_none());
    assert_eq!(fixture.value::<i64>("select count(*) from credential").await, 0);
    add(&fixture, "one").await;
}

async fn credentials_are_kept_apart_by_project(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let credential = add(&fixture, "one").await;
    fixture.execute("insert into project (id, created_at_ms) values ('other', 0)").await;
    let other: ProjectId = "other".parse().unwrap();
    let id = &credential.id;
    assert!(fixture.store.list_credentials(&other).await.unwrap().is_empty());
    assert!(fixture.store.credential(&other, id).await.unwrap().is_none());
    assert!(fixture.store.open_credential(&other, id).await.unwrap().is_none());
    let rotated = fixture.store.rotate_credential((&other, id), &value("x"), &Actor::Server).await;
    assert!(rotated.unwrap().is_none());
    assert!(!fixture.store.remove_credential(&other, id, &Actor::Server).await.unwrap());
    let same_name = NewCredential { project: other, ..new("one") };
    fixture.store.add_credential(same_name, &Actor::Server).await.unwrap();
    let nowhere = NewCredential { project: "nowhere".parse().unwrap(), ..new("one") };
    let error = fixture.store.add_credential(nowhere, &Actor::Server).await.unwrap_err();
    assert!(matches!(error, CredentialError::Store(StoreError::Corrupt { .. })), "{error:?}");
}

async fn a_name_is_taken_once_and_a_project_has_a_bounded_number(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    add(&fixture, "one").await;
    let again = fixture.store.add_credential(new("one"), &Actor::Server).await.unwrap_err();
    assert!(matches!(again, CredentialError::NameTaken(_)), "{again}");
    let bad = fixture.store.add_credential(new("One!"), &Actor::Server).await.unwrap_err();
    assert!(matches!(bad, CredentialError::Unusable { field: "name", .. }), "{bad}");
    for number in 1..CREDENTIALS {
        add(&fixture, &format!("n{number}")).await;
    }
    let full = fixture.store.add_credential(new("more"), &Actor::Server).await.unwrap_err();
    assert!(matches!(full, CredentialError::Full), "{full}");
    let listed = fixture.store.list_credentials(&project()).await.unwrap();
    assert_eq!(i64::try_from(listed.len()).unwrap(), CREDENTIALS);
}

/// A credential as it is after rotations.
async fn now(fixture: &Fixture, credential: &Credential) -> Credential {
    fixture.store.credential(&credential.project, &credential.id).await.unwrap().unwrap()
}

/// A secret that is sealed into so many bytes, a multiple of three, with the nonce before it and the tag behind it.
fn sealed_into(bytes: usize) -> CredentialSecret {
    let empty = value("").to_plain().expose_secret().len() + 12 + 16;
    value(&"s".repeat(bytes - empty))
}

async fn secrets_of_a_project_have_bounded_room_together(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let store = &fixture.store;
    let most = PROJECT_SECRETS_BYTES / 3 * 3;
    let add = async |name: &str, bytes: usize| {
        let new = NewCredential { secret: sealed_into(bytes), ..new(name) };
        store.add_credential(new, &Actor::Server).await
    };
    let room = |result: Result<(), CredentialError>| match result {
        Ok(()) => None,
        Err(CredentialError::NoRoom { bytes }) => usize::try_from(bytes).ok(),
        Err(other) => panic!("{other}"),
    };
    add("large", most - 300).await.unwrap();
    assert_eq!(room(add("small", 303).await.map(drop)), Some(most + 3));
    let small = add("small", 300).await.unwrap();
    assert_eq!(room(add("more", 300).await.map(drop)), Some(most + 300));
    let rotate = async |bytes: usize| {
        let at = (&small.project, &small.id);
        room(store.rotate_credential(at, &sealed_into(bytes), &Actor::Server).await.map(drop))
    };
    assert_eq!(rotate(303).await, Some(most + 3));
    assert_eq!((rotate(297).await, rotate(300).await), (None, None));
    fixture.execute("insert into project (id, created_at_ms) values ('other', 0)").await;
    let elsewhere =
        NewCredential { project: "other".parse().unwrap(), secret: sealed_into(most), ..new("own") };
    store.add_credential(elsewhere, &Actor::Server).await.unwrap();
    // Of a renewal nobody else has what came: it is kept.
    let renewed = store.renew_credential(&now(&fixture, &small).await, &sealed_into(303)).await;
    assert!(renewed.unwrap().is_some());
    assert_eq!(rotate(300).await, None);
    // As an earlier version may have let it: nothing is taken away, and nothing grows.
    fixture.execute("update credential set sealed = sealed || sealed where name = 'large'").await;
    assert_eq!((rotate(300).await, rotate(303).await), (None, Some(2 * most - 297)));
    let listed = store.list_credentials(&project()).await.unwrap();
    let large = listed.iter().find(|one| one.name == "large").unwrap();
    assert!(store.remove_credential(&large.project, &large.id, &Actor::Server).await.unwrap());
    assert_eq!(rotate(303).await, None);
}

async fn a_secret_of_another_kind_or_a_bad_key_is_refused(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let app = settings(CredentialKind::GitGithubApp, &[("app_id", "1"), ("installation_id", "2")]);
    let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----";
    let key = || CredentialSecret::PrivateKey { private_key: CANARY.to_owned().into() };
    for (settings, secret, expected) in [
        (app.clone(), key(), "private_key"),
        (app, value("x"), "secret"),
        (git("https://git.example.com/"), key(), "secret"),
        (git("https://git.example.com/"), oauth("x"), "secret"),
        (settings(CredentialKind::ModelApiKey, &[("ca_pem", pem)]), value("x"), "ca_pem"),
    ] {
        let new = NewCredential { settings, secret, ..new("bad") };
        let error = fixture.store.add_credential(new, &Actor::Server).await.unwrap_err();
        assert!(matches!(error, CredentialError::Unusable { field, .. } if field == expected), "{error}");
        assert!(!format!("{error} {error:?}").contains(CANARY));
    }
    let credential = add(&fixture, "one").await;
    let at = (&credential.project, &credential.id);
    assert!(fixture.store.rotate_credential(at, &oauth("x"), &Actor::Server).await.is_err());
}

async fn the_secret_is_nowhere_in_the_database(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let credential = add(&fixture, "one").await;
    let at = (&credential.project, &credential.id);
    let newer = format!("newer-{CANARY}");
    fixture.store.rotate_credential(at, &value(&newer), &Actor::Server).await.unwrap().unwrap();
    assert_eq!(opened(&fixture, &credential).await, newer);
    let sealed: String = fixture.value("select sealed from credential").await;
    assert!(!fixture.holds(CANARY.as_bytes()).await && !fixture.holds(hex::encode(CANARY).as_bytes()).await);
    assert!(fixture.holds(sealed.as_bytes()).await, "the search must be able to find something");
}

async fn a_changed_row_opens_nothing(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let first = add(&fixture, "first").await;
    fixture.clock.advance(1);
    let second = add(&fixture, "second").await;
    fixture
        .execute(
            "update credential set settings = replace(settings, 'git.example.com', 'evil.example.com') \
             where name = 'first'",
        )
        .await;
    fixture
        .execute(
            "update credential set data_key = (select data_key from credential where name = 'first'), \
             sealed = (select sealed from credential where name = 'first') where name = 'second'",
        )
        .await;
    for credential in [first, second] {
        let error = fixture.store.open_credential(&credential.project, &credential.id).await.unwrap_err();
        let damaged = matches!(&error, CredentialError::Key(MasterKeyError::Damaged { id }) if *id == credential.id.to_string());
        assert!(damaged, "{error}");
    }
    fixture.execute("update credential set kind = 'mcp_header' where name = 'first'").await;
    assert!(fixture.store.list_credentials(&project()).await.is_err());
}

async fn uses_are_counted_by_run_and_written_once_a_minute(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let credential = add(&fixture, "one").await;
    let run = fixture.queued().await;
    for _ in 0..3 {
        fixture.clock.advance(10);
        fixture.store.use_credential(&credential, &run.id).await.unwrap();
    }
    let used = || fixture.store.credentials_used(&run.id);
    let first = used().await.unwrap();
    let with_run = async |project: &ProjectId, run: &Run| {
        fixture.store.run_and_credentials_used(project, &run.id).await.unwrap()
    };
    assert_eq!(with_run(&project(), &run).await, Some((run.clone(), first.clone())));
    let other = fixture.queued().await;
    assert_eq!(with_run(&project(), &other).await, Some((other.clone(), Vec::new())));
    assert_eq!(with_run(&"other".parse().unwrap(), &run).await, None);
    assert_eq!((first.len(), first[0].uses, first[0].first_used_at_ms), (1, 1, START_MS + 10));
    let seen = fixture.store.credential(&project(), &credential.id).await.unwrap().unwrap();
    assert_eq!(seen.last_used_at_ms, Some(START_MS + 30), "it is seen at once");
    fixture.beat().await;
    assert_eq!(used().await.unwrap()[0].uses, 1, "not before a minute is over");
    fixture.clock.advance(60_000);
    fixture.beat().await;
    let written = used().await.unwrap();
    assert_eq!((written[0].uses, written[0].last_used_at_ms), (3, START_MS + 30));
    assert_eq!(fixture.value::<i64>("select last_used_at_ms from credential").await, START_MS + 30);
    fixture.store.use_credential(&credential, &run.id).await.unwrap();
    assert_eq!(used().await.unwrap()[0].uses, 4);
    let stranger = caisson_domain::id::RunId::new(1, [9; 10]);
    assert!(fixture.store.use_credential(&credential, &stranger).await.is_err());
}

async fn uses_beyond_the_kept_ones_are_written_one_by_one(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let credential = add(&fixture, "one").await;
    let run = fixture.queued().await;
    // Pairs of credentials that are nowhere and one run fill what is kept.
    for number in 0..CREDENTIAL_USES_KEPT {
        let id = CredentialId::new(i64::try_from(number).unwrap(), [0; 10]);
        fixture.store.use_credential(&Credential { id, ..credential.clone() }, &run.id).await.unwrap();
    }
    for _ in 0..3 {
        fixture.store.use_credential(&credential, &run.id).await.unwrap();
    }
    let uses = "select max(uses) from credential_use";
    assert_eq!(fixture.value::<i64>(uses).await, 3, "nothing was left to memory");
}

async fn uses_are_written_when_the_store_closes(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let credential = add(&fixture, "one").await;
    let run = fixture.queued().await;
    for _ in 0..2 {
        fixture.store.use_credential(&credential, &run.id).await.unwrap();
    }
    fixture.store.close().await.unwrap();
    assert_eq!(fixture.value::<i64>("select uses from credential_use").await, 2);
}

async fn adding_rotating_and_removing_are_audited(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let credential = add(&fixture, "one").await;
    let at = (&credential.project, &credential.id);
    fixture.store.rotate_credential(at, &value("new"), &Actor::Operator).await.unwrap().unwrap();
    assert!(fixture.store.remove_credential(at.0, at.1, &Actor::Server).await.unwrap());
    let rows = fixture
        .rows("select actor, action, subject, credential, host from audit where action like 'credential%' order by number")
        .await;
    let found: Vec<[String; 4]> = rows
        .iter()
        .map(|row| ["actor", "action", "subject", "credential"].map(|column| row.get(column)))
        .collect();
    let id = credential.id.as_str();
    let added = format!("{id}: kind git_token");
    let expected = [("server", "add", added.as_str()), ("operator", "rotate", id), ("server", "remove", id)]
        .map(|(actor, what, subject)| {
            [actor, &format!("credential.{what}"), subject, "one"].map(str::to_owned)
        });
    assert_eq!(found, expected);
    let hosts: Vec<Option<&str>> = rows.iter().map(|row| row.get("host")).collect();
    assert_eq!(hosts, [Some("git.example.com"), None, None]);
}

async fn without_a_master_key_credentials_are_listed_and_removed_alone(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let credential = add(&fixture, "one").await;
    let fixture = fixture.reopen().await;
    assert_eq!(fixture.store.list_credentials(&project()).await.unwrap().len(), 1);
    let at = (&credential.project, &credential.id);
    let errors = [
        fixture.store.add_credential(new("two"), &Actor::Server).await.unwrap_err(),
        fixture.store.rotate_credential(at, &value("x"), &Actor::Server).await.unwrap_err(),
        fixture.store.open_credential(at.0, at.1).await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, CredentialError::Key(MasterKeyError::Absent)), "{error}");
    }
    assert!(fixture.store.remove_credential(at.0, at.1, &Actor::Operator).await.unwrap());
}

/// What the audit log has of a run's uses: subject and credential, in the order of writing.
pub(crate) async fn totals(fixture: &Fixture, run: &Run) -> Vec<(String, String)> {
    let filter = AuditFilter { action: Some("credential.total".to_owned()), ..AuditFilter::default() };
    let mut records = fixture.store.list_audit(&project(), &filter, None, 100).await.unwrap();
    records.reverse();
    let of_run = records.into_iter().filter(|record| record.run.as_deref() == Some(run.id.as_str()));
    of_run
        .map(|record| {
            assert_eq!(
                (record.actor.as_str(), record.session.as_deref()),
                ("server", Some(run.session.as_str()))
            );
            (record.subject, record.credential.unwrap())
        })
        .collect()
}

async fn a_runs_uses_are_in_the_audit_log_once_when_it_ends(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    fixture.store.keep_audit(&fixture.server).await.unwrap();
    let (one, two) = (add(&fixture, "one").await, add(&fixture, "two").await);
    let placed = fixture.placed().await;
    let run = &placed.run;
    for credential in [&one, &two, &one, &one] {
        fixture.clock.advance(10);
        fixture.store.use_credential(credential, &run.id).await.unwrap();
    }
    assert_eq!(totals(&fixture, run).await, []);
    assert!(fixture.store.remove_credential(&two.project, &two.id, &Actor::Operator).await.unwrap());
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
    assert!(fixture.store.finish(&run.id, placed.epoch, &finish).await.unwrap());
    assert!(!fixture.store.finish(&run.id, placed.epoch, &finish).await.unwrap());
    let told = |uses: i64, first: i64, last: i64| {
        let (first, last) = (START_MS + first, START_MS + last);
        format!("uses {uses}, first_used_at_ms {first}, last_used_at_ms {last}")
    };
    let mut wanted = vec![
        (told(3, 10, 40), format!("{} one", one.id), &one.id),
        (told(1, 20, 20), two.id.to_string(), &two.id),
    ];
    wanted.sort_by_key(|(_, _, id)| (*id).clone());
    let wanted: Vec<_> = wanted.into_iter().map(|(subject, credential, _)| (subject, credential)).collect();
    assert_eq!(totals(&fixture, run).await, wanted, "with those that were not written yet");
    fixture.clock.advance(60_000);
    fixture.beat().await;
    let counted = fixture.store.credentials_used(&run.id).await.unwrap();
    assert!(counted.iter().any(|used| used.credential == one.id.as_str() && used.uses == 3), "{counted:?}");
    assert_eq!(totals(&fixture, run).await.len(), 2);
    // The counts beside the log may be changed and go with their session; the log tells of a change.
    fixture.execute("delete from credential_use").await;
    let head = fixture.store.audit_head(&fixture.server).await.unwrap().unwrap();
    assert!(
        fixture.store.verify_audit(&[head]).await.unwrap().chains.iter().all(|chain| chain.fault.is_none())
    );
    assert_eq!(totals(&fixture, run).await, wanted);
}

async fn a_run_that_ends_otherwise_has_its_uses_in_the_audit_log_as_well(fixture: Fixture) {
    let fixture = fixture.unlocked().await;
    let credential = add(&fixture, "one").await;
    let told = vec![(
        format!("uses 1, first_used_at_ms {START_MS}, last_used_at_ms {START_MS}"),
        format!("{} one", credential.id),
    )];
    let waiting = fixture.queued().await;
    fixture.store.use_credential(&credential, &waiting.id).await.unwrap();
    fixture.store.request_cancel(&project(), &waiting.id, None).await.unwrap();
    assert_eq!(totals(&fixture, &waiting).await, told, "an attempt that went back to the queue used it");
    let damaged = fixture.placed().await;
    fixture.store.use_credential(&credential, &damaged.run.id).await.unwrap();
    fixture.execute("update run set spec = '[]' where status = 'running'").await;
    let failure = Failure::new(FailureKind::Internal, "a fault");
    assert!(fixture.store.end_unread(&damaged.run.id, damaged.epoch, &failure).await.unwrap());
    assert_eq!(totals(&fixture, &damaged.run).await, told);
    let unused = fixture.queued().await;
    fixture.store.request_cancel(&project(), &unused.id, None).await.unwrap();
    assert_eq!(totals(&fixture, &unused).await, []);
}
