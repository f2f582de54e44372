//! The proxies as Jodis clients look for them: an ephemeral node in ZooKeeper for each that is connected,
//! below `/jodis/<product>`, in Codis's format.
//!
//! The leader keeps them. Its session for it outlives it for a while: when another controller leads, each
//! proxy's node is there until that proxy is connected to the new one, which then puts its own in the
//! place, at once. Nodes that are not ours (a Codis proxy's) are never touched.
//!
//! Decided here is which nodes there should be, and what is to be done to that end; ZooKeeper is spoken to
//! by `crate::zookeeper::roster`. Nothing else depends on these nodes.

use std::{
    collections::BTreeMap,
    time::{Duration, UNIX_EPOCH},
};

use proto::ProxyId;
use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};
use tokio::{select, sync::watch, time::sleep};
use tracing::{info, warn};

use crate::{
    model::Registration,
    registry::{Live, Proxies, Registry},
    snapshot::Snapshot,
    store::{Standing, Store},
    zookeeper::{
        Failure, Place,
        roster::{Entry, Roster},
    },
};

/// How often the nodes are looked at, whatever is known of them.
const FULL_LOOK: Duration = Duration::from_secs(10);

/// How long to wait before the next attempt.
const RECONNECT: Duration = Duration::from_secs(1);

/// See the module.
pub struct Jodis {
    /// Where ZooKeeper is.
    pub place: Place,
    /// `/jodis/<product>`.
    pub path: String,
    /// Whether this controller leads, and how proxies are registered.
    pub store: Store,
    /// Who is connected.
    pub registry: Registry,
}

/// Nodes by name.
type Nodes = BTreeMap<String, Vec<u8>>;

/// What is to be done to one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// There is none.
    Create { name: String, data: Vec<u8> },
    /// What is there is of another session, or says something else.
    Replace {
        name: String,
        version: i32,
        data: Vec<u8>,
    },
    /// It is of this session, and its proxy is gone.
    Remove { name: String, version: i32 },
}

impl Jodis {
    /// Keeps the nodes while this controller leads. Ends with the store.
    pub async fn run(self) {
        let mut standings = self.store.standing();
        loop {
            let leads = standings.wait_for(|now| *now == Standing::Leads).await;
            if leads.map(drop).is_err() {
                return;
            }
            select! {
                Err(failure) = self.keep() => {
                    warn!(path = self.path, error = %failure, "nodes for Jodis are not kept, tried again");
                    sleep(RECONNECT).await;
                }
                ended = deposed(standings.clone()) => match ended {
                    Ok(()) => {}
                    Err(_) => return,
                },
            }
        }
    }

    async fn keep(&self) -> Result<(), Failure> {
        let mut roster = Roster::open(&self.place, &self.path).await?;
        let mut connected = self.registry.subscribe();
        let mut snapshots = self.store.subscribe();
        let mut kept: Option<Nodes> = None;
        loop {
            snapshots.mark_unchanged();
            let live = connected.borrow_and_update().clone();
            // A leader that pauses writes nothing.
            if let Some(now) = self.store.leading() {
                let wanted = wanted(&now, &live);
                if kept.as_ref() != Some(&wanted) {
                    let put = self.put(&mut roster, &wanted, now.head.leader_term);
                    kept = put.await?.then_some(wanted);
                }
            }
            let pause = if kept.is_some() { FULL_LOOK } else { RECONNECT };
            select! {
                // They end with the store, and this task before it.
                _ = connected.changed() => {}
                _ = snapshots.changed() => {}
                () = sleep(pause) => kept = None,
            }
        }
    }

    /// Makes the nodes those that are wanted. `false`: something was changed meanwhile, by somebody else or
    /// in the cluster.
    async fn put(&self, roster: &mut Roster, wanted: &Nodes, term: u64) -> Result<bool, Failure> {
        let found = roster.list().await?;
        for step in steps(wanted, &found) {
            let what = step.describe();
            match roster.take(step, term).await {
                Ok(()) => info!(path = self.path, step = what, "node for Jodis"),
                Err(Failure::Conflict(_)) => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }
}

async fn deposed(mut standings: watch::Receiver<Standing>) -> Result<(), watch::error::RecvError> {
    standings
        .wait_for(|now| !now.is_in_office())
        .await
        .map(drop)
}

impl Step {
    fn describe(&self) -> String {
        match self {
            Self::Create { name, .. } => format!("create {name}"),
            Self::Replace { name, .. } => format!("replace {name}"),
            Self::Remove { name, .. } => format!("remove {name}"),
        }
    }
}

/// A node for each proxy that is connected as it is registered.
fn wanted(registered: &Snapshot, live: &Proxies) -> Nodes {
    let node = |(id, live): (&ProxyId, &Live)| {
        let proxy = registered.proxies.get(id)?;
        let is_it = live.connected && proxy.incarnation == live.incarnation;
        is_it.then(|| (name(proxy), data(proxy, live.since_ms)))
    };
    live.iter().filter_map(node).collect()
}

/// What makes of what is there what is wanted.
fn steps(wanted: &Nodes, found: &BTreeMap<String, Entry>) -> Vec<Step> {
    let put = wanted
        .iter()
        .filter_map(|(name, data)| match found.get(name) {
            None => Some(Step::Create {
                name: name.clone(),
                data: data.clone(),
            }),
            Some(entry) if entry.is_own && entry.data == *data => None,
            Some(entry) => Some(Step::Replace {
                name: name.clone(),
                version: entry.version,
                data: data.clone(),
            }),
        });
    let gone = found
        .iter()
        .filter(|(name, entry)| entry.is_own && !wanted.contains_key(*name));
    let remove = gone.map(|(name, entry)| Step::Remove {
        name: name.clone(),
        version: entry.version,
    });
    put.chain(remove).collect()
}

fn name(proxy: &Registration) -> String {
    format!("proxy-{}", proxy.incarnation)
}

/// As a Codis proxy writes it, with four blanks before each field.
#[derive(Serialize)]
struct Node<'a> {
    addr: &'a str,
    admin: &'a str,
    start: String,
    state: &'static str,
    token: &'a str,
}

fn data(proxy: &Registration, since_ms: u64) -> Vec<u8> {
    let since = UNIX_EPOCH + Duration::from_millis(since_ms.min(YEAR_9999_MS));
    let start = humantime::format_rfc3339_millis(since).to_string();
    let node = Node {
        addr: &proxy.address,
        admin: &proxy.admin_address,
        start: start.replace('T', " ").replace('Z', " +0000 UTC"),
        state: "online",
        token: &proxy.incarnation,
    };
    let mut data = Vec::new();
    let mut json = Serializer::with_formatter(&mut data, PrettyFormatter::with_indent(b"    "));
    node.serialize(&mut json)
        .expect("a Vec takes all that is written to it");
    data
}

/// Later there is no date of four digits.
const YEAR_9999_MS: u64 = 253_402_300_799_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{change, snapshot::tests::empty};

    fn proxy(id: &str, digit: &str) -> Registration {
        Registration {
            id: ProxyId::new(id).unwrap(),
            revision: 0,
            incarnation: digit.repeat(32),
            address: "127.0.0.1:19000".to_owned(),
            admin_address: "127.0.0.1:11080".to_owned(),
            zone: String::new(),
            build_version: "0.1.0".to_owned(),
        }
    }

    #[test]
    fn a_node_is_what_a_codis_proxy_writes() {
        let text = String::from_utf8(data(&proxy("p1", "4"), 1_795_342_964_865)).unwrap();
        assert_eq!(
            text,
            "{\n    \"addr\": \"127.0.0.1:19000\",\n    \"admin\": \"127.0.0.1:11080\",\n    \
             \"start\": \"2026-11-22 10:22:44.865 +0000 UTC\",\n    \"state\": \"online\",\n    \
             \"token\": \"44444444444444444444444444444444\"\n}"
        );
        assert!(!data(&proxy("p1", "4"), u64::MAX).is_empty());
    }

    #[test]
    fn proxies_that_are_connected_as_they_are_registered_have_a_node() {
        let now = empty();
        let now = now.after(&change::register(&now, &proxy("p1", "a")).unwrap());
        let now = now.after(&change::register(&now, &proxy("p2", "b")).unwrap());
        let registry = Registry::new();
        let names = || {
            let nodes = wanted(&now, &registry.proxies());
            nodes.into_keys().collect::<Vec<_>>()
        };
        let connect = |id: &str, digit: &str| {
            let id = ProxyId::new(id).unwrap();
            registry.connect(&id, &digit.repeat(32), None).unwrap()
        };
        let one = connect("p1", "a");
        // Its registration is not written yet; that of p9 neither.
        let _two = connect("p2", "c");
        let _nine = connect("p9", "d");
        assert_eq!(names(), [format!("proxy-{}", "a".repeat(32))]);
        drop(one);
        assert!(names().is_empty());
    }

    #[test]
    fn only_what_is_not_as_it_should_be_is_touched() {
        let entry = |data: &[u8], is_own| Entry {
            data: data.to_vec(),
            version: 3,
            is_own,
        };
        let found = BTreeMap::from([
            ("same".to_owned(), entry(b"1", true)),
            ("before".to_owned(), entry(b"1", false)),
            ("other".to_owned(), entry(b"2", true)),
            ("gone".to_owned(), entry(b"1", true)),
            ("codis".to_owned(), entry(b"1", false)),
        ]);
        let wanted = ["same", "before", "other", "new"];
        let wanted = wanted.map(|name| (name.to_owned(), b"1".to_vec())).into();
        let steps = steps(&wanted, &found);
        let texts: Vec<_> = steps.iter().map(Step::describe).collect();
        assert_eq!(
            texts,
            [
                "replace before",
                "create new",
                "replace other",
                "remove gone"
            ]
        );
        assert!(super::steps(&wanted, &wanted.iter().map(own).collect()).is_empty());
        fn own((name, data): (&String, &Vec<u8>)) -> (String, Entry) {
            let entry = Entry {
                data: data.clone(),
                version: 0,
                is_own: true,
            };
            (name.clone(), entry)
        }
    }
}
