//! What is said first on a connection to a server, and what its answers mean.
//!
//! A connection is used only by who is let in ([`proto::fence`]): it has a name at the server before it
//! asks for the record, so that one that was let in before the record was raised can be found and closed.
//! Reads foreign bytes and decides; what is sent when is [`super::door`]'s.

use proto::{
    ClusterId,
    credentials::Login,
    fence::{self, Comer, FIELDS, Fence, KEY},
    seeded::{self, Bug},
};

use super::door::put_command;
use crate::{
    fanout::value::{frames, number, text},
    resp::Protocol,
};

/// By what those route who come to a door.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Routing {
    /// By a file, or by nothing yet: there is no epoch.
    Static,
    /// By a topology.
    Topology {
        /// Whose.
        cluster: ClusterId,
        /// Its epoch.
        epoch: u64,
    },
}

impl Routing {
    fn comer(&self) -> Comer<'_> {
        match self {
            Self::Static => Comer::Static,
            Self::Topology { cluster, epoch } => Comer::Worker {
                cluster,
                epoch: *epoch,
            },
        }
    }

    /// Whether who was refused was so because it routed by something older than this.
    pub(crate) fn is_newer(&self, refusal: &fence::Refusal) -> bool {
        match (self, refusal) {
            (Self::Topology { epoch: now, .. }, fence::Refusal::OldEpoch { epoch, .. }) => {
                now > epoch
            }
            (Self::Static | Self::Topology { .. }, _) => false,
        }
    }
}

/// What the server said to the greeting, so far as it matters.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Welcome {
    /// What it calls the connection. `None`: it cannot say so (below Redis 5).
    pub(super) id: Option<u64>,
    /// Its process.
    pub(super) run_id: String,
    record: Result<Option<Fence>, &'static str>,
}

/// What is said first, and how many replies it has.
pub(super) fn greeting(login: Option<&Login>, protocol: Protocol, name: &str) -> (Vec<u8>, usize) {
    let mut out = Vec::new();
    let mut replies = REPLIES;
    replies += usize::from(log_in(login, &mut out));
    if protocol == Protocol::Resp3 {
        put_command(&mut out, &[b"HELLO", b"3"]);
        replies += 1;
    }
    put_command(&mut out, &[b"CLIENT", b"SETNAME", name.as_bytes()]);
    put_command(&mut out, &[b"CLIENT", b"ID"]);
    let mut words: Vec<&[u8]> = vec![b"HMGET", KEY.as_bytes()];
    words.extend(FIELDS.iter().map(|field| field.as_bytes()));
    put_command(&mut out, &words);
    put_command(&mut out, &[b"INFO", b"server"]);
    (out, replies)
}

/// Writes what logs in; whether there is such.
pub(super) fn log_in(login: Option<&Login>, out: &mut Vec<u8>) -> bool {
    let Some(Login { username, password }) = login else {
        return false;
    };
    let mut words: Vec<&[u8]> = vec![b"AUTH"];
    words.extend(username.iter().map(String::as_bytes));
    words.push(password.expose().as_bytes());
    put_command(out, &words);
    true
}

/// Replies to what every greeting says.
const REPLIES: usize = 4;

/// Reads the replies to a greeting. The error says what the server does not agree to.
pub(super) fn welcome(replies: &[Vec<u8>]) -> Result<Welcome, String> {
    let (before, [id, record, info]) = replies.split_last_chunk().ok_or(TOO_FEW)?;
    if let Some(error) = before.iter().chain([record, info]).find_map(|r| refused(r)) {
        return Err(error);
    }
    Ok(Welcome {
        id: number(id).and_then(|id| u64::try_from(id).ok()),
        run_id: text(info)
            .and_then(run_id)
            .ok_or("its INFO names no run_id")?
            .to_owned(),
        record: read_record(record)?,
    })
}

const TOO_FEW: &str = "it did not answer to all";

/// What an error reply says.
pub(super) fn refused(reply: &[u8]) -> Option<String> {
    let error = reply.strip_prefix(b"-")?;
    Some(String::from_utf8_lossy(error).trim_end().to_owned())
}

fn run_id(info: &[u8]) -> Option<&str> {
    let line = |line: &'_ [u8]| line.starts_with(b"run_id:");
    let found = info.split(|&b| b == b'\n').find(|l| line(l))?;
    let id = std::str::from_utf8(&found[b"run_id:".len()..]).ok()?;
    Some(id.trim_ascii()).filter(|id| !id.is_empty())
}

fn read_record(reply: &[u8]) -> Result<Result<Option<Fence>, &'static str>, String> {
    let values: Vec<Option<&[u8]>> = frames(reply).map(text).collect();
    let values = values
        .try_into()
        .map_err(|_| "its reply to HMGET was not understood".to_owned())?;
    Ok(Fence::read(values))
}

/// The id of the connection of this name in a `CLIENT LIST`.
pub(super) fn id_in_list(reply: &[u8], name: &str) -> Option<u64> {
    let list = std::str::from_utf8(text(reply)?).ok()?;
    let field = |line: &'_ str, key: &str| {
        let mut fields = line.split(' ').filter_map(|field| field.split_once('='));
        fields.find(|(k, _)| *k == key).map(|(_, v)| v.to_owned())
    };
    let mut lines = list.lines();
    let own = lines.find(|line| field(line, "name").as_deref() == Some(name))?;
    field(own, "id")?.parse().ok()
}

impl Welcome {
    /// Whether who routes so may use the connection. `trusts`: also a process that has started anew, whatever
    /// data it has come back with.
    pub(super) fn judge(&self, routing: &Routing, trusts: bool) -> Result<(), fence::Refusal> {
        let record = self.record.as_ref().map(Option::as_ref).map_err(|f| *f);
        match fence::judge(record, &self.run_id, routing.comer()) {
            Err(fence::Refusal::Restarted) if trusts => Ok(()),
            Err(fence::Refusal::OldEpoch { .. }) if seeded::has(Bug::StaleEpochAccepted) => Ok(()),
            judged => judged,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "# Server\r\nredis_version:7.0.15\r\nrun_id:0123abcd\r\ntcp_port:1\r\n";

    fn bulk(text: &str) -> Vec<u8> {
        format!("${}\r\n{text}\r\n", text.len()).into_bytes()
    }

    /// What a server says whose record is for this epoch; `None`: it has none.
    fn replies(epoch: Option<&str>, null: &str) -> Vec<Vec<u8>> {
        let values = [Some("c"), Some("3"), epoch, Some("0123abcd")];
        let values = values.map(|value| epoch.and(value));
        let values = values.map(|value| value.map_or(null.as_bytes().to_vec(), bulk));
        let record = [b"*4\r\n".to_vec(), values.concat()].concat();
        vec![b"+OK\r\n".to_vec(), b":17\r\n".to_vec(), record, bulk(INFO)]
    }

    fn routing(epoch: u64) -> Routing {
        let cluster = ClusterId::new("c").unwrap();
        Routing::Topology { cluster, epoch }
    }

    #[test]
    fn who_is_let_in_is_read_from_what_servers_say() {
        let read = |replies: &[Vec<u8>]| welcome(replies).unwrap();
        let good = read(&replies(Some("80"), "$-1\r\n"));
        assert_eq!((good.id, good.run_id.as_str()), (Some(17), "0123abcd"));
        assert_eq!(good.judge(&routing(80), false), Ok(()));
        let old = fence::Refusal::OldEpoch {
            fence: 80,
            epoch: 79,
        };
        assert_eq!(good.judge(&routing(79), false), Err(old));
        let managed = fence::Refusal::Managed(ClusterId::new("c").unwrap());
        assert_eq!(good.judge(&Routing::Static, true), Err(managed));
        for null in ["$-1\r\n", "_\r\n"] {
            let bare = read(&replies(None, null));
            let missing = Err(fence::Refusal::Missing);
            assert_eq!(bare.judge(&routing(80), true), missing);
            assert_eq!(bare.judge(&Routing::Static, false), Ok(()));
        }
        let damaged = read(&replies(Some("x"), "$-1\r\n"));
        let wrong = Err(fence::Refusal::Damaged("epoch"));
        assert_eq!(damaged.judge(&routing(80), true), wrong);
    }

    #[test]
    fn a_process_that_has_started_anew_is_let_in_only_where_it_is_trusted() {
        let mut restarted = replies(Some("80"), "");
        restarted[3] = b"=15\r\ntxt:run_id:ffff\r\n".to_vec();
        let restarted = welcome(&restarted).unwrap();
        let refused = Err(fence::Refusal::Restarted);
        assert_eq!(restarted.judge(&routing(80), false), refused);
        assert_eq!(restarted.judge(&routing(80), true), Ok(()));
        assert!(
            restarted.judge(&routing(79), true).is_err(),
            "it is still fenced"
        );
    }

    #[test]
    fn a_server_that_does_not_agree_says_why() {
        let (hello, count) = greeting(None, Protocol::Resp2, "n");
        assert_eq!((hello[..2].to_vec(), count), (b"*3".to_vec(), REPLIES));
        for (at, reply, why) in [
            (
                0,
                "-NOAUTH Authentication required.\r\n",
                "NOAUTH Authentication required.",
            ),
            (2, "-LOADING wait\r\n", "LOADING wait"),
            (2, "*1\r\n$1\r\nc\r\n", "its reply to HMGET"),
            (2, "+OK\r\n", "its reply to HMGET"),
            (3, "-NOPERM no\r\n", "NOPERM no"),
            (3, "$3\r\nabc\r\n", "its INFO names no run_id"),
            (3, "$8\r\nrun_id:\n\r\n", "its INFO names no run_id"),
        ] {
            let mut replies = replies(Some("80"), "");
            replies[at] = reply.as_bytes().to_vec();
            let error = welcome(&replies).unwrap_err();
            assert!(error.starts_with(why), "{error}");
        }
        assert_eq!(welcome(&[]), Err(TOO_FEW.to_owned()));
    }

    #[test]
    fn below_redis_5_the_id_is_found_by_the_name() {
        let mut old = replies(Some("80"), "$-1\r\n");
        old[1] = b"-ERR Syntax error, try CLIENT (LIST | KILL)\r\n".to_vec();
        assert_eq!(welcome(&old).unwrap().id, None);
        let list = "id=3 addr=127.0.0.1:1 fd=8 name= age=1 cmd=get\n\
            id=5 addr=127.0.0.1:2 fd=9 name=sluice:proxy:0f:0.11 age=1 cmd=client\n\
            id=7 addr=127.0.0.1:3 fd=10 name=sluice:proxy:0f:0.1 age=1 cmd=client\n";
        let of = |name: &str| id_in_list(&bulk(list), name);
        assert_eq!(of("sluice:proxy:0f:0.1"), Some(7));
        assert_eq!(of("sluice:proxy:0f:0.2"), None);
        assert_eq!(id_in_list(b"-ERR no\r\n", "x"), None);
        assert_eq!(id_in_list(&bulk("name=x id=-1"), "x"), None);
    }

    #[test]
    fn only_a_newer_epoch_than_was_refused_is_newer() {
        let old = fence::Refusal::OldEpoch {
            fence: 12,
            epoch: 10,
        };
        assert!(!routing(10).is_newer(&old));
        assert!(routing(11).is_newer(&old));
        assert!(!Routing::Static.is_newer(&old));
        assert!(!routing(11).is_newer(&fence::Refusal::Missing));
    }
}
