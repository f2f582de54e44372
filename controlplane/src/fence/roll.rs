//! Who is connected to a server, by its `CLIENT LIST`, and who of them is to be killed.
//!
//! Pure. Only connections whose names begin with `sluice:` are Sluice's; all others are passed over.

use std::collections::{BTreeMap, BTreeSet};

use proto::fence::{Name, Role};

/// Before the name of every connection of Sluice.
const PREFIX: &str = "sluice:";

/// A connection of Sluice's at a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Connection {
    /// Its id at the server.
    pub id: u64,
    /// What it is called there.
    pub name: String,
}

/// Which proxies' connections are left alive. The controller's own always are, and mostly those of what copies
/// for it; those of other controllers never.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spare<'a> {
    /// Those of all proxies: only leaders before this one are shut out.
    Proxies,
    /// The same, and what copies for this controller is shut out, too.
    ProxiesAlone,
    /// Those of proxies of these incarnations.
    Only(&'a BTreeSet<String>),
    /// Those of proxies of all incarnations but this one.
    AllBut(&'a str),
}

impl Spare<'_> {
    fn own_mover(self) -> bool {
        match self {
            Self::ProxiesAlone => false,
            Self::Proxies | Self::Only(_) | Self::AllBut(_) => true,
        }
    }

    fn proxy(self, incarnation: &str) -> bool {
        match self {
            Self::Proxies | Self::ProxiesAlone => true,
            Self::Only(confirmed) => confirmed.contains(incarnation),
            Self::AllBut(removed) => incarnation != removed,
        }
    }
}

/// Sluice's connections among those that `CLIENT LIST` tells of.
pub fn read(list: &str) -> Vec<Connection> {
    list.lines().filter_map(connection).collect()
}

fn connection(line: &str) -> Option<Connection> {
    let field = |wanted: &str| {
        let mut fields = line.split(' ').filter_map(|field| field.split_once('='));
        fields.find_map(|(name, value)| (name == wanted).then_some(value))
    };
    let name = field("name")?;
    Some(Connection {
        id: field("id")?.parse().ok()?,
        name: name.starts_with(PREFIX).then(|| name.to_owned())?,
    })
}

/// Those that are to be killed by the controller of the incarnation `own`: who is not spared, and those
/// that are to be closed, by their ids, whosever they are.
pub fn doomed(
    connections: Vec<Connection>,
    own: &str,
    spare: Spare<'_>,
    close: &BTreeSet<u64>,
) -> Vec<Connection> {
    let is_spared = |connection: &Connection| match connection.name.parse::<Name>() {
        Ok(Name {
            role, incarnation, ..
        }) => match role {
            Role::Proxy => spare.proxy(&incarnation),
            Role::Mover => incarnation == own && spare.own_mover(),
            Role::Controller => incarnation == own,
        },
        Err(_) => false, // of whatever version, it has not confirmed
    };
    let mut connections = connections;
    connections.retain(|c| close.contains(&c.id) || !is_spared(c));
    connections
}

/// How many connections each process has.
pub type Census = BTreeMap<(Role, String), usize>;

/// Counts them.
pub fn census(connections: &[Connection]) -> Census {
    let mut census = Census::new();
    for name in connections
        .iter()
        .filter_map(|c| c.name.parse::<Name>().ok())
    {
        *census.entry((name.role, name.incarnation)).or_default() += 1;
    }
    census
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "id=3 addr=127.0.0.1:1 laddr=127.0.0.1:2 fd=8 name=sluice:proxy:a:0:1 age=1 db=0\n\
        id=4 addr=127.0.0.1:1 fd=9 name= age=1 cmd=client|list user=default\r\n\
        id=5 addr=x fd=9 name=sluice:proxy:a:1:7 age=1\n\
        id=6 addr=x name=sluice:proxy:b:0:1 age=1\n\
        id=7 addr=x name=sluice:controller:me:1\n\
        id=8 addr=x name=sluice:controller:other:1\n\
        id=9 addr=x name=sluice:mover:me:1\n\
        id=10 addr=x name=sluice:mover:other:1\n\
        id=11 addr=x name=sluice:later-version\n\
        id=12 addr=x name=app:sluice:proxy:a:1\n\
        id=? name=sluice:proxy:a:1\n\
        nonsense\n";

    #[test]
    fn who_is_killed() {
        fn check(spare: Spare<'_>, expected: &[u64]) {
            check_with(spare, &[], expected);
        }
        fn check_with(spare: Spare<'_>, close: &[u64], expected: &[u64]) {
            let close = close.iter().copied().collect();
            let doomed = doomed(read(LIST), "me", spare, &close);
            let ids: Vec<u64> = doomed.iter().map(|c| c.id).collect();
            assert_eq!(ids, expected, "{spare:?}");
        }
        let set =
            |ids: &[&str]| -> BTreeSet<String> { ids.iter().map(|&i| i.to_owned()).collect() };
        check(Spare::Only(&set(&[])), &[3, 5, 6, 8, 10, 11]);
        check(Spare::Only(&set(&["a"])), &[6, 8, 10, 11]);
        check(Spare::Only(&set(&["a", "b", "other"])), &[8, 10, 11]);
        check(Spare::Proxies, &[8, 10, 11]);
        check(Spare::ProxiesAlone, &[8, 9, 10, 11]);
        check(Spare::AllBut("b"), &[6, 8, 10, 11]);
        check_with(Spare::Proxies, &[4, 5, 99], &[5, 8, 10, 11]);
    }

    #[test]
    fn connections_are_counted_by_process() {
        let census = census(&read(LIST));
        let count = |role, incarnation: &str| census.get(&(role, incarnation.to_owned()));
        assert_eq!(count(Role::Proxy, "a"), Some(&2));
        assert_eq!(count(Role::Proxy, "b"), Some(&1));
        assert_eq!(count(Role::Mover, "me"), Some(&1));
        assert_eq!(census.values().sum::<usize>(), 7);
    }
}
