//! The least that any proxy could cost on this machine: reads, counts the requests, writes as many
//! replies. It parses and routes nothing and has no servers, so that what it costs is the kernel's work
//! for the clients alone.

use std::{
    collections::HashMap,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd as _,
};

use clap::Args;
use rustix::event::epoll::{self, EventData, EventFlags};

use crate::scenario::MGET_KEYS;

/// Answers whatever it is asked with values of three bytes. Started by `speed`.
#[derive(Args)]
pub(crate) struct Options {
    /// Where to listen, on 127.0.0.1
    port: u16,
}

/// The same as the scenarios' servers have under each key.
const VALUE: &[u8] = b"$3\r\nxxx\r\n";

pub(crate) fn run(options: &Options) {
    let listener = TcpListener::bind(("127.0.0.1", options.port)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let ready = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let watched = EventData::new_u64(listener.as_raw_fd() as u64);
    epoll::add(&ready, &listener, watched, EventFlags::IN).unwrap();
    let mut clients: HashMap<u64, TcpStream> = HashMap::new();
    let mut events = Vec::with_capacity(1024);
    let mut bytes = vec![0; 64 * 1024];
    let mut written: Vec<(u64, Vec<u8>)> = Vec::new();
    loop {
        events.clear();
        epoll::wait(&ready, rustix::buffer::spare_capacity(&mut events), None).unwrap();
        for event in &events {
            let id = event.data.u64();
            if id == listener.as_raw_fd() as u64 {
                while let Ok((client, _)) = listener.accept() {
                    client.set_nonblocking(true).unwrap();
                    client.set_nodelay(true).unwrap();
                    let id = client.as_raw_fd() as u64;
                    epoll::add(&ready, &client, EventData::new_u64(id), EventFlags::IN).unwrap();
                    clients.insert(id, client);
                }
                continue;
            }
            let mut client = &clients[&id];
            match client.read(&mut bytes) {
                Ok(len) if len > 0 => written.push((id, replies(&bytes[..len]))),
                _ => drop(clients.remove(&id)),
            }
        }
        for (id, replies) in written.drain(..) {
            let mut client = &clients[&id];
            if client.write_all(&replies).is_err() {
                clients.remove(&id);
            }
        }
    }
}

/// As many as the requests in these bytes, by their first bytes.
fn replies(requests: &[u8]) -> Vec<u8> {
    let count = requests.iter().filter(|&&b| b == b'*').count();
    if requests.starts_with(b"*11\r\n$4\r\n") {
        let values = [
            format!("*{MGET_KEYS}\r\n").as_bytes(),
            &VALUE.repeat(MGET_KEYS),
        ]
        .concat();
        return values.repeat(count);
    }
    VALUE.repeat(count)
}
