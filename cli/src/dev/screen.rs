//! What `sluice dev` shows: its steps, the screen when all runs, the live line.
//!
//! The steps go to stderr, the screen and the live line to stdout. The texts are made by functions
//! from values to text; [`Screen`] draws them.

use std::time::Duration;

use proto::v1;
use tokio::time::Instant;

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
/// What a terminal has at least.
const COLUMNS: usize = 80;
/// Without a terminal, a live line that says nothing new is written this seldom.
const PLAIN_REPEAT_EVERY: Duration = Duration::from_secs(30);

/// Draws on the terminal, or writes lines where there is none.
pub(super) struct Screen<'a> {
    output: &'a Output,
    /// Whether the cursor stands behind a live line.
    live: bool,
    /// The newest plain line, and when it was written.
    plain: Option<(String, Instant)>,
}

impl<'a> Screen<'a> {
    /// Nothing is drawn yet.
    pub(super) fn new(output: &'a Output) -> Self {
        Self {
            output,
            live: false,
            plain: None,
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

    /// Shows the newest live line: in the place of the last on a terminal, else below it if it says
    /// something new.
    pub(super) fn draw(&mut self, line: &str) -> Result<(), Error> {
        match self.output.width() {
            Some(width) => {
                self.live = true;
                // In the last column some terminals would begin a new line.
                let cells = usize::from(width.saturating_sub(1));
                let line: String = line.chars().take(cells).collect();
                self.output.raw(format!("\r{line}\x1b[K").as_bytes())
            }
            None => {
                let last = self.plain.as_ref();
                if !is_news(last.map(|(last, at)| (last.as_str(), at.elapsed())), line) {
                    return Ok(());
                }
                self.plain = Some((line.to_owned(), Instant::now()));
                self.output.text(line)
            }
        }
    }
}

/// Whether a plain line is worth writing after the last one, written so long ago. That there is no
/// controller is said once.
fn is_news(last: Option<(&str, Duration)>, line: &str) -> bool {
    last.is_none_or(|(last, age)| {
        last != line || (line != NO_CONTROLLER && age >= PLAIN_REPEAT_EVERY)
    })
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
    let listens = [
        (
            "proxies",
            proxies
                .clone()
                .map(|p| format!("{HOST}:{}", p.port))
                .collect(),
        ),
        (
            "proxies' admin",
            proxies
                .map(|p| format!("http://{HOST}:{}", p.admin))
                .collect(),
        ),
        (
            "controller",
            vec![
                format!("{HOST}:{}", plan.controller),
                format!("http://{HOST}:{}", plan.controller_http),
            ],
        ),
        ("servers", plan.groups.iter().map(group_text).collect()),
        ("data and logs", vec![ready.folder.to_owned()]),
    ];
    let attempts = [
        (
            format!("redis-cli -p {port} {hello}"),
            "any Redis client works",
        ),
        (
            format!("{}{endpoint} check", ready.sluice),
            "what could be better",
        ),
        (
            format!("kill -9 {}", ready.controller_pid),
            "the controller: proxies go on serving",
        ),
    ];
    format!(
        "\nA Sluice cluster runs on this machine. Ctrl-C stops all of it.\n\n{}\n\n\
         Try, in another terminal:\n{}\n",
        Table::rows(
            listens
                .into_iter()
                .flat_map(|(name, all)| listed(name, all))
        )
        .render(None),
        explained(&attempts)
    )
}

/// A name and what is listed under it, on as many lines as that takes.
fn listed(name: &str, all: Vec<String>) -> Vec<[String; 2]> {
    const WIDTH: usize = COLUMNS - 20; // what the names leave
    let mut lines: Vec<String> = Vec::new();
    for one in all {
        match lines.last_mut() {
            Some(line) if line.len() + 2 + one.len() <= WIDTH => {
                line.push_str("  ");
                line.push_str(&one);
            }
            _ => lines.push(one),
        }
    }
    let names = std::iter::once(format!("  {name}")).chain(std::iter::repeat(String::new()));
    names.zip(lines).map(|(name, line)| [name, line]).collect()
}

/// Commands, each with what it is for: beside it, or below where that would be too wide.
fn explained(commands: &[(String, &str)]) -> String {
    let rows = commands
        .iter()
        .map(|(command, why)| [format!("  {command}"), (*why).to_owned()]);
    let table = Table::rows(rows).render(None);
    if table.lines().all(|line| line.chars().count() <= COLUMNS) {
        return table;
    }
    let lines: Vec<String> = commands
        .iter()
        .map(|(command, why)| format!("  {command}\n      {why}"))
        .collect();
    lines.join("\n")
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
        "\n{}\n{meaning}\nThis starts it again, and you stop it yourself then:\n  {}",
        ended.describe(&ended.notable()),
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
    fn the_screen_fits_a_narrow_terminal() {
        let text = ready(&Ready {
            plan: &Plan::new(&Shape {
                groups: 5,
                replicas: 2,
                proxies: 4,
                proxy_port: 32000,
                controller_port: 32100,
                redis_port: 32200,
            })
            .unwrap(),
            sluice: "/home/dev/sluice/target/sluice",
            controller_pid: 4711,
            folder: "/tmp/sluice-dev-x",
            keys: 1000,
        });
        insta::assert_snapshot!(text, @"

        A Sluice cluster runs on this machine. Ctrl-C stops all of it.

          proxies          127.0.0.1:32000  127.0.0.1:32001  127.0.0.1:32002
                           127.0.0.1:32003
          proxies' admin   http://127.0.0.1:32080  http://127.0.0.1:32081
                           http://127.0.0.1:32082  http://127.0.0.1:32083
          controller       127.0.0.1:32100  http://127.0.0.1:32101
          servers          g1 127.0.0.1:32200+32201+32202
                           g2 127.0.0.1:32203+32204+32205
                           g3 127.0.0.1:32206+32207+32208
                           g4 127.0.0.1:32209+32210+32211
                           g5 127.0.0.1:32212+32213+32214
          data and logs    /tmp/sluice-dev-x

        Try, in another terminal:
          redis-cli -p 32000 GET user:1000
              any Redis client works
          /home/dev/sluice/target/sluice --endpoint 127.0.0.1:32100 check
              what could be better
          kill -9 4711
              the controller: proxies go on serving
        ");
        assert!(text.lines().all(|line| line.len() <= COLUMNS), "{text}");
    }

    #[test]
    fn a_plain_line_is_not_repeated() {
        fn check(last: Option<(&str, u64)>, line: &str, expected: bool) {
            let last = last.map(|(last, secs)| (last, Duration::from_secs(secs)));
            assert_eq!(is_news(last, line), expected, "{last:?} {line}");
        }
        check(None, "0 requests/s", true);
        check(Some(("0 requests/s", 5)), "0 requests/s", false);
        check(Some(("0 requests/s", 5)), "9 requests/s", true);
        check(Some(("0 requests/s", 30)), "0 requests/s", true);
        check(Some((NO_CONTROLLER, 300)), NO_CONTROLLER, false);
        check(Some((NO_CONTROLLER, 5)), "0 requests/s", true);
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
        The proxies go on serving by the topology they have.
        This starts it again, and you stop it yourself then:
          sluice-controller --listen 127.0.0.1:18080
        ");
    }
}
