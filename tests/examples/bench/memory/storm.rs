//! Clients that connect and leave, 20,000 in each second.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{
    Finding,
    others::{Others, ROUNDS, Rounds},
    stand::{Stand, step_back},
};

const PER_MILLISECOND: usize = 20;
const LASTS: Duration = Duration::from_secs(10);
/// A connection that is not made by then is given up.
const PATIENCE: Duration = Duration::from_millis(100);

/// As the proxy's own.
const BACKLOG: i32 = 4096;

/// What became of the connections.
#[derive(Default)]
struct Storm {
    tried: usize,
    made: usize,
    took: Duration,
}

pub(super) fn run(stand: &Stand) -> Vec<Finding> {
    let usage = stand.usage();
    let mut others = Others::connect(stand, &[0, 1]);
    let (mut rounds, mut floor) = (Rounds::default(), Rounds::default());
    let unattended = unattended();
    let mut all = Storm::default();
    let (mut accepted, mut peak) = (0, 0.0_f64);
    for _ in 0..ROUNDS {
        let before = others.undisturbed();
        let opened = stand.metric("sessions_opened_total");
        usage.forget_peak();
        let to = ([127, 0, 0, 1], stand.port).into();
        let (during, made) = others.during(|| thread::spawn(move || storm(to)).join().unwrap());
        accepted += stand.metric("sessions_opened_total") - opened;
        peak = peak.max(usage.peak_rss_mib());
        rounds.push(before, during);
        all.tried += made.tried;
        all.made += made.made;
        all.took += made.took;
        let before = others.undisturbed();
        let to = unattended.local_addr().unwrap().as_socket().unwrap();
        let (during, _) = others.during(|| thread::spawn(move || storm(to)).join().unwrap());
        floor.push(before, during);
    }
    let each_second = |count: f64| count / all.took.as_secs_f64();
    let tried = each_second(all.tried as f64);
    vec![
        Finding::new(
            format!("clients connect and leave for {} s", LASTS.as_secs()),
            format!(
                "{tried:.0}/s try, {:.0}/s are connected, the proxy accepts {:.0}/s",
                each_second(all.made as f64),
                each_second(accepted as f64),
            ),
            "20000/s try, within 5 %",
            tried >= 19_000.0,
        ),
        rounds.finding("p99 of the others", 2.0),
        floor
            .finding("p99 of the others, where the same storm meets nobody", 2.0)
            .without_goal(),
        Finding::within_limit("peak RSS", peak, stand.limit_mib),
    ]
}

/// A socket of this process from which nobody accepts: what a storm costs others by coming from the same
/// machine, through the same kernel.
fn unattended() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    socket.bind(&any.into()).unwrap();
    socket.listen(BACKLOG).unwrap();
    socket
}

fn storm(to: SocketAddr) -> Storm {
    step_back();
    let mut storm = Storm::default();
    let (mut new, mut waiting) = (Vec::new(), VecDeque::new());
    let since = Instant::now();
    let mut due = since;
    while since.elapsed() < LASTS {
        // On one machine, a connection that the kernel takes is there by the next look. One that it does
        // not is tried again after a second: nobody waits for that here.
        for socket in new.drain(..) {
            if is_made(&socket) {
                storm.made += 1;
            } else {
                waiting.push_back((Instant::now() + PATIENCE, socket));
            }
        }
        while waiting
            .front()
            .is_some_and(|(end, _)| *end < Instant::now())
        {
            let late = waiting.pop_front();
            storm.made += usize::from(late.is_some_and(|(_, socket)| is_made(&socket)));
        }
        new.extend((0..PER_MILLISECOND).map(|_| begin(to)));
        storm.tried += PER_MILLISECOND;
        due += Duration::from_millis(1);
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    storm.took = since.elapsed();
    storm
}

fn is_made(socket: &Socket) -> bool {
    socket.peer_addr().is_ok()
}

/// A connection that leaves no trace when it is dropped: ports would run out.
fn begin(to: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    socket.connect(&to.into()).ok(); // under way, or it will be given up
    socket
}
