//! What a request costs before it leaves: instructions, counted by valgrind, and compared with
//! `hotpath.txt` beside this file.
//!
//! `make hotpath` (or `make hotpath ARGS=--update`). Time on a shared machine varies by half;
//! instructions do not vary, so that a cost that creeps in shows at once. Counted is what the pure
//! part of a worker does: where a request ends, what it is, where it goes, and the copy of its bytes
//! into the output of a pipe; and of a reply, where it ends, and the copy into that of a session.
//! System calls and the runtime are what `make bench` is for.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a benchmark fails by panicking

use std::{
    collections::BTreeMap, env, fmt::Write as _, fs, hint::black_box, path::Path, process::Command,
    process::ExitCode,
};

use dataplane::{
    command,
    resp::{Arg, Limits, Progress, ReplyProgress, Request, Scanned, put_bulk, put_header},
    route::{Route, route},
};
use proto::{ClusterId, Group, GroupId, ServerAddr, Slot, SlotState, Topology, Version};

/// How often a case is run in one measurement: what is done once does not count.
const ROUNDS: usize = 2_000;
/// By how much a figure may differ, in percent.
const TOLERANCE: f64 = 3.0;

/// A case: its name, what is read at once, and how many requests or replies that is.
struct Case {
    name: &'static str,
    input: Vec<u8>,
    count: usize,
    run: fn(&[u8], &mut Worker),
}

fn cases() -> Vec<Case> {
    let case = |name, requests: &[Vec<u8>]| Case {
        name,
        input: requests.concat(),
        count: requests.len(),
        run: requests_in,
    };
    let get = |n: usize| request(&[b"GET", key(n).as_bytes()]);
    let set = |n, value: &[u8]| request(&[b"SET", key(n).as_bytes(), value]);
    let mget: Vec<String> = (0..10).map(key).collect();
    let mget: Vec<&[u8]> = [&b"MGET"[..]]
        .into_iter()
        .chain(mget.iter().map(String::as_bytes))
        .collect();
    let mut reply = Vec::new();
    put_bulk(&mut reply, b"xxx");
    vec![
        case("get", &[get(1)]),
        case("set", &[set(1, b"xxx")]),
        case("set_1k", &[set(1, &[b'x'; 1024])]),
        case("mget_10", &[request(&mget)]),
        case("get_x16", &(0..16).map(get).collect::<Vec<_>>()),
        Case {
            name: "reply_x16",
            input: reply.repeat(16),
            count: 16,
            run: replies_in,
        },
    ]
}

/// Of sixteen bytes, as those of `redis-benchmark`.
fn key(n: usize) -> String {
    format!("key:{n:012}")
}

fn request(args: &[&[u8]]) -> Vec<u8> {
    let mut raw = Vec::new();
    put_header(&mut raw, b'*', args.len());
    args.iter().for_each(|arg| put_bulk(&mut raw, arg));
    raw
}

/// What a worker keeps from one request to the next.
struct Worker {
    topology: Topology,
    args: Vec<Arg>,
    /// Of a request that is split: groups with the number of their keys, and whose each key is.
    parts: Vec<(u16, usize)>,
    part_of_key: Vec<u16>,
    /// One a group.
    pipes: [Vec<u8>; 2],
    session: Vec<u8>,
}

impl Worker {
    fn new() -> Self {
        let id = |n: usize| GroupId::new(format!("g{n}")).unwrap();
        let groups = (0..2).map(|n| Group {
            id: id(n),
            primary: ServerAddr::new(format!("127.0.0.1:{}", n + 1)).unwrap(),
            replicas: Vec::new(),
        });
        let version = Version {
            leader_term: 1,
            epoch: 1,
        };
        let owner = |slot: Slot| Some(id(slot.index() % 2));
        let topology = Topology::new(ClusterId::new("c").unwrap(), version, groups, |slot| {
            (owner(slot), SlotState::Serving)
        });
        Self {
            topology: topology.unwrap(),
            args: Vec::new(),
            parts: Vec::new(),
            part_of_key: Vec::new(),
            pipes: Default::default(),
            session: Vec::new(),
        }
    }
}

const LIMITS: Limits = Limits {
    args: 1024 * 1024,
    arg_bytes: 512 << 20,
    request_bytes: 1 << 30,
};

/// What a session does with what it has read.
fn requests_in(mut input: &[u8], worker: &mut Worker) {
    let mut args = std::mem::take(&mut worker.args);
    loop {
        let mut progress = Progress::default();
        let scanned = progress.scan(input, &mut args, &LIMITS, true);
        let Ok(Scanned::Request(len)) = scanned else {
            assert_eq!(scanned, Ok(Scanned::Incomplete));
            break;
        };
        let request = Request::new(&input[..len], &args);
        let command = command::find(&request).unwrap();
        assert!(command.accepts(request.argc()));
        match route(command, &request, &worker.topology) {
            Route::Forward(group) => {
                worker.pipes[usize::from(group)].extend_from_slice(request.raw());
            }
            Route::Split(_) => split(command, &request, worker),
            other @ (Route::Local(_)
            | Route::Block(..)
            | Route::Elements(_)
            | Route::Replicas
            | Route::Crew(_)
            | Route::PubSub(_)
            | Route::Tracking
            | Route::Everywhere(_)
            | Route::Across(_)
            | Route::Transaction(_)
            | Route::Hold
            | Route::Reject(_)) => {
                panic!("{other:?}")
            }
        }
        args.clear();
        input = &input[len..];
    }
    worker.pipes.iter_mut().for_each(Vec::clear);
    worker.args = args;
}

/// One request a group, for its keys.
fn split(command: &command::Command, request: &Request<'_>, worker: &mut Worker) {
    let Worker {
        topology,
        parts,
        part_of_key,
        pipes,
        ..
    } = worker;
    parts.clear();
    part_of_key.clear();
    command.visit_keys(request, |index| {
        let group = topology.route(Slot::of_key(request.arg(index))).group;
        let group = group.unwrap();
        let known = parts.iter().position(|part| part.0 == group);
        let part = known.unwrap_or_else(|| {
            parts.push((group, 0));
            parts.len() - 1
        });
        parts[part].1 += 1;
        part_of_key.push(part as u16);
    });
    for &(group, keys) in parts.iter() {
        let pipe = &mut pipes[usize::from(group)];
        put_header(pipe, b'*', 1 + keys);
        put_bulk(pipe, request.arg(0));
    }
    for (key, &part) in part_of_key.iter().enumerate() {
        let (group, _) = parts[usize::from(part)];
        let frames = request.frames(1 + key, 2 + key);
        pipes[usize::from(group)].extend_from_slice(frames);
    }
}

/// What a pipe does with what it has read.
fn replies_in(mut input: &[u8], worker: &mut Worker) {
    let mut progress = ReplyProgress::default();
    while let Some(len) = progress.scan(input).unwrap() {
        worker.session.extend_from_slice(&input[..len]);
        input = &input[len..];
    }
    assert!(input.is_empty());
    worker.session.clear();
}

/// What valgrind counts: nothing but what is called from here.
#[inline(never)]
fn counted(case: &Case, worker: &mut Worker) {
    for _ in 0..ROUNDS {
        (case.run)(black_box(&case.input), black_box(worker));
    }
}

fn main() -> ExitCode {
    match env::args().nth(1).as_deref() {
        None => compare(),
        Some("--update") => {
            fs::write(figures_path(), table(&measure())).unwrap();
            ExitCode::SUCCESS
        }
        Some(name) => {
            let cases = cases();
            let case = cases.iter().find(|case| case.name == name);
            counted(case.expect("a case"), &mut Worker::new());
            ExitCode::SUCCESS
        }
    }
}

type Figures = BTreeMap<String, f64>;

fn compare() -> ExitCode {
    let recorded: Figures = fs::read_to_string(figures_path())
        .unwrap()
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(' '))
        .map(|(name, figure)| (name.to_owned(), figure.trim().parse().unwrap()))
        .collect();
    let counted = measure();
    print!("{}", table(&counted));
    if !cfg!(target_arch = "x86_64") {
        println!("Not compared: what is recorded is of x86-64");
        return ExitCode::SUCCESS;
    }
    let mut differs = recorded.len() != counted.len();
    for (name, counted) in &counted {
        let Some(recorded) = recorded.get(name) else {
            println!("{name}: not recorded");
            differs = true;
            continue;
        };
        let percent = (counted / recorded - 1.0) * 100.0;
        if percent.abs() > TOLERANCE {
            let word = if percent > 0.0 { "dearer" } else { "cheaper" };
            println!(
                "{name}: {word} by {:.1} %, was {recorded:.1}",
                percent.abs()
            );
            differs = true;
        }
    }
    if differs {
        println!(
            "Hint: if that is meant to be, `make hotpath ARGS=--update`; say why in the commit"
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Instructions for each request or reply, by case.
fn measure() -> Figures {
    let count = |case: &Case| {
        let run = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg("--toggle-collect=*hotpath*counted*")
            .arg(env::current_exe().unwrap())
            .arg(case.name)
            .env_clear()
            // Which copy libc uses depends on the processor otherwise.
            .env(
                "GLIBC_TUNABLES",
                "glibc.cpu.hwcaps=-AVX2,-AVX_Fast_Unaligned_Load",
            )
            .output()
            .expect("valgrind is installed (`make deps`)");
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{said}");
        let total = said.split("Collected : ").nth(1).unwrap();
        let total: f64 = total.lines().next().unwrap().trim().parse().unwrap();
        assert!(total > 0.0, "{said}");
        total / (ROUNDS * case.count) as f64
    };
    cases()
        .iter()
        .map(|case| (case.name.to_owned(), count(case)))
        .collect()
}

fn table(figures: &Figures) -> String {
    let mut text = String::from(
        "# Instructions for each request or reply; see hotpath.rs. Of the profile `quick`, on x86-64.\n",
    );
    for (name, figure) in figures {
        writeln!(text, "{name:10} {figure:.1}").unwrap();
    }
    text
}

fn figures_path() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/hotpath.txt")
}
