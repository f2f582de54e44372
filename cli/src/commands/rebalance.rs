//! `sluice rebalance` and `sluice group drain`: slots move until each group has its share.

use std::collections::BTreeMap;

use clap::{Args, ValueEnum};
use proto::{GroupId, MigrationId, SlotSet, v1};
use v1::rebalance_request::By;

use super::{Context, migration};
use crate::{
    args::DryRun,
    client::{Admin, request_id},
    error::Error,
    output::{self, Table, bytes, plural, thousands},
};

pub(crate) const HELP: &str = "Examples:\n  \
    sluice rebalance --dry-run\n  \
    sluice rebalance --wait\n  \
    sluice rebalance --by memory --dry-run\n  \
    sluice rebalance --weights g1=2,g2=1 --rate 5000 --wait\n\n\
    RPC: AdminService.Rebalance";

/// How the slots are to be shared.
#[derive(Args)]
pub(crate) struct RebalanceArgs {
    /// How much each group is to own, as compared with the others; 1 where it is not named, 0 drains it
    #[arg(
        long,
        value_name = "GROUP=N",
        value_delimiter = ',',
        value_parser = weight
    )]
    weights: Vec<(GroupId, u32)>,
    #[command(flatten)]
    pub(crate) how: How,
}

/// What is evened out.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Evened {
    /// The number of slots
    Slots,
    /// The number of keys
    Keys,
    /// Bytes of memory
    Memory,
}

impl Evened {
    fn by(self) -> By {
        match self {
            Self::Slots => By::Slots,
            Self::Keys => By::Keys,
            Self::Memory => By::Memory,
        }
    }

    /// So many of them, for people.
    fn show(self, count: u64) -> String {
        match self {
            Self::Slots | Self::Keys => thousands(count),
            Self::Memory => bytes(count),
        }
    }
}

/// How it is done.
#[derive(Args)]
pub(crate) struct How {
    /// What is evened out. Keys and memory are measured at the primaries first, which takes some seconds:
    /// up to 100,000 keys of each are looked at, and stand for all where there are more
    #[arg(long, value_enum, default_value_t = Evened::Slots)]
    by: Evened,
    /// Follow the migrations until they are over
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
    /// Copy so many keys a second at most, in each migration; each 4 KiB of a value count as one more
    #[arg(
        long,
        value_name = "KEYS",
        value_parser = migration::rate,
        default_value = "unlimited",
        hide_default_value = true
    )]
    rate: u32,
    /// Move also if clients may have written to a source within the last minute without a proxy: what they write
    /// while slots are cut over, or later, is lost
    #[arg(long)]
    allow_direct_writers: bool,
    #[command(flatten)]
    dry_run: DryRun,
}

fn weight(text: &str) -> Result<(GroupId, u32), String> {
    let (group, weight) = text.split_once('=').ok_or("must be GROUP=N, as g1=2")?;
    let group = GroupId::new(group).map_err(|e| e.to_string())?;
    let weight = weight
        .parse()
        .map_err(|_| "N must be a number, 0 to 1000")?;
    Ok((group, weight))
}

/// Does it.
pub(crate) async fn run(context: &mut Context, args: RebalanceArgs) -> Result<(), Error> {
    let mut weights = BTreeMap::new();
    for (group, weight) in args.weights {
        if weights.insert(group.clone(), weight).is_some() {
            return Err(Error::Usage {
                message: format!("group {group} has two weights"),
                hint: "name each group once".to_owned(),
            });
        }
    }
    carry_out(context, weights, args.how).await
}

/// Moves all slots of a group to the others, evenly.
pub(crate) async fn drain(context: &mut Context, group: GroupId, how: How) -> Result<(), Error> {
    carry_out(context, BTreeMap::from([(group, 0)]), how).await
}

async fn carry_out(
    context: &mut Context,
    weights: BTreeMap<GroupId, u32>,
    how: How,
) -> Result<(), Error> {
    let weight = |(group, weight): (GroupId, u32)| v1::GroupWeight {
        group_id: group.to_string(),
        weight,
    };
    let request = v1::RebalanceRequest {
        weights: weights.into_iter().map(weight).collect(),
        validate_only: how.dry_run.dry_run,
        request_id: request_id(),
        rate: how.rate,
        by: how.by.by().into(),
        allow_direct_writers: how.allow_direct_writers,
    };
    let answer = context.client.change(Admin::rebalance, request).await?;
    let slots: usize = answer.migrations.iter().map(count).sum();
    let moves = plural(answer.migrations.len(), "migration");
    match (answer.migrations.is_empty(), how.dry_run.dry_run) {
        (true, _) => output::note("The groups have what they are to have; nothing moves"),
        (false, true) => output::note(&format!(
            "Would move {} by {moves} (dry run: nothing was changed)",
            plural(slots, "slot")
        )),
        (false, false) => output::note(&format!("Moving {} by {moves}", plural(slots, "slot"))),
    }
    if !how.wait {
        let loads = loads(&answer.loads, how.by);
        return context
            .output
            .show(&answer, [loads, table(&answer.migrations)]);
    }
    context.output.show_table(loads(&answer.loads, how.by))?;
    for migration in &answer.migrations {
        let id = MigrationId::new(&migration.id).map_err(|e| Error::failed(e.to_string()))?;
        migration::watch(context, &id).await?;
    }
    Ok(())
}

fn count(migration: &v1::Migration) -> usize {
    migration
        .slots
        .parse::<SlotSet>()
        .map_or(0, |slots| slots.len())
}

/// What the groups have and will have, and from how many keys that was reckoned.
fn loads(loads: &[v1::GroupLoad], by: Evened) -> Table {
    let row = |load: &v1::GroupLoad| {
        let looked_at = match by {
            Evened::Slots => "-".to_owned(),
            Evened::Keys | Evened::Memory => format!(
                "{} of {} keys",
                thousands(load.keys_looked_at),
                thousands(load.keys)
            ),
        };
        [
            load.group_id.clone(),
            load.weight.to_string(),
            by.show(load.before),
            by.show(load.after),
            looked_at,
        ]
    };
    let header = ["GROUP", "WEIGHT", "NOW", "THEN", "LOOKED AT"];
    Table::new(header, loads.iter().map(row))
}

fn table(migrations: &[v1::Migration]) -> Table {
    let row = |m: &v1::Migration| {
        [
            m.id.clone(),
            m.source_group_id.clone(),
            m.target_group_id.clone(),
            m.slots.clone(),
            count(m).to_string(),
        ]
    };
    let header = ["ID", "SOURCE", "TARGET", "SLOTS", "COUNT"];
    Table::new(header, migrations.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_shown() {
        let load = v1::GroupLoad {
            group_id: "g1".to_owned(),
            weight: 1,
            before: 3 << 20,
            after: 2 << 20,
            keys: 1_000_000,
            keys_looked_at: 100_224,
        };
        insta::assert_snapshot!(loads(&[load], Evened::Memory).render(None), @r"
        GROUP   WEIGHT   NOW       THEN      LOOKED AT
        g1      1        3.0 MiB   2.0 MiB   100,224 of 1,000,000 keys
        ");
    }

    #[test]
    fn weights_are_read() {
        assert_eq!(weight("g1=2"), Ok((GroupId::new("g1").unwrap(), 2)));
        for wrong in ["g1", "g1=", "g1=-1", "G=1", "=1"] {
            assert!(weight(wrong).is_err(), "{wrong}");
        }
    }
}
