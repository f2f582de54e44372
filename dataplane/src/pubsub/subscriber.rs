//! A worker's connection to one server for all its subscriptions there.
//!
//! Opened when it is first needed, dialled again with growing pauses when it is lost, and asked for all
//! that it is wanted for whenever it has been opened. It says what servers are asked, and puts what comes
//! back where it belongs: what was asked is answered in order; messages come in between. While nothing
//! comes it asks the server for a sign of life: a connection that is silently gone would miss messages.
//!
//! Invariant: what is expected is what was asked on this connection and not answered.

use std::{
    cell::RefCell,
    collections::{BTreeSet, VecDeque},
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use proto::fence;
use tokio::time::{Instant, sleep};

use super::{
    PubSub, home,
    message::{Message, Said, put_request, read},
    register::{Link, Order},
};
use crate::{
    backend::{Door, SETTLED, Shut},
    backoff::Backoff,
    buffer,
    memory::Account,
    resp::{BadReply, ReplyProgress, put_error},
    socket::Socket,
    worker::{self, Worker},
};

/// See the module.
pub(super) struct Subscriber {
    pub(super) door: Door,
    /// Whose primary it is, by the group's index in the topology. `None`: it has left.
    pub(super) group: Option<u16>,
    pub(super) link: Link,
    /// Why it is down.
    pub(super) why: Shut,
    /// What is to be sent, from `sent` on.
    out: Vec<u8>,
    sent: usize,
    expected: VecDeque<Expected>,
    /// What has come of a message that is not whole.
    partial: Vec<u8>,
    progress: ReplyProgress,
    /// When the server last said something, or was first asked to.
    alive: Instant,
    /// Bytes it was last counted with.
    counted: usize,
    /// Of its task.
    waker: Option<Waker>,
}

/// What a server is to answer.
enum Expected {
    Done(Order),
    Pong,
}

/// It reads so often in one turn at most: then the sessions have their turn.
const READS: usize = 4;
const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

impl Subscriber {
    pub(super) fn new(door: Door, group: u16, now: Instant) -> Self {
        Self {
            door,
            group: Some(group),
            link: Link::Opening,
            why: Shut::Down(String::new()),
            out: Vec::new(),
            sent: 0,
            expected: VecDeque::new(),
            partial: Vec::new(),
            progress: ReplyProgress::default(),
            alive: now,
            counted: 0,
            waker: None,
        }
    }

    /// What is said of subscriptions that need it while it is down.
    pub(super) fn error(&self) -> String {
        self.why.error(self.door.addr.as_str())
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    fn expect(&mut self, expected: Expected, now: Instant) {
        if self.expected.is_empty() {
            self.alive = now;
        }
        self.expected.push_back(expected);
    }

    fn is_overdue(&self, now: Instant, most: Duration) -> bool {
        !self.expected.is_empty() && now.saturating_duration_since(self.alive) > most
    }

    /// Sends what the socket takes. Whether that was all.
    fn send(&mut self, socket: &Socket) -> std::io::Result<bool> {
        while self.sent < self.out.len() {
            match socket.write(&self.out[self.sent..]) {
                Ok(len) => self.sent += len,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        self.sent = 0;
        buffer::give(&mut self.out);
        Ok(true)
    }

    fn recount(&mut self, account: &mut Account) {
        let now = self.out.capacity()
            + self.partial.capacity()
            + self.expected.capacity() * size_of::<Expected>();
        account.recount(&mut self.counted, now);
    }
}

impl PubSub {
    /// Has the servers asked what the register ordered.
    pub(super) fn send_orders(&mut self, now: Instant) {
        for order in std::mem::take(&mut self.register.orders) {
            let subscriber = &mut self.subscribers[order.subscriber as usize];
            let (topic, name) = self.register.name(order.entry);
            put_request(&mut subscriber.out, topic, order.change, &name);
            subscriber.expect(Expected::Done(order), now);
            subscriber.wake();
        }
    }

    /// Has those looked after that have been silent for long.
    pub(crate) fn tick(&mut self, now: Instant, most: Duration) {
        for (_, subscriber) in &mut self.subscribers {
            let silent = now.saturating_duration_since(subscriber.alive);
            match subscriber.link {
                Link::Ready if subscriber.is_overdue(now, most) => subscriber.wake(),
                Link::Ready if subscriber.expected.is_empty() && silent > most / 2 => {
                    subscriber.out.extend_from_slice(PING);
                    subscriber.expect(Expected::Pong, now);
                    subscriber.wake();
                }
                Link::Ready | Link::Opening | Link::Down => {}
            }
        }
    }

    /// Takes what a server said. `deliver` gets each message and those it is for.
    fn receive(
        &mut self,
        id: u32,
        bytes: &[u8],
        deliver: &mut impl FnMut(&BTreeSet<u32>, Message<'_>, &[u8]),
    ) -> Result<(), BadReply> {
        let subscriber = &mut self.subscribers[id as usize];
        let mut partial = std::mem::take(&mut subscriber.partial);
        let mut progress = std::mem::take(&mut subscriber.progress);
        let all = if partial.is_empty() {
            bytes
        } else {
            buffer::reserve(&mut partial, bytes.len());
            partial.extend_from_slice(bytes);
            &partial
        };
        let mut taken = 0;
        while let Some(len) = progress.scan(&all[taken..])? {
            self.take(id, &all[taken..taken + len], deliver)?;
            taken += len;
        }
        if taken == all.len() {
            buffer::give(&mut partial);
        } else if partial.is_empty() {
            buffer::ensure(&mut partial).extend_from_slice(&bytes[taken..]);
        } else {
            partial.drain(..taken);
        }
        let subscriber = &mut self.subscribers[id as usize];
        (subscriber.partial, subscriber.progress) = (partial, progress);
        Ok(())
    }

    fn take(
        &mut self,
        id: u32,
        frame: &[u8],
        deliver: &mut impl FnMut(&BTreeSet<u32>, Message<'_>, &[u8]),
    ) -> Result<(), BadReply> {
        let said = read(frame)?;
        if let Said::Message(message) = said {
            if let Some(entry) = self.register.find(message.topic, message.name) {
                deliver(self.register.sessions(entry), message, frame);
            }
            return Ok(());
        }
        let expected = self.subscribers[id as usize].expected.pop_front();
        let link = |id: u32| self.subscribers[id as usize].link;
        match (said, expected.ok_or(BadReply)?) {
            (Said::Done(topic, change), Expected::Done(order))
                if change == order.change && topic == self.register.name(order.entry).0 =>
            {
                self.register.done(&order, link);
            }
            (Said::Error(text), Expected::Done(order)) => {
                let mut frame = Vec::new();
                put_error(&mut frame, text);
                self.register.refused(&order, &frame, link);
            }
            (Said::Pong, Expected::Pong) => {}
            (Said::Done(..) | Said::Error(_) | Said::Pong | Said::Message(_), _) => {
                return Err(BadReply);
            }
        }
        Ok(())
    }

    /// Its connection is open.
    fn opened(&mut self, id: u32, now: Instant) {
        let subscriber = &mut self.subscribers[id as usize];
        subscriber.link = Link::Ready;
        subscriber.alive = now;
        let link = |id: u32| self.subscribers[id as usize].link;
        self.register.opened(id, link);
    }

    /// Its connection is lost, or could not be opened.
    fn lost(&mut self, id: u32, why: Shut) {
        let subscriber = &mut self.subscribers[id as usize];
        subscriber.link = Link::Down;
        subscriber.why = why;
        subscriber.out = Vec::new();
        subscriber.sent = 0;
        subscriber.expected.clear();
        subscriber.partial = Vec::new();
        subscriber.progress = ReplyProgress::default();
        subscriber.waker = None;
        let mut frame = Vec::new();
        put_error(&mut frame, &subscriber.error());
        let link = |id: u32| self.subscribers[id as usize].link;
        self.register.lost(id, &frame, link);
    }

    /// Whether its server has left the topology and nothing is subscribed there any more.
    fn is_over(&self, id: u32) -> bool {
        self.subscribers[id as usize].group.is_none() && !self.register.needs(id)
    }
}

/// The life of a subscriber, until its server has left the topology.
pub(super) async fn run(worker: Rc<RefCell<Worker>>, id: u32) {
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
    loop {
        let door = {
            let Worker {
                backends, pubsub, ..
            } = &mut *worker.borrow_mut();
            backends.again(&pubsub.subscribers[id as usize].door)
        };
        let opened = door.open().await;
        let since = Instant::now();
        let why = match opened {
            Ok(connection) => {
                worker.borrow_mut().subscriber_opened(id);
                let socket = &connection.socket;
                let poll =
                    |cx: &mut Context<'_>| worker.borrow_mut().poll_subscriber(id, socket, cx);
                Shut::Down(poll_fn(poll).await)
            }
            // It asks for what it is wanted for by what is routed by now.
            Err(why) if worker.borrow().backends.is_outdated(&why) => continue,
            Err(why) => why,
        };
        let refusal = match &why {
            Shut::Refused(refusal) if refusal.is_sticky() => Some(refusal.clone()),
            Shut::Refused(_) | Shut::Down(_) => None,
        };
        if worker.borrow_mut().subscriber_ended(id, why) {
            return;
        }
        if let Some(refusal) = refusal {
            poll_fn(|cx| worker.borrow_mut().poll_newer(id, &refusal, cx)).await;
        } else if since.elapsed() < SETTLED {
            sleep(backoff.next()).await;
        } else {
            backoff.reset();
        }
    }
}

/// What a worker does for its subscribers: their tasks call these.
impl Worker {
    fn subscriber_opened(&mut self, id: u32) {
        let server = &self.pubsub.subscribers[id as usize].door.addr;
        tracing::info!(%server, "subscriber connected");
        self.pubsub.opened(id, self.backends.now());
        self.settle_subscriptions();
    }

    /// Ready once one that was refused has reason to ask again, or is no longer needed.
    fn poll_newer(&mut self, id: u32, refusal: &fence::Refusal, cx: &Context<'_>) -> Poll<()> {
        let is_newer = self.backends.routes_newer(refusal);
        let subscriber = &mut self.pubsub.subscribers[id as usize];
        if is_newer || subscriber.group.is_none() {
            return Poll::Ready(());
        }
        subscriber.waker.get_or_insert_with(|| cx.waker().clone());
        Poll::Pending
    }

    fn poll_subscriber(&mut self, id: u32, socket: &Socket, cx: &mut Context<'_>) -> Poll<String> {
        let now = self.backends.now();
        for _ in 0..READS {
            if self.pubsub.is_over(id) {
                return Poll::Ready("it left the topology".to_owned());
            }
            let subscriber = &mut self.pubsub.subscribers[id as usize];
            subscriber.waker.get_or_insert_with(|| cx.waker().clone());
            if !subscriber.out.is_empty() {
                let mut failed = None;
                let sent = socket.poll_writable(cx, || {
                    let sent = subscriber.send(socket);
                    sent.unwrap_or_else(|e| {
                        failed = Some(e);
                        true
                    })
                });
                if let (Some(e), _) | (None, Poll::Ready(Err(e))) = (failed, sent) {
                    return Poll::Ready(e.to_string());
                }
            }
            let mut scratch = std::mem::take(&mut self.scratch);
            scratch.resize(Self::SCRATCH, 0);
            let read = socket.poll_read(cx, &mut scratch);
            let taken = match &read {
                &Poll::Ready(Ok(len)) => {
                    self.stats.server_bytes_in.add(len as u64);
                    self.pubsub.subscribers[id as usize].alive = now;
                    self.take_said(id, &scratch[..len])
                }
                Poll::Pending | Poll::Ready(Err(_)) => Ok(()),
            };
            self.scratch = scratch;
            let subscriber = &mut self.pubsub.subscribers[id as usize];
            subscriber.recount(&mut self.clients.account);
            match (read, taken) {
                (Poll::Ready(Ok(0)), _) => {
                    return Poll::Ready("it closed the connection".to_owned());
                }
                (Poll::Ready(Ok(_)), Ok(())) => {}
                (Poll::Ready(Ok(_)), Err(e)) => return Poll::Ready(e.to_string()),
                (Poll::Ready(Err(e)), _) => return Poll::Ready(e.to_string()),
                (Poll::Pending, _) => {
                    let most = self.serving.server_timeout;
                    return if subscriber.is_overdue(now, most) {
                        Poll::Ready(format!("no reply for {most:?}"))
                    } else {
                        Poll::Pending
                    };
                }
            }
        }
        worker::yield_turn(cx);
        Poll::Pending
    }

    fn take_said(&mut self, id: u32, bytes: &[u8]) -> Result<(), BadReply> {
        let Self {
            pubsub,
            clients,
            stats,
            topology,
            ..
        } = self;
        let group = pubsub.subscribers[id as usize].group;
        let mut resp3 = Vec::new();
        let taken = pubsub.receive(id, bytes, &mut |sessions, message, frame| {
            let from_owner = match (group, topology.as_ref()) {
                (Some(group), Some(topology)) => {
                    home::counts(message.channel, message.payload, group, topology)
                }
                (None, _) | (_, None) => !home::is_event(message.channel),
            };
            if !from_owner {
                return;
            }
            resp3.clear();
            for &session in sessions {
                clients.bring(session, frame, &mut resp3);
            }
            stats.messages.add(sessions.len() as u64);
        });
        self.settle_subscriptions();
        taken
    }

    /// Whether the subscriber's life is over.
    fn subscriber_ended(&mut self, id: u32, why: Shut) -> bool {
        let over = self.pubsub.subscribers[id as usize].group.is_none();
        let subscriber = &mut self.pubsub.subscribers[id as usize];
        let server = &subscriber.door.addr;
        match &why {
            Shut::Down(why) if !over && subscriber.link != Link::Down => {
                tracing::warn!(%server, why, "lost server of subscriptions");
                self.stats.server_connections_lost.add(1);
            }
            Shut::Down(_) => {}
            Shut::Refused(why) => {
                if subscriber.link != Link::Down {
                    tracing::warn!(%server, %why, "may not subscribe at server");
                }
                self.stats.connections_refused.add(1);
            }
        }
        self.pubsub.lost(id, why);
        self.settle_subscriptions();
        if over {
            let mut subscriber = self.pubsub.subscribers.remove(id as usize);
            self.clients.account.recount(&mut subscriber.counted, 0);
        }
        over
    }
}
