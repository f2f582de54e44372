//! The keys that may have changed while their slots are copied, and of which servers tell nobody: streams, by
//! their groups of consumers, and, if the server is older than Redis 6, keys that commands have changed for
//! which it has no keyspace event.
//!
//! So who copies the keys has to be told of them here. How old the server is does not matter: these commands are
//! rare, and one key more to copy is cheap. Of a script that may write all keys count, unless its text says that
//! it calls nothing of that kind. A key is noted before the command is sent.
//!
//! Invariant: of a slot that is copied, all are known that were touched since that is so, or it is known
//! that they are not known.

use std::collections::BTreeMap;

use proto::{
    Slot, SlotState, Topology,
    settled::{STREAM_BYTES_MAX, StreamKey, Streams},
};

use crate::{
    command::{Command, Kind},
    config::Serving,
    local::Turn,
    resp::Request,
    scripts::Scripts,
    transaction::visit_frames,
    worker::Worker,
};

/// See the module.
#[derive(Default)]
pub(crate) struct Touched {
    of_slots: BTreeMap<Slot, Streams>,
    /// Bytes of all keys.
    bytes: usize,
    /// A slot is copied.
    is_attentive: bool,
}

impl Touched {
    /// A topology is routed by from now on.
    pub(super) fn turn(&mut self, before: Option<&Topology>, now: &Topology) {
        let was_seen = |slot: Slot| {
            before.is_none_or(|before| match before.state(slot) {
                SlotState::Copying { .. } | SlotState::Held { .. } => true,
                SlotState::Serving => false,
            })
        };
        self.is_attentive = false;
        for slot in Slot::all() {
            match now.state(slot) {
                SlotState::Serving => {
                    self.of_slots.remove(&slot);
                }
                SlotState::Copying { .. } => self.is_attentive = true,
                // It was never copied, as far as is known here.
                SlotState::Held { .. } if !was_seen(slot) => {
                    self.of_slots.insert(slot, Streams::Any);
                }
                SlotState::Held { .. } => {}
            }
        }
        let bytes = |streams: &Streams| match streams {
            Streams::These(these) => these.iter().map(|s| s.key.len()).sum(),
            Streams::Any => 0,
        };
        self.bytes = self.of_slots.values().map(bytes).sum();
    }

    fn touch(&mut self, slot: Slot, database: u16, key: &[u8]) {
        let none = || Streams::These(Default::default());
        let of_slot = self.of_slots.entry(slot).or_insert_with(none);
        let Streams::These(these) = of_slot else {
            return;
        };
        let stream = StreamKey {
            database: database.into(),
            key: key.to_vec(),
        };
        if these.contains(&stream) {
            return;
        }
        if self.bytes + key.len() > STREAM_BYTES_MAX {
            *of_slot = Streams::Any;
        } else {
            self.bytes += key.len();
            these.insert(stream);
        }
    }

    /// Those of these slots.
    pub(super) fn of(&self, slots: &[Slot]) -> Streams {
        let of_each = slots.iter().filter_map(|slot| self.of_slots.get(slot));
        of_each.fold(Streams::These(Default::default()), |sum, streams| {
            sum.and(streams.clone())
        })
    }

    /// A slot is copied: requests have to be looked at.
    pub(crate) fn is_attentive(&self) -> bool {
        self.is_attentive
    }

    /// A request of a client in this database is about to be sent.
    pub(crate) fn see(
        &mut self,
        command: &Command,
        request: &Request<'_>,
        database: u16,
        topology: &Topology,
        scripts: &Scripts,
    ) {
        let is_script = command.kind() == Kind::Script && command.may_write();
        let may_touch = if is_script {
            scripts.may_be_untold(command, request)
        } else {
            command.is_untold()
        };
        if !may_touch {
            return;
        }
        command.visit_keys(request, |index| {
            let key = request.arg(index);
            let slot = Slot::of_key(key);
            if let SlotState::Copying { .. } = topology.route(slot).state {
                self.touch(slot, database, key);
            }
        });
    }

    /// The same of several, which may select another.
    fn see_all(
        &mut self,
        frames: &[u8],
        serving: &Serving,
        from: u16,
        topology: &Topology,
        scripts: &Scripts,
    ) {
        let mut database = from;
        visit_frames(frames, &serving.limits, |command, request| {
            if let Some(Turn::Database(selected)) = Turn::of(command.class, request, serving) {
                database = selected;
            }
            self.see(command, request, database, topology, scripts);
        });
    }
}

impl Worker {
    /// While a slot is copied: sees what a request may touch, and with EXEC its transaction.
    pub(crate) fn see_touched(&mut self, id: u32, command: &Command, request: &Request<'_>) {
        let Some(topology) = &self.topology else {
            return;
        };
        let client = &self.clients.session(id).client;
        let (touched, scripts) = (&mut self.settling.touched, &self.proxy.scripts);
        match &client.transaction {
            Some(queued) if command.name == "exec" => {
                let serving = &self.serving;
                touched.see_all(queued.frames(), serving, client.database, topology, scripts);
            }
            Some(_) => {}
            None => touched.see(command, request, client.database, topology, scripts),
        }
    }

    /// The same of a request that is asked again.
    pub(crate) fn see_again(&mut self, id: u32, request: &[u8]) {
        let database = self.clients.session(id).client.database;
        if let (Some(topology), true) = (&self.topology, self.settling.touched.is_attentive()) {
            let (serving, touched) = (&self.serving, &mut self.settling.touched);
            touched.see_all(request, serving, database, topology, &self.proxy.scripts);
        }
    }
}
