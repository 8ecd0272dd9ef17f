use std::collections::VecDeque;
use std::time::Duration;

use super::*;
use crate::policy::Ordering;
use crate::progress::StreamProgress;
use crate::revision::Target;

const POLICY: Policy = Policy {
    retry: RetryPolicy {
        attempts: 3,
        initial: Duration::from_secs(1),
        max: Duration::from_secs(1),
        max_age: Duration::from_secs(3600),
    },
    parked: ParkedPolicy { limit: 3, overflow: Overflow::DeadLetter },
    concurrency: 1,
};

impl Payload for u64 {
    fn size_bytes(&self) -> usize {
        8
    }

    fn detach(&mut self) {}
}

/// Runs a script of steps, and compares what the dispatcher asks for.
///
/// Steps: `a:x` delivers a record with ordering key `a` and idempotency key `x` (`-` for no ordering key; the next
/// words up to a `;` come in the same batch), `filtered`, `refused` and `gap` deliver such a record; `ok`, `transient`,
/// `unknown`, `invalid` and `rejected` end the oldest attempt, `released` gives it back; `seal`, `commit`, `abort`,
/// `refuse`, `forbid` and `postpone`; `go 7` goes on from an offset, and `forget 7` forgets all keys with it; `restart` forgets everything but what is committed; `all`, `one` and `nothing` admit; `wait` lets 2 s pass.
/// Deliveries start at the cursor, so after an abort the records must be delivered again.
///
/// Effects: `run0` (`run0#2` for a second attempt), `done0`, `filtered0`, `dup0`, `dead0` (`dead0#3` after 3 attempts).
struct Machine {
    dispatcher: Dispatcher<u64>,
    now: Timestamp,
    tickets: VecDeque<Ticket<u64>>,
    trace: Vec<String>,
    offset: u64,
}

impl Machine {
    fn new(policy: Policy) -> Self {
        let window = Window::new(Duration::from_secs(86_400), 1000);
        let dispatcher = Dispatcher::new(policy, Progress::default(), window, 7);
        let now = Timestamp::from_millis(1_000_000);
        Self { dispatcher, now, tickets: VecDeque::new(), trace: Vec::new(), offset: 0 }
    }

    fn input(&mut self, input: Input<u64>) {
        let mut effects = Vec::new();
        self.dispatcher.handle(self.now, input, &mut effects);
        for effect in effects {
            let word = match effect {
                Effect::Invoke(ticket) => {
                    let again = if ticket.attempt() > 1 { format!("#{}", ticket.attempt()) } else { String::new() };
                    let word = format!("run{}{again}", ticket.position().offset);
                    self.tickets.push_back(ticket);
                    word
                }
                Effect::Settle(Settled { position: Position { offset, .. }, settlement, .. }) => match settlement {
                    Settlement::Completed => format!("done{offset}"),
                    Settlement::Filtered => format!("filtered{offset}"),
                    Settlement::Duplicate => format!("dup{offset}"),
                    Settlement::DeadLettered(letter) if letter.attempts > 1 => {
                        format!("dead{offset}#{}", letter.attempts)
                    }
                    Settlement::DeadLettered(_) => format!("dead{offset}"),
                },
            };
            self.trace.push(word);
        }
        assert!(self.dispatcher.next_deadline().is_none_or(|at| at > self.now), "a deadline lies in the future");
    }

    fn deliver(&mut self, words: &str) {
        let mut arrivals = Vec::new();
        for word in words.split(' ') {
            let offset = self.offset;
            self.offset += 1;
            let content = match word.split_once(':') {
                Some((lane, key)) => Content::Event {
                    payload: offset,
                    lane: LaneId::of(Ordering::Key, (lane != "-").then_some(lane.as_bytes())),
                    key: KeyHash(key.bytes().fold(0, |hash, b| hash * 256 + u128::from(b))),
                },
                None if word == "filtered" => Content::Filtered { payload: None },
                None if word == "gap" => continue,
                None => Content::Refused { payload: offset, failure: Failure::new(Category::Invalid, "bad") },
            };
            arrivals.push(Arrival { offset, content });
        }
        self.input(Input::Delivered { stream: Stream::Source, arrivals, next: self.offset });
    }

    fn finish(&mut self, outcome: Outcome) {
        let ticket = self.tickets.pop_front().expect("an attempt is being made");
        self.input(Input::Finished(ticket, outcome));
    }

    fn reset(&mut self) {
        self.tickets.clear();
        self.offset = self.dispatcher.source.wanted();
    }

    fn step(&mut self, step: &str) {
        if let Some((how @ ("go" | "forget"), offset)) = step.split_once(' ') {
            let offset = offset.parse().expect("an offset");
            let number = self.dispatcher.committed.reset.number + 1;
            let forgets = if how == "forget" { number } else { number - 1 };
            self.dispatcher.reset(&Target { number, offset, oldest: false, forgets });
            return self.reset();
        }
        match step {
            "ok" => self.finish(Outcome::Completed),
            "transient" | "unknown" | "invalid" | "rejected" => {
                self.finish(Outcome::Failed(Failure::new(step.parse().expect("a category"), "no")));
            }
            "released" => {
                let ticket = self.tickets.pop_front().expect("an attempt is being made");
                self.input(Input::Released(ticket));
            }
            "seal" => drop(self.dispatcher.seal(self.now)),
            "commit" => self.input(Input::Committed),
            "abort" => {
                self.dispatcher.abort();
                self.reset();
            }
            "refuse" => {
                self.dispatcher.refuse(Category::Unknown, "too large");
                self.reset();
            }
            "forbid" => {
                self.dispatcher.refuse(Category::Transient, "not allowed");
                self.reset();
            }
            "postpone" => {
                self.dispatcher.postpone();
                self.reset();
            }
            "restart" => {
                let window = std::mem::replace(&mut self.dispatcher.window, Window::new(Duration::ZERO, 1));
                self.dispatcher = Dispatcher::new(POLICY, self.dispatcher.committed.clone(), window, 9);
                self.reset();
            }
            "all" => self.input(Input::Admit(Admission::All)),
            "one" => self.input(Input::Admit(Admission::One)),
            "nothing" => self.input(Input::Admit(Admission::Nothing)),
            "wait" => {
                self.now = self.now + Duration::from_secs(2);
                self.input(Input::Tick);
            }
            records => self.deliver(records),
        }
    }
}

fn run(policy: Policy, script: &str) -> Machine {
    let mut machine = Machine::new(policy);
    for step in script.split(';').map(str::trim).filter(|s| !s.is_empty()) {
        machine.step(step);
    }
    machine
}

fn check(script: &str, expected: &str) {
    assert_eq!(run(POLICY, script).trace.join(" "), expected, "after {script}");
}

#[test]
fn events_are_handled_one_after_the_other() {
    check("a:1 b:2 c:3; ok; ok; ok", "run0 done0 run1 done1 run2 done2");
    let two = Policy { concurrency: 2, ..POLICY };
    assert_eq!(run(two, "a:1 a:2 b:3; ok; ok; ok").trace.join(" "), "run0 run2 done0 run1 done2 done1");
}

#[test]
fn a_failing_key_blocks_only_itself() {
    check("a:1 a:2 b:3; transient; ok; wait; ok; ok", "run0 run2 done2 run0#2 done0 run1 done1");
    check("-:1 -:2 -:3; transient; ok; ok; wait; ok", "run0 run1 done1 run2 done2 run0#2 done0");
}

#[test]
fn attempts_are_bounded() {
    check("a:1 a:2; unknown; wait; unknown; wait; unknown; ok", "run0 run0#2 run0#3 dead0#3 run1 done1");
    check("a:1; invalid", "run0 dead0");
    check("a:1; transient; wait; rejected", "run0 run0#2 dead0#2");
    check("a:1; released; ok", "run0 run0 done0");
}

#[test]
fn filtered_refused_and_missing_records_are_settled_at_once() {
    check("filtered refused a:1; ok", "filtered0 dead1 run2 done2");
    let machine = run(POLICY, "gap a:1 gap gap; ok; seal; commit");
    let progress = machine.dispatcher.last_committed();
    assert_eq!((progress.source.resume, progress.source.totals.not_a_record), (4, 3));
}

#[test]
fn a_known_key_is_a_duplicate() {
    check("a:1 a:1; ok", "run0 done0 dup1");
    check("a:1 b:1; ok", "run0 done0 dup1");
    check("a:1; ok; seal; commit; b:1", "run0 done0 dup1");
    check("a:1; ok; seal; commit; restart; b:1", "run0 done0 dup1");
    check("a:1; ok; abort; a:1; ok", "run0 done0 run0 done0");
    check("a:1; invalid; b:1; ok", "run0 dead0 run1 done1");
}

#[test]
fn an_event_waits_for_the_pending_one_with_its_key() {
    check("a:1 b:1 c:2; transient; ok; wait; ok", "run0 run2 done2 run0#2 done0 dup1");
    check("a:1 b:1; invalid; ok", "run0 dead0 run1 done1");
    check("a:1 b:1; transient; wait; transient; wait; transient; ok", "run0 run0#2 run0#3 dead0#3 run1 done1");
    // The failed event goes ahead after a restart too, though the other one's lane is ready first.
    check("a:1 b:1; transient; seal; commit; restart; a:1 b:1; wait; ok", "run0 run0#2 done0 dup1");
}

#[test]
fn attempts_survive_a_restart() {
    check(
        "a:1 b:2; transient; ok; seal; commit; restart; a:1; wait; transient; seal; commit; restart; a:1; wait; transient",
        "run0 run1 done1 run0#2 run0#3 dead0#3",
    );
}

#[test]
fn attempts_of_a_head_that_was_not_delivered_again_yet_survive_a_restart() {
    check(
        "a:1 b:2 c:3 d:4; transient; ok; ok; transient; seal; commit; restart; a:1; wait; ok; seal; commit; restart; \
         d:4; wait; ok",
        "run0 run1 done1 run2 done2 run3 run0#2 done0 run3#2 done3",
    );
}

#[test]
fn what_is_settled_above_the_resume_point_is_not_delivered_again() {
    let mut machine = run(POLICY, "a:1 b:2 c:3; transient; ok; ok; seal; commit; restart");
    assert_eq!(machine.offset, 0);
    machine.step("a:1 b:2 c:3; d:4".split(';').next().expect("records"));
    machine.step("wait");
    machine.step("ok");
    assert_eq!(machine.trace.join(" "), "run0 run1 done1 run2 done2 run0#2 done0");
    assert_eq!(machine.dispatcher.wants().map(|w| w.source), Some(3));
}

#[test]
fn at_the_bound_of_parked_records_the_oldest_head_becomes_a_dead_letter() {
    check("a:1; transient; b:2; transient; a:3; c:4; transient; ok", "run0 run1 run3 dead0 run2 done2");
    let pausing = Policy { parked: ParkedPolicy { limit: 3, overflow: Overflow::Pause }, ..POLICY };
    let machine = run(pausing, "a:1; transient; b:2; transient; a:3");
    assert_eq!(machine.trace.join(" "), "run0 run1");
    assert_eq!(machine.dispatcher.wants(), None);
}

/// Attempts at failing keys can take long, and there can be more of them due than there is time for.
#[test]
fn new_keys_and_failing_ones_take_turns() {
    check(
        "a:1 b:2 c:3; transient; transient; transient; wait; d:4 e:5; transient; ok; transient; ok; ok",
        "run0 run1 run2 run2#2 run3 done3 run1#2 run4 done4 run0#2 done0",
    );
}

/// With what is settled between, however little of it lies beside one another.
#[test]
fn as_much_is_parked_as_the_policy_says() {
    let parked = ParkedPolicy { limit: 10_000, ..POLICY.parked };
    let mut machine = Machine::new(Policy { parked, ..POLICY });
    machine.step("a:0");
    machine.step("transient");
    for number in 0..9_000 {
        assert!(machine.dispatcher.wants().is_some(), "after {number}");
        machine.step(&format!("a:x{number} b:y{number}"));
        machine.step("ok");
    }
    assert!(machine.dispatcher.stuck().is_none());
}

/// Repetitions of a failing event wait for it in lanes of their own. However many come, others go on.
#[test]
fn what_waits_for_a_failing_event_counts_as_parked() {
    check("a:1 b:1 c:1 d:1; transient; e:2; ok; ok", "run0 dead0 run4 done4 run1 done1 dup2 dup3");
    let roomy = Policy { parked: ParkedPolicy { limit: 10_000, overflow: Overflow::DeadLetter }, ..POLICY };
    let repetitions = vec!["-:1"; 2 * limits::QUEUED_MAX_RECORDS].join(" ");
    let mut machine = run(roomy, &format!("{repetitions}; transient"));
    assert_eq!(machine.dispatcher.parked(), 2 * limits::QUEUED_MAX_RECORDS);
    assert!(machine.dispatcher.wants().is_some(), "there is room for others");
    machine.step("wait");
    machine.step("ok");
    assert_eq!(machine.dispatcher.parked(), 0);
    let settled = machine.trace.iter().filter(|word| word.starts_with("dup")).count();
    assert_eq!(settled, 2 * limits::QUEUED_MAX_RECORDS - 1);
}

#[test]
fn an_open_breaker_starts_nothing_and_a_half_open_one_tries_one() {
    check("nothing; a:1 b:2; wait", "");
    check("nothing; a:1 b:2; one; ok; all; ok", "run0 done0 run1 done1");
    check("nothing; a:1; one; transient; wait; wait; all", "run0 run0#2");
}

#[test]
fn a_refused_group_is_committed_in_halves() {
    check(
        "a:1 b:2 c:3; ok; ok; ok; seal; refuse; a:1; ok; seal; commit; b:2; ok; seal; refuse; \
         b:2; seal; commit; wait; seal; commit; wait; seal; commit; c:3; ok; seal; commit",
        "run0 done0 run1 done1 run2 done2 run0 done0 run1 done1 dead1#3 run2 done2",
    );
}

#[test]
fn one_that_is_refused_among_many_is_soon_found() {
    for (count, poison) in [(1, 0), (2, 1), (1000, 0), (1000, 777), (4000, 3999)] {
        let mut machine = Machine::new(POLICY);
        let (mut refused, mut steps) = (0, 0);
        while machine.dispatcher.isolation.blamed.is_empty() {
            machine.offset = machine.dispatcher.source.cursor;
            let most = machine.dispatcher.wants().map_or(0, |wants| wants.max_records as u64);
            let last = if refused == 0 { count } else { count.min(machine.offset + most) };
            let keys: Vec<_> = (machine.offset..last).map(|number| format!("k{number}:{number}")).collect();
            machine.step(&keys.join(" "));
            while !machine.tickets.is_empty() {
                machine.step("ok");
            }
            steps += 1;
            machine.step("seal");
            let sealed = machine.dispatcher.sealed.as_ref().unwrap();
            let is_refused =
                (sealed.1.progress.source.resume > poison) && machine.dispatcher.committed.source.resume <= poison;
            machine.step(if is_refused { "refuse" } else { "commit" });
            refused += u32::from(is_refused);
        }
        let found: Vec<_> = machine.dispatcher.isolation.blamed.keys().map(|position| position.offset).collect();
        assert_eq!(found, [poison]);
        assert!(steps <= 60, "{count}: {steps} commits, {refused} of them refused");
        assert!(machine.dispatcher.last_committed().source.resume >= poison, "what came before is committed");
    }
}

/// A log that takes four settlements in the time there is gets no more of them at once for long, and nobody is blamed.
#[test]
fn a_slow_log_is_given_less_at_once() {
    let (slow, mut postponed, mut commits) = (4, 0, 0);
    let mut machine = Machine::new(POLICY);
    while machine.offset < 100 {
        let most = machine.dispatcher.wants().map_or(0, |wants| wants.max_records as u64);
        let last = 100.min(machine.offset + most);
        let keys: Vec<_> = (machine.offset..last).map(|number| format!("k{number}:{number}")).collect();
        machine.step(&keys.join(" "));
        while !machine.tickets.is_empty() {
            machine.step("ok");
        }
        machine.step("seal");
        let is_slow = machine.dispatcher.sealed.as_ref().unwrap().1.settlements > slow;
        machine.step(if is_slow { "postpone" } else { "commit" });
        postponed += u32::from(is_slow);
        commits += u32::from(!is_slow);
    }
    assert!(machine.dispatcher.isolation.blamed.is_empty() && machine.dispatcher.stuck().is_none());
    assert_eq!(machine.dispatcher.last_committed().source.totals.completed, 100);
    assert!(postponed <= 2 * commits, "{postponed} postponed, {commits} made");
}

/// What the log may take later is really tried again, and goes on if it is taken.
#[test]
fn what_is_forbidden_is_attempted_again() {
    check(
        "a:1 b:2; ok; ok; seal; forbid; a:1; ok; seal; forbid; a:1; seal; commit; b:2; ok; seal; commit; \
         wait; ok; seal; forbid; a:1; seal; commit; wait; ok; seal; commit",
        "run0 done0 run1 done1 run0 done0 run1 done1 run0#2 done0 run0#3 done0",
    );
    let script = "a:1; ok; seal; forbid; a:1; seal; commit; wait; ok; seal; forbid; a:1; seal; commit; \
                  wait; ok; seal; forbid; a:1; seal; forbid";
    let machine = run(POLICY, script);
    assert_eq!(machine.trace.join(" "), "run0 done0 run0#2 done0 run0#3 done0 dead0#3");
    assert!(machine.dispatcher.stuck().is_some(), "not even the dead letter was taken");
}

#[test]
fn a_partition_whose_dead_letter_is_refused_waits_for_an_operator() {
    let machine = run(POLICY, "refused; seal; refuse; a:1");
    assert!(machine.dispatcher.stuck().is_some());
    assert_eq!(machine.dispatcher.wants(), None);
}

#[test]
fn the_accounts_name_each_outcome() {
    let machine = run(POLICY, "a:1 a:1 filtered refused gap b:2; ok; invalid; seal; commit");
    let progress = machine.dispatcher.last_committed();
    let totals = progress.source.totals;
    assert_eq!(progress.source.resume, 6);
    assert_eq!(
        (totals.completed, totals.duplicate, totals.filtered, totals.dead_lettered, totals.not_a_record),
        (1, 1, 1, 2, 1)
    );
}

#[test]
fn what_is_gone_is_skipped_and_counted() {
    let mut machine = run(POLICY, "a:1 a:2 b:3; transient; ok; seal; commit; restart");
    // Offsets 0 to 9 are removed; 2 is settled, and 0 was parked.
    assert_eq!(machine.dispatcher.missing(Stream::Source, 10), 9);
    machine.input(Input::Gone { stream: Stream::Source, earliest: 10 });
    assert_eq!(machine.dispatcher.missing(Stream::Source, 10), 0);
    let progress = machine.dispatcher.seal(machine.now).progress;
    assert_eq!((progress.source.resume, progress.source.totals.skipped), (10, 9));
    assert!(progress.parked.is_empty() && progress.source.settled_above.is_empty());
    assert_eq!(machine.dispatcher.wants().map(|wants| wants.source), Some(10));
}

#[test]
fn it_goes_on_where_it_is_told_to() {
    for (script, expected) in [
        ("a:1 b:2; ok; ok; seal; commit; go 0; seal; commit; a:1 b:2", "run0 done0 run1 done1 dup0 dup1"),
        ("a:1; ok; seal; commit; forget 0; seal; commit; a:1; ok", "run0 done0 run0 done0"),
        ("a:1; ok; seal; commit; forget 0; seal; commit; restart; a:1; ok; b:1", "run0 done0 run0 done0 dup1"),
        // Those between are passed over, and with them one that failed.
        ("a:1 b:2; transient; ok; seal; commit; go 3; seal; commit; c:3; ok; wait", "run0 run1 done1 run3 done3"),
        // One that comes again is not given more attempts than its policy allows.
        (
            "a:1 b:2; transient; ok; seal; commit; go 0; seal; commit; a:1 b:2; wait; transient; seal; commit; restart; a:1; \
             wait; transient",
            "run0 run1 done1 dup1 run0#2 run0#3 dead0#3",
        ),
        // What is not committed does not hold.
        ("a:1; ok; seal; commit; forget 0; seal; abort; b:1", "run0 done0 dup1"),
        ("a:1; ok; seal; commit; go 0; seal; postpone; b:2; ok", "run0 done0 run1 done1"),
        ("a:1; ok; seal; commit; go 0; restart; b:2; ok", "run0 done0 run1 done1"),
        // Nor does it wait any longer for an operator.
        ("refused; seal; refuse; refused; seal; refuse; go 1; seal; commit; b:2; ok", "dead0 dead0 run1 done1"),
    ] {
        check(script, expected);
    }
}

#[test]
fn a_new_place_begins_a_new_account_and_is_remembered() {
    let mut machine = run(POLICY, "a:1 b:2 c:3; ok; invalid; transient; seal; commit; forget 1");
    let sealed = machine.dispatcher.seal(machine.now);
    let place = StreamProgress { start: 1, resume: 1, ..StreamProgress::default() };
    assert_eq!((&sealed.progress.source, sealed.settlements), (&place, 0));
    assert_eq!((sealed.progress.reset, sealed.progress.commits), (Reset { number: 1, forgot_in: 2 }, 2));
    assert_eq!(sealed.progress.parked.len(), 1, "of what comes again it is known how often it failed");
    machine.input(Input::Committed);
    assert!(machine.dispatcher.window().is_empty());
    for step in ["b:2", "ok", "seal", "commit", "go 0"] {
        machine.step(step);
    }
    assert_eq!(machine.dispatcher.seal(machine.now).progress.reset, Reset { number: 2, forgot_in: 2 });
}

/// A redriven event can come before one with the same keys that failed already, and the breaker can hold back both.
#[test]
fn one_that_failed_before_does_not_block_what_is_before_it_in_its_lane() {
    let mut machine = run(POLICY, "a:1; transient; seal; commit; restart");
    let (lane, key) = (LaneId::of(Ordering::Key, Some(b"a")), KeyHash(u128::from(b'1')));
    machine.step("nothing");
    let redriven = Arrival { offset: 0, content: Content::Event { payload: 7, lane, key } };
    machine.input(Input::Delivered { stream: Stream::Redrive, arrivals: vec![redriven], next: 1 });
    machine.step("a:1");
    machine.step("all");
    machine.step("ok");
    machine.step("wait");
    // The second is a duplicate of the first now.
    assert_eq!(machine.trace.join(" "), "run0 run0 done0 dup0");
    assert_eq!(machine.dispatcher.parked(), 0);
}

/// A half-open breaker is asked for a trial only if there can be one; else its worker would ask without end.
#[test]
fn what_waits_for_a_commit_does_not_wait_to_be_admitted() {
    let mut machine = run(POLICY, "a:1 b:2; ok; ok; seal; refuse; nothing; a:1 b:2");
    assert!(machine.dispatcher.has_ready());
    machine.step("one");
    machine.step("ok");
    assert!(!machine.dispatcher.has_ready());
    machine.step("seal");
    machine.step("commit");
    assert!(machine.dispatcher.has_ready());
}
