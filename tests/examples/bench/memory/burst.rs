//! A million commands at once, on one connection.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use super::{
    Finding,
    stand::{Stand, command},
};

const COMMANDS: usize = 1_000_000;
/// How long a client may stand still before it gives up.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn run(stand: &Stand) -> Vec<Finding> {
    let requests = requests();
    let usage = stand.usage();

    usage.forget_peak();
    let since = Instant::now();
    let client = patient(stand);
    let mut writer = client.try_clone().unwrap();
    let answered = thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&requests).ok());
        answers(&client)
    });
    let took = since.elapsed();
    let peak = usage.peak_rss_mib();

    // A client library that sends a pipeline whole before it reads the first answer. The servers
    // themselves let it: they keep the answers, however many.
    usage.forget_peak();
    let mut client = patient(stand);
    let sent = write_until_stuck(&mut client, &requests);
    let answered_after = answers(&client);
    let peak_after = usage.peak_rss_mib();
    vec![
        Finding::new(
            format!("{COMMANDS} pipelined commands, read while they are sent: answered"),
            format!("{answered} in {:.2} s", took.as_secs_f64()),
            "all",
            answered == COMMANDS,
        ),
        Finding::within_limit("peak RSS", peak, stand.limit_mib),
        Finding::note(
            "read only after all are sent (or nothing more is taken for 10 s): answered",
            format!("{answered_after}, {:.0} % sent before", sent * 100.0),
        ),
        Finding::within_limit("peak RSS", peak_after, stand.limit_mib),
    ]
}

/// SETs and GETs in turn, over many keys.
fn requests() -> Vec<u8> {
    let pairs = (0..COMMANDS / 2).map(|n| {
        let key = format!("burst:{}", n % 10_000);
        [command(&["SET", &key, "xxx"]), command(&["GET", &key])].concat()
    });
    pairs.flatten().collect()
}

/// How many of the answers come, and are right.
fn answers(mut client: &TcpStream) -> usize {
    let pair = b"+OK\r\n$3\r\nxxx\r\n";
    let expected = pair.repeat(COMMANDS / 2);
    let mut got = Vec::with_capacity(expected.len());
    let mut buffer = vec![0; 64 << 10];
    while got.len() < expected.len() {
        match client.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(read) => got.extend_from_slice(&buffer[..read]),
        }
    }
    let right = got.iter().zip(&expected).take_while(|(a, b)| a == b);
    2 * (right.count() / pair.len())
}

/// What share of it is taken.
fn write_until_stuck(client: &mut TcpStream, requests: &[u8]) -> f64 {
    let mut sent = 0;
    while sent < requests.len() {
        match client.write(&requests[sent..]) {
            Ok(written) => sent += written,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    sent as f64 / requests.len() as f64
}

fn patient(stand: &Stand) -> TcpStream {
    let client = stand.connect();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    client
}
