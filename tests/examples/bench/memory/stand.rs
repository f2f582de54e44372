//! What a scenario is given: two servers and a fresh proxy, to be watched from outside.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use proto::Slot;
use rustix::process::{Pid, Signal, kill_process, setpriority_process};
use socket2::{Domain, Protocol, Socket, Type};
use tempfile::TempDir;
use tests::{Process, free_port};

use crate::{
    peer::{Build, Peer, Server},
    usage::Usage,
};

/// How long the proxy lets a server be silent: short, so that one need not wait for it.
pub(super) const SERVER_TIMEOUT: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct Stand {
    pub(super) servers: [Server; 2],
    /// Where clients connect.
    pub(super) port: u16,
    /// The proxy's `--max-memory`.
    pub(super) limit_mib: u32,
    proxy: Process,
    admin: u16,
    _dir: TempDir,
}

impl Stand {
    pub(super) fn start(build: Option<&Build>, limit_mib: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let servers = [1, 2].map(|index| Server::start(dir.path(), index));
        let ports = [servers[0].port, servers[1].port];
        let limit = format!("{limit_mib}MiB");
        let timeout = format!("{}s", SERVER_TIMEOUT.as_secs());
        let mut args = vec!["--workers", "1", "--max-clients", "20000"];
        args.extend(["--max-memory", &limit, "--server-timeout", &timeout]);
        let own = Build::own("sluice", &args);
        let admin = free_port();
        let peer = Peer::sluice(dir.path(), ports, build.unwrap_or(&own), admin);
        Self {
            servers,
            port: peer.port,
            limit_mib,
            proxy: peer.process.unwrap(),
            admin,
            _dir: dir,
        }
    }

    /// Of the proxy.
    pub(super) fn usage(&self) -> Usage {
        Usage::of(self.proxy.pid())
    }

    /// Ends the proxy at once.
    pub(super) fn kill(&self) {
        let pid = i32::try_from(self.proxy.pid()).ok().and_then(Pid::from_raw);
        kill_process(pid.unwrap(), Signal::KILL).unwrap();
    }

    /// A client's connection to the proxy.
    pub(super) fn connect(&self) -> TcpStream {
        connect(self.port).unwrap()
    }

    /// A client's connection that takes little before it is read from: what waits for it waits at the
    /// proxy, and not in the kernel.
    pub(super) fn connect_narrow(&self) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.set_recv_buffer_size(64 << 10).unwrap();
        let to: std::net::SocketAddr = ([127, 0, 0, 1], self.port).into();
        socket.connect(&to.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// A number among the proxy's metrics, by its name without prefix.
    pub(super) fn metric(&self, name: &str) -> u64 {
        let mut stream = connect(self.admin).unwrap();
        let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let name = format!("sluice_proxy_{name} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.and_then(|value| value.trim().parse().ok())
            .unwrap_or_else(|| panic!("no metric {name}"))
    }
}

/// A connection to a port of this machine.
pub(super) fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A key of its own for each number, whose slot a given server owns: they share the slots evenly, in order.
pub(super) fn key_at(prefix: &str, number: usize, server: usize) -> String {
    let keys = (0..).map(|salt| format!("{prefix}:{number}:{salt}"));
    let owner = |key: &String| usize::from(Slot::of_key(key.as_bytes()).number() >= 512);
    let mut keys = keys.filter(|key| owner(key) == server);
    keys.next().unwrap_or_default()
}

/// A command as its bytes.
pub(super) fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len());
    for word in words {
        bytes.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    bytes.into_bytes()
}

/// Lets this thread run only where nobody else wants to: who makes trouble would run on another machine.
pub(super) fn step_back() {
    setpriority_process(None, 10).unwrap();
}
