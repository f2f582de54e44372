//! `sluice dev`: a cluster in one command, and nothing left of it.

use std::{
    collections::BTreeSet,
    fs,
    process::Command,
    time::{Duration, Instant},
};

use tests::{Process, Raw, binary, eventually};

/// Ports for a `sluice dev` of the test's own: the defaults may be taken on this machine.
fn ports() -> Vec<String> {
    // A run of free ports below those that the system gives to connections: among these, on a machine with
    // thousands of them, there may be none.
    let firsts = std::iter::repeat_with(|| fastrand::u16(10_000..32_000)).take(10_000);
    let mut firsts = firsts.filter(|&first| (first..first + 200).all(is_free));
    let first = firsts.next().expect("200 ports in a row are free");
    [
        ("--port", 0),
        ("--controller-port", 120),
        ("--redis-port", 150),
    ]
    .iter()
    .flat_map(|(flag, offset)| [(*flag).to_owned(), (first + offset).to_string()])
    .collect()
}

fn is_free(port: u16) -> bool {
    std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// The processes of a cluster: their arguments or folders are in its data folder (a `redis-server`
/// rewrites its arguments), or they know its controller.
fn processes(data: &str, ports: &[String]) -> BTreeSet<u32> {
    let controller = format!("127.0.0.1:{}", ports[3]);
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let cmdline = String::from_utf8_lossy(&cmdline);
        let folder = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        if cmdline.contains(data) || cmdline.contains(&controller) || folder.starts_with(data) {
            found.insert(pid);
        }
    }
    found
}

fn start(dir: &std::path::Path, ports: &[String], data: &str, more: &[&str]) -> Process {
    let args = ["dev", "--data-dir", data].map(str::to_owned);
    let args = args.into_iter().chain(ports.iter().cloned());
    let args = args.chain(more.iter().map(|&arg| arg.to_owned()));
    Process::start(dir, "dev", binary("sluice"), args, &[])
}

#[tokio::test]
async fn it_ends_by_itself_and_leaves_no_process() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data").to_string_lossy().into_owned();
    let ports = ports();
    let mut dev = start(
        dir.path(),
        &ports,
        &data,
        &["--for", "6s", "--replicas", "1"],
    );
    let proxy = format!("127.0.0.1:{}", ports[1]);
    eventually(|| async {
        match tokio::net::TcpStream::connect(&proxy).await {
            Ok(_) if dev.log().contains("redis-cli -p") => Ok(()),
            Ok(_) => Err("not announced yet".to_owned()),
            Err(e) => Err(e.to_string()),
        }
    })
    .await;
    let mut client = Raw::connect(&proxy).await;
    assert_eq!(client.command("SET a 1").await, "+OK");
    assert_eq!(client.command("GET a").await, "$1 1");
    let status = dev.wait(Duration::from_secs(40));
    assert!(status.success(), "{status}\n{}", dev.log());
    assert_eq!(processes(&data, &ports), BTreeSet::new());
}

#[tokio::test]
async fn killed_in_any_way_it_takes_its_children_along() {
    for kill in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data").to_string_lossy().into_owned();
        let ports = ports();
        let mut dev = start(
            dir.path(),
            &ports,
            &data,
            &["--groups", "1", "--proxies", "1"],
        );
        eventually(|| async {
            if dev.log().contains("redis-cli -p") {
                Ok(())
            } else {
                Err(dev.log())
            }
        })
        .await;
        assert!(
            processes(&data, &ports).len() >= 4,
            "{:?}",
            processes(&data, &ports)
        );
        if kill {
            dev.kill();
        } else {
            dev.terminate();
            dev.wait(Duration::from_secs(20));
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while !processes(&data, &ports).is_empty() {
            assert!(
                Instant::now() < deadline,
                "left behind: {:?}",
                processes(&data, &ports)
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn a_taken_port_is_named_before_anything_is_started() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = Command::new(binary("sluice"))
        .args(["dev", "--for", "5s", "--port", &port])
        .current_dir(dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&port) && text.contains("--port"), "{text}");
}
