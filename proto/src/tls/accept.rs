//! Takes connections over TLS. What a client does before its handshake is over costs only that client:
//! handshakes run side by side, so many at most, and each has a deadline.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, future::ready};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::TcpIncoming;
use tracing::warn;

use super::{ABOUT, Secured, explained};
use crate::identity::Identity;

/// Handshakes under way at most; further clients wait in the kernel's backlog.
const HANDSHAKES_MAX: usize = 256;

/// How long a client may take for its handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// How long a client that is refused may take to read why, and how much it may still send.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
const FAREWELL_BYTES: u64 = 64 * 1024;

/// What a record of TLS begins with whose sender wants a handshake.
const HANDSHAKE: u8 = 0x16;

/// How long it takes until there may be descriptors again, where there were none for a connection.
const BREATH: Duration = Duration::from_secs(1);

/// How often the same is said of the same address, and of how many it is known that it was said.
const SAY_EVERY: Duration = Duration::from_secs(60);
const SAID_MAX: usize = 64;

/// The connections that come in, after their handshakes, with what `identity` has at that moment. Of who
/// is refused, `refused` is told; the log says why.
pub fn accept(
    incoming: TcpIncoming,
    identity: Arc<Identity>,
    mut refused: impl FnMut(),
) -> impl Stream<Item = io::Result<Secured>> {
    let mut said = Said::default();
    incoming
        .map(move |accepted| shake(accepted, Arc::clone(&identity)))
        .buffer_unordered(HANDSHAKES_MAX)
        .filter_map(move |shaken| {
            ready(match shaken {
                Shaken::Secured(stream) => Some(Ok(*stream)),
                Shaken::Gone => None,
                Shaken::Broken(error) => {
                    if said.is_news(None, &error.to_string(), Instant::now()) {
                        warn!(%error, "cannot take connections for now");
                    }
                    None
                }
                Shaken::Refused { peer, why } => {
                    refused();
                    if said.is_news(Some(peer.ip()), &why, Instant::now()) {
                        warn!(%peer, why, "refused a connection");
                    }
                    None
                }
            })
        })
}

/// How a handshake ended.
enum Shaken {
    Secured(Box<Secured>),
    Refused {
        peer: SocketAddr,
        why: String,
    },
    /// It said nothing, as who only asks whether somebody listens.
    Gone,
    /// There was no connection.
    Broken(io::Error),
}

async fn shake(accepted: io::Result<TcpStream>, identity: Arc<Identity>) -> Shaken {
    let stream = match accepted {
        Ok(stream) => stream,
        Err(error) => {
            sleep(BREATH).await;
            return Shaken::Broken(error);
        }
    };
    let Ok(peer) = stream.peer_addr() else {
        return Shaken::Gone;
    };
    match timeout(HANDSHAKE_MAX, handshake(stream, &identity)).await {
        Ok(Ok(Some(stream))) => Shaken::Secured(Box::new(stream)),
        Ok(Ok(None)) => Shaken::Gone,
        Ok(Err(error)) => Shaken::Refused {
            peer,
            why: error.to_string(),
        },
        Err(_) => Shaken::Refused {
            peer,
            why: format!("no handshake within {HANDSHAKE_MAX:?}"),
        },
    }
}

/// `None`: it has gone without a word.
async fn handshake(stream: TcpStream, identity: &Identity) -> io::Result<Option<Secured>> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(0) | Err(_) => return Ok(None),
        Ok(_) if first[0] != HANDSHAKE => {
            part(stream, &without_tls()).await;
            let why = format!("{ABOUT}it does not speak TLS");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(_) => {}
    }
    let mut materials = identity.subscribe();
    let acceptor = TlsAcceptor::from(Arc::clone(materials.borrow_and_update().server()));
    match acceptor.accept(stream).into_fallible().await {
        Ok(stream) => Ok(Some(Secured::new(stream.into(), None, materials))),
        Err((error, stream)) => {
            // The alert is on its way. A connection that is closed with bytes unread takes it back.
            part(stream, b"").await;
            Err(explained(error))
        }
    }
}

/// Says the last words, and waits until they can have been read.
async fn part(mut stream: TcpStream, words: &[u8]) {
    let said = async {
        stream.write_all(words).await?;
        stream.shutdown().await?;
        let mut rest = stream.take(FAREWELL_BYTES);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    // Whoever does not listen is closed all the same.
    drop(timeout(FAREWELL_MAX, said).await);
}

/// What a client of gRPC in plain text is told, in HTTP/2: SETTINGS without any, and GOAWAY with
/// INADEQUATE_SECURITY, whose data its library shows.
fn without_tls() -> Vec<u8> {
    let text = format!(
        "{ABOUT}this port takes nothing else; give --tls-cert-file, --tls-key-file and --tls-ca-file"
    );
    let length = 8 + text.len() as u8;
    let mut frames = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    frames.extend([0, 0, length, 7, 0, 0, 0, 0, 0]);
    frames.extend([0, 0, 0, 0, 0, 0, 0, 0xc]);
    frames.extend(text.as_bytes());
    frames
}

/// What was said in the log of whom (`None`: of the listener): a client that is refused comes again every
/// second.
#[derive(Default)]
struct Said(Vec<(Option<IpAddr>, String, Instant)>);

impl Said {
    fn is_news(&mut self, peer: Option<IpAddr>, why: &str, now: Instant) -> bool {
        self.0
            .retain(|(_, _, at)| now.duration_since(*at) < SAY_EVERY);
        let is_it =
            |(of, reason, _): &(Option<IpAddr>, String, Instant)| *of == peer && reason == why;
        if self.0.iter().any(is_it) || self.0.len() >= SAID_MAX {
            return false;
        }
        self.0.push((peer, why.to_owned(), now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_a_minute() {
        let (mut said, start) = (Said::default(), Instant::now());
        let [a, b] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(|ip| Some(IpAddr::from(ip)));
        assert!(said.is_news(a, "expired", start));
        assert!(!said.is_news(a, "expired", start + SAY_EVERY / 2));
        assert!(said.is_news(a, "unknown", start) && said.is_news(b, "expired", start));
        assert!(said.is_news(a, "expired", start + SAY_EVERY));
        let flood = (0..1000).filter(|n| said.is_news(a, &n.to_string(), start + SAY_EVERY));
        assert!(flood.count() < SAID_MAX);
    }

    #[test]
    fn the_last_words_are_two_frames() {
        let frames = without_tls();
        let length = usize::from(frames[11]);
        assert_eq!((frames[3], frames[12]), (4, 7));
        assert_eq!(frames.len(), 9 + 9 + length);
    }
}
