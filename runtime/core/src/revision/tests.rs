use proptest::prelude::*;

use super::*;

const MANIFEST: &str = "application = \"shop\"\n[topics.orders]\npartitions = 3\n[topics.other]\n\
        [functions.pay]\nbuild = \"make\"\ncomponent = \"pay.wasm\"\ntopics = [\"orders\"]\n\
        [functions.ship]\ncomponent = \"ship.wasm\"\ntopics = [\"other\"]\n";

fn source(component: &[u8], origin: Origin) -> Source {
    Source { component: Digest::of(component), manifest: String::new(), origin, signature: None }
}

fn deploy(component: &[u8]) -> Action {
    Action::Deploy(source(component, Origin::Upload))
}

fn after(actions: &[Action]) -> History {
    let mut history = History::default();
    for (number, action) in (1..).zip(actions) {
        history.apply(number, &Change::new(action.clone(), Timestamp::EPOCH, "me").encode());
    }
    history
}

fn active(revision: u64, paused: bool) -> State {
    State::Active { revision, paused }
}

fn activate(revision: u64) -> Action {
    Action::Activate { revision }
}

#[test]
fn what_follows_from_deployments() {
    let (a, b) = (deploy(b"a"), deploy(b"b"));
    let directory = Action::Deploy(source(b"d", Origin::Directory));
    let running = [a.clone(), activate(1), b.clone(), activate(3)];
    let and = |more: &[Action]| [&running[..], more].concat();
    for (actions, expected, staged, previous) in [
        (vec![], State::Absent, None, None),
        (vec![a.clone()], State::Absent, Some(1), None),
        (vec![directory.clone()], active(1, false), None, None),
        (vec![a.clone(), activate(1)], active(1, false), None, None),
        (vec![a.clone(), b.clone(), activate(1)], State::Absent, Some(2), None),
        (vec![a.clone(), activate(1), b], active(1, false), Some(3), None),
        (vec![a, directory], active(2, false), Some(1), Some(1)),
        (and(&[]), active(3, false), None, Some(1)),
        (and(&[activate(1)]), active(3, false), None, Some(1)),
        (and(&[Action::Rollback { to: 1 }]), active(1, false), None, None),
        (and(&[Action::Rollback { to: 7 }]), active(3, false), None, Some(1)),
        (and(&[deploy(b"c"), Action::Rollback { to: 1 }, activate(5)]), active(1, false), None, None),
        (and(&[Action::Pause]), active(3, true), None, Some(1)),
        (and(&[Action::Pause, deploy(b"c"), activate(6)]), active(6, true), None, Some(3)),
        (and(&[deploy(b"c"), Action::Pause, activate(5)]), active(5, true), None, Some(3)),
        (and(&[Action::Pause, Action::Resume]), active(3, false), None, Some(1)),
        (and(&[Action::Delete]), State::Absent, None, None),
        (and(&[deploy(b"c"), Action::Delete, activate(5)]), State::Absent, None, None),
        (and(&[Action::Delete, Action::Pause]), State::Absent, None, None),
        (and(&[Action::Delete, Action::Rollback { to: 1 }]), active(1, false), None, None),
        (and(&[Action::Pause, Action::Delete, deploy(b"c"), activate(7)]), active(7, false), None, Some(3)),
    ] {
        let history = after(&actions);
        let told = (history.state(), history.staged().map(|(number, _)| number), history.previous());
        assert_eq!(told, (&expected, staged, previous), "{actions:?}");
    }
}

#[test]
fn what_is_possible_and_what_is_done_already() {
    let directory = Action::Deploy(source(b"d", Origin::Directory));
    let history = after(&[deploy(b"a"), directory, deploy(b"b"), activate(3), deploy(b"c")]);
    for (action, expected, done) in [
        (deploy(b"b"), Ok(()), false),
        (deploy(b"c"), Ok(()), true),
        (activate(5), Ok(()), false),
        (activate(3), Err(Impossible::NotStaged { revision: 3 }), true),
        (Action::Rollback { to: 1 }, Ok(()), false),
        // What is staged is given up by it.
        (Action::Rollback { to: 3 }, Ok(()), false),
        (Action::Rollback { to: 2 }, Err(Impossible::OfDirectory { revision: 2 }), false),
        (Action::Rollback { to: 9 }, Err(Impossible::NoRevision { wanted: 9, there_are: vec![1, 2, 3, 5] }), true),
        (Action::Pause, Ok(()), false),
        (Action::Resume, Ok(()), true),
        (Action::Delete, Ok(()), false),
    ] {
        assert_eq!((history.check(&action), history.is_done(&action)), (expected, done), "{action:?}");
    }
    assert!(after(&[deploy(b"a"), activate(1)]).is_done(&deploy(b"a")));
    for action in [Action::Pause, Action::Resume, Action::Delete, Action::Rollback { to: 1 }] {
        assert_eq!(History::default().check(&action), Err(Impossible::Absent));
    }
}

#[test]
fn each_unit_knows_where_it_was_told_to_go_on_last() {
    let place = |topic: &str, partition: u32, offset: u64| Place {
        topic: topic.parse().unwrap(),
        partition,
        offset,
        oldest: offset == 7,
    };
    let reset = |positions: &[Place], forget: bool| Action::Reset { positions: positions.to_vec(), forget };
    let running = [deploy(b"a"), activate(1)];
    let first = reset(&[place("orders", 0, 7), place("orders", 1, 8), place("other", 0, 9)], false);
    let second = reset(&[place("orders", 1, 5)], true);
    let third = reset(&[place("orders", 1, 6)], false);
    let history = after(&[&running[..], &[first.clone(), Action::Pause, second, third]].concat());
    for (topic, partition, expected) in [
        ("orders", 0, Some(Target { number: 3, offset: 7, oldest: true, forgets: 0 })),
        ("orders", 1, Some(Target { number: 6, offset: 6, oldest: false, forgets: 5 })),
        ("other", 0, Some(Target { number: 3, offset: 9, oldest: false, forgets: 0 })),
        ("other", 1, None),
        ("elsewhere", 0, None),
    ] {
        let unit = Unit { function: "shop.pay".parse().unwrap(), topic: topic.parse().unwrap(), partition };
        assert_eq!(history.resets().of(&unit), expected, "{topic}/{partition}");
    }
    assert_eq!((history.state(), history.latest()), (&active(1, true), 6));
    // The same once more is not the same: events were handled since.
    assert_eq!((history.check(&first), history.is_done(&first)), (Ok(()), false));
    assert_eq!(History::default().check(&first), Err(Impossible::Absent));
    assert!(History::default().resets().is_empty() && !history.resets().is_empty());
    let bytes = br#"{"action":"reset","positions":[{"topic":"..","partition":0,"offset":1}],"forget":false}"#;
    assert!(Change::decode(bytes).is_err(), "no topic can have that name");
}

#[test]
fn a_deployment_of_the_first_kind_is_one_of_a_directory() {
    let mut history = History::default();
    let digest = Digest::of(b"a");
    history.apply(1, format!(r#"{{"component":"{digest}","function":{{"topics":["a"]}}}}"#).as_bytes());
    assert_eq!(history.active(), Some((1, &source(b"a", Origin::Directory))));
    assert_eq!(history.check(&deploy(b"b")), Ok(()));
}

#[test]
fn the_active_revision_is_kept_however_old_it_is() {
    let mut actions = vec![deploy(b"a"), activate(1), Action::Deploy(source(b"d", Origin::Directory))];
    actions.extend([deploy(b"b"), activate(4), deploy(b"c"), activate(6), Action::Rollback { to: 1 }, deploy(b"e")]);
    let kept = |most: usize| after(&actions).kept(most).into_keys().collect::<Vec<_>>();
    assert_eq!((kept(2), kept(3), kept(10)), (vec![1, 9], vec![1, 6, 9], vec![1, 4, 6, 9]));
}

#[test]
fn what_a_newer_version_did_is_not_guessed_at() {
    let mut history = after(&[deploy(b"a"), activate(1)]);
    history.apply(3, br#"{"action":"freeze","share":5}"#);
    assert_eq!(*history.state(), State::Unknown { number: 3 });
    assert_eq!(history.check(&Action::Pause), Err(Impossible::Unknown { number: 3 }));
    // A rollback that is known again says all there is to say.
    history.apply(4, &Change::new(Action::Rollback { to: 1 }, Timestamp::EPOCH, "").encode());
    assert_eq!(*history.state(), active(1, false));
}

#[test]
fn a_function_takes_along_what_concerns_it_and_reads_back() {
    let (manifest, _) = Manifest::parse(MANIFEST).unwrap();
    let pay = manifest.function("pay").unwrap();
    let uploaded = Source::uploaded(&manifest, pay, Digest::of(b"pay"));
    assert!(!uploaded.manifest.contains("make") && !uploaded.manifest.contains("ship"), "{}", uploaded.manifest);
    let (read, function) = uploaded.read("millrace").unwrap();
    let topics: Vec<&str> = read.topics.iter().map(|topic| topic.name.as_str()).collect();
    assert_eq!((topics, read.topics[0].partitions), (vec!["orders"], Some(3)));
    assert_eq!(Function { build: pay.build.clone(), component: pay.component.clone(), ..function }, *pay);
    let (_, function) = Source::of_directory(pay, Digest::of(b"pay")).read("millrace").unwrap();
    assert_eq!(function, *pay);
    let error = Source { manifest: "application = 1".to_owned(), ..uploaded }.read("millrace").unwrap_err();
    assert!(error.to_string().starts_with("its stored manifest cannot be used"), "{error}");
}

#[test]
fn the_layout_is_pinned() {
    let at = Timestamp::from_millis(0);
    let digest = Digest::of(b"abc");
    let source = Source { component: digest, manifest: "x".to_owned(), origin: Origin::Upload, signature: None };
    let signed = Source { signature: Some("AA==".to_owned()), ..source.clone() };
    for (action, expected) in [
            (
                Action::Deploy(source),
                format!(
                    r#"{{"action":"deploy","component":"{digest}","manifest":"x","origin":"upload","at":"1970-01-01T00:00:00Z","by":"me"}}"#
                ),
            ),
            (
                Action::Deploy(signed),
                format!(
                    r#"{{"action":"deploy","component":"{digest}","manifest":"x","origin":"upload","signature":"AA==","at":"1970-01-01T00:00:00Z","by":"me"}}"#
                ),
            ),
            (
                Action::Rollback { to: 3 },
                r#"{"action":"rollback","to":3,"at":"1970-01-01T00:00:00Z","by":"me"}"#.to_owned(),
            ),
            (
                Action::Reset {
                    positions: vec![
                        Place { topic: "orders".parse().unwrap(), partition: 1, offset: 7, oldest: false },
                        Place { topic: "orders".parse().unwrap(), partition: 2, offset: 0, oldest: true },
                    ],
                    forget: true,
                },
                r#"{"action":"reset","positions":[{"topic":"orders","partition":1,"offset":7},{"topic":"orders","partition":2,"offset":0,"oldest":true}],"forget":true,"at":"1970-01-01T00:00:00Z","by":"me"}"#
                    .to_owned(),
            ),
            (Action::Delete, r#"{"action":"delete","at":"1970-01-01T00:00:00Z","by":"me"}"#.to_owned()),
        ] {
            let change = Change::new(action, at, "me");
            assert_eq!(String::from_utf8(change.encode()).unwrap(), expected);
            assert_eq!(Change::decode(expected.as_bytes()), Ok(change));
        }
}

proptest! {
    #[test]
    fn foreign_bytes_never_panic(bytes: Vec<u8>, by: String) {
        drop(Change::decode(&bytes));
        History::default().apply(1, &bytes);
        let change = Change::new(Action::Pause, Timestamp::EPOCH, &by);
        prop_assert!(change.by.len() <= BY_MAX_BYTES && by.starts_with(&change.by));
    }
}
