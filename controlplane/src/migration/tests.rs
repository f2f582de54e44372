//! What is done next, in each phase and for each thing that can be amiss.

use proto::{ServerAddr, Version, settled::StreamKey};

use super::*;

const HOLD: u64 = 12;

fn set(text: &str) -> SlotSet {
    text.parse().unwrap()
}

fn group(id: &str) -> GroupId {
    GroupId::new(id).unwrap()
}

fn migration(phase: Phase) -> Migration {
    Migration {
        phase,
        entered: HOLD,
        ..Migration::new(
            MigrationId::new("m1").unwrap(),
            group("g1"),
            group("g2"),
            set("0-9"),
        )
    }
}

fn copying_phase() -> Migration {
    migration(Phase::Copying { given_up: None })
}

fn cutting_over_phase() -> Migration {
    migration(Phase::CuttingOver {
        batch: set("0-9"),
        given_up: None,
    })
}

fn connection(client_id: u64) -> Connection {
    Connection {
        server: ServerAddr::new("127.0.0.1:7000").unwrap(),
        run_id: "0".repeat(40),
        client_id,
    }
}

fn settled(lost: Lost, streams: Streams) -> Settled {
    Settled {
        version: Version {
            leader_term: 3,
            epoch: HOLD,
        },
        group: group("g1"),
        lost,
        streams,
    }
}

fn nothing() -> Streams {
    Streams::These(BTreeSet::new())
}

/// A proxy that has switched and settled, with nothing lost.
fn answer(name: &str) -> Answer {
    Answer {
        id: ProxyId::new(name).unwrap(),
        connected: true,
        switched: HOLD,
        settled: Some(settled(Lost::These(BTreeSet::new()), nothing())),
    }
}

fn proxies(names: &[&str]) -> BTreeMap<Incarnation, Answer> {
    let named = |name: &&str| ((*name).to_owned(), answer(name));
    names.iter().map(named).collect()
}

fn incarnations(names: &[&str]) -> BTreeSet<Incarnation> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// So many dirty keys of each of some slots.
fn dirt(counts: &[(&str, u64)]) -> Tally {
    let mut dirt = Tally::default();
    for (slots, keys) in counts {
        set(slots).iter().for_each(|slot| dirt.add(slot, *keys));
    }
    dirt
}

/// A copy that follows since a moment ago, and has so many small keys to copy again.
fn following(counts: &[(&str, u64)]) -> Copying {
    Copying::Following {
        since: Duration::ZERO,
        dirt: dirt(counts),
        slow: SlotSet::EMPTY,
        uncopied: SlotSet::EMPTY,
    }
}

/// Two proxies that have answered all; a fence around the source that spares both; the copy follows.
fn world() -> World {
    World {
        term: 3,
        at_source: set("0-1023"),
        before: None,
        fitness: Fitness::Fit,
        claims: Claims {
            source: true,
            target: true,
        },
        copy: following(&[]),
        census: Some(incarnations(&["p1", "p2"])),
        is_census_old: false,
        returning: false,
        proxies: proxies(&["p1", "p2"]),
        fence: Some(Fenced {
            term: 3,
            epoch: HOLD,
            spared: incarnations(&["p1", "p2"]),
            hit: false,
            closed: BTreeSet::new(),
        }),
        notes_lost: false,
        needs_notes: false,
        lacks_replica: false,
        replica_behind: false,
        absent: Vec::new(),
        in_phase: Duration::ZERO,
        is_clean: false,
        is_reaped: false,
    }
}

fn check(m: &Migration, change: impl FnOnce(&mut World), expected: Step) {
    let mut w = world();
    change(&mut w);
    assert_eq!(next_step(m, &w), expected);
}

fn proxy<'a>(w: &'a mut World, name: &str) -> &'a mut Answer {
    w.proxies.get_mut(name).unwrap()
}

fn id(name: &str) -> ProxyId {
    ProxyId::new(name).unwrap()
}

#[test]
fn one_that_is_pending_waits_its_turn_and_for_fit_servers() {
    let m = migration(Phase::Pending);
    check(&m, |_| {}, Step::Record(Advance::Copy));
    check(&m, |w| w.fitness = Fitness::Unknown, Step::Examine);
    let unfit = "target 127.0.0.1:7001 has no memory left".to_owned();
    check(
        &m,
        |w| w.fitness = Fitness::Unfit(unfit.clone()),
        Step::Wait(Why::Unfit(unfit.clone())),
    );
    let other = MigrationId::new("m0").unwrap();
    check(
        &m,
        |w| w.before = Some(other.clone()),
        Step::Wait(Why::Turn(other.clone())),
    );
    let wishes = |wish| Migration { wish, ..m.clone() };
    check(&wishes(Wish::Pause), |_| {}, Step::Wait(Why::Paused));
    let cancel = Advance::Abort(Ending::Cancelled);
    assert_eq!(m.after(&cancel).unwrap().phase, Phase::Cancelled);
    check(&wishes(Wish::Cancel), |_| {}, Step::Record(cancel));
}

#[test]
fn a_copy_begins_on_servers_that_are_the_leaders_and_when_proxies_take_notes() {
    let m = copying_phase();
    check(&m, |w| w.claims.source = false, Step::Claim);
    check(&m, |w| w.claims.target = false, Step::Claim);
    check(&m, |w| w.copy = Copying::None, Step::Copy);
    let untold = |w: &mut World| {
        w.copy = Copying::None;
        proxy(w, "p2").settled = None;
    };
    check(&m, untold, Step::Wait(Why::Notes(vec![id("p2")])));
    check(
        &m,
        |w| {
            untold(w);
            w.in_phase = NOTE_DEADLINE;
        },
        Step::Copy,
    );
    check(
        &m,
        |w| {
            untold(w);
            proxy(w, "p2").connected = false;
        },
        Step::Copy,
    );
    check(&m, |w| w.copy = Copying::Underway, Step::Wait(Why::Copy));
}

#[test]
fn a_batch_is_held_when_it_will_be_short() {
    let m = copying_phase();
    check(&m, |_| {}, Step::Record(Advance::Hold(set("0-9"))));
    check(&m, |w| w.census = None, Step::Count);
    let two_away = |w: &mut World| w.census = Some(incarnations(&["p1", "x", "y"]));
    check(&m, two_away, Step::Wait(Why::Away(2)));
    // They may have ended since, and others may have come.
    check(&m, |w| w.is_census_old = true, Step::Count);
    check(
        &m,
        |w| {
            two_away(w);
            w.is_census_old = true;
        },
        Step::Count,
    );
    let away = |returning| {
        move |w: &mut World| {
            proxy(w, "p2").connected = false;
            w.returning = returning;
        }
    };
    check(&m, away(true), Step::Wait(Why::Away(1)));
    check(&m, away(false), Step::Record(Advance::Hold(set("0-9"))));
    check(&m, |w| w.lacks_replica = true, Step::Wait(Why::Replica));
    let once = migration(Phase::Copying {
        given_up: Some((GiveUp::OverBudget, 1)),
    });
    check(&once, |_| {}, Step::Wait(Why::Retry(GiveUp::OverBudget)));
    check(
        &once,
        |w| w.in_phase = pause(1),
        Step::Record(Advance::Hold(set("0-9"))),
    );
    let wishes = |wish| Migration { wish, ..m.clone() };
    check(&wishes(Wish::Pause), |_| {}, Step::Wait(Why::Paused));
    check(
        &wishes(Wish::Cancel),
        |_| {},
        Step::Record(Advance::Abort(Ending::Cancelled)),
    );
}

#[test]
fn the_more_keys_change_the_fewer_slots_are_held() {
    let m = copying_phase();
    let held = |counts: &[(&str, u64)], expected| {
        let hold = Step::Record(Advance::Hold(set(expected)));
        check(&m, |w| w.copy = following(counts), hold);
    };
    held(&[("0-9,500", DIRTY_MAX / 10)], "0-9");
    held(&[("0-9", DIRTY_MAX / 10 + 1)], "0-8");
    held(&[("0-9", DIRTY_MAX)], "0");
    held(&[("0-6", 90), ("7-9", 60)], "7-9");
    let waits = |keys, most| Step::Wait(Why::Dirty { keys, most });
    let too_many = |since| {
        move |w: &mut World| {
            w.copy = Copying::Following {
                since,
                dirt: dirt(&[("0-3,5-9", 1000), ("4", 10)]),
                slow: set("4"),
                uncopied: SlotSet::EMPTY,
            };
        }
    };
    check(&m, too_many(Duration::ZERO), waits(1000, DIRTY_MAX));
    // It may never be fewer.
    check(
        &m,
        too_many(DIRTY_PATIENCE),
        Step::Record(Advance::Hold(set("0"))),
    );
}

#[test]
fn with_a_rate_holds_are_few_and_copy_little() {
    let rated = |rate| {
        let rate = NonZeroU32::new(rate);
        let manner = Manner {
            rate,
            ..Manner::default()
        };
        Migration {
            manner,
            ..copying_phase()
        }
    };
    let at = |in_phase, dirty| {
        move |w: &mut World| {
            w.in_phase = in_phase;
            w.copy = following(&[("0-9", dirty)]);
        }
    };
    let hold = |slots| Step::Record(Advance::Hold(set(slots)));
    let slow = rated(800); // 40 keys in 50 ms
    check(&slow, at(RATED_PAUSE_MAX, 4), hold("0-9"));
    check(&slow, at(RATED_PAUSE_MAX, 20), hold("0-1"));
    let waits = Step::Wait(Why::Dirty { keys: 41, most: 40 });
    check(&slow, at(RATED_PAUSE_MAX, 41), waits);
    check(&rated(1), at(RATED_PAUSE_MAX, 1), hold("0"));
    let pauses = |pause| Step::Wait(Why::Rate(pause));
    for rate in [1, 800] {
        check(&rated(rate), at(RATED, 0), pauses(RATED_PAUSE_MAX));
    }
    // 200 keys of 800 that the rate allows meanwhile.
    let quick = rated(8000);
    let pause = Duration::from_millis(100);
    check(&quick, at(RATED, DIRTY_MAX), pauses(pause));
    check(&quick, at(pause, DIRTY_MAX), hold("0"));
    check(&quick, at(pause, DIRTY_MAX / 2), hold("0-1"));
}

#[test]
fn what_is_not_copied_yet_is_not_held() {
    let m = copying_phase();
    let without = |slots| {
        move |w: &mut World| {
            let Copying::Following { uncopied, .. } = &mut w.copy else {
                unreachable!("it follows");
            };
            *uncopied = set(slots);
        }
    };
    let hold = |slots| Step::Record(Advance::Hold(set(slots)));
    check(&m, without("3-500"), hold("0-2"));
    check(&m, without("0-9"), Step::Wait(Why::Copy));
    // Nor what took too long before all others.
    let deferred = Migration {
        deferred: set("0-2"),
        ..copying_phase()
    };
    check(&deferred, without("3-500"), Step::Wait(Why::Copy));
    check(&deferred, without("4-500"), hold("3"));
    let only = Migration {
        deferred: set("0-9"),
        ..copying_phase()
    };
    check(&only, without("3-500"), hold("0"));
    // But not for ever.
    let late = |w: &mut World| {
        without("0-9")(w);
        w.in_phase = UNCOPIED_PATIENCE;
    };
    check(&m, late, hold("0"));
}

#[test]
fn batches_are_bounded_and_what_takes_long_goes_last_and_alone() {
    let mut m = Migration {
        slots: set("0-299"),
        ..copying_phase()
    };
    let next = |m: &Migration, slow| {
        let ready = m.remaining().without(&set("299"));
        next_batch(m, &Tally::default(), &set(slow), &ready)
    };
    assert_eq!(next(&m, ""), set("0-127"));
    assert_eq!(next(&m, "0-49"), set("50-177"));
    assert_eq!(next(&m, "0-299"), set("0"));
    m.moved = set("0-99");
    m.deferred = set("100-102");
    assert_eq!(next(&m, "100-299"), set("103"));
    assert_eq!(next(&m, "100-298"), set("103"), "299 is not ready");
    assert_eq!(next(&m, ""), set("103-230"));
    m.batch_most = 5;
    assert_eq!(next(&m, ""), set("103-107"));
    m.moved = set("0-99,103-299");
    assert_eq!(next(&m, ""), set("100"));
    m.left = set("100");
    assert_eq!(next(&m, ""), set("101"));
}

#[test]
fn a_hold_is_given_up_when_it_cannot_end_well() {
    let m = cutting_over_phase();
    let give_up = |why| Step::Record(Advance::GiveUp(why));
    check(&m, |w| w.copy = Copying::None, give_up(GiveUp::CopyLost));
    check(
        &m,
        |w| w.copy = Copying::Underway,
        give_up(GiveUp::CopyLost),
    );
    check(
        &m,
        |w| w.in_phase = HOLD_BUDGET,
        give_up(GiveUp::OverBudget),
    );
    check(
        &m,
        |w| w.replica_behind = true,
        give_up(GiveUp::ReplicaBehind),
    );
    let unfenced = |w: &mut World| (w.in_phase, w.fence) = (HOLD_BUDGET, None);
    check(&m, unfenced, give_up(GiveUp::Unfenced));
    let three_silent = |w: &mut World| {
        w.census = Some(incarnations(&["p1", "p2", "x", "y", "z"]));
        w.in_phase = SWITCH_DEADLINE;
    };
    check(&m, three_silent, give_up(GiveUp::Silent { proxies: 3 }));
    let wishes = |wish| Migration { wish, ..m.clone() };
    check(&wishes(Wish::Pause), |_| {}, give_up(GiveUp::Paused));
    check(
        &wishes(Wish::Cancel),
        |_| {},
        Step::Record(Advance::Abort(Ending::Cancelled)),
    );
}

#[test]
fn who_has_not_switched_is_waited_for_and_then_fenced_out() {
    let m = cutting_over_phase();
    let late = |w: &mut World| {
        w.fence = None;
        proxy(w, "p2").switched = HOLD - 1;
    };
    check(&m, late, Step::Wait(Why::Switch(HOLD, vec![id("p2")])));
    let fence = |spare: &[&str], close| Step::Fence {
        epoch: HOLD,
        spare: incarnations(spare),
        close,
    };
    check(
        &m,
        |w| {
            late(w);
            w.in_phase = SWITCH_DEADLINE;
        },
        fence(&["p1"], BTreeSet::new()),
    );
    // One that is connected to nobody is not waited for; what it had at the source is killed.
    check(
        &m,
        |w| {
            late(w);
            proxy(w, "p2").connected = false;
        },
        fence(&["p1"], BTreeSet::new()),
    );
    // All have answered: the fence is raised all the same.
    let all = fence(&["p1", "p2"], BTreeSet::new());
    check(&m, |w| w.fence = None, all.clone());
    for spoil in [
        |fence: &mut Fenced| fence.term = 2,
        |fence: &mut Fenced| fence.epoch = HOLD - 1,
    ] {
        check(&m, |w| spoil(w.fence.as_mut().unwrap()), all.clone());
    }
}

#[test]
fn who_was_spared_has_to_settle_and_what_it_lost_is_closed() {
    let m = cutting_over_phase();
    let wait = Step::Wait(Why::Settle(vec![id("p2")]));
    check(&m, |w| proxy(w, "p2").settled = None, wait.clone());
    // One that was fenced out is not waited for.
    check(
        &m,
        |w| {
            proxy(w, "p2").settled = None;
            w.fence.as_mut().unwrap().spared = incarnations(&["p1"]);
        },
        settle(Streams::Any), // what it has noted nobody knows
    );
    check(
        &m,
        |w| {
            let mut before = settled(Lost::These(BTreeSet::new()), nothing());
            before.version.epoch = HOLD - 1;
            proxy(w, "p2").settled = Some(before);
        },
        wait,
    );
    let lost = BTreeSet::from([connection(7)]);
    let with_lost = |w: &mut World| {
        proxy(w, "p2").settled = Some(settled(Lost::These(lost.clone()), nothing()));
    };
    let fence = |spare: &[&str], close: &BTreeSet<Connection>| Step::Fence {
        epoch: HOLD,
        spare: incarnations(spare),
        close: close.clone(),
    };
    check(&m, with_lost, fence(&["p1", "p2"], &lost));
    check(
        &m,
        |w| {
            with_lost(w);
            w.fence.as_mut().unwrap().closed = lost.clone();
        },
        settle(nothing()),
    );
    // It has lost so many that it cannot be spared.
    let with_many = |w: &mut World| proxy(w, "p2").settled = Some(settled(Lost::Many, nothing()));
    check(&m, with_many, fence(&["p1"], &BTreeSet::new()));
    check(
        &m,
        |w| {
            with_many(w);
            w.fence.as_mut().unwrap().spared = incarnations(&["p1"]);
        },
        settle(nothing()),
    );
}

#[test]
fn what_others_bring_to_a_target_is_counted_once() {
    let other = |id: &str, source: &str, slots: &str, phase| Migration {
        id: MigrationId::new(id).unwrap(),
        source: group(source),
        slots: set(slots),
        ..migration(phase)
    };
    let copying = Phase::Copying { given_up: None };
    let mut half = other("m2", "g3", "100-199", copying.clone());
    half.moved = set("100-149");
    let mut elsewhere = other("m3", "g3", "200-299", copying.clone());
    elsewhere.target = group("g4");
    let others = [
        half,
        elsewhere,
        other("m4", "g3", "300-309", copying),
        other("m5", "g5", "400-409", Phase::Committed),
        other("m0", "g6", "500-509", Phase::Pending),
        other("m9", "g7", "600-609", Phase::Pending),
    ];
    let m = migration(Phase::Pending);
    let expected = BTreeMap::from([
        (group("g3"), set("150-199,300-309")),
        (group("g6"), set("500-509")), // it is older than m1
    ]);
    assert_eq!(brought_besides(&m, others.iter().chain([&m])), expected);
}

#[test]
fn who_does_not_settle_hold_after_hold_is_fenced_out() {
    let held = |tries| {
        let given_up = (tries > 0).then_some((GiveUp::Unsettled { proxies: 1 }, tries));
        let batch = set("0-9");
        migration(Phase::CuttingOver { batch, given_up })
    };
    let unsettled = |in_phase| {
        move |w: &mut World| {
            proxy(w, "p2").settled = None;
            w.in_phase = in_phase;
        }
    };
    let wait = Step::Wait(Why::Settle(vec![id("p2")]));
    let almost = HOLD_BUDGET - Duration::from_millis(1);
    check(&held(UNSETTLED_MAX - 1), unsettled(almost), wait.clone());
    let give_up = Step::Record(Advance::GiveUp(GiveUp::Unsettled { proxies: 1 }));
    check(&held(0), unsettled(HOLD_BUDGET), give_up.clone());
    let m = held(UNSETTLED_MAX);
    check(&m, unsettled(SETTLE_DEADLINE / 2), wait);
    let fence = Step::Fence {
        epoch: HOLD,
        spare: incarnations(&["p1"]),
        close: BTreeSet::new(),
    };
    check(&m, unsettled(SETTLE_DEADLINE), fence.clone());
    check(&m, unsettled(almost), fence);
    check(
        &m,
        |w| {
            unsettled(SETTLE_DEADLINE)(w);
            w.fence.as_mut().unwrap().spared = incarnations(&["p1"]);
        },
        settle(Streams::Any), // what it has noted nobody knows
    );
    // All of them: it is the source that is slow, and the next try comes later yet.
    check(
        &m,
        |w| {
            unsettled(SETTLE_DEADLINE)(w);
            proxy(w, "p1").settled = None;
        },
        Step::Record(Advance::GiveUp(GiveUp::Unsettled { proxies: 2 })),
    );
    // It is no fault of the slots.
    let after = held(UNSETTLED_MAX - 1).after(&Advance::GiveUp(GiveUp::Unsettled { proxies: 2 }));
    let after = after.unwrap();
    assert!(after.deferred.is_empty() && after.left.is_empty());
    let given_up = Some((GiveUp::Unsettled { proxies: 2 }, UNSETTLED_MAX));
    assert_eq!(after.phase, Phase::Copying { given_up });
}

#[test]
fn who_dies_while_it_holds_is_not_waited_for() {
    let m = cutting_over_phase();
    let dead = |w: &mut World, name: &str| {
        let proxy = proxy(w, name);
        (proxy.connected, proxy.settled) = (false, None);
    };
    // Its stream may be back in a moment.
    let wait = Step::Wait(Why::Settle(vec![id("p2")]));
    check(&m, |w| dead(w, "p2"), wait);
    check(
        &m,
        |w| {
            dead(w, "p2");
            w.in_phase = SWITCH_DEADLINE;
        },
        Step::Fence {
            epoch: HOLD,
            spare: incarnations(&["p1"]),
            close: BTreeSet::new(),
        },
    );
    // If it had settled before, all is well.
    check(
        &m,
        |w| {
            proxy(w, "p2").connected = false;
            w.in_phase = SWITCH_DEADLINE;
        },
        settle(nothing()),
    );
    // All at once: it is this controller that is cut off.
    check(
        &m,
        |w| {
            dead(w, "p1");
            dead(w, "p2");
            w.in_phase = SWITCH_DEADLINE;
        },
        Step::Record(Advance::GiveUp(GiveUp::Silent { proxies: 2 })),
    );
}

fn settle(streams: Streams) -> Step {
    Step::Settle {
        slots: set("0-9"),
        hold: HOLD,
        streams,
    }
}

#[test]
fn it_is_committed_when_the_copy_has_settled_in_this_hold() {
    let m = cutting_over_phase();
    check(&m, |_| {}, settle(nothing()));
    let copied = |hold| move |w: &mut World| w.copy = Copying::Settled { hold };
    check(&m, copied(HOLD - 1), settle(nothing()));
    check(&m, copied(HOLD), Step::Record(Advance::Commit));
    // Not without a fence, however well it was copied.
    let unfenced = |w: &mut World| {
        copied(HOLD)(w);
        w.fence.as_mut().unwrap().term = 2;
    };
    let mut w = world();
    unfenced(&mut w);
    assert!(matches!(next_step(&m, &w), Step::Fence { .. }));
}

#[test]
fn streams_are_made_anew_by_what_proxies_have_noted() {
    let m = cutting_over_phase();
    let stream = |key: &[u8]| {
        Streams::These(BTreeSet::from([StreamKey {
            database: 0,
            key: key.to_vec(),
        }]))
    };
    let noted = |w: &mut World| {
        for (name, key) in [("p1", b"a"), ("p2", b"b")] {
            proxy(w, name).settled = Some(settled(Lost::These(BTreeSet::new()), stream(key)));
        }
    };
    check(&m, noted, settle(stream(b"a").and(stream(b"b"))));
    for spoil in [
        |w: &mut World| w.notes_lost = true,
        |w: &mut World| w.fence.as_mut().unwrap().hit = true,
        // It hangs since a hold before, whose fence has closed all that it had.
        |w: &mut World| {
            let hanging = answer("p3");
            w.proxies.insert(
                "p3".to_owned(),
                Answer {
                    switched: 0,
                    settled: None,
                    ..hanging
                },
            );
            w.in_phase = SETTLE_DEADLINE;
        },
        |w: &mut World| {
            proxy(w, "p1").settled = Some(settled(Lost::These(BTreeSet::new()), Streams::Any));
        },
    ] {
        check(
            &m,
            |w| {
                noted(w);
                spoil(w);
            },
            settle(Streams::Any),
        );
        // A copy that depends on notes is worth nothing then.
        let blind = |w: &mut World| {
            noted(w);
            w.needs_notes = true;
            spoil(w);
        };
        check(&m, blind, Step::Record(Advance::GiveUp(GiveUp::Unseen)));
    }
    // Whoever has just come is heard first.
    let comes = |w: &mut World| {
        let new = Answer {
            settled: None,
            ..answer("p3")
        };
        w.proxies.insert("p3".to_owned(), new);
        w.needs_notes = true;
    };
    check(&m, comes, Step::Wait(Why::Settle(vec![id("p3")])));
}

#[test]
fn a_copy_that_depends_on_notes_begins_anew_when_all_proxies_note() {
    let m = copying_phase();
    let blind = |w: &mut World| (w.needs_notes, w.notes_lost) = (true, true);
    check(&m, blind, Step::Copy);
    let absent = |w: &mut World| {
        blind(w);
        w.absent = vec![id("p3")];
    };
    check(&m, absent, Step::Wait(Why::Absent(vec![id("p3")])));
    let late = |w: &mut World| {
        blind(w);
        proxy(w, "p2").settled = None;
        w.in_phase = NOTE_DEADLINE;
    };
    check(&m, late, Step::Wait(Why::Notes(vec![id("p2")])));
    // Of others what is lost matters only to consumer groups.
    let tracked = |w: &mut World| {
        absent(w);
        w.needs_notes = false;
    };
    check(&m, tracked, Step::Record(Advance::Hold(set("0-9"))));
}

#[test]
fn where_notes_are_never_whole_it_fails_with_the_reason() {
    let mut m = cutting_over_phase();
    let mut tries = 0;
    while let Phase::CuttingOver { .. } = m.phase {
        tries += 1;
        m = m.after(&Advance::GiveUp(GiveUp::Unseen)).unwrap();
        m = m.after(&Advance::Hold(set("0-9"))).unwrap_or(m);
    }
    assert_eq!(tries, UNSEEN_MAX + 1);
    let Phase::Aborting {
        then: Ending::Failed { reason },
    } = m.phase
    else {
        panic!("it goes on: {:?}", m.phase);
    };
    assert!(
        reason.contains("proxies could not name them all"),
        "{reason}"
    );
}

#[test]
fn what_was_moved_is_reaped_when_all_proxies_know() {
    let committed = Migration {
        moved: set("0-9"),
        ..migration(Phase::Committed)
    };
    check(&committed, |_| {}, Step::Record(Advance::Reap));
    let late = |w: &mut World| proxy(w, "p1").switched = HOLD - 1;
    check(
        &committed,
        late,
        Step::Wait(Why::Switch(HOLD, vec![id("p1")])),
    );
    check(
        &committed,
        |w| {
            late(w);
            w.in_phase = RELEASE_DEADLINE;
        },
        Step::Record(Advance::Reap),
    );
    let paused = Migration {
        wish: Wish::Pause,
        ..committed.clone()
    };
    check(&paused, |_| {}, Step::Wait(Why::Paused));
    assert_eq!(reapable(&committed, SlotSet::EMPTY), SlotSet::EMPTY);

    let reaping = committed.after(&Advance::Reap).unwrap();
    check(&reaping, |w| w.claims.source = false, Step::Claim);
    check(
        &reaping,
        |w| w.at_source = set("5,10-1023"),
        Step::Reap(set("0-4,6-9")),
    );
    check(&reaping, |w| w.is_reaped = true, Step::Record(Advance::End));
    assert_eq!(
        reaping.after(&Advance::End).unwrap().phase,
        Phase::Succeeded
    );
}

#[test]
fn a_group_takes_part_in_as_many_as_it_may() {
    let made = |name: &str, entered, source, target, phase| Migration {
        id: MigrationId::new(name).unwrap(),
        source: group(source),
        target: group(target),
        entered,
        ..migration(phase)
    };
    let waiting =
        |name, entered, source, target| made(name, entered, source, target, Phase::Pending);
    let running = |name, entered, source, target| {
        made(
            name,
            entered,
            source,
            target,
            Phase::Copying { given_up: None },
        )
    };
    let all = [
        running("a", 9, "g1", "g2"),
        waiting("b", 5, "g3", "g1"),
        waiting("c", 5, "g1", "g4"),
        waiting("d", 6, "g3", "g4"),
        made("e", 1, "g3", "g4", Phase::Succeeded),
    ];
    let turns = |budget| {
        let budget = NonZeroUsize::new(budget).unwrap();
        let waits = |m: &&Migration| m.phase == Phase::Pending;
        let turns = all.iter().filter(waits).map(|m| turn(m, &all, budget));
        turns
            .map(|id| id.map_or("-".to_owned(), String::from))
            .collect::<Vec<_>>()
    };
    assert_eq!(turns(1), ["a", "a", "b"]);
    // One that is older has its place, though it has not begun.
    assert_eq!(turns(2), ["-", "a", "-"]);
    assert_eq!(turns(3), ["-", "-", "-"]);
}

/// However they are looked at, and in whatever order they begin, no group has too many.
#[test]
fn no_two_begin_that_would_be_too_many() {
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..300 {
        let budget = NonZeroUsize::new(rng.usize(1..4)).unwrap();
        let mut all: Vec<Migration> = (0..8)
            .map(|n| {
                let (source, target) = (rng.u32(0..4), rng.u32(4..6));
                Migration {
                    id: MigrationId::new(format!("m{n}")).unwrap(),
                    source: group(&format!("g{source}")),
                    target: group(&format!("g{target}")),
                    entered: rng.u64(1..4),
                    ..migration(Phase::Pending)
                }
            })
            .collect();
        let mut seen = all.clone();
        while all.iter().any(|m| m.phase == Phase::Pending) {
            let may =
                |m: &&mut Migration| m.phase == Phase::Pending && turn(m, &seen, budget).is_none();
            // All that may begin by what was seen do so at once, or some of them.
            let mut some_began = false;
            for m in all.iter_mut().filter(may) {
                if !some_began || rng.bool() {
                    m.phase = Phase::Copying { given_up: None };
                    m.entered = 10;
                    some_began = true;
                }
            }
            for name in (0..6).map(|n| group(&format!("g{n}"))) {
                let busy = all.iter().filter(|m| {
                    matches!(m.phase, Phase::Copying { .. })
                        && [&m.source, &m.target].contains(&&name)
                });
                assert!(busy.count() <= budget.get());
            }
            // One ends now and then, and what was seen may be old.
            if !some_began || rng.bool() {
                let mut running = all.iter_mut();
                let running = running.find(|m| matches!(m.phase, Phase::Copying { .. }));
                if let Some(m) = running {
                    m.phase = Phase::Succeeded;
                }
            }
            if !some_began || rng.bool() {
                seen.clone_from(&all);
            }
        }
    }
}

#[test]
fn a_source_that_is_to_be_kept_is_kept_until_somebody_wants_it_to_go_on() {
    let mut m = migration(Phase::CuttingOver {
        batch: set("0-4"),
        given_up: None,
    });
    m.manner.keep_source = true;
    let part = m.after(&Advance::Commit).unwrap();
    assert_eq!(part.wish, Wish::Run, "{part:?}");
    let rest = part.after(&Advance::Hold(set("5-9"))).unwrap();
    let kept = rest.after(&Advance::Commit).unwrap();
    assert_eq!((&kept.phase, kept.wish), (&Phase::Committed, Wish::Pause));
    check(&kept, |_| {}, Step::Wait(Why::Paused));
    let resumed = Migration {
        wish: Wish::Run,
        ..kept
    };
    check(&resumed, |_| {}, Step::Record(Advance::Reap));
}

/// What was written before migrations had a manner.
#[test]
fn a_record_of_an_older_controller_is_read() {
    let m = migration(Phase::Committed);
    let mut record = serde_json::to_value(&m).unwrap();
    for newer in ["manner", "batch_most"] {
        record.as_object_mut().unwrap().remove(newer).unwrap();
    }
    assert_eq!(serde_json::from_value::<Migration>(record).unwrap(), m);
}

#[test]
fn an_abort_cleans_the_target_and_reaps_what_has_moved() {
    let then = Ending::Cancelled;
    let aborting = migration(Phase::Aborting { then: then.clone() });
    check(&aborting, |w| w.claims.target = false, Step::Claim);
    check(&aborting, |_| {}, Step::Clean(set("0-9")));
    check(&aborting, |w| w.is_clean = true, Step::Record(Advance::End));
    assert_eq!(
        aborting.after(&Advance::End).unwrap().phase,
        Phase::Cancelled
    );
    let partly = Migration {
        moved: set("0-4"),
        ..aborting
    };
    check(&partly, |_| {}, Step::Clean(set("5-9")));
    // What stays was copied, too.
    let left = Migration {
        left: set("9"),
        ..partly.clone()
    };
    check(&left, |_| {}, Step::Clean(set("5-9")));
    check(&partly, |w| w.is_clean = true, Step::Record(Advance::Reap));
    let reaping = partly.after(&Advance::Reap).unwrap();
    assert_eq!(reaping.phase, Phase::Reaping { then: Some(then) });
    check(
        &reaping,
        |w| w.at_source = set("5-1023"),
        Step::Reap(set("0-4")),
    );
}

/// Holds the next batch, of which nothing is dirty.
fn hold_next(m: &Migration) -> Migration {
    let batch = next_batch(m, &Tally::default(), &SlotSet::EMPTY, &m.remaining());
    m.after(&Advance::Hold(batch)).unwrap()
}

/// Gives up a hold for this reason, and holds the next batch, again and again, for so long as it copies.
fn endure(mut m: Migration, why: &GiveUp, most: usize) -> Migration {
    for _ in 0..most {
        m = match m.phase {
            Phase::Copying { .. } => hold_next(&m),
            Phase::CuttingOver { .. } => m.after(&Advance::GiveUp(why.clone())).unwrap(),
            _ => break,
        };
    }
    m
}

#[test]
fn slots_that_take_too_long_are_tried_alone_and_then_left() {
    // By halves first: of ten slots five, then two, then one.
    let m = endure(copying_phase(), &GiveUp::OverBudget, 6);
    assert_eq!((m.batch_most, m.deferred), (1, SlotSet::EMPTY));
    assert_eq!(hold_next(&m).after(&Advance::Commit).unwrap().batch_most, 2);
    let m = endure(m, &GiveUp::OverBudget, 20);
    assert_eq!((m.deferred, m.left), (set("0-9"), SlotSet::EMPTY));
    let m = endure(copying_phase(), &GiveUp::OverBudget, 1000);
    assert_eq!((m.left, m.moved), (set("0-9"), SlotSet::EMPTY));
    let Phase::Aborting {
        then: Ending::Failed { reason },
    } = &m.phase
    else {
        panic!("{:?}", m.phase)
    };
    assert!(reason.starts_with("slots 0-9 stay at g1"), "{reason}");
    assert!((30..60).contains(&m.cut_overs), "{}", m.cut_overs);
    // A replica that is slow is waited for, with as little as can be.
    let behind = endure(copying_phase(), &GiveUp::ReplicaBehind, 1000);
    assert_eq!((behind.deferred, behind.left), (set("0-9"), SlotSet::EMPTY));
    // Which of the two it is does not matter to what takes too long alone.
    let phase = |why| Phase::CuttingOver {
        batch: set("0"),
        given_up: Some((why, TRIES_MAX)),
    };
    let again = Migration {
        deferred: set("0-9"),
        ..migration(phase(GiveUp::ReplicaBehind))
    };
    let left = again
        .after(&Advance::GiveUp(GiveUp::OverBudget))
        .unwrap()
        .left;
    assert_eq!(left, set("0"));
    // Only what took too long is left: others wait for better times.
    let silent = endure(copying_phase(), &GiveUp::Silent { proxies: 3 }, 100);
    assert_eq!(
        (silent.left, silent.deferred),
        (SlotSet::EMPTY, SlotSet::EMPTY)
    );
    assert_eq!(pause(1), Duration::from_secs(1));
    assert_eq!(pause(50), Duration::from_secs(60));
}

#[test]
fn batch_by_batch_all_is_moved() {
    let mut m = Migration {
        slots: set("0-299"),
        ..copying_phase()
    };
    while let Phase::Copying { .. } = m.phase {
        let held = hold_next(&m);
        m = held.after(&Advance::Commit).unwrap();
    }
    assert_eq!(
        (&m.phase, m.moved, m.cut_overs),
        (&Phase::Committed, set("0-299"), 3)
    );
}

#[test]
fn nothing_follows_that_does_not_follow() {
    let phases = [
        Phase::Pending,
        Phase::Copying { given_up: None },
        cutting_over_phase().phase,
        Phase::Committed,
        Phase::Reaping { then: None },
        Phase::Aborting {
            then: Ending::Cancelled,
        },
        Phase::Succeeded,
        Phase::Cancelled,
    ];
    let advances = [
        Advance::Copy,
        Advance::Hold(set("0")),
        Advance::GiveUp(GiveUp::CopyLost),
        Advance::Commit,
        Advance::Abort(Ending::Cancelled),
        Advance::Reap,
        Advance::End,
    ];
    let follows = |phase: &Phase| {
        let m = migration(phase.clone());
        let follows = |advance: &Advance| if m.after(advance).is_some() { 'x' } else { '.' };
        advances.iter().map(follows).collect::<String>()
    };
    let table: Vec<String> = phases.iter().map(follows).collect();
    assert_eq!(
        table,
        [
            "x...x..", // pending: copy, abort
            ".x..x..", // copying: hold, abort
            "..xxx..", // cutting over: give up, commit, abort
            ".....x.", // committed: reap
            "......x", // reaping: end
            ".....xx", // aborting: reap, end
            ".......", ".......",
        ]
    );
}

#[test]
fn proxies_are_told_what_a_slot_is_to_them() {
    let slot = |number| Slot::new(number).unwrap();
    let target = group("g2");
    let copying = proto::SlotState::Copying {
        target: target.clone(),
    };
    let m = Migration {
        slots: set("0-19"),
        moved: set("0-4"),
        left: set("10"),
        ..cutting_over_phase()
    };
    let held = proto::SlotState::Held {
        target: Some(target),
    };
    assert_eq!(m.state_of(slot(9)), held);
    assert_eq!(m.state_of(slot(15)), copying);
    for serving in [10, 20] {
        assert_eq!(m.state_of(slot(serving)), proto::SlotState::Serving);
    }
    let pending = migration(Phase::Pending);
    assert_eq!(pending.state_of(slot(0)), proto::SlotState::Serving);
}

#[test]
fn the_record_survives_its_encoding() {
    let m = Migration {
        moved: set("3-4"),
        ..cutting_over_phase()
    };
    let json = serde_json::to_string(&m).unwrap();
    assert!(json.contains(r#""slots":"0-9","moved":"3-4""#), "{json}");
    assert_eq!(serde_json::from_str::<Migration>(&json).unwrap(), m);
}

#[test]
fn it_is_said_in_words_what_is_waited_for() {
    let waits = Why::Switch(812, vec![id("p-3")]);
    assert_eq!(waits.to_string(), "waiting for proxy p-3 to ack epoch 812");
    let waits = Why::Settle(vec![id("p1"), id("p2")]);
    assert_eq!(
        waits.to_string(),
        "waiting for proxies p1, p2, which await replies of the source"
    );
}
