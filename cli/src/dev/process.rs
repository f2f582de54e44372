//! The processes of a development cluster: started, watched, stopped.
//!
//! Each child has a process group of its own, so that Ctrl-C in the terminal reaches only us and we
//! stop them in order ([`Fleet::stop`]). A panic kills them when the [`Fleet`] is dropped, and our
//! own death by [`tether`]: no way out leaves one behind.

use std::{
    env,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout_at},
};

use super::tether::tether;
use crate::error::Error;

const POLL_EVERY: Duration = Duration::from_millis(50);
const TAIL_LINES: usize = 10;
/// Of those, so many are told of a process that ran well before it ended.
const NOTABLE_LINES: usize = 5;
const TAIL_BYTES: u64 = 16 << 10;

/// What a process is, in the order in which they are stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Proxy,
    Controller,
    Server,
}

impl Kind {
    const STOP_ORDER: [Self; 3] = [Self::Proxy, Self::Controller, Self::Server];

    /// How long it may take to end after SIGTERM.
    fn patience(self) -> Duration {
        match self {
            Self::Proxy => Duration::from_secs(10), // finishes what is in flight
            Self::Controller | Self::Server => Duration::from_secs(5),
        }
    }
}

/// A process to start.
pub(super) struct Spec {
    pub kind: Kind,
    /// As people call it, and its log: `p1`, `redis-7001`.
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<String>,
}

struct Process {
    spec: Spec,
    log: PathBuf,
    pid: u32,
    child: Child,
    /// Whether its end has been told.
    told: bool,
}

/// A process that ended, though nobody here stopped it.
#[derive(Debug)]
pub(super) struct Ended {
    pub kind: Kind,
    pub name: String,
    pub pid: u32,
    pub status: ExitStatus,
    /// The last lines of its log.
    pub log_tail: Vec<String>,
    /// What starts it again, for a shell.
    pub command_line: String,
}

/// All processes that were started.
pub(super) struct Fleet {
    log_dir: PathBuf,
    processes: Vec<Process>,
}

impl Fleet {
    /// None yet. Their logs go into the folder.
    pub(super) fn new(log_dir: PathBuf) -> Self {
        Self {
            log_dir,
            processes: Vec::new(),
        }
    }

    /// Starts one and gives its process id. Call it on the main thread, see [`tether`].
    pub(super) fn start(&mut self, spec: Spec) -> Result<u32, Error> {
        let log = self.log_dir.join(format!("{}.log", spec.name));
        let child =
            spawn(&spec, &log).with_context(|| format!("start {}", spec.program.display()))?;
        let pid = child.id().unwrap_or_default();
        self.processes.push(Process {
            spec,
            log,
            pid,
            child,
            told: false,
        });
        Ok(pid)
    }

    /// Waits until `probe` succeeds. Fails at the deadline, and as soon as any process ends.
    pub(super) async fn wait_until(
        &mut self,
        what: &str,
        within: Duration,
        mut probe: impl AsyncFnMut() -> anyhow::Result<()>,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(ended) = self.ended().into_iter().next() {
                return Err(ended.into_error());
            }
            let failed = match timeout_at(deadline, probe()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => anyhow::anyhow!("no answer"),
            };
            if Instant::now() >= deadline {
                let context = format!("{what} within {within:?}");
                return Err(Error::from(failed.context(context))
                    .hint(format!("the logs are in {}", self.log_dir.display())));
            }
            sleep(POLL_EVERY).await;
        }
    }

    /// Who has ended since this was asked last.
    pub(super) fn ended(&mut self) -> Vec<Ended> {
        self.processes
            .iter_mut()
            .filter(|process| !process.told)
            .filter_map(|process| {
                let status = process.child.try_wait().ok().flatten()?;
                process.told = true;
                Some(Ended {
                    kind: process.spec.kind,
                    name: process.spec.name.clone(),
                    pid: process.pid,
                    status,
                    log_tail: tail(&process.log).unwrap_or_default(),
                    command_line: process.spec.command_line(),
                })
            })
            .collect()
    }

    /// Stops all, proxies first, so that they can finish what is in flight. Who does not end when
    /// asked to is killed.
    pub(super) async fn stop(&mut self) {
        for kind in Kind::STOP_ORDER {
            let deadline = Instant::now() + kind.patience();
            let ours = |process: &&mut Process| process.spec.kind == kind;
            for process in self.processes.iter_mut().filter(ours) {
                process.ask_to_end();
            }
            for process in self.processes.iter_mut().filter(ours) {
                process.wait_or_kill(deadline).await;
            }
        }
    }

    /// Kills all, at once.
    pub(super) async fn kill(&mut self) {
        for process in &mut self.processes {
            process.wait_or_kill(Instant::now()).await;
        }
    }
}

impl Process {
    fn ask_to_end(&self) {
        // `id` is `None` once it has been waited for: its number may be another's by now.
        let pid = self.child.id().and_then(|id| Pid::from_raw(id as i32));
        if let Some(pid) = pid {
            // It fails only for a process that has just ended.
            kill_process(pid, Signal::TERM).ok();
        }
    }

    async fn wait_or_kill(&mut self, deadline: Instant) {
        if timeout_at(deadline, self.child.wait()).await.is_err() {
            // As above; and it waits, so that no zombie is left either.
            self.child.kill().await.ok();
        }
    }
}

fn spawn(spec: &Spec, log: &Path) -> io::Result<Child> {
    let log = File::create(log)?;
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.args)
        .env("NO_COLOR", "1") // the logs are files
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .kill_on_drop(true);
    // A development cluster is what its flags say, whatever cluster the shell is set up for.
    for (name, _) in env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"SLUICE_") {
            command.env_remove(name);
        }
    }
    tether(&mut command);
    command.spawn()
}

impl Spec {
    fn command_line(&self) -> String {
        let program = self.program.display().to_string();
        let words: Vec<String> = std::iter::once(&program)
            .chain(&self.args)
            .map(|word| quote(word))
            .collect();
        words.join(" ")
    }
}

/// A word as a shell reads it.
fn quote(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:,=@%+".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

impl Ended {
    /// Of the end of the log, what tells why it ended: its warnings and errors, else its last line.
    pub(super) fn notable(&self) -> Vec<String> {
        let lines = &self.log_tail;
        let mut notable: Vec<String> = lines.iter().filter(|l| is_warning(l)).cloned().collect();
        if notable.is_empty() {
            notable.extend(lines.last().cloned());
        }
        notable.split_off(notable.len().saturating_sub(NOTABLE_LINES))
    }

    /// What happened, with these lines of the log.
    pub(super) fn describe(&self, log: &[String]) -> String {
        let mut text = format!("{} (pid {}) ended: {}", self.name, self.pid, self.status);
        if !log.is_empty() {
            text.push_str("; its log ends with");
            for line in log {
                text.push_str("\n    ");
                text.push_str(line);
            }
        }
        text
    }

    fn into_error(self) -> Error {
        Error::failed(self.describe(&self.log_tail))
            .hint(format!("to see it alone: {}", self.command_line))
    }
}

/// Whether a line of a log is a warning or worse. Redis has no word for it that it does not use for
/// its greetings too.
fn is_warning(line: &str) -> bool {
    line.split_whitespace()
        .take(2)
        .any(|word| matches!(word, "WARN" | "ERROR"))
}

/// The last lines of a log.
fn tail(log: &Path) -> io::Result<Vec<String>> {
    let mut file = File::open(log)?;
    let start = fs::metadata(log)?.len().saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let last = lines.len().saturating_sub(TAIL_LINES);
    Ok(lines[last..].iter().map(|&line| line.to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, name: &str) -> Spec {
        Spec {
            kind: Kind::Server,
            name: name.to_owned(),
            program: "/bin/sh".into(),
            args: vec!["-c".to_owned(), script.to_owned()],
        }
    }

    #[test]
    fn of_a_log_the_warnings_are_told() {
        use std::os::unix::process::ExitStatusExt;
        fn check(log: &[&str], expected: &[&str]) {
            let ended = Ended {
                kind: Kind::Proxy,
                name: "p1".to_owned(),
                pid: 1,
                status: ExitStatus::from_raw(9),
                log_tail: log.iter().map(|&line| line.to_owned()).collect(),
                command_line: String::new(),
            };
            assert_eq!(ended.notable(), expected);
        }
        check(&[], &[]);
        check(&["t  INFO a", "t  INFO b"], &["t  INFO b"]);
        check(&["t  WARN a", "t  INFO b"], &["t  WARN a"]);
        check(&["1:C # Redis starts", "1:M * ready"], &["1:M * ready"]);
        let many = ["t ERROR"; 7];
        check(&many, &many[..NOTABLE_LINES]);
    }

    fn is_alive(pid: u32) -> bool {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        fn check(word: &str, expected: &str) {
            assert_eq!(quote(word), expected);
        }
        check("--port", "--port");
        check("127.0.0.1:7001", "127.0.0.1:7001");
        check("", "''");
        check("a b", "'a b'");
        check("it's", r"'it'\''s'");
    }

    #[tokio::test]
    async fn an_end_is_told_once_with_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let mut fleet = Fleet::new(folder.path().to_owned());
        fleet
            .start(shell("seq 1 20; echo it broke >&2; exit 3", "s1"))
            .unwrap();
        let error = fleet
            .wait_until("it runs", Duration::from_secs(5), async || {
                anyhow::bail!("not yet")
            })
            .await
            .unwrap_err();
        let Error::Failed { error, .. } = error else {
            panic!("{error:?}");
        };
        let text = error.to_string();
        assert!(text.contains("exit status: 3"), "{text}");
        assert!(text.ends_with("it broke"), "{text}");
        assert_eq!(text.lines().count(), 1 + TAIL_LINES, "{text}");
        assert!(fleet.ended().is_empty());
    }

    #[tokio::test]
    async fn a_wait_ends_at_its_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let mut fleet = Fleet::new(folder.path().to_owned());
        let error = fleet
            .wait_until("it is ready", Duration::from_millis(120), async || {
                std::future::pending().await
            })
            .await
            .unwrap_err();
        let Error::Failed { error, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(format!("{error:#}"), "it is ready within 120ms: no answer");
    }

    #[tokio::test]
    async fn none_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let mut fleet = Fleet::new(folder.path().to_owned());
        let pid = fleet.start(shell("exec sleep 60", "s1")).unwrap();
        assert!(is_alive(pid));
        fleet.stop().await;
        assert!(!is_alive(pid));

        let stubborn = fleet
            .start(shell("trap '' TERM; exec sleep 60", "s2"))
            .unwrap();
        fleet.kill().await;
        assert!(!is_alive(stubborn));
    }
}
