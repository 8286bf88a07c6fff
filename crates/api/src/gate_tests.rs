use std::net::{IpAddr, Ipv4Addr};

use futures_util::FutureExt as _;

use super::*;

fn peer(number: u8) -> Peer {
    Peer::of(IpAddr::V4(Ipv4Addr::new(192, 0, 2, number)))
}

fn key(number: u8) -> ApiKeyId {
    ApiKeyId::new(1, [number; 10])
}

fn gate(connections: usize, connections_per_peer: usize) -> Gate {
    Gate::new(&ServeLimits { connections, connections_per_peer, ..ServeLimits::default() })
}

fn enter(gate: &Gate, of: u8) -> Entry {
    match gate.admit(peer(of)) {
        Admission::Entered(entry) => entry,
        refused @ (Admission::Refused | Admission::Full) => panic!("{refused:?}"),
    }
}

fn is_cut(entry: &Entry) -> bool {
    entry.cut().now_or_never().is_some()
}

#[test]
fn the_longest_waiting_connection_of_the_largest_crowd_makes_room() {
    let gate = gate(8, 8);
    let few = enter(&gate, 1);
    let crowd: Vec<_> = (0..5).map(|_| enter(&gate, 2)).collect();
    // Six places are for connections without a key.
    let new = enter(&gate, 3);
    assert!(is_cut(&crowd[0]) && !is_cut(&few) && !is_cut(&new));
    assert!(crowd[1..].iter().all(|entry| !is_cut(entry)));
    // One that was served waits from then on.
    drop(crowd[1].serve());
    let newer = enter(&gate, 3);
    assert!(is_cut(&crowd[2]) && !is_cut(&crowd[1]));
    drop((new, newer, crowd, few));
    let state = gate.lock();
    assert_eq!((state.open.len(), state.unproven, state.peers.len()), (0, 0, 0));
}

#[test]
fn a_connection_with_a_key_or_with_a_request_under_way_is_not_cut() {
    let gate = gate(8, 8);
    let proven = enter(&gate, 1);
    assert!(proven.prove(&key(1)) && proven.prove(&key(1)));
    let busy: Vec<_> = (0..6)
        .map(|_| {
            let entry = enter(&gate, 2);
            let serving = entry.serve();
            (entry, serving)
        })
        .collect();
    assert!(matches!(gate.admit(peer(3)), Admission::Full), "no place is left for callers without a key");
    assert!(busy[0].0.prove(&key(1)));
    let new = enter(&gate, 3);
    assert!(!is_cut(&proven) && busy.iter().all(|(entry, _)| !is_cut(entry)));
    assert_eq!(gate.lock().open.len(), 8);
    // Every place is taken, two of them by callers with a key: whoever waits makes room.
    let newer = enter(&gate, 4);
    assert!(is_cut(&new));
    drop(newer);
}

#[test]
fn an_address_beyond_its_bound_takes_from_itself_or_is_refused() {
    let gate = gate(100, 3);
    let other = enter(&gate, 2);
    let own: Vec<_> = (0..3).map(|_| enter(&gate, 1)).collect();
    let fourth = enter(&gate, 1);
    assert!(is_cut(&own[0]) && !is_cut(&other));
    for entry in [&own[1], &own[2], &fourth] {
        assert!(entry.prove(&key(1)));
    }
    assert!(matches!(gate.admit(peer(1)), Admission::Refused));
    drop(fourth);
    drop(enter(&gate, 1));
    drop(enter(&gate, 2));
}

#[test]
fn a_key_with_as_many_connections_as_one_may_have_proves_no_more_and_keeps_nobody_out() {
    let limits = ServeLimits { connections: 8, connections_per_peer: 8, ..ServeLimits::default() };
    let gate = Gate::new(&ServeLimits { connections_per_key: 2, ..limits });
    let entries: Vec<_> = (0..6).map(|_| enter(&gate, 1)).collect();
    let proven: Vec<_> = entries.iter().map(|entry| entry.prove(&key(1))).collect();
    assert_eq!(proven, [true, true, false, false, false, false]);
    assert!(entries[0].prove(&key(1)), "it has its place already");
    let other = enter(&gate, 2);
    assert!(other.prove(&key(2)));
    assert!(!is_cut(&entries[2]), "there was room");
    let (seventh, eighth) = (enter(&gate, 3), enter(&gate, 3));
    assert!(is_cut(&entries[2]), "what one key holds beyond its part makes room");
    drop((seventh, eighth));
    let mut entries = entries.into_iter();
    drop(entries.next());
    assert!(entries.next_back().unwrap().prove(&key(1)), "a place of the key is free again");
}

#[test]
fn places_are_scarce_when_more_than_half_of_them_are_taken() {
    let gate = gate(8, 8);
    let entries: Vec<_> = (0..5).map(|_| enter(&gate, 1)).collect();
    let pressed: Vec<_> = entries.iter().map(Entry::is_pressed).collect();
    assert_eq!(pressed, [false, false, false, false, true]);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_place_is_told_of_one() {
    let gate = gate(1, 8);
    let first = enter(&gate, 1);
    assert!(first.prove(&key(1)));
    assert!(matches!(gate.admit(peer(2)), Admission::Full));
    gate.freed().now_or_never();
    drop(first);
    gate.freed().await;
    drop(enter(&gate, 2));
}
