//! What fuzzers have found, and what is known to hurt others, hurts nobody here.

use std::{fs, panic, path::Path};

use dataplane::resp::{put_bulk, put_header};
use tests::{
    Cluster,
    fuzz::{TARGETS, command_for},
};

#[test]
fn every_input_is_harmless() {
    for (target, body) in TARGETS {
        for (path, bytes) in inputs(target) {
            assert!(
                panic::catch_unwind(|| body(&bytes)).is_ok(),
                "target {target}, input {path}"
            );
        }
    }
}

/// A key that is not seen is a request at the wrong server.
#[tokio::test]
async fn no_key_is_missed_that_redis_finds() {
    let cluster = Cluster::builder().groups(1).proxies(1).start().await;
    let mut proxy = cluster.proxies[0].raw().await;
    let mut plain = tests::Raw::connect(&cluster.groups[0][0].addr).await;
    let mut compared = 0;
    for (path, bytes) in inputs("keys") {
        let mut words: Vec<&[u8]> = bytes.split(|&b| b == b'\n').collect();
        let (command, subcommand) = command_for(&words).words();
        words[0] = command.as_bytes();
        if let (Some(subcommand), Some(word)) = (subcommand, words.get_mut(1)) {
            *word = subcommand.as_bytes();
        }
        let ask = request(&[&[b"COMMAND".as_slice(), b"GETKEYS"], &words[..]].concat());
        proxy.send(&ask).await;
        plain.send(&ask).await;
        let (found, of_redis) = (proxy.reply().await, plain.reply().await);
        if of_redis.starts_with("-") || of_redis == "*0" {
            continue;
        }
        compared += 1;
        let found: Vec<&str> = found.split(" $").collect();
        let mut of_redis_only = of_redis.split(" $").skip(1);
        let is_missed = of_redis_only.any(|key| !found.contains(&key));
        // `COMMAND GETKEYS` reads some requests less strictly than those who execute them.
        if is_missed {
            plain.send(&request(&words)).await;
            let reply = plain.reply().await;
            assert!(reply.starts_with('-'), "{path}: {of_redis}, {reply}");
        }
    }
    assert!(compared > 50, "only {compared}");
}

/// Of a target: each input with its path.
fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let files = fs::read_dir(corpus.join(target)).unwrap();
    let inputs: Vec<_> = files
        .map(|file| {
            let path = file.unwrap().path();
            (path.display().to_string(), fs::read(path).unwrap())
        })
        .collect();
    assert!(!inputs.is_empty(), "no input for {target}");
    inputs
}

fn request(words: &[&[u8]]) -> Vec<u8> {
    let mut raw = Vec::new();
    put_header(&mut raw, b'*', words.len());
    words.iter().for_each(|word| put_bulk(&mut raw, word));
    raw
}
