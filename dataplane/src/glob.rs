//! Patterns as Redis has them: `*`, `?`, `[a-z]`, `[^a-z]`, and `\` before what stands for itself.
//!
//! Invariant: matching takes at most as many steps as pattern and text are long, multiplied. (Redis's own
//! takes exponentially many for `*a*a*a…`, until it gives up.)

/// Whether letters match in either case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Case {
    Exact,
    Either,
}

impl Case {
    fn of(self, byte: u8) -> u8 {
        match self {
            Self::Exact => byte,
            Self::Either => byte.to_ascii_lowercase(),
        }
    }
}

/// Whether a text matches a pattern. No text at all matches no pattern but an empty one, not even `*`:
/// Redis has it so.
pub(crate) fn matches(pattern: &[u8], text: &[u8], case: Case) -> bool {
    if text.is_empty() {
        return pattern.is_empty();
    }
    let (mut p, mut t) = (0, 0);
    // Behind the last `*`, and the text it was tried with: the only place worth going back to.
    let mut retry = None;
    loop {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            retry = Some((p, t));
            continue;
        }
        if p == pattern.len() && t == text.len() {
            return true;
        }
        let next = text.get(t).and_then(|&byte| one(&pattern[p..], byte, case));
        if let Some(len) = next {
            (p, t) = (p + len, t + 1);
            continue;
        }
        match retry {
            Some((behind, tried)) if tried < text.len() => {
                (p, t) = (behind, tried + 1);
                retry = Some((p, t));
            }
            Some(_) | None => return false,
        }
    }
}

/// If a pattern's first item matches a byte, how long the item is.
fn one(pattern: &[u8], byte: u8, case: Case) -> Option<usize> {
    let same = |a: u8| case.of(a) == case.of(byte);
    match *pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'[', ..] => set(pattern, byte, case),
        [b'\\', literal, ..] => same(literal).then_some(2),
        [literal, ..] => same(literal).then_some(1),
    }
}

/// As [`one`], of `[…]`; one without an end goes to the pattern's, as in Redis.
fn set(pattern: &[u8], byte: u8, case: Case) -> Option<usize> {
    let negated = pattern.get(1) == Some(&b'^');
    let mut at = 1 + usize::from(negated);
    let byte = case.of(byte);
    let mut found = false;
    loop {
        match pattern[at..] {
            [] => break,
            [b']', ..] => {
                at += 1;
                break;
            }
            [b'\\', literal, ..] => {
                found |= case.of(literal) == byte;
                at += 2;
            }
            [first, b'-', last, ..] => {
                let (first, last) = (case.of(first), case.of(last));
                found |= (first.min(last)..=first.max(last)).contains(&byte);
                at += 3;
            }
            [literal, ..] => {
                found |= case.of(literal) == byte;
                at += 1;
            }
        }
    }
    (found != negated).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_redis() {
        for (pattern, text, expected) in [
            ("*", "", false),
            ("*", "any", true),
            ("", "", true),
            ("", "a", false),
            ("a", "", false),
            ("abc", "ABC", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a*c", "abbc", true),
            ("a*c", "abbd", false),
            ("*max*", "sluice-max-clients", true),
            ("h[ae]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("h[a-c]llo", "hdllo", false),
            ("[a", "a", true),
            ("[", "a", false),
            ("[^", "a", true),
            ("[\\]]", "]", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("\\", "\\", true),
            ("a**b", "ab", true),
            ("*a*b*", "xaxbx", true),
            ("*a*b", "xaxbx", false),
        ] {
            let got = matches(pattern.as_bytes(), text.as_bytes(), Case::Either);
            assert_eq!(got, expected, "{pattern} {text}");
            let exact = matches(pattern.as_bytes(), text.as_bytes(), Case::Exact);
            assert_eq!(exact, expected && text != "ABC", "{pattern} {text}");
        }
    }

    #[test]
    fn no_pattern_takes_long() {
        let (pattern, text) = ("*a".repeat(5000) + "b", "a".repeat(10_000));
        assert!(!matches(pattern.as_bytes(), text.as_bytes(), Case::Exact));
    }
}
