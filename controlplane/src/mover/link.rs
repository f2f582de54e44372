//! A connection of the mover to a server.
//!
//! Owns the way in (login, name, fence: `proto::fence`) and the exchange: commands are queued, sent in
//! one piece, and all their replies are read. Never retries, and never sends to a server that the fence
//! has refused. A link on which an exchange has not ended, for whatever reason, is broken: nobody knows
//! any more which reply is whose.

use std::{io, sync::Arc, time::Duration};

use proto::{
    ClusterId, ServerAddr,
    credentials::Login,
    fence::{self, Comer, Fence, Name, Refusal, Role},
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time};

use super::{
    company::Commands,
    reply::{Replies, Reply},
    server::Server,
};

/// A server, and who to be there.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Where it listens.
    pub address: ServerAddr,
    /// `None`: it asks for no login.
    pub login: Option<Login>,
}

/// In whose name servers are used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mandate {
    /// The cluster.
    pub cluster: ClusterId,
    /// The leader's term: a server that a later leader has been at refuses.
    pub term: u64,
    /// The controller's process; 32 hexadecimal digits.
    pub incarnation: String,
}

/// Why a server could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It cannot be reached.
    #[error("{address}: cannot be reached")]
    Unreachable {
        /// Which.
        address: ServerAddr,
        /// Why.
        source: io::Error,
    },
    /// The connection broke, or what came on it was no RESP.
    #[error("{address}: the connection is lost")]
    Lost {
        /// To which.
        address: ServerAddr,
        /// How.
        source: io::Error,
    },
    /// No answer in time.
    #[error("{address}: no answer within {patience:?}")]
    Late {
        /// From which.
        address: ServerAddr,
        /// How long was waited.
        patience: Duration,
    },
    /// The fence does not let us in.
    #[error("{address}: {refusal}")]
    Fenced {
        /// Which.
        address: ServerAddr,
        /// Why.
        refusal: Refusal,
    },
    /// It answers a command as it should not.
    #[error("{address}: answers {command} with: {answer}")]
    Refused {
        /// Which.
        address: ServerAddr,
        /// The command's name.
        command: &'static str,
        /// Its error, or what was unexpected.
        answer: String,
    },
}

/// How long is waited before a server is asked again that is busy with a script.
const BUSY: Duration = Duration::from_millis(50);

/// How all links of a copy are opened.
#[derive(Clone, Debug)]
pub(super) struct Opener {
    pub(super) mandate: Arc<Mandate>,
    /// What the names of the links begin with, behind the incarnation.
    pub(super) prefix: String,
    /// The longest that one exchange may take.
    pub(super) patience: Duration,
}

/// See the module.
pub(super) struct Link {
    address: ServerAddr,
    replies: Replies<TcpStream>,
    output: Vec<u8>,
    /// Commands that are queued.
    queued: usize,
    database: u32,
    patience: Duration,
    /// An exchange has begun and not ended.
    broken: bool,
    /// Nothing is asked but reads: what was not executed may be asked for again.
    reads: bool,
    /// Where what is asked is counted.
    commands: Commands,
    /// The server has `UNLINK`.
    unlinks: bool,
}

/// A command whose last word is sent by parts. Dropped before its end, it is never executed.
pub(super) struct Sending(Link);

impl Opener {
    /// Connects, and does all that comes before the first command. Gives what the server is, too.
    pub(super) async fn open(
        &self,
        endpoint: &Endpoint,
        number: usize,
    ) -> Result<(Link, Server), LinkError> {
        let address = &endpoint.address;
        let stream = match time::timeout(self.patience, connect(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(source)) => {
                let address = address.clone();
                return Err(LinkError::Unreachable { address, source });
            }
            Err(_) => {
                let (address, patience) = (address.clone(), self.patience);
                return Err(LinkError::Late { address, patience });
            }
        };
        let mut link = Link {
            address: address.clone(),
            replies: Replies::new(stream),
            output: Vec::new(),
            queued: 0,
            database: 0,
            patience: self.patience,
            broken: false,
            reads: false,
            commands: Commands::default(),
            unlinks: false,
        };
        if let Some(login) = &endpoint.login {
            link.log_in(login).await?;
        }
        let name = Name {
            role: Role::Mover,
            incarnation: self.mandate.incarnation.clone(),
            rest: format!("{}{number}", self.prefix),
        };
        let server = link.pass(&name.to_string(), &self.mandate).await?;
        link.unlinks = server.unlinks();
        Ok((link, server))
    }
}

impl Link {
    /// Queues a command.
    pub(super) fn push(&mut self, words: &[&[u8]]) {
        write_command(&mut self.output, words);
        self.queued += 1;
    }

    /// Begins a command with these words and one more, of so many bytes, which follow by parts. It is the
    /// last on this link.
    pub(super) async fn send_slowly(
        self,
        words: &[&[u8]],
        last: u64,
    ) -> Result<Sending, LinkError> {
        let mut begun = Vec::new();
        write_header(&mut begun, b'*', words.len() as u64 + 1);
        for word in words {
            write_word(&mut begun, word);
        }
        write_header(&mut begun, b'$', last);
        let mut sending = Sending(self);
        sending.send(&begun).await?;
        Ok(sending)
    }

    /// Takes back what is queued and was not sent.
    pub(super) fn discard(&mut self) {
        if !self.broken {
            self.output.clear();
            self.queued = 0;
        }
    }

    /// Sends what is queued; its replies, in order.
    pub(super) async fn exchange(&mut self) -> Result<Vec<Reply>, LinkError> {
        if std::mem::replace(&mut self.broken, true) {
            return Err(self.lost(io::ErrorKind::BrokenPipe.into()));
        }
        let mut replies = Vec::with_capacity(self.queued);
        let all = async {
            loop {
                replies.clear();
                self.commands.send(self.queued);
                self.replies.stream().write_all(&self.output).await?;
                for _ in 0..self.queued {
                    replies.push(self.replies.next().await?);
                }
                self.commands.answer(self.queued);
                if !self.reads || !replies.iter().any(is_busy) {
                    return Ok(());
                }
                time::sleep(BUSY).await;
            }
        };
        match time::timeout(self.patience, all).await {
            Ok(Ok(())) => {}
            Ok(Err(source)) => return Err(self.lost(source)),
            Err(_) => return Err(self.late()),
        }
        self.output.clear();
        self.output.shrink_to(1 << 20);
        self.queued = 0;
        self.broken = false;
        Ok(replies)
    }

    /// From now on nothing is asked but reads: while the server is busy with a script, they are asked
    /// again.
    pub(super) fn only_reads(&mut self) {
        self.reads = true;
    }

    /// The command that deletes keys, and makes nobody wait for large values if the server can do that.
    pub(super) fn deletion(&self) -> &'static str {
        if self.unlinks { "UNLINK" } else { "DEL" }
    }

    /// From now on what is asked is counted here, too.
    pub(super) fn count_in(&mut self, commands: &Commands) {
        self.commands = commands.clone();
    }

    /// What counts them.
    pub(super) fn commands(&self) -> &Commands {
        &self.commands
    }

    /// One command, and its reply. Nothing may be queued.
    pub(super) async fn ask(&mut self, words: &[&[u8]]) -> Result<Reply, LinkError> {
        self.push(words);
        let mut replies = self.exchange().await?;
        Ok(replies.pop().expect("a command was queued"))
    }

    /// The same of a command that must not be refused.
    pub(super) async fn demand(
        &mut self,
        command: &'static str,
        words: &[&[u8]],
    ) -> Result<Reply, LinkError> {
        match self.ask(words).await? {
            Reply::Error(answer) => Err(self.refused(command, answer)),
            reply => Ok(reply),
        }
    }

    /// Goes to a database. Its answer is awaited: behind a `SELECT` that failed, what follows would land
    /// in the database before.
    pub(super) async fn select(&mut self, database: u32) -> Result<(), LinkError> {
        if self.database != database {
            let number = database.to_string();
            self.demand("SELECT", &[b"SELECT", number.as_bytes()])
                .await?;
            self.database = database;
        }
        Ok(())
    }

    /// What the server says of itself now.
    pub(super) async fn server(&mut self) -> Result<Server, LinkError> {
        let info = self.info(&[b"INFO"]).await?;
        Server::read(&info).map_err(|lack| self.refused("INFO", lack))
    }

    /// A text of `INFO`.
    pub(super) async fn info(&mut self, words: &[&[u8]]) -> Result<String, LinkError> {
        let reply = self.demand("INFO", words).await?;
        self.read_info(reply)
    }

    /// The same of a reply that has come.
    pub(super) fn read_info(&self, reply: Reply) -> Result<String, LinkError> {
        match reply {
            Reply::Text(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
            other => Err(self.unexpected("INFO", &other)),
        }
    }

    /// Whether an exchange has begun on it and not ended: nothing can be asked any more.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// An error that tells what the server answered to a command.
    pub(super) fn refused(&self, command: &'static str, answer: String) -> LinkError {
        LinkError::Refused {
            address: self.address.clone(),
            command,
            answer: without_arguments(&answer),
        }
    }

    /// An error that tells of a reply of the wrong kind.
    pub(super) fn unexpected(&self, command: &'static str, reply: &Reply) -> LinkError {
        let kind = match reply {
            Reply::Nil => "nothing",
            Reply::Integer(_) => "a number",
            Reply::Text(_) => "a text",
            Reply::Error(error) => return self.refused(command, error.clone()),
            Reply::List(_) => "a list",
            Reply::Push(_) => "a push",
        };
        self.refused(command, kind.to_owned())
    }

    /// What comes unasked, whenever it comes. Nothing may be asked on this link any more.
    pub(super) async fn listen(&mut self) -> Result<Reply, LinkError> {
        self.replies
            .next()
            .await
            .map_err(|source| self.lost(source))
    }

    /// Whether there is more to hear that has been read already.
    pub(super) fn hears_more(&self) -> bool {
        self.replies.has_read_ahead()
    }

    /// Listens to nothing until then, unless there is more that has been read already. What comes meanwhile
    /// stays in the kernel, and wakes no thread of ours: a connection that is only left alone does, each time.
    pub(super) async fn rest(mut self, until: impl Future<Output = ()>) -> Result<Self, LinkError> {
        if self.hears_more() {
            return Ok(self);
        }
        let address = self.address.clone();
        let lost = |source| LinkError::Lost { address, source };
        let stream = match self.replies.into_stream().into_std() {
            Ok(stream) => stream,
            Err(source) => return Err(lost(source)),
        };
        until.await;
        match TcpStream::from_std(stream) {
            Ok(stream) => self.replies = Replies::new(stream),
            Err(source) => return Err(lost(source)),
        }
        Ok(self)
    }

    fn late(&self) -> LinkError {
        let (address, patience) = (self.address.clone(), self.patience);
        LinkError::Late { address, patience }
    }

    fn lost(&self, source: io::Error) -> LinkError {
        let address = self.address.clone();
        LinkError::Lost { address, source }
    }

    async fn log_in(&mut self, login: &Login) -> Result<(), LinkError> {
        let password = login.password.expose().as_bytes();
        match &login.username {
            Some(name) => self.push(&[b"AUTH", name.as_bytes(), password]),
            None => self.push(&[b"AUTH", password]),
        }
        match self.exchange().await?.pop() {
            Some(Reply::Error(answer)) => Err(self.refused("AUTH", answer)),
            _ => Ok(()),
        }
    }

    /// Takes a name, by which it is found and closed, and shows itself to the fence.
    async fn pass(&mut self, name: &str, mandate: &Mandate) -> Result<Server, LinkError> {
        self.demand("CLIENT SETNAME", &[b"CLIENT", b"SETNAME", name.as_bytes()])
            .await?;
        let fields = fence::FIELDS.map(str::as_bytes);
        let [cluster, term, epoch, run_id] = fields;
        let key = fence::KEY.as_bytes();
        let ask: [&[u8]; 6] = [b"HMGET", key, cluster, term, epoch, run_id];
        let values = match self.demand("HMGET", &ask).await? {
            Reply::List(values) => values,
            other => return Err(self.unexpected("HMGET", &other)),
        };
        let server = self.server().await?;
        let text = |at: usize| match values.get(at) {
            Some(Reply::Text(text)) => Some(text.as_slice()),
            _ => None,
        };
        let record = Fence::read([text(0), text(1), text(2), text(3)]);
        let comer = Comer::Mover {
            cluster: &mandate.cluster,
            term: mandate.term,
        };
        let record = record.as_ref().map(Option::as_ref).map_err(|field| *field);
        match fence::judge(record, &server.run_id, comer) {
            Ok(()) => Ok(server),
            Err(refusal) => {
                let address = self.address.clone();
                Err(LinkError::Fenced { address, refusal })
            }
        }
    }

    /// Who is connected to the server.
    pub(super) async fn clients(&mut self) -> Result<Vec<Client>, LinkError> {
        match self.demand("CLIENT LIST", &[b"CLIENT", b"LIST"]).await? {
            Reply::Text(text) => Ok(String::from_utf8_lossy(&text)
                .lines()
                .filter_map(Client::read)
                .collect()),
            other => Err(self.unexpected("CLIENT LIST", &other)),
        }
    }
}

impl Sending {
    /// Sends a part.
    pub(super) async fn send(&mut self, part: &[u8]) -> Result<(), LinkError> {
        let Self(link) = self;
        let sent = link.replies.stream().write_all(part);
        match time::timeout(link.patience, sent).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(link.lost(source)),
            Err(_) => Err(link.late()),
        }
    }

    /// All was sent. What the server answers.
    pub(super) async fn end(mut self) -> Result<Reply, LinkError> {
        self.send(b"\r\n").await?;
        let Self(mut link) = self;
        let patience = link.patience;
        match time::timeout(patience, link.listen()).await {
            Ok(reply) => reply,
            Err(_) => Err(link.late()),
        }
    }
}

/// A line of `CLIENT LIST`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Client {
    pub(super) id: i64,
    pub(super) name: String,
    /// From where it has connected.
    pub(super) address: String,
    /// The command that it has sent last.
    pub(super) command: String,
    /// Since when it has sent nothing, to the second.
    pub(super) idle: Duration,
    /// It is a replica of the server, or the primary of it.
    pub(super) is_server: bool,
    /// It is subscribed to a pattern.
    pub(super) has_pattern: bool,
}

impl Client {
    /// Whether it is of a copy, and told of keyspace events.
    pub(super) fn follows_events(&self) -> bool {
        let name = self.name.parse::<Name>();
        self.has_pattern && name.is_ok_and(|name| name.role == Role::Mover)
    }

    /// What a line says.
    pub(super) fn read(line: &str) -> Option<Self> {
        let find = |name: &str| {
            let mut words = line.split(' ');
            words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        let text = |name| find(name).unwrap_or_default().to_owned();
        let flags = find("flags").unwrap_or_default();
        Some(Self {
            id: find("id")?.parse().ok()?,
            name: text("name"),
            address: text("addr"),
            command: text("cmd"),
            idle: Duration::from_secs(find("idle").and_then(|s| s.parse().ok()).unwrap_or(0)),
            is_server: flags.contains(['S', 'M']),
            has_pattern: find("psub").is_some_and(|count| count != "0"),
        })
    }
}

/// Whether a server has executed nothing, since a script runs for too long.
fn is_busy(reply: &Reply) -> bool {
    matches!(reply, Reply::Error(error) if error.starts_with("BUSY "))
}

/// An error without what servers repeat of an unknown command: keys and values.
fn without_arguments(error: &str) -> String {
    const SHOWN: usize = 200;
    let (words, _) = error.split_once(", with args").unwrap_or((error, ""));
    words.chars().take(SHOWN).collect()
}

async fn connect(address: &ServerAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address.as_str()).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Writes a command as RESP has it.
fn write_command(output: &mut Vec<u8>, words: &[&[u8]]) {
    write_header(output, b'*', words.len() as u64);
    for word in words {
        write_word(output, word);
    }
}

fn write_word(output: &mut Vec<u8>, word: &[u8]) {
    write_header(output, b'$', word.len() as u64);
    output.extend_from_slice(word);
    output.extend_from_slice(b"\r\n");
}

fn write_header(output: &mut Vec<u8>, kind: u8, number: u64) {
    use std::io::Write as _;
    output.push(kind);
    write!(output, "{number}\r\n").expect("a Vec takes all");
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn commands_are_written_as_they_are() {
        let mut output = Vec::new();
        write_command(&mut output, &[b"SET", b"", b"\r\n"]);
        assert_eq!(output, b"*3\r\n$3\r\nSET\r\n$0\r\n\r\n$2\r\n\r\n\r\n");
    }

    #[tokio::test]
    async fn nothing_is_missed_while_it_rests() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: ServerAddr = listener.local_addr().unwrap().to_string().parse().unwrap();
        let (stream, server) = tokio::join!(connect(&address), listener.accept());
        let (mut server, _) = server.unwrap();
        let mut link = Link {
            address,
            replies: Replies::new(stream.unwrap()),
            output: Vec::new(),
            queued: 0,
            database: 0,
            patience: BUSY,
            broken: false,
            reads: false,
            commands: Commands::default(),
            unlinks: false,
        };
        let text = |text: &str| Reply::Text(text.into());
        server.write_all(b"+a\r\n+b\r\n").await.unwrap();
        assert_eq!(link.listen().await.unwrap(), text("a"));
        // What has been read already is not left lying.
        link = link.rest(std::future::pending()).await.unwrap();
        assert_eq!(link.listen().await.unwrap(), text("b"));
        let say = async { server.write_all(b"+c\r\n").await.unwrap() };
        link = link.rest(say).await.unwrap();
        assert_eq!(link.listen().await.unwrap(), text("c"));
        link = link.rest(async { drop(server) }).await.unwrap();
        assert!(matches!(link.listen().await, Err(LinkError::Lost { .. })));
    }

    #[test]
    fn no_key_is_told() {
        let error = "ERR unknown command 'XGROUP', with args beginning with: 'key' ";
        assert_eq!(without_arguments(error), "ERR unknown command 'XGROUP'");
        assert_eq!(without_arguments("NOPERM no"), "NOPERM no");
    }

    #[test]
    fn who_is_connected() {
        let line = "id=7 addr=127.0.0.1:1 fd=8 name=sluice:mover:0f:m:1 age=0 cmd=client|list";
        let client = Client::read(line).unwrap();
        assert_eq!(
            (client.id, client.name.as_str()),
            (7, "sluice:mover:0f:m:1")
        );
        assert!(!client.has_pattern);
        let nameless = Client::read("id=7 name= age=0 psub=1").unwrap();
        assert!(nameless.name.is_empty() && nameless.has_pattern);
        assert_eq!(Client::read("nothing"), None);
    }
}
