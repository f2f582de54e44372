//! `sluice migration`: slots on their way from one group to another.

use std::time::Duration;

use clap::{Args, Subcommand};
use proto::{GroupId, MigrationId, SlotSet, v1};
use tokio::time::{Instant, sleep};
use tonic::{Response, Status};
use v1::migration::Phase;

use super::{Context, Verb, announce};
use crate::{
    args::{ChangeFlags, DryRun},
    client::{Admin, request_id},
    error::Error,
    output::{self, StatusLine, Table, bytes, or_dash, plural, thousands},
};

mod verify;

/// How often a migration that is watched is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What to do with migrations.
#[derive(Subcommand)]
pub(crate) enum MigrationCommand {
    /// List the migrations
    #[command(
        visible_alias = "ls",
        after_long_help = "Example:\n  sluice migration list\n\nRPC: AdminService.ListMigrations"
    )]
    List,
    /// Show a migration, and what it waits for
    #[command(
        alias = "show",
        alias = "describe",
        after_long_help = "Example:\n  sluice migration get m7\n\nRPC: AdminService.GetMigration"
    )]
    Get(Which),
    /// Move slots to another group, while clients use them
    ///
    /// The keys are copied while the present owner serves them. Then the slots are held for some
    /// milliseconds, some at a time: requests for them wait, and go to the new owner. No client sees an
    /// error. It can be cancelled as long as slots have not moved.
    #[command(after_long_help = "Examples:\n  \
        sluice migration create --slots 0-99 --target g2\n  \
        sluice migration create --slots 0-99,200 --target g2 --wait\n  \
        sluice migration create --slots 0-511 --target g3 --dry-run\n  \
        sluice migration create --slots 0-511 --target g3 --rate 5000 --keep-source --wait\n\n\
        RPC: AdminService.CreateMigration")]
    Create(CreateArgs),
    /// Follow a migration until it is over
    #[command(
        visible_alias = "wait",
        after_long_help = "Example:\n  sluice migration watch m7\n\n\
            Exits with 0 if all slots have moved, and with 1 if not.\n\nRPC: AdminService.GetMigration"
    )]
    Watch(Which),
    /// Compare what source and target of a migration have, key by key
    ///
    /// From when all keys are copied until the source's copies are deleted; a migration that was created
    /// with --keep-source waits before that. Nothing is changed. A key that clients change meanwhile may
    /// differ; so does one that they have changed since its slot moved.
    #[command(after_long_help = verify::HELP)]
    Verify(verify::VerifyArgs),
    /// Change how fast a migration may go
    #[command(after_long_help = "Examples:\n  \
        sluice migration update m7 --rate 2000\n  \
        sluice migration update m7 --rate unlimited\n\n\
        RPC: AdminService.UpdateMigration")]
    Update(UpdateArgs),
    /// Let a migration wait
    #[command(
        after_long_help = "Example:\n  sluice migration pause m7\n\nRPC: AdminService.PauseMigration"
    )]
    Pause(ChangeArgs),
    /// Let a migration that waits go on
    #[command(after_long_help = "Example:\n  sluice migration resume m7\n\n\
        RPC: AdminService.ResumeMigration")]
    Resume(ChangeArgs),
    /// End a migration: what has moved stays moved, the rest stays where it is
    #[command(
        alias = "abort",
        after_long_help = "Example:\n  sluice migration cancel m7\n\n\
            RPC: AdminService.CancelMigration"
    )]
    Cancel(ChangeArgs),
}

/// Which migration.
#[derive(Args)]
pub(crate) struct Which {
    /// The migration
    #[arg(value_name = "MIGRATION")]
    id: MigrationId,
}

/// What to move.
#[derive(Args)]
pub(crate) struct CreateArgs {
    /// The slots, as 0-511 or 0-99,200,300-400; all of one group
    #[arg(long, value_name = "RANGES")]
    slots: SlotSet,
    /// The group that is to own them
    #[arg(long, value_name = "GROUP")]
    target: GroupId,
    /// What to call it; by default `m` and a number
    #[arg(long, value_name = "ID")]
    id: Option<MigrationId>,
    /// Copy so many keys a second at most; each 4 KiB of a value count as one more
    #[arg(
        long,
        value_name = "KEYS",
        value_parser = rate,
        default_value = "unlimited",
        hide_default_value = true
    )]
    rate: u32,
    /// When all slots have moved, wait for `migration resume` before the source's copies are deleted, so
    /// that `migration verify` can compare
    #[arg(long)]
    keep_source: bool,
    /// Move also if clients may have written to the source within the last minute without a proxy: what they write
    /// while slots are cut over, or later, is lost
    #[arg(long)]
    allow_direct_writers: bool,
    /// Follow it until it is over
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
    #[command(flatten)]
    dry_run: DryRun,
}

/// Which migration, and how fast it may go.
#[derive(Args)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    which: Which,
    /// Keys copied a second, at most, or `unlimited`; each 4 KiB of a value count as one more
    #[arg(long, value_name = "KEYS", value_parser = rate)]
    rate: u32,
    #[command(flatten)]
    change: ChangeFlags,
}

/// Keys a second; 0: no limit.
pub(crate) fn rate(text: &str) -> Result<u32, String> {
    match text {
        "unlimited" => Ok(0),
        text => match text.parse() {
            Ok(0) | Err(_) => Err("must be a number of keys, 1 or more, or `unlimited`".to_owned()),
            Ok(rate) => Ok(rate),
        },
    }
}

/// Which migration, and how it is to be changed.
#[derive(Args)]
pub(crate) struct ChangeArgs {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    change: ChangeFlags,
}

/// Does it.
pub(crate) async fn run(context: &mut Context, command: MigrationCommand) -> Result<(), Error> {
    let changed = match command {
        MigrationCommand::List => return list(context).await,
        MigrationCommand::Get(Which { id }) => {
            let migration = get(context, &id).await?;
            return context.output.show(&migration, detail(&migration));
        }
        MigrationCommand::Create(args) => return create(context, args).await,
        MigrationCommand::Watch(Which { id }) => return watch(context, &id).await,
        MigrationCommand::Verify(args) => return verify::run(context, args).await,
        MigrationCommand::Update(args) => update(context, args).await?,
        MigrationCommand::Pause(args) => {
            wish(context, Admin::pause_migration, Verb::Pause, args).await?
        }
        MigrationCommand::Resume(args) => {
            wish(context, Admin::resume_migration, Verb::Resume, args).await?
        }
        MigrationCommand::Cancel(args) => {
            wish(context, Admin::cancel_migration, Verb::Cancel, args).await?
        }
    };
    context.output.show(&changed, detail(&changed))
}

/// Asks for what is to become of a migration.
async fn wish(
    context: &mut Context,
    method: impl AsyncFn(
        &mut Admin,
        v1::ChangeMigrationRequest,
    ) -> Result<Response<v1::Migration>, Status>,
    verb: Verb,
    ChangeArgs { which, change }: ChangeArgs,
) -> Result<v1::Migration, Error> {
    let request = v1::ChangeMigrationRequest {
        id: which.id.to_string(),
        validate_only: change.validate_only(),
        expected_revision: change.expected_revision,
        request_id: request_id(),
    };
    let migration = context.client.change(method, request).await?;
    let what = format!("migration {}", which.id);
    announce(change.validate_only(), verb, &what);
    Ok(migration)
}

async fn update(context: &mut Context, args: UpdateArgs) -> Result<v1::Migration, Error> {
    let UpdateArgs {
        which,
        rate,
        change,
    } = args;
    let request = v1::UpdateMigrationRequest {
        id: which.id.to_string(),
        rate,
        validate_only: change.validate_only(),
        expected_revision: change.expected_revision,
        request_id: request_id(),
    };
    let migration = context
        .client
        .change(Admin::update_migration, request)
        .await?;
    let what = format!("migration {}", which.id);
    announce(change.validate_only(), Verb::Update, &what);
    Ok(migration)
}

async fn get(context: &mut Context, id: &MigrationId) -> Result<v1::Migration, Error> {
    let request = v1::GetMigrationRequest { id: id.to_string() };
    Ok(context.client.read(Admin::get_migration, request).await?)
}

async fn list(context: &mut Context) -> Result<(), Error> {
    let request = v1::ListMigrationsRequest::default();
    let answer = context.client.list_migrations(request).await?;
    context.output.show(&answer, table(&answer.migrations))?;
    let hint = "No migrations: `sluice migration create --slots 0-99 --target g2` moves slots";
    context.output.note_if_empty(&answer.migrations, hint);
    Ok(())
}

async fn create(context: &mut Context, args: CreateArgs) -> Result<(), Error> {
    let validate_only = args.dry_run.dry_run;
    let request = v1::CreateMigrationRequest {
        rate: args.rate,
        keep_source: args.keep_source,
        allow_direct_writers: args.allow_direct_writers,
        ..create_request(args.slots, &args.target, args.id.as_ref(), validate_only)
    };
    let migration = context
        .client
        .change(Admin::create_migration, request)
        .await?;
    let what = format!(
        "migration {} of {} from {} to {}",
        migration.id,
        plural(args.slots.len(), "slot"),
        migration.source_group_id,
        migration.target_group_id
    );
    announce(validate_only, Verb::Create, &what);
    if args.wait {
        let id = MigrationId::new(&migration.id).map_err(|e| Error::failed(e.to_string()))?;
        return watch(context, &id).await;
    }
    context.output.show(&migration, detail(&migration))?;
    if !validate_only {
        output::note(&format!(
            "`sluice migration watch {}` follows it",
            migration.id
        ));
    }
    Ok(())
}

/// Asks for a migration.
pub(crate) fn create_request(
    slots: SlotSet,
    target: &GroupId,
    id: Option<&MigrationId>,
    validate_only: bool,
) -> v1::CreateMigrationRequest {
    v1::CreateMigrationRequest {
        id: id.map(ToString::to_string).unwrap_or_default(),
        slots: slots.to_string(),
        target_group_id: target.to_string(),
        validate_only,
        request_id: request_id(),
        ..v1::CreateMigrationRequest::default()
    }
}

/// Follows a migration until it is over, or only waits with its copies: in one line that changes on a terminal, in a line for each new
/// phase elsewhere, and as JSON in a line for whatever changes.
pub(crate) async fn watch(context: &mut Context, id: &MigrationId) -> Result<(), Error> {
    let mut line = StatusLine::new();
    let mut told = v1::Migration::default();
    let begun = Instant::now();
    loop {
        let migration = get(context, id).await?;
        if migration != told {
            line.show(
                &progress(&migration, begun.elapsed()),
                migration.phase != told.phase,
            );
            context.output.stream_json(&migration)?;
        }
        if is_over(&migration) {
            line.end();
            return verdict(context, &migration);
        }
        if migration.phase() == Phase::Committed && migration.paused {
            line.end();
            output::note(&format!(
                "All slots have moved, and the source's copies are kept: `sluice migration verify {id}` \
                 compares, `sluice migration resume {id}` deletes them"
            ));
            return context.output.show_table(detail(&migration));
        }
        told = migration;
        sleep(LOOK_EVERY).await;
    }
}

fn verdict(context: &Context, migration: &v1::Migration) -> Result<(), Error> {
    let v1::Migration { id, reason, .. } = migration;
    match migration.phase() {
        Phase::Succeeded => {
            output::note(&format!(
                "Migration {id} has moved {} to {}; held for {} at most",
                plural(count(&migration.slots), "slot"),
                migration.target_group_id,
                millis(migration.longest_hold_ms),
            ));
            context.output.show_table(detail(migration))
        }
        Phase::Cancelled => Err(Error::failed(format!("migration {id} was cancelled"))
            .hint(format!("`sluice migration get {id}` shows what has moved"))),
        _ => Err(Error::failed(format!("migration {id} failed: {reason}"))),
    }
}

fn is_over(migration: &v1::Migration) -> bool {
    match migration.phase() {
        Phase::Succeeded | Phase::Cancelled | Phase::Failed => true,
        Phase::Unspecified
        | Phase::Pending
        | Phase::Copying
        | Phase::CuttingOver
        | Phase::Committed
        | Phase::Reaping
        | Phase::Aborting => false,
    }
}

/// `COPYING`.
fn phase(migration: &v1::Migration) -> String {
    let name = migration.phase().as_str_name();
    let wish = match (migration.paused, migration.cancelling) {
        (true, _) => " (paused)",
        (_, true) => " (cancelling)",
        (false, false) => "",
    };
    format!("{name}{wish}")
}

fn table(migrations: &[v1::Migration]) -> Table {
    let row = |m: &v1::Migration| {
        [
            m.id.clone(),
            m.source_group_id.clone(),
            m.target_group_id.clone(),
            m.slots.clone(),
            phase(m),
            format!("{}/{}", count(&m.moved_slots), count(&m.slots)),
            or_dash(&m.waits_for),
        ]
    };
    let header = ["ID", "SOURCE", "TARGET", "SLOTS", "PHASE", "MOVED", "WAITS"];
    Table::new(header, migrations.iter().map(row))
}

fn detail(migration: &v1::Migration) -> Table {
    let copy = migration.copy.clone().unwrap_or_default();
    Table::fields([
        ("Id", migration.id.clone()),
        ("Source", migration.source_group_id.clone()),
        ("Target", migration.target_group_id.clone()),
        ("Slots", migration.slots.clone()),
        ("Moved", or_dash(&migration.moved_slots)),
        ("Left", or_dash(&migration.left_slots)),
        ("Phase", phase(migration)),
        ("Waits", or_dash(&migration.waits_for)),
        ("Reason", or_dash(&migration.reason)),
        ("Keys copied", thousands(copy.keys_copied)),
        ("Bytes copied", bytes(copy.bytes_copied)),
        ("Keys dirty", thousands(copy.keys_dirty)),
        ("Copy attempt", copy.attempt.to_string()),
        ("Interrupted", or_dash(&copy.interruption)),
        ("Keys deleted", thousands(migration.deleted_keys)),
        ("Rate", rate_text(migration)),
        ("Keeps source", yes_or_no(migration.keep_source)),
        ("Cut-overs", migration.cut_overs.to_string()),
        ("Last hold", millis(migration.last_hold_ms)),
        ("Longest hold", millis(migration.longest_hold_ms)),
        ("Revision", migration.revision.to_string()),
    ])
}

fn rate_text(migration: &v1::Migration) -> String {
    match migration.rate {
        0 => "unlimited".to_owned(),
        rate => format!("{} keys/s", thousands(rate.into())),
    }
}

fn yes_or_no(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

/// One line: how far it is, how fast, and for how long yet.
fn progress(migration: &v1::Migration, elapsed: Duration) -> String {
    let (moved, all) = (count(&migration.moved_slots), count(&migration.slots));
    let copy = migration.copy.clone().unwrap_or_default();
    let part = done(migration);
    let mut line = format!(
        "{} {:<12} {} {:>3}%  {moved}/{all} slots",
        migration.id,
        phase(migration),
        bar(part),
        (part * 100.0) as u32
    );
    if copy.keys_copied > 0 {
        let most = match migration.rate {
            0 => String::new(),
            rate => format!(" of {} at most", thousands(rate.into())),
        };
        line.push_str(&format!(
            ", {} keys, {}, {} keys/s{most}, {} dirty",
            thousands(copy.keys_copied),
            bytes(copy.bytes_copied),
            thousands(copy.keys_per_second),
            thousands(copy.keys_dirty)
        ));
    }
    if migration.last_hold_ms > 0.0 {
        line.push_str(&format!(", held {}", millis(migration.last_hold_ms)));
    }
    if let Some(left) = eta(part, elapsed) {
        line.push_str(&format!(", {left} left"));
    }
    if !migration.waits_for.is_empty() && migration.phase() != Phase::Copying {
        line.push_str(&format!("; {}", migration.waits_for));
    }
    line
}

/// Which part of it is done, 0 to 1: most of the time is copying, the rest is by slots.
fn done(migration: &v1::Migration) -> f64 {
    const COPYING: f64 = 0.8;
    let copy = migration.copy.clone().unwrap_or_default();
    let seen = match copy.keys_total {
        _ if copy.following => 1.0,
        0 => 0.0,
        total => (copy.keys_seen as f64 / total as f64).min(1.0),
    };
    let moved = count(&migration.moved_slots) as f64 / count(&migration.slots).max(1) as f64;
    match migration.phase() {
        Phase::Unspecified | Phase::Pending => 0.0,
        Phase::Copying | Phase::CuttingOver | Phase::Aborting => {
            COPYING * seen.max(moved) + 0.15 * moved
        }
        Phase::Committed | Phase::Reaping => 0.95,
        Phase::Succeeded | Phase::Cancelled | Phase::Failed => 1.0,
    }
}

fn eta(part: f64, elapsed: Duration) -> Option<String> {
    // Before that it is a guess.
    if !(0.05..1.0).contains(&part) || elapsed < Duration::from_secs(2) {
        return None;
    }
    let left = elapsed.mul_f64((1.0 - part) / part).as_secs() + 1;
    Some(match left {
        0..60 => format!("{left}s"),
        60..3600 => format!("{}m{:02}s", left / 60, left % 60),
        _ => format!("{}h{:02}m", left / 3600, left / 60 % 60),
    })
}

fn bar(part: f64) -> String {
    const WIDTH: usize = 20;
    let full = ((part * WIDTH as f64) as usize).min(WIDTH);
    format!("[{}{}]", "#".repeat(full), "-".repeat(WIDTH - full))
}

fn millis(millis: f64) -> String {
    match millis {
        0.0 => "-".to_owned(),
        millis => format!("{millis:.1} ms"),
    }
}

/// How many slots a text such as `0-99,200` names.
fn count(slots: &str) -> usize {
    slots.parse::<SlotSet>().map_or(0, |slots| slots.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migration() -> v1::Migration {
        v1::Migration {
            id: "m7".to_owned(),
            revision: 9,
            source_group_id: "g1".to_owned(),
            target_group_id: "g2".to_owned(),
            slots: "0-99".to_owned(),
            moved_slots: "0-49".to_owned(),
            phase: Phase::Copying.into(),
            waits_for: "copying keys".to_owned(),
            copy: Some(v1::CopyProgress {
                attempt: 1,
                keys_seen: 500,
                keys_total: 1000,
                keys_copied: 12_345,
                bytes_copied: 3 << 20,
                keys_dirty: 7,
                keys_per_second: 4_000,
                ..v1::CopyProgress::default()
            }),
            last_hold_ms: 12.34,
            ..v1::Migration::default()
        }
    }

    #[test]
    fn a_line_tells_how_far_it_is() {
        insta::assert_snapshot!(
            progress(&migration(), Duration::from_secs(19)),
            @"m7 COPYING      [#########-----------]  47%  50/100 slots, 12,345 keys, 3.0 MiB, 4,000 keys/s, 7 dirty, held 12.3 ms, 22s left"
        );
        let limited = v1::Migration {
            rate: 4500,
            ..migration()
        };
        let line = progress(&limited, Duration::ZERO);
        assert!(line.contains("4,000 keys/s of 4,500 at most"), "{line}");
        let begun = v1::Migration {
            phase: Phase::Pending.into(),
            moved_slots: String::new(),
            copy: None,
            last_hold_ms: 0.0,
            waits_for: "waiting for migration m6, which has a group in common".to_owned(),
            ..migration()
        };
        insta::assert_snapshot!(
            progress(&begun, Duration::ZERO),
            @"m7 PENDING      [--------------------]   0%  0/100 slots; waiting for migration m6, which has a group in common"
        );
    }

    #[test]
    fn rates_are_read() {
        assert_eq!((rate("5000"), rate("unlimited")), (Ok(5000), Ok(0)));
        for wrong in ["0", "-1", "5k", "fast", ""] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tables() {
        insta::assert_snapshot!(table(&[migration()]).render(None), @r"
        ID   SOURCE   TARGET   SLOTS   PHASE     MOVED    WAITS
        m7   g1       g2       0-99    COPYING   50/100   copying keys
        ");
    }
}
