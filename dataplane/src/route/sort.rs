//! The keys that `SORT` makes of patterns and elements: whether all of them are certain to lie in a slot.
//!
//! No client names these keys, so that only their server could tell where they lie; and it would find
//! nothing where they are another group's, without a word. As in Redis Cluster a pattern is refused
//! unless its hash tag stands before what an element takes the place of.

use proto::Slot;

use super::Rejection;
use crate::resp::{Request, parse_int};

/// Why a request is refused, if it is: the first of its patterns that may lead out of this slot. What
/// the server will refuse anyway ends the search.
pub(super) fn stray(request: &Request<'_>, slot: Slot) -> Option<Rejection> {
    let mut at = 2;
    while at < request.argc() {
        let more = request.argc() - at - 1;
        let takes = |name: &[u8], arguments: usize| {
            request.arg(at).eq_ignore_ascii_case(name) && more >= arguments
        };
        let is_flag = |name: &&[u8]| takes(name, 0);
        at += if [&b"ASC"[..], b"DESC", b"ALPHA"].iter().any(is_flag) {
            1
        } else if takes(b"LIMIT", 2) {
            parse_int(request.arg(at + 1)).and(parse_int(request.arg(at + 2)))?;
            3
        } else if takes(b"STORE", 1) {
            2
        } else if takes(b"BY", 1) {
            if may_leave(request.arg(at + 1), slot) {
                return Some(Rejection::SortsBy);
            }
            2
        } else if takes(b"GET", 1) {
            if may_leave(request.arg(at + 1), slot) {
                return Some(Rejection::SortGets);
            }
            2
        } else {
            return None;
        };
    }
    None
}

/// Whether a key of this pattern may lie in another slot. Without a `*` no key is made of it.
fn may_leave(pattern: &[u8], slot: Slot) -> bool {
    let Some(star) = pattern.iter().position(|&b| b == b'*') else {
        return false;
    };
    let fixed = &pattern[..star];
    let open = fixed.iter().position(|&b| b == b'{');
    let is_tagged = open.is_some_and(|open| fixed[open..].contains(&b'}'));
    !is_tagged || Slot::of_key(fixed) != slot
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::{Limits, Progress, split_inline};

    #[test]
    fn patterns_are_refused_that_may_lead_elsewhere() {
        let check = |line: &str, expected: Option<Rejection>| {
            let raw = split_inline(line.as_bytes()).unwrap();
            let (mut args, limits) = (Vec::new(), Limits::UNAUTHENTICATED);
            let limits = Limits { args: 99, ..limits };
            Progress::default()
                .scan(&raw, &mut args, &limits, true)
                .unwrap();
            let request = Request::new(&raw, &args);
            let slot = Slot::of_key(request.arg(1));
            assert_eq!(stray(&request, slot), expected, "{line}");
        };
        let (by, get) = (Some(Rejection::SortsBy), Some(Rejection::SortGets));
        for (line, expected) in [
            ("sort {t}", None),
            ("sort {t} by nosort get # desc alpha", None),
            ("sort {t} by {t}w_* get {t}v_*->f get #", None),
            ("sort {t} by w_{t}_*->f", None),
            ("sort t get {t}*", None),
            ("sort {}x by {}w_* get {}y*", None),
            ("sort {t} by w_*", by),
            ("sort {t} By {u}w_*", by),
            ("sort {t} by *_{t}", by),
            ("sort {t} by {t*}", by),
            ("sort {t} by {*t}", by),
            ("sort {t} limit 0 1 get w_*", get),
            ("sort {t} by {t}* get # get {t}* get {u}*", get),
            ("sort {t} store by by w_*", by),
            // The server says what is wrong with the first thing that is.
            ("sort {t} nope by w_*", None),
            ("sort {t} limit a b by w_*", None),
            ("sort {t} get", None),
        ] {
            check(line, expected);
        }
    }
}
