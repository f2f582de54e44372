//! Slots move again and again, and somebody is killed each time: by that nothing may be lost.
//!
//! A [`Section`] is a cluster of its own with clients of all kinds ([`Workload`]), and a number of cycles. In
//! each of them some slots of a group are moved to the other; at a moment that the seed has chosen the victim
//! gets a SIGKILL, and is started again. What clients have seen is checked at the end, and where the keys are.
//! The same seed chooses the same slots, victims and moments; what happens between them is the machine's.

use std::{collections::BTreeMap, fmt, time::Duration};

use proto::{
    SLOT_COUNT, Slot, SlotSet,
    v1::{Migration, migration::Phase},
};
use tokio::time::{Instant, sleep};

use crate::{
    Cluster, Report, Workload,
    migration::{MOVED, create, get, misplaced_keys},
    within,
};

/// Who is killed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Victim {
    /// Nobody: a healthy cut-over.
    Nobody,
    /// A proxy.
    Proxy,
    /// The controller.
    Leader,
    /// The server that has the slots; what it has acknowledged it finds again in its log.
    Source,
    /// The server that gets them; likewise.
    Target,
}

impl Victim {
    /// All that can be killed.
    pub const KILLED: [Self; 4] = [Self::Proxy, Self::Leader, Self::Source, Self::Target];
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nobody => "nobody",
            Self::Proxy => "a proxy",
            Self::Leader => "the leader",
            Self::Source => "the source",
            Self::Target => "the target",
        })
    }
}

/// When.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// So long after the migration was created.
    After(Duration),
    /// When it is in this phase, or beyond it.
    In(Phase),
}

/// Most slots that are moved in a cycle.
const SLOTS: u16 = 48;

/// See the module.
#[derive(Clone, Debug)]
pub struct Section {
    /// Chooses.
    pub seed: u64,
    /// Whom, in each cycle.
    pub victims: Vec<Victim>,
}

/// What came of a section.
#[derive(Debug)]
pub struct Outcome {
    /// By victim, how long each cycle took, until its migration was over.
    pub took: BTreeMap<Victim, Vec<Duration>>,
    /// Migrations of which slots stayed where they were.
    pub failed: u64,
    /// The longest that a batch was held.
    pub longest_hold: Duration,
    /// What clients have seen, and where keys are that must not be there.
    pub report: Report,
}

impl Section {
    /// So many cycles, in which each of these is the victim in turn.
    pub fn of(seed: u64, cycles: usize, victims: &[Victim]) -> Self {
        let victims = victims.iter().cycle().take(cycles);
        Self {
            seed,
            victims: victims.copied().collect(),
        }
    }

    /// Runs it; the cluster, too, for who wants to look.
    pub async fn run(&self) -> (Outcome, Cluster) {
        let cluster = Cluster::builder().groups(2).proxies(2).start().await;
        let workload = Workload::start(cluster.addrs(), self.seed);
        workload.advance(500).await;
        let mut run = Run {
            cluster,
            workload,
            rng: fastrand::Rng::with_seed(self.seed),
            first: Slot::all().filter(|slot| slot.number() < 512).collect(),
        };
        let mut took: BTreeMap<Victim, Vec<Duration>> = BTreeMap::new();
        let (mut failed, mut longest_hold) = (0, Duration::ZERO);
        for &victim in &self.victims {
            let begun = Instant::now();
            let migration = run.cycle(victim).await;
            took.entry(victim).or_default().push(begun.elapsed());
            failed += u64::from(migration.phase() == Phase::Failed);
            let hold = Duration::from_secs_f64(migration.longest_hold_ms / 1000.0);
            longest_hold = longest_hold.max(hold);
            run.workload.advance(100).await;
        }
        for group in &run.cluster.groups {
            group[0].answers().await;
        }
        let mut report = run.workload.stop().await;
        report.violations.extend(misplaced_keys(&run.cluster).await);
        let outcome = Outcome {
            took,
            failed,
            longest_hold,
            report,
        };
        (outcome, run.cluster)
    }
}

struct Run {
    cluster: Cluster,
    workload: Workload,
    rng: fastrand::Rng,
    /// What the first group owns; the second owns the others.
    first: SlotSet,
}

impl Run {
    async fn cycle(&mut self, victim: Victim) -> Migration {
        let (source, slots) = self.choose();
        let target = 1 - source;
        let moment = self.moment();
        let rests = Duration::from_millis(self.rng.u64(0..300));
        let group = ["g1", "g2"][target];
        let created = create(&self.cluster.controller, &slots.to_string(), group).await;
        self.wait(&created.id, moment).await;
        let Cluster {
            groups,
            controller,
            proxies,
            ..
        } = &mut self.cluster;
        match victim {
            Victim::Nobody => {}
            Victim::Proxy => {
                let proxy = &mut proxies[self.rng.usize(0..2)];
                proxy.process.kill();
                sleep(rests).await;
                proxy.restart();
            }
            Victim::Leader => {
                controller.process.kill();
                sleep(rests).await;
                controller.restart();
            }
            Victim::Source | Victim::Target => {
                let group = if victim == Victim::Source {
                    source
                } else {
                    target
                };
                let server = &mut groups[group][0];
                server.process.kill();
                sleep(rests).await;
                server.restart();
            }
        }
        let migration = self.end(&created.id).await;
        let moved: SlotSet = migration.moved_slots.parse().unwrap_or(SlotSet::EMPTY);
        self.first = if source == 0 {
            self.first.without(&moved)
        } else {
            self.first.with(&moved)
        };
        migration
    }

    /// A group, and some neighbouring slots of it.
    fn choose(&mut self) -> (usize, SlotSet) {
        let second: SlotSet = Slot::all()
            .filter(|slot| !self.first.contains(*slot))
            .collect();
        let owned = [self.first, second];
        // Whoever has more gives more often.
        let any = self.rng.u32(0..SLOT_COUNT as u32);
        let any = Slot::new(any).expect("there are so many");
        let source = usize::from(!self.first.contains(any));
        let owned: Vec<Slot> = owned[source].iter().collect();
        let from = self.rng.usize(0..owned.len());
        let count = usize::from(self.rng.u16(1..=SLOTS));
        (source, owned.into_iter().skip(from).take(count).collect())
    }

    fn moment(&mut self) -> Moment {
        match self.rng.u8(0..6) {
            0 | 1 => Moment::After(Duration::from_millis(self.rng.u64(0..400))),
            2 => Moment::In(Phase::Copying),
            3 => Moment::In(Phase::CuttingOver),
            4 => Moment::In(Phase::Committed),
            _ => Moment::In(Phase::Reaping),
        }
    }

    async fn wait(&self, id: &str, moment: Moment) {
        match moment {
            Moment::After(time) => sleep(time).await,
            Moment::In(phase) => {
                within(MOVED, || async {
                    let now = get(&self.cluster.controller, id).await?.phase();
                    // In the order of their numbers they follow each other.
                    let is_there = i32::from(now) >= i32::from(phase);
                    is_there.then_some(()).ok_or_else(|| format!("{now:?}"))
                })
                .await;
            }
        }
    }

    async fn end(&self, id: &str) -> Migration {
        within(MOVED, || async {
            let migration = get(&self.cluster.controller, id).await?;
            match migration.phase() {
                Phase::Succeeded | Phase::Failed => Ok(migration),
                _ => Err(format!("{migration:?}")),
            }
        })
        .await
    }
}
