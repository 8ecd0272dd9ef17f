//! A sandbox whose guests do what their event says.

use std::sync::Arc;
use std::time::Duration;

use millrace::sandbox::{Completion, Emission, Error, Invocation, Sandbox, StateBuffer, StateError, Usage};
use millrace::worker::Revision;
use millrace_core::event::Event;
use millrace_core::identity;
use millrace_core::intake::Intake;
use millrace_core::name::{FunctionName, Topic};
use millrace_core::outcome::{Category, Failure, Outcome};
use millrace_core::state::Writes;

use super::group::Group;
use super::life::Life;

/// What a handler does with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Emits this many events.
    Emit(u32),
    /// Fails this often, then emits one event.
    Recover(u32),
    /// Fails until the cause is mended.
    Fail(Category),
    /// Runs into its time limit until the cause is mended.
    Hang,
    /// Emits what the log does not take, until the cause is mended.
    Refused,
    /// Emits what the log does not allow before this attempt is over.
    Forbidden(u32),
}

impl Plan {
    pub(super) fn to_text(self) -> String {
        match self {
            Self::Emit(n) => format!("emit {n}"),
            Self::Recover(n) => format!("recover {n}"),
            Self::Fail(category) => format!("fail {category}"),
            Self::Hang => "hang".into(),
            Self::Refused => "refused".into(),
            Self::Forbidden(n) => format!("forbidden {n}"),
        }
    }

    fn of(text: &str) -> Self {
        match text.split_once(' ') {
            Some(("emit", n)) => Self::Emit(n.parse().expect("a number")),
            Some(("recover", n)) => Self::Recover(n.parse().expect("a number")),
            Some(("forbidden", n)) => Self::Forbidden(n.parse().expect("a number")),
            Some(("fail", category)) => Self::Fail(category.parse().expect("a category")),
            _ if text == "hang" => Self::Hang,
            _ if text == "refused" => Self::Refused,
            _ => panic!("no such plan: {text}"),
        }
    }
}

#[derive(Debug)]
pub(super) struct SimRevision {
    pub(super) intake: Intake,
    pub(super) group: Arc<Group>,
    pub(super) life: Life,
    pub(super) function: FunctionName,
    pub(super) output: Topic,
    /// The instance.
    pub(super) instance: u32,
    pub(super) number: u64,
}

impl Revision for SimRevision {
    type Sandbox = SimSandbox;

    fn number(&self) -> u64 {
        self.number
    }

    fn intake(&self) -> &Intake {
        &self.intake
    }

    fn keeps_state(&self) -> bool {
        true
    }

    fn sandbox(&self) -> SimSandbox {
        SimSandbox {
            group: Arc::clone(&self.group),
            life: self.life.clone(),
            function: self.function.clone(),
            output: self.output.clone(),
            instance: self.instance,
            number: self.number,
        }
    }
}

/// What the broker has against an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    ForEver,
    ForNow,
}

#[derive(Debug)]
pub(super) struct SimSandbox {
    group: Arc<Group>,
    life: Life,
    function: FunctionName,
    output: Topic,
    instance: u32,
    number: u64,
}

impl SimSandbox {
    fn emit(&self, invocation: &Invocation<'_>, index: u32, refused: Option<Refusal>) -> Emission {
        let delivery = &invocation.delivery;
        let mut extensions = vec![("origin".into(), invocation.event.id.clone())];
        if refused == Some(Refusal::ForNow) {
            extensions.push(("forbidden".into(), "yes".into()));
        }
        let event = Event {
            id: identity::emitted_id(&self.function, &delivery.topic, &delivery.idempotency_key, index).into(),
            source: "/sim".into(),
            ty: "sim.output".into(),
            subject: None,
            time: None,
            datacontenttype: None,
            dataschema: None,
            extensions,
            data: None,
        };
        let topic =
            if refused == Some(Refusal::ForEver) { "nowhere".parse().expect("a topic") } else { self.output.clone() };
        Emission::new(topic, delivery.key.clone(), &event)
    }
}

impl Sandbox for SimSandbox {
    async fn invoke(&mut self, invocation: Invocation<'_>) -> Result<Completion, Error> {
        // Workers change over between two invocations, so it is what was decided last that runs.
        let key = invocation.delivery.key.as_deref();
        self.group.world().runs(self.instance, self.number, key, &invocation.event.id);
        self.life.pass().await;
        let plan = Plan::of(invocation.event.extension("plan").expect("each simulated event has a plan"));
        let (not_run, delay, mended) = {
            let mut world = self.group.world();
            let percent = world.faults.guest_not_run;
            let not_run = world.rng.percent(percent);
            let slow_percent = world.faults.slow;
            let slow = world.rng.percent(slow_percent);
            let delay = if slow { world.rng.between(10, 200) } else { world.rng.below(3) };
            (not_run, delay, world.mended)
        };
        if not_run {
            return Err(Error("no instance is free".into()));
        }
        let id = invocation.event.id.to_string();
        let attempt = invocation.delivery.attempt;
        {
            let mut world = self.group.world();
            world.note(format_args!("call {id} #{attempt} {}", plan.to_text()));
            *world.calls.entry(id).or_default() += 1;
        }
        let delay = if plan == Plan::Hang && !mended { 1000 } else { delay };
        tokio::time::sleep(Duration::from_millis(delay)).await;
        self.life.pass().await;
        // A handler that fails has written all the same.
        let written = remember(&invocation).await.map_err(|e| Error(e.to_string()))?;
        let (outcome, emitted, refused) = match plan {
            Plan::Emit(n) => (Outcome::Completed, n, None),
            Plan::Recover(n) if attempt > n || mended => (Outcome::Completed, 1, None),
            Plan::Recover(_) => (failed(Category::Transient), 0, None),
            _ if mended => (Outcome::Completed, 1, None),
            Plan::Fail(category) => (failed(category), 0, None),
            Plan::Hang => (failed(Category::Unknown), 0, None),
            Plan::Refused => (Outcome::Completed, 1, Some(Refusal::ForEver)),
            Plan::Forbidden(n) => (Outcome::Completed, 1, (attempt <= n).then_some(Refusal::ForNow)),
        };
        let emitted = (0..emitted).map(|index| self.emit(&invocation, index, refused)).collect();
        let state = if outcome == Outcome::Completed { written.into_writes() } else { Writes::default() };
        Ok(Completion { outcome, emitted, state, logs: Vec::new(), usage: Usage::default() })
    }
}

/// Reads what earlier events left, and adds this one: to the count of all, to the list of its key, and as the one that was seen last.
async fn remember(invocation: &Invocation<'_>) -> Result<StateBuffer, StateError> {
    let mut state = StateBuffer::new(invocation.state.clone().expect("the simulated function was granted state"));
    let id = &*invocation.event.id;
    let total = text(state.get("total").await?);
    let total = if total.is_empty() { 0 } else { total.parse::<u64>().expect("a count") };
    state.write("total", Some((total + 1).to_string().as_bytes()))?;
    if let Some(key) = &invocation.delivery.key {
        let name = format!("key/{}", text(Some(key.clone())));
        let earlier = text(state.get(&name).await?);
        state.write(&name, Some(format!("{earlier} {id}").as_bytes()))?;
    }
    state.write(&format!("seen/{id}"), Some(b""))?;
    let (keys, more) = state.list(None).await?;
    assert_eq!(more, None, "the state is small");
    for seen in keys.iter().filter(|key| key.starts_with("seen/") && key[5..] != *id) {
        state.write(seen, None)?;
    }
    Ok(state)
}

fn text(value: Option<bytes::Bytes>) -> String {
    value.map_or_else(String::new, |value| String::from_utf8_lossy(&value).into_owned())
}

fn failed(category: Category) -> Outcome {
    Outcome::Failed(Failure::new(category, "the plan says so"))
}
