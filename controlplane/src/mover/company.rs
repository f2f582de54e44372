//! Who uses a server besides the copy itself.
//!
//! A server counts the commands that it executes, whoever sent them; the copy counts its own. Somebody is
//! there only where that is certain: what the copy has sent and not heard of may be executed or not.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{self, Instant};

use super::link::{Link, LinkError};
use crate::probe::field;

/// Commands a second of others that are company: the controller itself and replicas send a few.
const MANY: f64 = 200.0;

/// How long [`Company::at`] looks.
const A_LOOK: Duration = Duration::from_millis(50);

/// Who uses a server besides the copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Company {
    /// Nobody that is worth mentioning.
    Nobody,
    /// Clients.
    Clients,
}

impl Company {
    /// Looks who uses a server besides those whose commands the link counts.
    pub(super) async fn at(server: &mut Link) -> Result<Self, LinkError> {
        let before = Executed::read(server).await?;
        time::sleep(A_LOOK).await;
        Ok(Executed::read(server).await?.company_since(&before))
    }

    /// Of so many commands in some time.
    fn of(count: u64, time: Duration) -> Self {
        if count as f64 > MANY * time.as_secs_f64() {
            Self::Clients
        } else {
            Self::Nobody
        }
    }
}

/// Counts the commands that a copy sends to a server: what is executed there besides is others'.
#[derive(Clone, Default)]
pub(super) struct Commands {
    sent: Arc<AtomicU64>,
    answered: Arc<AtomicU64>,
}

impl Commands {
    /// So many commands are about to be sent.
    pub(super) fn send(&self, count: usize) {
        self.sent.fetch_add(count as u64, Relaxed);
    }

    /// So many were answered.
    pub(super) fn answer(&self, count: usize) {
        self.answered.fetch_add(count as u64, Relaxed);
    }
}

/// What a server has executed at some moment.
pub(super) struct Executed {
    at: Instant,
    /// Since it started, whoever sent it.
    all: u64,
    /// Of the copy's own commands, at least and at most.
    own: [u64; 2],
}

impl Executed {
    pub(super) async fn read(server: &mut Link) -> Result<Self, LinkError> {
        let commands = server.commands().clone();
        let answered = commands.answered.load(Relaxed);
        let info = server.info(&[b"INFO", b"stats"]).await?;
        let all = field(&info, "total_commands_processed").and_then(|text| text.parse().ok());
        Ok(Self {
            at: Instant::now(),
            all: all.unwrap_or(0),
            own: [answered, commands.sent.load(Relaxed)],
        })
    }

    /// Who has been there since: somebody, only where that is certain.
    pub(super) fn company_since(&self, before: &Self) -> Company {
        let all = self.all.saturating_sub(before.all);
        let own = self.own[1].saturating_sub(before.own[0]);
        Company::of(all.saturating_sub(own), self.at - before.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn who_is_there() {
        let executed = |millis, all, own| Executed {
            at: Instant::now() + millis * MS,
            all,
            own,
        };
        let before = executed(0, 1000, [500, 600]);
        let check = |all, own, company| {
            assert_eq!(executed(1000, all, own).company_since(&before), company);
        };
        check(2000, [1500, 1500], Company::Nobody);
        check(2300, [1600, 1600], Company::Nobody);
        check(2350, [1600, 1600], Company::Clients);
        // What is under way may be executed or not.
        check(2350, [1600, 1700], Company::Nobody);
        // It has been restarted.
        check(10, [1600, 1700], Company::Nobody);
    }
}
