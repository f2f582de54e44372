//! One direction of a connection: bytes come, wait as long as they must, and are passed on.

use std::{cell::Cell, collections::VecDeque, time::Duration};

use memchr::memmem;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::tcp::{ReadHalf, WriteHalf},
    time::{Instant, sleep_until},
};

use super::{Edge, End, Fault};

/// What a relay keeps of one direction of a connection, at most; then it does not read on.
const MOST: usize = 64 << 20;

/// See the module.
pub(super) struct Way<'a> {
    edge: &'a Edge,
    /// A request has passed whose reply is to be swallowed.
    asked: &'a Cell<bool>,
    are_requests: bool,
    /// What waits to be passed on, and until when.
    queue: VecDeque<(Instant, Vec<u8>)>,
    queued: usize,
    /// The end of what was passed on: a piece that is looked for may come in two.
    tail: Vec<u8>,
    /// Something was lost in a black hole.
    torn: bool,
}

impl<'a> Way<'a> {
    pub(super) fn requests(edge: &'a Edge, asked: &'a Cell<bool>) -> Self {
        Self {
            edge,
            asked,
            are_requests: true,
            queue: VecDeque::new(),
            queued: 0,
            tail: Vec::new(),
            torn: false,
        }
    }

    pub(super) fn replies(edge: &'a Edge, asked: &'a Cell<bool>) -> Self {
        Self {
            are_requests: false,
            ..Self::requests(edge, asked)
        }
    }

    pub(super) async fn pump(
        mut self,
        mut from: ReadHalf<'_>,
        mut to: WriteHalf<'_>,
    ) -> Result<(), End> {
        let mut rules = self.edge.shared.rules.subscribe();
        let mut buffer = vec![0; 64 << 10];
        // How it ended: well (`true`), or by a reset.
        let mut ended: Option<bool> = None;
        loop {
            let fault = self.edge.now();
            let passes = match fault {
                Fault::Pass
                | Fault::HoldFrom(_)
                | Fault::Delay(_)
                | Fault::SwallowReply(_)
                | Fault::Truncate(_) => true,
                Fault::BlackHole | Fault::Hold | Fault::Cut => false,
            };
            if self.are_requests && self.edge.is_stranded() {
                let left = self.queue.into_iter().flat_map(|(_, bytes)| bytes);
                return Err(End::Stranded(left.collect()));
            }
            if passes && self.torn {
                return Err(End::Reset);
            }
            if let (true, true, Some(well)) = (passes, self.queue.is_empty(), ended) {
                if !well {
                    return Err(End::Reset);
                }
                to.shutdown().await.ok();
                return Ok(());
            }
            let due = self.queue.front().map(|(due, _)| *due).filter(|_| passes);
            if due.is_some_and(|due| due <= Instant::now()) {
                let (_, bytes) = self.queue.pop_front().expect("it has a front");
                if let Fault::HoldFrom(wanted) = &fault
                    && self.are_requests
                    && self.finds(wanted, &bytes)
                {
                    self.queue.push_front((Instant::now(), bytes));
                    self.edge.replace(&fault, Fault::Hold);
                    continue;
                }
                self.queued -= bytes.len();
                self.deliver(&fault, &bytes, &mut to).await?;
                continue;
            }
            tokio::select! {
                biased;
                changed = rules.changed() => changed.expect("the edge has a sender"),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                read = from.read(&mut buffer), if ended.is_none() && self.queued < MOST => {
                    match read {
                        Ok(0) => ended = Some(true),
                        Ok(len) => self.take(&fault, &buffer[..len])?,
                        Err(_) => ended = Some(false),
                    }
                    self.torn |= ended.is_some() && fault == Fault::BlackHole;
                }
            }
        }
    }

    /// Bytes have come.
    fn take(&mut self, fault: &Fault, bytes: &[u8]) -> Result<(), End> {
        let late = match fault {
            Fault::BlackHole => {
                self.torn = true;
                return Ok(());
            }
            Fault::SwallowReply(_)
                if !self.are_requests && self.asked.get() && self.edge.take(fault) =>
            {
                return Err(End::Lost);
            }
            Fault::Delay(late) => *late,
            Fault::HoldFrom(_)
            | Fault::Pass
            | Fault::Cut
            | Fault::Hold
            | Fault::SwallowReply(_)
            | Fault::Truncate(_) => Duration::ZERO,
        };
        self.queue
            .push_back((Instant::now() + late, bytes.to_vec()));
        self.queued += bytes.len();
        Ok(())
    }

    /// Passes bytes on. To who is not there any more they are not passed, and its other direction will end.
    async fn deliver(
        &mut self,
        fault: &Fault,
        bytes: &[u8],
        to: &mut WriteHalf<'_>,
    ) -> Result<(), End> {
        match fault {
            Fault::Truncate(most) if self.are_requests && *most <= bytes.len() => {
                if self.edge.take(fault) {
                    to.write_all(&bytes[..*most]).await.ok();
                    return Err(End::Lost);
                }
            }
            Fault::Truncate(most) if self.are_requests => {
                self.edge
                    .replace(fault, Fault::Truncate(most - bytes.len()));
            }
            Fault::SwallowReply(wanted) if self.are_requests => {
                if self.finds(wanted, bytes) {
                    self.asked.set(true);
                }
            }
            Fault::Pass
            | Fault::Cut
            | Fault::BlackHole
            | Fault::Hold
            | Fault::HoldFrom(_)
            | Fault::Delay(_)
            | Fault::SwallowReply(_)
            | Fault::Truncate(_) => {}
        }
        to.write_all(bytes).await.ok();
        Ok(())
    }

    /// Whether what is looked for is there once these bytes have come.
    fn finds(&mut self, wanted: &[u8], bytes: &[u8]) -> bool {
        self.tail.extend_from_slice(bytes);
        let found = memmem::find(&self.tail, wanted).is_some();
        let kept = wanted.len().saturating_sub(1).min(self.tail.len());
        self.tail.drain(..self.tail.len() - kept);
        found
    }
}
