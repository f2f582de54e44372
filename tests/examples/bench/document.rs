//! `BENCHMARKS.md`: one section a subcommand, each replaced by its own and nobody else's run.

use std::{env, fs, io, path::PathBuf};

const TOP: &str = "# Benchmarks

Written by `make bench`, `make bench-memory` and `make bench-migration`, a section each. A figure of one
machine says little about another: compare within a table, and run them on yours.
";

/// Puts a section in place of the one with the same title, or behind the others.
pub(crate) fn replace(title: &str, body: &str) {
    let path = path();
    let old = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        Err(e) => panic!("{}: {e}", path.display()),
    };
    fs::write(&path, replaced(&old, title, body)).unwrap();
    eprintln!("written: BENCHMARKS.md, section {title}");
}

fn replaced(old: &str, title: &str, body: &str) -> String {
    let mut sections: Vec<(String, String)> = old
        .split("\n## ")
        .skip(1)
        .filter_map(|section| section.split_once('\n'))
        .map(|(title, body)| (title.to_owned(), body.trim().to_owned()))
        .collect();
    let new = body.trim().to_owned();
    match sections.iter_mut().find(|(known, _)| known == title) {
        Some((_, body)) => *body = new,
        None => sections.push((title.to_owned(), new)),
    }
    let sections = sections
        .iter()
        .map(|(title, body)| format!("\n## {title}\n\n{body}\n"));
    format!("{TOP}{}", sections.collect::<String>())
}

fn path() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../BENCHMARKS.md"))
}

/// How this run was started, as one would do it again.
pub(crate) fn command(target: &str, leave_out: &str) -> String {
    let mut args = env::args().skip(2).peekable();
    let mut kept = Vec::new();
    while let Some(arg) = args.next() {
        if arg == leave_out {
            args.next();
        } else {
            kept.push(arg);
        }
    }
    if kept.is_empty() {
        format!("make {target}")
    } else {
        format!("make {target} ARGS=\"{}\"", kept.join(" "))
    }
}
