//! The instances of one life of the simulation, and what happens to them.

use std::sync::Arc;
use std::time::Duration;

use millrace::broker::Error;
use millrace::registry::{Deployment, Registry};
use millrace_core::expression::Filter;
use millrace_core::intake::Intake;
use millrace_core::manifest::Function;
use millrace_core::revision::Resets;
use tokio::sync::watch;

use super::broker::SimBroker;
use super::group::{Group, Told};
use super::guest::SimRevision;
use super::life::Life;
use super::scenario::output;
use super::stands::Stands;

/// More instances would own nothing.
const INSTANCES_MAX: usize = 3;

/// All instances that were started, on one broker.
#[derive(Debug)]
pub(super) struct Fleet<'a> {
    pub(super) group: Arc<Group>,
    settings: &'a Function,
    instances: Vec<Instance>,
}

#[derive(Debug)]
struct Instance {
    id: u32,
    life: Life,
    registry: Registry<SimBroker, SimRevision>,
    failure: watch::Receiver<Option<Error>>,
    /// It was told to end.
    draining: bool,
}

impl<'a> Fleet<'a> {
    pub(super) async fn start(group: Arc<Group>, settings: &'a Function, instances: u64) -> Self {
        let mut fleet = Self { group, settings, instances: Vec::new() };
        for _ in 0..instances {
            fleet.start_one().await;
        }
        fleet
    }

    async fn start_one(&mut self) {
        let id = u32::try_from(self.instances.len()).expect("few instances");
        let life = Life::default();
        let broker = Arc::new(SimBroker { group: Arc::clone(&self.group), id, life: life.clone() });
        let registry = Registry::new(broker, self.group.clock);
        self.instances.push(Instance { id, life, failure: registry.failure(), registry, draining: false });
        self.tell(self.instances.len() - 1).await;
    }

    /// Somebody decides which revisions run. Some instances hear of it at once, others with what is decided next, as does one with
    /// several workers, which would wake in a random order.
    pub(super) async fn decide(&mut self) {
        {
            let mut world = self.group.world();
            let mut stands = world.stands;
            stands.change(&mut world.rng);
            world.stands = stands;
            world.note(format_args!("decide {stands:?}"));
        }
        for at in 0..self.instances.len() {
            let at_once = self.group.world().rng.percent(70);
            if at_once && self.instances[at].is_up() && self.group.owned_by(self.instances[at].id) <= 1 {
                self.tell(at).await;
            }
        }
    }

    /// An instance runs what was decided.
    async fn tell(&self, at: usize) {
        let Instance { id, life, registry, .. } = &self.instances[at];
        let now = self.group.world().stands;
        let before =
            self.group.world().told.insert(*id, now).filter(|_| registry.function(&self.settings.name).is_some());
        let revision = |number: u64| self.revision(*id, life, number);
        match (before, now) {
            (Some(Stands { active, canary: Some((running, _)), .. }), Stands { canary: Some((canary, share)), .. })
                if active == now.active && running == canary =>
            {
                registry.change_canary(&self.settings.name, Some(share));
            }
            (Some(Stands { active, .. }), Stands { canary: Some((canary, share)), .. }) if active == now.active => {
                registry.try_canary(self.settings, revision(canary), share).expect("they are alike");
            }
            (Some(Stands { active, .. }), Stands { canary: None, .. }) if active == now.active => {
                registry.change_canary(&self.settings.name, None);
            }
            _ => {
                let canary = now.canary.map(|(canary, share)| (revision(canary), share));
                let (settings, revision) = (self.settings.clone(), revision(now.active));
                let deployment = Deployment { settings, digest: String::new(), revision, canary, paused: false };
                registry.activate(deployment).await.expect("the simulated broker takes every subscription");
            }
        }
    }

    fn revision(&self, instance: u32, life: &Life, number: u64) -> SimRevision {
        SimRevision {
            intake: Intake {
                ordering: self.settings.ordering,
                filter: Some(Filter::compile("event.type != \"sim.filtered\"").expect("an expression")),
                key: None,
            },
            group: Arc::clone(&self.group),
            life: life.clone(),
            function: self.settings.name.clone(),
            output: output(),
            instance,
            number,
        }
    }

    /// All instances hear where the function is to go on.
    pub(super) fn tell_resets(&self, resets: &Resets) {
        for instance in &self.instances {
            instance.registry.tell_resets(&self.settings.name, resets);
        }
    }

    /// Something happens to one of the instances, or one is started.
    pub(super) async fn disturb(&mut self) {
        let (what, which, in_commit) = {
            let mut world = self.group.world();
            (world.rng.below(12), world.rng.next(), world.rng.percent(60))
        };
        if in_commit {
            self.group.wait_for_commit().await;
        }
        let running: Vec<usize> = (0..self.instances.len()).filter(|at| self.instances[*at].is_up()).collect();
        if running.is_empty() || (what == 0 && running.len() < INSTANCES_MAX) {
            return self.start_one().await;
        }
        let which = usize::try_from(which % running.len() as u64).expect("few instances");
        let instance = &mut self.instances[running[which]];
        match what {
            0..4 => self.group.rebalance(Told::AtOnce),
            4..6 => self.group.rebalance(Told::Late),
            6..8 => instance.kill(&self.group),
            8..10 => instance.halt(&self.group),
            10 => instance.cut_off(&self.group),
            // Workers that are told to drain wake in a random order, so that only one may be told.
            _ if self.group.owned_by(instance.id) > 1 => self.group.rebalance(Told::AtOnce),
            _ => instance.drain(&self.group),
        }
    }

    /// Somebody is there to go on.
    pub(super) async fn keep_one(&mut self) {
        if !self.instances.iter().any(Instance::is_expected) {
            self.start_one().await;
        }
    }

    /// Why one of the processes would have ended.
    pub(super) fn failure(&self) -> Option<Error> {
        self.instances.iter().find_map(|instance| instance.failure.borrow().clone())
    }
}

impl Instance {
    /// Whether something can happen to it.
    fn is_up(&self) -> bool {
        self.life.is_running() && !self.draining
    }

    /// Whether it runs, or will.
    fn is_expected(&self) -> bool {
        !self.life.is_dead() && !self.draining
    }

    /// It is gone at once, and the group notices after the session's timeout.
    fn kill(&self, group: &Arc<Group>) {
        group.world().note(format_args!("kill {}", self.id));
        self.life.kill();
        group.lose_requests_of(self.id);
        let (group, id, timeout) = (Arc::clone(group), self.id, session_timeout(group));
        tokio::spawn(async move {
            tokio::time::sleep(timeout).await;
            group.leave(id, Told::Late);
        });
    }

    /// It does nothing for a while. If that is longer than the session's timeout it goes on as a zombie.
    fn halt(&self, group: &Arc<Group>) {
        group.world().note(format_args!("halt {}", self.id));
        self.life.halt();
        let (group, id, life) = (Arc::clone(group), self.id, self.life.clone());
        let (timeout, pause) = (session_timeout(&group), absence(&group));
        tokio::spawn(async move {
            tokio::time::sleep(pause.min(timeout)).await;
            let given_up = if pause > timeout { group.leave(id, Told::Late) } else { None };
            tokio::time::sleep(pause.saturating_sub(timeout)).await;
            group.world().note(format_args!("resume {id}"));
            life.resume();
            group.resumed(id);
            if let Some(member) = given_up {
                tokio::time::sleep(absence(&group)).await;
                group.rejoin(id, member);
            }
        });
    }

    /// The group does not hear of it for a while, and gives it up. It runs on as a zombie.
    fn cut_off(&self, group: &Arc<Group>) {
        let (group, id) = (Arc::clone(group), self.id);
        let (timeout, pause) = (session_timeout(&group), absence(&group));
        tokio::spawn(async move {
            tokio::time::sleep(timeout).await;
            let Some(member) = group.leave(id, Told::Late) else { return };
            tokio::time::sleep(pause).await;
            group.rejoin(id, member);
        });
    }

    /// It finishes what it does, then leaves.
    fn drain(&mut self, group: &Arc<Group>) {
        group.world().note(format_args!("drain {}", self.id));
        self.draining = true;
        let (group, id, life, registry) = (Arc::clone(group), self.id, self.life.clone(), self.registry.clone());
        tokio::spawn(async move {
            registry.drain(Duration::from_secs(25)).await;
            life.kill();
            group.leave(id, Told::AtOnce);
        });
    }
}

fn session_timeout(group: &Group) -> Duration {
    Duration::from_millis(group.world().rng.between(50, 300))
}

/// How long an instance is away.
fn absence(group: &Group) -> Duration {
    Duration::from_millis(group.world().rng.between(10, 900))
}
