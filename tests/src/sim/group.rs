//! The simulated broker's side of a consumer group: who is in it, who owns which partition, and what becomes of the commits
//! that are under way when that changes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use millrace::broker::{Assignment, Outgoing, Placement, PublishError};
use millrace::clock::Clock;
use millrace_core::idempotency::Bounds;
use millrace_core::name::Unit;
use tokio::sync::{Notify, mpsc, watch};

use super::broker::SimPartition;
use super::life::Life;
use super::world::{Shared, World, lock};

/// The longest time until an instance learns that it lost a partition, if nobody tells it.
const IGNORANCE_MAX_MS: u64 = 300;

#[derive(Debug)]
pub(super) struct Group {
    world: Shared,
    pub(super) clock: Clock,
    /// Told when something was appended. Wakes waiters in their order; a watch channel would wake them in a random one.
    pub(super) appended: Notify,
    /// Told when a commit has ended.
    pub(super) ended: Notify,
    roster: Mutex<Roster>,
}

#[derive(Debug, Default)]
struct Roster {
    units: Vec<Unit>,
    members: BTreeMap<u32, Member>,
    owners: BTreeMap<Unit, Owner>,
}

/// An instance as the group knows it.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) life: Life,
    pub(super) assignments: mpsc::Sender<Assignment<SimPartition>>,
    /// Which idempotency keys are restored.
    pub(super) window: Bounds,
}

impl Member {
    fn is(&self, other: &Self) -> bool {
        self.assignments.same_channel(&other.assignments)
    }
}

#[derive(Debug)]
struct Owner {
    id: u32,
    member: Member,
    revoked: watch::Sender<bool>,
}

/// When an instance learns that it lost a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Before anybody else gets it.
    AtOnce,
    /// Some time after somebody else got it: until then it is a zombie.
    Late,
}

impl Group {
    pub(super) fn new(world: &Shared, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            world: Arc::clone(world),
            clock,
            appended: Notify::new(),
            ended: Notify::new(),
            roster: Mutex::default(),
        })
    }

    /// The world, at the time that it is now.
    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        let mut world = lock(&self.world);
        world.now = self.clock.now();
        world
    }

    fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().expect("nothing panics while it holds the roster")
    }

    pub(super) fn publish(&self, records: Vec<Outgoing>) -> Result<Vec<Placement>, PublishError> {
        let places = self.world().append(records)?;
        self.appended.notify_waiters();
        Ok(places)
    }

    /// Takes in an instance that subscribes to these units, as all do.
    pub(super) fn join(self: &Arc<Self>, id: u32, member: Member, units: Vec<Unit>) {
        self.world().note(format_args!("join {id}"));
        let mut roster = self.roster();
        roster.units = units;
        roster.members.insert(id, member);
        drop(roster);
        self.rebalance(Told::AtOnce);
    }

    /// Takes in once more an instance that the group had given up.
    pub(super) fn rejoin(self: &Arc<Self>, id: u32, member: Member) {
        if member.life.is_dead() {
            return;
        }
        let units = self.roster().units.clone();
        self.join(id, member, units);
    }

    /// An instance is no longer in the group, whether it knows or not.
    pub(super) fn leave(self: &Arc<Self>, id: u32, told: Told) -> Option<Member> {
        self.world().note(format_args!("leave {id} {told:?}"));
        let member = self.roster().members.remove(&id)?;
        self.rebalance(told);
        Some(member)
    }

    /// Waits a little for a commit to be under way, so that what happens next happens in the middle of it.
    pub(super) async fn wait_for_commit(&self) {
        for _ in 0..20 {
            if !self.world().pending.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// How many partitions an instance owns.
    pub(super) fn owned_by(&self, id: u32) -> usize {
        self.roster().owners.values().filter(|owner| owner.id == id).count()
    }

    /// An instance is gone: what it sent last arrived, or did not.
    pub(super) fn lose_requests_of(&self, id: u32) {
        let roster = self.roster();
        for (unit, _) in roster.owners.iter().filter(|(_, owner)| owner.id == id) {
            self.world().drop_pending(unit, 50);
        }
        drop(roster);
        self.ended.notify_waiters();
    }

    /// An instance runs again after it was halted: only from now on can it be expected to get on.
    pub(super) fn resumed(&self, id: u32) {
        let roster = self.roster();
        for (unit, _) in roster.owners.iter().filter(|(_, owner)| owner.id == id) {
            self.world().owner_is_fresh(unit);
        }
    }

    /// Hands out partitions anew. Most change their owner; one that does not may lose its commit all the same, since the
    /// group's generation is another one.
    pub(super) fn rebalance(self: &Arc<Self>, told: Told) {
        let mut roster = self.roster();
        let ids: Vec<u32> = roster.members.keys().copied().collect();
        let shift = self.world().rng.below(ids.len() as u64);
        for (unit, shift) in roster.units.clone().iter().zip(shift..) {
            let at = usize::try_from(shift).expect("few units") % ids.len().max(1);
            let to = ids.get(at).map(|id| (*id, roster.members[id].clone()));
            let owner = roster.owners.get(unit).map(|owner| &owner.member);
            // An instance that subscribed anew is another member.
            let stays = owner.zip(to.as_ref()).is_some_and(|(owner, (_, to))| owner.is(to));
            if stays && !self.world().rng.percent(30) {
                self.world().drop_pending(unit, 30);
            } else {
                self.hand_over(&mut roster, unit, to, told);
            }
        }
        drop(roster);
        self.ended.notify_waiters();
    }

    fn hand_over(self: &Arc<Self>, roster: &mut Roster, unit: &Unit, to: Option<(u32, Member)>, told: Told) {
        let epoch = self.world().revoke(unit);
        if let Some(owner) = roster.owners.remove(unit) {
            self.world().counts.taken_over += 1;
            self.tell(owner, told);
        }
        let Some((id, member)) = to else { return };
        let revoked = watch::Sender::new(false);
        tokio::spawn(Arc::clone(self).assign(unit.clone(), epoch, member.clone(), revoked.subscribe()));
        roster.owners.insert(unit.clone(), Owner { id, member, revoked });
    }

    /// Lets an instance know that it lost a partition.
    fn tell(&self, owner: Owner, told: Told) {
        if told == Told::AtOnce && owner.member.life.is_running() {
            owner.revoked.send_replace(true);
            return;
        }
        let ignorance = Duration::from_millis(self.world().rng.below(IGNORANCE_MAX_MS));
        tokio::spawn(async move {
            tokio::time::sleep(ignorance).await;
            owner.member.life.pass().await;
            owner.revoked.send_replace(true);
        });
    }

    /// Gives a partition to an instance, once nothing is under way that was decided before.
    async fn assign(self: Arc<Self>, unit: Unit, epoch: u64, to: Member, revoked: watch::Receiver<bool>) {
        let delay = self.world().rng.below(40);
        tokio::time::sleep(Duration::from_millis(delay)).await;
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            if self.world().epoch(&unit) != epoch {
                return;
            }
            if !self.world().is_committing(&unit) {
                break;
            }
            ended.await;
        }
        let assignment = self.restore((&unit, epoch), &to, revoked);
        to.life.pass().await;
        // A supervisor that is gone takes no more assignments.
        if to.assignments.try_send(assignment).is_ok() && self.world().epoch(&unit) == epoch {
            self.world().owner_is_fresh(&unit);
        }
    }

    fn restore(
        self: &Arc<Self>,
        (unit, epoch): (&Unit, u64),
        to: &Member,
        revoked: watch::Receiver<bool>,
    ) -> Assignment<SimPartition> {
        let siblings = self.roster().units.len();
        let world = self.world();
        let restored = world.restored(unit, to.window, siblings);
        let partition = SimPartition::new(self, (unit, epoch), &to.life, revoked.clone(), world.state_of(unit));
        Assignment { partition, restored, siblings, revoked }
    }
}
