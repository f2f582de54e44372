//! The decisions: whether a mutation is allowed, and what it changes.
//!
//! Each is a pure function of a snapshot and a request that was parsed before. The store runs it
//! against the newest snapshot, one at a time, so that what was checked still holds when it is
//! committed. It may run more than once, and leaves no trace of its own.
//!
//! Here is what a decision comes to, and what concerns the store as a whole; each noun has a file below.
//! Nothing here asks a server, a clock or a proxy: what they said comes in as an argument.

mod group;
mod migration;
mod proxy;
mod server;
mod slot;

use proto::{GroupId, MigrationId, ProxyId, reason::Reason};

pub use group::{create_group, delete_group, find_group, may_create_group, update_group};
pub use migration::{
    advance, all_weights, create_migration, find_migration, migration_forgotten, rebalance,
    update_migration, wish,
};
pub use proxy::{PROXIES_MAX, bar, delete_proxy, proxy_not_found, register};
pub use server::{
    create_server, delete_server, find_server, may_create_server, same_process, update_server,
};
pub use slot::{Assignment, assign_slots, owned_by};

use crate::{
    backup::Backup,
    events::{Draft, Kind},
    fence::Mark,
    migration::Migration,
    model::{Group, Head, Registration, Request, SlotMap},
    snapshot::Snapshot,
};

/// What a commit does to the store. An empty one is not committed.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Change {
    /// In this order.
    pub edits: Vec<Edit>,
    /// The request id to remember with it.
    pub request: Option<Request>,
    /// What happened, to be told once it is durable.
    pub events: Vec<Draft>,
}

impl Change {
    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty() && self.request.is_none() && self.events.is_empty()
    }

    fn one(edit: Edit, event: Draft) -> Self {
        Self {
            edits: vec![edit],
            request: None,
            events: vec![event],
        }
    }
}

/// One change of one record. Whoever takes it stamps the record with the revision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Edit {
    /// A leader was elected: the term grows by one.
    Elect,
    /// Numbers above the store's were found: term and revision go on above them, from these.
    Leap(Head),
    /// The group is new or changed.
    PutGroup(Group),
    /// The group is no more.
    RemoveGroup(GroupId),
    /// The slot map is another.
    PutSlots(SlotMap),
    /// The proxy registered.
    PutProxy(Registration),
    /// The proxy is forgotten.
    RemoveProxy(ProxyId),
    /// The migration is new or changed.
    PutMigration(Box<Migration>),
    /// The migration, which is over, is forgotten.
    RemoveMigration(MigrationId),
    /// Everything is as in a backup, in a leader term of its own.
    Restore(Box<Backup>),
}

/// Why a mutation is not allowed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// For programs.
    pub reason: Reason,
    /// The field at fault, where the reason is [`Reason::InvalidField`]; else empty.
    pub field: String,
    /// For people: what is wrong, and what to do.
    pub message: String,
}

impl Refusal {
    /// Any reason but a malformed field.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            field: String::new(),
            message: message.into(),
        }
    }

    /// A malformed field.
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            reason: Reason::InvalidField,
            field: field.into(),
            message: message.into(),
        }
    }
}

/// What every decision comes to.
pub type Decision = Result<Change, Refusal>;

/// Decides a request that carries an id, once: its repetition changes nothing.
pub fn once(
    now: &Snapshot,
    request: &Request,
    decide: impl FnOnce(&Snapshot) -> Decision,
) -> Decision {
    if is_repetition(now, request)? {
        return Ok(Change::default());
    }
    Ok(Change {
        request: Some(request.clone()),
        ..decide(now)?
    })
}

/// Whether the request was taken before.
pub fn is_repetition(now: &Snapshot, request: &Request) -> Result<bool, Refusal> {
    match now.request(&request.id) {
        None => Ok(false),
        Some(taken) if taken.content == request.content => Ok(true),
        Some(_) => Err(Refusal::new(
            Reason::RequestIdReused,
            format!(
                "request id `{}` was used for another request: choose a new one",
                request.id
            ),
        )),
    }
}

/// A controller started: it leads, in a new term.
pub fn elect(now: &Snapshot, build_version: &str) -> Change {
    let term = now.head.leader_term + 1;
    Change::one(
        Edit::Elect,
        Draft::new(
            "controller",
            Kind::ControllerStarted,
            format!("controller {build_version} started and leads in term {term}"),
        ),
    )
}

/// How far above what was found a store goes on: who was not found may have seen as many changes more, and
/// must not take for his own what is changed from now on.
const UNSEEN: u64 = 1 << 20;

/// The store goes on above a term and an epoch that were found elsewhere: it was restored from what is
/// older than they are. That this is committed proves that they are not of a later leader. Nothing
/// changes if they are not above it, or cannot be true.
pub fn leap(now: &Snapshot, found: Mark) -> Change {
    let own = now.mark();
    if !found.exceeds(own) || !own.believes(found) {
        return Change::default();
    }
    let Mark { term, epoch } = found;
    let head = Head {
        revision: own.epoch.max(epoch) + UNSEEN,
        leader_term: own.term.max(term + 1),
    };
    Change::one(
        Edit::Leap(head),
        Draft::new(
            "controller",
            Kind::StoreLeapt,
            format!(
                "the store was at term {} and revision {}, and goes on above term {term} and epoch \
                 {epoch}, which were found: it was restored from an older state",
                own.term, own.epoch
            ),
        ),
    )
}

/// Records were changed past the controller, and stay as they are.
pub fn adopt() -> Change {
    let message = "records were changed in ZooKeeper by hand, and are taken as they are";
    Change {
        events: vec![Draft::new("cluster", Kind::RecordsEdited, message)],
        ..Change::default()
    }
}

/// Refuses a mutation of what was changed since the caller read it.
pub(crate) fn at_revision(what: &str, revision: u64, expected: u64) -> Result<(), Refusal> {
    if expected == 0 || expected == revision {
        return Ok(());
    }
    Err(Refusal::new(
        Reason::RevisionMismatch,
        format!("{what} is at revision {revision}, not {expected}: read it again, then decide"),
    ))
}

/// `1 server`, `2 servers`.
fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use proto::{ServerAddr, Slot};

    use super::*;
    use crate::snapshot::tests::{group, with_groups};

    pub(super) fn id(text: &str) -> GroupId {
        GroupId::new(text).unwrap()
    }

    pub(super) fn addr(port: u16) -> ServerAddr {
        ServerAddr::new(format!("127.0.0.1:{port}")).unwrap()
    }

    /// Two groups, of which g1 owns 0-9.
    pub(super) fn cluster() -> Snapshot {
        let now = with_groups([group("g1", 7000, 1), group("g2", 7100, 0)]);
        now.after(&assign_slots(&now, &slots(0..10, "g1"), 0).unwrap())
    }

    pub(super) fn slots(numbers: std::ops::Range<u32>, group: &str) -> Assignment {
        let slot = |n| (Slot::new(n).unwrap(), id(group));
        Assignment::Slots(numbers.map(slot).collect())
    }

    pub(super) fn refused(decision: Decision, reason: Reason, part: &str) {
        let refusal = decision.unwrap_err();
        assert_eq!(refusal.reason, reason, "{refusal:?}");
        assert!(refusal.message.contains(part), "{refusal:?}");
    }

    #[test]
    fn a_store_goes_on_above_what_was_found() {
        let now = cluster();
        let check = |term, epoch, expected: (u64, u64)| {
            let after = now.after(&leap(&now, Mark { term, epoch }));
            let head = after.head;
            assert_eq!((head.leader_term, head.revision - UNSEEN), expected);
            assert!(leap(&after, Mark { term, epoch }).is_empty());
        };
        assert_eq!(now.version().to_string(), "1.3");
        check(80, 4000, (81, 4000));
        check(1, 40, (2, 40));
        check(3, 1, (4, 3));
        for (term, epoch) in [(1, 2), (1, 1), (1, u64::MAX), (u64::MAX, 9)] {
            assert!(leap(&now, Mark { term, epoch }).is_empty());
        }
    }

    #[test]
    fn what_is_as_wanted_is_not_committed() {
        let now = cluster();
        assert!(update_group(&now, &id("g1"), "", 0).unwrap().is_empty());
        assert!(update_server(&now, &addr(7001), "", 0).unwrap().is_empty());
        let again = assign_slots(&now, &slots(5..8, "g1"), 0).unwrap();
        assert!(again.is_empty());
    }

    #[test]
    fn a_request_id_works_once() {
        let request = |content| Request {
            id: "r1".to_owned(),
            content,
        };
        let now = cluster();
        let decide = |now: &Snapshot| delete_group(now, &id("g2"), 0);
        let now = now.after(&once(&now, &request(1), decide).unwrap());
        assert!(once(&now, &request(1), decide).unwrap().is_empty());
        refused(
            once(&now, &request(2), decide),
            Reason::RequestIdReused,
            "r1",
        );
    }
}
