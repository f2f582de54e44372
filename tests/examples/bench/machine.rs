//! Where and of what a figure was measured: without that it says nothing.

use std::{fs, path::Path, process::Command, thread};

/// The commit measured, marked if files of it were changed.
pub(crate) fn commit() -> String {
    let here = ["-C", env!("CARGO_MANIFEST_DIR")];
    let git = |args: &[&str]| said("git", &[&here, args].concat()).unwrap_or_default();
    let commit = git(&["rev-parse", "--short=12", "HEAD"]);
    // The file this benchmark writes itself does not count.
    match git(&["status", "--porcelain", "--", ":/", ":!/BENCHMARKS.md"]).as_str() {
        "" => commit,
        _ => format!("{commit} with uncommitted changes"),
    }
}

/// Processor, cores, memory, kernel.
pub(crate) fn machine() -> String {
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
            .unwrap_or_default()
    };
    let memory = field("/proc/meminfo", "MemTotal");
    let kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
    let virtual_machine = match field("/proc/cpuinfo", "flags").contains("hypervisor") {
        true => ", a virtual machine",
        false => "",
    };
    format!(
        "{} ({}), {} cores{virtual_machine}, {} GiB, Linux {}",
        field("/proc/cpuinfo", "model name"),
        std::env::consts::ARCH,
        thread::available_parallelism().map_or(0, usize::from),
        kib >> 20,
        said("uname", &["-r"]).unwrap_or_default(),
    )
}

/// The programs that take part, each with its version.
pub(crate) fn versions(twemproxy: &str, envoy: Option<&Path>) -> String {
    let mut programs = vec![
        format!("redis-server {}", version("redis-server")),
        format!("redis-benchmark {}", version("redis-benchmark")),
        format!("twemproxy {}", version(twemproxy)),
    ];
    if let Some(envoy) = envoy.and_then(Path::to_str) {
        programs.push(format!("Envoy {}", version(envoy)));
    }
    programs.push(said("rustc", &["--version"]).unwrap_or_default());
    programs.join(", ")
}

/// The same where only servers take part, and what comes with them.
pub(crate) fn servers() -> String {
    format!(
        "redis-server {}, redis-cli {}, {}",
        version("redis-server"),
        version("redis-cli"),
        said("rustc", &["--version"]).unwrap_or_default()
    )
}

/// The first thing that looks like a version in what a program says of its own.
fn version(program: &str) -> String {
    let text = said(program, &["--version"]).unwrap_or_default();
    let mut words = text.split(|c: char| c.is_whitespace() || c == '=' || c == '/' || c == '-');
    let version =
        words.find(|word| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit()));
    version.unwrap_or("?").to_owned()
}

/// What a program prints, on either output.
fn said(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let both = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&both).trim().to_owned())
}
