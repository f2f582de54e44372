//! Where a request goes: a pure decision from the request and the topology.
//!
//! Knows slots and groups, and no sockets: what a group's servers are and how they are reached is
//! `backend`'s.

#![warn(clippy::wildcard_enum_match_arm)]

use proto::{
    Slot, SlotState, Topology,
    seeded::{self, Bug},
    slot::RESERVED,
};

use crate::{
    command::{Across, Asked, Bound, Class, Command, Local, Merge, PubSub, Split, flag},
    resp::Request,
};

mod sort;

/// What is to be done with a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// The proxy answers it.
    Local(Local),
    /// All workers of the proxy answer it.
    Crew(Asked),
    /// The proxy is asked to tell of changes.
    Tracking,
    /// One group answers it; its index in the topology.
    Forward(u16),
    /// The same, by a cursor that may be another's; its index in the topology.
    Elements(u16),
    /// Several groups answer for some of its keys each.
    Split(Split),
    /// All groups that own slots answer it.
    Everywhere(Merge),
    /// It is asked of groups in a way of its own.
    Across(Across),
    /// The proxy and the homes of channels answer it.
    PubSub(PubSub),
    /// One group answers it, on a connection of the session's own: it may make that wait.
    Block(Slot, u16),
    /// It begins or ends a transaction, or says what one depends on.
    Transaction(Bound),
    /// All groups that own slots tell what their replicas have.
    Replicas,
    /// One of its slots is held: it waits for the next topology.
    Hold,
    /// It is answered with an error, and sent nowhere.
    Reject(Rejection),
}

/// Why a request goes nowhere. None of these was executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rejection {
    /// Its keys lie in several slots, and it is not one that is split.
    CrossSlot,
    /// No group owns the slot.
    NotServed(Slot),
    /// One of its keys is Sluice's own.
    Reserved,
    /// The keys by which it sorts may lie in several slots.
    SortsBy,
    /// So may the keys that it gets.
    SortGets,
    /// Clients may not call it.
    Unknown,
}

/// Decides. The request has been checked to have as many arguments as the command must.
#[inline]
pub fn route(command: &Command, request: &Request<'_>, topology: &Topology) -> Route {
    match command.class {
        Class::Local(local) | Class::Container(Some(local)) => Route::Local(local),
        Class::Crew(what) => Route::Crew(what),
        Class::Tracking => Route::Tracking,
        Class::Forward => one_slot(command, request, topology),
        Class::Elements => match slot_of(command, request) {
            Ok(slot) => match Owner::of(Some(slot), topology) {
                Owner::Serves(group) => Route::Elements(group),
                Owner::Held => Route::Hold,
                Owner::Missing(why) => Route::Reject(why),
            },
            Err(why) => Route::Reject(why),
        },
        Class::Sort => match denied(command, request) {
            Some(why) => Route::Reject(why),
            None => one_slot(command, request, topology),
        },
        Class::PubSub(verb) => Route::PubSub(verb),
        Class::Replicas => Route::Replicas,
        Class::Transaction(bound) => Route::Transaction(bound),
        Class::Everywhere(merge) => everywhere(command, merge, topology),
        // Whom it could ask is a part of what it says.
        Class::Across(Across::Info) => Route::Across(Across::Info),
        Class::Across(across) => match topology.owners().next() {
            Some(_) => Route::Across(across),
            None => Route::Reject(Rejection::NotServed(KEYLESS)),
        },
        Class::Split(split) => many_slots(command, split, request, topology),
        // `command::find` finds none of these; what is not known to be harmless is not sent.
        Class::Container(None) | Class::Denied(_) => Route::Reject(Rejection::Unknown),
    }
}

#[inline]
fn one_slot(command: &Command, request: &Request<'_>, topology: &Topology) -> Route {
    let slot = match slot_of(command, request) {
        Ok(slot) => slot,
        Err(why) => return Route::Reject(why),
    };
    let route = to_owner(slot, topology);
    if seeded::has(Bug::ReadsNotHeld)
        && route == Route::Hold
        && command.flags & flag::WRITE == 0
        && let Some(group) = topology.route(slot).group
    {
        return Route::Forward(group);
    }
    if let Route::Forward(group) = route
        && command.blocks(request)
    {
        return Route::Block(slot, group);
    }
    route
}

/// The one slot of all keys of a request. Without a key (a script that names none, HELP of a subcommand,
/// a malformed count) any group can answer; it is always the same one.
#[inline]
pub fn slot_of(command: &Command, request: &Request<'_>) -> Result<Slot, Rejection> {
    if !command.has_one_key() {
        return slot_of_all(command, request);
    }
    let key = request.arg(1);
    let slot = Slot::of_key(key);
    if slot == Slot::OF_RESERVED && key.starts_with(RESERVED) {
        return Err(Rejection::Reserved);
    }
    Ok(slot)
}

/// The same, wherever the keys are.
#[inline(never)] // large, and less often called
fn slot_of_all(command: &Command, request: &Request<'_>) -> Result<Slot, Rejection> {
    let mut slot = None;
    let mut same = true;
    command.visit_keys(request, |index| {
        let of_key = Slot::of_key(request.arg(index));
        same &= *slot.get_or_insert(of_key) == of_key;
    });
    if !same {
        return Err(Rejection::CrossSlot);
    }
    if slot == Some(Slot::OF_RESERVED) && names_reserved(command, request) {
        return Err(Rejection::Reserved);
    }
    Ok(slot.unwrap_or(KEYLESS))
}

/// Why a request that sorts is refused for its patterns, if it is, and its keys are no reason before.
pub fn denied(command: &Command, request: &Request<'_>) -> Option<Rejection> {
    match (command.class, slot_of(command, request)) {
        (Class::Sort, Ok(slot)) => sort::stray(request, slot),
        (_, Ok(_) | Err(_)) => None,
    }
}

/// Whether one of its keys is Sluice's own. Only worth asking if one is in [`Slot::OF_RESERVED`].
#[cold]
pub fn names_reserved(command: &Command, request: &Request<'_>) -> bool {
    let mut reserved = false;
    command.visit_keys(request, |index| {
        reserved |= request.arg(index).starts_with(RESERVED);
    });
    reserved
}

/// The slot whose owner answers what has no key.
const KEYLESS: Slot = Slot::new(0).expect("0 is a slot");

/// Who answers for one slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// This group; its index in the topology.
    Serves(u16),
    /// The slot is held: whoever asks waits for the next topology.
    Held,
    /// Nobody.
    Missing(Rejection),
}

impl Owner {
    /// Of a slot, or of what has no key.
    #[inline]
    pub fn of(slot: Option<Slot>, topology: &Topology) -> Self {
        let slot = slot.unwrap_or(KEYLESS);
        let route = topology.route(slot);
        match (route.group, route.state) {
            (None, _) => Self::Missing(Rejection::NotServed(slot)),
            (Some(_), SlotState::Held { .. }) => Self::Held,
            (Some(group), SlotState::Serving | SlotState::Copying { .. }) => Self::Serves(group),
        }
    }
}

/// Decides for what concerns one slot, whatever it is.
#[inline]
fn to_owner(slot: Slot, topology: &Topology) -> Route {
    match Owner::of(Some(slot), topology) {
        Owner::Serves(group) => Route::Forward(group),
        Owner::Held => Route::Hold,
        Owner::Missing(why) => Route::Reject(why),
    }
}

/// What may change any key waits while a slot is held, as a request for each slot would.
#[inline(never)] // as above
fn everywhere(command: &Command, merge: Merge, topology: &Topology) -> Route {
    let is_held = |slot| topology.route(slot).state.is_held();
    if topology.owners().next().is_none() {
        Route::Reject(Rejection::NotServed(KEYLESS))
    } else if command.flags & flag::WRITE != 0 && Slot::all().any(is_held) {
        Route::Hold
    } else {
        Route::Everywhere(merge)
    }
}

/// If one group owns all keys it gets the request as it is, whatever their slots.
#[inline(never)] // as above
fn many_slots(
    command: &Command,
    split: Split,
    request: &Request<'_>,
    topology: &Topology,
) -> Route {
    let mut whole: Option<Route> = None;
    command.visit_keys(request, |index| {
        let slot = Slot::of_key(request.arg(index));
        let one = if slot == Slot::OF_RESERVED && request.arg(index).starts_with(RESERVED) {
            Route::Reject(Rejection::Reserved)
        } else {
            to_owner(slot, topology)
        };
        whole = Some(match (whole, one) {
            // An error is certain, whatever the others are; a held slot may yet be served.
            (Some(Route::Reject(rejection)), _) | (_, Route::Reject(rejection)) => {
                Route::Reject(rejection)
            }
            (Some(Route::Hold), _) | (_, Route::Hold) => Route::Hold,
            (None, one) => one,
            (Some(before), one) if before == one => one,
            (Some(_), _) => Route::Split(split),
        });
    });
    whole.unwrap_or_else(|| to_owner(KEYLESS, topology))
}

#[cfg(test)]
mod tests {
    use proto::{ClusterId, Group, GroupId, ServerAddr, Version};

    use super::*;
    use crate::{
        command,
        resp::{Limits, Progress, split_inline},
    };

    /// g1 owns 0 to 511, g2 the rest; 289 (`foo`) is held, 76 (`a{b`) is nobody's.
    fn topology() -> Topology {
        let group = |id: &str, port: u16| Group {
            id: GroupId::new(id).unwrap(),
            primary: ServerAddr::new(format!("127.0.0.1:{port}")).unwrap(),
            replicas: Vec::new(),
        };
        Topology::new(
            ClusterId::new("c").unwrap(),
            Version {
                leader_term: 1,
                epoch: 1,
            },
            [group("g1", 1), group("g2", 2)],
            |slot| match slot.number() {
                76 => (None, SlotState::Serving),
                n => (
                    Some(GroupId::new(if n < 512 { "g1" } else { "g2" }).unwrap()),
                    if n == 289 {
                        SlotState::Held { target: None }
                    } else {
                        SlotState::Serving
                    },
                ),
            },
        )
        .unwrap()
    }

    fn check(line: &str, expected: Route) {
        let raw = split_inline(line.as_bytes()).unwrap();
        let limits = Limits {
            args: 99,
            arg_bytes: 99,
            request_bytes: 9999,
        };
        let mut args = Vec::new();
        Progress::default()
            .scan(&raw, &mut args, &limits, true)
            .unwrap();
        let request = Request::new(&raw, &args);
        let command = command::find(&request).unwrap();
        assert_eq!(route(command, &request, &topology()), expected, "{line}");
    }

    #[test]
    fn requests_go_where_their_keys_are() {
        // 123456789 is in slot 294 (g1); a in 579, user:1000 in 995, {user1000} in 870 (g2).
        check("get 123456789", Route::Forward(0));
        check("get a", Route::Forward(1));
        check("get foo", Route::Hold);
        check(
            "get a{b",
            Route::Reject(Rejection::NotServed(Slot::new(76).unwrap())),
        );
        check("rename a a", Route::Forward(1));
        check("rename a user:1000", Route::Reject(Rejection::CrossSlot));
        check("rename {user1000}.a {user1000}.b", Route::Forward(1));
        check("mget a user:1000", Route::Forward(1));
        check("mget a 123456789 user:1000", Route::Split(Split::Mget));
        check("mset a 1 123456789 2", Route::Split(Split::Mset));
        check("del a foo 123456789", Route::Hold);
        check(
            "del foo a{b",
            Route::Reject(Rejection::NotServed(Slot::new(76).unwrap())),
        );
        check("eval x 0", Route::Forward(0));
        check("eval x 2 a user:1000", Route::Reject(Rejection::CrossSlot));
        check("xread streams a 0", Route::Forward(1));
        let slot_of_a = Slot::of_key(b"a");
        check("xread block 0 streams a 0", Route::Block(slot_of_a, 1));
        check("blpop a 0", Route::Block(slot_of_a, 1));
        check("blmpop 0 1 a left", Route::Block(slot_of_a, 1));
        check("blpop a user:1000 0", Route::Reject(Rejection::CrossSlot));
        check("blpop foo 0", Route::Hold);
        check("watch foo a", Route::Transaction(Bound::Watch));
        check("wait 1 0", Route::Replicas);
        check(
            "xread streams block 0",
            Route::Forward(topology_group_of("block")),
        );
        check("hscan a 0", Route::Elements(1));
        check("sscan foo 0", Route::Hold);
        check("ping", Route::Local(Local::Ping));
        check("scan 0", Route::Across(Across::Scan));
        check("sort a by nosort", Route::Forward(1));
        check("sort_ro a get {a}*", Route::Forward(1));
        check("sort a get w_*", Route::Reject(Rejection::SortGets));
        check("sort_ro a by w_*", Route::Reject(Rejection::SortsBy));
        check(
            "sort a by w_* store foo",
            Route::Reject(Rejection::CrossSlot),
        );
    }

    #[test]
    fn keys_that_are_sluices_own_are_refused() {
        let reserved = Route::Reject(Rejection::Reserved);
        for line in [
            "get {sluice}:fence",
            "rename {sluice}a {sluice}:a",
            "eval x 2 {sluice} {sluice}:a",
            "mget a {sluice}:a foo",
            "del foo {sluice}:",
        ] {
            check(line, reserved);
        }
        check("get {sluice}", Route::Forward(0));
        check("mget {sluice}fence x{sluice}:", Route::Forward(0));
        check("eval x 1 a {sluice}:", Route::Forward(1));
    }

    fn topology_group_of(key: &str) -> u16 {
        u16::from(Slot::of_key(key.as_bytes()).number() >= 512)
    }
}
