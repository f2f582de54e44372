//! Redis's tests: one unit is run against one address, and its printed lines are read.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// The options of each run: those for a server that was started elsewhere and is sharded.
const OPTIONS: &[&str] = &[
    "--singledb",
    "--cluster-mode",
    "--ignore-encoding",
    "--ignore-digest",
    "--durable",
    "--no-latency",
    "--clients",
    "1",
    "--tags",
    "-needs:repl -needs:debug -needs:save -needs:config-maxmemory -needs:config-resetstat -slow",
    "--timeout",
    "90", // seconds without any test ending: then it hangs
];

/// How long a unit may take; the longest takes one minute on a plain server.
const UNIT_DEADLINE: Duration = Duration::from_secs(600);

/// A copy of the tests: a run writes beside them.
pub(crate) struct Suite {
    dir: PathBuf,
    base_port: u16,
}

/// What a unit has printed.
#[derive(Default)]
pub(crate) struct Outcome {
    /// The tests that passed, by name. A name may be there more than once.
    pub(crate) passed: Vec<String>,
    /// Those that failed, and why.
    pub(crate) failed: Vec<(String, String)>,
    /// What ended the unit, or a block of its tests, too soon.
    pub(crate) deaths: Vec<String>,
}

/// The units that there are.
pub(crate) fn all_units(source: &Path) -> Vec<String> {
    let list = Command::new("./runtest")
        .arg("--list-tests")
        .current_dir(source)
        .output();
    let list = String::from_utf8(list.unwrap().stdout).unwrap();
    let units = list.lines().filter(|name| name.starts_with("unit/"));
    units.map(str::to_owned).collect()
}

impl Suite {
    /// Copies the tests. A run of them listens on one of the 32 ports below the base port.
    pub(crate) fn new(source: &Path, name: &str, base_port: u16) -> Self {
        let dir = source.parent().unwrap().join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir).unwrap();
        }
        let copied = Command::new("cp").arg("-r").arg(source).arg(&dir).status();
        assert!(copied.unwrap().success());
        fs::create_dir_all(dir.join("logs")).unwrap();
        Self { dir, base_port }
    }

    /// Where all that a unit printed can be read.
    pub(crate) fn log_of(&self, unit: &str) -> PathBuf {
        let name = unit.replace('/', "-");
        self.dir.join("logs").join(name).with_extension("txt")
    }

    /// Runs a unit to its end, or to its deadline.
    pub(crate) fn run(&self, unit: &str, addr: &str, skips: &[&str]) -> Outcome {
        let (host, port) = addr.rsplit_once(':').unwrap();
        let log = self.log_of(unit);
        let output = File::create(&log).unwrap();
        let mut command = Command::new("./runtest");
        command
            .current_dir(&self.dir)
            .args(["--host", host, "--port", port, "--single", unit])
            .args(["--baseport", &self.base_port.to_string()])
            .args(OPTIONS)
            .env("TERM", "dumb") // no colours
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        for skip in skips {
            command.args(["--skiptest", skip]);
        }
        let status = ended(&mut command);
        let text = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
        let mut outcome = Outcome::read(&text);
        let finished = text.contains("\n                   The End\n");
        if outcome.deaths.is_empty() && (status.is_none() || !finished) {
            outcome.deaths.push("it did not come to its end".to_owned());
        }
        outcome
    }
}

/// Runs a process to its end; None if it had to be killed. The interpreter that it starts ends when it
/// or the server is gone.
fn ended(command: &mut Command) -> Option<ExitStatus> {
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + UNIT_DEADLINE;
    let mut status = None;
    while status.is_none() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
        status = child.try_wait().unwrap();
    }
    if status.is_none() {
        child.kill().unwrap();
    }
    child.wait().unwrap();
    status
}

impl Outcome {
    fn read(text: &str) -> Self {
        let mut outcome = Self::default();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            // At its end it prints all failures again, with stars before them.
            if let Some(rest) = line.strip_prefix("[ok]: ") {
                let name = rest.rsplit_once(" (").unwrap().0;
                outcome.passed.push(name.trim().to_owned());
            } else if let Some(rest) = line.strip_prefix("[err]: ") {
                // A failure inside a test names it; one between tests does not, and ends the block of
                // tests it is in.
                match rest.rsplit_once(" in tests/") {
                    Some((name, _)) => {
                        let cut = lines.next().unwrap_or_default();
                        let why = whole(cut, lines.peek()).to_owned();
                        outcome.failed.push((name.trim().to_owned(), why));
                    }
                    None => outcome.deaths.push(whole(rest, lines.peek()).to_owned()),
                }
            } else if let Some(rest) = line.strip_prefix("[exception]: ") {
                outcome.deaths.push(rest.to_owned());
            } else if let Some((_, name)) = line.split_once(" => (IN PROGRESS) ") {
                outcome.deaths.push(format!("it hangs in: {name}"));
            }
        }
        outcome
    }
}

/// The first line of an error. It is printed twice, the first time without its first ten characters.
fn whole<'a>(cut: &'a str, next: Option<&&'a str>) -> &'a str {
    match next {
        Some(next) if next.ends_with(cut) => next,
        _ => cut,
    }
}
