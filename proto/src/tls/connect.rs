//! The way to a controller.

use std::{error::Error, io, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use super::{Secured, explained};
use crate::{ServerAddr, identity::Materials};

/// Connects within `limit`; `tune` sets what else there is to set. With `materials` over TLS, where the
/// controller's certificate must be for the host by which it is called. An error is one line.
pub async fn connect(
    controller: &ServerAddr,
    materials: Option<Materials>,
    limit: Duration,
    tune: impl FnOnce(Endpoint) -> Endpoint,
) -> Result<Channel, String> {
    let scheme = match materials {
        Some(_) => "https",
        None => "http",
    };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{controller}"));
    let endpoint = endpoint.map_err(|e| root_cause(&e))?;
    let endpoint = tune(endpoint.connect_timeout(limit));
    let connected = match materials {
        None => Box::pin(endpoint.connect()).await,
        Some(materials) => {
            let controller = controller.clone();
            let opener = tower::service_fn(move |_| open(controller.clone(), materials.clone()));
            Box::pin(endpoint.connect_with_connector(opener)).await
        }
    };
    connected.map_err(|e| root_cause(&e))
}

async fn open(controller: ServerAddr, mut materials: Materials) -> io::Result<TokioIo<Secured>> {
    let connector = TlsConnector::from(Arc::clone(materials.borrow_and_update().client()));
    let host = controller.host().to_owned();
    let name = ServerName::try_from(host)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, format!("{controller}: {e}")))?;
    let stream = TcpStream::connect(controller.as_str()).await?;
    stream.set_nodelay(true)?;
    let stream = connector.connect(name.clone(), stream).await;
    let stream = stream.map_err(explained)?;
    Ok(TokioIo::new(Secured::new(
        stream.into(),
        Some(name),
        materials,
    )))
}

/// The innermost error says what happened (`connection refused`), the outer ones only where.
pub fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
