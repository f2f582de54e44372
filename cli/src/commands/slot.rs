//! `sluice slot`: which group owns which slots.

use clap::{Args, Subcommand};
use proto::{GroupId, Slot, SlotRange, v1};
use v1::{
    assign_slots_request::{Assignment, Even, Ranges},
    slot_assignment::State,
};

use super::{Context, Verb, announce};
use crate::{
    args::ChangeFlags,
    client::{self, Admin, Client, request_id},
    error::Error,
    output::{self, Table, plural},
};

/// What to do with slots.
#[derive(Subcommand)]
pub(crate) enum SlotCommand {
    /// List the slots and who owns them
    #[command(
        visible_alias = "ls",
        alias = "get",
        after_long_help = "Example:\n  sluice slot list\n\nRPC: AdminService.GetSlotMap"
    )]
    List,
    /// Assign slots that no group owns to a group, or evenly to all
    ///
    /// A slot that a group owns already is never assigned to another: its keys are where it is.
    #[command(after_long_help = "Examples:\n  \
        sluice slot assign --even\n  \
        sluice slot assign 0-511 g1\n  \
        sluice slot assign 512-599,700,800-1023 g2 --dry-run\n\n\
        RPC: AdminService.AssignSlots")]
    Assign(AssignArgs),
}

/// What to assign.
#[derive(Args)]
pub(crate) struct AssignArgs {
    /// Slots, as 0-511 or 0-99,200,300-400
    #[arg(
        value_name = "RANGES",
        required_unless_present = "even",
        requires = "group",
        value_parser = slot_ranges
    )]
    ranges: Option<SlotRanges>,
    /// The group that is to own them
    #[arg(value_name = "GROUP")]
    group: Option<GroupId>,
    /// Share all slots that no group owns among all groups
    #[arg(long, conflicts_with_all = ["ranges", "group"])]
    even: bool,
    #[command(flatten)]
    change: ChangeFlags,
}

/// Ranges of slots that do not overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotRanges(Vec<SlotRange>);

fn slot_ranges(text: &str) -> Result<SlotRanges, String> {
    if text.starts_with(|c: char| c.is_ascii_lowercase()) && GroupId::new(text).is_ok() {
        return Err(format!(
            "the ranges come first: `sluice slot assign RANGES {text}`"
        ));
    }
    let mut named = vec![false; proto::SLOT_COUNT];
    let mut ranges = Vec::new();
    for part in text.split(',') {
        let range: SlotRange = part.trim().parse().map_err(|e| format!("{e}"))?;
        for slot in range.slots() {
            if std::mem::replace(&mut named[slot.index()], true) {
                return Err(format!("slot {slot} is named twice"));
            }
        }
        ranges.push(range);
    }
    Ok(SlotRanges(ranges))
}

/// Does it.
pub(crate) async fn run(context: &mut Context, command: SlotCommand) -> Result<(), Error> {
    match command {
        SlotCommand::List => {
            let request = v1::GetSlotMapRequest {};
            let map = context.client.read(Admin::get_slot_map, request).await?;
            context.output.show(&map, table(&map.assignments))
        }
        SlotCommand::Assign(args) => {
            let (what, unchanged) = match (&args.ranges, &args.group) {
                (Some(ranges), Some(group)) => (
                    format!("{} to group {group}", ranges.describe()),
                    format!("Group {group} owns them already; nothing was assigned"),
                ),
                _ => (
                    "the slots that no group owned, evenly".to_owned(),
                    "Every slot is owned already; nothing was assigned".to_owned(),
                ),
            };
            let validate_only = args.change.validate_only();
            let request = v1::AssignSlotsRequest {
                validate_only,
                expected_revision: args.change.expected_revision,
                ..assign_request(assignment(args.ranges, args.group))
            };
            let (map, changed) = assign(&mut context.client, request).await?;
            if changed {
                announce(validate_only, Verb::Assign, &what);
            } else {
                output::note(&unchanged);
            }
            context.output.show(&map, table(&map.assignments))
        }
    }
}

impl SlotRanges {
    fn describe(&self) -> String {
        plural(self.0.iter().map(|range| range.slots().len()).sum(), "slot")
    }
}

/// Without ranges and a group: evenly.
fn assignment(ranges: Option<SlotRanges>, group: Option<GroupId>) -> Assignment {
    let (Some(SlotRanges(ranges)), Some(group)) = (ranges, group) else {
        return Assignment::Even(Even {});
    };
    let assignments = ranges
        .into_iter()
        .map(|range| v1::SlotAssignment {
            first: range.first().number(),
            last: range.last().number(),
            group_id: group.to_string(),
            state: State::Serving.into(),
            target_group_id: String::new(),
        })
        .collect();
    Assignment::Ranges(Ranges { assignments })
}

/// Asks for an assignment, whatever the revision.
pub(crate) fn assign_request(assignment: Assignment) -> v1::AssignSlotsRequest {
    v1::AssignSlotsRequest {
        assignment: Some(assignment),
        validate_only: false,
        expected_revision: 0,
        request_id: request_id(),
    }
}

/// Assigns slots, and tells whether any was left to assign; `sluice dev` does the same.
pub(crate) async fn assign(
    client: &mut Client,
    request: v1::AssignSlotsRequest,
) -> Result<(v1::SlotMap, bool), client::Error> {
    let before = client
        .read(Admin::get_slot_map, v1::GetSlotMapRequest {})
        .await?;
    let after = client.change(Admin::assign_slots, request).await?;
    // Not by the revision: a dry run has none.
    let changed = after.assignments != before.assignments;
    Ok((after, changed))
}

/// A slot map, a range a line.
pub(crate) fn table(assignments: &[v1::SlotAssignment]) -> Table {
    Table::new(
        ["RANGE", "SLOTS", "GROUP", "STATE"],
        assignments.iter().map(|assignment| {
            let state = match (assignment.group_id.as_str(), assignment.state()) {
                ("", _) => "unassigned",
                (_, State::Serving) => "serving",
                (_, State::Copying) => "copying",
                (_, State::Held) => "held",
                (_, State::Unspecified) => "-",
            };
            let group = match assignment.group_id.as_str() {
                "" => "-",
                id => id,
            };
            [
                range_text(assignment),
                slot_count(assignment).to_string(),
                group.to_owned(),
                state.to_owned(),
            ]
        }),
    )
}

/// `0-511`, or `7` for a single slot.
pub(crate) fn range_text(assignment: &v1::SlotAssignment) -> String {
    if assignment.first == assignment.last {
        assignment.first.to_string()
    } else {
        format!("{}-{}", assignment.first, assignment.last)
    }
}

/// How many slots a range holds; none if it is no range.
pub(crate) fn slot_count(assignment: &v1::SlotAssignment) -> usize {
    let range = Slot::new(assignment.first)
        .zip(Slot::new(assignment.last))
        .and_then(|(first, last)| SlotRange::new(first, last));
    range.map_or(0, |range| range.slots().len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_parse() {
        fn check(text: &str, expected: Result<&[&str], &str>) {
            let got = slot_ranges(text);
            match expected {
                Ok(ranges) => {
                    let got: Vec<String> = got.unwrap().0.iter().map(|r| r.to_string()).collect();
                    assert_eq!(got, ranges, "{text}");
                }
                Err(error) => {
                    let got = got.unwrap_err();
                    assert!(got.contains(error), "{text}: {got}");
                }
            }
        }
        check("0-511", Ok(&["0-511"]));
        check("7", Ok(&["7"]));
        check("512-599, 700,800-1023", Ok(&["512-599", "700", "800-1023"]));
        check("0-9,5", Err("slot 5 is named twice"));
        check("0-9,", Err("is not a slot"));
        check(
            "g2",
            Err("the ranges come first: `sluice slot assign RANGES g2`"),
        );
        check("0-1024", Err("slot 1024 does not exist"));
        check("9-0", Err("is empty"));
    }

    #[test]
    fn what_is_asked_for() {
        let group = GroupId::new("g1").unwrap();
        let ranges = slot_ranges("0-9,20").unwrap();
        assert_eq!(ranges.describe(), "11 slots");
        let Assignment::Ranges(asked) = assignment(Some(ranges), Some(group)) else {
            panic!("ranges were given");
        };
        let texts: Vec<String> = asked.assignments.iter().map(range_text).collect();
        assert_eq!(texts, ["0-9", "20"]);
        assert_eq!(assignment(None, None), Assignment::Even(Even {}));
    }

    #[test]
    fn tables() {
        let map = [
            (0, 511, "g1", State::Serving),
            (512, 512, "g2", State::Held),
            (513, 1023, "", State::Serving),
        ]
        .map(|(first, last, group, state)| v1::SlotAssignment {
            first,
            last,
            group_id: group.to_owned(),
            state: state.into(),
            target_group_id: String::new(),
        });
        insta::assert_snapshot!(table(&map).render(None), @"
        RANGE      SLOTS   GROUP   STATE
        0-511      512     g1      serving
        512        1       g2      held
        513-1023   511     -       unassigned
        ");
    }
}
