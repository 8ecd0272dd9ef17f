//! Subscriptions, what they are assigned, and commits.

use futures::FutureExt;
use millrace::broker::{Broker, Catalog, Commit, CommitOutcome, Partition, StartAt, Subscription, Wanted};
use millrace_core::idempotency::Bounds;
use millrace_core::outcome::Category;
use millrace_core::progress::{KeyHash, ParkedHead, Position, Progress, Stream};

use super::steps::{
    HOUR, after, all, commits, fetch_texts, function, letter, none_yet, orders, outgoing, publish, subscribe,
    subscription, texts, until, wanted, within,
};
use super::subjects::Subject;

pub(crate) async fn a_subscription_assigns_each_partition_from_its_beginning<S: Subject>(subject: S) {
    let log = orders(&subject, &["a"]).await;
    let mut assigned = subscribe::<S>(&log, subscription(&subject)).await;
    for (number, assignment) in (0..).zip(&assigned.units) {
        let unit = assignment.partition.unit();
        assert_eq!((&unit.function, &unit.topic, unit.partition), (&function(), &subject.topic("orders"), number));
        assert_eq!((assignment.siblings, &assignment.restored.progress), (2, &Progress::default()));
        assert!(assignment.restored.keys.is_empty() && !*assignment.revoked.borrow());
    }
    assert!(assigned.receiver.recv().now_or_never().is_none(), "more may be assigned later");
}

pub(crate) async fn subscribing_to_a_missing_topic_names_it<S: Subject>(subject: S) {
    let log = orders(&subject, &[]).await;
    let topics = vec![subject.topic("orders"), subject.topic("nowhere")];
    let error =
        within(log.subscribe(Subscription { topics, ..subscription(&subject) })).await.expect_err("one is missing");
    let text = error.to_string();
    assert!(error.is_transient() && text.contains(subject.topic("nowhere").as_str()), "{text}");
    assert!(text.contains("create it"), "{text}");
}

pub(crate) async fn where_a_function_starts_is_decided_once<S: Subject>(subject: S) {
    let log = orders(&subject, &["a", "b"]).await;
    let latest = || Subscription { from: StartAt::Latest, ..subscription(&subject) };
    let mut assigned = subscribe::<S>(&log, latest()).await;
    let begins = assigned.first().restored.progress.source.clone();
    assert!(begins.start >= 2 && begins.resume == begins.start, "{begins:?}");
    publish(&subject, &log, &["c"]).await;
    drop(assigned);
    subject.close(log).await;
    let log = subject.open().await;
    let mut assigned = subscribe::<S>(&log, latest()).await;
    assert_eq!(assigned.first().restored.progress.source, begins);
    assert_eq!(assigned.units[1].restored.progress, Progress::default());
    assert_eq!(fetch_texts(&mut assigned.first().partition, wanted(begins.resume), 1).await, ["c"]);
}

pub(crate) async fn fetch_gives_what_there_is_up_to_its_bounds<S: Subject>(subject: S) {
    let log = orders(&subject, &["a", "b", "c", "d", "e"]).await;
    let mut assigned = subscribe::<S>(&log, subscription(&subject)).await;
    let partition = &mut assigned.first().partition;
    for (from, max_records, max_bytes, most) in
        [(0, 100, 1 << 20, 5), (0, 3, 1 << 20, 3), (3, 1, 1 << 20, 1), (1, 9, 0, 1)]
    {
        let wanted = Wanted { source: Some(from), redrive: Some(0), max_records, max_bytes };
        let fetched = within(partition.fetch(wanted)).await.expect("there are records");
        let count = fetched.records.len();
        assert!((1..=most).contains(&count), "{count} of at most {most}");
        let expected: Vec<_> =
            ["a", "b", "c", "d", "e"].into_iter().skip(usize::try_from(from).expect("small")).take(count).collect();
        assert_eq!(texts(&fetched), expected);
        assert!(fetched.records.iter().map(|(offset, _)| *offset).eq(from..fetched.next), "{fetched:?}");
        assert_eq!(fetched.stream, Stream::Source);
    }
    assert_eq!(fetch_texts(partition, wanted(0), 5).await, ["a", "b", "c", "d", "e"]);
}

pub(crate) async fn fetch_waits_for_what_is_published<S: Subject>(subject: S) {
    let log = orders(&subject, &[]).await;
    let mut assigned = subscribe::<S>(&log, subscription(&subject)).await;
    let (mut fetched, published) = {
        let partition = &mut assigned.first().partition;
        assert!(partition.fetch(wanted(0)).now_or_never().is_none());
        tokio::join!(fetch_texts(partition, wanted(0), 1), publish(&subject, &log, &["a"]))
    };
    assert_eq!((fetched.pop().as_deref(), published[0].offset), (Some("a"), 0));
}

pub(crate) async fn a_commit_is_restored_as_it_was_written<S: Subject>(subject: S) {
    let log = orders(&subject, &["a", "b", "c", "d"]).await;
    let mut assigned = subscribe::<S>(&log, subscription(&subject)).await;
    let now = subject.now();
    let mut progress = after(&Progress::default(), 1);
    progress.source.settled_above = std::iter::once(2..4).collect();
    progress.source.totals.filtered = 2;
    progress.parked = vec![ParkedHead {
        position: Position { stream: Stream::Source, offset: 1 },
        attempts: 3,
        first_failed_at: now,
        due_at: now + HOUR,
        category: Category::Transient,
    }];
    let keys = vec![KeyHash(1), KeyHash(u128::MAX)];
    let partition = &mut assigned.first().partition;
    commits(partition, Commit { keys: keys.clone(), ..Commit::new(now, progress.clone()) }).await;
    progress.commits += 1;
    commits(partition, Commit { keys: vec![KeyHash(2)], ..Commit::new(now, progress.clone()) }).await;
    // Going back to the position, as after an abort, gives the same again.
    assert_eq!(fetch_texts(partition, wanted(1), 3).await, ["b", "c", "d"]);
    drop(assigned);
    subject.close(log).await;
    let log = subject.open().await;
    let mut assigned = subscribe::<S>(&log, subscription(&subject)).await;
    let restored = &assigned.first().restored;
    assert_eq!(restored.progress, progress);
    assert_eq!(restored.keys.len(), 3);
    assert!(keys.into_iter().chain([KeyHash(2)]).all(|key| restored.keys.contains(key, now)));
    let units = within(log.units(&function())).await.expect("units can be listed");
    assert_eq!(units.iter().map(|unit| unit.unit.partition).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(units[0].progress, progress);
    assert!(units[0].source_next >= 4 && units[0].oldest_unsettled_at.is_some_and(|at| at <= now), "{:?}", units[0]);
    assert_eq!((units[1].source_next, units[1].oldest_unsettled_at), (0, None));
}

pub(crate) async fn keys_older_than_the_window_are_not_restored<S: Subject>(subject: S) {
    let log = orders(&subject, &["a", "b"]).await;
    let mut assigned = subscribe::<S>(&log, subscription(&subject)).await;
    let (now, mut progress) = (subject.now(), Progress::default());
    for (age, key) in [(3 * HOUR, 1), (HOUR, 2)] {
        progress = after(&progress, 1);
        let next = Commit { keys: vec![KeyHash(key)], ..Commit::new(now - age, progress.clone()) };
        commits(&mut assigned.first().partition, next).await;
    }
    drop(assigned);
    let window = Bounds { span: 2 * HOUR, ..Bounds::default() };
    let mut assigned = subscribe::<S>(&log, Subscription { window, ..subscription(&subject) }).await;
    let keys = &assigned.first().restored.keys;
    assert_eq!((keys.len(), keys.contains(KeyHash(2), now)), (1, true));
}

pub(crate) async fn a_unit_restores_its_share_of_the_newest_keys<S: Subject>(subject: S) {
    let log = orders(&subject, &["a", "b", "c"]).await;
    let mut assigned = subscribe::<S>(&log, subscription(&subject)).await;
    let (now, mut progress) = (subject.now(), Progress::default());
    for key in 1..=3 {
        progress = after(&progress, 1);
        let next = Commit { keys: vec![KeyHash(key)], ..Commit::new(now, progress.clone()) };
        commits(&mut assigned.first().partition, next).await;
    }
    drop(assigned);
    // Two partitions share four.
    let window = Bounds { max_keys: 4, ..Bounds::default() };
    let mut assigned = subscribe::<S>(&log, Subscription { window, ..subscription(&subject) }).await;
    let known = [1, 2, 3].map(|key| assigned.first().restored.keys.contains(KeyHash(key), now));
    assert_eq!(known, [false, true, true]);
}

pub(crate) async fn outputs_become_visible_with_the_commit<S: Subject>(subject: S) {
    let log = orders(&subject, &["a"]).await;
    within(log.create_topic(subject.topic("payments"), 1)).await.expect("the topic can be made");
    let mut assigned = subscribe::<S>(&log, subscription(&subject)).await;
    let output = |name, partition, value| outgoing(&subject, name, partition, value);
    let outputs = vec![output("payments", 0, "paid"), output("orders", 1, "again"), output("payments", 0, "2")];
    let first = Commit { outputs, ..Commit::new(subject.now(), after(&Progress::default(), 1)) };
    commits(&mut assigned.first().partition, first).await;
    assert_eq!(all(&subject, &log, "payments", 0).await, ["paid", "2"]);
    assert_eq!(all(&subject, &log, "orders", 1).await, ["again"]);
}

pub(crate) async fn content_that_the_log_refuses_leaves_nothing<S: Subject>(subject: S) {
    let log = orders(&subject, &["a"]).await;
    let mut assigned = subscribe::<S>(&log, subscription(&subject)).await;
    let partition = &mut assigned.first().partition;
    let (now, progress) = (subject.now(), after(&Progress::default(), 1));
    let good = || outgoing(&subject, "orders", 1, "good");
    let with = |output| Commit { outputs: vec![good(), output], ..Commit::new(now, progress.clone()) };
    let refused = [
        with(outgoing(&subject, "nowhere", 0, "a")),
        with(outgoing(&subject, "orders", 1, &"x".repeat(1 << 20))),
        with(outgoing(&subject, "orders", 1, &"x".repeat(3 << 20))),
        Commit {
            outputs: vec![good()],
            letters: vec![letter(&subject, 0, &"x".repeat(3 << 20))],
            ..Commit::new(now, progress.clone())
        },
    ];
    for (number, commit) in refused.into_iter().enumerate() {
        let outcome = within(partition.commit(commit)).await.expect("the log can act");
        assert!(matches!(outcome, CommitOutcome::Refused { .. }), "{number}: {outcome:?}");
    }
    assert_eq!(all(&subject, &log, "orders", 1).await, [""; 0]);
    assert_eq!(within(log.open_letters(&function())).await.expect("letters can be counted"), 0);
    commits(partition, Commit::new(now, progress.clone())).await;
}

pub(crate) async fn a_commit_is_not_undone_by_dropping_its_future<S: Subject>(subject: S) {
    let log = orders(&subject, &["a"]).await;
    let mut assigned = subscribe::<S>(&log, subscription(&subject)).await;
    let progress = after(&Progress::default(), 1);
    let partition = &mut assigned.first().partition;
    drop(partition.commit(Commit::new(subject.now(), progress.clone())));
    let function = function();
    until(async || within(log.units(&function)).await.expect("units can be listed")[0].progress == progress).await;
}

pub(crate) async fn who_takes_over_goes_on_and_who_lost_commits_nothing<S: Subject>(subject: S) {
    let first = orders(&subject, &["a", "b"]).await;
    let mut old = subscribe::<S>(&first, subscription(&subject)).await;
    let batch = ["a", "b"].map(|value| outgoing(&subject, "orders", 1, value)).to_vec();
    within(first.publish(batch)).await.expect("the records are taken");
    let (now, progress) = (subject.now(), after(&Progress::default(), 1));
    for unit in &mut old.units {
        let (keys, state) = (vec![KeyHash(1)], vec![super::state::write("a", Some("1"))]);
        commits(&mut unit.partition, Commit { keys, state, ..Commit::new(now, progress.clone()) }).await;
    }
    let second = subject.open().await;
    let mut new = none_yet::<S>(&second, subscription(&subject)).await;
    let mut taken = new.next().await;
    assert_eq!(taken.restored.progress, progress);
    assert_eq!((taken.restored.keys.len(), taken.restored.keys.contains(KeyHash(1), now)), (1, true));
    assert_eq!(super::state::values(&taken.partition, &["a"]).await, [Some("1".to_owned())]);
    let number = usize::try_from(taken.partition.unit().partition).expect("few partitions");
    let lost = &mut old.units[number];
    within(lost.revoked.wait_for(|revoked| *revoked)).await.expect("the loss is told");
    let next = after(&progress, 1);
    let late = Commit { outputs: vec![outgoing(&subject, "orders", 0, "late")], ..Commit::new(now, next.clone()) };
    assert_eq!(within(lost.partition.commit(late)).await.expect("the log can act"), CommitOutcome::Aborted);
    assert_eq!(all(&subject, &first, "orders", 0).await, ["a", "b"]);
    assert!(!*taken.revoked.borrow());
    commits(&mut taken.partition, Commit::new(now, next.clone())).await;
    // When the first one leaves, the other partition is taken over as well.
    drop(old);
    subject.close(first).await;
    let rest = new.next().await;
    assert_ne!(rest.partition.unit(), taken.partition.unit());
    assert_eq!(rest.restored.progress, progress);
}
