//! Whose a connection is: the process that has its other end, as Linux tells it.

use std::{collections::HashMap, fs, path::PathBuf};

use memchr::memmem;

use super::Who;

/// How often it is looked whose a connection is.
const LOOKS: usize = 5;

/// Whose the connections from these ports to this one are.
pub(super) fn processes_of(ports: &[u16], to: u16) -> HashMap<u16, Who> {
    let mut found = HashMap::new();
    // What is read is not of one moment: something that is there may be missing from it.
    for _ in 0..LOOKS {
        let missing = ports.iter().filter(|port| !found.contains_key(*port));
        let missing: Vec<u16> = missing.copied().collect();
        if missing.is_empty() {
            break;
        }
        look(&missing, to, &mut found);
    }
    let all = ports.iter().map(|port| (*port, Who::Another));
    all.chain(found).collect()
}

fn look(ports: &[u16], to: u16, found: &mut HashMap<u16, Who>) {
    // The table is long where many connections have just been closed.
    let table = fs::read("/proc/net/tcp").unwrap_or_default();
    let inode = |port: &u16| {
        let ends = format!(": 0100007F:{port:04X} 0100007F:{to:04X} ");
        let at = memmem::find(&table, ends.as_bytes())?;
        let line = String::from_utf8_lossy(&table[at..(at + 120).min(table.len())]);
        let socket = format!("socket:[{}]", line.split_whitespace().nth(9)?);
        Some((PathBuf::from(socket), *port))
    };
    let inodes: HashMap<PathBuf, u16> = ports.iter().filter_map(inode).collect();
    let entries = fs::read_dir("/proc").into_iter().flatten();
    let pids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let own = std::process::id();
    for pid in pids.filter(|&pid| pid == own || is_child(pid)) {
        let open = fs::read_dir(format!("/proc/{pid}/fd"));
        let links = open.into_iter().flatten();
        let links = links.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        for port in links.filter_map(|link| inodes.get(&link)) {
            let who = if pid == own {
                Who::Another
            } else {
                Who::Process(pid)
            };
            found.insert(*port, who);
        }
    }
}

fn is_child(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the name, which may have anything in it: the state, then the parent.
    let parent = stat.rsplit(") ").next().and_then(|s| s.split(' ').nth(1));
    parent == Some(std::process::id().to_string().as_str())
}
