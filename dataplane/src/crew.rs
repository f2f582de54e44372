//! The workers of a proxy, to each other: what is rare and concerns the sessions of all of them.
//!
//! Each worker has a mailbox, in which the others put **errands**: what it does between two turns, with
//! its own state. [`Worker::ask_all`] has every worker answer a question, and makes one reply of what
//! they say; [`Crew::tell`] has one do something. Knows nothing of what is asked, and is never on the
//! way of a request that goes to a server.
//!
//! Nobody waits for a worker without end, and nothing is asked by halves: a question goes to all, or, as
//! long as one of the mailboxes has no room, waits for some ticks. A worker that has not answered by
//! [`PATIENCE`] makes the reply an error; one that has ended has no sessions, and nothing to say.
//!
//! Invariant: a request that asks takes one number of its session's outbox, and gets one reply.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_local,
    time::timeout,
};

use crate::{buffer, error, session::Dispatched, worker::Worker};

/// Errands that one worker has not done yet, at most.
const MAILBOX: usize = 256;
/// Questions of one worker that are not answered yet, at most: each holds its answers.
const ASKING: u32 = 8;
/// How long a worker may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a worker is asked to do, with its own state.
type Errand = Box<dyn FnOnce(&mut Worker) + Send>;

/// A worker's errands, as they come.
pub(crate) type Mailbox = mpsc::Receiver<Errand>;

/// All workers, as one of them sees them.
pub(crate) struct Crew {
    /// Which of them it is.
    own: usize,
    mailboxes: Arc<[mpsc::Sender<Errand>]>,
    /// Its questions that are not answered yet.
    asking: u32,
}

/// Why a worker was not told something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Untold {
    /// Too much waits for it already.
    Busy,
    /// It has ended, and all its sessions have.
    Gone,
}

impl Crew {
    /// Of so many workers, what each is given.
    pub(crate) fn of(workers: usize) -> Vec<(Self, Mailbox)> {
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..workers).map(|_| mpsc::channel(MAILBOX)).unzip();
        let mailboxes: Arc<[_]> = senders.into();
        let member = |own, mailbox| {
            let mailboxes = Arc::clone(&mailboxes);
            let asking = 0;
            (
                Self {
                    own,
                    mailboxes,
                    asking,
                },
                mailbox,
            )
        };
        (0..)
            .zip(receivers)
            .map(|(own, mailbox)| member(own, mailbox))
            .collect()
    }

    /// Which of the workers this is.
    pub(crate) fn own(&self) -> usize {
        self.own
    }

    /// Has a worker, this one too, do something soon. Errands are done in the order in which one worker
    /// gives them to another.
    pub(crate) fn tell(
        &self,
        worker: usize,
        errand: impl FnOnce(&mut Worker) + Send + 'static,
    ) -> Result<(), Untold> {
        self.mailboxes[worker]
            .try_send(Box::new(errand))
            .map_err(|refused| match refused {
                mpsc::error::TrySendError::Full(_) => Untold::Busy,
                mpsc::error::TrySendError::Closed(_) => Untold::Gone,
            })
    }
}

impl Worker {
    /// Asks all workers, this one at once; `reply` writes what is made of their answers, of which this
    /// worker's is the first. A session asks once at a time, and not before all that it asked before has
    /// been answered.
    pub(crate) fn ask_all<A: Send + 'static>(
        &mut self,
        id: u32,
        question: impl Fn(&mut Self) -> A + Clone + Send + 'static,
        reply: impl FnOnce(Vec<A>, &mut Vec<u8>) + 'static,
    ) -> Dispatched {
        self.ask_all_then(id, question, move |worker, number, answers| match answers {
            Ok(answers) => worker.reply_of_crew(id, number, |out| reply(answers, out)),
            Err(text) => worker.clients.reply_error(id, number, text),
        })
    }

    /// The same; `then` gets the answers, or the error if one of them is missing, and sees to it that the
    /// request of this number is replied to.
    pub(crate) fn ask_all_then<A: Send + 'static>(
        &mut self,
        id: u32,
        question: impl Fn(&mut Self) -> A + Clone + Send + 'static,
        then: impl FnOnce(&mut Self, u32, Result<Vec<A>, &'static str>) + 'static,
    ) -> Dispatched {
        if self.clients.session(id).outbox.in_flight() > 0 {
            return Dispatched::Waits;
        }
        if self.crew.asking >= ASKING {
            return self.wait_for_tick(id, error::CREW_BUSY);
        }
        let mailboxes = Arc::clone(&self.crew.mailboxes);
        let mut room = Vec::with_capacity(mailboxes.len());
        for (other, mailbox) in mailboxes.iter().enumerate() {
            if other == self.crew.own {
                continue;
            }
            match mailbox.try_reserve() {
                Ok(permit) => room.push(permit),
                Err(mpsc::error::TrySendError::Full(())) => {
                    return self.wait_for_tick(id, error::CREW_BUSY);
                }
                Err(mpsc::error::TrySendError::Closed(())) => {}
            }
        }
        let answered: Vec<oneshot::Receiver<A>> = room
            .into_iter()
            .map(|permit| {
                let question = question.clone();
                let (answer, answered) = oneshot::channel();
                permit.send(Box::new(move |worker| {
                    // Whoever asked may have given up.
                    drop(answer.send(question(worker)));
                }));
                answered
            })
            .collect();
        let number = self.clients.session(id).outbox.reserve();
        self.stats.requests_local.add(1);
        self.taken(id);
        let mut answers = vec![question(self)];
        if answered.is_empty() {
            then(self, number, Ok(answers));
            return Dispatched::Done;
        }
        self.crew.asking += 1;
        let worker = self.this.clone();
        spawn_local(async move {
            let others = async {
                for answer in answered {
                    answers.extend(answer.await.ok());
                }
            };
            let in_time = timeout(PATIENCE, others).await.is_ok();
            if let Some(worker) = worker.upgrade() {
                let worker = &mut *worker.borrow_mut();
                worker.crew.asking -= 1;
                then(
                    worker,
                    number,
                    if in_time {
                        Ok(answers)
                    } else {
                        Err(error::CREW_SILENT)
                    },
                );
                worker.clients.retry(1);
                worker.schedule_flush();
            }
        });
        Dispatched::Done
    }

    fn reply_of_crew(&mut self, id: u32, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
        let mut reply = Vec::new();
        write(buffer::ensure(&mut reply));
        self.clients.reply_own(id, number, &reply);
        buffer::give(&mut reply);
    }
}

/// Does a worker's errands, one a turn with it.
pub(crate) async fn run_errands(worker: Rc<RefCell<Worker>>, mut mailbox: Mailbox) {
    while let Some(errand) = mailbox.recv().await {
        let worker = &mut *worker.borrow_mut();
        errand(worker);
        worker.schedule_flush();
    }
}

#[cfg(test)]
mod tests {
    use tokio::{net::TcpStream, task::yield_now};

    use super::*;
    use crate::{
        resp::put_int,
        worker::tests::{client, run_local, worker},
    };

    type Shared = Rc<RefCell<Worker>>;

    /// Asks each worker for a number, and answers with their sum.
    fn ask(worker: &Shared, session: u32) -> Dispatched {
        let mut worker = worker.borrow_mut();
        let own = |worker: &mut Worker| 10_i64.pow(worker.crew.own() as u32);
        let done = worker.ask_all(session, own, |answers, out| {
            put_int(out, answers.into_iter().sum());
        });
        worker.schedule_flush();
        done
    }

    async fn flushed(worker: &Shared, stream: &mut TcpStream) -> String {
        let mut reply = [0; 200];
        loop {
            worker.borrow_mut().flush();
            match stream.try_read(&mut reply) {
                Ok(len) => return String::from_utf8_lossy(&reply[..len]).into_owned(),
                Err(_) => yield_now().await,
            }
        }
    }

    /// The first of two workers with a client, and the second, which does no errands yet.
    fn two() -> (Shared, TcpStream, u32, Crew, Mailbox) {
        let mut crew = Crew::of(2).into_iter();
        let (first, _) = crew.next().unwrap();
        let (second, mailbox) = crew.next().unwrap();
        let first = worker(first);
        let (stream, session) = client(&first);
        (first, stream, session, second, mailbox)
    }

    #[test]
    fn the_reply_is_made_of_what_all_say() {
        run_local(async {
            let (first, mut stream, session, second, mailbox) = two();
            assert!(ask(&first, session) == Dispatched::Done);
            assert!(ask(&first, session) == Dispatched::Waits, "one at a time");
            spawn_local(run_errands(worker(second), mailbox));
            assert_eq!(flushed(&first, &mut stream).await, ":11\r\n");
            assert!(ask(&first, session) == Dispatched::Done);
            assert_eq!(flushed(&first, &mut stream).await, ":11\r\n");
        });
    }

    #[test]
    fn who_is_silent_is_not_waited_for_without_end() {
        run_local(async {
            let (first, mut stream, session, _second, _mailbox) = two();
            assert!(ask(&first, session) == Dispatched::Done);
            let reply = flushed(&first, &mut stream).await;
            assert_eq!(reply, format!("-{}\r\n", error::CREW_SILENT));
            assert_eq!(first.borrow().crew.asking, 0);
        });
    }

    #[test]
    fn who_has_ended_is_not_asked() {
        run_local(async {
            let (first, mut stream, session, _second, mailbox) = two();
            assert!(ask(&first, session) == Dispatched::Done);
            drop(mailbox); // with the question in it
            assert_eq!(flushed(&first, &mut stream).await, ":1\r\n");
            assert!(ask(&first, session) == Dispatched::Done);
            assert_eq!(flushed(&first, &mut stream).await, ":1\r\n");
            assert_eq!(first.borrow().crew.tell(1, |_| {}), Err(Untold::Gone));
        });
    }

    #[test]
    fn where_a_mailbox_is_full_nobody_is_asked() {
        run_local(async {
            let (first, mut stream, session, second, mut mailbox) = two();
            let (told, tell) = (Rc::clone(&first), |_: &mut Worker| {});
            let told = (0..).take_while(|_| told.borrow().crew.tell(1, tell).is_ok());
            assert_eq!(told.count(), MAILBOX);
            assert_eq!(first.borrow().crew.tell(1, tell), Err(Untold::Busy));
            assert!(ask(&first, session) == Dispatched::Waits);
            assert_eq!(
                first
                    .borrow_mut()
                    .clients
                    .session(session)
                    .outbox
                    .in_flight(),
                0
            );
            drop(mailbox.recv().await.unwrap());
            assert!(ask(&first, session) == Dispatched::Done);
            spawn_local(run_errands(worker(second), mailbox));
            assert_eq!(flushed(&first, &mut stream).await, ":11\r\n");
            // And for ever: it is answered that nothing was done.
            let until = tokio::time::Instant::now() + 2 * PATIENCE;
            first.borrow_mut().crew.asking = ASKING;
            while ask(&first, session) == Dispatched::Waits {
                assert!(tokio::time::Instant::now() < until);
                tokio::time::sleep(PATIENCE / 20).await;
            }
            let reply = flushed(&first, &mut stream).await;
            assert_eq!(reply, format!("-{}\r\n", error::CREW_BUSY));
        });
    }
}
