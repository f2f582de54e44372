//! Decisions about proxies: who is known, and who is shut out.

use proto::{ProxyId, reason::Reason};

use super::{Change, Decision, Edit, Refusal, at_revision};
use crate::{
    events::{Draft, Kind},
    model::Registration,
    snapshot::Snapshot,
};

/// How many proxies may be registered.
pub const PROXIES_MAX: usize = 4096;

/// A proxy says what it is. Nothing changes if it says what it said before.
pub fn register(now: &Snapshot, proxy: &Registration) -> Decision {
    let id = &proxy.id;
    let known = now.proxies.get(id).is_some_and(|known| {
        **known
            == Registration {
                revision: known.revision,
                ..proxy.clone()
            }
    });
    if known {
        return Ok(Change::default());
    }
    if now.proxies.len() >= PROXIES_MAX && !now.proxies.contains_key(id) {
        return Err(Refusal::new(
            Reason::TooManyProxies,
            format!(
                "{PROXIES_MAX} proxies are registered already: remove those that are gone for good, as \
                 `sluice proxy list` shows"
            ),
        ));
    }
    Ok(Change::one(
        Edit::PutProxy(proxy.clone()),
        Draft::new(
            format!("proxy/{id}"),
            Kind::ProxyRegistered,
            format!("proxy {id} registered with address {}", proxy.address),
        ),
    ))
}

/// A version that a proxy does not have which is to be shut out.
pub fn bar(id: &ProxyId) -> Change {
    let message = format!("proxy {id} is shut out of all servers");
    Change {
        events: vec![Draft::new(
            format!("proxy/{id}"),
            Kind::ProxyShutOut,
            message,
        )],
        ..Change::default()
    }
}

/// The end of a proxy that is gone.
pub fn delete_proxy(
    now: &Snapshot,
    id: &ProxyId,
    expected_revision: u64,
    connected: bool,
) -> Decision {
    let Some(proxy) = now.proxies.get(id) else {
        return Err(proxy_not_found(id));
    };
    at_revision(&format!("proxy {id}"), proxy.revision, expected_revision)?;
    if connected {
        return Err(Refusal::new(
            Reason::ProxyConnected,
            format!("proxy {id} is connected: stop it first"),
        ));
    }
    Ok(Change::one(
        Edit::RemoveProxy(id.clone()),
        Draft::new(
            format!("proxy/{id}"),
            Kind::ProxyDeleted,
            format!("proxy {id} was forgotten"),
        ),
    ))
}

/// Of a proxy that never registered, or was removed.
pub fn proxy_not_found(id: &ProxyId) -> Refusal {
    Refusal::new(Reason::ProxyNotFound, format!("there is no proxy {id}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{change::tests::refused, snapshot::tests::empty};

    #[test]
    fn a_registration_is_committed_when_it_changed() {
        let proxy = Registration {
            id: ProxyId::new("p1").unwrap(),
            revision: 0,
            incarnation: "0".repeat(32),
            address: "127.0.0.1:19000".to_owned(),
            admin_address: String::new(),
            zone: String::new(),
            build_version: "0.1.0".to_owned(),
        };
        let now = empty();
        let now = now.after(&register(&now, &proxy).unwrap());
        assert!(register(&now, &proxy).unwrap().is_empty());
        let restarted = Registration {
            incarnation: "1".repeat(32),
            ..proxy.clone()
        };
        assert!(!register(&now, &restarted).unwrap().is_empty());
        let mut full = now.clone();
        for number in 1..PROXIES_MAX {
            let id = ProxyId::new(format!("other-{number}")).unwrap();
            full.proxies.insert(id, proxy.clone().into());
        }
        let new = Registration {
            id: ProxyId::new("p9").unwrap(),
            ..proxy.clone()
        };
        refused(
            register(&full, &new),
            Reason::TooManyProxies,
            "gone for good",
        );
        assert!(register(&full, &restarted).is_ok());
        let connected = delete_proxy(&now, &proxy.id, 0, true);
        refused(connected, Reason::ProxyConnected, "stop it first");
        let now = now.after(&delete_proxy(&now, &proxy.id, 2, false).unwrap());
        let gone = delete_proxy(&now, &proxy.id, 0, false);
        refused(gone, Reason::ProxyNotFound, "p1");
    }
}
