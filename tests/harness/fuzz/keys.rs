//! `keys`: what a request asks for, and of whom.

use std::sync::LazyLock;

use dataplane::{
    command::{self, Class, Command, Keys, flag},
    resp::{Limits, Progress, Request, Scanned, put_bulk, put_header},
    route::{Rejection, Route, route},
};
use proto::{ClusterId, Group, GroupId, ServerAddr, Slot, SlotState, Topology, Version};

/// Input: the words of a request, a line each. First words that name no command stand for one.
///
/// Every key is an argument behind the name. Where the request goes follows from the slots of its
/// keys, computed here in another way.
pub fn keys(bytes: &[u8]) {
    let words: Vec<&[u8]> = bytes.split(|&b| b == b'\n').collect();
    let command = command_for(&words);
    if !command.accepts(words.len()) {
        return;
    }
    let mut raw = Vec::new();
    put_header(&mut raw, b'*', words.len());
    words.iter().for_each(|word| put_bulk(&mut raw, word));
    let limits = Limits {
        args: u32::MAX,
        arg_bytes: raw.len(),
        request_bytes: raw.len(),
    };
    let mut args = Vec::new();
    let scanned = Progress::default().scan(&raw, &mut args, &limits, true);
    assert_eq!(scanned, Ok(Scanned::Request(raw.len())));
    let request = Request::new(&raw, &args);
    assert!(request.args_from(0).eq(words.iter().copied()));
    check_find(&request);

    let mut keys = Vec::new();
    command.visit_keys(&request, |index| keys.push(index));
    assert!(keys.iter().all(|key| (1..words.len()).contains(key)));
    check_keys(command, &request, &words, &keys);
    let slots: Vec<Slot> = keys.iter().map(|&key| slot(words[key])).collect();
    let reserved = keys.iter().map(|&key| words[key].starts_with(b"{sluice}:"));
    check_route(command, &request, &slots, &reserved.collect::<Vec<_>>());
}

/// What these words call; where that is nothing, some command, so that every input is of use.
pub fn command_for(words: &[&[u8]]) -> &'static Command {
    named(words).unwrap_or_else(|| {
        let sum = words[0].iter().fold(0, |sum, &b| sum + usize::from(b));
        let all: Vec<_> = command::served().collect();
        all[sum % all.len()]
    })
}

/// What clients may call by these words.
fn named(words: &[&[u8]]) -> Option<&'static Command> {
    let is = |own: &str, word: &[u8]| own.as_bytes().eq_ignore_ascii_case(word);
    let mut commands = command::served().filter(|row| row.words().1.is_none());
    let command = commands.find(|row| is(row.name, words[0]))?;
    match words.get(1) {
        Some(word) if matches!(command.class, Class::Container(_)) => command
            .subcommands()
            .find(|row| row.words().1.is_some_and(|own| is(own, word))),
        _ => Some(command),
    }
}

/// What a request calls is found by its hash as it is by looking through the table.
fn check_find(request: &Request<'_>) {
    let words: Vec<&[u8]> = request.args_from(0).collect();
    let name = |command: Option<&Command>| command.map(|command| command.name);
    assert_eq!(name(command::find(request)), name(named(&words)));
}

/// What follows from where a command's keys are said to be.
fn check_keys(command: &Command, request: &Request<'_>, words: &[&[u8]], keys: &[usize]) {
    let number = |at: usize| std::str::from_utf8(words[at]).ok()?.parse::<usize>().ok();
    match command.keys {
        Keys::None | Keys::Channels { .. } => assert!(keys.is_empty()),
        Keys::Range { first, step, .. } => {
            assert_eq!(keys.first(), Some(&(first as usize)));
            assert!(
                keys.windows(2)
                    .all(|pair| pair[1] - pair[0] == usize::from(step))
            );
        }
        Keys::Counted { at, step } if !keys.is_empty() => {
            let (count, all) = (number(at.into()), usize::from(at) + 1..);
            assert_eq!(Some(keys.len()), count);
            assert!(
                keys.iter()
                    .copied()
                    .eq(all.step_by(step.into()).take(keys.len()))
            );
        }
        Keys::StoredCounted if !keys.is_empty() => {
            assert_eq!(Some(keys.len() - 1), number(2));
            assert_eq!(keys[0], 1);
            assert!(keys[1..].iter().copied().eq((3..).take(keys.len() - 1)));
        }
        Keys::Counted { .. } | Keys::StoredCounted => {}
        Keys::Streams => {
            if let Some(&first) = keys.first() {
                assert!(words[first - 1].eq_ignore_ascii_case(b"STREAMS"));
                assert_eq!(words.len() - first, 2 * keys.len());
            }
            if let Some((blocks, streams)) = redis_streams(words) {
                assert_eq!(command.blocks(request), blocks);
                assert!(keys.iter().copied().eq(streams));
            }
        }
        Keys::Sort | Keys::GeoRadius => {
            assert_eq!(keys[0], 1);
            for &key in &keys[1..] {
                let option = words[key - 1].to_ascii_uppercase();
                assert!(option == b"STORE" || option == b"STOREDIST");
            }
        }
    }
}

/// Whether an XREAD or XREADGROUP that Redis would execute waits, and where its keys are, by the loop of
/// `xreadCommand` of Redis 7.0.
fn redis_streams(words: &[&[u8]]) -> Option<(bool, std::ops::Range<usize>)> {
    let mut blocks = false;
    let mut i = 1;
    while i < words.len() {
        let more = words.len() - i - 1;
        match words[i].to_ascii_uppercase().as_slice() {
            b"BLOCK" if more > 0 => {
                blocks = true;
                i += 1;
            }
            b"COUNT" if more > 0 => i += 1,
            b"GROUP" if more > 1 => i += 2,
            b"NOACK" => {}
            b"STREAMS" if more > 0 && more.is_multiple_of(2) => {
                return Some((blocks, i + 1..i + 1 + more / 2));
            }
            _ => return None,
        }
        i += 1;
    }
    None
}

/// The one right answer for keys in these slots.
fn check_route(command: &Command, request: &Request<'_>, slots: &[Slot], reserved: &[bool]) {
    let keyless = [Slot::new(0).expect("0 is a slot")];
    let slots = if slots.is_empty() { &keyless } else { slots };
    let owners: Vec<Option<usize>> = slots.iter().map(|slot| owner(slot.number())).collect();
    let is_held = slots.iter().any(|slot| is_held(slot.number()));
    let got = route(command, request, &TOPOLOGY);
    let expected = match command.class {
        Class::Local(local) | Class::Container(Some(local)) => Route::Local(local),
        Class::Crew(what) => Route::Crew(what),
        Class::PubSub(verb) => Route::PubSub(verb),
        Class::Tracking => Route::Tracking,
        Class::Container(None) | Class::Denied(_) => Route::Reject(Rejection::Unknown),
        Class::Transaction(bound) => Route::Transaction(bound),
        // Some slots of this topology are always held.
        Class::Everywhere(_) if command.flags & flag::WRITE != 0 => Route::Hold,
        Class::Everywhere(merge) => Route::Everywhere(merge),
        Class::Across(across) => Route::Across(across),
        Class::Replicas => Route::Replicas,
        Class::Forward | Class::Sort | Class::Elements
            if slots.iter().any(|slot| *slot != slots[0]) =>
        {
            Route::Reject(Rejection::CrossSlot)
        }
        Class::Forward | Class::Sort | Class::Elements if reserved.contains(&true) => {
            Route::Reject(Rejection::Reserved)
        }
        // What a pattern leads to depends on what stands before its star.
        Class::Sort
            if matches!(got, Route::Reject(Rejection::SortsBy | Rejection::SortGets))
                && request.args_from(2).any(|arg| arg.contains(&b'*')) =>
        {
            got
        }
        Class::Forward | Class::Sort | Class::Elements | Class::Split(_)
            if owners.contains(&None) || reserved.contains(&true) =>
        {
            let is_refused =
                |&key: &usize| owners[key].is_none() || reserved.get(key) == Some(&true);
            let first = (0..owners.len()).find(is_refused).expect("it is there");
            Route::Reject(match reserved.get(first) {
                Some(true) => Rejection::Reserved,
                Some(false) | None => Rejection::NotServed(slots[first]),
            })
        }
        Class::Forward | Class::Sort | Class::Elements | Class::Split(_) if is_held => Route::Hold,
        Class::Split(split) if owners.iter().any(|owner| *owner != owners[0]) => {
            Route::Split(split)
        }
        Class::Forward | Class::Sort | Class::Elements | Class::Split(_) => {
            let group = owners[0].expect("all have one") as u16;
            match command.class {
                Class::Elements => Route::Elements(group),
                Class::Forward if command.blocks(request) => Route::Block(slots[0], group),
                _ => Route::Forward(group),
            }
        }
    };
    assert_eq!(got, expected, "{} of slots {slots:?}", command.name);
}

/// Three groups own every third slot each; every 16th slot is nobody's, every 16th held.
static TOPOLOGY: LazyLock<Topology> = LazyLock::new(|| {
    let group = |n: usize| GroupId::new(format!("g{n}")).expect("a group id");
    let groups = (0..3).map(|n| Group {
        id: group(n),
        primary: ServerAddr::new(format!("127.0.0.1:{}", n + 1)).expect("an address"),
        replicas: Vec::new(),
    });
    let version = Version {
        leader_term: 1,
        epoch: 1,
    };
    let id = ClusterId::new("c").expect("a cluster id");
    Topology::new(id, version, groups, |slot| {
        let state = if is_held(slot.number()) {
            SlotState::Held { target: None }
        } else {
            SlotState::Serving
        };
        (owner(slot.number()).map(group), state)
    })
    .expect("a topology")
});

fn owner(slot: u32) -> Option<usize> {
    (slot % 16 != 5).then_some(slot as usize % 3)
}

fn is_held(slot: u32) -> bool {
    slot % 16 == 9
}

/// Codis's rule, a bit at a time: CRC-32 of what stands between the first `{` and the `}` after it.
fn slot(key: &[u8]) -> Slot {
    let mut tag = key;
    if let Some(open) = key.iter().position(|&b| b == b'{')
        && let Some(len) = key[open..].iter().position(|&b| b == b'}')
    {
        tag = &key[open + 1..open + len];
    }
    let mut crc = u32::MAX;
    for byte in tag {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
    }
    Slot::new(!crc % 1024).expect("a slot")
}
