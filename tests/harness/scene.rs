//! Two servers, a group each, and proxies whose controller says what the test tells it to.

use proto::{
    ClusterId, Group, GroupId, ServerAddr, Slot, SlotState, Topology, Version,
    settled::Settled,
    v1::{self, subscribe_request::Message as Said, subscribe_response::Message as Say},
};
use tempfile::TempDir;

use crate::{Proxy, ScriptedController, Server};

/// See the module. `foo` (slot 289) is on the first server, `a` (579) on the second.
pub struct Scene {
    /// The groups' primaries.
    pub servers: [Server; 2],
    /// The controller; it serves one proxy at a time.
    pub controller: ScriptedController,
    /// Everything's files.
    pub dir: TempDir,
}

/// The groups.
pub const GROUPS: [&str; 2] = ["g1", "g2"];

impl Scene {
    /// Starts the servers, with these arguments besides.
    pub async fn start(server_args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let args: Vec<String> = server_args.iter().map(|&arg| arg.to_owned()).collect();
        let servers = GROUPS.map(|name| Server::start(dir.path(), name, &args));
        for server in &servers {
            server.answers().await;
        }
        Self {
            servers,
            controller: ScriptedController::start().await,
            dir,
        }
    }

    /// A topology in which the lower half of the slots is the first group's, unless `slots` says else.
    pub fn topology(
        &self,
        epoch: u64,
        slots: impl Fn(Slot) -> Option<(usize, SlotState)>,
    ) -> Topology {
        let ids = GROUPS.map(|id| GroupId::new(id).unwrap());
        let groups = ids.iter().zip(&self.servers).map(|(id, server)| Group {
            id: id.clone(),
            primary: ServerAddr::new(&server.addr).unwrap(),
            replicas: Vec::new(),
        });
        let version = Version {
            leader_term: 1,
            epoch,
        };
        let half = |slot: Slot| (usize::from(slot.number() >= 512), SlotState::Serving);
        let cluster = ClusterId::new("scripted").unwrap();
        Topology::new(cluster, version, groups.collect::<Vec<_>>(), |slot| {
            let (owner, state) = slots(slot).unwrap_or_else(|| half(slot));
            (Some(ids[owner].clone()), state)
        })
        .unwrap()
    }

    /// A proxy with two workers, unless `args` says else, that routes by this epoch.
    pub async fn proxy(&mut self, epoch: u64, args: &[&str]) -> Proxy {
        let workers = if args.contains(&"--workers") {
            &[][..]
        } else {
            &["--workers", "2"]
        };
        let fixed = ["--controller", &self.controller.addr];
        let all = fixed
            .iter()
            .chain(workers)
            .chain(args)
            .map(|&arg| arg.to_owned());
        let all: Vec<String> = all.collect();
        let proxy = Proxy::start(self.dir.path(), &format!("p{epoch}"), &all).await;
        assert!(matches!(self.controller.hear().await, Said::Hello(_)));
        self.publish(&self.topology(epoch, |_| None)).await;
        proxy
    }

    /// Has the proxy route by a topology.
    pub async fn publish(&mut self, topology: &Topology) {
        let snapshot = v1::Topology::from(topology);
        self.controller.say(Say::Snapshot(snapshot)).await;
        match self.controller.hear().await {
            Said::Ack(ack) => assert_eq!(ack.version, Some(topology.version().into())),
            other => panic!("expected an ack, got {other:?}"),
        }
    }

    /// The next group of which the proxy says that it has settled.
    pub async fn settled(&mut self) -> Settled {
        let settled = self.controller.hear_settled().await;
        Settled::try_from(&settled).unwrap()
    }
}
