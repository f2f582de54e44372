//! Who else uses this machine: processes that were there before the benchmark was. (Threads of the kernel are
//! not counted: they may work for the benchmark.)
//!
//! On a machine of two processors, somebody who takes one of them for some milliseconds each second decides
//! what the slowest hundredth of the requests waits for. A kernel counts how long each task has run; those
//! that have run in the last second are looked at again and again.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How often those that were busy lately are looked at.
const LOOK: Duration = Duration::from_millis(2);
/// How often all are, to see who is busy.
const SEEK: Duration = Duration::from_secs(1);
/// Who has run for such a part of the time between two looks, a quarter, has disturbed others.
const PART: u32 = 4;

/// Looks at them, on a thread of its own.
pub(super) struct Watch {
    done: Arc<AtomicBool>,
    thread: JoinHandle<Strangers>,
}

/// When somebody else had a processor, and who.
pub(super) struct Strangers {
    /// With as long again after each, for what has queued up: in order, and apart from each other.
    spans: Vec<(Instant, Instant)>,
    /// Who they are.
    pub(super) names: BTreeSet<String>,
}

/// A task, and how long it had run when it was looked at last.
struct Task {
    file: File,
    path: PathBuf,
    ran: Duration,
}

impl Watch {
    pub(super) fn start() -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let seen = done.clone();
        let thread = thread::spawn(move || watch(&seen));
        Self { done, thread }
    }

    pub(super) fn end(self) -> Strangers {
        self.done.store(true, Relaxed);
        self.thread.join().unwrap()
    }
}

fn watch(done: &AtomicBool) -> Strangers {
    let (mut spans, mut names) = (Vec::new(), BTreeSet::new());
    let mut all = tasks();
    let mut last = Instant::now();
    while !done.load(Relaxed) {
        let mut busy: Vec<&mut Task> = all.iter_mut().filter_map(Task::has_run).collect();
        let sought = Instant::now();
        while sought.elapsed() < SEEK && !done.load(Relaxed) {
            thread::sleep(LOOK);
            let now = Instant::now();
            let looked = busy.iter_mut();
            let is_long = |ran: Duration| ran * PART >= now - last;
            let long = looked.filter_map(|task| is_long(task.look()).then(|| task.name()));
            let long: Vec<String> = long.collect();
            if !long.is_empty() {
                spans.push((last, now));
                names.extend(long);
            }
            last = now;
        }
    }
    let twice = merged(spans).map(|(from, to)| (from, to + (to - from)));
    Strangers {
        spans: merged(twice).collect(),
        names,
    }
}

/// Spans in order, as few as can be.
fn merged(
    spans: impl IntoIterator<Item = (Instant, Instant)>,
) -> impl Iterator<Item = (Instant, Instant)> {
    let mut merged: Vec<(Instant, Instant)> = Vec::new();
    for (from, to) in spans {
        match merged.last_mut() {
            Some((_, end)) if from <= *end => *end = to.max(*end),
            _ => merged.push((from, to)),
        }
    }
    merged.into_iter()
}

/// All that began before this process did.
fn tasks() -> Vec<Task> {
    let numbers = |path: &Path| {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.parse::<u32>().is_ok())
    };
    let own = begun(Path::new("/proc/self")).expect("Linux tells");
    let processes = numbers(Path::new("/proc")).map(|number| Path::new("/proc").join(number));
    let strangers = processes.filter(|path| {
        let is_of_kernel = fs::read(path.join("cmdline")).is_ok_and(|words| words.is_empty());
        !is_of_kernel && begun(path).is_some_and(|begun| begun < own)
    });
    let tasks = strangers.flat_map(|process| {
        let path = process.join("task");
        numbers(&path).map(move |task| path.join(task))
    });
    tasks.filter_map(|path| Task::open(path).ok()).collect()
}

/// When a process began, in ticks since the machine did.
fn begun(process: &Path) -> Option<u64> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    // PID (NAME) STATE ...: a name may be anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19)?.parse().ok()
}

impl Task {
    fn open(path: PathBuf) -> std::io::Result<Self> {
        let file = File::open(path.join("schedstat"))?;
        let mut task = Self {
            file,
            path,
            ran: Duration::ZERO,
        };
        task.look();
        Ok(task)
    }

    /// How long it has run since the last look; one that is gone does not any more.
    fn look(&mut self) -> Duration {
        let mut text = [0; 64];
        let length = self.file.read_at(&mut text, 0).unwrap_or(0);
        let text = str::from_utf8(&text[..length]).unwrap_or_default();
        let nanos = text.split(' ').next().and_then(|word| word.parse().ok());
        let ran = nanos.map_or(self.ran, Duration::from_nanos);
        ran.saturating_sub(std::mem::replace(&mut self.ran, ran))
    }

    fn has_run(&mut self) -> Option<&mut Self> {
        (!self.look().is_zero()).then_some(self)
    }

    fn name(&self) -> String {
        let name = fs::read_to_string(self.path.join("comm")).unwrap_or_default();
        name.trim().to_owned()
    }
}

impl Strangers {
    /// Whether what was due then may have waited for them.
    pub(super) fn disturbed(&self, due: Instant) -> bool {
        let next = self.spans.partition_point(|(_, end)| *end < due);
        self.spans.get(next).is_some_and(|(begun, _)| *begun <= due)
    }
}
