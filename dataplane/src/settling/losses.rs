//! Connections that were lost with something unanswered: their servers may execute it yet.
//!
//! Invariant: a connection over which something was sent that may write, and was not answered, is known
//! from when it is lost, until it is known that its server's process is no more.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    rc::Rc,
};

use proto::{
    ServerAddr,
    settled::{self, LOST_MAX, Lost},
};

/// See the module.
#[derive(Default)]
pub(crate) struct Losses(RefCell<HashMap<ServerAddr, OfServer>>);

/// Of the process that was seen last at an address.
struct OfServer {
    run_id: String,
    lost: Lost,
}

impl Losses {
    fn add(&self, connection: &settled::Connection) {
        let mut all = self.0.borrow_mut();
        let (server, run_id) = (&connection.server, &connection.run_id);
        let of_server = all.entry(server.clone()).or_insert_with(|| OfServer {
            run_id: run_id.clone(),
            lost: Lost::These(BTreeSet::new()),
        });
        if of_server.run_id != *run_id {
            return; // another process is there by now
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
        if all.get(server).is_some_and(|other| other.run_id != run_id) {
            all.remove(server);
        }
    }

    /// Those of these servers.
    pub(super) fn of(&self, servers: &[&ServerAddr]) -> Lost {
        let all = self.0.borrow();
        let of_each = servers.iter().filter_map(|server| all.get(*server));
        of_each.fold(Lost::These(BTreeSet::new()), |sum, of_server| {
            super::add(sum, &of_server.lost)
        })
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
}
