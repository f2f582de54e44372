//! The embedded store's files. The only module that knows `sled`.
//!
//! Records are JSON under readable keys, each behind a CRC-32 of its key and text: `cluster`, `head`,
//! `slots`, `groups/<id>`, `proxies/<id>`, `migrations/<id>`, `requests/<revision>`, `events/<term>/<index>`. One tree,
//! so that one batch holds a whole commit. A commit is synced before this module returns.
//!
//! These files are the truth, not a copy of it. Where they are damaged or not ours, they are refused:
//! a person decides. Each record tells by its checksum whether it is as it was written. That none is
//! missing, sled does not tell: it cuts its log at the first damaged byte, without a word, or forgets a
//! part of it (measured: a flipped bit, and a group was as it had been before its last change). So one
//! record, `sum`, has the sum of the checksums of all others but the events; and a file that is not sled's
//! says which revision was acknowledged (`witness.rs`), and a store that is behind it is refused, each
//! time it is opened: sled has then cut the log for good. Not noticed are the
//! loss of events after the last commit, and of the whole folder, witness and all.

use std::{
    any::Any,
    collections::BTreeMap,
    io,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use proto::ClusterId;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sled::Batch;

use crate::{
    change::{Change, Edit},
    events::{Event, KEPT, Position},
    migration::Migration,
    model::{Cluster, FORMAT, Group, Registration, Request},
    snapshot::Snapshot,
    witness::{self, Acknowledged},
};

const CLUSTER: &str = "cluster";
const HEAD: &str = "head";
const SLOTS: &str = "slots";
const GROUPS: &str = "groups/";
const PROXIES: &str = "proxies/";
const MIGRATIONS: &str = "migrations/";
const REQUESTS: &str = "requests/";
const EVENTS: &str = "events/";
/// The first key that is behind all of these.
const BEHIND_EVENTS: &str = "events0";
/// The sum of the checksums of all records but the events: that none is missing, or is an older one.
const SUM: &str = "sum";
/// In which sled has its log.
const SLED_FILE: &str = "db";

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("store {dir}: another controller uses it: stop that one, or choose another --data-dir")]
    Locked {
        /// Where it is.
        dir: PathBuf,
    },
    /// Written by another release.
    #[error(
        "store {dir}: has format {found}, this release reads {FORMAT}: run the release that wrote it"
    )]
    OtherFormat {
        /// Where it is.
        dir: PathBuf,
        /// What it has.
        found: u32,
    },
    /// Of another cluster.
    #[error(
        "store {dir}: belongs to cluster `{found}`, not `{wanted}`: check --cluster and --data-dir"
    )]
    OtherCluster {
        /// Where it is.
        dir: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it was to be.
        wanted: String,
    },
    /// Not as it was written.
    #[error(
        "store {dir}: damaged: {fault}. What is missing cannot be made up: restore a backup of the \
         folder; or move it aside, start empty, and create the groups again"
    )]
    Damaged {
        /// Where it is.
        dir: PathBuf,
        /// What is wrong.
        fault: String,
    },
    /// The disk does not let us.
    #[error("store {dir}: {fault}")]
    Io {
        /// Where it is.
        dir: PathBuf,
        /// Why.
        fault: String,
    },
}

/// Writing failed: what is on the disk is unknown until the store is opened again.
#[derive(Clone, Debug, thiserror::Error)]
#[error("write the store: {0}")]
pub struct WriteError(#[from] sled::Error);

/// What a store held when it was opened.
pub struct Loaded {
    /// All records.
    pub snapshot: Snapshot,
    /// The events kept, in order.
    pub events: Vec<Event>,
}

/// The open files.
pub struct Disk {
    db: sled::Db,
    dir: PathBuf,
}

impl Disk {
    /// Opens the store in a folder, or creates one for the cluster of this name. Blocks.
    pub fn open(dir: &Path, name: &str) -> Result<(Self, Loaded), OpenError> {
        let disk = Self {
            db: open_files(dir)?,
            dir: dir.to_owned(),
        };
        let fault = |fault| damaged(dir, fault);
        let acknowledged = witness::read(dir).map_err(fault)?;
        let records = read_all(&disk.db).map_err(fault)?;
        let Some(cluster) = records.find_cluster(dir, name)? else {
            if let Some(Acknowledged { revision, .. }) = acknowledged {
                return Err(fault(behind(0, revision)));
            }
            let snapshot = Snapshot::new(Cluster {
                format: FORMAT,
                id: random_id(),
                name: name.to_owned(),
            });
            let events = Vec::new();
            return Ok((disk, Loaded { snapshot, events }));
        };
        let loaded = records.load(cluster).map_err(fault)?;
        match &acknowledged {
            Some(acknowledged) => holds(&loaded.snapshot, acknowledged).map_err(fault)?,
            // Written by a release that had no witness.
            None => disk.witness(&loaded.snapshot).map_err(|e| OpenError::Io {
                dir: dir.to_owned(),
                fault: e.to_string(),
            })?,
        }
        Ok((disk, loaded))
    }

    /// Writes what a change made of `now`, all or nothing, and syncs it. Blocks.
    pub fn commit(
        &self,
        now: &Snapshot,
        next: &Snapshot,
        change: &Change,
        events: &[Event],
        stale: &[Position],
    ) -> Result<(), WriteError> {
        let mut batch = Writing::default();
        if now.head.revision == 0 {
            put(&mut batch, CLUSTER, &*next.cluster);
        }
        if change.edits.iter().any(|e| matches!(e, Edit::Restore(_))) {
            self.put_all(&mut batch, next)?;
        } else {
            put(&mut batch, HEAD, &next.head);
            for edit in &change.edits {
                put_edit(&mut batch, next, edit);
            }
            put_requests(&mut batch, now, next);
        }
        put_events(&mut batch, events, stale);
        self.apply(batch)?;
        self.db.flush()?;
        Ok(self.witness(next).map_err(sled::Error::from)?)
    }

    /// Writes records, and with them the sum of all that there will be.
    fn apply(&self, mut writing: Writing) -> Result<(), WriteError> {
        let mut sum = writing.sums.values().flatten().fold(0, add);
        let (before, behind) = (self.db.range(..EVENTS), self.db.range(BEHIND_EVENTS..));
        for entry in before.chain(behind) {
            let (key, value) = entry?;
            if is_summed(&key) && !writing.sums.contains_key(&*key) {
                sum = add(sum, &stored_sum(&value));
            }
        }
        put(&mut writing, SUM, &sum);
        Ok(self.db.apply_batch(writing.batch)?)
    }

    /// Makes it a copy of a snapshot, all or nothing, and syncs it. Blocks.
    pub fn copy(&self, snapshot: &Snapshot) -> Result<(), WriteError> {
        let mut batch = Writing::default();
        self.put_all(&mut batch, snapshot)?;
        self.apply(batch)?;
        self.db.flush()?;
        Ok(self.witness(snapshot).map_err(sled::Error::from)?)
    }

    /// Whether what is there is a copy of this snapshot, as far as it can be seen without opening it again.
    /// Blocks.
    pub fn is_copy_of(&self, snapshot: &Snapshot) -> bool {
        let acknowledged = witness::read(&self.dir);
        let records = read_all(&self.db).and_then(|records| {
            let cluster = records.read(CLUSTER)?;
            records.load(cluster)
        });
        acknowledged == Ok(Some(acknowledgement(snapshot)))
            && self.dir.join(SLED_FILE).exists()
            && records.is_ok_and(|loaded| loaded.snapshot == *snapshot)
    }

    /// Puts a snapshot in place of all records but the events. What it is a snapshot of may be another
    /// cluster, of which the witness could not tell whether it had been written.
    fn put_all(&self, batch: &mut Writing, snapshot: &Snapshot) -> Result<(), WriteError> {
        witness::keep_only(&self.dir, &snapshot.cluster.id).map_err(sled::Error::from)?;
        for key in self.db.iter().keys() {
            let key = key?;
            if !key.starts_with(EVENTS.as_bytes()) {
                batch.remove(key);
            }
        }
        put(batch, CLUSTER, &*snapshot.cluster);
        put(batch, HEAD, &snapshot.head);
        put(batch, SLOTS, &*snapshot.slots);
        for (id, group) in &snapshot.groups {
            put(batch, &format!("{GROUPS}{id}"), &**group);
        }
        for (id, proxy) in &snapshot.proxies {
            put(batch, &format!("{PROXIES}{id}"), &**proxy);
        }
        for (id, migration) in &snapshot.migrations {
            put(batch, &format!("{MIGRATIONS}{id}"), &**migration);
        }
        for (revision, request) in &*snapshot.requests {
            put(batch, &request_key(*revision), request);
        }
        Ok(())
    }

    /// Writes events that belong to no commit. They are synced within half a second. Blocks.
    pub fn append(&self, events: &[Event], stale: &[Position]) -> Result<(), WriteError> {
        let mut batch = Writing::default();
        put_events(&mut batch, events, stale);
        Ok(self.db.apply_batch(batch.batch)?)
    }

    /// Syncs everything. Blocks.
    pub fn flush(&self) -> Result<(), WriteError> {
        self.db.flush()?;
        Ok(())
    }

    fn witness(&self, synced: &Snapshot) -> io::Result<()> {
        witness::write(&self.dir, &acknowledgement(synced))
    }
}

fn acknowledgement(synced: &Snapshot) -> Acknowledged {
    Acknowledged {
        cluster: synced.cluster.id.clone(),
        revision: synced.head.revision,
    }
}

/// What is written at once.
#[derive(Default)]
struct Writing {
    batch: Batch,
    /// The checksums of the records, by their keys. `None`: it is removed.
    sums: BTreeMap<Vec<u8>, Option<u32>>,
}

impl Writing {
    fn insert(&mut self, key: &str, value: Vec<u8>) {
        if is_summed(key.as_bytes()) {
            self.sums.insert(key.into(), Some(stored_sum(&value)));
        }
        self.batch.insert(key, value);
    }

    fn remove(&mut self, key: impl AsRef<[u8]>) {
        let key = key.as_ref();
        if is_summed(key) {
            self.sums.insert(key.into(), None);
        }
        self.batch.remove(key);
    }
}

/// Whether a record is one of those that none may be missing of.
fn is_summed(key: &[u8]) -> bool {
    key != SUM.as_bytes() && !key.starts_with(EVENTS.as_bytes())
}

/// The checksum before a record's text.
fn stored_sum(value: &[u8]) -> u32 {
    value
        .first_chunk()
        .map_or(0, |sum| u32::from_le_bytes(*sum))
}

fn add(sum: u32, checksum: &u32) -> u32 {
    sum.wrapping_add(*checksum)
}

/// Whether the store still has all that was acknowledged. It may have more: a commit that was synced
/// when the process ended, before the witness was.
fn holds(store: &Snapshot, acknowledged: &Acknowledged) -> Result<(), String> {
    let (id, revision) = (&store.cluster.id, store.head.revision);
    if *id != acknowledged.cluster {
        return Err(format!(
            "it is of cluster {id}, but its file `{}` is of cluster {}",
            witness::FILE,
            acknowledged.cluster
        ));
    }
    if revision < acknowledged.revision {
        return Err(behind(revision, acknowledged.revision));
    }
    Ok(())
}

fn behind(revision: u64, acknowledged: u64) -> String {
    format!("it is at revision {revision}, but revision {acknowledged} was acknowledged")
}

fn put_edit(batch: &mut Writing, next: &Snapshot, edit: &Edit) {
    match edit {
        Edit::Elect | Edit::Leap(_) => {} // the head is written anyway
        Edit::Restore(_) => {}            // everything is written
        Edit::PutSlots(_) => put(batch, SLOTS, &*next.slots),
        Edit::PutGroup(Group { id, .. }) | Edit::RemoveGroup(id) => {
            let record = next.groups.get(id).map(|group| &**group);
            put_or_remove(batch, &format!("{GROUPS}{id}"), record);
        }
        Edit::PutProxy(Registration { id, .. }) | Edit::RemoveProxy(id) => {
            let record = next.proxies.get(id).map(|proxy| &**proxy);
            put_or_remove(batch, &format!("{PROXIES}{id}"), record);
        }
        Edit::PutMigration(migration) => {
            let id = &migration.id;
            let record = next.migrations.get(id).map(|m| &**m);
            put_or_remove(batch, &format!("{MIGRATIONS}{id}"), record);
        }
        Edit::RemoveMigration(id) => batch.remove(format!("{MIGRATIONS}{id}").as_bytes()),
    }
}

fn put_requests(batch: &mut Writing, now: &Snapshot, next: &Snapshot) {
    if Arc::ptr_eq(&now.requests, &next.requests) {
        return;
    }
    for revision in now.requests.keys() {
        if !next.requests.contains_key(revision) {
            batch.remove(request_key(*revision).as_bytes());
        }
    }
    if let Some((revision, request)) = next.requests.last_key_value() {
        put(batch, &request_key(*revision), request);
    }
}

fn put_events(batch: &mut Writing, events: &[Event], stale: &[Position]) {
    for event in events {
        put(batch, &event_key(event.position), event);
    }
    for position in stale {
        batch.remove(event_key(*position).as_bytes());
    }
}

// Numbers are padded, so that keys sort as numbers do.
fn request_key(revision: u64) -> String {
    format!("{REQUESTS}{revision:020}")
}

fn event_key(Position { term, index }: Position) -> String {
    format!("{EVENTS}{term:020}/{index:020}")
}

fn put_or_remove<T: Serialize>(batch: &mut Writing, key: &str, record: Option<&T>) {
    match record {
        Some(record) => put(batch, key, record),
        None => batch.remove(key),
    }
}

fn put<T: Serialize>(batch: &mut Writing, key: &str, record: &T) {
    let json = serde_json::to_vec(record).expect("records have string keys and no foreign types");
    let mut value = checksum(key.as_bytes(), &json).to_le_bytes().to_vec();
    value.extend_from_slice(&json);
    batch.insert(key, value);
}

fn checksum(key: &[u8], json: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(json);
    hasher.finalize()
}

/// All records as they were read: checked texts by key.
struct Records(BTreeMap<String, Vec<u8>>);

/// Only as much of the cluster's record as every format has.
#[derive(Deserialize)]
struct AnyFormat {
    format: u32,
}

impl Records {
    /// The cluster's record, if it is one this controller may use. `None`: the store is new.
    fn find_cluster(&self, dir: &Path, name: &str) -> Result<Option<Cluster>, OpenError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let fault = |fault| damaged(dir, fault);
        let AnyFormat { format } = self.read(CLUSTER).map_err(fault)?;
        if format != FORMAT {
            return Err(OpenError::OtherFormat {
                dir: dir.to_owned(),
                found: format,
            });
        }
        let cluster: Cluster = self.read(CLUSTER).map_err(fault)?;
        if cluster.name != name {
            return Err(OpenError::OtherCluster {
                dir: dir.to_owned(),
                found: cluster.name,
                wanted: name.to_owned(),
            });
        }
        Ok(Some(cluster))
    }

    fn load(&self, cluster: Cluster) -> Result<Loaded, String> {
        let mut snapshot = Snapshot::new(cluster);
        snapshot.head = self.read(HEAD)?;
        if self.0.contains_key(SLOTS) {
            snapshot.slots = Arc::new(self.read(SLOTS)?);
        }
        for (_, group) in self.under::<Group>(GROUPS)? {
            snapshot.groups.insert(group.id.clone(), Arc::new(group));
        }
        for (_, proxy) in self.under::<Registration>(PROXIES)? {
            snapshot.proxies.insert(proxy.id.clone(), Arc::new(proxy));
        }
        for (_, migration) in self.under::<Migration>(MIGRATIONS)? {
            let id = migration.id.clone();
            snapshot.migrations.insert(id, Arc::new(migration));
        }
        let revision = |(key, request): (&str, Request)| {
            let revision = key.parse::<u64>().map_err(|e| format!("{key}: {e}"))?;
            Ok((revision, request))
        };
        let requests = self.under(REQUESTS)?.into_iter().map(revision);
        snapshot.requests = Arc::new(requests.collect::<Result<_, String>>()?);
        if let Some(fault) = snapshot.fault() {
            return Err(fault);
        }
        let summed = self.0.iter().filter(|(key, _)| is_summed(key.as_bytes()));
        let sums = summed.map(|(key, json)| checksum(key.as_bytes(), json));
        let sum = sums.fold(0, |sum, checksum| add(sum, &checksum));
        if sum != self.read::<u32>(SUM)? {
            return Err("a record is missing, or is an older one".to_owned());
        }
        let events = self.under(EVENTS)?;
        let surplus = events.len().saturating_sub(KEPT);
        let events = events.into_iter().skip(surplus).map(|(_, event)| event);
        Ok(Loaded {
            snapshot,
            events: events.collect(),
        })
    }

    /// The records whose keys start with `prefix`, with the rest of the key, in order.
    fn under<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<(&str, T)>, String> {
        self.0
            .range(prefix.to_owned()..)
            .map_while(|(key, _)| Some((key, key.strip_prefix(prefix)?)))
            .map(|(key, rest)| Ok((rest, self.read(key)?)))
            .collect()
    }

    fn read<T: DeserializeOwned>(&self, key: &str) -> Result<T, String> {
        let json = self
            .0
            .get(key)
            .ok_or_else(|| format!("record `{key}` is missing"))?;
        serde_json::from_slice(json).map_err(|e| format!("record `{key}`: {e}"))
    }
}

fn read_all(db: &sled::Db) -> Result<Records, String> {
    // What sled finds damaged while it reads pages, it may say with a panic.
    let read = panic::catch_unwind(AssertUnwindSafe(|| {
        db.iter()
            .map(|entry| {
                let (key, value) = entry.map_err(|e| e.to_string())?;
                let text = String::from_utf8_lossy(&key).into_owned();
                let (sum, json) = value
                    .split_first_chunk()
                    .ok_or_else(|| format!("record `{text}` is cut short"))?;
                if u32::from_le_bytes(*sum) != checksum(&key, json) {
                    return Err(format!("record `{text}` has a wrong checksum"));
                }
                Ok((text, json.to_vec()))
            })
            .collect::<Result<_, String>>()
    }));
    read.unwrap_or_else(|panic| Err(panic_text(&*panic)))
        .map(Records)
}

/// How long the lock of a store may be held by one who is just leaving: sled's threads let go of it a
/// moment after the store was dropped, and so does a controller that is being replaced.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

fn open_files(dir: &Path) -> Result<sled::Db, OpenError> {
    let since = Instant::now();
    loop {
        match open_once(dir) {
            Err(OpenError::Locked { .. }) if since.elapsed() < LOCK_PATIENCE => {
                thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

fn open_once(dir: &Path) -> Result<sled::Db, OpenError> {
    let open = || {
        sled::Config::new()
            .path(dir)
            .mode(sled::Mode::LowSpace)
            .segment_size(64 << 10)
            .cache_capacity(16 << 20)
            .flush_every_ms(Some(500))
            .open()
    };
    // On damaged files sled 0.34.7 fails with an error, or with a panic.
    match panic::catch_unwind(AssertUnwindSafe(open)) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(sled::Error::Io(e))) if e.to_string().contains("could not acquire lock") => {
            Err(OpenError::Locked {
                dir: dir.to_owned(),
            })
        }
        Ok(Err(sled::Error::Io(e))) => Err(OpenError::Io {
            dir: dir.to_owned(),
            fault: e.to_string(),
        }),
        Ok(Err(e)) => Err(damaged(dir, e.to_string())),
        Err(panic) => Err(damaged(dir, panic_text(&*panic))),
    }
}

fn damaged(dir: &Path, fault: String) -> OpenError {
    OpenError::Damaged {
        dir: dir.to_owned(),
        fault,
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "its files cannot be read".to_owned())
}

fn random_id() -> ClusterId {
    ClusterId::new(format!("{:016x}", fastrand::u64(..))).expect("16 hexadecimal digits")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        backup, change,
        events::Kind,
        snapshot::tests::{group, with_groups},
    };

    fn event(index: u64) -> Event {
        Event {
            position: Position { term: 1, index },
            time_ms: 5,
            revision: 1,
            subject: "slots".to_owned(),
            kind: Kind::SlotsAssigned,
            message: "m".to_owned(),
        }
    }

    /// Commits an election and a group; returns the snapshot.
    fn fill(dir: &Path) -> Snapshot {
        let (disk, loaded) = Disk::open(dir, "test").unwrap();
        let now = loaded.snapshot;
        let change = Change {
            request: Some(Request {
                id: "r".to_owned(),
                content: 9,
            }),
            ..change::elect(&now, "0")
        };
        let next = now.after(&change);
        disk.commit(&now, &next, &change, &[event(1), event(2)], &[])
            .unwrap();
        let change = change::create_group(&next, &group("g1", 7000, 1)).unwrap();
        let last = next.after(&change);
        let stale = [event(1).position];
        disk.commit(&next, &last, &change, &[event(3)], &stale)
            .unwrap();
        last
    }

    fn error(dir: &Path, name: &str) -> String {
        Disk::open(dir, name)
            .err()
            .expect("must be refused")
            .to_string()
    }

    #[test]
    fn what_was_committed_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let written = fill(dir.path());
        let (_disk, loaded) = Disk::open(dir.path(), "test").unwrap();
        assert_eq!(loaded.snapshot, written);
        assert_eq!(loaded.events, [event(2), event(3)]);
    }

    #[test]
    fn a_removed_group_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let now = fill(dir.path());
        let (disk, _) = Disk::open(dir.path(), "test").unwrap();
        let change = change::delete_group(&now, now.groups.keys().next().unwrap(), 0).unwrap();
        disk.commit(&now, &now.after(&change), &change, &[], &[])
            .unwrap();
        drop(disk);
        let (_disk, loaded) = Disk::open(dir.path(), "test").unwrap();
        assert!(loaded.snapshot.groups.is_empty());
        assert_eq!(loaded.snapshot.head.revision, 3);
    }

    #[test]
    fn what_was_restored_is_there_instead_with_the_events_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let now = fill(dir.path());
        let other = with_groups([group("g2", 7100, 1)]);
        let backup = backup::read(Some(&backup::write(&other, 0))).unwrap();
        let edits = vec![Edit::Restore(Box::new(backup))];
        let change = Change {
            edits,
            ..Change::default()
        };
        let next = now.after(&change);
        let (disk, _) = Disk::open(dir.path(), "test").unwrap();
        disk.commit(&now, &next, &change, &[event(4)], &[]).unwrap();
        drop(disk);
        let (_disk, loaded) = Disk::open(dir.path(), "test").unwrap();
        assert_eq!(loaded.snapshot, next);
        assert_eq!(loaded.snapshot.cluster.id, other.cluster.id);
        assert_eq!(loaded.events, [event(2), event(3), event(4)]);
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let now = fill(dir.path());
        assert!(error(dir.path(), "other").contains("belongs to cluster `test`, not `other`"));
        let (disk, _) = Disk::open(dir.path(), "test").unwrap();
        assert!(error(dir.path(), "test").contains("another controller uses it"));
        let mut batch = Writing::default();
        let format = FORMAT + 1;
        let cluster = Cluster {
            format,
            ..Cluster::clone(&now.cluster)
        };
        put(&mut batch, CLUSTER, &cluster);
        disk.apply(batch).unwrap();
        drop(disk);
        assert!(error(dir.path(), "test").contains("has format 2"));
    }

    #[test]
    fn damage_is_found() {
        fn check(spoil: impl Fn(&sled::Db), fault: &str) {
            let dir = tempfile::tempdir().unwrap();
            fill(dir.path());
            let (disk, _) = Disk::open(dir.path(), "test").unwrap();
            spoil(&disk.db);
            drop(disk);
            let got = error(dir.path(), "test");
            assert!(got.contains("damaged") && got.contains(fault), "{got}");
        }
        check(|db| drop(db.remove(HEAD).unwrap()), "`head` is missing");
        let lacks = "a record is missing";
        check(|db| drop(db.remove("groups/g1").unwrap()), lacks);
        check(|db| drop(db.remove(request_key(1)).unwrap()), lacks);
        check(
            |db| drop(db.remove(CLUSTER).unwrap()),
            "`cluster` is missing",
        );
        check(
            |db| {
                let mut value = db.get("groups/g1").unwrap().unwrap().to_vec();
                value[20] ^= 1;
                db.insert("groups/g1", value).unwrap();
            },
            "`groups/g1` has a wrong checksum",
        );
        check(
            |db| drop(db.insert("groups/g1", b"x").unwrap()),
            "is cut short",
        );
    }

    /// Fills a store, closes it, and spoils the bytes of sled's log. What opens then holds all that
    /// was acknowledged; else it is refused, with this error, as often as it is opened.
    fn spoilt(killed: bool, spoil: impl FnOnce(&mut Vec<u8>)) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        let written = fill(dir.path());
        drop(open_files(dir.path()).unwrap()); // with the lock, the files are at rest
        for entry in fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            if killed && path.to_string_lossy().contains("/snap.") {
                fs::remove_file(path).unwrap(); // sled writes it when it closes
            }
        }
        let log = dir.path().join("db");
        let mut bytes = fs::read(&log).unwrap();
        spoil(&mut bytes);
        fs::write(&log, bytes).unwrap();
        match Disk::open(dir.path(), "test") {
            Ok((_, loaded)) => {
                assert_eq!(loaded.snapshot, written);
                None
            }
            Err(e) => {
                let again = error(dir.path(), "test");
                assert!(again.contains("damaged"), "{e}, then {again}");
                Some(e.to_string())
            }
        }
    }

    #[test]
    fn nothing_acknowledged_is_lost_without_a_word() {
        let behind = "it is at revision 0, but revision 2 was acknowledged";
        for killed in [false, true] {
            let mut used = 0; // the rest of a segment is zeros
            let whole = spoilt(killed, |log| {
                used = log.iter().rposition(|byte| *byte != 0).unwrap();
            });
            assert_eq!(whole, None);
            for at in (0..=used).step_by(used / 12) {
                drop(spoilt(killed, |log| log[at] ^= 1)); // not every byte is of use
            }
            assert!(spoilt(killed, |log| log[used / 2] ^= 1).is_some());
            assert!(spoilt(killed, |log| log.truncate(used / 2)).is_some());
            for error in [
                spoilt(killed, Vec::clear),
                spoilt(killed, |log| log[..512].fill(0)),
            ] {
                let error = error.unwrap();
                // After a clean end, sled itself sees that something is missing.
                assert!(!killed || error.contains(behind), "{error}");
            }
        }
    }

    #[test]
    fn the_witness_must_be_of_this_store() {
        let dir = tempfile::tempdir().unwrap();
        let written = fill(dir.path());
        let says = |revision: &str, id: &str| {
            let line = format!("cluster {id} revision {revision}\n");
            fs::write(dir.path().join(witness::FILE), line).unwrap();
        };
        let id = written.cluster.id.as_str();
        says("3", id);
        let ahead = error(dir.path(), "test");
        assert!(ahead.contains("at revision 2, but revision 3 was acknowledged"));
        assert!(ahead.contains("restore a backup"), "{ahead}");
        says("2", "c9");
        assert!(error(dir.path(), "test").contains("its file `revision` is of cluster c9"));
        says("two", id);
        assert!(error(dir.path(), "test").contains("file `revision` cannot be read"));
        // The process ended between the commit and the witness.
        says("1", id);
        let opened = Disk::open(dir.path(), "test").unwrap();
        assert_eq!(opened.1.snapshot, written);
        drop(opened);
        // A store of a release that had no witness.
        fs::remove_file(dir.path().join(witness::FILE)).unwrap();
        drop(Disk::open(dir.path(), "test").unwrap());
        fs::remove_file(dir.path().join("db")).unwrap();
        assert!(error(dir.path(), "test").contains("damaged"));
    }

    #[test]
    fn the_snapshot_of_a_new_store_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let (_disk, loaded) = Disk::open(dir.path(), "test").unwrap();
        assert_eq!(loaded.snapshot.head.revision, 0);
        assert_ne!(
            loaded.snapshot.cluster.id,
            with_groups([]).cluster.id,
            "it is random"
        );
    }
}
