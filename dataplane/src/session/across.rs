//! Commands over all groups that need more than the groups' replies: what is asked of whom, and what the
//! proxy adds.
//!
//! What comes back is put together by [`crate::fanout`].

use std::sync::Arc;

use super::Dispatched;
use crate::{
    backend::{Refusal, Way, put_command},
    command::{Across, Command, Merge},
    error,
    fanout::{Cursors, Draw, Info, Known, Merging, Owners, Page, Report, Settings, cursor, log},
    info, local,
    resp::{Request, parse_int, put_bulk, put_header, put_simple},
    scripts::Sha,
    worker::Worker,
};

impl Worker {
    pub(super) fn across(
        &mut self,
        id: u32,
        across: Across,
        command: &Command,
        request: &Request<'_>,
    ) -> Dispatched {
        match across {
            Across::Scan => self.scan(id, command, request),
            Across::AllKeys => {
                let merging = Merging::Keys(self.owners());
                self.ask(id, command, merging, &[request.raw()])
            }
            Across::RandomKey => {
                let draw = Draw {
                    owners: self.owners(),
                    protocol: self.clients.session(id).client.protocol,
                    random: fastrand::u64(..),
                };
                self.ask(id, command, Merging::Draw(draw), &Draw::ASKED)
            }
            Across::Scripts => {
                let scripts = &self.proxy.scripts;
                let seen = |text| Sha::parse(text).is_some_and(|sha| scripts.has(sha));
                let known = Known(request.args_from(2).map(seen).collect());
                self.ask(id, command, Merging::Known(known), &[request.raw()])
            }
            Across::Newest => {
                let count = (request.argc() > 2).then(|| parse_int(request.arg(2)));
                let merging = Merging::Newest(log::most(count.flatten()));
                self.ask(id, command, merging, &[request.raw()])
            }
            Across::Report => {
                let owners = self.owners();
                let known = owners.topology.groups();
                let name = |group: &u16| known[usize::from(*group)].id.to_string();
                let report = Report {
                    protocol: self.clients.session(id).client.protocol,
                    groups: owners.groups.iter().map(name).collect(),
                };
                let merging = Merging::Report(report);
                self.ask_groups(id, command, owners.groups, merging, &[request.raw()])
            }
            Across::NoTouch => self.no_touch(id, command, request),
            Across::ClusterKeys => self.gather(id, request),
            Across::Info => self.info(id, command, request),
            Across::Settings => {
                let own = self.serving.settings(request.args_from(2));
                let merging = Merging::Settings(Settings(own));
                let first = self.owners().groups[..1].to_vec();
                self.ask_groups(id, command, first, merging, &[request.raw()])
            }
            Across::Configure if self.serving.allow_config_set => {
                self.send_everywhere(id, command, Merge::Same, request)
            }
            Across::Configure => self.answer_error(id, error::CONFIGURE_DENIED),
        }
    }

    /// Asks one group for the next page.
    fn scan(&mut self, id: u32, command: &Command, request: &Request<'_>) -> Dispatched {
        let Some(cursor) = cursor::parse(request.arg(1)) else {
            return self.answer_error(id, error::INVALID_CURSOR);
        };
        let topology = self.topology.as_ref().expect("a route was made from it");
        let cursors = Cursors::new(topology).expect("a route was made to an owner");
        let place = cursors.read(cursor);
        let groups = vec![place.group];
        let owners = Owners {
            topology: Arc::clone(topology),
            groups: groups.clone(),
        };
        let mut asked = Vec::new();
        put_header(&mut asked, b'*', request.argc());
        put_bulk(&mut asked, b"SCAN");
        put_bulk(&mut asked, place.server.to_string().as_bytes());
        asked.extend_from_slice(request.frames(2, request.argc()));
        let merging = Merging::Page(Box::new(Page { owners, cursors }));
        self.ask_groups(id, command, groups, merging, &[&asked])
    }

    /// Asks each group that can be asked.
    fn info(&mut self, id: u32, command: &Command, request: &Request<'_>) -> Dispatched {
        let topology = self.topology.clone();
        let client = &self.clients.session(id).client;
        let protocol = client.protocol;
        let own = info::sections(request, client, &self.proxy, topology.as_deref());
        let (mut groups, mut named) = (Vec::new(), Vec::new());
        if let (Some(topology), false) = (&topology, info::concerns_proxy_alone(request)) {
            for group in topology.owners() {
                let is_down = match self.find_pipe(id, group) {
                    Ok(_) => false,
                    Err(Refusal::Full) => return Dispatched::Waits,
                    Err(Refusal::Down(_)) => true,
                };
                named.push(info::group(topology, group, is_down));
                groups.extend((!is_down).then_some(group));
            }
        }
        let info = Info {
            protocol,
            own,
            groups: named,
        };
        if groups.is_empty() {
            return self.answer(id, |out| info.put(std::iter::empty(), out));
        }
        let merging = Merging::Info(Box::new(info));
        self.ask_groups(id, command, groups, merging, &[request.raw()])
    }

    /// Has a session's reads leave keys untouched, or not, from now on: by pipes of their own. Servers are
    /// asked whether they can, on pipes where it changes nothing; if one cannot, its error is the reply.
    fn no_touch(&mut self, id: u32, command: &Command, request: &Request<'_>) -> Dispatched {
        let Some(on) = local::on_or_off(request.arg(2)) else {
            return self.answer_error(id, error::SYNTAX);
        };
        let session = self.clients.session(id);
        if session.outbox.in_flight() > 0 {
            return Dispatched::Waits; // what follows takes another pipe
        }
        let task = session.task().clone();
        let mut pipes = Vec::new();
        for group in self.owners().groups {
            let pipe = self.backends.pipe(group, Way::USUAL);
            match self.backends.admit(pipe, &task) {
                Ok(()) => pipes.push((group, pipe)),
                Err(Refusal::Full) => return Dispatched::Waits,
                Err(Refusal::Down(_)) => {} // it will say what it can when it is there
            }
        }
        let client = &mut self.clients.session(id).client;
        let before = std::mem::replace(&mut client.no_touch, on);
        if pipes.is_empty() {
            return self.answer(id, |out| put_simple(out, "OK"));
        }
        let mut asked = Vec::new();
        put_command(&mut asked, &[request.arg(0), request.arg(1), b"OFF"]);
        let merging = Merging::Agreed { before };
        self.ask_pipes(id, command, &pipes, merging, &asked)
    }

    /// The groups that own slots, and whose keys are whose.
    fn owners(&self) -> Owners {
        let topology = self.topology.as_ref().expect("a route was made from it");
        Owners {
            topology: Arc::clone(topology),
            groups: topology.owners().collect(),
        }
    }

    /// Sends these requests to each group that owns slots.
    fn ask(&mut self, id: u32, command: &Command, merging: Merging, asked: &[&[u8]]) -> Dispatched {
        let groups = self.owners().groups;
        self.ask_groups(id, command, groups, merging, asked)
    }
}
