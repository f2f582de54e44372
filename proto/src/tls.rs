//! gRPC between the processes of Sluice over mutual TLS, and in plain text: both ends.
//!
//! [`connect()`] opens a connection to a controller, [`accept()`] takes those of proxies and operators. What
//! goes wrong is told in the words of who has to mend it (`explain`), on the side where it is noticed: in
//! TLS 1.3 a client learns only by its first read that it was refused.

mod accept;
mod connect;

use std::{
    future::pending,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use rustls::{
    AlertDescription, CertificateError, InvalidMessage,
    pki_types::{ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tracing::info;

use crate::identity::{Materials, Peer};

pub use self::{
    accept::accept,
    connect::{connect, root_cause},
};

/// What the text of an error begins with if a connection was refused, or is, for what is shown or not over
/// TLS, wherever that comes up. Nothing was asked over it then.
pub const ABOUT: &str = "TLS: ";

/// A connection after its handshake. It breaks when the other side's authority is no longer trusted.
pub struct Secured {
    stream: TlsStream<TcpStream>,
    trust: Trust,
}

/// Whether the other side is trusted.
enum Trust {
    /// It is, until this ends.
    Watched(Pin<Box<dyn Future<Output = rustls::Error> + Send>>),
    /// Not any more; why.
    Lost(String),
}

impl Secured {
    /// `name`: by which the other side was called, if it was. `materials`: seen up to what the handshake
    /// went by.
    fn new(
        stream: TlsStream<TcpStream>,
        name: Option<ServerName<'static>>,
        materials: Materials,
    ) -> Self {
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let peer = Peer {
            chain: chain.to_vec(),
            name,
            at: UnixTime::now(),
        };
        Self {
            stream,
            trust: Trust::Watched(Box::pin(distrust(peer, materials))),
        }
    }

    fn check_trust(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Trust::Watched(watch) = &mut self.trust
            && let Poll::Ready(fault) = watch.as_mut().poll(cx)
        {
            let why = explain(&fault).unwrap_or_else(|| fault.to_string());
            let peer = self.stream.get_ref().0.peer_addr().ok();
            info!(?peer, why, "cut a connection");
            self.trust = Trust::Lost(why);
        }
        match &self.trust {
            Trust::Watched(_) => Ok(()),
            Trust::Lost(why) => {
                let text = format!("{ABOUT}{why}");
                Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
            }
        }
    }
}

/// Ends when a peer is no longer trusted.
async fn distrust(peer: Peer, mut materials: Materials) -> rustls::Error {
    while materials.changed().await.is_ok() {
        let trusted = materials.borrow_and_update().trusts(&peer);
        if let Err(fault) = trusted {
            return fault;
        }
    }
    pending().await // nobody follows the files
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_trust(cx)?;
        Pin::new(&mut self.stream)
            .poll_read(cx, buf)
            .map_err(turned_away)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for Secured {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.get_ref().0.connect_info()
    }
}

/// Of a handshake that failed: the same error, with what it means.
fn explained(error: io::Error) -> io::Error {
    match fault(&error).and_then(explain) {
        Some(text) => io::Error::new(error.kind(), format!("{ABOUT}{text}")),
        None => error,
    }
}

/// Of a read that failed: the same, if the other side has refused the handshake after this one's end of it.
fn turned_away(error: io::Error) -> io::Error {
    match fault(&error) {
        Some(rustls::Error::AlertReceived(_)) => explained(error),
        _ => error,
    }
}

fn fault(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// What went wrong between this process and `it`, the other side. `None`: nothing that can be said better
/// than in the library's words.
fn explain(fault: &rustls::Error) -> Option<String> {
    use rustls::Error::{
        AlertReceived, InvalidCertificate, InvalidMessage as Unreadable, NoCertificatesPresented,
    };
    let text = match fault {
        InvalidCertificate(fault) => return Some(explain_certificate(fault)),
        NoCertificatesPresented => {
            "it shows no certificate: give it --tls-cert-file, --tls-key-file and --tls-ca-file"
        }
        AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied,
        ) => {
            "it does not accept the certificate of --tls-cert-file here: one of its --tls-ca-file must \
             have signed it"
        }
        AlertReceived(AlertDescription::CertificateExpired) => {
            "the certificate of --tls-cert-file here has expired: put a new one in its place"
        }
        AlertReceived(AlertDescription::CertificateRequired) => {
            "it asks for a certificate: give --tls-cert-file and --tls-key-file here"
        }
        Unreadable(InvalidMessage::InvalidContentType) => {
            "it does not speak TLS: give it --tls-cert-file, --tls-key-file and --tls-ca-file, or leave \
             them out here"
        }
        _ => return None,
    };
    Some(text.to_owned())
}

fn explain_certificate(fault: &CertificateError) -> String {
    match fault {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is not signed by one of --tls-ca-file here".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired: put a new one in its --tls-cert-file".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet: are the clocks right?".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("{fault}: the address it is asked at must be in its certificate")
        }
        other => format!("its certificate cannot be used: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        use rustls::Error::{AlertReceived, InvalidCertificate, NoCertificatesPresented};
        let plain = rustls::Error::from(InvalidMessage::InvalidContentType);
        let not_signed = "not signed by one of --tls-ca-file";
        for (fault, at_handshake, at_read) in [
            (
                InvalidCertificate(CertificateError::UnknownIssuer),
                not_signed,
                "",
            ),
            (
                InvalidCertificate(CertificateError::BadSignature),
                not_signed,
                "",
            ),
            (
                InvalidCertificate(CertificateError::Expired),
                "its certificate has expired",
                "",
            ),
            (
                AlertReceived(AlertDescription::UnknownCA),
                "does not accept the certificate",
                "does not accept the certificate",
            ),
            (
                AlertReceived(AlertDescription::CertificateExpired),
                "here has expired",
                "here has expired",
            ),
            (AlertReceived(AlertDescription::InternalError), "", ""),
            (plain, "does not speak TLS", ""),
            (NoCertificatesPresented, "shows no certificate", ""),
        ] {
            let error = || io::Error::new(io::ErrorKind::InvalidData, fault.clone());
            for (said, expected) in [
                (explained(error()).to_string(), at_handshake),
                (turned_away(error()).to_string(), at_read),
            ] {
                assert_eq!(said.starts_with(ABOUT), !expected.is_empty(), "{said}");
                assert!(said.contains(expected), "{said}");
            }
        }
    }
}
