//! What becomes of canaries.

use super::*;

fn source(component: &[u8], origin: Origin) -> Source {
    Source { component: Digest::of(component), manifest: String::new(), origin, signature: None }
}

fn deploy(component: &[u8]) -> Action {
    Action::Deploy(source(component, Origin::Upload))
}

fn share(text: &str) -> Share {
    text.parse().unwrap()
}

fn attempt(component: &[u8], of: &str) -> Action {
    Action::DeployCanary { source: source(component, Origin::Upload), share: share(of) }
}

fn canary(revision: u64, of: &str) -> Action {
    Action::Canary { revision, share: share(of) }
}

fn activate(revision: u64) -> Action {
    Action::Activate { revision }
}

fn promote(revision: u64) -> Action {
    Action::Promote { revision }
}

fn to(revision: u64) -> Action {
    Action::Rollback { to: revision }
}

fn after(actions: &[Action]) -> History {
    let mut history = History::default();
    for (number, action) in (1..).zip(actions) {
        history.apply(number, &Change::new(action.clone(), Timestamp::EPOCH, "me").encode());
    }
    history
}

/// Deployments 1 to 4: revision 3 is staged to be the canary, and is it, beside revision 1.
fn with_canary(more: &[Action]) -> History {
    let first = [deploy(b"a"), activate(1), attempt(b"b", "5%"), canary(3, "5%")];
    after(&[&first[..], more].concat())
}

#[test]
fn what_follows_from_deployments_of_canaries() {
    let five = Some((3, share("5%")));
    for (more, active, staged, running, back) in [
        (vec![], Some(1), None, five, Some(1)),
        (vec![canary(3, "20%")], Some(1), None, Some((3, share("20%"))), Some(1)),
        (vec![promote(3)], Some(3), None, None, Some(1)),
        // A rollback to the active one, or to another one, gives the canary up; so does another activation, but what is only
        // staged does not.
        (vec![to(1)], Some(1), None, None, None),
        (vec![to(3)], Some(3), None, None, Some(1)),
        (vec![deploy(b"c")], Some(1), Some((5, None)), five, Some(1)),
        (vec![deploy(b"c"), activate(5)], Some(5), None, None, Some(1)),
        (vec![deploy(b"c"), promote(3)], Some(3), Some((5, None)), None, Some(1)),
        (vec![deploy(b"c"), promote(3), activate(5)], Some(5), None, None, Some(3)),
        (vec![deploy(b"c"), canary(3, "20%")], Some(1), Some((5, None)), Some((3, share("20%"))), Some(1)),
        (vec![attempt(b"c", "9%")], Some(1), Some((5, Some(share("9%")))), five, Some(1)),
        (vec![attempt(b"c", "9%"), canary(5, "9%")], Some(1), None, Some((5, share("9%"))), Some(1)),
        (vec![attempt(b"c", "9%"), to(1)], Some(1), None, None, None),
        (vec![Action::Pause, Action::Resume], Some(1), None, five, Some(1)),
        (vec![Action::Delete], None, None, None, None),
        (vec![Action::Delete, to(1)], Some(1), None, None, None),
        (vec![Action::Deploy(source(b"d", Origin::Directory))], Some(5), None, None, Some(1)),
        // What was staged to be a canary does not become active, nor what was staged to be active a canary.
        (vec![attempt(b"c", "9%"), activate(5)], Some(1), Some((5, Some(share("9%")))), five, Some(1)),
        (vec![deploy(b"c"), canary(5, "9%")], Some(1), Some((5, None)), five, Some(1)),
        // What is no canary, or not any more.
        (vec![promote(1), promote(9), canary(1, "9%")], Some(1), None, five, Some(1)),
        (vec![to(1), promote(3), canary(3, "9%")], Some(1), None, None, None),
        // One that was given up is not gone back to.
        (vec![to(1), deploy(b"c"), activate(6)], Some(6), None, None, Some(1)),
        (vec![promote(3), deploy(b"c"), activate(6)], Some(6), None, None, Some(3)),
        (vec![to(3), deploy(b"c"), activate(6)], Some(6), None, None, Some(3)),
    ] {
        let history = with_canary(&more);
        let found = (
            history.active().map(|(number, _)| number),
            history.staged().map(|(number, _)| (number, history.staged_share())),
            history.canary().map(|(number, _, share)| (number, share)),
            history.back(),
        );
        assert_eq!(found, (active, staged, running, back), "{more:?}");
    }
}

#[test]
fn a_staged_canary_is_given_up_before_it_began() {
    let history = after(&[deploy(b"a"), activate(1), attempt(b"b", "5%")]);
    assert_eq!((history.next(), history.back()), (Some(canary(3, "5%")), Some(1)));
    assert_eq!(with_canary(&[deploy(b"c")]).next(), Some(activate(5)));
    assert_eq!(with_canary(&[]).next(), None);
}

#[test]
fn what_is_possible_with_a_canary_and_what_is_done_already() {
    let history = with_canary(&[]);
    for (action, expected, done) in [
        (attempt(b"b", "5%"), Ok(()), true),
        (attempt(b"b", "9%"), Ok(()), false),
        (attempt(b"a", "5%"), Ok(()), false),
        (deploy(b"a"), Ok(()), true),
        (deploy(b"b"), Ok(()), false),
        (canary(3, "5%"), Ok(()), true),
        (canary(3, "9%"), Ok(()), false),
        (canary(1, "9%"), Err(Impossible::NotCanary { revision: 1, canary: 3 }), true),
        (promote(3), Ok(()), false),
        (promote(5), Err(Impossible::NotCanary { revision: 5, canary: 3 }), true),
        (to(1), Ok(()), false),
        (to(3), Ok(()), false),
        (activate(3), Err(Impossible::NotStaged { revision: 3 }), true),
    ] {
        assert_eq!((history.check(&action), history.is_done(&action)), (expected, done), "{action:?}");
    }
    let staged = with_canary(&[attempt(b"c", "9%")]);
    assert_eq!(staged.check(&activate(5)), Err(Impossible::NotStaged { revision: 5 }));
    assert_eq!((staged.check(&canary(5, "9%")), staged.check(&canary(3, "9%"))), (Ok(()), Ok(())));
    assert!(staged.is_done(&attempt(b"c", "9%")) && !staged.is_done(&deploy(b"c")));
    let plain = after(&[deploy(b"a"), activate(1)]);
    assert!(plain.is_done(&attempt(b"a", "5%")), "there would be no difference");
    assert_eq!(plain.check(&promote(1)), Err(Impossible::NoCanary));
    let directory = after(&[Action::Deploy(source(b"d", Origin::Directory))]);
    for history in [History::default(), directory, after(&[deploy(b"a")])] {
        assert_eq!(history.check(&attempt(b"b", "5%")), Err(Impossible::NothingBeside));
    }
}

fn signed(signature: &str, share: &str) -> Action {
    let source = Source { signature: Some(signature.to_owned()), ..source(b"b", Origin::Upload) };
    Action::DeployCanary { source, share: share.parse().unwrap() }
}

#[test]
fn deploying_the_canary_again_changes_its_share() {
    for (history, action, expected) in [
        (with_canary(&[]), attempt(b"b", "9%"), canary(3, "9%")),
        (with_canary(&[]), attempt(b"c", "9%"), attempt(b"c", "9%")),
        (with_canary(&[]), deploy(b"b"), deploy(b"b")),
        // A signature that is given once stays, and another one is another revision.
        (after(&[deploy(b"a"), activate(1), signed("s", "5%"), canary(3, "5%")]), attempt(b"b", "9%"), canary(3, "9%")),
        (after(&[deploy(b"a"), activate(1), signed("s", "5%"), canary(3, "5%")]), signed("s", "9%"), canary(3, "9%")),
        (with_canary(&[]), signed("s", "9%"), signed("s", "9%")),
        // What is staged would take its place.
        (with_canary(&[deploy(b"c")]), attempt(b"b", "9%"), attempt(b"b", "9%")),
        (with_canary(&[to(1)]), attempt(b"b", "9%"), attempt(b"b", "9%")),
    ] {
        assert_eq!(history.as_share(action.clone()), expected, "{action:?}");
    }
}

#[test]
fn the_component_of_a_canary_is_kept_however_old_it_is() {
    let more: Vec<Action> = (5..11).map(|number| deploy(format!("r{number}").as_bytes())).collect();
    let history = with_canary(&more);
    assert_eq!(history.kept(3).into_keys().collect::<Vec<_>>(), [1, 3, 10]);
}

#[test]
fn a_version_that_knows_no_canaries_keeps_what_runs() {
    // As one reads it that does not know these actions.
    let mut history = after(&[deploy(b"a"), activate(1)]);
    history.apply(3, &attempt_of_newer());
    assert_eq!(*history.state(), State::Unknown { number: 3 });
    assert_eq!((history.staged(), history.canary(), history.next()), (None, None, None));
    // What is given up by a rollback is that for all versions.
    history.apply(4, &Change::new(to(1), Timestamp::EPOCH, "").encode());
    assert_eq!(*history.state(), State::Active { revision: 1, paused: false });
}

fn attempt_of_newer() -> Vec<u8> {
    let content = Change::new(attempt(b"b", "5%"), Timestamp::EPOCH, "").encode();
    String::from_utf8(content).unwrap().replace("deploy-canary", "deploy-other").into_bytes()
}

#[test]
fn the_layout_is_pinned() {
    let digest = Digest::of(b"b");
    for (action, expected) in [
        (
            attempt(b"b", "0.5%"),
            format!(
                r#"{{"action":"deploy-canary","component":"{digest}","manifest":"","origin":"upload","share":50,"at":"1970-01-01T00:00:00Z","by":"me"}}"#
            ),
        ),
        (
            canary(3, "5%"),
            r#"{"action":"canary","revision":3,"share":500,"at":"1970-01-01T00:00:00Z","by":"me"}"#.to_owned(),
        ),
        (promote(3), r#"{"action":"promote","revision":3,"at":"1970-01-01T00:00:00Z","by":"me"}"#.to_owned()),
    ] {
        let change = Change::new(action, Timestamp::EPOCH, "me");
        assert_eq!(String::from_utf8(change.encode()).unwrap(), expected);
        assert_eq!(Change::decode(expected.as_bytes()), Ok(change));
    }
    for share in ["0", "10000", "-1", "\"5%\"", "5.5"] {
        let content = format!(r#"{{"action":"canary","revision":3,"share":{share}}}"#);
        assert!(Change::decode(content.as_bytes()).is_err(), "{content}");
    }
}
