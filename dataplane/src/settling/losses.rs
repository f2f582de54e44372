//! Connections that were lost with something unanswered: their servers may execute it yet.
//!
//! So a server is asked to close them: once it has said that it has, or knows none of that id, nothing of
//! them is executed there any more. Until then, or if it refuses, they are lost.
//!
//! Invariant: a connection over which something was sent that may write, and was not answered, is known
//! from when it is lost, until it is known that it, or its server's
//! process, is no more.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    rc::Rc,
};

use proto::{
    ServerAddr,
    seeded::{self, Bug},
    settled::{self, LOST_MAX, Lost},
};

use crate::worker::Worker;

/// So many are closed in a tick at most.
const BURIED: usize = 16;

/// See the module.
#[derive(Default)]
pub(crate) struct Losses(RefCell<All>);

#[derive(Default)]
struct All {
    of_servers: HashMap<ServerAddr, OfServer>,
    /// What servers have been asked to close, by the numbers of the burials.
    asked: HashMap<u32, settled::Connection>,
    last: u32,
}

/// Of the process that was seen last at an address.
struct OfServer {
    run_id: String,
    lost: Lost,
    /// It has refused to close connections.
    refuses: bool,
}

impl Losses {
    fn add(&self, connection: &settled::Connection) {
        let mut all = self.0.borrow_mut();
        let (server, run_id) = (&connection.server, &connection.run_id);
        let of_server = all
            .of_servers
            .entry(server.clone())
            .or_insert_with(|| OfServer {
                run_id: run_id.clone(),
                lost: Lost::These(BTreeSet::new()),
                refuses: false,
            });
        if of_server.run_id != *run_id {
            return; // another process is there by now
        }
        if seeded::has(Bug::LostConnectionNotKilled) {
            return;
        }
        match &mut of_server.lost {
            Lost::These(these) if these.len() < LOST_MAX || these.contains(connection) => {
                these.insert(connection.clone());
            }
            lost @ (Lost::These(_) | Lost::Many) => *lost = Lost::Many,
        }
    }

    /// This process is at an address now: what another has had is no more.
    pub(crate) fn meet(&self, server: &ServerAddr, run_id: &str) {
        let mut all = self.0.borrow_mut();
        let of_server = all.of_servers.get(server);
        if of_server.is_some_and(|other| other.run_id != run_id) {
            all.of_servers.remove(server);
        }
    }

    /// Has those closed that nobody was asked to close yet, at most so many. `ask` asks for one, by a number;
    /// if its server cannot be asked now, it is another time.
    fn bury(&self, most: usize, mut ask: impl FnMut(u32, &settled::Connection) -> bool) {
        let All {
            of_servers,
            asked,
            last,
        } = &mut *self.0.borrow_mut();
        let mut left = most;
        for of_server in of_servers.values() {
            let Lost::These(these) = &of_server.lost else {
                continue;
            };
            for connection in these {
                if left == 0 || of_server.refuses {
                    break;
                }
                if asked.values().any(|other| other == connection) {
                    continue;
                }
                let number = last.wrapping_add(1);
                if !ask(number, connection) {
                    break;
                }
                *last = number;
                asked.insert(number, connection.clone());
                left -= 1;
            }
        }
    }

    /// A server has answered: whether the connection is no more.
    fn buried(&self, number: u32, is_gone: bool) {
        let all = &mut *self.0.borrow_mut();
        let Some(connection) = all.asked.remove(&number) else {
            return;
        };
        let Some(of_server) = all.of_servers.get_mut(&connection.server) else {
            return;
        };
        match &mut of_server.lost {
            Lost::These(these) if is_gone => {
                these.remove(&connection);
            }
            Lost::These(_) => of_server.refuses = true,
            Lost::Many => {}
        }
    }

    /// Those of these servers.
    pub(super) fn of(&self, servers: &[&ServerAddr]) -> Lost {
        let all = self.0.borrow();
        let of_each = servers
            .iter()
            .filter_map(|server| all.of_servers.get(*server));
        of_each.fold(Lost::These(BTreeSet::new()), |sum, of_server| {
            super::report::both(sum, &of_server.lost)
        })
    }
}

impl Worker {
    /// Has servers close connections that were lost, a few at a time.
    pub(crate) fn bury_lost(&mut self) {
        let losses = Rc::clone(&self.settling.losses);
        while let Some((number, is_gone)) = self.clients.burials.pop() {
            losses.buried(number, is_gone);
        }
        let since = self.clock.micros();
        losses.bury(BURIED, |number, connection| {
            self.backends.bury(connection, number, since)
        });
        self.schedule_flush();
    }
}

/// A connection, and whether it owes an answer to what may write. If it is dropped while it does, it is
/// lost.
pub(crate) struct Debt {
    connection: Box<settled::Connection>,
    owes: bool,
    losses: Rc<Losses>,
}

impl Debt {
    /// Of a connection over which nothing was sent yet.
    pub(crate) fn none(connection: settled::Connection, losses: Rc<Losses>) -> Self {
        Self {
            connection: Box::new(connection),
            owes: false,
            losses,
        }
    }

    /// Something that may write was sent.
    pub(crate) fn incur(&mut self) {
        self.owes = true;
    }

    /// All has been answered.
    pub(crate) fn pay(&mut self) {
        self.owes = false;
    }
}

impl Drop for Debt {
    fn drop(&mut self) {
        if self.owes {
            self.losses.add(&self.connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_goes_with_debts_is_known_until_another_process_is_there() {
        let losses = Rc::new(Losses::default());
        let server = ServerAddr::new("h:1").unwrap();
        let debt = |run_id: &str, client_id| {
            losses.meet(&server, run_id);
            let connection = settled::Connection {
                server: server.clone(),
                run_id: run_id.to_owned(),
                client_id,
            };
            Debt::none(connection, Rc::clone(&losses))
        };
        let lost = || match losses.of(&[&server]) {
            Lost::These(these) => these.iter().map(|c| c.client_id).collect::<Vec<_>>(),
            Lost::Many => vec![u64::MAX],
        };
        let mut paid = debt("run", 1);
        paid.incur();
        paid.pay();
        drop((paid, debt("run", 2)));
        assert!(lost().is_empty());
        for id in [3, 4] {
            debt("run", id).incur();
        }
        assert_eq!(lost(), [3, 4]);
        let mut late = debt("run", 5);
        late.incur();
        drop(debt("next", 1));
        assert!(lost().is_empty());
        debt("next", 1).incur();
        drop(late);
        assert_eq!(lost(), [1], "what the former process had is no more");
        for id in 2..=LOST_MAX as u64 {
            debt("next", id).incur();
        }
        assert_eq!(lost().len(), LOST_MAX);
        debt("next", 1).incur();
        assert_eq!(lost().len(), LOST_MAX);
        debt("next", 0).incur();
        assert_eq!(lost(), [u64::MAX]);
    }

    #[test]
    fn what_its_server_has_closed_is_no_longer_lost() {
        let losses = Rc::new(Losses::default());
        let server = ServerAddr::new("h:1").unwrap();
        let connection = |client_id| settled::Connection {
            server: server.clone(),
            run_id: "run".to_owned(),
            client_id,
        };
        for id in 1..=3 {
            Debt::none(connection(id), Rc::clone(&losses)).incur();
        }
        let lost = || match losses.of(&[&server]) {
            Lost::These(these) => these.len(),
            Lost::Many => usize::MAX,
        };
        let bury = |most| {
            let mut asked = Vec::new();
            losses.bury(most, |number, connection| {
                asked.push((number, connection.client_id));
                true
            });
            asked
        };
        losses.bury(9, |_, _| false); // it cannot be asked now
        assert_eq!(bury(1), [(1, 1)]);
        assert_eq!(bury(9), [(2, 2), (3, 3)]);
        assert_eq!((bury(9).len(), lost()), (0, 3));
        losses.buried(1, true);
        losses.buried(1, true);
        assert_eq!(lost(), 2);
        // Who refuses is not asked again.
        losses.buried(2, false);
        losses.buried(3, false);
        assert_eq!((lost(), bury(9).len()), (2, 0));
    }
}
