//! How a cluster is laid out in ZooKeeper: which record is in which node.
//!
//! | node | what |
//! |---|---|
//! | `cluster` | which cluster it is, and the format |
//! | `epoch` | revision and leader term; set by every commit, so that its version serialises all writers |
//! | `slots` | the slot map |
//! | `groups/<id>`, `proxies/<id>`, `migrations/<id>` | a record each |
//! | `requests/<revision>` | the request id that a commit took |
//! | `leader` | ephemeral: who leads |
//!
//! All is JSON that a person can read, in few and large nodes. Pure: nothing here talks to a server.
//!
//! Invariant: what [`operations`] lists makes of an [`Image`] the one that [`Image::after`] says.

use std::{collections::BTreeMap, sync::Arc};

use proto::{GroupId, MigrationId, ProxyId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    change::{Change, Edit},
    model::{Cluster, FORMAT, Group, Head, Registration, Request, SlotMap},
    snapshot::Snapshot,
};

pub(crate) const CLUSTER: &str = "/cluster";
pub(crate) const EPOCH: &str = "/epoch";
pub(crate) const SLOTS: &str = "/slots";
pub(crate) const LEADER: &str = "/leader";
pub(crate) const GROUPS: &str = "/groups";
pub(crate) const PROXIES: &str = "/proxies";
pub(crate) const MIGRATIONS: &str = "/migrations";
pub(crate) const REQUESTS: &str = "/requests";

/// The nodes that have one for each record below them.
pub(crate) const FOLDERS: [&str; 4] = [GROUPS, PROXIES, MIGRATIONS, REQUESTS];

/// A multi may have so many bytes. A server closes the connection at 1 MiB (`jute.maxbuffer`), without a
/// word.
const BYTES_MAX: usize = 900 << 10;
/// What an operation has besides its path and data, at most.
const OVERHEAD: usize = 64;

/// What stands in [`EPOCH`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Epoch {
    #[serde(flatten)]
    pub(crate) head: Head,
    /// Chosen at random by whoever wrote it: by it a writer whose answer was lost knows its own.
    pub(crate) commit: String,
}

/// What stands in [`LEADER`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Leader {
    /// Where its gRPC is reached.
    pub(crate) address: String,
    /// The version of its software.
    pub(crate) build_version: String,
    /// Chosen at random by the process: addresses of two may be equal. Empty: a release wrote it that had none.
    #[serde(default)]
    pub(crate) incarnation: String,
}

/// A node as it was read.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) data: Vec<u8>,
    pub(crate) version: i32,
}

/// All that the nodes say, at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Image {
    pub(crate) snapshot: Arc<Snapshot>,
    /// Of [`Epoch::commit`].
    pub(crate) commit: String,
    /// Of each node that a commit may write, by path.
    versions: BTreeMap<String, i32>,
}

/// One write of a commit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    Create {
        path: String,
        data: Vec<u8>,
    },
    Set {
        path: String,
        data: Vec<u8>,
        version: i32,
    },
    Delete {
        path: String,
        version: i32,
    },
}

impl Image {
    /// Reads the nodes, by path.
    pub(crate) fn read(nodes: &BTreeMap<String, Node>) -> Result<Self, String> {
        let cluster: Cluster = read(nodes, CLUSTER)?;
        if cluster.format != FORMAT {
            return Err(format!(
                "it has format {}, this release reads {FORMAT}: run the release that wrote it",
                cluster.format
            ));
        }
        let epoch: Epoch = read(nodes, EPOCH)?;
        let mut snapshot = Snapshot::new(cluster);
        snapshot.head = epoch.head;
        snapshot.slots = Arc::new(read(nodes, SLOTS)?);
        let mut requests = BTreeMap::new();
        for path in nodes.keys() {
            match path.strip_prefix('/').and_then(|path| path.split_once('/')) {
                Some(("groups", id)) => {
                    let id = GroupId::new(id).map_err(|e| e.to_string())?;
                    snapshot.groups.insert(id, Arc::new(read(nodes, path)?));
                }
                Some(("proxies", id)) => {
                    let id = ProxyId::new(id).map_err(|e| e.to_string())?;
                    snapshot.proxies.insert(id, Arc::new(read(nodes, path)?));
                }
                Some(("migrations", id)) => {
                    let id = MigrationId::new(id).map_err(|e| e.to_string())?;
                    snapshot.migrations.insert(id, Arc::new(read(nodes, path)?));
                }
                Some(("requests", revision)) => {
                    let revision = revision.parse().map_err(|e| format!("{path}: {e}"))?;
                    requests.insert(revision, read::<Request>(nodes, path)?);
                }
                _ => {}
            }
        }
        snapshot.requests = Arc::new(requests);
        if let Some((id, _)) = snapshot.groups.iter().find(|(id, group)| **id != group.id) {
            return Err(format!("{GROUPS}/{id} is of another group"));
        }
        if let Some((id, _)) = snapshot.proxies.iter().find(|(id, proxy)| **id != proxy.id) {
            return Err(format!("{PROXIES}/{id} is of another proxy"));
        }
        if let Some((id, _)) = snapshot.migrations.iter().find(|(id, m)| **id != m.id) {
            return Err(format!("{MIGRATIONS}/{id} is of another migration"));
        }
        match snapshot.fault() {
            Some(fault) => Err(fault),
            None => Ok(Self {
                snapshot: Arc::new(snapshot),
                commit: epoch.commit,
                versions: nodes
                    .iter()
                    .map(|(path, node)| (path.clone(), node.version))
                    .collect(),
            }),
        }
    }

    /// The version of [`EPOCH`].
    pub(crate) fn epoch_version(&self) -> i32 {
        self.versions[EPOCH]
    }

    /// What it is once these operations, which lead to `next`, have been taken.
    pub(crate) fn after(&self, next: Arc<Snapshot>, commit: String, done: &[Operation]) -> Self {
        let mut versions = self.versions.clone();
        for operation in done {
            match operation {
                Operation::Create { path, .. } => {
                    versions.insert(path.clone(), 0);
                }
                // As ZooKeeper counts.
                Operation::Set { path, version, .. } => {
                    versions.insert(path.clone(), version.wrapping_add(1));
                }
                Operation::Delete { path, .. } => {
                    versions.remove(path);
                }
            }
        }
        Self {
            snapshot: next,
            commit,
            versions,
        }
    }
}

/// The nodes of a cluster in which nothing was committed yet.
pub(crate) fn first(cluster: &Cluster) -> Vec<Operation> {
    let epoch = Epoch {
        head: Head::default(),
        commit: String::new(),
    };
    let mut nodes = vec![
        create(CLUSTER, json(cluster)),
        create(EPOCH, json(&epoch)),
        create(SLOTS, json(&SlotMap::default())),
    ];
    nodes.extend(FOLDERS.map(|folder| create(folder, Vec::new())));
    nodes
}

/// What a commit writes: the epoch first, then what the change touches.
pub(crate) fn operations(
    now: &Image,
    next: &Snapshot,
    change: &Change,
    commit: &str,
) -> Vec<Operation> {
    let epoch = Epoch {
        head: next.head,
        commit: commit.to_owned(),
    };
    let mut writes = BTreeMap::from([(EPOCH.to_owned(), Some(json(&epoch)))]);
    for edit in &change.edits {
        match edit {
            Edit::Elect | Edit::Leap(_) => {} // it is in the epoch
            Edit::PutSlots(_) => {
                writes.insert(SLOTS.to_owned(), Some(json(&*next.slots)));
            }
            Edit::PutGroup(Group { id, .. }) | Edit::RemoveGroup(id) => {
                let record = next.groups.get(id).map(|group| json(&**group));
                writes.insert(format!("{GROUPS}/{id}"), record);
            }
            Edit::PutProxy(Registration { id, .. }) | Edit::RemoveProxy(id) => {
                let record = next.proxies.get(id).map(|proxy| json(&**proxy));
                writes.insert(format!("{PROXIES}/{id}"), record);
            }
            Edit::PutMigration(migration) => {
                let id = &migration.id;
                let record = next.migrations.get(id).map(|m| json(&**m));
                writes.insert(format!("{MIGRATIONS}/{id}"), record);
            }
            Edit::RemoveMigration(id) => {
                writes.insert(format!("{MIGRATIONS}/{id}"), None);
            }
            Edit::Restore(_) => writes.extend(all(&now.snapshot, next)),
        }
    }
    for revision in now.snapshot.requests.keys() {
        if !next.requests.contains_key(revision) {
            writes.insert(request_path(*revision), None);
        }
    }
    for (revision, request) in &*next.requests {
        if !now.snapshot.requests.contains_key(revision) {
            writes.insert(request_path(*revision), Some(json(request)));
        }
    }
    let operation = |(path, data): (String, Option<Vec<u8>>)| match (now.versions.get(&path), data)
    {
        (Some(&version), Some(data)) => Some(Operation::Set {
            path,
            data,
            version,
        }),
        (Some(&version), None) => Some(Operation::Delete { path, version }),
        (None, Some(data)) => Some(Operation::Create { path, data }),
        (None, None) => None, // made and removed within one change
    };
    writes.into_iter().filter_map(operation).collect()
}

/// Writes the epoch as it is: what was sent before, at the version that it has had, is not taken any more.
pub(crate) fn seal(now: &Image) -> Operation {
    let epoch = Epoch {
        head: now.snapshot.head,
        commit: now.commit.clone(),
    };
    Operation::Set {
        path: EPOCH.to_owned(),
        data: json(&epoch),
        version: now.epoch_version(),
    }
}

/// Every record of the one and the other but the requests, as it is in the other.
fn all(now: &Snapshot, next: &Snapshot) -> BTreeMap<String, Option<Vec<u8>>> {
    let gone = now.groups.keys().map(|id| format!("{GROUPS}/{id}"));
    let gone = gone.chain(now.proxies.keys().map(|id| format!("{PROXIES}/{id}")));
    let gone = gone.chain(now.migrations.keys().map(|id| format!("{MIGRATIONS}/{id}")));
    let mut writes: BTreeMap<_, _> = gone.map(|path| (path, None)).collect();
    let groups = next.groups.iter();
    writes.extend(groups.map(|(id, g)| (format!("{GROUPS}/{id}"), Some(json(&**g)))));
    let proxies = next.proxies.iter();
    writes.extend(proxies.map(|(id, p)| (format!("{PROXIES}/{id}"), Some(json(&**p)))));
    writes.insert(CLUSTER.to_owned(), Some(json(&*next.cluster)));
    writes.insert(SLOTS.to_owned(), Some(json(&*next.slots)));
    writes
}

/// Whether a server takes them at once.
pub(crate) fn fit(operations: &[Operation]) -> bool {
    let size = |operation: &Operation| match operation {
        Operation::Create { path, data } | Operation::Set { path, data, .. } => {
            path.len() + data.len() + OVERHEAD
        }
        Operation::Delete { path, .. } => path.len() + OVERHEAD,
    };
    operations.iter().map(size).sum::<usize>() <= BYTES_MAX
}

fn request_path(revision: u64) -> String {
    format!("{REQUESTS}/{revision:020}")
}

fn create(path: &str, data: Vec<u8>) -> Operation {
    Operation::Create {
        path: path.to_owned(),
        data,
    }
}

/// For people, too.
pub(crate) fn json<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec_pretty(record).expect("records have string keys and no foreign types")
}

fn read<T: DeserializeOwned>(nodes: &BTreeMap<String, Node>, path: &str) -> Result<T, String> {
    let node = nodes
        .get(path)
        .ok_or_else(|| format!("{path} is missing"))?;
    serde_json::from_slice(&node.data).map_err(|e| format!("{path}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backup, change,
        migration::Advance,
        model::REQUESTS_KEPT,
        snapshot::tests::{empty, group},
    };

    /// The nodes after the operations, as ZooKeeper would have them. Panics where it would refuse.
    fn apply(nodes: &mut BTreeMap<String, Node>, operations: &[Operation]) {
        for operation in operations.iter().cloned() {
            match operation {
                Operation::Create { path, data } => {
                    let node = Node { data, version: 0 };
                    assert!(nodes.insert(path.clone(), node).is_none(), "{path} exists");
                }
                Operation::Set {
                    path,
                    data,
                    version,
                } => {
                    let node = nodes.get_mut(&path).expect("it exists");
                    assert_eq!(node.version, version, "{path}");
                    *node = Node {
                        data,
                        version: version + 1,
                    };
                }
                Operation::Delete { path, version } => {
                    assert_eq!(nodes.remove(&path).expect("it exists").version, version);
                }
            }
        }
    }

    fn commit(nodes: &mut BTreeMap<String, Node>, image: &Image, change: &Change) -> Image {
        let next = Arc::new(image.snapshot.after(change));
        let commit = format!("c{}", next.head.revision);
        let operations = operations(image, &next, change, &commit);
        assert!(fit(&operations));
        apply(nodes, &operations);
        image.after(next, commit, &operations)
    }

    fn start() -> (BTreeMap<String, Node>, Image) {
        let mut nodes = BTreeMap::new();
        apply(&mut nodes, &first(&empty().cluster));
        let image = Image::read(&nodes).unwrap();
        (nodes, image)
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let (mut nodes, mut image) = start();
        assert_eq!(image.snapshot.head, Head::default());
        let id = |text: &str| GroupId::new(text).unwrap();
        let registration = Registration {
            id: ProxyId::new("p1").unwrap(),
            revision: 0,
            incarnation: "0".repeat(32),
            address: "a:1".to_owned(),
            admin_address: String::new(),
            zone: String::new(),
            build_version: "1".to_owned(),
        };
        type Decide<'a> = Box<dyn Fn(&Snapshot) -> change::Decision + 'a>;
        let request = Request {
            id: "r/1".to_owned(),
            content: 7,
        };
        let migration = proto::MigrationId::new("m1").unwrap();
        let slots: proto::SlotSet = "0-9".parse().unwrap();
        let restore = |now: &Snapshot| {
            let old = backup::Backup {
                groups: vec![group("g1", 9000, 0)],
                slots: SlotMap::default(),
                ..backup::read(Some(&backup::write(now, 0))).unwrap()
            };
            Ok(Change {
                edits: vec![Edit::Restore(Box::new(old))],
                ..Change::default()
            })
        };
        let steps: [Decide<'_>; 10] = [
            Box::new(|now| Ok(change::elect(now, "1"))),
            Box::new(|now| change::create_group(now, &group("g1", 7000, 1))),
            Box::new(|now| {
                change::once(now, &request, |now| {
                    change::create_group(now, &group("g2", 8000, 0))
                })
            }),
            Box::new(|now| change::assign_slots(now, &change::Assignment::Even, 0)),
            Box::new(|now| change::register(now, &registration)),
            Box::new(|now| {
                let manner = crate::migration::Manner::default();
                change::create_migration(now, Some(&migration), slots, &id("g2"), manner)
            }),
            Box::new(|now| Ok(change::advance(now, &migration, 6, &Advance::Copy))),
            Box::new(|now| change::update_group(now, &id("g1"), "text", 0)),
            Box::new(|now| change::delete_server(now, &"127.0.0.1:7001".parse().unwrap(), 0)),
            Box::new(restore),
        ];
        for decide in steps {
            let change = decide(&image.snapshot).unwrap();
            image = commit(&mut nodes, &image, &change);
            assert_eq!(Image::read(&nodes).unwrap(), image);
        }
        assert_eq!(image.epoch_version(), 10);
        assert_eq!(image.snapshot.head.revision, 10);
        assert!(!nodes.contains_key("/groups/g2") && !nodes.contains_key("/migrations/m1"));
        let text = String::from_utf8(nodes[EPOCH].data.clone()).unwrap();
        assert_eq!(
            text,
            "{\n  \"revision\": 10,\n  \"leader_term\": 2,\n  \"commit\": \"c10\"\n}"
        );
    }

    #[test]
    fn old_requests_are_forgotten() {
        let (mut nodes, mut image) = start();
        for number in 0..REQUESTS_KEPT + 2 {
            let change = Change {
                request: Some(Request {
                    id: number.to_string(),
                    content: 0,
                }),
                ..Change::default()
            };
            image = commit(&mut nodes, &image, &change);
        }
        assert_eq!(Image::read(&nodes).unwrap(), image);
        assert_eq!(image.snapshot.requests.len(), REQUESTS_KEPT);
    }

    #[test]
    fn what_somebody_else_wrote_is_refused() {
        let check = |path: &str, data: &str, expected: &str| {
            let (mut nodes, _) = start();
            let data = data.as_bytes().to_vec();
            nodes.insert(path.to_owned(), Node { data, version: 1 });
            let fault = Image::read(&nodes).unwrap_err();
            assert!(fault.contains(expected), "{fault}");
        };
        check(EPOCH, "", "/epoch: ");
        check(
            SLOTS,
            r#"{"revision":1,"ranges":[{"slots":"0","group":"g1"}]}"#,
            "not there",
        );
        check("/groups/G", "{}", "invalid group id");
        let other = serde_json::to_string(&group("g2", 1, 0)).unwrap();
        check("/groups/g1", &other, "is of another group");
        check("/requests/x", "{}", "/requests/x: ");
        let (mut nodes, _) = start();
        nodes.remove(CLUSTER);
        assert!(
            Image::read(&nodes)
                .unwrap_err()
                .contains("/cluster is missing")
        );
    }

    #[test]
    fn what_a_server_would_not_take_does_not_fit() {
        let create = |bytes: usize| create("/groups/g1", vec![0; bytes]);
        assert!(fit(&[create(800 << 10)]));
        assert!(!fit(&[create(500 << 10), create(500 << 10)]));
    }
}
