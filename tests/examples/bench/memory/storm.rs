//! Clients that connect and leave, 20,000 in each second.

use std::{
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

/// What became of the connections.
struct Storm {
    made: usize,
    given_up: usize,
    took: Duration,
}

pub(super) fn run(stand: &Stand) -> Vec<Finding> {
    let usage = stand.usage();
    let mut others = Others::connect(stand, &[0, 1]);
    let mut rounds = Rounds::default();
    let mut storms: Vec<Storm> = Vec::new();
    let (mut accepted, mut peak) = (0, 0.0_f64);
    for _ in 0..ROUNDS {
        let before = others.undisturbed();
        let opened = stand.metric("sessions_opened_total");
        usage.forget_peak();
        let to = ([127, 0, 0, 1], stand.port).into();
        let (during, storm) = others.during(|| thread::spawn(move || storm(to)).join().unwrap());
        accepted += stand.metric("sessions_opened_total") - opened;
        peak = peak.max(usage.peak_rss_mib());
        rounds.push(before, during);
        storms.push(storm);
    }
    let seconds: f64 = storms.iter().map(|storm| storm.took.as_secs_f64()).sum();
    let made = storms.iter().map(|storm| storm.made).sum::<usize>() as f64 / seconds;
    let given_up: usize = storms.iter().map(|storm| storm.given_up).sum();
    vec![
        Finding::new(
            "connections made and closed again",
            format!(
                "{made:.0}/s for {:.0} s, {ROUNDS} times ({given_up} given up after {} ms); the proxy \
                 accepted {:.0}/s",
                LASTS.as_secs_f64(),
                PATIENCE.as_millis(),
                accepted as f64 / seconds,
            ),
            "20000/s, within 5 %",
            made >= 19_000.0,
        ),
        rounds.finding("p99 of the others", 2.0),
        Finding::within_limit("peak RSS", peak, stand.limit_mib),
    ]
}

fn storm(to: SocketAddr) -> Storm {
    step_back();
    let mut storm = Storm {
        made: 0,
        given_up: 0,
        took: Duration::ZERO,
    };
    let mut under_way: Vec<(Instant, Socket)> = Vec::new();
    let since = Instant::now();
    let mut due = since;
    while since.elapsed() < LASTS {
        for _ in 0..PER_MILLISECOND {
            under_way.push((Instant::now(), begin(to)));
        }
        // On one machine, a connection that is taken at all is there by the next look.
        under_way.retain(|(begun, socket)| {
            if socket.peer_addr().is_ok() {
                storm.made += 1;
                false
            } else if begun.elapsed() > PATIENCE {
                storm.given_up += 1;
                false
            } else {
                true
            }
        });
        due += Duration::from_millis(1);
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    storm.took = since.elapsed();
    storm
}

/// A connection that leaves no trace when it is dropped: ports would run out.
fn begin(to: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    socket.connect(&to.into()).ok(); // under way, or it will be given up
    socket
}
