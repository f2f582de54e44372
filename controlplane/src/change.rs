//! The decisions: whether a mutation is allowed, and what it changes.
//!
//! Each is a pure function of a snapshot and a request that was parsed before. The store runs it
//! against the newest snapshot, one at a time, so that what was checked still holds when it is
//! committed. It may run more than once, and leaves no trace of its own.
//!
//! Nothing here asks a server, a clock or a proxy: what they said comes in as an argument.

use std::{collections::BTreeMap, num::NonZeroU32};

use proto::{
    GroupId, MigrationId, ProxyId, SLOT_COUNT, ServerAddr, Slot, SlotRange, SlotSet,
    reason::Reason, slot,
};

use crate::{
    assign,
    backup::Backup,
    events::{Draft, Kind},
    fence::Mark,
    migration::{Advance, Manner, Migration, Phase, Wish},
    model::{Group, Head, Registration, Request, Role, Server, SlotMap},
    rebalance::{self, Load},
    snapshot::Snapshot,
};

/// How many migrations that are over are kept.
const MIGRATIONS_KEPT: usize = 100;

/// How many proxies may be registered.
pub const PROXIES_MAX: usize = 4096;

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

/// Checks what can be checked of a new group before its servers are asked.
pub fn may_create_group<'a>(
    now: &Snapshot,
    id: &GroupId,
    servers: impl IntoIterator<Item = &'a ServerAddr>,
) -> Result<(), Refusal> {
    if now.groups.contains_key(id) {
        return Err(Refusal::new(
            Reason::GroupExists,
            format!("group {id} exists already"),
        ));
    }
    if now.groups.len() >= SLOT_COUNT {
        return Err(Refusal::field(
            "id",
            format!("there are {SLOT_COUNT} groups already, as many as slots"),
        ));
    }
    servers
        .into_iter()
        .try_for_each(|address| is_new(now, address))
}

/// A new group, with the servers that were admitted to it.
pub fn create_group(now: &Snapshot, group: &Group) -> Decision {
    may_create_group(now, &group.id, group.servers.iter().map(|s| &s.address))?;
    for server in &group.servers {
        is_another_process(now, server)?;
    }
    let servers = count(group.servers.len(), "server");
    let created = Draft::new(
        format!("group/{}", group.id),
        Kind::GroupCreated,
        format!("group {} was created with {servers}", group.id),
    );
    let joined = group.servers.iter().map(|s| server_created(&group.id, s));
    Ok(Change {
        edits: vec![Edit::PutGroup(group.clone())],
        request: None,
        events: std::iter::once(created).chain(joined).collect(),
    })
}

/// Another description for a group.
pub fn update_group(
    now: &Snapshot,
    id: &GroupId,
    description: &str,
    expected_revision: u64,
) -> Decision {
    let group = find_group(now, id)?;
    at_revision(&format!("group {id}"), group.revision, expected_revision)?;
    if group.description == description {
        return Ok(Change::default());
    }
    Ok(Change::one(
        Edit::PutGroup(Group {
            description: description.to_owned(),
            ..group.clone()
        }),
        Draft::new(
            format!("group/{id}"),
            Kind::GroupUpdated,
            format!("the description of group {id} was changed"),
        ),
    ))
}

/// The end of a group that owns no slots.
pub fn delete_group(now: &Snapshot, id: &GroupId, expected_revision: u64) -> Decision {
    let group = find_group(now, id)?;
    at_revision(&format!("group {id}"), group.revision, expected_revision)?;
    let owned = now.slots.count(id);
    if owned > 0 {
        return Err(Refusal::new(
            Reason::GroupOwnsSlots,
            format!(
                "group {id} owns {}: move them to other groups first (`sluice migration create`)",
                count(owned, "slot")
            ),
        ));
    }
    let taking = now.moving().find(|m| m.source == *id || m.target == *id);
    if let Some(Migration { id: migration, .. }) = taking.map(|m| &**m) {
        return Err(Refusal::new(
            Reason::GroupInMigration,
            format!(
                "group {id} takes part in migration {migration}: wait for its end, or cancel it"
            ),
        ));
    }
    Ok(Change::one(
        Edit::RemoveGroup(id.clone()),
        Draft::new(
            format!("group/{id}"),
            Kind::GroupDeleted,
            format!("group {id} was deleted; its servers run on"),
        ),
    ))
}

/// Checks what can be checked of a new server before it is asked. Returns the group it joins.
pub fn may_create_server<'a>(
    now: &'a Snapshot,
    group: &GroupId,
    address: &ServerAddr,
    expected_revision: u64,
) -> Result<&'a Group, Refusal> {
    let found = find_group(now, group)?;
    at_revision(&format!("group {group}"), found.revision, expected_revision)?;
    is_new(now, address)?;
    Ok(found)
}

/// One more replica, which was admitted.
pub fn create_server(
    now: &Snapshot,
    group: &GroupId,
    server: &Server,
    expected_revision: u64,
) -> Decision {
    let found = may_create_server(now, group, &server.address, expected_revision)?;
    is_another_process(now, server)?;
    let servers = [found.servers.clone(), vec![server.clone()]].concat();
    Ok(Change::one(
        Edit::PutGroup(Group::new(
            group.clone(),
            found.description.clone(),
            servers,
        )),
        server_created(group, server),
    ))
}

/// Another zone for a server.
pub fn update_server(
    now: &Snapshot,
    address: &ServerAddr,
    zone: &str,
    expected_revision: u64,
) -> Decision {
    let (group, server) = find_server(now, address)?;
    at_revision(
        &format!("group {}", group.id),
        group.revision,
        expected_revision,
    )?;
    if server.zone == zone {
        return Ok(Change::default());
    }
    let mut changed = group.clone();
    for server in changed.servers.iter_mut().filter(|s| &s.address == address) {
        zone.clone_into(&mut server.zone);
    }
    let message = match zone {
        "" => format!("server {address} has no zone now"),
        zone => format!("the zone of server {address} is `{zone}` now"),
    };
    Ok(Change::one(
        Edit::PutGroup(changed),
        Draft::new(format!("server/{address}"), Kind::ServerUpdated, message),
    ))
}

/// One replica less.
pub fn delete_server(now: &Snapshot, address: &ServerAddr, expected_revision: u64) -> Decision {
    let (group, server) = find_server(now, address)?;
    let id = &group.id;
    at_revision(&format!("group {id}"), group.revision, expected_revision)?;
    if server.role == Role::Primary {
        return Err(Refusal::new(
            Reason::ServerIsPrimary,
            format!("server {address} is the primary of group {id}: only a replica can be removed"),
        ));
    }
    let mut changed = group.clone();
    changed.servers.retain(|s| &s.address != address);
    Ok(Change::one(
        Edit::PutGroup(changed),
        Draft::new(
            format!("server/{address}"),
            Kind::ServerDeleted,
            format!("server {address} left group {id}; it runs on"),
        ),
    ))
}

/// What is to be assigned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Assignment {
    /// These slots to these groups; no slot twice.
    Slots(Vec<(Slot, GroupId)>),
    /// All slots that no group owns, evenly.
    Even,
}

/// Owners for slots that have none.
pub fn assign_slots(now: &Snapshot, wanted: &Assignment, expected_revision: u64) -> Decision {
    at_revision("the slot map", now.slots.revision, expected_revision)?;
    let wanted = match wanted {
        Assignment::Slots(slots) => slots.clone(),
        Assignment::Even if now.groups.is_empty() => return Err(no_groups()),
        Assignment::Even => assign::even(&now.slots, now.groups.keys()),
    };
    for (_, group) in &wanted {
        find_group(now, group)?;
    }
    are_unowned(&now.slots, &wanted)?;
    let given: Vec<_> = wanted
        .into_iter()
        .filter(|(slot, _)| now.slots.owner(*slot).is_none())
        .collect();
    if given.is_empty() {
        return Ok(Change::default());
    }
    let mut slots = SlotMap::clone(&now.slots);
    for (slot, group) in &given {
        slots.give(*slot, group.clone());
    }
    Ok(Change::one(
        Edit::PutSlots(slots),
        Draft::new(
            "slots",
            Kind::SlotsAssigned,
            format!("assigned slots {}", list(&given)),
        ),
    ))
}

/// A proxy says what it is. Nothing changes if it says what it said before.
pub fn register(now: &Snapshot, proxy: &Registration) -> Decision {
    let id = &proxy.id;
    let known = now.proxies.get(id).is_some_and(|known| {
        **known
            == Registration {
                revision: known.revision,
                ..proxy.clone()
            }
    });
    if known {
        return Ok(Change::default());
    }
    if now.proxies.len() >= PROXIES_MAX && !now.proxies.contains_key(id) {
        return Err(Refusal::new(
            Reason::TooManyProxies,
            format!(
                "{PROXIES_MAX} proxies are registered already: remove those that are gone for good, as \
                 `sluice proxy list` shows"
            ),
        ));
    }
    Ok(Change::one(
        Edit::PutProxy(proxy.clone()),
        Draft::new(
            format!("proxy/{id}"),
            Kind::ProxyRegistered,
            format!("proxy {id} registered with address {}", proxy.address),
        ),
    ))
}

/// A version that a proxy does not have which is to be shut out.
pub fn bar(id: &ProxyId) -> Change {
    let message = format!("proxy {id} is shut out of all servers");
    Change {
        events: vec![Draft::new(
            format!("proxy/{id}"),
            Kind::ProxyShutOut,
            message,
        )],
        ..Change::default()
    }
}

/// The end of a proxy that is gone.
pub fn delete_proxy(
    now: &Snapshot,
    id: &ProxyId,
    expected_revision: u64,
    connected: bool,
) -> Decision {
    let Some(proxy) = now.proxies.get(id) else {
        return Err(proxy_not_found(id));
    };
    at_revision(&format!("proxy {id}"), proxy.revision, expected_revision)?;
    if connected {
        return Err(Refusal::new(
            Reason::ProxyConnected,
            format!("proxy {id} is connected: stop it first"),
        ));
    }
    Ok(Change::one(
        Edit::RemoveProxy(id.clone()),
        Draft::new(
            format!("proxy/{id}"),
            Kind::ProxyDeleted,
            format!("proxy {id} was forgotten"),
        ),
    ))
}

/// A new migration: of slots that all have one owner, to another group. Ids of those that are over and
/// long past are forgotten.
pub fn create_migration(
    now: &Snapshot,
    id: Option<&MigrationId>,
    slots: SlotSet,
    target: &GroupId,
    manner: Manner,
) -> Decision {
    let id = match id {
        Some(id) => id.clone(),
        None => next_id(now),
    };
    if now.migrations.contains_key(&id) {
        let message = format!("migration {id} exists already");
        return Err(Refusal::new(Reason::MigrationExists, message));
    }
    find_group(now, target)?;
    let source = movable(now, &slots, target)?;
    let mut migration = Migration::new(id.clone(), source.clone(), target.clone(), slots);
    migration.manner = manner;
    let over = now.migrations.values().filter(|m| m.is_over());
    let mut over: Vec<_> = over.map(|m| (m.revision, &m.id)).collect();
    over.sort();
    let surplus = (over.len() + 1).saturating_sub(MIGRATIONS_KEPT);
    let forgotten = over.iter().take(surplus);
    let mut edits: Vec<Edit> = forgotten
        .map(|(_, id)| Edit::RemoveMigration((*id).clone()))
        .collect();
    edits.push(Edit::PutMigration(Box::new(migration)));
    let message = format!("migration {id} of slots {slots} from {source} to {target} was created");
    Ok(Change {
        edits,
        request: None,
        events: vec![migration_event(&id, Kind::MigrationCreated, message)],
    })
}

/// Migrations after which each group has its share of what is evened out, by weight. Groups without a weight
/// have 1. Only where nothing moves: what is planned is of what is.
pub fn rebalance(
    now: &Snapshot,
    weights: &BTreeMap<GroupId, u32>,
    load: &Load,
    rate: Option<NonZeroU32>,
) -> Decision {
    for group in weights.keys() {
        find_group(now, group)?;
    }
    if let Some(other) = now.moving().next() {
        return Err(Refusal::new(
            Reason::GroupInMigration,
            format!(
                "migration {} is not over: wait for its end, or cancel it",
                other.id
            ),
        ));
    }
    let weights = all_weights(now, weights);
    if weights.values().all(|weight| *weight == 0) {
        return Err(Refusal::field(
            "weights",
            "at least one group must have a weight above 0",
        ));
    }
    let manner = Manner {
        rate,
        ..Manner::default()
    };
    let mut change = Change::default();
    for (number, planned) in rebalance::plan(&now.slots, &weights, load)
        .into_iter()
        .enumerate()
    {
        let id = MigrationId::new(format!("{}-{}", next_id(now), number + 1));
        let id = id.expect("a letter, digits and one dash");
        let one = create_migration(now, Some(&id), planned.slots, &planned.target, manner)?;
        change.edits.extend(one.edits);
        change.events.extend(one.events);
    }
    Ok(change)
}

/// The weights of all groups: 1 where none is given.
pub fn all_weights(now: &Snapshot, given: &BTreeMap<GroupId, u32>) -> BTreeMap<GroupId, u32> {
    let weight = |group: &GroupId| given.get(group).copied().unwrap_or(1);
    let groups = now.groups.keys();
    groups.map(|group| (group.clone(), weight(group))).collect()
}

/// Another rate for a migration that copies, or is yet to.
pub fn update_migration(
    now: &Snapshot,
    id: &MigrationId,
    rate: Option<NonZeroU32>,
    expected_revision: u64,
) -> Decision {
    let migration = find_migration(now, id)?;
    let what = format!("migration {id}");
    at_revision(&what, migration.revision, expected_revision)?;
    if migration.manner.rate == rate {
        return Ok(Change::default());
    }
    match migration.phase {
        Phase::Pending | Phase::Copying { .. } | Phase::CuttingOver { .. } => {}
        Phase::Committed
        | Phase::Reaping { .. }
        | Phase::Aborting { .. }
        | Phase::Succeeded
        | Phase::Cancelled
        | Phase::Failed { .. } => {
            let message = format!("migration {id} copies nothing any more");
            return Err(Refusal::new(Reason::MigrationTooFar, message));
        }
    }
    let mut next = migration.clone();
    next.manner.rate = rate;
    let message = match rate {
        Some(rate) => format!("migration {id} copies {rate} keys a second at most"),
        None => format!("migration {id} copies as many keys a second as the source bears"),
    };
    Ok(Change::one(
        Edit::PutMigration(Box::new(next)),
        migration_event(id, Kind::MigrationUpdated, message),
    ))
}

/// Another wish for a migration that is not over.
pub fn wish(now: &Snapshot, id: &MigrationId, wish: Wish, expected_revision: u64) -> Decision {
    let migration = find_migration(now, id)?;
    at_revision(
        &format!("migration {id}"),
        migration.revision,
        expected_revision,
    )?;
    if migration.wish == wish {
        return Ok(Change::default());
    }
    let too_far = |message: String| Err(Refusal::new(Reason::MigrationTooFar, message));
    if migration.is_over() {
        return too_far(format!("migration {id} is over"));
    }
    match (migration.wish, wish, &migration.phase) {
        (Wish::Cancel, Wish::Run | Wish::Pause, _) => {
            return too_far(format!("migration {id} is being cancelled"));
        }
        (_, Wish::Cancel, Phase::Committed | Phase::Reaping { .. }) => {
            return too_far(format!(
                "migration {id} has moved all its slots: move them back by a migration to {}",
                migration.source
            ));
        }
        _ => {}
    }
    let next = Migration {
        wish,
        ..migration.clone()
    };
    let what = match wish {
        Wish::Run => "goes on",
        Wish::Pause => "is to wait",
        Wish::Cancel => "is to end",
    };
    let message = format!("migration {id} {what}");
    Ok(Change::one(
        Edit::PutMigration(Box::new(next)),
        migration_event(id, Kind::MigrationUpdated, message),
    ))
}

/// The next phase of a migration that is still as it was when that was decided. Otherwise nothing.
pub fn advance(now: &Snapshot, id: &MigrationId, seen: u64, advance: &Advance) -> Change {
    let Some(migration) = now.migrations.get(id).filter(|m| m.revision == seen) else {
        return Change::default();
    };
    let Some(next) = migration.after(advance) else {
        return Change::default();
    };
    let mut edits = Vec::new();
    let gained = next.moved.without(&migration.moved);
    if !gained.is_empty() {
        // What the source does not own any more is not its to give.
        if !gained.without(&owned_by(now, &migration.source)).is_empty() {
            return Change::default();
        }
        let mut slots = SlotMap::clone(&now.slots);
        for slot in gained.iter() {
            slots.give(slot, migration.target.clone());
        }
        edits.push(Edit::PutSlots(slots));
    }
    let message = format!("migration {id} {}", next.news(&gained));
    edits.push(Edit::PutMigration(Box::new(next)));
    Change {
        edits,
        request: None,
        events: vec![migration_event(id, Kind::MigrationAdvanced, message)],
    }
}

/// The slots that a group owns.
pub fn owned_by(now: &Snapshot, group: &GroupId) -> SlotSet {
    Slot::all()
        .filter(|slot| now.slots.owner(*slot) == Some(group))
        .collect()
}

/// Who has all these slots, if they can be moved to this target.
fn movable<'a>(
    now: &'a Snapshot,
    slots: &SlotSet,
    target: &GroupId,
) -> Result<&'a GroupId, Refusal> {
    let owned = |slot: Slot| Some((slot, now.slots.owner(slot)?.clone()));
    let owners: Vec<(Slot, GroupId)> = slots.iter().filter_map(owned).collect();
    let refuse = |message: String| Err(Refusal::new(Reason::SlotNotMovable, message));
    if owners.len() < slots.len() {
        return refuse("some of these slots belong to no group: assign them".to_owned());
    }
    if let Some(other) = now.moving().find(|m| m.slots.overlaps(slots)) {
        return refuse(format!("migration {} has some of these slots", other.id));
    }
    let Some(first) = slots.iter().next() else {
        return Err(Refusal::field("slots", "name at least one slot"));
    };
    let source = now.slots.owner(first).expect("all of them have owners");
    if owners.iter().any(|(_, owner)| owner != source) {
        return refuse(format!(
            "these slots have several owners: {}; create a migration for each",
            list(&owners)
        ));
    }
    if source == target {
        return refuse(format!("group {target} owns these slots already"));
    }
    Ok(source)
}

/// `m12`, by the revision that creates it.
fn next_id(now: &Snapshot) -> MigrationId {
    MigrationId::new(format!("m{}", now.head.revision + 1)).expect("a letter and digits")
}

fn migration_event(id: &MigrationId, kind: Kind, message: String) -> Draft {
    Draft::new(format!("migration/{id}"), kind, message)
}

/// Of a request that was taken long ago.
pub fn migration_forgotten() -> Refusal {
    let message = "this request was taken, and the migration that it made is over and forgotten";
    Refusal::new(Reason::MigrationNotFound, message)
}

/// The migration with this id.
pub fn find_migration<'a>(now: &'a Snapshot, id: &MigrationId) -> Result<&'a Migration, Refusal> {
    now.migrations.get(id).map(|m| &**m).ok_or_else(|| {
        Refusal::new(
            Reason::MigrationNotFound,
            format!("there is no migration {id}"),
        )
    })
}

/// The group with this id.
pub fn find_group<'a>(now: &'a Snapshot, id: &GroupId) -> Result<&'a Group, Refusal> {
    now.groups
        .get(id)
        .map(|group| &**group)
        .ok_or_else(|| Refusal::new(Reason::GroupNotFound, format!("there is no group {id}")))
}

/// The server at this address, and its group.
pub fn find_server<'a>(
    now: &'a Snapshot,
    address: &ServerAddr,
) -> Result<(&'a Group, &'a Server), Refusal> {
    now.server(address).ok_or_else(|| {
        Refusal::new(
            Reason::ServerNotFound,
            format!("there is no server {address} in any group"),
        )
    })
}

/// Of a proxy that never registered, or was removed.
pub fn proxy_not_found(id: &ProxyId) -> Refusal {
    Refusal::new(Reason::ProxyNotFound, format!("there is no proxy {id}"))
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

fn is_new(now: &Snapshot, address: &ServerAddr) -> Result<(), Refusal> {
    match now.server(address) {
        None => Ok(()),
        Some((group, _)) => Err(Refusal::new(
            Reason::ServerExists,
            format!("server {address} is in group {} already", group.id),
        )),
    }
}

/// Two admissions at once may have passed with one process under two addresses: here they meet.
fn is_another_process(now: &Snapshot, new: &Server) -> Result<(), Refusal> {
    match now.servers().find(|(_, s)| s.run_id == new.run_id) {
        None => Ok(()),
        Some((group, server)) => Err(same_process(&new.address, &server.address, &group.id)),
    }
}

/// Of a server that is in a group already, under another address.
pub fn same_process(new: &ServerAddr, known: &ServerAddr, group: &GroupId) -> Refusal {
    Refusal::new(
        Reason::ServerExists,
        format!("server {new} is the same process as {known}, which is in group {group} already"),
    )
}

fn server_created(group: &GroupId, server: &Server) -> Draft {
    Draft::new(
        format!("server/{}", server.address),
        Kind::ServerCreated,
        format!(
            "server {} joined group {group} as {}",
            server.address, server.role
        ),
    )
}

fn no_groups() -> Refusal {
    Refusal::new(
        Reason::GroupNotFound,
        "there is no group to assign slots to: create one first",
    )
}

fn are_unowned(map: &SlotMap, wanted: &[(Slot, GroupId)]) -> Result<(), Refusal> {
    let owned: Vec<_> = wanted
        .iter()
        .filter_map(|(slot, group)| Some((*slot, map.owner(*slot)?.clone(), group)))
        .filter(|(_, owner, group)| owner != *group)
        .map(|(slot, owner, _)| (slot, owner))
        .collect();
    if owned.is_empty() {
        return Ok(());
    }
    Err(Refusal::new(
        Reason::SlotOwned,
        format!(
            "owned already: slots {}; owned slots are moved (`sluice migration create`)",
            list(&owned)
        ),
    ))
}

/// `1 server`, `2 servers`.
fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// `0-99 (g1), 512 (g2)`, and how many more ranges there are.
fn list(slots: &[(Slot, GroupId)]) -> String {
    const SHOWN: usize = 16;
    let mut slots = slots.to_vec();
    slots.sort();
    let ranges: Vec<(SlotRange, GroupId)> = slot::ranges(slots);
    let mut text = ranges
        .iter()
        .take(SHOWN)
        .map(|(range, group)| format!("{range} ({group})"))
        .collect::<Vec<_>>()
        .join(", ");
    if ranges.len() > SHOWN {
        text.push_str(&format!(" and {} ranges more", ranges.len() - SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use proto::SlotState;

    use super::*;
    use crate::{
        migration::Ending,
        snapshot::tests::{empty, group, with_groups},
    };

    fn id(text: &str) -> GroupId {
        GroupId::new(text).unwrap()
    }

    fn addr(port: u16) -> ServerAddr {
        ServerAddr::new(format!("127.0.0.1:{port}")).unwrap()
    }

    /// Two groups, of which g1 owns 0-9.
    fn cluster() -> Snapshot {
        let now = with_groups([group("g1", 7000, 1), group("g2", 7100, 0)]);
        now.after(&assign_slots(&now, &slots(0..10, "g1"), 0).unwrap())
    }

    fn slots(numbers: std::ops::Range<u32>, group: &str) -> Assignment {
        let slot = |n| (Slot::new(n).unwrap(), id(group));
        Assignment::Slots(numbers.map(slot).collect())
    }

    fn refused(decision: Decision, reason: Reason, part: &str) {
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
    fn groups_come_and_go() {
        let now = cluster();
        let made = create_group(&now, &group("g3", 7200, 2)).unwrap();
        assert_eq!(made.events.len(), 4);
        assert_eq!(
            made.events[0].message,
            "group g3 was created with 3 servers"
        );
        let alone = create_group(&now, &group("g3", 7200, 0)).unwrap();
        assert_eq!(
            alone.events[0].message,
            "group g3 was created with 1 server"
        );
        assert_eq!(now.after(&made).groups["g3"].servers.len(), 3);
        let gone = delete_group(&now, &id("g2"), 0).unwrap();
        assert!(!now.after(&gone).groups.contains_key("g2"));

        let dup = create_group(&now, &group("g1", 7200, 0));
        refused(dup, Reason::GroupExists, "g1");
        let taken = create_group(&now, &group("g3", 7100, 0));
        refused(taken, Reason::ServerExists, "group g2");
        let owner = delete_group(&now, &id("g1"), 0);
        let part = "10 slots: move them to other groups first";
        refused(owner, Reason::GroupOwnsSlots, part);
        let unknown = delete_group(&now, &id("g9"), 0);
        refused(unknown, Reason::GroupNotFound, "g9");
    }

    #[test]
    fn one_process_under_two_addresses_is_refused() {
        let mut twin = group("g3", 7200, 0);
        twin.servers[0].run_id = "run-7001".to_owned();
        refused(
            create_group(&cluster(), &twin),
            Reason::ServerExists,
            "same process as 127.0.0.1:7001",
        );
    }

    #[test]
    fn servers_come_and_go() {
        let now = cluster();
        let new = Server {
            role: Role::Replica,
            ..group("x", 6999, 0).servers[0].clone()
        };
        let next = now.after(&create_server(&now, &id("g1"), &new, 2).unwrap());
        let order: Vec<u16> = vec![7000, 6999, 7001];
        let servers = next.groups["g1"].servers.iter().map(|s| s.address.clone());
        assert!(servers.eq(order.into_iter().map(addr)));
        let next = next.after(&delete_server(&next, &addr(7001), 0).unwrap());
        assert_eq!(next.groups["g1"].servers.len(), 2);

        let primary = delete_server(&now, &addr(7000), 0);
        refused(primary, Reason::ServerIsPrimary, "g1");
        let unknown = delete_server(&now, &addr(9), 0);
        refused(unknown, Reason::ServerNotFound, "127.0.0.1:9");
        let stale = create_server(&now, &id("g1"), &new, 1);
        refused(stale, Reason::RevisionMismatch, "at revision 2, not 1");
    }

    #[test]
    fn a_zone_is_given_and_taken() {
        let message = |now: &Snapshot, zone: &str| {
            let change = update_server(now, &addr(7001), zone, 0).unwrap();
            (now.after(&change), change.events[0].message.clone())
        };
        let (now, given) = message(&cluster(), "east");
        assert_eq!(given, "the zone of server 127.0.0.1:7001 is `east` now");
        let taken = message(&now, "").1;
        assert_eq!(taken, "server 127.0.0.1:7001 has no zone now");
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
    fn only_unowned_slots_are_assigned() {
        let now = cluster();
        let next = now.after(&assign_slots(&now, &slots(5..20, "g1"), 0).unwrap());
        assert_eq!(next.slots.count(&id("g1")), 20);
        let next = next.after(&assign_slots(&next, &Assignment::Even, 0).unwrap());
        assert_eq!(next.slots.count(&id("g2")), SLOT_COUNT / 2);

        let owned = assign_slots(&now, &slots(5..20, "g2"), 0);
        let part = "slots 5-9 (g1); owned slots are moved";
        refused(owned, Reason::SlotOwned, part);
        let stale = assign_slots(&now, &slots(20..21, "g2"), 77);
        refused(stale, Reason::RevisionMismatch, "the slot map");
        let nobody = assign_slots(&empty(), &Assignment::Even, 0);
        refused(nobody, Reason::GroupNotFound, "create one first");
        let unknown = assign_slots(&now, &slots(20..21, "g9"), 0);
        refused(unknown, Reason::GroupNotFound, "g9");
    }

    #[test]
    fn a_registration_is_committed_when_it_changed() {
        let proxy = Registration {
            id: ProxyId::new("p1").unwrap(),
            revision: 0,
            incarnation: "0".repeat(32),
            address: "127.0.0.1:19000".to_owned(),
            admin_address: String::new(),
            zone: String::new(),
            build_version: "0.1.0".to_owned(),
        };
        let now = empty();
        let now = now.after(&register(&now, &proxy).unwrap());
        assert!(register(&now, &proxy).unwrap().is_empty());
        let restarted = Registration {
            incarnation: "1".repeat(32),
            ..proxy.clone()
        };
        assert!(!register(&now, &restarted).unwrap().is_empty());
        let mut full = now.clone();
        for number in 1..PROXIES_MAX {
            let id = ProxyId::new(format!("other-{number}")).unwrap();
            full.proxies.insert(id, proxy.clone().into());
        }
        let new = Registration {
            id: ProxyId::new("p9").unwrap(),
            ..proxy.clone()
        };
        refused(
            register(&full, &new),
            Reason::TooManyProxies,
            "gone for good",
        );
        assert!(register(&full, &restarted).is_ok());
        let connected = delete_proxy(&now, &proxy.id, 0, true);
        refused(connected, Reason::ProxyConnected, "stop it first");
        let now = now.after(&delete_proxy(&now, &proxy.id, 2, false).unwrap());
        let gone = delete_proxy(&now, &proxy.id, 0, false);
        refused(gone, Reason::ProxyNotFound, "p1");
    }

    /// The cluster with a migration `m1` of 0-4 from g1 to g2.
    fn moving() -> Snapshot {
        let now = cluster();
        let id = MigrationId::new("m1").unwrap();
        let manner = Manner::default();
        let target = self::id("g2");
        now.after(&create_migration(&now, Some(&id), set(0..5), &target, manner).unwrap())
    }

    fn set(numbers: std::ops::Range<u32>) -> SlotSet {
        numbers.map(|n| Slot::new(n).unwrap()).collect()
    }

    fn m1() -> MigrationId {
        MigrationId::new("m1").unwrap()
    }

    #[test]
    fn only_what_can_move_is_moved() {
        let now = moving();
        let migration = &now.migrations[&m1()];
        assert_eq!((migration.source.as_str(), migration.entered), ("g1", 4));
        let create = |id: Option<&str>, slots, target: &str| {
            let id = id.map(|id| MigrationId::new(id).unwrap());
            create_migration(
                &now,
                id.as_ref(),
                slots,
                &self::id(target),
                Manner::default(),
            )
        };
        let next = create(None, set(5..6), "g2").unwrap();
        assert!(now.after(&next).migrations.contains_key("m5"));
        refused(
            create(Some("m1"), set(5..6), "g2"),
            Reason::MigrationExists,
            "m1",
        );
        refused(create(None, set(5..6), "g9"), Reason::GroupNotFound, "g9");
        let taken = create(None, set(4..6), "g2");
        refused(taken, Reason::SlotNotMovable, "migration m1");
        let unowned = create(None, set(9..11), "g2");
        refused(unowned, Reason::SlotNotMovable, "belong to no group");
        let own = create(None, set(5..6), "g1");
        refused(own, Reason::SlotNotMovable, "owns these slots already");
        let now = now.after(&assign_slots(&now, &slots(10..12, "g2"), 0).unwrap());
        let both = create_migration(&now, None, set(9..11), &id("g1"), Manner::default());
        refused(
            both,
            Reason::SlotNotMovable,
            "several owners: 9 (g1), 10 (g2)",
        );
        let group = delete_group(&now, &id("g2"), 0);
        refused(group, Reason::GroupOwnsSlots, "2 slots");
    }

    #[test]
    fn a_migration_moves_its_slots_with_one_commit() {
        let mut now = moving();
        let mut step = |advance_to: &Advance| {
            let seen = now.migrations[&m1()].revision;
            let stale = advance(&now, &m1(), seen + 1, advance_to);
            assert!(stale.is_empty(), "{advance_to:?} by another record");
            now = now.after(&advance(&now, &m1(), seen, advance_to));
            now.clone()
        };
        let copying = step(&Advance::Copy);
        let target = || id("g2");
        let slot = |n| Slot::new(n).unwrap();
        assert_eq!(
            copying.state(slot(0)),
            SlotState::Copying { target: target() }
        );
        assert_eq!(copying.state(slot(5)), SlotState::Serving);
        let held = step(&Advance::Hold(set(0..3)));
        let target = Some(target());
        assert_eq!(held.state(slot(0)), SlotState::Held { target });
        assert_eq!(held.slots.count(&id("g2")), 0);
        let same = step(&Advance::Reap); // does not follow
        assert_eq!(same.migrations, held.migrations);
        let moved = step(&Advance::Commit);
        assert_eq!(moved.slots.count(&id("g2")), 3);
        assert_eq!(moved.slots.owner(slot(2)), Some(&id("g2")));
        assert_eq!(moved.state(slot(2)), SlotState::Serving);
        assert_eq!(moved.fault(), None);
        let migration = &moved.migrations[&m1()];
        assert_eq!(
            (migration.moved, migration.entered),
            (set(0..3), moved.head.revision)
        );
    }

    #[test]
    fn a_rate_is_changed_as_long_as_keys_are_copied() {
        let now = moving();
        let rate = NonZeroU32::new(9);
        let change = update_migration(&now, &m1(), rate, 0).unwrap();
        let next = now.after(&change);
        assert_eq!(next.migrations[&m1()].manner.rate, rate);
        assert!(update_migration(&next, &m1(), rate, 0).unwrap().is_empty());
        let stale = update_migration(&next, &m1(), None, 1);
        refused(stale, Reason::RevisionMismatch, "m1");
        let next = now.after(&wish(&now, &m1(), Wish::Cancel, 0).unwrap());
        let seen = next.migrations[&m1()].revision;
        let ended = Advance::Abort(Ending::Cancelled);
        let next = next.after(&advance(&next, &m1(), seen, &ended));
        let over = update_migration(&next, &m1(), rate, 0);
        refused(over, Reason::MigrationTooFar, "copies nothing");
    }

    #[test]
    fn groups_are_evened_out_where_nothing_moves() {
        let now = cluster();
        let change = rebalance(&now, &BTreeMap::new(), &Load::Slots, NonZeroU32::new(7)).unwrap();
        let next = now.after(&change);
        let planned: Vec<_> = next.moving().map(|m| (m.id.as_str(), m.slots)).collect();
        assert_eq!(planned, [("m4-1", set(5..10))]);
        assert!(next.moving().all(|m| m.manner.rate == NonZeroU32::new(7)));
        let again = rebalance(&next, &BTreeMap::new(), &Load::Slots, None);
        refused(
            again,
            Reason::GroupInMigration,
            "migration m4-1 is not over",
        );
        let unknown = rebalance(&now, &BTreeMap::from([(id("g9"), 1)]), &Load::Slots, None);
        refused(unknown, Reason::GroupNotFound, "g9");
        let nobody = BTreeMap::from([(id("g1"), 0), (id("g2"), 0)]);
        refused(
            rebalance(&now, &nobody, &Load::Slots, None),
            Reason::InvalidField,
            "above 0",
        );
        let as_it_is = BTreeMap::from([(id("g2"), 0)]);
        assert!(
            rebalance(&now, &as_it_is, &Load::Slots, None)
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn wishes_end_where_there_is_no_way_back() {
        let mut now = moving();
        let paused = wish(&now, &m1(), Wish::Pause, 0).unwrap();
        assert_eq!(paused.events[0].message, "migration m1 is to wait");
        now = now.after(&paused);
        assert!(wish(&now, &m1(), Wish::Pause, 0).unwrap().is_empty());
        refused(
            wish(&now, &m1(), Wish::Run, 1),
            Reason::RevisionMismatch,
            "m1",
        );
        let unknown = MigrationId::new("m2").unwrap();
        refused(
            wish(&now, &unknown, Wish::Run, 0),
            Reason::MigrationNotFound,
            "m2",
        );
        let group = delete_group(&now, &id("g2"), 0);
        refused(group, Reason::GroupInMigration, "migration m1");
        for to in [Advance::Copy, Advance::Hold(set(0..5)), Advance::Commit] {
            let seen = now.migrations[&m1()].revision;
            now = now.after(&advance(&now, &m1(), seen, &to));
        }
        let late = wish(&now, &m1(), Wish::Cancel, 0);
        refused(late, Reason::MigrationTooFar, "by a migration to g1");
    }

    #[test]
    fn what_is_over_is_forgotten_in_the_end() {
        let mut now = cluster();
        for n in 0..MIGRATIONS_KEPT + 2 {
            let id = MigrationId::new(format!("m{n}")).unwrap();
            let made = create_migration(
                &now,
                Some(&id),
                set(0..1),
                &self::id("g2"),
                Manner::default(),
            );
            now = now.after(&made.unwrap());
            let seen = now.migrations[&id].revision;
            now = now.after(&advance(
                &now,
                &id,
                seen,
                &Advance::Abort(Ending::Cancelled),
            ));
        }
        assert_eq!(now.migrations.len(), MIGRATIONS_KEPT);
        assert!(!now.migrations.contains_key("m1"));
        assert!(now.migrations.contains_key("m2"));
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
