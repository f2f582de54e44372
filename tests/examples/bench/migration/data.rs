//! What is moved: the same on both sides.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
};

use super::client::write_command;

/// Keys, and the size of their values.
pub(super) const KEYS: u32 = 200_000;
pub(super) const VALUE_BYTES: usize = 100;
/// Members of the big zset.
pub(super) const MEMBERS: u32 = 500_000;
/// Bytes of the big string.
pub(super) const STRING_BYTES: usize = 64 << 20;

/// How many commands are sent before their replies are read.
const PIPELINE: usize = 500;

/// The key of a number.
pub(super) fn key(number: u32) -> String {
    format!("key:{number}")
}

/// The member of a number, of a big zset.
pub(super) fn member(number: u32) -> String {
    format!("member:{number}")
}

/// The first key with this name that is one of those that move.
pub(super) fn moving(name: &str, moves: impl Fn(&str) -> bool) -> String {
    let mut keys = (0..).map(|salt| format!("{name}:{salt}"));
    keys.find(|key| moves(key)).unwrap_or_default()
}

/// Gives a server those keys that are its.
pub(super) fn load_keys(port: u16, is_its: impl Fn(&str) -> bool) {
    let value = vec![b'v'; VALUE_BYTES];
    let keys = (0..KEYS).map(key).filter(|key| is_its(key));
    let commands = keys.map(|key| vec![b"SET".to_vec(), key.into_bytes(), value.clone()]);
    send(port, commands);
}

/// Gives a server a zset of so many members.
pub(super) fn load_zset(port: u16, key: &str, members: u32) {
    const TOGETHER: u32 = 100;
    let commands = (0..members / TOGETHER).map(|chunk| {
        let mut words = vec![b"ZADD".to_vec(), key.as_bytes().to_vec()];
        for number in chunk * TOGETHER..(chunk + 1) * TOGETHER {
            words.push(number.to_string().into_bytes());
            words.push(member(number).into_bytes());
        }
        words
    });
    send(port, commands);
}

/// Gives a server the big string: of bytes that no compression makes less.
pub(super) fn load_string(port: u16, key: &str) {
    let mut bytes = vec![0; STRING_BYTES];
    fastrand::Rng::with_seed(1).fill(&mut bytes);
    let command = vec![b"SET".to_vec(), key.as_bytes().to_vec(), bytes];
    send(port, [command].into_iter());
}

/// How many keys a server has.
pub(super) fn count(port: u16) -> u64 {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"DBSIZE\r\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.trim().trim_start_matches(':').parse().unwrap()
}

fn send(port: u16, mut commands: impl Iterator<Item = Vec<Vec<u8>>>) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut replies = BufReader::new(stream.try_clone().unwrap()).lines();
    loop {
        let mut bytes = Vec::new();
        let mut sent = 0;
        for command in commands.by_ref().take(PIPELINE) {
            let words: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
            write_command(&mut bytes, &words);
            sent += 1;
        }
        if sent == 0 {
            return;
        }
        stream.write_all(&bytes).unwrap();
        for _ in 0..sent {
            let reply = replies.next().unwrap().unwrap();
            assert!(!reply.starts_with('-'), "{reply}");
        }
    }
}
