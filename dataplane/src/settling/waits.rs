//! What has to be answered before it can be said that a group has settled.
//!
//! Pure, and what the model of the cut-over runs, too (`tests/it/model.rs`). Each topology that changes the
//! state of a group's slots begins a **wait** for that group; behind all that is under way to it go
//! barriers, which are counted. One whose slots are all as they were goes on under the newer topology.
//!
//! Invariant: a group is told of once for each topology, and not before all barriers of its wait have been
//! answered, or their connections lost.

use proto::GroupId;

/// See the module.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Waits {
    waits: Vec<Wait>,
    /// Numbers the waits.
    last: u32,
}

/// What has to be answered by a group.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Wait {
    number: u32,
    group: GroupId,
    /// With which topology, by the worker's own count, the last of its slots came into its state.
    since: u64,
    /// Barriers that have not been answered.
    barriers: u32,
    /// It has been told of for this topology.
    is_over: bool,
}

impl Waits {
    /// A topology is routed by from now on, in which these groups have slots that are about to move; and
    /// since when the last of these is in its state. The waits that begin: their numbers, and groups.
    pub fn turn(
        &mut self,
        moving: impl IntoIterator<Item = (GroupId, u64)>,
    ) -> Vec<(u32, GroupId)> {
        let mut left = std::mem::take(&mut self.waits);
        let mut begun = Vec::new();
        for (group, since) in moving {
            let same = |wait: &Wait| wait.group == group && wait.since == since;
            let wait = match left.iter().position(same) {
                Some(at) => Wait {
                    is_over: false,
                    ..left.swap_remove(at)
                },
                None => {
                    self.last = self.last.wrapping_add(1);
                    begun.push((self.last, group.clone()));
                    Wait {
                        number: self.last,
                        group,
                        since,
                        barriers: 0,
                        is_over: false,
                    }
                }
            };
            self.waits.push(wait);
        }
        begun
    }

    /// Barriers have been placed for a wait.
    pub fn placed(&mut self, number: u32, barriers: u32) {
        if let Some(wait) = self.find(number) {
            wait.barriers += barriers;
        }
    }

    /// A barrier was answered, or its connection is no more. Whether somebody waits for it: it may be one
    /// of a wait that is over since.
    pub fn passed(&mut self, number: u32) -> bool {
        let wait = self.find(number);
        wait.map(|wait| wait.barriers -= 1).is_some()
    }

    fn find(&mut self, number: u32) -> Option<&mut Wait> {
        self.waits.iter_mut().find(|wait| wait.number == number)
    }

    /// The waits that are not over.
    pub fn unsettled(&self) -> Vec<u32> {
        let waits = self.waits.iter().filter(|wait| !wait.is_over);
        waits.map(|wait| wait.number).collect()
    }

    /// The groups that have settled, and were not told of. `is_quiet`: nothing that has no barrier is
    /// waited for.
    pub fn settle(&mut self, is_quiet: impl Fn(&GroupId) -> bool) -> Vec<GroupId> {
        let mut settled = Vec::new();
        for wait in &mut self.waits {
            if !wait.is_over && wait.barriers == 0 && is_quiet(&wait.group) {
                wait.is_over = true;
                settled.push(wait.group.clone());
            }
        }
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(group: &str) -> GroupId {
        GroupId::new(group).unwrap()
    }

    fn settled(waits: &mut Waits) -> Vec<String> {
        let settled = waits.settle(|_| true).into_iter();
        settled.map(String::from).collect()
    }

    #[test]
    fn each_group_is_waited_for() {
        let mut waits = Waits::default();
        let begun = waits.turn([(id("g1"), 1), (id("g2"), 1)]);
        let [(one, _), (two, _)] = begun[..] else {
            panic!("two waits begin")
        };
        waits.placed(one, 2);
        waits.placed(two, 1);
        assert!(waits.passed(one) && settled(&mut waits).is_empty());
        assert!(waits.passed(one));
        assert_eq!(settled(&mut waits), ["g1"]);
        assert_eq!(waits.unsettled(), [two]);
        // The first has more slots that move; the second goes on.
        let begun = waits.turn([(id("g1"), 2), (id("g2"), 1)]);
        assert_eq!(begun.len(), 1);
        assert!(!waits.passed(one), "it is over");
        assert!(waits.passed(two));
        assert_eq!(settled(&mut waits), ["g1", "g2"]);
        assert!(settled(&mut waits).is_empty(), "it is told once");
        assert!(waits.turn([(id("g2"), 1)]).is_empty());
        assert_eq!(settled(&mut waits), ["g2"], "for each topology");
        assert!(waits.turn([]).is_empty() && settled(&mut waits).is_empty());
    }
}
