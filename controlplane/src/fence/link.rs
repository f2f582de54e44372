//! One connection to a server, by which its record is read and written.
//!
//! It is opened as every connection of Sluice's is: its name, then what it is judged by, then all else.
//! The `run_id` was asked on this very connection, so that it cannot become another process's.
//! Whether something is to be done is decided elsewhere (`step.rs`).

use proto::fence::{FIELDS, Fence, KEY, Name};
use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, aio::MultiplexedConnection, cmd, pipe};

use super::{
    NotFenced,
    roll::{self, Connection},
    step::{Mark, Sight},
};
use crate::probe::{self, Failure, field};

/// Raises the record, or says why it does not.
const RAISE: &str = include_str!("raise.lua");

/// Writes nothing: the key is never there. A replica says that it is read-only, after it has said
/// whether the user may run scripts and what they call.
const TRY: &str = "return redis.call('DEL', KEYS[1])";
const TRY_KEY: &str = "{sluice}:try";

/// No connection has this id.
const NOBODY: u64 = i64::MAX.cast_unsigned();

/// How many connections are killed with one round trip.
const KILLS_AT_ONCE: usize = 1000;

/// What servers say that cannot do something now, and can later. A script's error may have it in its
/// middle.
const LATER: [&str; 8] = [
    "BUSY",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "TRYAGAIN",
];

/// What became of raising a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// It is as it was asked for, or higher.
    Done,
    /// It was refused: another cluster's, or a later leader's.
    Refused,
}

/// See the module.
pub(super) struct Link {
    connection: MultiplexedConnection,
    run_id: String,
    user: String,
}

impl Link {
    /// Gives the connection its name, and asks what it is judged by.
    pub(super) async fn open(
        connection: MultiplexedConnection,
        name: &Name,
        user: String,
    ) -> Result<(Self, Sight), NotFenced> {
        let mut link = Self {
            connection,
            run_id: String::new(),
            user,
        };
        let mut set_name = cmd("CLIENT");
        set_name.arg("SETNAME").arg(name.to_string());
        link.ask::<()>(&set_name).await?;
        let record = link.record().await?;
        let info: String = link.ask(cmd("INFO").arg("server")).await?;
        let run_id = field(&info, "run_id").ok_or_else(|| {
            let lack = "its INFO has no run_id".to_owned();
            NotFenced::Unanswered(Failure::NotRedis(lack))
        })?;
        run_id.clone_into(&mut link.run_id);
        let sight = link.sight(record);
        Ok((link, sight))
    }

    /// Reads the record once more.
    pub(super) async fn look(&mut self) -> Result<Sight, NotFenced> {
        let record = self.record().await?;
        Ok(self.sight(record))
    }

    fn sight(&self, record: Result<Option<Fence>, &'static str>) -> Sight {
        Sight {
            record,
            run_id: self.run_id.clone(),
        }
    }

    async fn record(&mut self) -> Result<Result<Option<Fence>, &'static str>, NotFenced> {
        let mut read = cmd("HMGET");
        read.arg(KEY).arg(&FIELDS);
        let values: redis::RedisResult<[Option<Vec<u8>>; FIELDS.len()]> =
            read.query_async(&mut self.connection).await;
        match values {
            Ok(values) => Ok(Fence::read(values.each_ref().map(Option::as_deref))),
            // A client's script may have put anything there.
            Err(e) if e.code() == Some("WRONGTYPE") => Ok(Err(FIELDS[0])),
            Err(e) => Err(self.trouble(&e)),
        }
    }

    /// Raises the record to the mark, of this cluster, whose leader is at `own`. Where there is none of this
    /// process, it may have come back with older data, or lost what stood there: then to `own`, if that is
    /// higher.
    pub(super) async fn raise(
        &mut self,
        cluster: &str,
        mark: Mark,
        own: Mark,
        take_over: bool,
    ) -> Result<Verdict, NotFenced> {
        let mut raise = cmd("EVAL");
        raise.arg(RAISE).arg(1).arg(KEY).arg(cluster);
        raise.arg(&self.run_id).arg(mark.term).arg(mark.epoch);
        raise.arg(own.believed()).arg(i32::from(take_over));
        raise.arg(own.epoch);
        let said: String = self.ask(&raise).await?;
        Ok(match said.as_str() {
            "raised" | "unchanged" => Verdict::Done,
            _ => Verdict::Refused,
        })
    }

    /// Sluice's connections to the server.
    pub(super) async fn connections(&mut self) -> Result<Vec<Connection>, NotFenced> {
        let list: Vec<u8> = self.ask(cmd("CLIENT").arg("LIST")).await?;
        Ok(roll::read(&String::from_utf8_lossy(&list)))
    }

    /// Has connections killed. When it returns, nothing of them is executed any more.
    pub(super) async fn kill(&mut self, doomed: &[Connection]) -> Result<(), NotFenced> {
        for some in doomed.chunks(KILLS_AT_ONCE) {
            let mut kills = pipe();
            for connection in some {
                kills.cmd("CLIENT").arg("KILL").arg("ID").arg(connection.id);
            }
            let killed = kills.query_async::<Vec<u64>>(&mut self.connection).await;
            killed.map_err(|e| self.trouble(&e))?;
        }
        Ok(())
    }

    /// Whether the user may do what Sluice needs. Changes nothing.
    pub(super) async fn try_all(&mut self) -> Result<(), NotFenced> {
        self.connections().await?;
        let mut kill = cmd("CLIENT");
        self.ask::<u64>(kill.arg("KILL").arg("ID").arg(NOBODY))
            .await?;
        let mut config = cmd("CONFIG");
        self.ask::<redis::Value>(config.arg("GET").arg("maxmemory"))
            .await?;
        let mut script = cmd("EVAL");
        match self.ask::<u64>(script.arg(TRY).arg(1).arg(TRY_KEY)).await {
            Ok(_) => Ok(()),
            Err(NotFenced::Later(why)) if why.contains("READONLY") => Ok(()),
            Err(e) => Err(e),
        }
    }

    async fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, NotFenced> {
        let answer = command.query_async(&mut self.connection).await;
        answer.map_err(|e| self.trouble(&e))
    }

    fn trouble(&self, error: &RedisError) -> NotFenced {
        let says = probe::words(error);
        if error.kind() == ErrorKind::Io {
            return NotFenced::Unanswered(Failure::Unreachable(says));
        }
        let code = error.code().unwrap_or_default();
        if LATER.contains(&code)
            || LATER
                .iter()
                .any(|later| says.contains(&format!("-{later} ")))
        {
            return NotFenced::Later(says);
        }
        if is_denied(code, &says) {
            let user = self.user.clone();
            return NotFenced::Denied { user, says };
        }
        NotFenced::Unanswered(probe::failure(error))
    }
}

/// Whether the user may not do it, or nobody may, because the command was renamed.
fn is_denied(code: &str, says: &str) -> bool {
    let parts = [
        "unknown command",
        "ACL failure",
        "executing the script can't",
    ];
    code == "NOPERM" || parts.iter().any(|part| says.contains(part))
}
