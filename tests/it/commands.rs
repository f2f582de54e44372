//! The table of commands is what real servers say of theirs, and `COMMANDS.md` what the table says.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
};

use dataplane::{
    command::{self, Across, Bound, Class, Command, Keys, Merge, PubSub, Queued, Split, Topic},
    resp::{Limits, Progress, Request, put_bulk, put_header},
};
use redis::{Value, cmd};
use tests::{Cluster, Raw, Server, other_server};

/// Oldest first; what one of them says of a command holds until another says otherwise. Redis 6.2 is only
/// asked for its commands' names: it says less of them, and some of it in other words.
const SERVERS: [&str; 5] = [OLD, "redis-7.0", "redis-8.2", "valkey-8.1", "valkey-9.1"];
const OLD: &str = "redis-6.2";

/// None where there is no such server for this kind of machine.
fn program(name: &str) -> Option<PathBuf> {
    match name {
        "redis-7.0" => Some("redis-server".into()), // Debian's
        other => other_server(other),
    }
}

/// What `COMMAND` says of a command or subcommand.
#[derive(Debug)]
struct Said {
    by: &'static str,
    arity: i64,
    flags: BTreeSet<String>,
    keys: [i64; 3],
    categories: BTreeSet<String>,
}

/// By name, in the order of the servers.
type Sayings = BTreeMap<String, Vec<Said>>;

fn collect(by: &'static str, commands: Value, sayings: &mut Sayings) {
    for command in array(commands) {
        let mut fields = array(command).into_iter();
        let name = text(fields.next().unwrap()).to_lowercase();
        let arity = int(fields.next().unwrap());
        let names = |value| array(value).into_iter().map(text).collect();
        let flags: BTreeSet<String> = names(fields.next().unwrap());
        let keys = [(); 3].map(|()| int(fields.next().unwrap()));
        let categories = names(fields.next().unwrap());
        if let Some(subcommands) = fields.nth(2) {
            collect(by, subcommands, sayings);
        }
        // Valkey's name for the same.
        let flags = flags.into_iter().map(|flag| match flag.as_str() {
            "skip_commandlog" => "skip_slowlog".to_owned(),
            _ => flag,
        });
        sayings.entry(name).or_default().push(Said {
            by,
            arity,
            flags: flags.collect(),
            keys,
            categories,
        });
    }
}

fn array(value: Value) -> Vec<Value> {
    match value {
        Value::Array(values) | Value::Set(values) => values,
        other => panic!("not an array: {other:?}"),
    }
}

fn text(value: Value) -> String {
    redis::from_redis_value(value).unwrap()
}

fn int(value: Value) -> i64 {
    redis::from_redis_value(value).unwrap()
}

#[tokio::test]
async fn the_table_has_what_real_servers_have_and_says_of_it_what_they_say() {
    let dir = tempfile::tempdir().unwrap();
    let mut sayings = Sayings::new();
    let mut asked = 0;
    for name in SERVERS {
        let Some(program) = program(name) else {
            continue;
        };
        let server = Server::run(&program, dir.path(), name, &[]);
        server.answers().await;
        let mut client = server.connect().await;
        let commands = cmd("COMMAND").query_async(&mut client).await.unwrap();
        collect(name, commands, &mut sayings);
        asked += 1;
    }
    let rows: BTreeMap<&str, &Command> = command::all().iter().map(|row| (row.name, row)).collect();
    let mut wrong = Vec::new();
    for (name, said) in &sayings {
        match rows.get(name.as_str()) {
            None => wrong.push(format!(
                "{name}: {} knows it; give it a row in dataplane/src/command/table.rs",
                said[0].by
            )),
            Some(row) => {
                let differences = differences(row, said).join(", ");
                if !differences.is_empty() {
                    wrong.push(format!("{name}: {differences}: servers say {said:#?}"));
                }
            }
        }
    }
    if asked == SERVERS.len() {
        for name in rows.keys().filter(|&&name| !sayings.contains_key(name)) {
            wrong.push(format!("{name}: no server knows it"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn differences(row: &Command, said: &[Said]) -> Vec<String> {
    let said: Vec<&Said> = said.iter().filter(|said| said.by != OLD).collect();
    let set = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
    let (flags, categories): (BTreeSet<String>, BTreeSet<String>) =
        (set(row.flag_names()), set(row.category_names()));
    let mut wrong = Vec::new();
    let mut is = |right: bool, what: &str| {
        if !right {
            wrong.push(what.to_owned());
        }
    };
    if said.is_empty() {
        return wrong;
    }
    // What decides where a request goes must be right for every server.
    for flag in ["write", "readonly", "movablekeys", "blocking"] {
        let expected = said.iter().any(|said| said.flags.contains(flag));
        is(flags.contains(flag) == expected, flag);
    }
    is(said.iter().all(|s| s.keys == row.key_range()), "keys");
    is(said.iter().any(|s| s.flags == flags), "flags");
    // Of modules' commands servers tell no more than that they take arguments.
    if row.flags & command::flag::MODULE != 0 {
        return wrong;
    }
    is(
        said.iter().any(|s| s.categories == categories),
        "categories",
    );
    let arity = i64::from(row.arity);
    is(said.iter().any(|s| s.arity == arity), "arity");
    if matches!(
        row.class,
        Class::Forward | Class::Sort | Class::Elements | Class::Split(_)
    ) {
        for said in said {
            let accepted = match said.arity {
                exactly @ 0.. => row.accepts(exactly as usize),
                at_least => row.accepts(-at_least as usize) && arity < 0,
            };
            is(accepted, &format!("arity for {}", said.by));
        }
    }
    wrong
}

/// Requests of each served command with keys, of many shapes: where a server finds keys in one, the table
/// says the same.
#[tokio::test]
async fn keys_are_where_each_server_finds_them() {
    let dir = tempfile::tempdir().unwrap();
    for name in SERVERS {
        let Some(program) = program(name) else {
            continue;
        };
        let server = Server::run(&program, dir.path(), name, &[]);
        server.answers().await;
        let mut client = Raw::connect(&server.addr).await;
        let mut commands = 0;
        for row in command::served().filter(|row| has_keys(row)) {
            let (mut compared, mut in_doubt) = (0, Vec::new());
            let shapes = shapes(row);
            let replies = ask_command(&mut client, "GETKEYS", &shapes).await;
            for (words, reply) in shapes.into_iter().zip(&replies) {
                let found = reply
                    .split(' ')
                    .skip(1)
                    .filter(|word| !word.starts_with('$'));
                if reply.starts_with('*') && keys(row, &words) == found.collect() {
                    compared += 1;
                } else if reply.starts_with('*') {
                    in_doubt.push(words);
                }
            }
            // `COMMAND GETKEYS` finds keys in some requests that are not executed.
            client.pipeline(&in_doubt).await;
            for words in &in_doubt {
                let reply = client.reply().await;
                assert!(reply.starts_with('-'), "{name}: {words:?}: {reply}");
            }
            let is_known = replies[0] != "-ERR Invalid command specified";
            assert_eq!(compared > 0, is_known, "{name}: {}", row.name);
            commands += usize::from(is_known);
        }
        assert!(commands > 150, "{name}: only {commands}");
    }
}

fn has_keys(row: &Command) -> bool {
    !matches!(row.keys, Keys::None | Keys::Channels { .. })
}

/// Of each served command, what the first server that knows it tells besides: tips, and how keys are found.
#[tokio::test]
async fn details_are_those_of_redis() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::builder().groups(1).proxies(1).start().await;
    let mut proxy = cluster.proxies[0].connect().await;
    let mut missing: Vec<&Command> = command::served().collect();
    for name in &SERVERS[1..] {
        let Some(program) = program(name) else {
            continue;
        };
        let server = Server::run(&program, dir.path(), name, &[]);
        server.answers().await;
        let mut plain = server.connect().await;
        let mut unknown = Vec::new();
        for row in missing {
            let asked = cmd("COMMAND").arg("INFO").arg(row.name).to_owned();
            let said = array(asked.query_async(&mut plain).await.unwrap()).remove(0);
            if said == Value::Nil {
                unknown.push(row);
                continue;
            }
            let own = array(asked.query_async(&mut proxy).await.unwrap()).remove(0);
            assert_eq!(details(own), details(said), "{name}: {}", row.name);
        }
        missing = unknown;
    }
    assert!(missing.len() < 20, "{missing:?}");
}

/// Tips and key specifications; flags have no order.
fn details(command: Value) -> String {
    let fields = array(command);
    let sorted = |value: &Value| {
        let mut shown: Vec<String> = array(value.clone())
            .iter()
            .map(|v| format!("{v:?}"))
            .collect();
        shown.sort();
        shown.join(" ")
    };
    let key = |key: Value| {
        let fields = array(key);
        let pairs = fields.chunks(2).map(|pair| match &pair[1] {
            Value::Array(flags) if text(pair[0].clone()) == "flags" => {
                sorted(&Value::Array(flags.clone()))
            }
            other => format!("{other:?}"),
        });
        pairs.collect::<Vec<_>>().join(" ")
    };
    let keys: Vec<String> = array(fields[8].clone()).into_iter().map(key).collect();
    format!("{} {keys:?}", sorted(&fields[7]))
}

/// What each key is used for, in requests of many shapes.
#[tokio::test]
async fn keys_are_used_as_redis_says() {
    let cluster = Cluster::builder().groups(1).proxies(1).start().await;
    let mut plain = Raw::connect(&cluster.groups[0][0].addr).await;
    let mut proxy = cluster.proxies[0].raw().await;
    let mut commands = 0;
    for row in command::served().filter(|row| row.keys != Keys::None) {
        let mut shapes = shapes(row);
        if ["set", "bitfield"].contains(&row.name) {
            let more = [
                "SET a b GET",
                "BITFIELD a GET u8 0",
                "BITFIELD a INCRBY u8 0 1",
            ];
            let words = |line: &&str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
            shapes.extend(
                more.iter()
                    .map(words)
                    .filter(|words| words[0].eq_ignore_ascii_case(row.name)),
            );
        }
        let expected = ask_command(&mut plain, "GETKEYSANDFLAGS", &shapes).await;
        let got = ask_command(&mut proxy, "GETKEYSANDFLAGS", &shapes).await;
        let mut compared = 0;
        for ((words, expected), got) in shapes.iter().zip(expected).zip(got) {
            if expected.starts_with('*') && got.starts_with('*') {
                assert_eq!(got, expected, "{words:?}");
                compared += 1;
            }
        }
        commands += usize::from(compared > 0);
    }
    assert!(commands > 150, "only {commands}");
}

/// What a plain server says, but for what a proxy does not serve.
#[tokio::test]
async fn commands_are_listed_as_redis_lists_them() {
    let cluster = Cluster::builder().groups(1).proxies(1).start().await;
    let mut plain = Raw::connect(&cluster.groups[0][0].addr).await;
    let mut proxy = cluster.proxies[0].raw().await;
    for request in [
        "COMMAND HELP",
        "COMMAND LIST x",
        "COMMAND LIST FILTERBY",
        "COMMAND LIST FILTERBY x y",
        "COMMAND LIST FILTERBY PATTERN",
        "COMMAND LIST FILTERBY MODULE x",
        "COMMAND LIST FILTERBY ACLCAT nope",
        "COMMAND LIST FILTERBY PATTERN NOPE*",
        "COMMAND LIST FILTERBY PATTERN [Gx]ET",
        "COMMAND INFO nope nope",
        "COMMAND DOCS get nope",
        "COMMAND DOCS config|get",
        "COMMAND COUNT x",
        "COMMAND NOPE",
        "COMMAND GETKEYS",
        "COMMAND GETKEYS nope a",
        "COMMAND GETKEYS config get x",
        "COMMAND GETKEYS get a b",
        "COMMAND GETKEYSANDFLAGS mget a b",
        "COMMAND GETKEYSANDFLAGS nope a",
    ] {
        let expected = plain.command(request).await;
        assert_eq!(proxy.command(request).await, expected, "{request}");
    }
    for (filter, least) in [
        ("ACLCAT string", 20),
        ("aclcat @string", 0),
        ("PATTERN z*", 30),
    ] {
        let names = |reply: String| -> BTreeSet<String> {
            let words = reply
                .split(' ')
                .filter(|word| !word.starts_with(['*', '$']));
            words.map(str::to_owned).collect()
        };
        let asked = format!("COMMAND LIST FILTERBY {filter}");
        let (all, own) = (
            names(plain.command(&asked).await),
            names(proxy.command(&asked).await),
        );
        let missing: Vec<_> = all
            .difference(&own)
            .filter(|name| command::served().any(|row| row.name == **name))
            .collect();
        assert!(
            missing.is_empty() && own.len() >= least,
            "{filter}: {missing:?} {own:?}"
        );
    }
}

async fn ask_command(client: &mut Raw, what: &str, requests: &[Vec<String>]) -> Vec<String> {
    let ask = |words: &Vec<String>| {
        let ask = ["COMMAND", what].map(str::to_owned);
        ask.into_iter().chain(words.iter().cloned()).collect()
    };
    let asked: Vec<Vec<String>> = requests.iter().map(ask).collect();
    client.pipeline(&asked).await;
    let mut replies = Vec::new();
    for _ in requests {
        replies.push(client.reply().await);
    }
    replies
}

/// Requests with up to five arguments more than it must have, all different, but for a number, or a word
/// that says what follows, at each place in turn.
fn shapes(row: &Command) -> Vec<Vec<String>> {
    let (command, subcommand) = row.words();
    let name: Vec<&str> = [command].into_iter().chain(subcommand).collect();
    let least = usize::from(row.arity.unsigned_abs());
    let most = if row.arity < 0 { least + 5 } else { least };
    let mut shapes = Vec::new();
    for len in least..=most {
        let plain = |at: usize| match name.get(at) {
            Some(word) => (*word).to_owned(),
            None => format!("key{at}"),
        };
        let plain: Vec<String> = (0..len).map(plain).collect();
        for at in name.len()..len {
            for word in ["0", "1", "2", "3", "STREAMS", "STORE", "STOREDIST"] {
                let mut words = plain.clone();
                words[at] = word.to_owned();
                shapes.push(words);
            }
        }
        shapes.push(plain);
    }
    shapes
}

/// Those of a request's words that the table says are keys.
fn keys<'a>(row: &Command, words: &'a [String]) -> BTreeSet<&'a str> {
    let mut raw = Vec::new();
    put_header(&mut raw, b'*', words.len());
    words
        .iter()
        .for_each(|word| put_bulk(&mut raw, word.as_bytes()));
    let limits = Limits {
        args: 100,
        arg_bytes: raw.len(),
        request_bytes: raw.len(),
    };
    let mut args = Vec::new();
    Progress::default()
        .scan(&raw, &mut args, &limits, true)
        .unwrap();
    let mut keys = BTreeSet::new();
    row.visit_keys(&Request::new(&raw, &args), |at| {
        keys.insert(words[at].as_str());
    });
    keys
}

#[tokio::test]
async fn what_is_not_served_is_unknown_in_the_words_of_redis() {
    let cluster = Cluster::builder().groups(1).proxies(1).start().await;
    let mut proxy = cluster.proxies[0].raw().await;
    for row in command::all().iter().filter(|row| !row.is_served()) {
        // At these two Redis ends the connection.
        if ["post", "host:"].contains(&row.name) {
            continue;
        }
        let (name, subcommand) = row.words();
        let container = command::lookup(name.as_bytes());
        let expected = match (container, subcommand) {
            (Some(_), Some(subcommand)) => format!(
                "-ERR unknown subcommand '{subcommand}'. Try {} HELP.",
                name.to_uppercase()
            ),
            (None, Some(subcommand)) => format!(
                "-ERR unknown command '{name}', with args beginning with: '{subcommand}' 'a' "
            ),
            (_, None) => {
                format!("-ERR unknown command '{name}', with args beginning with: 'a' ")
            }
        };
        let words = [Some(name), subcommand, Some("a")];
        let words: Vec<&str> = words.into_iter().flatten().collect();
        assert_eq!(proxy.command(&words.join(" ")).await, expected);
    }
}

#[tokio::test]
async fn commands_of_newer_servers_pass() {
    let crossed = "-CROSSSLOT Keys in request don't hash to the same slot";
    let redis = [
        ("HSETEX h EX 100 FIELDS 1 f v", ":1"),
        ("HPERSIST h FIELDS 1 f", "*1 :1"),
        ("HGETDEL h FIELDS 1 f", "*1 $1 v"),
        ("VADD v VALUES 2 1 1 e", ":1"),
        ("VCARD v", ":1"),
        (
            "VCARD",
            "-ERR wrong number of arguments for 'VCARD' command",
        ),
        ("XADD s 1-1 f v", "$3 1-1"),
        ("XDELEX s IDS 1 1-1", "*1 :1"),
        ("ZADD z 1 m", ":1"),
        ("ZRANK z m WITHSCORE", "*2 :0 $1 1"),
        (
            "MSETEX 1 a 1",
            "-ERR unknown command 'MSETEX', with args beginning with: '1' 'a' '1' ",
        ),
    ];
    let valkey = [
        ("HSETEX h FIELDS 1 f v", ":1"),
        ("HGETEX h FIELDS 1 f", "*1 $1 v"),
        ("MSETEX 2 {t}a 1 {t}b 2 EX 100", ":1"),
        ("MSETEX 2 a 1 foo 2", crossed),
        ("SET {t}a 3 IFEQ 1", "+OK"),
        ("DELIFEQ {t}a 3", ":1"),
        ("MGET {t}a {t}b foo", "*3 $-1 $1 2 $-1"),
        ("OBJECT ENCODING {t}b", "$3 int"),
    ];
    for (name, commands) in [("redis-8.2", &redis[..]), ("valkey-9.1", &valkey[..])] {
        let Some(program) = program(name) else {
            continue;
        };
        let cluster = Cluster::builder().server(program).groups(2).proxies(1);
        let cluster = cluster.start().await;
        let mut proxy = cluster.proxies[0].raw().await;
        for &(command, reply) in commands {
            assert_eq!(proxy.command(command).await, reply, "{name}: {command}");
        }
    }
}

/// `make commands` writes the page; otherwise it must be as that would write it.
#[test]
fn the_page_says_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../COMMANDS.md");
    let page = page();
    if env::var_os("COMMANDS").is_some_and(|what| what == "write") {
        fs::write(&path, page).unwrap();
    } else {
        let written = fs::read_to_string(&path).unwrap_or_default();
        assert!(written == page, "COMMANDS.md is old: run `make commands`");
    }
}

fn page() -> String {
    let count = |of: fn(&Command) -> bool| command::all().iter().filter(|row| of(row)).count();
    let mut page = format!(
        "# Commands\n\n\
         What a proxy does with each command and subcommand that Redis 6.2 to 8.2 and Valkey 8 and 9 know:\n\
         {} are served, {} are refused. These, and what is not listed, get Redis's own\n\
         `ERR unknown command`; nothing unknown is passed on. What is passed on must be known to\n\
         the servers too: `HEXPIRE` needs Redis 7.4 or Valkey 9. What goes to each group fails with the first\n\
         group that fails, unless its line says otherwise; a write that others executed then is\n\
         `-UNKNOWNOUTCOME`.\n\n\
         Between `MULTI` and `EXEC` may stand all of it but\n\
         {}.\n\
         What has keys goes to their group, which executes it as a whole or not at all. What goes to each group is executed there in its place; by the\n\
         other groups as a whole, too, but a moment later and each for itself: what one of them says that is\n\
         lost stands in the place of its command. What the proxy answers, `SELECT` and `HELLO` too, it does\n\
         when the rest is executed.\n\n\
         Written by `make commands` from the [table](dataplane/src/command/table.rs), which `make test`\n\
         holds against real servers.\n\n\
         | command | through a proxy |\n|---|---|\n",
        count(Command::is_served),
        count(|row| matches!(row.class, Class::Denied(_))),
        not_queued(),
    );
    for row in command::all() {
        let name = row.name.replace('|', " ").to_uppercase();
        page += &format!("| `{name}` | {} |\n", what_becomes_of(row));
    }
    page
}

/// What is served, but not in a transaction.
fn not_queued() -> String {
    let refused = command::all().iter().filter(|row| {
        row.is_served()
            && row.class.queued() == Queued::Not
            && !row.is_never_queued()
            && !matches!(row.class, Class::Container(_))
    });
    let names = refused.map(|row| format!("`{}`", row.name.replace('|', " ").to_uppercase()));
    names.collect::<Vec<_>>().join(" and ")
}

fn what_becomes_of(row: &Command) -> String {
    let blocking = row.flags & command::flag::BLOCKING != 0;
    let keyless = row.flags & command::flag::NO_MANDATORY_KEYS != 0;
    match row.class {
        Class::Forward if row.keys == Keys::None => {
            "passed on to one group, always the same".to_owned()
        }
        Class::Forward => {
            let keys = match row.keys {
                Keys::Range { first, last, .. } if first == last => "key",
                _ => "keys, which must share a slot",
            };
            let more = match (blocking, keyless) {
                (true, _) => "; on a connection of the client's own where it may block",
                (false, true) => "; without keys, always to the same group",
                (false, false) => "",
            };
            format!("passed on to the group of its {keys}{more}")
        }
        Class::Elements => {
            "passed on to the group of its key; the cursor is that server's, and begins again where the slot has \
             moved or another serves it"
                .to_owned()
        }
        Class::Sort => {
            "passed on to the group of its keys, which must share a slot, also with those of `BY` and \
             `GET`: what their hash tag says, before the `*`"
                .to_owned()
        }
        Class::Transaction(Bound::Multi) => "begins a transaction, kept in the proxy".to_owned(),
        Class::Transaction(Bound::Exec) => {
            "the transaction, passed on as one block to the group of its one slot; to others, too, what goes to \
             each"
                .to_owned()
        }
        Class::Transaction(Bound::Discard) => {
            "ends the transaction, of which nothing was sent".to_owned()
        }
        Class::Transaction(Bound::Watch) => {
            "on a connection of the client's own, up to its `EXEC`; keys must share a slot"
                .to_owned()
        }
        Class::Transaction(Bound::Unwatch) => "on the connection that watches".to_owned(),
        Class::Replicas => {
            "to each group that owns slots, on connections of the client's own; the least"
                .to_owned()
        }
        Class::Everywhere(merge) => {
            let merged = match merge {
                Merge::Values | Merge::Same => "they all say the same",
                Merge::Sum => "their numbers are added",
                Merge::Any => "one success is enough",
                Merge::Union => "each name once",
                Merge::Most => "the largest number",
                Merge::Events => "of each event the newest sample, and the highest",
                Merge::Samples => "their samples in the order of time",
                Merge::Histograms => "their histograms are added",
                Merge::Figures => "bytes and counts are added, of shares the highest",
                Merge::Running => "what runs at one of them, else what they all say",
            };
            format!("to each group that owns slots; {merged}")
        }
        Class::PubSub(PubSub::Subscribe(topic)) => {
            let home = match topic {
                Topic::Channel => "at the home of each channel, the group of its slot",
                Topic::Pattern => "at each group",
                Topic::Shard => "at the home of the channels, which must share a slot",
            };
            format!("the proxy subscribes {home}")
        }
        Class::PubSub(PubSub::Unsubscribe(_)) => {
            "the proxy ends the subscription at the servers with the last client's".to_owned()
        }
        Class::PubSub(PubSub::Publish(_)) => {
            "passed on to the home of its channel, the group of its slot; the clients of this proxy are \
             counted, of other proxies the workers that are subscribed; in a transaction the channel \
             counts as a key, and all workers are counted"
                .to_owned()
        }
        Class::PubSub(PubSub::Count(_)) => {
            "to each group that owns slots; counted as `PUBLISH` does".to_owned()
        }
        Class::Across(Across::Scan) => {
            "one group after another, a cursor for any proxy; keys of the group's own slots"
                .to_owned()
        }
        Class::Across(Across::Scripts) => {
            "to each group that owns slots; 1 where all say so, or the proxy has seen it".to_owned()
        }
        Class::Across(Across::NoTouch) => {
            "the client's reads go by connections of their own that leave keys untouched; if a server does \
             not know it, its error"
                .to_owned()
        }
        Class::Across(Across::ClusterKeys) => {
            "all keys are gone through, one group after another, as by `SCAN`: those of the slot"
                .to_owned()
        }
        Class::Across(Across::AllKeys) => {
            "to each group that owns slots; keys of its own slots, in one array".to_owned()
        }
        Class::Across(Across::RandomKey) => {
            "to each group that owns slots; one of their own keys, by their numbers".to_owned()
        }
        Class::Across(Across::Newest) => {
            "to each group that owns slots; the newest entries of all".to_owned()
        }
        Class::Across(Across::Report) => {
            "to each group that owns slots; a text of each".to_owned()
        }
        Class::Across(Across::Info) => {
            "to each group that owns slots; figures are added, and the proxy's own put in; a group that \
             fails is left out"
                .to_owned()
        }
        Class::Across(Across::Settings) => {
            "one group's settings, always the same group; and the proxy's, as `sluice-…`".to_owned()
        }
        Class::Across(Across::Configure) => {
            "with `--allow-config-set` to each group that owns slots".to_owned()
        }
        Class::Split(Split::Mget) => "split; the values in the order of the keys".to_owned(),
        Class::Split(Split::Mset) => "split; done when all parts are".to_owned(),
        Class::Split(Split::Sum) => "split; the parts' numbers are added".to_owned(),
        Class::Local(_) | Class::Container(Some(_)) => "answered by the proxy".to_owned(),
        Class::Crew(_) => "answered by all workers of the proxy".to_owned(),
        Class::Tracking => {
            "the proxy tells of changes, and has the servers tell it of them".to_owned()
        }
        Class::Container(None) => "by its subcommands".to_owned(),
        Class::Denied(why) => format!("refused: {why}"),
    }
}
