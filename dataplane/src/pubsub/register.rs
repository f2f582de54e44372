//! Who in this worker is subscribed to what, and where each channel and pattern is subscribed for them.
//!
//! The first session's subscription has the home's server asked, the end of the last one's has it end
//! there. When a home moves, the new one is asked first, and the old subscription ends once the new one
//! stands: a message is published at one server only, so that none is seen twice, and none missed that
//! the old home still publishes. Decides only: what is to be asked is kept in [`Register::orders`], what
//! has come of a session's request in [`Register::outcomes`].
//!
//! Invariant: a topic is in the register while a session is subscribed to it, an answer waits for it, or
//! a server has it or has been asked.

use std::{
    collections::{BTreeSet, HashMap},
    rc::Rc,
    sync::Arc,
};

use proto::ServerAddr;
use slab::Slab;

use super::{
    census::Census,
    home::{self, Home},
    message::Change,
};
use crate::command::Topic;

/// See the module.
pub(super) struct Register {
    entries: Slab<Entry>,
    by_name: [HashMap<Rc<[u8]>, u32>; Topic::COUNT],
    answers: Slab<Answer>,
    /// Subscriptions of all sessions.
    total: usize,
    census: Arc<Census>,
    /// What servers are to be asked, in order.
    pub(super) orders: Vec<Order>,
    /// What has come of sessions' requests.
    pub(super) outcomes: Vec<Outcome>,
}

/// A server is to be asked something, over this subscriber's connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Order {
    pub(super) subscriber: u32,
    pub(super) entry: u32,
    pub(super) change: Change,
}

/// What has come of a session's request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// It is answered.
    Answered {
        session: u32,
        number: u32,
        reply: Vec<u8>,
    },
    /// A subscription that had been promised to it could not be made.
    Failed {
        session: u32,
        topic: Topic,
        entry: u32,
    },
}

/// Whether a subscriber's connection can be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Link {
    /// It is being opened: all that it is wanted for is asked then.
    Opening,
    Ready,
    /// It was lost, or could not be opened. It will be tried again.
    Down,
}

struct Entry {
    topic: Topic,
    name: Rc<[u8]>,
    sessions: BTreeSet<u32>,
    places: Vec<Place>,
    home: Home,
    /// Answers, and their parts, that are given once it is subscribed at its home.
    waiting: Vec<(u32, u32)>,
}

/// A server that a topic is, or was, or is to be, subscribed at.
struct Place {
    subscriber: u32,
    server: ServerAddr,
    /// It is at home there.
    home: bool,
    /// The last that was asked there is to subscribe.
    sought: bool,
    /// How much of what was asked there has not been answered.
    asked: u32,
    /// It is known to be subscribed there, and counted so.
    stands: bool,
}

impl Place {
    fn is_settled(&self) -> bool {
        self.sought && self.asked == 0
    }
}

/// The reply to a request, of which parts are still to be confirmed.
struct Answer {
    session: u32,
    number: u32,
    parts: Vec<Vec<u8>>,
    missing: usize,
}

impl Register {
    pub(super) fn new(census: Arc<Census>) -> Self {
        Self {
            entries: Slab::new(),
            by_name: Default::default(),
            answers: Slab::new(),
            total: 0,
            census,
            orders: Vec::new(),
            outcomes: Vec::new(),
        }
    }

    /// Subscriptions of all sessions.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// A topic that is known.
    pub(super) fn find(&self, topic: Topic, name: &[u8]) -> Option<u32> {
        self.by_name[topic as usize].get(name).copied()
    }

    pub(super) fn name(&self, entry: u32) -> (Topic, Rc<[u8]>) {
        let entry = &self.entries[entry as usize];
        (entry.topic, Rc::clone(&entry.name))
    }

    /// Those who are subscribed to it.
    pub(super) fn sessions(&self, entry: u32) -> &BTreeSet<u32> {
        &self.entries[entry as usize].sessions
    }

    /// The topics that sessions are subscribed to and whose home has moved.
    pub(super) fn moved(&self, has_moved: impl Fn(Home) -> bool) -> Vec<u32> {
        let entries = self.entries.iter();
        let moved =
            entries.filter(|(_, entry)| !entry.sessions.is_empty() && has_moved(entry.home));
        moved.map(|(id, _)| id as u32).collect()
    }

    /// Whether all topics with such a home that sessions are subscribed to are subscribed there.
    pub(super) fn all_stand(
        &self,
        concerns: impl Fn(Home) -> bool,
        link: impl Fn(u32) -> Link,
    ) -> bool {
        let mut entries = self
            .entries
            .iter()
            .filter(|(_, entry)| !entry.sessions.is_empty() && concerns(entry.home));
        entries.all(|(_, entry)| entry.is_settled(&link))
    }

    /// Whether something is, or may be, subscribed over a subscriber's connection.
    pub(super) fn needs(&self, subscriber: u32) -> bool {
        self.entries.iter().any(|(_, entry)| {
            let mut places = entry.places.iter();
            places.any(|place| place.subscriber == subscriber)
        })
    }

    /// Starts the answer to a request; parts are added by [`Register::say`] and [`Register::promise`].
    pub(super) fn begin(&mut self, session: u32, number: u32) -> u32 {
        self.answers.insert(Answer {
            session,
            number,
            parts: Vec::new(),
            missing: 1,
        }) as u32
    }

    /// All parts of an answer have been added.
    pub(super) fn end(&mut self, answer: u32) {
        self.part_is_there(answer);
    }

    /// Adds a session to a topic, which is new if nobody is subscribed. Its place is said by
    /// [`Register::place`].
    pub(super) fn join(&mut self, session: u32, topic: Topic, name: &[u8]) -> u32 {
        let id = self.find(topic, name).unwrap_or_else(|| {
            let name: Rc<[u8]> = name.into();
            let id = self.entries.insert(Entry {
                topic,
                name: Rc::clone(&name),
                sessions: BTreeSet::new(),
                places: Vec::new(),
                home: home::of(topic, &name),
                waiting: Vec::new(),
            }) as u32;
            self.by_name[topic as usize].insert(name, id);
            id
        });
        if self.entries[id as usize].sessions.insert(session) {
            self.total += 1;
            self.census.join(topic, name);
        }
        id
    }

    /// Adds a part to an answer.
    pub(super) fn say(&mut self, answer: u32, part: Vec<u8>) {
        self.answers[answer as usize].parts.push(part);
    }

    /// Adds a part to an answer: given once the topic is subscribed at its home.
    pub(super) fn promise(
        &mut self,
        answer: u32,
        entry: u32,
        part: Vec<u8>,
        link: impl Fn(u32) -> Link,
    ) {
        let index = self.answers[answer as usize].parts.len() as u32;
        self.say(answer, part);
        if !self.entries[entry as usize].is_settled(&link) {
            self.answers[answer as usize].missing += 1;
            self.entries[entry as usize].waiting.push((answer, index));
        }
    }

    fn part_is_there(&mut self, id: u32) {
        let answer = &mut self.answers[id as usize];
        answer.missing -= 1;
        if answer.missing == 0 {
            let answer = self.answers.remove(id as usize);
            self.outcomes.push(Outcome::Answered {
                session: answer.session,
                number: answer.number,
                reply: answer.parts.concat(),
            });
        }
    }

    /// Takes a session from a topic.
    pub(super) fn leave(&mut self, session: u32, id: u32, link: impl Fn(u32) -> Link) {
        self.forget(session, id);
        self.tidy(id, &link);
    }

    fn forget(&mut self, session: u32, id: u32) {
        let entry = &mut self.entries[id as usize];
        if entry.sessions.remove(&session) {
            self.total -= 1;
            self.census.leave(entry.topic, &entry.name);
        }
    }

    /// Says where a topic is at home from now on.
    pub(super) fn place(
        &mut self,
        id: u32,
        homes: &[(u32, ServerAddr)],
        link: impl Fn(u32) -> Link,
    ) {
        let entry = &mut self.entries[id as usize];
        for place in &mut entry.places {
            place.home = homes.iter().any(|(home, _)| *home == place.subscriber);
        }
        for (subscriber, server) in homes {
            let mut places = entry.places.iter();
            if !places.any(|place| place.subscriber == *subscriber) {
                entry.places.push(Place {
                    subscriber: *subscriber,
                    server: server.clone(),
                    home: true,
                    sought: false,
                    asked: 0,
                    stands: false,
                });
            }
        }
        self.tidy(id, &link);
    }

    /// Orders what follows from how things stand, and gives the answers that can be given.
    fn tidy(&mut self, id: u32, link: &impl Fn(u32) -> Link) {
        let entry = &mut self.entries[id as usize];
        let is_used = !entry.sessions.is_empty();
        for place in &mut entry.places {
            let wanted = is_used && place.home;
            if wanted && !place.sought && link(place.subscriber) == Link::Ready {
                place.sought = true;
                place.asked += 1;
                self.orders.push(Order {
                    subscriber: place.subscriber,
                    entry: id,
                    change: Change::Subscribe,
                });
            }
        }
        let settled = entry.is_settled(link);
        for place in &mut entry.places {
            let over = !is_used || (!place.home && settled);
            if over && place.sought {
                place.sought = false;
                place.asked += 1;
                self.orders.push(Order {
                    subscriber: place.subscriber,
                    entry: id,
                    change: Change::Unsubscribe,
                });
            }
        }
        let is_needed = |place: &Place| place.sought || place.asked > 0 || (is_used && place.home);
        entry.places.retain(is_needed);
        if entry.is_settled(link) {
            let answers = std::mem::take(&mut entry.waiting);
            answers
                .into_iter()
                .for_each(|(answer, _)| self.part_is_there(answer));
        }
        let entry = &self.entries[id as usize];
        if !is_used && entry.places.is_empty() && entry.waiting.is_empty() {
            let entry = self.entries.remove(id as usize);
            self.by_name[entry.topic as usize].remove(&entry.name);
        }
    }

    /// A server has done what it was asked.
    pub(super) fn done(&mut self, order: &Order, link: impl Fn(u32) -> Link) {
        let entry = &mut self.entries[order.entry as usize];
        let mut places = entry.places.iter_mut();
        let Some(place) = places.find(|place| place.subscriber == order.subscriber) else {
            return;
        };
        place.asked -= 1;
        let stands = order.change == Change::Subscribe;
        if stands != std::mem::replace(&mut place.stands, stands) {
            let (server, topic) = (&place.server, entry.topic);
            if stands {
                self.census.connect(server, topic, &entry.name);
            } else {
                self.census.disconnect(server, topic, &entry.name);
            }
        }
        self.tidy(order.entry, &link);
    }

    /// A server refuses to subscribe; what was promised by it is answered with this error.
    pub(super) fn refused(&mut self, order: &Order, error: &[u8], link: impl Fn(u32) -> Link) {
        let entry = &mut self.entries[order.entry as usize];
        let mut places = entry.places.iter_mut();
        let Some(place) = places.find(|place| place.subscriber == order.subscriber) else {
            return;
        };
        place.asked -= 1;
        place.sought &= place.asked > 0;
        let is_home = place.home;
        if is_home {
            self.fail(order.entry, error);
        }
        // It is not asked again before its connection is: it would refuse again.
        self.tidy(order.entry, &|other| match other {
            same if same == order.subscriber => Link::Down,
            other => link(other),
        });
    }

    /// A subscriber's connection is ready: it is asked for all that it is wanted for.
    pub(super) fn opened(&mut self, subscriber: u32, link: impl Fn(u32) -> Link) {
        for id in self.at(subscriber) {
            self.tidy(id, &link);
        }
    }

    /// A subscriber's connection is lost, or could not be opened: what was promised by it is answered with
    /// this error. What stood there is asked for again once it is back.
    pub(super) fn lost(&mut self, subscriber: u32, error: &[u8], link: impl Fn(u32) -> Link) {
        for id in self.at(subscriber) {
            let entry = &mut self.entries[id as usize];
            for place in &mut entry.places {
                if place.subscriber == subscriber {
                    (place.sought, place.asked) = (false, 0);
                    if std::mem::take(&mut place.stands) {
                        let server = &place.server;
                        self.census.disconnect(server, entry.topic, &entry.name);
                    }
                }
            }
            let at_home = |place: &Place| place.home && place.subscriber == subscriber;
            if entry.home != Home::Everywhere && entry.places.iter().any(at_home) {
                self.fail(id, error);
            }
            self.tidy(id, &link);
        }
    }

    fn at(&self, subscriber: u32) -> Vec<u32> {
        let has = |entry: &Entry| {
            let mut places = entry.places.iter();
            places.any(|place| place.subscriber == subscriber)
        };
        let entries = self.entries.iter().filter(|(_, entry)| has(entry));
        entries.map(|(id, _)| id as u32).collect()
    }

    /// Who waits for a topic gets an error, and is not subscribed.
    fn fail(&mut self, id: u32, error: &[u8]) {
        for (answer, part) in std::mem::take(&mut self.entries[id as usize].waiting) {
            let Answer { session, parts, .. } = &mut self.answers[answer as usize];
            parts[part as usize] = error.to_vec();
            let session = *session;
            if self.entries[id as usize].sessions.contains(&session) {
                self.forget(session, id);
                let topic = self.entries[id as usize].topic;
                self.outcomes.push(Outcome::Failed {
                    session,
                    topic,
                    entry: id,
                });
            }
            self.part_is_there(answer);
        }
    }
}

impl Entry {
    /// Whether it is subscribed at its home. One that is at home everywhere need not be where the server is
    /// down: nothing is published there.
    fn is_settled(&self, link: &impl Fn(u32) -> Link) -> bool {
        let mut homes = self.places.iter().filter(|place| place.home);
        homes.all(|place| {
            place.is_settled()
                || (self.home == Home::Everywhere && link(place.subscriber) == Link::Down)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A register, with one topic that two subscribers may be asked for.
    struct World {
        register: Register,
        topic: Topic,
        links: [Link; 2],
        asked: Vec<String>,
    }

    const NAME: &[u8] = b"news";

    fn server(subscriber: u32) -> ServerAddr {
        ServerAddr::new(format!("h:{}", subscriber + 1)).unwrap()
    }

    impl World {
        fn new(topic: Topic) -> Self {
            Self {
                register: Register::new(Arc::default()),
                topic,
                links: [Link::Ready; 2],
                asked: Vec::new(),
            }
        }

        /// A session subscribes, with its number as the request's.
        fn subscribe(&mut self, session: u32, homes: &[u32]) {
            let answer = self.register.begin(session, session);
            let entry = self.register.join(session, self.topic, NAME);
            self.place(homes);
            let links = self.links;
            let part = format!("+{session}").into_bytes();
            self.register
                .promise(answer, entry, part, |id| links[id as usize]);
            self.register.end(answer);
        }

        fn place(&mut self, homes: &[u32]) {
            let entry = self.register.find(self.topic, NAME).unwrap();
            let homes: Vec<_> = homes.iter().map(|&id| (id, server(id))).collect();
            let links = self.links;
            self.register.place(entry, &homes, |id| links[id as usize]);
        }

        fn unsubscribe(&mut self, session: u32) {
            let entry = self.register.find(self.topic, NAME).unwrap();
            let links = self.links;
            self.register.leave(session, entry, |id| links[id as usize]);
        }

        /// What servers are asked now: `0+` is to subscribe over the first connection.
        fn orders(&mut self) -> Vec<Order> {
            let orders = std::mem::take(&mut self.register.orders);
            for order in &orders {
                let change = match order.change {
                    Change::Subscribe => '+',
                    Change::Unsubscribe => '-',
                };
                self.asked.push(format!("{}{change}", order.subscriber));
            }
            orders
        }

        fn done(&mut self, orders: &[Order]) {
            let links = self.links;
            for order in orders {
                self.register.done(order, |id| links[id as usize]);
            }
        }

        fn lose(&mut self, subscriber: u32) {
            self.links[subscriber as usize] = Link::Down;
            let links = self.links;
            self.register
                .lost(subscriber, b"-down", |id| links[id as usize]);
        }

        fn open(&mut self, subscriber: u32) {
            self.links[subscriber as usize] = Link::Ready;
            let links = self.links;
            self.register.opened(subscriber, |id| links[id as usize]);
        }

        /// What sessions were told: `7+7` is a reply to session 7, `7!` a failed subscription.
        fn told(&mut self) -> Vec<String> {
            let outcomes = std::mem::take(&mut self.register.outcomes).into_iter();
            let shown = outcomes.map(|outcome| match outcome {
                Outcome::Answered { session, reply, .. } => {
                    format!("{session}{}", String::from_utf8(reply).unwrap())
                }
                Outcome::Failed { session, .. } => format!("{session}!"),
            });
            shown.collect()
        }

        fn is_empty(&self) -> bool {
            let register = &self.register;
            let census = register.census.of_channel(self.topic, NAME, false);
            let nobody = (census.connections, census.sessions) == (0, 0);
            register.entries.is_empty()
                && register.by_name.iter().all(HashMap::is_empty)
                && register.answers.is_empty()
                && register.total == 0
                && nobody
        }
    }

    #[test]
    fn the_first_subscribes_and_the_last_ends_it() {
        let mut world = World::new(Topic::Channel);
        world.subscribe(1, &[0]);
        world.subscribe(2, &[0]);
        let orders = world.orders();
        assert!(world.told().is_empty(), "the server has not confirmed");
        world.done(&orders);
        assert_eq!(world.told(), ["1+1", "2+2"]);
        world.subscribe(3, &[0]);
        assert_eq!(world.told(), ["3+3"], "it is subscribed");
        for session in [1, 3, 2] {
            assert!(world.orders().is_empty());
            world.unsubscribe(session);
        }
        let orders = world.orders();
        assert_eq!(world.asked, ["0+", "0-"]);
        world.done(&orders);
        assert!(world.is_empty());
    }

    #[test]
    fn what_is_asked_again_is_answered_by_the_last() {
        let mut world = World::new(Topic::Channel);
        world.subscribe(1, &[0]);
        world.unsubscribe(1);
        world.subscribe(2, &[0]);
        let orders = world.orders();
        assert_eq!(world.asked, ["0+", "0-", "0+"]);
        world.done(&orders[..2]);
        assert!(world.told().is_empty());
        world.done(&orders[2..]);
        assert_eq!(world.told(), ["1+1", "2+2"]);
        world.unsubscribe(2);
        let orders = world.orders();
        world.done(&orders);
        assert!(world.is_empty());
    }

    #[test]
    fn who_leaves_before_the_answer_is_answered() {
        let mut world = World::new(Topic::Channel);
        world.subscribe(1, &[0]);
        world.unsubscribe(1);
        let orders = world.orders();
        world.done(&orders);
        assert_eq!(world.told(), ["1+1"]);
        assert!(world.is_empty());
    }

    #[test]
    fn the_old_home_is_left_once_the_new_one_stands() {
        let mut world = World::new(Topic::Channel);
        world.subscribe(1, &[0]);
        let orders = world.orders();
        world.done(&orders);
        world.place(&[1]);
        let orders = world.orders();
        assert_eq!(world.asked, ["0+", "1+"]);
        world.done(&orders);
        let orders = world.orders();
        assert_eq!(world.asked, ["0+", "1+", "0-"]);
        world.done(&orders);
        assert!(!world.register.needs(0) && world.register.needs(1));
        // And back again, before that is done.
        world.place(&[0]);
        world.place(&[1]);
        let orders = world.orders();
        assert_eq!(world.asked[3..], ["0+", "0-"]);
        world.done(&orders);
        world.unsubscribe(1);
        let orders = world.orders();
        world.done(&orders);
        assert!(world.is_empty());
    }

    #[test]
    fn a_lost_server_fails_who_waits_and_is_asked_again_for_the_others() {
        let mut world = World::new(Topic::Channel);
        world.subscribe(1, &[0]);
        let orders = world.orders();
        world.done(&orders);
        world.lose(0);
        assert_eq!(world.told(), ["1+1"]);
        world.links[0] = Link::Opening;
        world.subscribe(2, &[0]);
        assert!(world.orders().is_empty() && world.told().is_empty());
        world.lose(0);
        assert_eq!(world.told(), ["2!", "2-down"]);
        world.open(0);
        let orders = world.orders();
        assert_eq!(world.asked, ["0+", "0+"]);
        world.done(&orders);
        world.unsubscribe(1);
        world.orders();
        world.lose(0);
        assert!(world.is_empty());
    }

    #[test]
    fn what_is_at_home_everywhere_needs_those_that_are_up() {
        let mut world = World::new(Topic::Pattern);
        world.lose(1);
        world.subscribe(1, &[0, 1]);
        let orders = world.orders();
        assert_eq!(world.asked, ["0+"]);
        world.done(&orders);
        assert_eq!(world.told(), ["1+1"]);
        world.open(1);
        world.subscribe(2, &[0, 1]);
        assert!(world.told().is_empty());
        world.lose(1);
        assert_eq!(world.told(), ["2+2"]);
    }

    #[test]
    fn a_refusal_fails_who_waits() {
        let mut world = World::new(Topic::Channel);
        world.subscribe(1, &[0]);
        let links = world.links;
        for order in world.orders() {
            let link = |id: u32| links[id as usize];
            world.register.refused(&order, b"-NOPERM", link);
        }
        assert_eq!(world.told(), ["1!", "1-NOPERM"]);
        assert!(world.orders().is_empty());
        assert!(world.is_empty());
    }
}
