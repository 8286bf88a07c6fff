//! Users of the compatible API.

use caisson_store::{Actor, AuditFilter, ChangeUser, User, UserFields};

use crate::fixture::{Fixture, START_MS, project};

conformance! {
    a_user_is_made_found_changed_and_removed,
    addresses_and_numbers_are_unique_in_a_project,
    an_id_comes_before_an_address_that_reads_like_it,
    making_changing_and_removing_users_is_audited,
}

fn fields(email: &str) -> UserFields {
    UserFields { email: Some(email.to_owned()), phone_number: None, user_data: Some("{\"a\":1}".to_owned()) }
}

fn done(change: ChangeUser) -> User {
    let ChangeUser::Done(user) = change else { panic!("{change:?}") };
    user
}

async fn a_user_is_made_found_changed_and_removed(fixture: Fixture) {
    let store = &fixture.store;
    let user = done(store.create_user(&project(), fields("a@x"), Actor::Operator).await.unwrap());
    assert_eq!((user.created_at_ms, user.updated_at_ms), (START_MS, START_MS));
    for named in [user.id.as_str(), "a@x"] {
        assert_eq!(store.find_user(&project(), named).await.unwrap().as_ref(), Some(&user));
    }
    fixture.clock.advance(5);
    let changed =
        done(store.update_user(&project(), &user.id, fields("b@x"), Actor::Operator).await.unwrap());
    assert_eq!((changed.created_at_ms, changed.updated_at_ms), (START_MS, START_MS + 5));
    assert_eq!(store.list_users(&project(), 0, 10).await.unwrap(), [changed]);
    assert_eq!(store.list_users(&project(), 1, 10).await.unwrap(), []);
    assert!(store.delete_user(&project(), &user.id, Actor::Operator).await.unwrap());
    assert!(!store.delete_user(&project(), &user.id, Actor::Operator).await.unwrap());
    let gone = store.update_user(&project(), &user.id, fields("b@x"), Actor::Operator).await.unwrap();
    assert_eq!((gone, store.count_users(&project()).await.unwrap()), (ChangeUser::Unknown, 0));
}

async fn addresses_and_numbers_are_unique_in_a_project(fixture: Fixture) {
    let store = &fixture.store;
    done(store.create_user(&project(), fields("a@x"), Actor::Operator).await.unwrap());
    let other = done(store.create_user(&project(), fields("b@x"), Actor::Operator).await.unwrap());
    assert_eq!(
        store.create_user(&project(), fields("a@x"), Actor::Operator).await.unwrap(),
        ChangeUser::Taken
    );
    assert_eq!(
        store.update_user(&project(), &other.id, fields("a@x"), Actor::Operator).await.unwrap(),
        ChangeUser::Taken
    );
    assert_eq!(store.find_user(&project(), "b@x").await.unwrap(), Some(other.clone()));
    assert_eq!(store.find_user(&"other".parse().unwrap(), "a@x").await.unwrap(), None);
    done(store.update_user(&project(), &other.id, fields("b@x"), Actor::Operator).await.unwrap());
    for _ in 0..2 {
        done(store.create_user(&project(), UserFields::default(), Actor::Operator).await.unwrap());
    }
}

async fn an_id_comes_before_an_address_that_reads_like_it(fixture: Fixture) {
    let store = &fixture.store;
    // One of the two ids is the smaller one, so each stands for the other once.
    let known: Vec<User> = [
        done(store.create_user(&project(), fields("a@x"), Actor::Operator).await.unwrap()),
        done(store.create_user(&project(), fields("b@x"), Actor::Operator).await.unwrap()),
    ]
    .into();
    for (user, other) in [(0, 1), (1, 0)] {
        let (user, other) = (&known[user].id, &known[other].id);
        let poses = UserFields { email: Some(user.clone()), ..UserFields::default() };
        done(store.update_user(&project(), other, poses, Actor::Operator).await.unwrap());
        assert_eq!(&store.find_user(&project(), user).await.unwrap().unwrap().id, user);
        let poses = UserFields { phone_number: Some(user.clone()), ..UserFields::default() };
        done(store.update_user(&project(), other, poses, Actor::Operator).await.unwrap());
        assert_eq!(&store.find_user(&project(), user).await.unwrap().unwrap().id, user);
        done(store.update_user(&project(), other, UserFields::default(), Actor::Operator).await.unwrap());
    }
}

async fn making_changing_and_removing_users_is_audited(fixture: Fixture) {
    let store = &fixture.store;
    let user = done(store.create_user(&project(), fields("a@x"), Actor::Operator).await.unwrap());
    assert_eq!(
        store.create_user(&project(), fields("a@x"), Actor::Operator).await.unwrap(),
        ChangeUser::Taken
    );
    done(store.update_user(&project(), &user.id, fields("b@x"), Actor::Server).await.unwrap());
    assert!(store.delete_user(&project(), &user.id, Actor::Operator).await.unwrap());
    assert!(!store.delete_user(&project(), &user.id, Actor::Operator).await.unwrap());
    let mut told = store.list_audit(&project(), &AuditFilter::default(), None, 10).await.unwrap();
    told.reverse();
    let told: Vec<_> =
        told.iter().map(|record| (record.actor.as_str(), record.action.as_str(), &record.subject)).collect();
    let id = &user.id;
    assert_eq!(
        told,
        [("operator", "user.create", id), ("server", "user.update", id), ("operator", "user.delete", id)]
    );
}
