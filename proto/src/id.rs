//! Ids: names that were checked once, where they came in.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize};

/// Why a text is no id or address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {kind} `{text}`: {rule}")]
pub struct InvalidId {
    /// What it was meant to be: `group id`, `server address` …
    pub kind: &'static str,
    /// What was given.
    pub text: String,
    /// What it must be.
    pub rule: &'static str,
}

const LABEL_RULE: &str = "must be 1 to 63 of a-z, 0-9 and `-`, with no `-` at either end";

fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

const ADDRESS_RULE: &str = "must be host:port, as 127.0.0.1:6379, [::1]:6379 or redis-1.local:6379";

fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let host_ok = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            (1..=253).contains(&host.len())
                && host
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        }
    };
    // A leading `+` parses as a number and would make two addresses of one server.
    host_ok && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p > 0)
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:path, $rule:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Checks and takes the text.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidId> {
                let text = text.into();
                if $check(&text) {
                    Ok(Self(text))
                } else {
                    Err(InvalidId { kind: $kind, text, rule: $rule })
                }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A cluster's id, chosen at random when its store is created.
    ClusterId, "cluster id", is_label, LABEL_RULE
}
id! {
    /// A group's id, given by the operator.
    GroupId, "group id", is_label, LABEL_RULE
}
id! {
    /// A proxy's id, given by the operator; the same over restarts.
    ProxyId, "proxy id", is_label, LABEL_RULE
}
id! {
    /// A migration's id, given by the operator, or `m1`, `m2` and so on.
    MigrationId, "migration id", is_label, LABEL_RULE
}
id! {
    /// Where a server listens: `host:port`. It identifies the server.
    ServerAddr, "server address", is_address, ADDRESS_RULE
}

impl ServerAddr {
    /// The host, an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        let (host, _) = self.0.rsplit_once(':').expect("host:port was checked");
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        for good in ["g1", "a", "0", "east-1", &"x".repeat(63)] {
            assert!(GroupId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "G1", "a b", "a/b", "ü", &"x".repeat(64)] {
            assert!(GroupId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses() {
        for good in ["127.0.0.1:6379", "[::1]:1", "redis-1.local:65535", "a_b:7"] {
            assert!(ServerAddr::new(good).is_ok(), "{good}");
        }
        for (address, host) in [("[::1]:1", "::1"), ("a.b:7", "a.b")] {
            assert_eq!(ServerAddr::new(address).unwrap().host(), host);
        }
        for bad in [
            "",
            "127.0.0.1",
            ":6379",
            "h:0",
            "h:65536",
            "h:+1",
            "::1:6379",
            "a b:1",
            "h:",
        ] {
            assert!(ServerAddr::new(bad).is_err(), "{bad}");
        }
    }
}
