//! Which process listens where. Decided before anything is started, and checked: a port that is
//! taken is told while there is nothing to clean up yet.

use std::{collections::BTreeMap, net::TcpListener};

use proto::{GroupId, ProxyId, ServerAddr};

use crate::error::Error;

/// The only address a development cluster listens on.
pub(super) const HOST: &str = "127.0.0.1";

/// The admin port of a proxy is this far above the RESP port.
const ADMIN_OFFSET: u32 = 80;

/// What a cluster is to be like.
pub(super) struct Shape {
    pub groups: u16,
    pub replicas: u16,
    pub proxies: u16,
    pub proxy_port: u16,
    pub controller_port: u16,
    pub redis_port: u16,
}

/// Who listens where. No port is in it twice.
#[derive(Debug)]
pub(super) struct Plan {
    pub controller: u16,
    pub controller_http: u16,
    pub groups: Vec<GroupPlan>,
    pub proxies: Vec<ProxyPlan>,
}

/// The ports of a group's servers.
#[derive(Debug)]
pub(super) struct GroupPlan {
    pub id: GroupId,
    pub primary: u16,
    pub replicas: Vec<u16>,
}

/// The ports of a proxy.
#[derive(Debug)]
pub(super) struct ProxyPlan {
    pub id: ProxyId,
    pub port: u16,
    pub admin: u16,
}

/// A port and what it is for.
struct Use {
    port: u16,
    what: String,
    /// The flag that chooses it.
    flag: &'static str,
}

impl Plan {
    /// Counts the ports up from those of the flags.
    pub(super) fn new(shape: &Shape) -> Result<Self, Error> {
        let per_group = 1 + u32::from(shape.replicas);
        let mut groups = Vec::new();
        for i in 0..u32::from(shape.groups) {
            let port = |nth| above(shape.redis_port, i * per_group + nth, "--redis-port");
            groups.push(GroupPlan {
                id: GroupId::new(format!("g{}", i + 1)).map_err(anyhow::Error::from)?,
                primary: port(0)?,
                replicas: (1..per_group).map(port).collect::<Result<_, _>>()?,
            });
        }
        let mut proxies = Vec::new();
        for i in 0..u32::from(shape.proxies) {
            proxies.push(ProxyPlan {
                id: ProxyId::new(format!("p{}", i + 1)).map_err(anyhow::Error::from)?,
                port: above(shape.proxy_port, i, "--port")?,
                admin: above(shape.proxy_port, i + ADMIN_OFFSET, "--port")?,
            });
        }
        let plan = Self {
            controller: shape.controller_port,
            controller_http: above(shape.controller_port, 1, "--controller-port")?,
            groups,
            proxies,
        };
        plan.check_distinct()?;
        Ok(plan)
    }

    fn uses(&self) -> Vec<Use> {
        let entry = |port, what, flag| Use { port, what, flag };
        let mut uses = vec![
            entry(
                self.controller,
                "the controller".to_owned(),
                "--controller-port",
            ),
            entry(
                self.controller_http,
                "the controller's HTTP".to_owned(),
                "--controller-port",
            ),
        ];
        for group in &self.groups {
            let what = format!("the primary of {}", group.id);
            uses.push(entry(group.primary, what, "--redis-port"));
            for &port in &group.replicas {
                let what = format!("a replica of {}", group.id);
                uses.push(entry(port, what, "--redis-port"));
            }
        }
        for proxy in &self.proxies {
            let what = format!("proxy {}", proxy.id);
            uses.push(entry(proxy.port, what, "--port"));
            let what = format!("the admin HTTP of proxy {}", proxy.id);
            uses.push(entry(proxy.admin, what, "--port"));
        }
        uses
    }

    fn check_distinct(&self) -> Result<(), Error> {
        let mut seen: BTreeMap<u16, Use> = BTreeMap::new();
        for next in self.uses() {
            let Some(first) = seen.get(&next.port) else {
                seen.insert(next.port, next);
                continue;
            };
            return Err(Error::Usage {
                message: format!(
                    "port {} is for {} and for {}",
                    next.port, first.what, next.what
                ),
                hint: format!("move one of them: `{}`, `{}`", first.flag, next.flag),
            });
        }
        Ok(())
    }

    /// Fails if anything listens on a port of the plan. Nothing is chosen instead: who connects to
    /// the usual port must not meet another cluster than the one just started.
    pub(super) fn check_free(&self) -> Result<(), Error> {
        let taken: Vec<Use> = self
            .uses()
            .into_iter()
            .filter(|entry| TcpListener::bind((HOST, entry.port)).is_err())
            .collect();
        match taken.as_slice() {
            [] => Ok(()),
            taken => Err(taken_error(taken)),
        }
    }
}

fn taken_error(taken: &[Use]) -> Error {
    let ports: Vec<String> = taken
        .iter()
        .map(|entry| format!("{} ({})", entry.port, entry.what))
        .collect();
    let (noun, verb) = match taken {
        [_] => ("port", "is"),
        _ => ("ports", "are"),
    };
    let mut flags: Vec<String> = Vec::new();
    for entry in taken {
        let flag = format!("`{} N`", entry.flag);
        if !flags.contains(&flag) {
            flags.push(flag);
        }
    }
    let first = taken.first().map_or(0, |entry| entry.port);
    Error::failed(format!("{noun} {} {verb} taken", ports.join(", ")))
        .hint(format!("choose others with {}", flags.join(", ")))
        .hint(format!(
            "`ss -ltnp 'sport = :{first}'` shows who listens there"
        ))
}

fn above(base: u16, offset: u32, flag: &'static str) -> Result<u16, Error> {
    u16::try_from(u32::from(base) + offset).map_err(|_| Error::Usage {
        message: format!("`{flag} {base}` leaves too few ports: the last is 65535"),
        hint: format!("choose a lower `{flag}`, or fewer processes"),
    })
}

/// The address of a port of the plan.
pub(super) fn local(port: u16) -> ServerAddr {
    ServerAddr::new(format!("{HOST}:{port}")).expect("no port of a plan is 0")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: Shape = Shape {
        groups: 2,
        replicas: 0,
        proxies: 2,
        proxy_port: 19000,
        controller_port: 18080,
        redis_port: 7001,
    };

    fn text(plan: &Plan) -> String {
        let mut text = format!("controller {} {}", plan.controller, plan.controller_http);
        for group in &plan.groups {
            text.push_str(&format!(
                ", {} {} {:?}",
                group.id, group.primary, group.replicas
            ));
        }
        for proxy in &plan.proxies {
            text.push_str(&format!(", {} {} {}", proxy.id, proxy.port, proxy.admin));
        }
        text
    }

    #[test]
    fn plans() {
        fn check(shape: Shape, expected: &str) {
            assert_eq!(text(&Plan::new(&shape).unwrap()), expected);
        }
        check(
            DEFAULT,
            "controller 18080 18081, g1 7001 [], g2 7002 [], p1 19000 19080, p2 19001 19081",
        );
        check(
            Shape {
                replicas: 2,
                proxies: 1,
                ..DEFAULT
            },
            "controller 18080 18081, g1 7001 [7002, 7003], g2 7004 [7005, 7006], p1 19000 19080",
        );
    }

    #[test]
    fn plans_that_cannot_be() {
        fn check(shape: Shape, expected: &str) {
            let Err(Error::Usage { message, .. }) = Plan::new(&shape) else {
                panic!("expected `{expected}`");
            };
            assert_eq!(message, expected);
        }
        check(
            Shape {
                proxy_port: 65500,
                ..DEFAULT
            },
            "`--port 65500` leaves too few ports: the last is 65535",
        );
        check(
            Shape {
                controller_port: 7002,
                ..DEFAULT
            },
            "port 7002 is for the controller and for the primary of g2",
        );
        check(
            Shape {
                proxies: 81,
                ..DEFAULT
            },
            "port 19080 is for the admin HTTP of proxy p1 and for proxy p81",
        );
    }

    #[test]
    fn a_taken_port_is_named() {
        let holder = TcpListener::bind((HOST, 0)).unwrap();
        let port = holder.local_addr().unwrap().port();
        let plan = Plan {
            controller: port,
            controller_http: port,
            groups: Vec::new(),
            proxies: Vec::new(),
        };
        let Err(Error::Failed { error, hints }) = plan.check_free() else {
            panic!("the port is taken");
        };
        assert!(
            error
                .to_string()
                .contains(&format!("{port} (the controller)"))
        );
        assert_eq!(hints[0], "choose others with `--controller-port N`");
        drop(holder);
        assert!(plan.check_free().is_ok());
    }
}
