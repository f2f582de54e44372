//! How sessions end: those that stand still are closed, and what any leaves behind is put in order.

use super::{Phase, Session};
use crate::worker::Worker;

/// A request that comes more slowly than this, in bytes a second, is not coming.
const CRAWL: u32 = 1024;

/// Why a session is closed that stands still.
enum Still {
    Idle,
    Stalled,
}

impl Worker {
    /// Closes who has stood still for too long: in the middle of a request, with replies untaken, with a
    /// request for which there is no memory, or, where that is asked for, doing nothing. Once a second.
    pub(crate) fn close_silent(&mut self) {
        let stall = self.serving.stall_timeout.as_secs() as u32;
        let idle = self
            .serving
            .client_timeout
            .map(|time| time.as_secs() as u32);
        let now = self.seconds;
        let paused = self.pause.is_some();
        let still = |session: &Session| {
            if session.phase == Phase::Gone {
                return None;
            }
            let silent = now - session.active;
            let begun = now - session.began;
            let crawls = !session.stalled
                && !session.input.is_empty()
                && begun > stall
                && session.input.len() < (CRAWL * begun) as usize;
            let detour = session.detour.as_ref();
            let waits = session.blocked
                || (session.stalled
                    && !paused
                    && session.outbox.in_flight() == 0
                    && session.held_since.is_none()
                    && detour.is_none())
                || detour.is_some_and(|detour| detour.waits_for_client());
            if crawls || (silent > stall && waits) {
                Some(Still::Stalled)
            } else if session.is_idle()
                && session.client.subscriptions.is_none()
                && idle.is_some_and(|idle| silent > idle)
            {
                Some(Still::Idle)
            } else {
                None
            }
        };
        let found: Vec<(u32, Still)> = self
            .clients
            .sessions
            .iter()
            .filter_map(|(id, session)| Some((id as u32, still(session)?)))
            .collect();
        for (id, still) in found {
            match still {
                Still::Stalled => self.stats.sessions_closed_stalled.add(1),
                Still::Idle => self.stats.sessions_closed_idle.add(1),
            }
            self.clients.break_off(id);
        }
    }

    /// The session's task has ended, in whatever way.
    pub(crate) fn close_session(&mut self, id: u32) {
        self.end_subscriptions(id);
        self.stop_tracking(id);
        let session = &mut self.clients.sessions[id as usize];
        session.phase = Phase::Gone;
        session.waker = None;
        session.socket.close();
        self.clients.release(id);
        if self.clients.sessions[id as usize].outbox.in_flight() == 0 {
            self.clients.forget(id);
        }
    }
}
