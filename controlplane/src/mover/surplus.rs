//! Counts the keys of a server that are there only because slots move, and has the server carry their number.
//!
//! Owns two tasks: one counts at the target what is staged, one at the source what is not deleted yet. Nobody
//! can count that but by looking at all keys; so each task does that at leisure, one pass after the other, and
//! after each writes down what it has found ([`proto::surplus`]). What changes during a pass the next one
//! sees. It decides nothing, and nothing waits for it: a server that cannot be asked is asked again later.

use std::{convert::Infallible, time::Duration};

use proto::{SlotSet, surplus::KEY};
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Plan, attempt, clean,
    link::{Endpoint, Link, LinkError},
    open_alone,
    scan::{Gait, Stroll},
};

/// A server is kept busy for a thousandth of its time or two. A page is small: by 64 keys, which nobody hurries for,
/// the copy kept its target busy longer than by all that it wrote; and with rests of 5 ms counting was what a fifth
/// of the controller's time went to, and a third of what a paced copy took of the servers'.
const GAIT: Gait = Gait {
    page: 32,
    rest: 20,
    least: Duration::from_millis(20),
    most: Duration::from_millis(40),
};
/// How long is rested after a pass, at least; or for as long as it took.
const PAUSE: Duration = Duration::from_millis(500);
/// How long what was written stays when it is not written anew, besides what four passes take.
const LIFE: Duration = Duration::from_secs(10);

/// See the module. Dropped, it stops counting; what it has written goes by itself.
pub struct Surplus {
    plan: Plan,
    staged: watch::Sender<SlotSet>,
    unreaped: watch::Sender<SlotSet>,
    tasks: [AbortOnDropHandle<()>; 2],
}

impl Surplus {
    /// Begins to count for the migration of a plan; nothing, before it is told of which slots.
    pub fn begin(plan: Plan) -> Self {
        let (staged, of_target) = watch::channel(SlotSet::EMPTY);
        let (unreaped, of_source) = watch::channel(SlotSet::EMPTY);
        let count = |at: &Endpoint, slots| {
            AbortOnDropHandle::new(tokio::spawn(run(plan.clone(), at.clone(), slots)))
        };
        let tasks = [
            count(&plan.target, of_target),
            count(&plan.source, of_source),
        ];
        Self {
            plan,
            staged,
            unreaped,
            tasks,
        }
    }

    /// From now on the keys of these slots are no clients': of some at the target, of others at the source.
    pub fn are(&self, staged: SlotSet, unreaped: SlotSet) {
        for (slots, now) in [(&self.staged, staged), (&self.unreaped, unreaped)] {
            slots.send_if_modified(|before| std::mem::replace(before, now) != now);
        }
    }

    /// Stops, and removes from both servers what it has written.
    pub async fn end(self) -> Result<(), LinkError> {
        drop(self.tasks);
        for at in [&self.plan.target, &self.plan.source] {
            let mut link = open_alone(at, &self.plan, "surplus").await?;
            for database in link.server().await?.keyspace.into_keys() {
                write(&mut link, &self.plan, database, 0, Duration::ZERO).await?;
            }
        }
        Ok(())
    }
}

async fn run(plan: Plan, at: Endpoint, slots: watch::Receiver<SlotSet>) {
    loop {
        let Err(why) = count(&plan, &at, slots.clone()).await;
        tracing::debug!(copy = %plan.name, %why, "keys that are no clients' are not counted");
        time::sleep(PAUSE).await;
    }
}

async fn count(
    plan: &Plan,
    at: &Endpoint,
    mut slots: watch::Receiver<SlotSet>,
) -> Result<Infallible, LinkError> {
    let mut link = open_alone(at, plan, "surplus").await?;
    let mut pass = Duration::ZERO; // the last one
    loop {
        let begun = Instant::now();
        let surplus = *slots.borrow_and_update();
        for database in link.server().await?.keyspace.into_keys() {
            let keys = match surplus.is_empty() {
                true => 0,
                false => count_in(&mut link, plan, &surplus, database).await?,
            };
            let pass = pass.max(begun.elapsed());
            write(&mut link, plan, database, keys, pass).await?;
        }
        pass = begun.elapsed();
        time::sleep(pass.max(PAUSE)).await;
        if surplus.is_empty() {
            // Whoever would tell has ended when that fails, and so will this.
            slots.changed().await.ok();
        }
    }
}

/// The keys of the slots in a database, and those that the copy has there for itself.
async fn count_in(
    link: &mut Link,
    plan: &Plan,
    slots: &SlotSet,
    database: u32,
) -> Result<usize, LinkError> {
    link.select(database).await?;
    let own = attempt::own_prefix(&plan.name);
    let mut count = 0;
    let mut stroll = Stroll::new(GAIT);
    while let Some(keys) = stroll.next(link).await? {
        count += clean::of_slots(&keys, slots).len();
        let is_own = |key: &&super::dirty::Key| key.starts_with(own.as_bytes());
        count += keys.iter().filter(is_own).count();
    }
    Ok(count)
}

/// Writes the number down; a server that is full may refuse it.
async fn write(
    link: &mut Link,
    plan: &Plan,
    database: u32,
    keys: usize,
    pass: Duration,
) -> Result<(), LinkError> {
    link.select(database).await?;
    let (key, name) = (KEY.as_bytes(), plan.name.as_str().as_bytes());
    if keys == 0 {
        link.ask(&[b"HDEL", key, name]).await?;
        return Ok(());
    }
    let keys = keys.to_string();
    let life = (LIFE + 4 * pass).as_millis().to_string();
    link.push(&[b"HSET", key, name, keys.as_bytes()]);
    link.push(&[b"PEXPIRE", key, life.as_bytes()]);
    link.exchange().await?;
    Ok(())
}
