//! One caller that follows what happens in the cluster.

use std::sync::Arc;

use proto::reason::Reason;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    calls::Permit,
    events::{Event, EventLog, Lost, Position},
    status,
};

/// How many events are taken from the log at a time.
const EVENTS_AT_ONCE: usize = 256;

/// One caller of `WatchEvents`. It is asked for more when the connection has taken what it gave.
pub(super) struct Watcher {
    pub(super) log: Arc<EventLog>,
    pub(super) newest: watch::Receiver<Option<Position>>,
    pub(super) seen: Option<Position>,
    pub(super) stopping: CancellationToken,
    /// It has its place until it is gone.
    pub(super) _permit: Option<Permit>,
}

impl Watcher {
    /// The next events. `None` never comes: a stream ends with an error.
    pub(super) async fn next(mut self) -> Result<Option<(Vec<Arc<Event>>, Self)>, Status> {
        loop {
            self.newest.borrow_and_update();
            let events = self.log.after(self.seen, EVENTS_AT_ONCE).map_err(lost)?;
            if let Some(last) = events.last() {
                self.seen = Some(last.position);
                return Ok(Some((events, self)));
            }
            tokio::select! {
                changed = self.newest.changed() => changed.map_err(|_| status::shutting_down())?,
                () = self.stopping.cancelled() => return Err(status::shutting_down()),
            }
        }
    }
}

pub(super) fn lost(_: Lost) -> Status {
    Reason::EventsLost.status(
        "events were lost: more happened since than is kept, or the token is of a store that was \
         restored; list again, then watch without a token",
    )
}
