//! A child process that does not outlive its test, and whose log is shown if the test fails.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    io::{self, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use proto::seeded::Bug;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

/// See the module.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program; both its outputs go to `<dir>/<name>.log`.
    pub fn start(
        dir: &Path,
        name: &str,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
        env: &[(&str, &str)],
    ) -> Self {
        let log = dir.join(format!("{name}.log"));
        let file = fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let program = program.as_ref();
        let child = Command::new(program)
            .args(args)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|e| {
                panic!("start {program:?}: {e} (make deps installs what is missing)")
            });
        Self {
            name: name.to_owned(),
            child,
            log,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Bytes of memory that are resident now.
    pub fn rss(&self) -> usize {
        self.memory("VmRSS:")
    }

    /// The most bytes of memory that were ever resident.
    pub fn peak_rss(&self) -> usize {
        self.memory("VmHWM:")
    }

    fn memory(&self, name: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let kib = |line: &str| {
            line.strip_prefix(name)?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        };
        let kib: usize = status.lines().find_map(kib).unwrap();
        kib * 1024
    }

    /// All it has printed.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    /// How many descriptors it may have from now on; those above stay open.
    pub fn limit_descriptors(&self, most: u64) {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(1024),
        };
        prlimit(Some(Pid::from_child(&self.child)), Resource::Nofile, limit).unwrap();
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// SIGSTOP: it hangs from now on, and its sockets stay open.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Whether it has neither ended nor been stopped.
    pub fn is_running(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // Its name, in brackets, may have anything in it.
        let (_, rest) = stat.rsplit_once(") ").unwrap();
        !rest.starts_with(['T', 'Z'])
    }

    /// Waits for its end; panics if that does not come.
    pub fn wait(&mut self, most: Duration) -> ExitStatus {
        let deadline = Instant::now() + most;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "{} did not end within {most:?}",
                self.name
            );
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(40)..].join("\n");
            eprintln!("--- {} ---\n{tail}", self.name);
        }
    }
}

/// One of our own programs, and what its environment tells it.
#[derive(Clone)]
pub struct Program {
    path: PathBuf,
    env: Vec<(&'static str, String)>,
}

impl Program {
    /// As users have it.
    pub fn ours(name: &str) -> Self {
        Self {
            path: binary(name),
            env: Vec::new(),
        }
    }

    /// As `make rigged` has built it, with a bug.
    pub fn seeded(name: &str, bug: Bug) -> Self {
        Self {
            path: binary(&format!("{name}-rigged")),
            env: vec![("SLUICE_SEEDED_BUG", bug.name().to_owned())],
        }
    }

    /// A controller that is stopped or killed at a step, as `make rigged` has built it.
    pub fn with_failpoints(failpoints: &str) -> Self {
        Self {
            path: binary("sluice-controller-rigged"),
            env: vec![("FAILPOINTS", failpoints.to_owned())],
        }
    }

    /// The same, with these variables in its environment, too.
    pub fn with_env(mut self, env: &[(&'static str, &str)]) -> Self {
        let env = env.iter().map(|(key, value)| (*key, (*value).to_owned()));
        self.env.extend(env);
        self
    }

    /// Starts it.
    pub fn start(
        &self,
        dir: &Path,
        name: &str,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Process {
        let env = self.env.iter().map(|(key, value)| (*key, value.as_str()));
        let env: Vec<(&str, &str)> = env.collect();
        Process::start(dir, name, &self.path, args, &env)
    }
}

/// One of our own programs, as cargo built it beside this test.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(
        path.exists(),
        "{} is missing: run `make test`, which builds it",
        path.display()
    );
    path
}

/// A server that `make servers` has fetched: `redis-8.2`. None where there is none for this kind of
/// machine, which is said.
pub fn other_server(name: &str) -> Option<PathBuf> {
    let proxy = binary("sluice-proxy");
    let target = proxy.parent().and_then(Path::parent).unwrap();
    let path = target.join("wheels").join(name);
    if path.exists() {
        return Some(path);
    }
    let why = fs::read_to_string(path.with_added_extension("unavailable"))
        .unwrap_or_else(|_| panic!("{} is missing: run `make servers`", path.display()));
    // Not `eprintln`, which is not seen when a test passes.
    let text = format!("SKIPPED {why}");
    io::stderr().write_all(text.as_bytes()).unwrap();
    None
}

/// A port that was free a moment ago. Each is given once: the kernel would give one again before the program that
/// it was for listens there, and two tests, or two servers of one, would share what comes first.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
        if given.insert(port) {
            return port;
        }
    }
}
