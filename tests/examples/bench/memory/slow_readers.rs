//! A thousand clients that each ask for 100 MiB and do not take it.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use super::{
    Finding,
    others::{self, Others, ROUNDS, Rounds},
    stand::{Stand, command, key_at, step_back},
};
use crate::usage::Usage;

const READERS: usize = 1000;
const GETS: usize = 100;
const VALUE_BYTES: usize = 1 << 20;
const LASTS: Duration = Duration::from_secs(15);
/// Every other one reads so much now and then; the rest read nothing at all.
const SIP_BYTES: usize = 4 << 10;
const SIP_EVERY: Duration = Duration::from_millis(250);
/// Beyond it the machine itself is in danger, and the proxy is killed.
const DANGER_MIB: f64 = 5.0 * 1024.0;

pub(super) fn run(stand: &Stand) -> Vec<Finding> {
    let keys: Vec<String> = (0..16).map(|n| key_at("large", n, n % 2)).collect();
    let value = "v".repeat(VALUE_BYTES);
    for key in &keys {
        let mut client = stand.connect();
        client.write_all(&command(&["SET", key, &value])).unwrap();
        client.read_exact(&mut [0; 5]).unwrap();
    }
    let usage = stand.usage();
    let servers = stand
        .servers
        .each_ref()
        .map(|server| Usage::of(server.process.pid()));
    let watched = [
        ("the proxy", usage),
        ("a server", servers[0]),
        ("a server", servers[1]),
    ];
    watched.iter().for_each(|(_, usage)| usage.forget_peak());
    let what = format!("{READERS} clients ask {GETS} × 1 MiB each and read next to nothing");
    let mut others = Others::connect(stand, &[0, 1]);
    let mut rounds = Rounds::default();
    let (mut open, mut taken) = (READERS, 0);
    for _ in 0..ROUNDS {
        let before = others.undisturbed();
        let ask = || ask(stand, &keys, &watched);
        let (during, asked) =
            others.during(|| thread::scope(|scope| scope.spawn(ask).join().unwrap()));
        let readers = match asked {
            Ok(readers) => readers,
            Err(why) => return vec![Finding::new(what, why, "within the limit", false)],
        };
        open = open.min(stand.metric("sessions") as usize - others::CLIENTS);
        taken += readers.iter().map(|reader| reader.taken).sum::<usize>();
        rounds.push(before, during);
        drop(readers);
        thread::sleep(Duration::from_secs(2));
    }
    let server_peak = servers.map(|server| server.peak_rss_mib());
    vec![
        Finding::within_limit(
            &format!("{what}: peak RSS"),
            usage.peak_rss_mib(),
            stand.limit_mib,
        ),
        rounds.finding("p99 of the others", 2.0),
        Finding::note(
            "of those, still connected after 15 s",
            format!(
                "{open}; they took {:.1} MiB",
                taken as f64 / f64::from(1 << 20)
            ),
        ),
        Finding::note(
            "peak RSS of the servers",
            format!("{:.0} MiB and {:.0} MiB", server_peak[0], server_peak[1]),
        ),
        Finding::note(
            "RSS once they have left",
            format!("{:.1} MiB", usage.rss_mib()),
        ),
    ]
}

struct Reader {
    stream: TcpStream,
    taken: usize,
}

/// An error: too much memory was used, and the proxy is no more.
fn ask(stand: &Stand, keys: &[String], watched: &[(&str, Usage)]) -> Result<Vec<Reader>, String> {
    step_back();
    let since = Instant::now();
    let mut readers: Vec<Reader> = Vec::new();
    for index in 0..READERS {
        let mut stream = stand.connect_narrow();
        let gets = (0..GETS).flat_map(|n| command(&["GET", &keys[(index + n) % keys.len()]]));
        stream.write_all(&gets.collect::<Vec<u8>>()).unwrap();
        stream.set_nonblocking(true).unwrap();
        readers.push(Reader { stream, taken: 0 });
        if index % 10 == 0 {
            end_if_dangerous(stand, watched)?;
        }
    }
    let mut buffer = vec![0; SIP_BYTES];
    let mut due = Instant::now();
    while since.elapsed() < LASTS {
        for reader in readers.iter_mut().step_by(2) {
            // Otherwise there is nothing, or it was closed: those are counted at the end.
            if let Ok(read) = reader.stream.read(&mut buffer) {
                reader.taken += read;
            }
        }
        due += SIP_EVERY;
        while Instant::now() < due {
            end_if_dangerous(stand, watched)?;
            thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(readers)
}

fn end_if_dangerous(stand: &Stand, watched: &[(&str, Usage)]) -> Result<(), String> {
    for (name, usage) in watched {
        let used = usage.rss_mib();
        if used > DANGER_MIB {
            let proxy = stand.usage().rss_mib();
            stand.kill();
            return Err(format!(
                "{name} used {used:.0} MiB (the proxy {proxy:.0} MiB): ended before the machine suffers"
            ));
        }
    }
    Ok(())
}
