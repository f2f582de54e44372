//! Publish and subscribe over all proxies and groups.
//!
//! A worker subscribes for its sessions: it has one subscriber connection to each group's primary
//! ([`subscriber`]), opened when it is first needed, and a register of who is subscribed to what
//! ([`register`]). A channel's home is the group that owns its slot ([`home`]), and so messages are
//! published there, at whatever proxy: each subscriber at any proxy gets each of them once. Patterns are
//! subscribed at every group. A session's `SUBSCRIBE` is answered once the home has confirmed, so that
//! it sees whatever is published from then on. What servers count in connections is put right for
//! sessions ([`census`]).
//!
//! When a slot moves, its channels are subscribed at the new home before the subscription at the old one
//! ends; while it is held, where it goes, too, and its group has not settled before that stands
//! ([`crate::settling`]).
//!
//! Invariant: a session's subscriptions are those that the register has of it.

use std::{cell::RefCell, collections::BTreeMap, rc::Weak, sync::Arc};

use proto::{ServerAddr, Slot, Topology};
use slab::Slab;
use tokio::{task::spawn_local, time::Instant};

use self::{
    home::Home,
    message::{Change, put_changed},
    register::{Link, Outcome, Register},
    subscriber::Subscriber,
};
use crate::{
    backend::{Backends, Door, Way},
    command::{Command, PubSub as Verb, Topic},
    config::Serving,
    error,
    fanout::{Channel, Merging},
    resp::{Protocol, Request},
    route::Rejection,
    session::{Clients, Dispatched, Inquiry},
    worker::{Worker, essential},
};

pub(crate) mod census;
pub(crate) mod home;
mod message;
mod register;
mod subscriber;

/// What a session is subscribed to.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    /// By entry in the register; of each, the length of its name.
    entries: BTreeMap<(Topic, u32), usize>,
    counts: [usize; Topic::COUNT],
    /// Bytes of memory they stand for: asked for with each flush.
    memory: usize,
}

/// What a subscription costs besides its name.
const COST: usize = 256;

impl Subscriptions {
    fn insert(&mut self, topic: Topic, entry: u32, len: usize) -> bool {
        let is_new = self.entries.insert((topic, entry), len).is_none();
        if is_new {
            self.counts[topic as usize] += 1;
            self.memory += COST + len;
        }
        is_new
    }

    fn remove(&mut self, topic: Topic, entry: u32) -> bool {
        let Some(len) = self.entries.remove(&(topic, entry)) else {
            return false;
        };
        self.counts[topic as usize] -= 1;
        self.memory -= COST + len;
        true
    }

    /// How many channels there are, patterns, and shard channels.
    pub(crate) fn counts(&self) -> [usize; Topic::COUNT] {
        self.counts
    }

    /// What Redis says behind each reply: shard channels are counted for themselves.
    fn count(&self, topic: Topic) -> usize {
        let of = |topic: Topic| self.counts[topic as usize];
        match topic {
            Topic::Channel | Topic::Pattern => of(Topic::Channel) + of(Topic::Pattern),
            Topic::Shard => of(Topic::Shard),
        }
    }

    fn of(&self, topic: Topic) -> Vec<u32> {
        let of_topic = self.entries.range((topic, 0)..=(topic, u32::MAX));
        of_topic.map(|(&(_, entry), _)| entry).collect()
    }

    /// Bytes of memory it stands for.
    pub(crate) fn memory(&self) -> usize {
        self.memory
    }
}

/// The subscriptions of a worker. See the module.
pub(crate) struct PubSub {
    worker: Weak<RefCell<Worker>>,
    register: Register,
    subscribers: Slab<Subscriber>,
    /// To each group's primary, by the group's index in the topology.
    of_group: Vec<Option<u32>>,
    /// To the owner of each slot, as of the last topology; and if the slot is held, to where it goes.
    of_slot: Vec<(Option<u32>, Option<u32>)>,
}

impl PubSub {
    pub(crate) fn new(worker: Weak<RefCell<Worker>>, census: Arc<census::Census>) -> Self {
        Self {
            worker,
            register: Register::new(census),
            subscribers: Slab::new(),
            of_group: Vec::new(),
            of_slot: Vec::new(),
        }
    }

    /// Where a channel or pattern is at home: subscribers, opened where there are none.
    fn homes(
        &mut self,
        topic: Topic,
        name: &[u8],
        topology: &Topology,
        backends: &mut Backends,
        serving: &Serving,
    ) -> Result<Vec<(u32, ServerAddr)>, Rejection> {
        let groups = home::groups(topic, name, topology)?;
        let home = |group: u16| {
            let subscriber = self.of_group[usize::from(group)].unwrap_or_else(|| {
                let door = backends.door(group, Way::USUAL, serving.connect_timeout);
                self.open(door, group, backends.now())
            });
            let server = topology.groups()[usize::from(group)].primary.clone();
            (subscriber, server)
        };
        Ok(groups.into_iter().map(home).collect())
    }

    /// How many connections are ready.
    pub(crate) fn ready(&self) -> u64 {
        let ready = self.subscribers.iter();
        let ready = ready.filter(|(_, subscriber)| subscriber.link == Link::Ready);
        ready.count() as u64
    }

    fn open(&mut self, door: Door, group: u16, now: Instant) -> u32 {
        let id = self.subscribers.insert(Subscriber::new(door, group, now)) as u32;
        self.of_group[usize::from(group)] = Some(id);
        if let Some(worker) = self.worker.upgrade() {
            spawn_local(essential(subscriber::run(worker, id)));
        }
        id
    }

    /// Takes over the groups of a new topology, and has the subscriptions move whose home has moved.
    fn update(&mut self, topology: &Topology, backends: &mut Backends, serving: &Serving) {
        let of_slot = std::mem::take(&mut self.of_slot);
        let mut left = std::mem::take(&mut self.of_group);
        let before: Vec<_> = left.iter().flatten().copied().collect();
        for group in 0..topology.groups().len() as u16 {
            let door = backends.door(group, Way::USUAL, serving.connect_timeout);
            let same = |id: &Option<u32>| {
                id.is_some_and(|id| self.subscribers[id as usize].door.leads_as(&door))
            };
            let stays = left.iter().position(same).and_then(|at| left[at].take());
            if let Some(id) = stays {
                self.subscribers[id as usize].group = Some(group);
            }
            self.of_group.push(stays);
        }
        for id in left.into_iter().flatten() {
            let subscriber = &mut self.subscribers[id as usize];
            subscriber.group = None;
            subscriber.wake();
        }
        for (_, subscriber) in &self.subscribers {
            if subscriber.link == Link::Down {
                subscriber.wake(); // it may have been refused by what was routed by before
            }
        }
        let subscriber = |group: u16| self.of_group[usize::from(group)];
        let homes = |slot| {
            let route = topology.route(slot);
            let ahead = home::ahead(&route);
            (route.group.and_then(subscriber), ahead.and_then(subscriber))
        };
        self.of_slot = Slot::all().map(homes).collect();
        let after: Vec<_> = self.of_group.iter().flatten().copied().collect();
        let others = after.len() < self.of_group.len() || {
            let mut before = before.iter();
            after.len() != before.len() || !before.all(|id| after.contains(id))
        };
        let moved = self.register.moved(|home| match home {
            Home::Proxy => false,
            Home::Everywhere => others,
            Home::Slot(slot) => {
                let now = self.of_slot[slot.index()];
                let opens = home::ahead(&topology.route(slot)).is_some() && now.1.is_none();
                now.0.is_none() || opens || of_slot.get(slot.index()) != Some(&now)
            }
        });
        for entry in moved {
            let (topic, name) = self.register.name(entry);
            // Of a slot that nobody owns nothing is published: it is at home nowhere until somebody does.
            let homes = self.homes(topic, &name, topology, backends, serving);
            self.place(entry, &homes.unwrap_or_default());
        }
    }

    /// Whether all that is subscribed at the homes of these slots' channels stands there.
    pub(crate) fn is_ahead(&self, slots: &[Slot]) -> bool {
        let link = |id: u32| self.subscribers[id as usize].link;
        self.register.all_stand(
            |home| match home {
                Home::Slot(slot) => slots.binary_search(&slot).is_ok(),
                Home::Everywhere => true,
                Home::Proxy => false,
            },
            link,
        )
    }

    fn place(&mut self, entry: u32, homes: &[(u32, ServerAddr)]) {
        let link = |id: u32| self.subscribers[id as usize].link;
        self.register.place(entry, homes, link);
    }
}

/// What the sessions of a worker ask for.
impl Worker {
    /// Moves subscriptions to where they are at home by the topology that was just applied.
    pub(crate) fn move_subscriptions(&mut self) {
        if let Some(topology) = &self.topology {
            self.pubsub
                .update(topology, &mut self.backends, &self.serving);
            self.settle_subscriptions();
        }
    }

    /// Has servers asked what is to be asked, and tells sessions what has come of their requests.
    fn settle_subscriptions(&mut self) {
        self.pubsub.send_orders(self.backends.now());
        for outcome in std::mem::take(&mut self.pubsub.register.outcomes) {
            match outcome {
                Outcome::Answered {
                    session,
                    number,
                    reply,
                } => {
                    self.clients.confirm(session, number, &reply);
                }
                Outcome::Failed {
                    session,
                    topic,
                    entry,
                } => {
                    self.unlist(session, topic, entry);
                }
            }
        }
        self.settling.look();
        self.clients.schedule_flush();
    }

    /// Takes a subscription from a session's list; whether it was there.
    fn unlist(&mut self, id: u32, topic: Topic, entry: u32) -> bool {
        let listed = &mut self.clients.session(id).client.subscriptions;
        let Some(subscriptions) = listed else {
            return false;
        };
        let was_there = subscriptions.remove(topic, entry);
        if subscriptions.entries.is_empty() {
            *listed = None;
        }
        was_there
    }

    pub(crate) fn pubsub(
        &mut self,
        id: u32,
        command: &Command,
        verb: Verb,
        request: &Request<'_>,
    ) -> Dispatched {
        match verb {
            Verb::Subscribe(topic) => self.subscribe(id, topic, request),
            Verb::Unsubscribe(topic) => self.unsubscribe(id, topic, request),
            Verb::Publish(topic) => self.publish(id, command, topic, request),
            Verb::Count(_) => self.inquire(id, command, request),
        }
    }

    fn subscribe(&mut self, id: u32, topic: Topic, request: &Request<'_>) -> Dispatched {
        let Some(topology) = self.topology.clone() else {
            return self.answer_error(id, error::NO_TOPOLOGY);
        };
        let homes = match self.find_homes(id, topic, request, &topology) {
            Ok(homes) => homes,
            Err(text) => return self.answer_error(id, &text),
        };
        let session = self.clients.session(id);
        let protocol = session.client.protocol;
        let number = session.outbox.reserve();
        let listed = session.client.subscriptions.get_or_insert_default();
        let answer = self.pubsub.register.begin(id, number);
        for (name, homes) in request.args_from(1).zip(homes) {
            let entry = self.pubsub.register.join(id, topic, name);
            let is_new = listed.insert(topic, entry, name.len());
            self.pubsub.place(entry, &homes);
            let mut part = Vec::new();
            let count = listed.count(topic);
            let subscribed = Change::Subscribe;
            put_changed(&mut part, protocol, topic, subscribed, Some(name), count);
            let PubSub {
                register,
                subscribers,
                ..
            } = &mut self.pubsub;
            if is_new {
                register.promise(answer, entry, part, |id| subscribers[id as usize].link);
            } else {
                register.say(answer, part);
            }
        }
        self.pubsub.register.end(answer);
        self.stats.requests_local.add(1);
        self.taken(id);
        self.clients.recount(id);
        self.settle_subscriptions();
        Dispatched::Done
    }

    /// Where the channels or patterns of a request are at home; or why they cannot be subscribed.
    fn find_homes(
        &mut self,
        id: u32,
        topic: Topic,
        request: &Request<'_>,
        topology: &Topology,
    ) -> Result<Vec<Vec<(u32, ServerAddr)>>, String> {
        let names = request.argc() - 1;
        let listed = self.clients.session(id).client.subscriptions.as_ref();
        let own = listed.map_or(0, |listed| listed.entries.len());
        let total = self.pubsub.register.total();
        if own + names > self.serving.max_subscriptions
            || total + names > self.serving.max_worker_subscriptions
        {
            return Err(error::TOO_MANY_SUBSCRIPTIONS.to_owned());
        }
        if topic == Topic::Shard {
            let mut slots = request.args_from(1).map(Slot::of_key);
            let first = slots.next();
            if !slots.all(|slot| Some(slot) == first) {
                return Err(error::rejection(Rejection::CrossSlot).to_owned());
            }
        }
        let mut all = Vec::new();
        for name in request.args_from(1) {
            let homes = self
                .pubsub
                .homes(topic, name, topology, &mut self.backends, &self.serving);
            let homes = homes.map_err(|why| error::rejection(why).to_owned())?;
            if home::of(topic, name) != Home::Everywhere {
                let mut homes = homes
                    .iter()
                    .map(|(id, _)| &self.pubsub.subscribers[*id as usize]);
                if let Some(down) = homes.find(|home| home.link == Link::Down) {
                    return Err(down.error());
                }
            }
            all.push(homes);
        }
        Ok(all)
    }

    fn unsubscribe(&mut self, id: u32, topic: Topic, request: &Request<'_>) -> Dispatched {
        let mut reply = Vec::new();
        if request.argc() > 1 {
            for name in request.args_from(1) {
                let entry = self.pubsub.register.find(topic, name);
                self.end_subscription(id, topic, entry, Some(name), &mut reply);
            }
        } else {
            let listed = self.clients.session(id).client.subscriptions.as_ref();
            let entries = listed.map_or(Vec::new(), |listed| listed.of(topic));
            for &entry in &entries {
                let (_, name) = self.pubsub.register.name(entry);
                self.end_subscription(id, topic, Some(entry), Some(&name), &mut reply);
            }
            if entries.is_empty() {
                self.end_subscription(id, topic, None, None, &mut reply);
            }
        }
        self.settle_subscriptions();
        self.clients.recount(id);
        let number = self.clients.session(id).outbox.reserve();
        self.clients.confirm(id, number, &reply);
        self.stats.requests_local.add(1);
        self.taken(id);
        Dispatched::Done
    }

    /// Sends a message to where its channel is at home, to be published there.
    fn publish(
        &mut self,
        id: u32,
        command: &Command,
        topic: Topic,
        request: &Request<'_>,
    ) -> Dispatched {
        let Some(topology) = &self.topology else {
            return self.answer_error(id, error::NO_TOPOLOGY);
        };
        let channel = request.arg(1);
        let group = match home::publisher(topic, channel, topology) {
            Ok(Some(group)) => group,
            Ok(None) => return self.hold(id),
            Err(why) => return self.answer_error(id, error::rejection(why)),
        };
        let server = &topology.groups()[usize::from(group)].primary;
        match self.proxy.census.of_message(server, topic, channel) {
            None => self.forward(id, command, request, group),
            Some(correction) => {
                let merging = Merging::Reached(correction);
                let inquiry = Inquiry {
                    groups: vec![group],
                    merging,
                    asked: vec![request.raw().into()],
                };
                self.ask_groups(id, command, inquiry)
            }
        }
    }

    /// How what groups say of the subscribers of these channels becomes one.
    pub(crate) fn subscribed(&self, topic: Topic, request: &Request<'_>) -> Merging {
        let census = &self.proxy.census;
        let channel = |name: &[u8]| {
            let everywhere = home::of(topic, name) == Home::Everywhere;
            Channel {
                name: name.into(),
                everywhere,
                correction: census.of_channel(topic, name, everywhere),
            }
        };
        Merging::Subscribed(request.args_from(2).map(channel).collect())
    }

    fn end_subscription(
        &mut self,
        id: u32,
        topic: Topic,
        entry: Option<u32>,
        name: Option<&[u8]>,
        reply: &mut Vec<u8>,
    ) {
        if let Some(entry) = entry
            && self.unlist(id, topic, entry)
        {
            let PubSub {
                register,
                subscribers,
                ..
            } = &mut self.pubsub;
            register.leave(id, entry, |id| subscribers[id as usize].link);
        }
        let client = &self.clients.session(id).client;
        let count = client.subscriptions.as_ref();
        let count = count.map_or(0, |subscriptions| subscriptions.count(topic));
        put_changed(
            reply,
            client.protocol,
            topic,
            Change::Unsubscribe,
            name,
            count,
        );
    }

    /// Ends all subscriptions of a session, which is told nothing.
    pub(crate) fn end_subscriptions(&mut self, id: u32) {
        let Some(listed) = self.clients.session(id).client.subscriptions.take() else {
            return;
        };
        let PubSub {
            register,
            subscribers,
            ..
        } = &mut self.pubsub;
        for &(_, entry) in listed.entries.keys() {
            register.leave(id, entry, |id| subscribers[id as usize].link);
        }
        self.settle_subscriptions();
    }
}

impl Clients {
    /// Brings a session a message, given in RESP2: `resp3` is the same in RESP3, or empty. It goes behind
    /// the replies to what was asked before, as at a server: that to the `SUBSCRIBE` is among these, and
    /// in RESP2 nothing else tells a message from a reply. A request that blocks awaits none.
    fn bring(&mut self, id: u32, resp2: &[u8], resp3: &mut Vec<u8>) {
        let message = match self.session(id).client.protocol {
            Protocol::Resp2 => resp2,
            Protocol::Resp3 => {
                if resp3.is_empty() {
                    resp3.push(b'>');
                    resp3.extend_from_slice(&resp2[1..]);
                }
                resp3
            }
        };
        self.push(id, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_counts_what_it_is_subscribed_to() {
        let mut own = Subscriptions::default();
        assert!(own.insert(Topic::Channel, 1, 10) && own.insert(Topic::Pattern, 2, 20));
        assert!(own.insert(Topic::Shard, 3, 30) && !own.insert(Topic::Shard, 3, 30));
        assert_eq!((own.counts(), own.memory()), ([1, 1, 1], 3 * COST + 60));
        let counts = [Topic::Channel, Topic::Pattern, Topic::Shard].map(|topic| own.count(topic));
        assert_eq!(counts, [2, 2, 1]);
        assert_eq!(own.of(Topic::Pattern), [2]);
        assert!(own.remove(Topic::Pattern, 2) && !own.remove(Topic::Pattern, 2));
        assert_eq!((own.counts(), own.memory()), ([1, 0, 1], 2 * COST + 40));
    }
}
