//! What a client asks for with `CLIENT TRACKING`, and what may be changed while it tracks. Pure; the
//! errors and their order are Redis's.

use std::collections::BTreeSet;

use crate::{
    error,
    resp::{Protocol, Request, parse_int, put_bulk, put_header, put_int, put_map, put_set},
};

/// Which reads a client is told about, when they are no longer true.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// All.
    All,
    /// Those behind a `CLIENT CACHING YES`.
    OptIn,
    /// All but those behind a `CLIENT CACHING NO`.
    OptOut,
    /// Whatever it reads: it is told of every change of a key with one of these prefixes.
    Broadcast(BTreeSet<Box<[u8]>>),
}

/// What a client has asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Options {
    pub(crate) mode: Mode,
    /// It is not told of what it changes itself.
    pub(crate) no_loop: bool,
    /// The client that is told instead.
    pub(crate) redirect: Option<u64>,
}

impl Options {
    pub(crate) fn broadcasts(&self) -> bool {
        match self.mode {
            Mode::Broadcast(_) => true,
            Mode::All | Mode::OptIn | Mode::OptOut => false,
        }
    }

    /// Whom it redirects to, as Redis tells it; 0: nobody.
    pub(crate) fn redirection(&self) -> i64 {
        self.redirect.map_or(0, |client| client as i64)
    }
}

/// A `CLIENT TRACKING`, read.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Asked {
    Off,
    On(Asking),
}

/// The options as they stand in the request.
#[derive(PartialEq, Eq, Debug, Default)]
pub(crate) struct Asking {
    pub(crate) redirect: Option<u64>,
    prefixes: Vec<Box<[u8]>>,
    broadcast: bool,
    opt_in: bool,
    opt_out: bool,
    no_loop: bool,
}

const REDIRECTS_TWICE: &str = "ERR A client can only redirect to a single other client";
pub(crate) const NO_SUCH_TARGET: &str = "ERR The client ID you want redirect to does not exist";
const PREFIX_WITHOUT_BCAST: &str = "ERR PREFIX option requires BCAST mode to be enabled";
const SWITCHES_BCAST: &str = "ERR You can't switch BCAST mode on/off before disabling tracking for this client, and then re-enabling it with a different mode.";
const BCAST_WITH_OPT: &str = "ERR OPTIN and OPTOUT are not compatible with BCAST";
const OPT_IN_AND_OUT: &str = "ERR You can't specify both OPTIN mode and OPTOUT mode";
const SWITCHES_OPT: &str = "ERR You can't switch OPTIN/OPTOUT mode before disabling tracking for this client, and then re-enabling it with a different mode.";
const CACHING_WITHOUT_TRACKING: &str = "ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or OPTOUT mode enabled";
const YES_WITHOUT_OPT_IN: &str =
    "ERR CLIENT CACHING YES is only valid when tracking is enabled in OPTIN mode.";
const NO_WITHOUT_OPT_OUT: &str =
    "ERR CLIENT CACHING NO is only valid when tracking is enabled in OPTOUT mode.";

impl Asked {
    /// Reads a request. Where it names a client to redirect to, that is returned beside: whether there
    /// is one has to be known before what is wrong behind it.
    pub(crate) fn parse(request: &Request<'_>) -> (Option<i64>, Result<Self, String>) {
        let mut asking = Asking::default();
        let mut redirect = None;
        let mut at = 3;
        while at < request.argc() {
            let option = request.arg(at);
            let more = at + 1 < request.argc();
            let is = |name: &[u8]| option.eq_ignore_ascii_case(name);
            if is(b"REDIRECT") && more {
                at += 1;
                if redirect.is_some() {
                    return (redirect, Err(REDIRECTS_TWICE.to_owned()));
                }
                let Some(id) = parse_int(request.arg(at)) else {
                    return (redirect, Err(error::NOT_AN_INTEGER.to_owned()));
                };
                redirect = Some(id);
                asking.redirect = u64::try_from(id).ok();
            } else if is(b"BCAST") {
                asking.broadcast = true;
            } else if is(b"OPTIN") {
                asking.opt_in = true;
            } else if is(b"OPTOUT") {
                asking.opt_out = true;
            } else if is(b"NOLOOP") {
                asking.no_loop = true;
            } else if is(b"PREFIX") && more {
                at += 1;
                asking.prefixes.push(request.arg(at).into());
            } else {
                return (redirect, Err(error::SYNTAX.to_owned()));
            }
            at += 1;
        }
        let switch = request.arg(2);
        let asked = if switch.eq_ignore_ascii_case(b"ON") {
            Ok(Self::On(asking))
        } else if switch.eq_ignore_ascii_case(b"OFF") {
            Ok(Self::Off)
        } else {
            Err(error::SYNTAX.to_owned())
        };
        (redirect, asked)
    }
}

impl Asking {
    /// What a client has then that had `before`.
    pub(crate) fn apply(self, before: Option<&Options>) -> Result<Options, String> {
        let refusal = if !self.broadcast && !self.prefixes.is_empty() {
            Some(PREFIX_WITHOUT_BCAST)
        } else if before.is_some_and(|before| before.broadcasts() != self.broadcast) {
            Some(SWITCHES_BCAST)
        } else if self.broadcast && (self.opt_in || self.opt_out) {
            Some(BCAST_WITH_OPT)
        } else if self.opt_in && self.opt_out {
            Some(OPT_IN_AND_OUT)
        } else if before.is_some_and(|before| {
            (self.opt_in && before.mode == Mode::OptOut)
                || (self.opt_out && before.mode == Mode::OptIn)
        }) {
            Some(SWITCHES_OPT)
        } else {
            None
        };
        if let Some(text) = refusal {
            return Err(text.to_owned());
        }
        let mode = if self.broadcast {
            let before = match before.map(|before| &before.mode) {
                Some(Mode::Broadcast(prefixes)) => prefixes.clone(),
                Some(Mode::All | Mode::OptIn | Mode::OptOut) | None => BTreeSet::new(),
            };
            Mode::Broadcast(add_prefixes(before, self.prefixes)?)
        } else if self.opt_in {
            Mode::OptIn
        } else if self.opt_out {
            Mode::OptOut
        } else {
            Mode::All
        };
        Ok(Options {
            mode,
            no_loop: self.no_loop,
            redirect: self.redirect,
        })
    }
}

/// Two of a client's prefixes must not have a key in common.
fn add_prefixes(
    before: BTreeSet<Box<[u8]>>,
    prefixes: Vec<Box<[u8]>>,
) -> Result<BTreeSet<Box<[u8]>>, String> {
    let collision = |prefix: &[u8], with: &[u8], what: &str| {
        format!(
            "ERR Prefix '{}' overlaps with {what} prefix '{}'. Prefixes for a single client must not \
             overlap.",
            String::from_utf8_lossy(prefix),
            String::from_utf8_lossy(with)
        )
    };
    if let Some(first) = first_overlapping(&before, &prefixes) {
        let (prefix, behind) = (&prefixes[first], &prefixes[first + 1..]);
        if let Some(with) = before.iter().find(|with| overlap(prefix, with)) {
            return Err(collision(prefix, with, "an existing"));
        }
        if let Some(with) = behind.iter().find(|with| overlap(prefix, with)) {
            return Err(collision(prefix, with, "another provided"));
        }
    }
    let mut all = before;
    if prefixes.is_empty() {
        all.insert(Box::default());
    }
    all.extend(prefixes);
    Ok(all)
}

/// The first of these prefixes that overlaps another one. There may be very many.
fn first_overlapping(before: &BTreeSet<Box<[u8]>>, prefixes: &[Box<[u8]>]) -> Option<usize> {
    let old = before.iter().map(|prefix| (prefix, None));
    let new = prefixes
        .iter()
        .zip(0..)
        .map(|(prefix, at)| (prefix, Some(at)));
    let mut sorted: Vec<(&Box<[u8]>, Option<usize>)> = old.chain(new).collect();
    sorted.sort_unstable();
    let mut first = None;
    // Those that the current one begins with, each beginning with the one before it.
    let mut around: Vec<(&Box<[u8]>, Option<usize>)> = Vec::new();
    for (prefix, at) in sorted {
        while around
            .last()
            .is_some_and(|(shorter, _)| !prefix.starts_with(shorter))
        {
            around.pop();
        }
        if let Some((_, shorter)) = around.last() {
            first = first.into_iter().chain(at).chain(*shorter).min();
        }
        around.push((prefix, at));
    }
    first
}

/// Whether there are keys that begin with both.
pub(super) fn overlap(one: &[u8], other: &[u8]) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

/// What a `CLIENT CACHING` says of the next command, or what is wrong with it.
pub(crate) fn caching(options: Option<&Options>, answer: &[u8]) -> Result<(), &'static str> {
    let Some(options) = options else {
        return Err(CACHING_WITHOUT_TRACKING);
    };
    if answer.eq_ignore_ascii_case(b"YES") {
        match options.mode {
            Mode::OptIn => Ok(()),
            Mode::All | Mode::OptOut | Mode::Broadcast(_) => Err(YES_WITHOUT_OPT_IN),
        }
    } else if answer.eq_ignore_ascii_case(b"NO") {
        match options.mode {
            Mode::OptOut => Ok(()),
            Mode::All | Mode::OptIn | Mode::Broadcast(_) => Err(NO_WITHOUT_OPT_OUT),
        }
    } else {
        Err(error::SYNTAX)
    }
}

/// `CLIENT GETREDIR`.
pub(crate) fn put_redirect(options: Option<&Options>, out: &mut Vec<u8>) {
    put_int(out, options.map_or(-1, Options::redirection));
}

/// `CLIENT TRACKINGINFO`. `caching`: a `CLIENT CACHING` waits for its command; `broken`: nobody is there
/// to be redirected to.
pub(crate) fn put_info(
    options: Option<&Options>,
    caching: bool,
    broken: bool,
    protocol: Protocol,
    out: &mut Vec<u8>,
) {
    let mut flags = vec![if options.is_some() { "on" } else { "off" }];
    let mut prefixes = None;
    if let Some(options) = options {
        match &options.mode {
            Mode::All => {}
            Mode::OptIn => {
                flags.push("optin");
                flags.extend(caching.then_some("caching-yes"));
            }
            Mode::OptOut => {
                flags.push("optout");
                flags.extend(caching.then_some("caching-no"));
            }
            Mode::Broadcast(all) => {
                flags.push("bcast");
                prefixes = Some(all);
            }
        }
        flags.extend(options.no_loop.then_some("noloop"));
        flags.extend(broken.then_some("broken_redirect"));
    }
    put_map(out, protocol, 3);
    put_bulk(out, b"flags");
    put_set(out, protocol, flags.len());
    flags.iter().for_each(|flag| put_bulk(out, flag.as_bytes()));
    put_bulk(out, b"redirect");
    put_redirect(options, out);
    put_bulk(out, b"prefixes");
    put_header(out, b'*', prefixes.map_or(0, BTreeSet::len));
    for prefix in prefixes.into_iter().flatten() {
        put_bulk(out, prefix);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::{Limits, Progress, split_inline};

    fn parse(words: &str) -> (Option<i64>, Result<Asked, String>) {
        let raw = split_inline(format!("client tracking {words}").as_bytes()).unwrap();
        let limits = Limits {
            args: 99,
            arg_bytes: 99,
            request_bytes: 9999,
        };
        let mut args = Vec::new();
        Progress::default()
            .scan(&raw, &mut args, &limits, true)
            .unwrap();
        Asked::parse(&Request::new(&raw, &args))
    }

    /// What a client has after these requests, or the error of the last.
    fn after(requests: &[&str]) -> Result<Option<Options>, String> {
        let mut options: Option<Options> = None;
        for (index, words) in requests.iter().enumerate() {
            let next = match parse(words).1 {
                Ok(Asked::Off) => Ok(None),
                Ok(Asked::On(asking)) => asking.apply(options.as_ref()).map(Some),
                Err(text) => Err(text),
            };
            match next {
                Ok(next) => options = next,
                Err(text) if index + 1 == requests.len() => return Err(text),
                Err(_) => {}
            }
        }
        Ok(options)
    }

    #[test]
    fn options_are_read_as_redis_reads_them() {
        let overlaps = |prefix: &str, what: &str, with: &str| {
            format!(
                "ERR Prefix '{prefix}' overlaps with {what} prefix '{with}'. Prefixes for a single \
                 client must not overlap."
            )
        };
        let syntax = || error::SYNTAX.to_owned();
        for (requests, text) in [
            (&["maybe"][..], syntax()),
            (&["on what"], syntax()),
            (&["on redirect"], syntax()),
            (&["on prefix"], syntax()),
            (&["off what"], syntax()),
            (&["on redirect x"], error::NOT_AN_INTEGER.to_owned()),
            (&["on redirect 1 redirect 1"], REDIRECTS_TWICE.to_owned()),
            (&["on prefix a"], PREFIX_WITHOUT_BCAST.to_owned()),
            (&["on bcast optin optout"], BCAST_WITH_OPT.to_owned()),
            (&["on optin optout"], OPT_IN_AND_OUT.to_owned()),
            (&["on", "on bcast"], SWITCHES_BCAST.to_owned()),
            (&["on bcast", "on"], SWITCHES_BCAST.to_owned()),
            (&["on optin", "on optout"], SWITCHES_OPT.to_owned()),
            (&["on optout", "on optin"], SWITCHES_OPT.to_owned()),
            (
                &["on bcast prefix foobar prefix foo"],
                overlaps("foobar", "another provided", "foo"),
            ),
            (
                &["on bcast prefix a prefix foo prefix fo"],
                overlaps("foo", "another provided", "fo"),
            ),
            (
                &["on bcast prefix y prefix b prefix bb prefix ya"],
                overlaps("y", "another provided", "ya"),
            ),
            (
                &[
                    "on bcast prefix b",
                    "on bcast prefix z prefix bbb prefix zz",
                ],
                overlaps("z", "another provided", "zz"),
            ),
            (
                &["on bcast prefix b", "on bcast prefix a prefix bbb prefix a"],
                overlaps("a", "another provided", "a"),
            ),
            (
                &["on bcast prefix foo", "on bcast prefix foo"],
                overlaps("foo", "an existing", "foo"),
            ),
            (
                &["on bcast", "on bcast prefix foo"],
                overlaps("foo", "an existing", ""),
            ),
        ] {
            assert_eq!(after(requests), Err(text), "{requests:?}");
        }
        let mode = |requests| after(requests).unwrap().unwrap().mode;
        assert_eq!(after(&["on", "off"]), Ok(None));
        assert_eq!(mode(&["on optin", "on", "on optout"]), Mode::OptOut);
        assert_eq!(mode(&["on bcast", "off", "on"]), Mode::All);
        let prefixes = |prefixes: &[&str]| {
            let boxed = prefixes.iter().map(|prefix| prefix.as_bytes().into());
            Mode::Broadcast(boxed.collect())
        };
        assert_eq!(mode(&["on bcast"]), prefixes(&[""]));
        assert_eq!(
            mode(&["on bcast prefix b", "ON BCAST PREFIX a noloop"]),
            prefixes(&["a", "b"])
        );
        // Without a PREFIX nothing is compared.
        assert_eq!(
            mode(&["on bcast prefix b", "on bcast"]),
            prefixes(&["", "b"])
        );
        let last = after(&["on redirect 7 noloop"]).unwrap().unwrap();
        assert_eq!((last.redirect, last.no_loop), (Some(7), true));
    }

    #[test]
    fn a_target_is_known_before_what_is_wrong_behind_it() {
        assert_eq!(
            parse("on redirect -3 what"),
            (Some(-3), Err(error::SYNTAX.to_owned()))
        );
        assert_eq!(
            parse("on what redirect 3"),
            (None, Err(error::SYNTAX.to_owned()))
        );
    }

    #[test]
    fn caching_belongs_to_its_mode() {
        let check = |words: &str, answer: &[u8], expected| {
            let options = after(&[words]).unwrap();
            assert_eq!(caching(options.as_ref(), answer), expected, "{words}");
        };
        check("off", b"yes", Err(CACHING_WITHOUT_TRACKING));
        check("on", b"yes", Err(YES_WITHOUT_OPT_IN));
        check("on bcast", b"no", Err(NO_WITHOUT_OPT_OUT));
        check("on optin", b"no", Err(NO_WITHOUT_OPT_OUT));
        check("on optin", b"maybe", Err(error::SYNTAX));
        check("on optin", b"YES", Ok(()));
        check("on optout", b"No", Ok(()));
    }

    #[test]
    fn info_says_what_was_asked_for() {
        let check = |words: &str, caching, broken, expected: &str| {
            let mut out = Vec::new();
            let options = after(&[words]).unwrap();
            put_info(options.as_ref(), caching, broken, Protocol::Resp2, &mut out);
            let text = String::from_utf8(out).unwrap();
            let words: Vec<&str> = text.split("\r\n").filter(|w| !w.starts_with('$')).collect();
            assert_eq!(words.join(" ").trim(), expected);
        };
        check(
            "off",
            false,
            false,
            "*6 flags *1 off redirect :-1 prefixes *0",
        );
        check(
            "on optin redirect 5",
            true,
            true,
            "*6 flags *4 on optin caching-yes broken_redirect redirect :5 prefixes *0",
        );
        check(
            "on bcast noloop prefix b prefix a",
            false,
            false,
            "*6 flags *3 on bcast noloop redirect :0 prefixes *2 a b",
        );
    }
}
