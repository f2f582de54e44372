//! Who writes to a server past the proxies.
//!
//! A copy sees what such a client changes, like all else, until slots are held; no fence stops it, and what it
//! writes from then on is deleted with what the source has left. So a move does not begin while there is one, as
//! far as that can be seen: by the command that each client has sent last, and what the server says of that.

use std::{collections::BTreeSet, time::Duration};

use proto::fence::Name;

use super::{
    link::{Client, Link, LinkError},
    reply::Reply,
};

/// Who has asked nothing for longer writes no more, as far as is known.
const IDLE: Duration = Duration::from_secs(60);
/// Commands of which a server does not say that they write, though what is in them may.
const CARRIERS: [&str; 4] = ["eval", "evalsha", "exec", "fcall"];

/// The clients of a server that have written to it lately and are no programs of ours, or replicas of it.
pub(super) async fn writers(link: &mut Link) -> Result<Vec<Client>, LinkError> {
    let mut clients = link.clients().await?;
    clients.retain(is_stranger);
    let commands: BTreeSet<&str> = clients.iter().map(|client| &*client.command).collect();
    let mut writing: BTreeSet<String> = CARRIERS.map(str::to_owned).into();
    for command in commands {
        let words: [&[u8]; 3] = [b"COMMAND", b"INFO", command.as_bytes()];
        if writes(&link.demand("COMMAND INFO", &words).await?) {
            writing.insert(command.to_owned());
        }
    }
    clients.retain(|client| writing.contains(&client.command));
    Ok(clients)
}

fn is_stranger(client: &Client) -> bool {
    let is_ours = client.name.parse::<Name>().is_ok();
    !is_ours && !client.is_server && client.idle <= IDLE
}

/// Whether a command writes, by the answer to `COMMAND INFO` of it alone.
fn writes(answer: &Reply) -> bool {
    let Reply::List(commands) = answer else {
        return false;
    };
    let Some(Reply::List(facts)) = commands.first() else {
        return false; // there is no such command
    };
    let Some(Reply::List(flags)) = facts.get(2) else {
        return false;
    };
    let write = |flag: &Reply| matches!(flag, Reply::Text(flag) if flag == b"write");
    flags.iter().any(write)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_writes_past_the_proxies() {
        let check = |line: &str, expected: bool| {
            let client = Client::read(&format!("id=7 addr=[::1]:9 {line} cmd=set")).unwrap();
            assert_eq!(is_stranger(&client), expected, "{line}");
        };
        check("name= idle=0 flags=N", true);
        check("name=app idle=60 flags=x", true);
        check("name=app idle=61 flags=N", false);
        check("name= idle=0 flags=S", false);
        check("name= idle=0 flags=M", false);
        let ours = format!("sluice:proxy:{}:p1", "0".repeat(32));
        assert!(ours.parse::<Name>().is_ok(), "{ours}");
        check(&format!("name={ours} idle=0 flags=N"), false);
    }

    #[test]
    fn what_writes() {
        let text = |text: &str| Reply::Text(text.into());
        let answer = |flags: &[&str]| {
            let flags = flags.iter().map(|flag| text(flag)).collect();
            let facts = vec![text("set"), Reply::Integer(-3), Reply::List(flags)];
            Reply::List(vec![Reply::List(facts)])
        };
        assert!(writes(&answer(&["write", "denyoom"])));
        assert!(!writes(&answer(&["readonly", "fast"])));
        assert!(!writes(&Reply::List(vec![Reply::Nil])));
    }
}
