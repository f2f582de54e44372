//! What `sluice dev` shows: its steps, the screen when all runs, the live line.
//!
//! The steps go to stderr, the screen and the live line to stdout. The texts are made by functions
//! from values to text; [`Screen`] draws them.

use proto::v1;

use super::{
    ports::{GroupPlan, HOST, Plan},
    process::{Ended, Kind},
};
use crate::{
    commands::proxy::rate,
    error::Error,
    output::{self, Output, Table, plural, thousands},
};

const BAR_CELLS: u64 = 24;
const DEFAULT_CONTROLLER_PORT: u16 = 18080;

/// Draws on the terminal, or writes lines where there is none.
pub(super) struct Screen<'a> {
    output: &'a Output,
    /// Whether the cursor stands behind a live line.
    live: bool,
}

impl<'a> Screen<'a> {
    /// Nothing is drawn yet.
    pub(super) fn new(output: &'a Output) -> Self {
        Self {
            output,
            live: false,
        }
    }

    /// Whether a line can be drawn over.
    pub(super) fn is_terminal(&self) -> bool {
        self.output.width().is_some()
    }

    /// Says something on stderr, on a line of its own.
    pub(super) fn say(&mut self, text: &str) {
        if self.live {
            self.live = false;
            // The live line is drawn again; if stdout is gone, that will tell.
            self.output.raw(b"\r\x1b[K").ok();
        }
        output::note(text);
    }

    /// Shows text on stdout.
    pub(super) fn show(&self, text: &str) -> Result<(), Error> {
        self.output.text(text)
    }

    /// Shows the newest live line: in the place of the last on a terminal, else below it.
    pub(super) fn draw(&mut self, line: &str) -> Result<(), Error> {
        match self.output.width() {
            Some(width) => {
                self.live = true;
                // In the last column some terminals would begin a new line.
                let cells = usize::from(width.saturating_sub(1));
                let line: String = line.chars().take(cells).collect();
                self.output.raw(format!("\r{line}\x1b[K").as_bytes())
            }
            None => self.output.text(line),
        }
    }
}

/// How the sample's keys lie in the groups.
pub(super) fn spread(groups: &[(v1::Group, u64)]) -> String {
    let most = groups.iter().map(|&(_, keys)| keys).max().unwrap_or(0);
    let rows = groups.iter().map(|(group, keys)| {
        [
            format!("    {}", group.id),
            plural(group.slot_count as usize, "slot"),
            format!("{} keys", thousands(*keys)),
            bar(*keys, most),
        ]
    });
    Table::rows(rows).render(None)
}

fn bar(value: u64, most: u64) -> String {
    let cells = u128::from(value) * u128::from(BAR_CELLS) / u128::from(most.max(1));
    "█".repeat(cells as usize)
}

/// What to know when all runs.
pub(super) struct Ready<'a> {
    pub plan: &'a Plan,
    /// How the user calls this tool.
    pub sluice: &'a str,
    pub controller_pid: u32,
    pub folder: &'a str,
    pub keys: u64,
}

/// Where everything listens, and what to try.
pub(super) fn ready(ready: &Ready<'_>) -> String {
    let plan = ready.plan;
    let listed = |ports: Vec<String>| ports.join("  ");
    let proxies = plan.proxies.iter();
    let port = plan.proxies.first().map_or(0, |proxy| proxy.port);
    let endpoint = match plan.controller {
        DEFAULT_CONTROLLER_PORT => String::new(),
        port => format!(" --endpoint {HOST}:{port}"),
    };
    let hello = match ready.keys {
        0 => "SET greeting hello".to_owned(),
        keys => format!("GET user:{keys}"),
    };
    let listens = Table::rows([
        [
            "  proxies".to_owned(),
            listed(
                proxies
                    .clone()
                    .map(|p| format!("{HOST}:{}", p.port))
                    .collect(),
            ),
        ],
        [
            "  proxies' admin".to_owned(),
            listed(
                proxies
                    .map(|p| format!("http://{HOST}:{}", p.admin))
                    .collect(),
            ),
        ],
        [
            "  controller".to_owned(),
            format!(
                "{HOST}:{}  http://{HOST}:{}",
                plan.controller, plan.controller_http
            ),
        ],
        [
            "  servers".to_owned(),
            listed(plan.groups.iter().map(group_text).collect()),
        ],
        ["  data and logs".to_owned(), ready.folder.to_owned()],
    ]);
    let attempts = Table::rows([
        [
            format!("  redis-cli -p {port} {hello}"),
            "any Redis client works".to_owned(),
        ],
        [
            format!("  {}{endpoint} check", ready.sluice),
            "what could be better".to_owned(),
        ],
        [
            format!("  kill -9 {}", ready.controller_pid),
            "the controller: proxies go on serving".to_owned(),
        ],
    ]);
    format!(
        "\nA Sluice cluster runs on this machine. Ctrl-C stops all of it.\n\n{}\n\n\
         Try, in another terminal:\n{}\n",
        listens.render(None),
        attempts.render(None)
    )
}

fn group_text(group: &GroupPlan) -> String {
    let mut text = format!("{} {HOST}:{}", group.id, group.primary);
    for port in &group.replicas {
        text.push_str(&format!("+{port}"));
    }
    text
}

/// Requests per second, in all and of each proxy.
pub(super) fn live(proxies: &[v1::Proxy]) -> String {
    let total: f64 = proxies.iter().map(|proxy| proxy.requests_per_second).sum();
    let mut line = format!("{} requests/s", rate(total));
    for proxy in proxies {
        let sessions = proxy.stats.unwrap_or_default().sessions;
        let state = if proxy.connected {
            format!(
                "{}/s, {}",
                rate(proxy.requests_per_second),
                plural(sessions as usize, "session")
            )
        } else {
            "not connected".to_owned()
        };
        line.push_str(&format!("   {} {state}", proxy.id));
    }
    line
}

/// The live line while there is no controller to ask.
pub(super) const NO_CONTROLLER: &str =
    "no controller to ask for requests/s; the proxies go on serving";

/// That a process ended, what that means, and how to start it again.
pub(super) fn obituary(ended: &Ended) -> String {
    let meaning = match ended.kind {
        Kind::Proxy => "Its clients must connect to another proxy.",
        Kind::Controller => "The proxies go on serving by the topology they have.",
        Kind::Server => "Requests for its slots fail until it is back; the others never notice.",
    };
    format!(
        "\n{}\n{meaning} This starts it again (and you stop it yourself then):\n  {}",
        ended.describe(),
        ended.command_line
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;
    use crate::dev::ports::Shape;

    fn plan(controller_port: u16) -> Plan {
        Plan::new(&Shape {
            groups: 2,
            replicas: 1,
            proxies: 2,
            proxy_port: 19000,
            controller_port,
            redis_port: 7001,
        })
        .unwrap()
    }

    #[test]
    fn the_screen_when_all_runs() {
        let text = ready(&Ready {
            plan: &plan(18080),
            sluice: "target/debug/sluice",
            controller_pid: 4711,
            folder: "/tmp/sluice-dev-x",
            keys: 1000,
        });
        insta::assert_snapshot!(text, @"

        A Sluice cluster runs on this machine. Ctrl-C stops all of it.

          proxies          127.0.0.1:19000  127.0.0.1:19001
          proxies' admin   http://127.0.0.1:19080  http://127.0.0.1:19081
          controller       127.0.0.1:18080  http://127.0.0.1:18081
          servers          g1 127.0.0.1:7001+7002  g2 127.0.0.1:7003+7004
          data and logs    /tmp/sluice-dev-x

        Try, in another terminal:
          redis-cli -p 19000 GET user:1000   any Redis client works
          target/debug/sluice check          what could be better
          kill -9 4711                       the controller: proxies go on serving
        ");
        let elsewhere = ready(&Ready {
            plan: &plan(28080),
            sluice: "sluice",
            controller_pid: 4711,
            folder: "/tmp/sluice-dev-x",
            keys: 0,
        });
        assert!(
            elsewhere.contains("sluice --endpoint 127.0.0.1:28080 check"),
            "{elsewhere}"
        );
        assert!(
            elsewhere.contains("redis-cli -p 19000 SET greeting hello"),
            "{elsewhere}"
        );
    }

    #[test]
    fn keys_are_shown_as_bars() {
        let group = |id: &str, keys| {
            let group = v1::Group {
                id: id.to_owned(),
                slot_count: 512,
                ..Default::default()
            };
            (group, keys)
        };
        insta::assert_snapshot!(spread(&[group("g1", 1_200), group("g2", 400)]), @"
        g1   512 slots   1,200 keys   ████████████████████████
        g2   512 slots   400 keys     ████████
        ");
        assert_eq!(bar(0, 0), "");
        assert_eq!(bar(u64::MAX, u64::MAX).chars().count() as u64, BAR_CELLS);
    }

    #[test]
    fn the_live_line() {
        let proxy = |id: &str, connected, requests_per_second| v1::Proxy {
            id: id.to_owned(),
            connected,
            requests_per_second,
            stats: Some(v1::ProxyStats {
                sessions: 50,
                ..Default::default()
            }),
            ..Default::default()
        };
        let proxies = [proxy("p1", true, 120_000.0), proxy("p2", false, 0.0)];
        assert_eq!(
            live(&proxies),
            "120,000 requests/s   p1 120,000/s, 50 sessions   p2 not connected"
        );
        assert_eq!(live(&[]), "0 requests/s");
    }

    #[test]
    fn an_end_says_how_to_begin_again() {
        let ended = Ended {
            kind: Kind::Controller,
            name: "controller".to_owned(),
            pid: 4711,
            status: std::process::ExitStatus::from_raw(9),
            log_tail: vec!["serving".to_owned()],
            command_line: "sluice-controller --listen 127.0.0.1:18080".to_owned(),
        };
        insta::assert_snapshot!(obituary(&ended), @"

        controller (pid 4711) ended: signal: 9 (SIGKILL); its log ends with
            serving
        The proxies go on serving by the topology they have. This starts it again (and you stop it yourself then):
          sluice-controller --listen 127.0.0.1:18080
        ");
    }
}
