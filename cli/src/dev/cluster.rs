//! A development cluster, step by step: controller, servers, groups, slots, proxies, keys.
//!
//! Each step starts something and waits until it really is there, with a deadline; any process that
//! ends meanwhile fails it. Once all runs, [`DevCluster::run`] only watches: what the user kills is
//! told, and stays dead until the user starts it again.

use std::{collections::BTreeSet, env, time::Duration};

use anyhow::{Context as _, bail, ensure};
use proto::{SLOT_COUNT, ServerAddr, Version, reason::Reason, v1};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{MissedTickBehavior, interval, timeout},
};
use v1::assign_slots_request::{Assignment, Even};

use super::{
    DevArgs,
    binaries::Binaries,
    folder::Folder,
    ports::{GroupPlan, HOST, Plan, ProxyPlan, local},
    process::{Fleet, Kind, Spec},
    sample,
    screen::{self, Screen},
};
use crate::{
    client::{self, Admin, Client},
    commands::{group, slot},
    error::Error,
    output::{self, thousands},
};

/// Longer than anything takes on a busy machine: it ends what would never end.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Of a call while the cluster is being made.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a call for the live line: less than a redraw.
const LIVE_TIMEOUT: Duration = Duration::from_millis(900);
const REDRAW_EVERY: Duration = Duration::from_secs(1);
/// Without a terminal, a line in so many redraws.
const PLAIN_LINE_EVERY: u64 = 5;

/// A cluster in the making, then running. The fleet goes before the folder it writes to.
pub(crate) struct DevCluster<'a> {
    fleet: Fleet,
    folder: Folder,
    client: Client,
    screen: Screen<'a>,
    args: DevArgs,
    plan: Plan,
    binaries: Binaries,
}

impl<'a> DevCluster<'a> {
    /// Nothing is started yet.
    pub(crate) fn new(
        args: DevArgs,
        plan: Plan,
        binaries: Binaries,
        folder: Folder,
        screen: Screen<'a>,
    ) -> Self {
        Self {
            fleet: Fleet::new(folder.logs()),
            client: Client::new(vec![local(plan.controller)], CALL_TIMEOUT, None),
            folder,
            screen,
            args,
            plan,
            binaries,
        }
    }

    /// Starts everything, then shows it, until its time is up.
    pub(crate) async fn run(&mut self) -> Result<(), Error> {
        self.screen.say("Starting a cluster on this machine");
        let controller_pid = self.start_controller().await?;
        self.check_kept().await?;
        self.start_servers().await?;
        self.create_groups().await?;
        self.assign_slots().await?;
        self.start_proxies().await?;
        self.load_sample().await?;
        self.screen.show(&screen::ready(&screen::Ready {
            plan: &self.plan,
            sluice: &own_name(env::args().next()),
            controller_pid,
            folder: &self.folder.path().display().to_string(),
            keys: self.args.keys,
        }))?;
        match self.args.run_for {
            Some(duration) => timeout(duration, self.watch()).await.unwrap_or(Ok(())),
            None => self.watch().await,
        }
    }

    /// Stops everything; at once, as soon as `hurry` is done.
    pub(crate) async fn stop(&mut self, hurry: impl Future<Output = ()>) {
        self.screen.say("Stopping …");
        tokio::select! {
            () = self.fleet.stop() => {}
            () = hurry => self.fleet.kill().await,
        }
        // None of ours runs any more. Whoever listens was started by hand, with our command line,
        // and has its store in our folder.
        let at = (HOST, self.plan.controller);
        if let Ok(Ok(_)) = timeout(LIVE_TIMEOUT, TcpStream::connect(at)).await {
            self.folder.keep();
            self.screen.say(&format!(
                "A controller that was not started here still listens at {}: stop it yourself.\n\
                 Its data stays in {}",
                local(self.plan.controller),
                self.folder.path().display()
            ));
        }
    }

    async fn start_controller(&mut self) -> Result<u32, Error> {
        let (listen, http) = (
            local(self.plan.controller),
            local(self.plan.controller_http),
        );
        let pid = self.fleet.start(Spec {
            kind: Kind::Controller,
            name: "controller".to_owned(),
            program: self.binaries.controller.clone(),
            args: flags(&[
                ("--listen", listen.as_str()),
                ("--http", http.as_str()),
                ("--data-dir", &self.folder.create("controller")?),
                ("--cluster", "dev"),
            ]),
        })?;
        let client = &mut self.client;
        self.fleet
            .wait_until("the controller answers", READY_WITHIN, async || {
                client
                    .read(Admin::get_cluster, v1::GetClusterRequest {})
                    .await?;
                Ok(())
            })
            .await?;
        output::note_step(&format!("controller at {listen} (pid {pid})"));
        Ok(pid)
    }

    /// Refuses a plan of other groups than those that own slots from an earlier run.
    async fn check_kept(&mut self) -> Result<(), Error> {
        let there = self.client.list_groups(Default::default()).await?.groups;
        match misfit(&there, &self.plan.groups) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    async fn start_servers(&mut self) -> Result<(), Error> {
        for group in &self.plan.groups {
            self.fleet.start(self.redis(group.primary, None)?)?;
            for &port in &group.replicas {
                self.fleet.start(self.redis(port, Some(group.primary))?)?;
            }
        }
        for group in &self.plan.groups {
            let what = format!("the servers of {} answer", group.id);
            self.fleet
                .wait_until(&what, READY_WITHIN, async || {
                    sample::ping(group.primary).await?;
                    for &port in &group.replicas {
                        sample::synced(port).await?;
                    }
                    Ok(())
                })
                .await?;
            let servers = addresses(group);
            let servers: Vec<&str> = servers.iter().map(ServerAddr::as_str).collect();
            output::note_step(&format!(
                "servers for {} at {}",
                group.id,
                servers.join(", ")
            ));
        }
        Ok(())
    }

    /// A Redis server that keeps nothing on disk and starts to replicate at once.
    fn redis(&self, port: u16, primary: Option<u16>) -> Result<Spec, Error> {
        let name = format!("redis-{port}");
        let mut args = flags(&[
            ("--port", port.to_string().as_str()),
            ("--bind", HOST),
            ("--protected-mode", "no"),
            ("--daemonize", "no"),
            ("--save", ""),
            ("--appendonly", "no"),
            ("--repl-diskless-sync-delay", "0"),
            ("--dir", &self.folder.create(&name)?),
        ]);
        if let Some(primary) = primary {
            args.extend(["--replicaof", HOST, &primary.to_string()].map(str::to_owned));
        }
        Ok(Spec {
            kind: Kind::Server,
            name,
            program: self.binaries.redis.clone(),
            args,
        })
    }

    async fn create_groups(&mut self) -> Result<(), Error> {
        for plan in &self.plan.groups {
            let servers = addresses(plan);
            let mut command = format!("sluice group create {}", plan.id);
            for server in &servers {
                command.push_str(&format!(" --server {server}"));
            }
            let request = group::create_request(&plan.id, &servers, String::new(), false);
            match group::create(&mut self.client, request).await {
                Ok(_) => output::note_step(&command),
                Err(error) if reason(&error) == Some(Reason::GroupExists) => {
                    check_same(&mut self.client, plan).await?;
                    output::note_step(&format!("group {} is there from an earlier run", plan.id));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn assign_slots(&mut self) -> Result<(), Error> {
        let request = slot::assign_request(Assignment::Even(Even {}));
        let (_, changed) = slot::assign(&mut self.client, request).await?;
        output::note_step(if changed {
            "sluice slot assign --even"
        } else {
            "every slot is owned from an earlier run"
        });
        Ok(())
    }

    async fn start_proxies(&mut self) -> Result<(), Error> {
        for proxy in &self.plan.proxies {
            self.fleet.start(self.proxy(proxy))?;
        }
        for proxy in &self.plan.proxies {
            self.fleet
                .wait_until(
                    &format!("proxy {} is ready", proxy.id),
                    READY_WITHIN,
                    async || is_ready(proxy.admin).await,
                )
                .await?;
        }
        let (client, proxies) = (&mut self.client, &self.plan.proxies);
        self.fleet
            .wait_until(
                "all proxies route by the newest topology",
                READY_WITHIN,
                async || all_acked(client, proxies).await,
            )
            .await?;
        for proxy in &self.plan.proxies {
            let at = local(proxy.port);
            output::note_step(&format!("proxy {} at {at}", proxy.id));
        }
        Ok(())
    }

    fn proxy(&self, proxy: &ProxyPlan) -> Spec {
        let (listen, admin) = (local(proxy.port), local(proxy.admin));
        let controller = local(self.plan.controller);
        let mut args = flags(&[
            ("--listen", listen.as_str()),
            ("--admin", admin.as_str()),
            ("--controller", controller.as_str()),
            ("--id", proxy.id.as_str()),
        ]);
        if let Some(workers) = self.args.workers {
            args.extend(flags(&[("--workers", workers.to_string().as_str())]));
        }
        Spec {
            kind: Kind::Proxy,
            name: proxy.id.to_string(),
            program: self.binaries.proxy.clone(),
            args,
        }
    }

    /// Loads keys through the first proxy, then counts them where they are.
    async fn load_sample(&mut self) -> Result<(), Error> {
        let Some(proxy) = self.plan.proxies.first().filter(|_| self.args.keys > 0) else {
            return Ok(());
        };
        sample::load(proxy.port, self.args.keys)
            .await
            .with_context(|| format!("load keys through {}", local(proxy.port)))?;
        let mut spread = Vec::new();
        for plan in &self.plan.groups {
            let request = v1::GetGroupRequest {
                id: plan.id.to_string(),
            };
            let group = self.client.read(Admin::get_group, request).await?;
            let keys = sample::key_count(plan.primary)
                .await
                .with_context(|| format!("count the keys of {}", plan.id))?;
            spread.push((group, keys));
        }
        let keys = thousands(self.args.keys);
        let at = local(proxy.port);
        output::note_step(&format!("{keys} keys loaded through {at}, which lie in"));
        self.screen.say(&screen::spread(&spread));
        Ok(())
    }

    /// Shows requests per second, and tells what ends. Returns only with an error.
    async fn watch(&mut self) -> Result<(), Error> {
        let mut client = Client::new(vec![local(self.plan.controller)], LIVE_TIMEOUT, None);
        let mut tick = interval(REDRAW_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for redraw in 0_u64.. {
            tick.tick().await;
            for ended in self.fleet.ended() {
                self.screen.say(&screen::obituary(&ended));
            }
            if self.screen.is_terminal() || redraw.is_multiple_of(PLAIN_LINE_EVERY) {
                let line = match client.list_proxies(Default::default()).await {
                    Ok(answer) => screen::live(&answer.proxies),
                    Err(error) if error.is_lost() => screen::NO_CONTROLLER.to_owned(),
                    Err(error) => error.to_string(),
                };
                self.screen.draw(&line)?;
            }
        }
        Ok(())
    }
}

/// Why the groups of an earlier run are not those of the plan. A run that was cut short before it
/// assigned the slots may be completed.
fn misfit(there: &[v1::Group], planned: &[GroupPlan]) -> Option<Error> {
    let owned: u32 = there.iter().map(|group| group.slot_count).sum();
    let all_owned = owned as usize == SLOT_COUNT;
    let kept: BTreeSet<&str> = there
        .iter()
        .filter(|group| group.slot_count > 0 || !all_owned)
        .map(|group| group.id.as_str())
        .collect();
    let planned: BTreeSet<&str> = planned.iter().map(|group| group.id.as_str()).collect();
    let fits = match all_owned {
        true => kept == planned,
        false => kept.is_subset(&planned),
    };
    if fits {
        return None;
    }
    let join = |ids: BTreeSet<&str>| Vec::from_iter(ids).join(", ");
    let count = kept.len();
    let error = Error::failed(format!(
        "the slots of an earlier run are for {}, not {}: slots that are owned cannot be moved yet",
        join(kept),
        join(planned)
    ));
    Some(error.hint(format!(
        "give `--groups {count}` as in that run, or take another `--data-dir`"
    )))
}

/// A group of an earlier run will do if its servers are those of this run.
async fn check_same(client: &mut Client, plan: &GroupPlan) -> Result<(), Error> {
    let request = v1::GetGroupRequest {
        id: plan.id.to_string(),
    };
    let group = client.read(Admin::get_group, request).await?;
    let mut there: Vec<String> = group.servers.into_iter().map(|s| s.address).collect();
    let mut planned: Vec<String> = addresses(plan).into_iter().map(String::from).collect();
    there.sort_unstable();
    planned.sort_unstable();
    if there == planned {
        return Ok(());
    }
    let (there, planned) = (there.join(", "), planned.join(", "));
    let message = format!(
        "group {} of an earlier run has {there}, not {planned}",
        plan.id
    );
    Err(Error::failed(message)
        .hint("give `--redis-port` and `--replicas` as in that run, or take another `--data-dir`"))
}

/// The group's servers, the primary first.
fn addresses(group: &GroupPlan) -> Vec<ServerAddr> {
    let ports = [&[group.primary], group.replicas.as_slice()].concat();
    ports.into_iter().map(local).collect()
}

fn flags(flags: &[(&str, &str)]) -> Vec<String> {
    flags
        .iter()
        .flat_map(|&(name, value)| [name.to_owned(), value.to_owned()])
        .collect()
}

fn reason(error: &client::Error) -> Option<Reason> {
    match error {
        client::Error::Refused(status) => Reason::of(status),
        client::Error::Unreachable(_)
        | client::Error::Deadline(_)
        | client::Error::Unanswered(..) => None,
    }
}

/// How the user called us, so that the commands shown work as they stand.
fn own_name(arg: Option<String>) -> String {
    arg.filter(|name| name.contains('/'))
        .unwrap_or_else(|| "sluice".to_owned())
}

/// Succeeds once a proxy's `/readyz` does.
async fn is_ready(admin: u16) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect((HOST, admin)).await?;
    stream
        .write_all(format!("GET /readyz HTTP/1.0\r\nHost: {HOST}:{admin}\r\n\r\n").as_bytes())
        .await?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.lines().next().unwrap_or_default();
    ensure!(
        status.split(' ').nth(1) == Some("200"),
        "/readyz says {status:?}"
    );
    Ok(())
}

/// Succeeds once all planned proxies have acked the topology there is now.
async fn all_acked(client: &mut Client, planned: &[ProxyPlan]) -> anyhow::Result<()> {
    let topology = client
        .read(Admin::get_topology, v1::GetTopologyRequest {})
        .await?;
    let newest = topology.version.as_ref().map(Version::from);
    let proxies = client.list_proxies(Default::default()).await?.proxies;
    for plan in planned {
        let Some(proxy) = proxies.iter().find(|proxy| proxy.id == plan.id.as_str()) else {
            bail!("{} has not registered", plan.id);
        };
        let acked = proxy.acked_version.as_ref().map(Version::from);
        ensure!(proxy.connected && acked >= newest, "{} is behind", plan.id);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::ports::Shape;

    #[test]
    fn a_kept_cluster_must_fit_the_plan() {
        fn check(there: &[(&str, u32)], groups: u16, expected: Option<&str>) {
            let there: Vec<v1::Group> = there
                .iter()
                .map(|&(id, slot_count)| v1::Group {
                    id: id.to_owned(),
                    slot_count,
                    ..Default::default()
                })
                .collect();
            let plan = Plan::new(&Shape {
                groups,
                replicas: 0,
                proxies: 1,
                proxy_port: 19000,
                controller_port: 18080,
                redis_port: 7001,
            })
            .unwrap();
            let hint = misfit(&there, &plan.groups).map(|error| match error {
                Error::Failed { hints, .. } => hints.concat(),
                other => panic!("{other:?}"),
            });
            match (hint, expected) {
                (None, None) => {}
                (Some(hint), Some(part)) => assert!(hint.contains(part), "{hint}"),
                (hint, _) => panic!("{there:?}: {hint:?}"),
            }
        }
        check(&[], 2, None);
        check(&[("g1", 512), ("g2", 512)], 2, None);
        check(&[("g1", 512), ("g2", 512)], 3, Some("--groups 2"));
        check(&[("g1", 512), ("g2", 512)], 1, Some("--groups 2"));
        // Cut short before the slots were assigned.
        check(&[("g1", 0)], 3, None);
        check(&[("g1", 0), ("g2", 0)], 1, Some("--groups 2"));
        // A group that the user made, which owns nothing.
        check(&[("g1", 1024), ("g9", 0)], 1, None);
    }
}
