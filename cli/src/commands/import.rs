//! `sluice import`: takes over the groups and the slot map of another system.

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use proto::{GroupId, ServerAddr, SlotRange, v1};
use v1::{
    assign_slots_request::{Assignment, Ranges},
    slot_assignment::State,
};

use super::{Context, group, slot};
use crate::{
    args::TakeOver,
    client::{Admin, request_id},
    codis::{self, InFlight, Plan, PlannedGroup, Product},
    error::Error,
    output::{self, Table, Tables, plural},
};

/// What to take over from.
#[derive(Subcommand)]
pub(crate) enum ImportCommand {
    /// Take over the groups and the slot map of a Codis 3 product; no key moves
    ///
    /// Codis and Sluice have the same slots and the same hash, so that the servers go on as they are.
    /// The plan is shown first. Groups that exist already with the same servers are left as they are:
    /// what was interrupted can be run again.
    #[command(after_long_help = "Examples:\n  \
        codis-admin --config-dump --product=demo --zookeeper=10.0.0.9:2181 > demo.json\n  \
        sluice import codis --dump demo.json --dry-run\n  \
        sluice import codis --zookeeper 10.0.0.9:2181 --product demo\n\n\
        RPC: AdminService.CreateGroup, AdminService.AssignSlots")]
    Codis(CodisArgs),
}

/// Where the records are, and how they are taken.
#[derive(Args)]
pub(crate) struct CodisArgs {
    /// A file that `codis-admin --config-dump` has written
    #[arg(long, value_name = "FILE", required_unless_present = "zookeeper")]
    dump: Option<PathBuf>,
    /// Codis's ZooKeeper servers
    #[arg(
        long,
        value_name = "HOST:PORT,…",
        conflicts_with = "dump",
        requires = "product"
    )]
    zookeeper: Option<String>,
    /// The product's name, in ZooKeeper
    #[arg(long, value_name = "NAME", requires = "zookeeper")]
    product: Option<String>,
    /// A file with USER:PASSWORD for ZooKeeper's digest scheme
    #[arg(long, value_name = "FILE", requires = "zookeeper")]
    zookeeper_auth_file: Option<PathBuf>,
    /// What to do about slots that Codis is moving
    #[arg(long, value_enum, default_value_t = InFlight::Refuse)]
    in_flight: InFlight,
    /// Leave a replica out, one that is down for instance; once for each
    #[arg(long, value_name = "HOST:PORT")]
    without: Vec<ServerAddr>,
    #[command(flatten)]
    take_over: TakeOver,
    /// Show the plan, have the controller check the servers, change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
}

/// Does it.
pub(crate) async fn run(context: &mut Context, command: ImportCommand) -> Result<(), Error> {
    match command {
        ImportCommand::Codis(args) => codis(context, args).await,
    }
}

async fn codis(context: &mut Context, args: CodisArgs) -> Result<(), Error> {
    let product = read(context, &args).await?;
    let plan = codis::plan(&product, args.in_flight, &args.without).map_err(|against| {
        let what = plural(against.len(), "reason");
        Error::failed(format!(
            "nothing was taken over, for {what}:\n  {}",
            against.join("\n  ")
        ))
    })?;
    let missing = missing(context, &plan).await?;
    context.output.show(&plan, tables(&plan))?;
    if !args.dry_run {
        confirm(args.yes)?;
    }
    for planned in &missing {
        let request = v1::CreateGroupRequest {
            take_over: args.take_over.take_over,
            ..create_request(planned, args.dry_run)
        };
        group::create(&mut context.client, request)
            .await
            .map_err(|e| {
                Error::from(e).hint("a replica that is down can be left out: `--without HOST:PORT`")
            })?;
        let verb = if args.dry_run {
            "could be created"
        } else {
            "created"
        };
        output::note_step(&format!("group {} {verb}", planned.id));
    }
    if args.dry_run {
        output::note("Dry run: nothing was changed");
        return Ok(());
    }
    let assignment = Assignment::Ranges(assignments(&plan));
    slot::assign(&mut context.client, slot::assign_request(assignment)).await?;
    output::note_step(&format!("{} assigned", plural(count_slots(&plan), "slot")));
    output::note("Next: start proxies (`sluice-proxy --help`), and point clients to them");
    Ok(())
}

async fn read(context: &Context, args: &CodisArgs) -> Result<Product, Error> {
    if let Some(path) = &args.dump {
        let text = read_file(path)?;
        let product = Product::from_dump(&text);
        return Ok(product.with_context(|| path.display().to_string())?);
    }
    let auth = args
        .zookeeper_auth_file
        .as_deref()
        .map(read_file)
        .transpose()?;
    let source = codis::zookeeper::Source {
        ensemble: args
            .zookeeper
            .as_deref()
            .expect("clap asks for one of both"),
        product: args.product.as_deref().expect("clap asks for it too"),
        auth: auth.as_deref().map(str::trim_end),
        timeout: context.client.timeout(),
    };
    let product = Product::from_nodes(&source.read().await?);
    Ok(product.context("read the product's nodes")?)
}

fn read_file(path: &Path) -> Result<String, Error> {
    let text = std::fs::read_to_string(path);
    Ok(text.with_context(|| format!("read {}", path.display()))?)
}

/// The groups that are to be created: those that exist with the same servers are not. Fails if one
/// exists with others, or a slot has another owner.
async fn missing<'a>(
    context: &mut Context,
    plan: &'a Plan,
) -> Result<Vec<&'a PlannedGroup>, Error> {
    let request = v1::ListGroupsRequest::default();
    let groups = context.client.list_groups(request).await?.groups;
    let mut missing = Vec::new();
    for planned in &plan.groups {
        let Some(group) = groups.iter().find(|group| group.id == planned.id.as_str()) else {
            missing.push(planned);
            continue;
        };
        let theirs: BTreeSet<&str> = group.servers.iter().map(|s| s.address.as_str()).collect();
        let ours: BTreeSet<&str> = planned.servers.iter().map(|s| s.address.as_str()).collect();
        if theirs != ours {
            return Err(Error::failed(format!(
                "group {} exists already, with other servers than in Codis",
                group.id
            ))
            .hint("an import needs a cluster that has no such groups: `sluice group list`"));
        }
    }
    let request = v1::GetSlotMapRequest {};
    let map = context.client.read(Admin::get_slot_map, request).await?;
    match conflict(plan, &map.assignments) {
        None => Ok(missing),
        Some(text) => Err(Error::failed(text)),
    }
}

/// The first slot that another group owns.
fn conflict(plan: &Plan, assignments: &[v1::SlotAssignment]) -> Option<String> {
    for now in assignments.iter().filter(|a| !a.group_id.is_empty()) {
        for planned in &plan.slots {
            let range = planned.slots;
            let first = now.first.max(range.first().number());
            let overlaps = first <= now.last.min(range.last().number());
            if overlaps && now.group_id != planned.group.as_str() {
                return Some(format!(
                    "slot {first} belongs to group {} already, and to {} in Codis",
                    now.group_id, planned.group
                ));
            }
        }
    }
    None
}

fn confirm(yes: bool) -> Result<(), Error> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Error::Usage {
            message: "there is nobody to ask whether to go on".to_owned(),
            hint: "add `--yes` to go on without being asked, or `--dry-run`".to_owned(),
        });
    }
    output::ask("Take this over? [y/N] ");
    let mut answer = String::new();
    io::stdin()
        .read_line(&mut answer)
        .context("read the answer")?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Error::failed("nothing was changed, as you said")),
    }
}

/// Asks for a group, with each server's zone.
fn create_request(planned: &PlannedGroup, validate_only: bool) -> v1::CreateGroupRequest {
    let servers = planned.servers.iter().map(|server| v1::ServerSpec {
        address: server.address.to_string(),
        zone: server.zone.clone(),
    });
    v1::CreateGroupRequest {
        id: planned.id.to_string(),
        description: "imported from Codis".to_owned(),
        servers: servers.collect(),
        validate_only,
        request_id: request_id(),
        take_over: false,
    }
}

fn assignments(plan: &Plan) -> Ranges {
    let assignments = plan.slots.iter().map(|planned| v1::SlotAssignment {
        first: planned.slots.first().number(),
        last: planned.slots.last().number(),
        group_id: planned.group.to_string(),
        state: State::Serving.into(),
        target_group_id: String::new(),
    });
    Ranges {
        assignments: assignments.collect(),
    }
}

fn count_slots(plan: &Plan) -> usize {
    plan.slots.iter().map(|p| p.slots.slots().len()).sum()
}

/// The plan, for people.
fn tables(plan: &Plan) -> Tables {
    let ranges_of = |group: &GroupId| {
        let own = plan.slots.iter().filter(|planned| planned.group == *group);
        own.map(|planned| planned.slots).collect::<Vec<SlotRange>>()
    };
    let groups = Table::new(
        ["GROUP", "PRIMARY", "REPLICAS", "SLOTS", "RANGES"],
        plan.groups.iter().map(|group| {
            let addresses = group
                .servers
                .iter()
                .map(|server| server.address.to_string());
            let addresses: Vec<String> = addresses.collect();
            let (primary, replicas) = addresses.split_at(1);
            let ranges = ranges_of(&group.id);
            let slots: usize = ranges.iter().map(|range| range.slots().len()).sum();
            let ranges: Vec<String> = ranges.iter().map(SlotRange::to_string).collect();
            [
                group.id.to_string(),
                primary.join(","),
                output::or_dash(replicas.join(",")),
                slots.to_string(),
                output::or_dash(ranges.join(",")),
            ]
        }),
    );
    let left = Table::new(
        ["NOT TAKEN OVER"],
        plan.left.iter().map(|text| [text.clone()]),
    );
    Tables::from([groups, left])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codis::{PlannedServer, PlannedSlots};

    fn a_plan() -> Plan {
        let server = |address: &str| PlannedServer {
            address: ServerAddr::new(address).unwrap(),
            zone: "dc1".to_owned(),
        };
        let id = |text: &str| GroupId::new(text).unwrap();
        let slots = |text: &str, group: &str| PlannedSlots {
            slots: text.parse().unwrap(),
            group: id(group),
        };
        Plan {
            groups: vec![
                PlannedGroup {
                    id: id("g1"),
                    servers: vec![server("10.0.0.1:6379"), server("10.0.0.2:6379")],
                },
                PlannedGroup {
                    id: id("g2"),
                    servers: vec![server("10.0.0.3:6379")],
                },
            ],
            slots: vec![slots("0-9", "g1"), slots("20", "g1")],
            left: vec!["proxy 10.0.0.9:19000: start a sluice-proxy instead".to_owned()],
        }
    }

    #[test]
    fn the_plan_as_a_table() {
        insta::assert_snapshot!(tables(&a_plan()).render(None), @"
        GROUP   PRIMARY         REPLICAS        SLOTS   RANGES
        g1      10.0.0.1:6379   10.0.0.2:6379   11      0-9,20
        g2      10.0.0.3:6379   -               0       -

        NOT TAKEN OVER
        proxy 10.0.0.9:19000: start a sluice-proxy instead
        ");
    }

    #[test]
    fn the_plan_as_json() {
        let json = serde_json::to_string(&a_plan()).unwrap();
        insta::assert_snapshot!(json, @r#"{"groups":[{"id":"g1","servers":[{"address":"10.0.0.1:6379","zone":"dc1"},{"address":"10.0.0.2:6379","zone":"dc1"}]},{"id":"g2","servers":[{"address":"10.0.0.3:6379","zone":"dc1"}]}],"slots":[{"slots":"0-9","group":"g1"},{"slots":"20","group":"g1"}],"left":["proxy 10.0.0.9:19000: start a sluice-proxy instead"]}"#);
    }

    #[test]
    fn a_slot_that_is_owned_stays() {
        let now = |first, last, group: &str| v1::SlotAssignment {
            first,
            last,
            group_id: group.to_owned(),
            state: State::Serving.into(),
            target_group_id: String::new(),
        };
        let check = |now, expected: Option<&str>| {
            assert_eq!(conflict(&a_plan(), &[now]).as_deref(), expected);
        };
        check(now(0, 1023, ""), None);
        check(now(0, 9, "g1"), None);
        check(now(10, 19, "g9"), None);
        let text = "slot 5 belongs to group g9 already, and to g1 in Codis";
        check(now(5, 12, "g9"), Some(text));
    }

    #[test]
    fn what_is_asked_of_the_controller() {
        let plan = a_plan();
        assert_eq!(count_slots(&plan), 11);
        let ranges = assignments(&plan).assignments;
        let ranges: Vec<String> = ranges.iter().map(slot::range_text).collect();
        assert_eq!(ranges, ["0-9", "20"]);
        let request = create_request(&plan.groups[0], true);
        assert!(request.validate_only);
        assert_eq!(request.servers[1].address, "10.0.0.2:6379");
        assert_eq!(request.servers[1].zone, "dc1");
    }
}
