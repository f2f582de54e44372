//! A sequence, sent to a plain server and through a proxy, and whether the replies agree.
//!
//! A client's requests go in batches; all replies to one are awaited before the next. A client that listens
//! to channels gets more than replies: what it got is what came before the answer to a `PING` of its own.

use super::{
    reply::{Reply, same},
    sequence::{CLIENTS, LISTENER, Request, Sequence, Step},
    wire::{self, Wire},
};

/// A request's command, and whether it succeeded.
pub(super) type Outcome = (&'static str, bool);

/// Where the proxy is not as good.
pub(super) struct Difference {
    /// Of the command.
    pub(super) name: &'static str,
    pub(super) text: String,
}

type Replies = Result<Vec<Reply>, String>;

impl Difference {
    fn new(name: &'static str, expected: Replies, given: Replies) -> Self {
        let shown = |replies: Replies| match replies {
            Ok(replies) => replies.iter().map(|reply| format!("{reply} ")).collect(),
            Err(why) => why,
        };
        let text = format!("  plain: {}\n  proxy: {}\n", shown(expected), shown(given));
        Self { name, text }
    }
}

fn agree(name: &'static str, expected: Replies, given: Replies) -> Result<(), Difference> {
    if expected.is_ok() && expected == given {
        Ok(())
    } else {
        Err(Difference::new(name, expected, given))
    }
}

/// All that comes before the answer to a `PING` with this mark.
fn until(wire: &mut Wire, mark: &str) -> Replies {
    wire.send(format!("PING '{mark}'\r\n").as_bytes())?;
    let mut replies = Vec::new();
    loop {
        let reply = wire.reply()?;
        let is_mark =
            |reply: &Reply| matches!(reply, Reply::Text(_, text) if text == mark.as_bytes());
        match &reply {
            // To one that listens, in RESP2.
            Reply::Many(_, many) if many.last().is_some_and(is_mark) => return Ok(replies),
            reply if is_mark(reply) => return Ok(replies),
            _ => replies.push(reply),
        }
    }
}

/// Which channels `UNSUBSCRIBE` without a name ends first depends on a hash table: the names, in one order,
/// apart from the rest.
fn by_name(replies: Vec<Reply>) -> Vec<Reply> {
    let (mut rest, mut names) = (Vec::new(), Vec::new());
    for reply in replies {
        match reply {
            Reply::Many(kind, mut many) if matches!(&many[..], [Reply::Text(_, verb), _, _] if verb.ends_with(b"unsubscribe")) =>
            {
                names.push(many.remove(1));
                rest.push(Reply::Many(kind, many));
            }
            other => rest.push(other),
        }
    }
    names.sort();
    rest.extend(names);
    rest
}

/// Those of a channel or pattern behind each other, in their order.
fn sort_by_channel(messages: &mut [Reply]) {
    messages.sort_by(|one, other| {
        let channel = |message: &Reply| match message {
            Reply::Many(_, many) => many[..many.len().saturating_sub(1)].to_vec(),
            Reply::Line(..) | Reply::Text(..) => Vec::new(),
        };
        channel(one).cmp(&channel(other))
    });
}

/// A sequence under way.
pub(super) struct Run<'a> {
    clients: [Client<'a>; CLIENTS],
    outcomes: Vec<Outcome>,
    /// Each says where the replies to some requests end.
    marks: u32,
}

struct Client<'a> {
    plain: Wire,
    proxy: Wire,
    /// The commands behind MULTI.
    queue: Option<Vec<&'a Request>>,
}

impl<'a> Run<'a> {
    pub(super) fn new(plain: &str, proxy: &str) -> Self {
        Self {
            clients: [(); CLIENTS].map(|()| Client {
                plain: Wire::connect(plain),
                proxy: Wire::connect(proxy),
                queue: None,
            }),
            outcomes: Vec::new(),
            marks: 0,
        }
    }

    /// What came of the requests of a sequence, up to the first difference.
    pub(super) fn whole(mut self, sequence: &'a Sequence) -> (Vec<Outcome>, Option<Difference>) {
        let done = self.steps(sequence);
        (self.outcomes, done.err())
    }

    fn steps(&mut self, sequence: &'a Sequence) -> Result<(), Difference> {
        let mut rest = &sequence.steps[..];
        while let Some(first) = rest.first() {
            let ends = |step: &Step| step.ends_batch;
            let of_client = rest
                .iter()
                .take_while(|step| step.client == first.client)
                .count();
            let batch = rest[..of_client]
                .iter()
                .position(ends)
                .map_or(of_client, |at| at + 1);
            let requests = rest[..batch].iter().flat_map(|step| &step.requests);
            let requests: Vec<&Request> = requests.collect();
            if sequence.listens && first.client == LISTENER && requests[0].name != "hello" {
                self.listen(&requests)?;
            } else {
                self.batch(first.client, &requests)?;
                if sequence.listens {
                    self.hear(requests[0].name, sequence.in_several_slots)?;
                }
            }
            rest = &rest[batch..];
        }
        sequence.ending.map_or(Ok(()), |bytes| self.end(bytes))
    }

    fn batch(&mut self, client: usize, requests: &[&'a Request]) -> Result<(), Difference> {
        let Client {
            plain,
            proxy,
            queue,
        } = &mut self.clients[client];
        let (mut to_plain, mut to_proxy) = (Vec::new(), Vec::new());
        for request in requests {
            wire::put(&mut to_proxy, request);
            if !request.crosses {
                wire::put(&mut to_plain, request);
            }
        }
        let name = requests[0].name;
        plain
            .send(&to_plain)
            .and(proxy.send(&to_proxy))
            .map_err(|text| Difference { name, text })?;
        let mut difference = None;
        for &request in requests {
            let expected = if request.crosses {
                let text = b"CROSSSLOT Keys in request don't hash to the same slot";
                Ok(Reply::Line(b'-', text.to_vec()))
            } else {
                plain.reply()
            };
            let given = proxy.reply();
            match (expected, given) {
                // The rest is awaited, so that it does not come into the next sequence.
                (Ok(_), Ok(_)) if difference.is_some() => {}
                (Ok(expected), Ok(given))
                    if judge(request, &expected, &given, queue.as_deref()) =>
                {
                    self.outcomes.push((request.name, !expected.is_error()));
                    follow(request, &expected, queue, &mut self.outcomes);
                }
                (expected, given) => {
                    let is_lost = expected.is_err() || given.is_err();
                    let one = |reply: Result<Reply, String>| reply.map(|reply| vec![reply]);
                    let found = Difference::new(request.name, one(expected), one(given));
                    difference.get_or_insert(found);
                    if is_lost {
                        break;
                    }
                }
            }
        }
        difference.map_or(Ok(()), Err)
    }

    /// The requests of a client that listens: each may have any number of replies, all of which must be
    /// equal.
    fn listen(&mut self, requests: &[&'a Request]) -> Result<(), Difference> {
        let mark = self.mark();
        let Client { plain, proxy, .. } = &mut self.clients[LISTENER];
        let mut bytes = Vec::new();
        requests
            .iter()
            .for_each(|request| wire::put(&mut bytes, request));
        let replies = |wire: &mut Wire| wire.send(&bytes).and_then(|()| until(wire, &mark));
        let (expected, given) = (replies(plain), replies(proxy));
        let succeeded = expected
            .as_ref()
            .is_ok_and(|all| !all.iter().any(Reply::is_error));
        agree(requests[0].name, expected.map(by_name), given.map(by_name))?;
        let outcomes = requests.iter().map(|request| (request.name, succeeded));
        self.outcomes.extend(outcomes);
        Ok(())
    }

    /// What the client that listens has heard of what another has done: of each channel, the same in the
    /// same order; but for what comes from several groups.
    fn hear(&mut self, name: &'static str, in_several_slots: bool) -> Result<(), Difference> {
        let mark = self.mark();
        let Client { plain, proxy, .. } = &mut self.clients[LISTENER];
        let expected = until(plain, &mark);
        // A proxy passes messages on when they come: as many as there must be are waited for.
        let mut given = Vec::new();
        let missing = expected.as_ref().map_or(0, Vec::len);
        let heard = (0..missing).try_for_each(|_| proxy.reply().map(|message| given.push(message)));
        let more = heard.and_then(|()| until(proxy, &mark));
        let given = more.map(|more| [given, more].concat());
        let ordered = |mut messages: Vec<Reply>| {
            if in_several_slots {
                messages.sort();
            } else {
                sort_by_channel(&mut messages);
            }
            messages
        };
        agree(name, expected.map(ordered), given.map(ordered))
    }

    fn mark(&mut self) -> String {
        self.marks += 1;
        format!("mark {}", self.marks)
    }

    /// The first client sends its last bytes; what comes until it is closed.
    fn end(&mut self, bytes: &[u8]) -> Result<(), Difference> {
        let Client { plain, proxy, .. } = &mut self.clients[0];
        let rest = |wire: &mut Wire| wire.send(bytes).and_then(|()| wire.rest());
        let (expected, given) = (rest(plain), rest(proxy));
        let text = |rest: Vec<u8>| vec![Reply::Text(b'$', rest)];
        agree("the end", expected.map(text), given.map(text))
    }
}

/// Whether a reply is as good as the expected one; to EXEC, each in it.
fn judge(request: &Request, expected: &Reply, given: &Reply, queue: Option<&[&Request]>) -> bool {
    match (expected, given, queue) {
        (Reply::Many(_, expected), Reply::Many(_, given), Some(queue))
            if request.name == "exec" =>
        {
            let mut each = queue.iter().zip(expected).zip(given);
            expected.len() == queue.len()
                && given.len() == queue.len()
                && each.all(|((request, expected), given)| same(request, expected, given))
        }
        _ => same(request, expected, given),
    }
}

/// What is queued after a reply.
fn follow<'a>(
    request: &'a Request,
    reply: &Reply,
    queue: &mut Option<Vec<&'a Request>>,
    outcomes: &mut Vec<(&'static str, bool)>,
) {
    match (request.name, &mut *queue) {
        ("multi", None) if !reply.is_error() => *queue = Some(Vec::new()),
        ("exec", Some(queued)) => {
            if let Reply::Many(_, replies) = reply {
                let names = queued.iter().map(|request| request.name);
                outcomes.extend(names.zip(replies.iter().map(|reply| !reply.is_error())));
            }
            *queue = None;
        }
        ("discard" | "reset", Some(_)) if !reply.is_error() => *queue = None,
        (_, Some(queued)) if reply.is("+QUEUED") => queued.push(request),
        _ => {}
    }
}
