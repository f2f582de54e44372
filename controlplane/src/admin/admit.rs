//! Admits servers: asks them what they are, decides whether they are fit, and fences them.

use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use proto::{GroupId, ServerAddr};
use tokio::time::Instant;

use super::Admin;
use crate::{
    admission::{self, Candidate},
    change::{self, Refusal},
    fence::{Spare, Target},
    model,
    probe::Facts,
    prober,
    snapshot::Snapshot,
};

/// How many servers of one request are asked at the same time.
const PROBES_AT_ONCE: usize = 16;

/// How long a server that is to be admitted may take to be fenced.
const FENCE_DEADLINE: Duration = Duration::from_secs(5);

impl Admin {
    /// Asks the servers that are to join a group, all at once.
    pub(super) async fn ask(
        &self,
        candidates: Vec<Candidate>,
        group: &GroupId,
    ) -> Result<Vec<(Candidate, Facts)>, Refusal> {
        stream::iter(candidates)
            .map(|candidate| async {
                let facts = self.ask_one(&candidate.address, group).await?;
                Ok((candidate, facts))
            })
            .buffered(PROBES_AT_ONCE)
            .try_collect()
            .await
    }

    pub(super) async fn ask_one(
        &self,
        address: &ServerAddr,
        group: &GroupId,
    ) -> Result<Facts, Refusal> {
        let answer = self.probe.ask(address, group).await;
        answer.map_err(|failure| admission::unanswered(address, group, &failure))
    }

    pub(super) fn known(&self, now: &Snapshot) -> Vec<admission::Known> {
        prober::known(now, &self.observations.borrow())
    }

    /// The servers of a new group, as they are to be admitted.
    pub(super) async fn admit_group(
        &self,
        now: &Snapshot,
        id: &GroupId,
        candidates: Vec<Candidate>,
        take_over: bool,
    ) -> Result<Vec<model::Server>, Refusal> {
        change::may_create_group(now, id, candidates.iter().map(|c| &c.address))?;
        let answers = self.ask(candidates, id).await?;
        let servers = admission::form_group(&answers, &self.known(now))?;
        for server in &servers {
            self.examine(&server.address, id, take_over).await?;
        }
        Ok(servers)
    }

    /// Whether a server lets itself be fenced.
    pub(super) async fn examine(
        &self,
        address: &ServerAddr,
        group: &GroupId,
        take_over: bool,
    ) -> Result<(), Refusal> {
        let at = Target {
            address: address.clone(),
            group: group.clone(),
        };
        let deadline = Instant::now() + FENCE_DEADLINE;
        let examined = self.fences.examine(&at, take_over, deadline).await;
        examined.map_err(|why| admission::unfenced(address, group, &why))
    }

    /// Raises the fence record of a group's primary, of a new one before anybody hears of it. Its replicas
    /// have it from it.
    pub(super) async fn fence(
        &self,
        group: &model::Group,
        spare: Spare<'_>,
        take_over: bool,
    ) -> Result<(), Refusal> {
        let at = Target::primary(group);
        let deadline = Instant::now() + FENCE_DEADLINE;
        let admitted = self.fences.admit(&at, spare, take_over, deadline).await;
        let unfenced = |why| admission::unfenced(&at.address, &at.group, &why);
        admitted.map(drop).map_err(unfenced)
    }

    /// One more server of a group, as it is to be admitted.
    pub(super) async fn admit_server(
        &self,
        now: &Snapshot,
        group: &GroupId,
        candidate: &Candidate,
        expected_revision: u64,
        take_over: bool,
    ) -> Result<model::Server, Refusal> {
        let found = change::may_create_server(now, group, &candidate.address, expected_revision)?;
        let primary = &found.primary().address;
        let (facts, primary_facts) = tokio::try_join!(
            self.ask_one(&candidate.address, group),
            self.ask_one(primary, group)
        )?;
        let known = self.known(now);
        let server = admission::join_group(candidate, &facts, (primary, &primary_facts), &known)?;
        self.examine(&candidate.address, group, take_over).await?;
        Ok(server)
    }
}
