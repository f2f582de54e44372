//! Requests that go to several groups: what each of them is sent.
//!
//! Nothing is sent before every group takes its part; what comes back is put together by
//! [`crate::fanout`].

use std::borrow::Cow;

use super::{Dispatched, across::Inquiry, dbsize, erasure};
use crate::{
    backend::{Pending, Recipient},
    command::{Command, Kind, Merge, Split, flag},
    error,
    fanout::{Merging, Part},
    resp::{Request, put_bulk, put_header},
    worker::Worker,
};

/// For the request that is being split; kept for its memory.
#[derive(Default)]
pub(crate) struct Splitting {
    /// The groups that get a part.
    parts: Vec<PartOf>,
    /// Of each key, the part it belongs to.
    part_of_key: Vec<u16>,
}

struct PartOf {
    group: u16,
    keys: usize,
    pipe: u32,
}

impl PartOf {
    fn new(group: u16) -> Self {
        Self {
            group,
            keys: 0,
            pipe: 0,
        }
    }
}

impl Worker {
    /// Sends each group one request for those of the keys that it owns.
    pub(super) fn split(
        &mut self,
        id: u32,
        command: &Command,
        split: Split,
        request: &Request<'_>,
    ) -> Dispatched {
        let values = if split == Split::Mset { 2 } else { 1 };
        if !(request.argc() - 1).is_multiple_of(values) {
            return self.answer_error(id, &error::arity_of(command));
        }
        let topology = self.topology.as_ref().expect("a route was made from it");
        let Splitting { parts, part_of_key } = &mut self.splitting;
        parts.clear();
        part_of_key.clear();
        command.visit_keys(request, |index| {
            let slot = proto::Slot::of_key(request.arg(index));
            let group = topology.route(slot).group.expect("routed to an owner");
            let known = parts.iter().position(|part| part.group == group);
            let part = known.unwrap_or_else(|| {
                parts.push(PartOf::new(group));
                parts.len() - 1
            });
            parts[part].keys += 1;
            part_of_key.push(part as u16);
        });
        if let Err(refused) = self.admit_parts(id) {
            return refused;
        }
        let Splitting { parts, part_of_key } = &self.splitting;
        for part in parts {
            let out = self.backends.output(part.pipe);
            put_header(out, b'*', 1 + part.keys * values);
            put_bulk(out, request.arg(0));
        }
        for (key, &part) in part_of_key.iter().enumerate() {
            let first = 1 + key * values;
            let frames = request.frames(first, first + values);
            let pipe = parts[usize::from(part)].pipe;
            self.backends.output(pipe).extend_from_slice(frames);
        }
        self.expect_parts(id, command, Merging::Plain(split.merge()), 1)
    }

    /// Sends the whole request to each group that owns slots.
    pub(super) fn send_everywhere(
        &mut self,
        id: u32,
        command: &Command,
        merge: Merge,
        request: &Request<'_>,
    ) -> Dispatched {
        if command.flags & flag::ALLOW_BUSY != 0 {
            return self.ask_busy(id, command, merge, request);
        }
        let sent = self.inquire(id, command, request);
        if sent != Dispatched::Waits && command.kind() == Kind::Script {
            self.see_script(command, request);
        }
        sent
    }

    /// What each group is sent of a request that goes to all.
    pub(super) fn for_each<'r>(
        &mut self,
        id: u32,
        command: &Command,
        request: &Request<'r>,
    ) -> Cow<'r, [u8]> {
        let database = self.clients.session(id).client.database;
        let instead = dbsize::of_clients(command)
            .or_else(|| erasure::keeping_record(command, request, database));
        instead.map_or(Cow::Borrowed(request.raw()), Cow::Owned)
    }

    /// Sends each of the groups all that is asked.
    pub(crate) fn ask_groups(
        &mut self,
        id: u32,
        command: &Command,
        inquiry: Inquiry<'_>,
    ) -> Dispatched {
        let Inquiry {
            groups,
            merging,
            asked,
        } = inquiry;
        let Splitting { parts, part_of_key } = &mut self.splitting;
        parts.clear();
        part_of_key.clear();
        parts.extend(groups.into_iter().map(PartOf::new));
        if let Err(refused) = self.admit_parts(id) {
            return refused;
        }
        for part in &self.splitting.parts {
            let out = self.backends.output(part.pipe);
            asked.iter().for_each(|asked| out.extend_from_slice(asked));
        }
        self.expect_parts(id, command, merging, asked.len())
    }

    /// Sends this request by each of these pipes, of these groups; they have admitted it.
    pub(super) fn ask_pipes(
        &mut self,
        id: u32,
        command: &Command,
        pipes: &[(u16, u32)],
        merging: Merging,
        asked: &[u8],
    ) -> Dispatched {
        let Splitting { parts, part_of_key } = &mut self.splitting;
        parts.clear();
        part_of_key.clear();
        for &(group, pipe) in pipes {
            let keys = 0;
            parts.push(PartOf { group, keys, pipe });
            self.backends.output(pipe).extend_from_slice(asked);
        }
        self.expect_parts(id, command, merging, 1)
    }

    /// Finds each part its pipe. Nothing has been sent yet: if one part cannot be, none is.
    fn admit_parts(&mut self, id: u32) -> Result<(), Dispatched> {
        for part in 0..self.splitting.parts.len() {
            let group = self.splitting.parts[part].group;
            self.splitting.parts[part].pipe = self.admit(id, group)?;
        }
        Ok(())
    }

    /// To each group so many parts were written: says where their replies go.
    fn expect_parts(
        &mut self,
        id: u32,
        command: &Command,
        merging: Merging,
        of_group: usize,
    ) -> Dispatched {
        let Splitting { parts, part_of_key } = &self.splitting;
        let may_write = command.may_write();
        let micros = self.micros;
        let whole = self.clients.pending(id, Kind::Split, may_write, micros);
        let of_keys: &[u16] = if matches!(merging, Merging::Plain(Merge::Values)) {
            part_of_key
        } else {
            &[]
        };
        let count = (parts.len() * of_group) as u16;
        let fanout = self.clients.fanouts.start(whole, merging, of_keys, count);
        let pipes = parts
            .iter()
            .flat_map(|part| std::iter::repeat_n(part.pipe, of_group));
        for (pipe, index) in pipes.zip(0..) {
            let to = Recipient::Part(Part { fanout, index });
            let weight = whole.weight / u32::from(count);
            let pending = Pending {
                to,
                weight,
                ..whole
            };
            self.backends.expect(pipe, pending);
        }
        self.stats.requests_split.add(1);
        self.taken(id);
        Dispatched::Done
    }
}
