//! A non-blocking TCP socket, registered with the runtime of its thread.
//!
//! It reads and writes with plain system calls and asks the runtime only when there is nothing to read
//! or no room to write. That is why it is not tokio's `TcpStream`: a read that did not fill its buffer
//! has emptied the socket, which saves the read that would only say so; and the flusher, which writes
//! to many sockets in turn, must not leave its own waker at each of them.
#![allow(unsafe_code)]

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{Interest, unix::AsyncFd};

/// What listens for clients, registered like a [`Socket`].
pub(crate) struct Listener(AsyncFd<TcpListener>);

impl Listener {
    /// Registers a listener that does not block.
    pub(crate) fn new(listener: TcpListener) -> io::Result<Self> {
        // SAFETY: as for a `Socket`: it keeps its descriptor open, and the same, until it is dropped.
        let registered = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) };
        registered
            .map(Self)
            .map_err(|e| io::Error::other(e.to_string()))
    }

    /// The next client. Its stream is not registered: it goes to the thread that will.
    pub(crate) async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.0
            .async_io(Interest::READABLE, TcpListener::accept)
            .await
    }
}

/// See the module.
pub(crate) struct Socket(AsyncFd<TcpStream>);

impl Socket {
    /// Registers a stream that does not block.
    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        // SAFETY: the `AsyncFd` owns the stream and gives out only shared references to it; a
        // `TcpStream` keeps its descriptor open, and the same, until it is dropped.
        let registered = unsafe { AsyncFd::register(stream) };
        registered
            .map(Self)
            .map_err(|e| io::Error::other(e.to_string()))
    }

    /// The number of its descriptor.
    pub(crate) fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Reads what is there; 0 bytes: the other side has closed.
    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut readable = ready!(self.0.poll_read_ready(cx))?;
            match self.0.get_ref().read(buffer) {
                Ok(len) => {
                    if len > 0 && len < buffer.len() {
                        readable.clear_ready();
                    }
                    return Poll::Ready(Ok(len));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => readable.clear_ready(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// Writes what the kernel takes now; `WouldBlock` if that is nothing.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.get_ref().write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Calls `attempt` each time there may be room to write, until it says that it is done.
    pub(crate) fn poll_writable(
        &self,
        cx: &mut Context<'_>,
        mut attempt: impl FnMut() -> bool,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut writable = ready!(self.0.poll_write_ready(cx))?;
            if attempt() {
                return Poll::Ready(Ok(()));
            }
            writable.clear_ready();
        }
    }

    /// Has the kernel find out that the other side is dead, or cannot be reached, though neither of the two
    /// has anything to say: within this time of the last that was heard of it.
    pub(crate) fn suspect(&self, within: Duration) -> io::Result<()> {
        let keepalive = TcpKeepalive::new()
            .with_time(within / 2)
            .with_interval(within / 4)
            .with_retries(2);
        let options = SockRef::from(self.0.get_ref());
        options.set_tcp_keepalive(&keepalive)?;
        options.set_tcp_user_timeout(Some(within))
    }

    /// Whether nothing has come that was not read, not even the end.
    pub(crate) fn is_quiet(&self) -> bool {
        let peeked = self.0.get_ref().peek(&mut [0]);
        peeked.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether the other side will send no more, though what it sent before may not be read yet.
    pub(crate) fn has_ended(&self) -> bool {
        let mut ended = [PollFd::new(self.0.get_ref(), PollFlags::RDHUP)];
        poll(&mut ended, Some(&Timespec::default())).is_ok_and(|events| events > 0)
    }

    /// Tells the other side that it is over, though the descriptor may live on for a while.
    pub(crate) fn close(&self) {
        if let Err(e) = self.0.get_ref().shutdown(Shutdown::Both) {
            tracing::trace!(error = %e, "the other side was gone already");
        }
    }
}
