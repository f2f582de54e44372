//! What a session does instead of taking requests: one of them, on a connection of its own.
//!
//! It begins when all that was asked before has been answered, and the session's next request is taken
//! when it is over.

use std::task::{Context, Poll};

use crate::{
    backend::Unblock,
    buffer,
    lease::{block::Block, exec::Exec, gather::Gather, wait::Replicas, watch::Watching},
    socket::Socket,
    upload::Upload,
    worker::Worker,
};

/// Of what a client sends while it waits, so much is read at most.
const AHEAD: usize = 1 << 20;

/// See the module.
pub(crate) enum Detour {
    Upload(Upload),
    Block(Block),
    Watching(Watching),
    Exec(Box<Exec>),
    Replicas(Replicas),
    Gather(Gather),
}

impl Detour {
    /// Bytes of memory it owns.
    pub(super) fn memory(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Upload(upload) => upload.memory(),
                Self::Block(block) => block.memory(),
                Self::Watching(watching) => watching.memory(),
                Self::Exec(exec) => size_of::<Exec>() + exec.memory(),
                Self::Replicas(replicas) => replicas.memory(),
                Self::Gather(gather) => gather.memory(),
            }
    }

    /// Whether it waits for something to happen at a server, as a Redis client that is blocked.
    pub(super) fn is_blocked(&self) -> bool {
        match self {
            Self::Block(_) | Self::Replicas(_) => true,
            Self::Upload(_) | Self::Watching(_) | Self::Exec(_) | Self::Gather(_) => false,
        }
    }

    /// Has it end, if it waits so. Whether it does.
    pub(super) fn unblock(&mut self, how: Unblock) -> bool {
        match self {
            Self::Block(block) => block.end(how),
            Self::Replicas(replicas) => {
                replicas.end(how);
                true
            }
            Self::Upload(_) | Self::Watching(_) | Self::Exec(_) | Self::Gather(_) => false,
        }
    }

    /// Keeps a message back that would come between the replies of a transaction; how many bytes are kept then.
    /// `None`: it need not be.
    pub(super) fn withhold(&mut self, message: &[u8]) -> Option<usize> {
        match self {
            Self::Exec(exec) => Some(exec.withhold(message)),
            Self::Upload(_)
            | Self::Block(_)
            | Self::Watching(_)
            | Self::Replicas(_)
            | Self::Gather(_) => None,
        }
    }

    /// Whether it is the client that has to send more.
    pub(super) fn waits_for_client(&self) -> bool {
        match self {
            Self::Upload(upload) => upload.waits_for_client(),
            Self::Block(_)
            | Self::Watching(_)
            | Self::Exec(_)
            | Self::Replicas(_)
            | Self::Gather(_) => false,
        }
    }
}

impl Worker {
    /// The session goes on a detour; its request waits no more.
    pub(crate) fn begin_detour(&mut self, id: u32, detour: Detour) {
        let session = self.clients.session(id);
        session.detour = Some(Box::new(detour));
        session.held_since = None;
    }

    /// Goes on with a session's detour. Ready: it is over, and so may be the session.
    pub(super) fn poll_detour(
        &mut self,
        id: u32,
        detour: &mut Detour,
        client: &Socket,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        match detour {
            Detour::Upload(upload) => self.poll_upload(id, upload, client, cx),
            Detour::Block(block) => self.poll_block(id, block, client, cx),
            Detour::Watching(watching) => self.poll_watching(id, watching, cx),
            Detour::Exec(exec) => self.poll_exec(id, exec, cx),
            Detour::Replicas(replicas) => self.poll_replicas(id, replicas, client, cx),
            Detour::Gather(gather) => self.poll_gather(id, gather, client, cx),
        }
    }

    /// Reads what a client sends while it waits for what may take for ever: so it is noticed when it goes
    /// away. Whether it is still there.
    pub(crate) fn poll_ahead(&mut self, id: u32, client: &Socket, cx: &mut Context<'_>) -> bool {
        while self.clients.session(id).input.len() < AHEAD {
            let read = self.poll_read(id, client, cx, Self::SCRATCH, |worker, bytes| {
                let input = &mut worker.clients.session(id).input;
                buffer::ensure(input).extend_from_slice(bytes);
            });
            if read.is_pending() {
                break;
            }
            if !self.clients.session(id).is_serving() {
                return false;
            }
        }
        true
    }

    /// The same, of what a proxy that drains does not wait for: then its client is let go.
    pub(crate) fn poll_awaited(&mut self, id: u32, client: &Socket, cx: &mut Context<'_>) -> bool {
        if !self.poll_ahead(id, client, cx) {
            return false;
        }
        if self.draining {
            self.clients.break_off(id);
        }
        !self.draining
    }
}
