//! 10,000 clients that have asked for something and now ask for nothing.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
    time::Duration,
};

use super::{
    Finding,
    stand::{Stand, command},
};

const CLIENTS: usize = 10_000;
const GETS: usize = 8;
/// Bytes of each at most.
const MOST: f64 = 2.5 * 1024.0;

pub(super) fn run(stand: &Stand) -> Vec<Finding> {
    let usage = stand.usage();
    let empty = usage.rss_mib();
    let mut clients: Vec<TcpStream> = (0..CLIENTS).map(|_| stand.connect()).collect();
    // All at the same time: what each needs while it is served must be given back, not taken in turns.
    let key = |client: usize| format!("idle:{client}");
    for (index, client) in clients.iter_mut().enumerate() {
        let request = command(&["SET", &key(index), "xxx"]);
        client.write_all(&request).unwrap();
    }
    for client in &mut clients {
        expect(client, b"+OK\r\n");
    }
    for (index, client) in clients.iter_mut().enumerate() {
        let request = command(&["GET", &key(index)]);
        client.write_all(&request.repeat(GETS)).unwrap();
    }
    for client in &mut clients {
        expect(client, &b"$3\r\nxxx\r\n".repeat(GETS));
    }
    thread::sleep(Duration::from_secs(1));
    let full = usage.rss_mib();
    let each = (full - empty) * f64::from(1 << 20) / CLIENTS as f64;
    drop(clients);
    thread::sleep(Duration::from_secs(2));
    vec![
        Finding::new(
            format!("RSS of each of {CLIENTS} idle connections above the empty proxy"),
            format!("{:.2} KiB ({empty:.1} MiB → {full:.1} MiB)", each / 1024.0),
            format!("at most {:.1} KiB", MOST / 1024.0),
            each <= MOST,
        ),
        Finding::note(
            "RSS after they have left",
            format!("{:.1} MiB", usage.rss_mib()),
        ),
    ]
}

fn expect(client: &mut TcpStream, expected: &[u8]) {
    let mut reply = vec![0; expected.len()];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(reply, expected);
}
