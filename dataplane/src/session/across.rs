//! Commands over all groups that need more than the groups' replies: what is asked of whom, and what the
//! proxy adds.
//!
//! What comes back is put together by [`crate::fanout`].

use std::sync::Arc;

use super::Dispatched;
use crate::{
    command::{Across, Command, Merge},
    error,
    fanout::{Cursors, Draw, Merging, Owners, Page, Settings, cursor},
    resp::{Request, put_bulk, put_header},
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
