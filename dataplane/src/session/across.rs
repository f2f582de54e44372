//! Commands over all groups that need more than the groups' replies: what is asked of whom, and what the
//! proxy adds.
//!
//! What comes back is put together by [`crate::fanout`].

use std::{borrow::Cow, sync::Arc};

use proto::Slot;

use super::Dispatched;
use crate::{
    backend::{Refusal, Way, put_command},
    command::{Across, Class, Command, Merge, PubSub},
    error,
    fanout::{
        Cursors, Draw, Info, Known, Merging, OfServer, Owners, Page, Report, Settings, cursor, log,
    },
    info, local,
    resp::{Request, parse_int, put_bulk, put_error, put_header, put_simple},
    scripts::Sha,
    worker::Worker,
};

/// What groups are asked for a request, and how their replies become one.
pub(crate) struct Inquiry<'a> {
    pub(crate) groups: Vec<u16>,
    pub(crate) merging: Merging,
    /// Each of the groups all of these; a part is one of them.
    pub(crate) asked: Vec<Cow<'a, [u8]>>,
}

/// What comes of looking who is to be asked.
pub(crate) enum Inquired<'a> {
    Groups(Inquiry<'a>),
    /// Nobody: the proxy knows the answer.
    Nobody(Vec<u8>),
    /// A pipe has to take requests again first.
    Waits,
}

fn error_reply<'a>(text: &str) -> Inquired<'a> {
    let mut reply = Vec::new();
    put_error(&mut reply, text);
    Inquired::Nobody(reply)
}

impl Worker {
    pub(crate) fn across(
        &mut self,
        id: u32,
        across: Across,
        command: &Command,
        request: &Request<'_>,
    ) -> Dispatched {
        match across {
            Across::NoTouch => self.no_touch(id, command, request),
            Across::ClusterKeys => self.gather(id, request),
            Across::Scan
            | Across::AllKeys
            | Across::RandomKey
            | Across::Info
            | Across::Scripts
            | Across::Newest
            | Across::Report
            | Across::Settings
            | Across::Configure => self.inquire(id, command, request),
        }
    }

    /// Asks whom a request concerns.
    pub(crate) fn inquire(
        &mut self,
        id: u32,
        command: &Command,
        request: &Request<'_>,
    ) -> Dispatched {
        match self.inquiry(id, command, request) {
            Inquired::Groups(inquiry) => self.ask_groups(id, command, inquiry),
            Inquired::Nobody(reply) => self.answer_own(id, &reply),
            Inquired::Waits => Dispatched::Waits,
        }
    }

    /// Whom a request concerns that is not one group's, and what they are asked, for its client as it is now.
    pub(crate) fn inquiry<'r>(
        &mut self,
        id: u32,
        command: &Command,
        request: &Request<'r>,
    ) -> Inquired<'r> {
        let raw = || vec![Cow::Borrowed(request.raw())];
        let protocol = self.clients.session(id).client.protocol;
        let (merging, asked) = match command.class {
            Class::Everywhere(merge) => (
                Merging::Plain(merge),
                vec![self.for_each(id, command, request)],
            ),
            Class::PubSub(PubSub::Count(topic)) => (self.subscribed(topic, request), raw()),
            Class::Elements => return self.elements(request),
            Class::Across(Across::Scan) => return self.page(request),
            Class::Across(Across::Info) => return self.info(id, request),
            Class::Across(Across::AllKeys) => (Merging::Keys(self.owners()), raw()),
            Class::Across(Across::RandomKey) => {
                let draw = Draw {
                    owners: self.owners(),
                    protocol,
                    random: fastrand::u64(..),
                };
                let asked = Draw::ASKED.map(Cow::Borrowed);
                (Merging::Draw(draw), asked.into())
            }
            Class::Across(Across::Scripts) => {
                let scripts = &self.proxy.scripts;
                let seen = |text| Sha::parse(text).is_some_and(|sha| scripts.has(sha));
                let known = Known(request.args_from(2).map(seen).collect());
                (Merging::Known(known), raw())
            }
            Class::Across(Across::Newest) => {
                let count = (request.argc() > 2).then(|| parse_int(request.arg(2)));
                (Merging::Newest(log::most(count.flatten())), raw())
            }
            Class::Across(Across::Report) => {
                let owners = self.owners();
                let known = owners.topology.groups();
                let name = |group: &u16| known[usize::from(*group)].id.to_string();
                let report = Report {
                    protocol,
                    groups: owners.groups.iter().map(name).collect(),
                };
                (Merging::Report(report), raw())
            }
            Class::Across(Across::Settings) => {
                let own = self.serving.settings(request.args_from(2));
                return Inquired::Groups(Inquiry {
                    groups: self.owners().groups[..1].to_vec(),
                    merging: Merging::Settings(Settings(own)),
                    asked: raw(),
                });
            }
            Class::Across(Across::Configure) if self.serving.allow_config_set => {
                (Merging::Plain(Merge::Same), raw())
            }
            Class::Across(Across::Configure) => return error_reply(error::CONFIGURE_DENIED),
            Class::Across(Across::NoTouch | Across::ClusterKeys)
            | Class::PubSub(PubSub::Subscribe(_) | PubSub::Unsubscribe(_) | PubSub::Publish(_))
            | Class::Forward
            | Class::Sort
            | Class::Split(_)
            | Class::Local(_)
            | Class::Crew(_)
            | Class::Tracking
            | Class::Transaction(_)
            | Class::Replicas
            | Class::Container(_)
            | Class::Denied(_) => unreachable!("it is not asked of groups like this"),
        };
        let groups = self.owners().groups;
        if groups.is_empty() {
            return error_reply(error::NOT_SERVED);
        }
        Inquired::Groups(Inquiry {
            groups,
            merging,
            asked,
        })
    }

    /// Asks one group for the next page.
    fn page<'r>(&mut self, request: &Request<'r>) -> Inquired<'r> {
        let Some(cursor) = cursor::parse(request.arg(1)) else {
            return error_reply(error::INVALID_CURSOR);
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
        Inquired::Groups(Inquiry {
            groups,
            merging: Merging::Page(Box::new(Page { owners, cursors })),
            asked: vec![asked.into()],
        })
    }

    /// Asks the group of a key for the next page of its elements.
    fn elements<'r>(&self, request: &Request<'r>) -> Inquired<'r> {
        let topology = self.topology.as_ref().expect("a route was made from it");
        let owner = topology.route(Slot::of_key(request.arg(1))).group;
        let Some(group) = owner else {
            return error_reply(error::NOT_SERVED);
        };
        let cursors = OfServer::new(topology, group);
        let asked = match cursor::parse(request.arg(2)) {
            Some(cursor) => {
                let mut asked = Vec::new();
                put_header(&mut asked, b'*', request.argc());
                put_bulk(&mut asked, request.arg(0));
                asked.extend_from_slice(request.frames(1, 2));
                put_bulk(&mut asked, cursors.read(cursor).to_string().as_bytes());
                asked.extend_from_slice(request.frames(3, request.argc()));
                asked.into()
            }
            None => Cow::Borrowed(request.raw()), // the server says what is wrong
        };
        Inquired::Groups(Inquiry {
            groups: vec![group],
            merging: Merging::Elements(cursors),
            asked: vec![asked],
        })
    }

    /// Asks each group that can be asked.
    fn info<'r>(&mut self, id: u32, request: &Request<'r>) -> Inquired<'r> {
        let topology = self.topology.clone();
        let client = &self.clients.session(id).client;
        let protocol = client.protocol;
        let own = info::sections(request, client, &self.proxy, topology.as_deref());
        let (mut groups, mut named) = (Vec::new(), Vec::new());
        if let (Some(topology), false) = (&topology, info::concerns_proxy_alone(request)) {
            for group in topology.owners() {
                let is_down = match self.find_pipe(id, group) {
                    Ok(_) => false,
                    Err(Refusal::Full) => return Inquired::Waits,
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
            let mut reply = Vec::new();
            info.put(std::iter::empty(), &mut reply);
            return Inquired::Nobody(reply);
        }
        Inquired::Groups(Inquiry {
            groups,
            merging: Merging::Info(Box::new(info)),
            asked: vec![Cow::Borrowed(request.raw())],
        })
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
}
