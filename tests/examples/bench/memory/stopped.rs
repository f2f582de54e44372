//! One of two servers hangs (SIGSTOP): its own clients get errors in time, the others notice nothing,
//! and all is well once it goes on.

use std::{
    io::{ErrorKind, Write as _},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use super::{
    Finding,
    client::{Client, Reply, errors},
    others::{Others, ROUNDS, Rounds},
    stand::{SERVER_TIMEOUT, Stand, command, key_at, step_back},
};

/// The one that is stopped, of [`Stand::servers`].
const STOPPED: usize = 1;
const LASTS: Duration = Duration::from_secs(5);
/// How long clients of the stopped server may wait for an error: its timeout, and that of connecting.
const DEADLINE: Duration = SERVER_TIMEOUT.saturating_add(Duration::from_millis(1500));
const VICTIMS: usize = 10;
/// Clients that keep sending to the stopped server, and what each has to send.
const FLOODS: usize = 100;
const FLOOD_BYTES: usize = 4 << 20;

pub(super) fn run(stand: &Stand) -> Vec<Finding> {
    let mut others = Others::connect(stand, &[1 - STOPPED]);
    let victim = |number| Client::connect(stand.port, key_at("victim", number, STOPPED));
    let mut victims: Vec<Client> = (0..VICTIMS).map(victim).collect();
    let mut findings = stop(stand, &mut others, &mut victims);
    findings.extend(stop_under_flood(stand, &mut others, &mut victims));
    findings
}

/// The server stops while its clients ask one thing after the other.
fn stop(stand: &Stand, others: &mut Others, victims: &mut [Client]) -> Vec<Finding> {
    let server = &stand.servers[STOPPED].process;
    let mut rounds = Rounds::default();
    let (mut replies, mut recovery) = (Vec::new(), Duration::ZERO);
    for _ in 0..ROUNDS {
        let (before, served) = others.during(|| ask(victims, LASTS));
        assert_eq!(errors(&served), None);
        server.stop();
        let (during, of_round) = others.during(|| ask(victims, LASTS));
        server.resume();
        recovery = recovery.max(last_error(victims));
        rounds.push(before, during);
        replies.extend(of_round);
    }
    let longest = replies.iter().map(|reply| reply.took).max();
    let longest = longest.unwrap_or_default();
    let right =
        |error: &str| error.starts_with("-UNKNOWNOUTCOME ") || error.starts_with("-CLUSTERDOWN ");
    let mut texts = replies.iter().filter_map(|reply| reply.error.as_deref());
    vec![
        rounds.finding(
            "one of two servers stopped: p99 of the others, at the other server",
            1.5,
        ),
        Finding::new(
            "longest wait of a request to the stopped one",
            format!(
                "{:.2} s, of {} requests",
                longest.as_secs_f64(),
                replies.len()
            ),
            format!("at most {:.1} s", DEADLINE.as_secs_f64()),
            longest <= DEADLINE,
        ),
        Finding::new(
            "what those were answered",
            errors(&replies).unwrap_or_else(|| "no errors".to_owned()),
            "UNKNOWNOUTCOME or CLUSTERDOWN",
            texts.all(right),
        ),
        recovered(recovery),
    ]
}

/// The server stops, and clients go on sending it more than anybody can keep.
fn stop_under_flood(stand: &Stand, others: &mut Others, victims: &mut [Client]) -> Vec<Finding> {
    let server = &stand.servers[STOPPED].process;
    let usage = stand.usage();
    let before = others.undisturbed();
    usage.forget_peak();
    server.stop();
    let pour = || thread::scope(|scope| scope.spawn(|| flood(stand)).join().unwrap());
    let (during, flood) = others.during(pour);
    server.resume();
    let recovery = last_error(victims);
    let peak = usage.peak_rss_mib();
    drop(flood);
    let mut rounds = Rounds::default();
    rounds.push(before, during);
    let sent = FLOOD_BYTES >> 20;
    vec![
        Finding::within_limit(
            &format!("stopped again, and {FLOODS} clients send it {sent} MiB each: peak RSS"),
            peak,
            stand.limit_mib,
        ),
        rounds
            .finding("p99 of the others meanwhile", 1.5)
            .without_goal(),
        recovered(recovery),
    ]
}

fn recovered(last_error: Duration) -> Finding {
    let most = Duration::from_secs(2);
    Finding::new(
        "last error after it went on",
        format!("{:.2} s", last_error.as_secs_f64()),
        format!("at most {} s", most.as_secs()),
        last_error <= most,
    )
}

/// How long from now until nobody gets an error any more.
fn last_error(victims: &mut [Client]) -> Duration {
    let since = Instant::now();
    let replies = ask(victims, Duration::from_secs(4));
    let wrong = replies.iter().filter(|reply| reply.error.is_some());
    let last = wrong.map(|reply| reply.at - since).max();
    last.unwrap_or_default()
}

/// Lets each client ask again and again, for so long.
fn ask(victims: &mut [Client], lasts: Duration) -> Vec<Reply> {
    let end = Instant::now() + lasts;
    let ask = |victim: &mut Client| {
        let mut replies = Vec::new();
        while Instant::now() < end {
            replies.push(victim.set());
            replies.push(victim.get());
            thread::sleep(Duration::from_millis(10));
        }
        replies
    };
    thread::scope(|scope| {
        let victims = victims.iter_mut();
        let threads: Vec<_> = victims.map(|victim| scope.spawn(|| ask(victim))).collect();
        let replies = threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap());
        replies.collect()
    })
}

/// Sends the stopped server more than it can be sent; the connections stay open.
fn flood(stand: &Stand) -> Vec<TcpStream> {
    step_back();
    let value = "v".repeat(1024);
    let client = |number| {
        let stream = stand.connect();
        stream.set_nonblocking(true).unwrap();
        let request = command(&["SET", &key_at("flood", number, STOPPED), &value]);
        let count = FLOOD_BYTES / request.len();
        (stream, request.repeat(count), 0)
    };
    let mut clients: Vec<(TcpStream, Vec<u8>, usize)> = (0..FLOODS).map(client).collect();
    let end = Instant::now() + LASTS;
    while Instant::now() < end {
        for (stream, bytes, sent) in &mut clients {
            match stream.write(&bytes[*sent..]) {
                Ok(written) => *sent += written,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => *sent = bytes.len(), // closed
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
    clients.into_iter().map(|(stream, ..)| stream).collect()
}
