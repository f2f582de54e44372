//! `CLUSTER COUNTKEYSINSLOT` and `GETKEYSINSLOT`: keys by Redis Cluster's slots, for tools that go by them.
//!
//! No server has keys by these slots. So all keys of all groups are gone through as a client would with
//! `SCAN`, page by page: no server is made wait, but it takes as long as that. Its session takes no other
//! request meanwhile; who goes away ends it. When the slot map changes it begins again, as a scan does.
//!
//! Invariant: each key that is there all the time counts once.

use std::{
    collections::HashSet,
    sync::Arc,
    task::{Context, Poll},
};

use proto::ServerAddr;

use super::{Exchange, Step};
use crate::{
    backend::put_command,
    error,
    fanout::{Cursors, Owners, Page},
    local,
    resp::{Request, parse_int, put_bulk, put_header, put_int},
    session::{Detour, Dispatched},
    socket::Socket,
    worker::{self, Worker},
};

/// So many keys a server looks at for a page, more or less.
const PAGE: &[u8] = b"1000";
/// So often one is gone on with in a turn at most.
const STEPS: usize = 16;
/// What a key costs that is remembered, besides its bytes.
const COST: usize = 32;

/// One under way.
pub(crate) struct Gather {
    slot: u16,
    wanted: Wanted,
    /// Where to go on; see [`Cursors`].
    cursor: u64,
    /// The keys that were found. A scan may return one twice.
    found: HashSet<Box<[u8]>>,
    /// Of `found`.
    bytes: usize,
    asked: Option<Asked>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wanted {
    Count,
    /// At most so many.
    Keys(usize),
}

/// A page that was asked for.
struct Asked {
    exchange: Exchange,
    page: Page,
    server: ServerAddr,
    said: Vec<u8>,
}

impl Gather {
    /// As a request asks for it; else the error.
    fn parse(request: &Request<'_>) -> Result<Self, &'static str> {
        let numbers: Option<Vec<i64>> = request.args_from(2).map(parse_int).collect();
        let (slot, wanted) = match numbers.as_deref() {
            None => return Err(error::NOT_AN_INTEGER),
            Some(&[slot]) => (slot, Wanted::Count),
            Some(&[slot, most]) => match usize::try_from(most) {
                Ok(most) => (slot, Wanted::Keys(most)),
                Err(_) => return Err(error::BAD_CLUSTER_SLOT_OR_COUNT),
            },
            Some(_) => unreachable!("their rows take no other number of arguments"),
        };
        let slot = u16::try_from(slot).ok();
        let slot = slot.filter(|&slot| slot <= local::LAST_CLUSTER_SLOT);
        let Some(slot) = slot else {
            return Err(match wanted {
                Wanted::Count => error::BAD_CLUSTER_SLOT,
                Wanted::Keys(_) => error::BAD_CLUSTER_SLOT_OR_COUNT,
            });
        };
        Ok(Self {
            slot,
            wanted,
            cursor: 0,
            found: HashSet::new(),
            bytes: 0,
            asked: None,
        })
    }

    /// Bytes of memory it owns.
    pub(crate) fn memory(&self) -> usize {
        let asked = |asked: &Asked| asked.exchange.memory() + asked.said.capacity();
        self.bytes + self.asked.as_ref().map_or(0, asked)
    }

    /// Takes the keys of a page that are in its slot, as far as they are wanted.
    fn take(&mut self, keys: &[&[u8]]) {
        for key in keys {
            if !self.has_all()
                && local::cluster_slot(key) == self.slot
                && !self.found.contains(*key)
            {
                self.bytes += key.len() + COST;
                self.found.insert((*key).into());
            }
        }
    }

    /// Whether more keys would make no difference.
    fn has_all(&self) -> bool {
        match self.wanted {
            Wanted::Count => false,
            Wanted::Keys(most) => self.found.len() >= most,
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        match self.wanted {
            Wanted::Count => put_int(out, self.found.len() as i64),
            Wanted::Keys(_) => {
                put_header(out, b'*', self.found.len());
                self.found.iter().for_each(|key| put_bulk(out, key));
            }
        }
    }
}

/// What a worker does for these: the session's task calls this.
impl Worker {
    pub(crate) fn gather(&mut self, id: u32, request: &Request<'_>) -> Dispatched {
        if self.clients.session(id).outbox.in_flight() > 0 {
            return Dispatched::Waits; // what it wrote is to be found
        }
        match Gather::parse(request) {
            Ok(gather) => {
                self.taken(id);
                self.begin_detour(id, Detour::Gather(gather));
                Dispatched::Done
            }
            Err(text) => self.answer_error(id, text),
        }
    }

    /// Goes on with one. Ready: it is over, and so may be the session.
    pub(crate) fn poll_gather(
        &mut self,
        id: u32,
        gather: &mut Gather,
        client: &Socket,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if !self.poll_awaited(id, client, cx) {
            return Poll::Ready(()); // nobody waits for it any more
        }
        for _ in 0..STEPS {
            let Some(asked) = &mut gather.asked else {
                match self.ask_page(id, gather.cursor) {
                    Ok(asked) => gather.asked = Some(asked),
                    Err(text) => {
                        self.answer_failure(id, text);
                        return Poll::Ready(());
                    }
                }
                continue;
            };
            let Asked { exchange, said, .. } = asked;
            let step = self.poll_aside(exchange, cx, |_, piece| {
                said.extend_from_slice(piece.bytes);
            });
            match step {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Step::Again) => {}
                Poll::Ready(Step::Done(lease)) => {
                    self.leases.give(lease, self.backends.now());
                    if self.take_page(id, gather) {
                        return Poll::Ready(());
                    }
                }
                Poll::Ready(Step::Failed(failure)) => {
                    let text = failure.why.error(asked.server.as_str());
                    self.answer_failure(id, &text);
                    return Poll::Ready(());
                }
            }
        }
        worker::yield_turn(cx);
        Poll::Pending
    }

    /// Asks the next group for its next page.
    fn ask_page(&mut self, id: u32, cursor: u64) -> Result<Asked, &'static str> {
        let topology = self.topology.as_ref().expect("it was routed once");
        let cursors = Cursors::new(topology).ok_or(error::NOT_SERVED)?;
        let place = cursors.read(cursor);
        let owners = Owners {
            topology: Arc::clone(topology),
            groups: vec![place.group],
        };
        let opening = self.lease(id, place.group).ok_or(error::NO_LEASE)?;
        let mut request = Vec::new();
        let server = place.server.to_string();
        put_command(&mut request, &[b"SCAN", server.as_bytes(), b"COUNT", PAGE]);
        let silence = Some(self.serving.server_timeout);
        Ok(Asked {
            exchange: Exchange::new(opening, request, 1, silence),
            page: Page { owners, cursors },
            server: self.backends.primary(place.group).clone(),
            said: Vec::new(),
        })
    }

    /// Takes a page that has come. Whether it was the last, and the client has its answer.
    fn take_page(&mut self, id: u32, gather: &mut Gather) -> bool {
        let Asked { page, said, .. } = gather.asked.take().expect("it has been answered");
        if said.starts_with(b"-") {
            self.clients.errors += 1;
            self.clients
                .answer_awaited(id, |out| out.extend_from_slice(&said));
            return true;
        }
        match page.keys(&said) {
            Ok((cursor, keys)) => {
                gather.take(&keys);
                gather.cursor = cursor;
            }
            Err(text) => {
                self.answer_failure(id, text);
                return true;
            }
        }
        if gather.bytes > self.serving.max_request_bytes {
            self.answer_failure(id, error::TOO_MANY_KEYS);
            return true;
        }
        let is_over = gather.cursor == 0 || gather.has_all();
        if is_over {
            self.clients.answer_awaited(id, |out| gather.put(out));
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::{Limits, Progress, split_inline};

    fn parse(line: &str) -> Result<Gather, &'static str> {
        let raw = split_inline(line.as_bytes()).unwrap();
        let mut args = Vec::new();
        let limits = Limits::UNAUTHENTICATED;
        Progress::default()
            .scan(&raw, &mut args, &limits, true)
            .unwrap();
        Gather::parse(&Request::new(&raw, &args))
    }

    #[test]
    fn what_is_asked_for_is_read_as_redis_reads_it() {
        for (line, expected) in [
            ("cluster countkeysinslot 16383", Ok((16_383, Wanted::Count))),
            ("cluster getkeysinslot 0 0", Ok((0, Wanted::Keys(0)))),
            ("cluster countkeysinslot x", Err(error::NOT_AN_INTEGER)),
            ("cluster countkeysinslot -1", Err(error::BAD_CLUSTER_SLOT)),
            (
                "cluster countkeysinslot 16384",
                Err(error::BAD_CLUSTER_SLOT),
            ),
            (
                "cluster getkeysinslot 16384 1",
                Err(error::BAD_CLUSTER_SLOT_OR_COUNT),
            ),
            (
                "cluster getkeysinslot 1 -1",
                Err(error::BAD_CLUSTER_SLOT_OR_COUNT),
            ),
        ] {
            let got = parse(line).map(|gather| (gather.slot, gather.wanted));
            assert_eq!(got, expected, "{line}");
        }
    }

    #[test]
    fn a_key_counts_once_and_no_more_are_taken_than_wanted() {
        // a is in slot 15495, foo in another.
        let check = |line: &str, expected: &str| {
            let mut gather = parse(line).unwrap();
            gather.take(&[b"a", b"foo", b"{a}b"]);
            gather.take(&[b"{a}b", b"{a}c"]);
            let mut out = Vec::new();
            gather.put(&mut out);
            assert!(out.starts_with(expected.as_bytes()), "{line}");
            assert_eq!(
                gather.bytes,
                gather
                    .found
                    .iter()
                    .map(|key| key.len() + COST)
                    .sum::<usize>()
            );
        };
        check("cluster countkeysinslot 15495", ":3\r\n");
        check("cluster countkeysinslot 1", ":0\r\n");
        check("cluster getkeysinslot 15495 9", "*3\r\n");
        check("cluster getkeysinslot 15495 2", "*2\r\n");
        check("cluster getkeysinslot 15495 0", "*0\r\n");
    }
}
