//! Slots that move: how a test has them moved, and what must be true afterwards.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proto::v1::{self, migration::Phase};
use redis::cmd;

use crate::{Cluster, Controller, Report, within};

/// How long a move may take. Its copy gives way to a server's clients, and so to a busy machine.
pub const MOVED: Duration = Duration::from_secs(180);

/// Creates a migration.
pub async fn create(controller: &Controller, slots: &str, target: &str) -> v1::Migration {
    let request = v1::CreateMigrationRequest {
        slots: slots.to_owned(),
        target_group_id: target.to_owned(),
        ..v1::CreateMigrationRequest::default()
    };
    let mut admin = controller.admin().await;
    admin.create_migration(request).await.unwrap().into_inner()
}

/// How far it is, by this controller.
pub async fn get(controller: &Controller, id: &str) -> Result<v1::Migration, String> {
    let mut admin = controller.admin().await;
    let request = v1::GetMigrationRequest { id: id.to_owned() };
    let answer = admin.get_migration(request).await;
    Ok(answer.map_err(|e| e.to_string())?.into_inner())
}

/// Returns once it is in this phase.
pub async fn enters(controller: &Controller, id: &str, phase: Phase) -> v1::Migration {
    within(MOVED, || async {
        let migration = get(controller, id).await?;
        match migration.phase() {
            now if now == phase => Ok(migration),
            now => Err(format!("{now:?}, not {phase:?}: {migration:?}")),
        }
    })
    .await
}

/// Moves slots, and returns once that is over.
pub async fn migrate(cluster: &Cluster, slots: &str, target: &str) -> v1::Migration {
    let migration = create(&cluster.controller, slots, target).await;
    enters(&cluster.controller, &migration.id, Phase::Succeeded).await
}

/// Every key of a server's is of one of its group's slots.
pub async fn assert_keys_are_at_their_owners(cluster: &Cluster) {
    assert_eq!(misplaced_keys(cluster).await, Vec::<String>::new());
}

/// Keys that are at a server whose group does not own their slots, in words.
pub async fn misplaced_keys(cluster: &Cluster) -> Vec<String> {
    let mut misplaced = Vec::new();
    for group in &cluster.groups {
        let mut server = group[0].connect().await;
        let keys: Vec<String> = cmd("KEYS").arg("*").query_async(&mut server).await.unwrap();
        for key in keys.iter().filter(|key| !key.starts_with("{sluice}:")) {
            let owner = cluster.owner_of(key).await;
            if owner.addr != group[0].addr {
                misplaced.push(format!("{key} is at {}, not at its owner", group[0].addr));
            }
        }
    }
    misplaced
}

/// A machine on which somebody waits for so long is busy, and may make a proxy too late for a hold.
const BUSY: Duration = Duration::from_millis(50);

/// No client has seen an error, and no proxy was fenced out; unless the machine is busy: then one may have been
/// too late.
pub fn assert_nobody_noticed(cluster: &Cluster, report: &Report) {
    assert_eq!(report.violations, Vec::<String>::new());
    let log = cluster.controller.process.log();
    let of = |line: &'_ str, name: &str| -> Option<String> {
        let (_, value) = line.split_once(name)?;
        value.split(' ').next().map(str::to_owned)
    };
    // When a server is let in, what has connected too early is closed: nobody waits for that.
    let holds: BTreeSet<String> = log.lines().filter_map(|line| of(line, " hold=")).collect();
    let is_of_hold = |line: &&str| of(line, " epoch=").is_some_and(|epoch| holds.contains(&epoch));
    let mut fenced = log
        .lines()
        .filter(|line| line.contains("fenced"))
        .filter(is_of_hold);
    match fenced.find(|line| !line.contains("killed=0")) {
        None => assert_eq!(report.errors, BTreeMap::new()),
        Some(_) if report.standstill > BUSY => assert_only_what_was_not_executed(report),
        Some(line) => panic!("{line}, with nothing to make it late: {report:?}"),
    }
}

/// No client was told of an error; unless the machine is busy, and a proxy was fenced out.
pub fn assert_no_errors(report: &Report) {
    if report.standstill > BUSY {
        assert_only_what_was_not_executed(report);
    } else {
        assert_eq!(report.errors, BTreeMap::new());
    }
}

/// What clients of a proxy see that was fenced out.
pub fn assert_only_what_was_not_executed(report: &Report) {
    let told = ["TRYAGAIN", "CLUSTERDOWN", "UNKNOWNOUTCOME"];
    let is_told = |code: &String| told.contains(&code.as_str());
    assert!(report.errors.keys().all(is_told), "{:?}", report.errors);
}
