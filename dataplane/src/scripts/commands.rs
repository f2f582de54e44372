//! The commands that a script calls, where its text says them all.
//!
//! Reads the words of a Lua script, and no more of the language: `redis.call` and `redis.pcall` are known if each
//! stands before a parenthesis and a name in quotes. Whatever else is done with `redis`, or could reach it or
//! make code of a text, makes the answer *unknown*. Servers let no script leave global functions behind; one that
//! was forced in all the same, by a trick, is not seen here.
//!
//! Pure; any bytes may come.

/// What a script may use of `redis` besides its calls.
const HARMLESS: &[&[u8]] = &[
    b"acl_check_cmd",
    b"breakpoint",
    b"debug",
    b"error_reply",
    b"log",
    b"replicate_commands",
    b"set_repl",
    b"setresp",
    b"sha1hex",
    b"status_reply",
];

/// What reaches globals by a text, or makes code of one.
const HIDDEN: &[&[u8]] = &[
    b"_ENV",
    b"_G",
    b"debug",
    b"dofile",
    b"getfenv",
    b"getmetatable",
    b"load",
    b"loadfile",
    b"loadstring",
    b"module",
    b"package",
    b"rawget",
    b"rawset",
    b"require",
    b"setfenv",
    b"setmetatable",
];

/// A piece of a script.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Token<'a> {
    /// A name, or a word of the language.
    Word(&'a [u8]),
    /// What stands between quotes, as it is meant.
    Text(&'a [u8]),
    /// A number, or a text that means something else than it says.
    Value,
    /// One other sign.
    Sign(u8),
}

/// The names of the commands, in small letters, each as often as it is called. `None`: there may be others.
pub(crate) fn commands(source: &[u8]) -> Option<Vec<String>> {
    let tokens = tokens(source)?;
    let mut commands = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        at += 1;
        match token {
            Token::Word(b"redis" | b"server") => {}
            Token::Word(word) if HIDDEN.contains(word) => return None,
            Token::Word(_) | Token::Text(_) | Token::Value | Token::Sign(_) => continue,
        }
        match tokens.get(at..)? {
            [
                Token::Sign(b'.'),
                Token::Word(b"call" | b"pcall"),
                Token::Sign(b'('),
                Token::Text(name),
                Token::Sign(b',' | b')'),
                ..,
            ] => {
                commands.push(String::from_utf8_lossy(name).to_lowercase());
                at += 4;
            }
            [Token::Sign(b'.'), Token::Word(name), ..] if is_harmless(name) => at += 2,
            _ => return None,
        }
    }
    Some(commands)
}

fn is_harmless(name: &[u8]) -> bool {
    HARMLESS.contains(&name) || name.starts_with(b"LOG_") || name.starts_with(b"REPL_")
}

/// All pieces of a script. `None`: it is no text, or one that servers do not take.
fn tokens(source: &[u8]) -> Option<Vec<Token<'_>>> {
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(&first) = rest.first() {
        let length = match first {
            b' ' | b'\t' | b'\r' | b'\n' => 1,
            b'-' if rest.starts_with(b"--") => 2 + comment(&rest[2..])?,
            b'[' => match bracketed(rest)? {
                Some(length) => {
                    tokens.push(Token::Value);
                    length
                }
                None => {
                    tokens.push(Token::Sign(first));
                    1
                }
            },
            b'"' | b'\'' => {
                let length = quoted(rest)?;
                let text = &rest[1..length - 1];
                tokens.push(if text.contains(&b'\\') {
                    Token::Value
                } else {
                    Token::Text(text)
                });
                length
            }
            b'0'..=b'9' => {
                tokens.push(Token::Value);
                run(rest, |b| b == b'.' || is_of_word(b))
            }
            _ if is_of_word(first) => {
                let length = run(rest, is_of_word);
                tokens.push(Token::Word(&rest[..length]));
                length
            }
            _ if first.is_ascii_punctuation() => {
                tokens.push(Token::Sign(first));
                1
            }
            _ => return None,
        };
        rest = &rest[length..];
    }
    Some(tokens)
}

fn is_of_word(byte: u8) -> bool {
    byte == b'_' || byte.is_ascii_alphanumeric()
}

/// How many bytes at the front are so.
fn run(bytes: &[u8], is: impl Fn(u8) -> bool) -> usize {
    bytes.iter().position(|b| !is(*b)).unwrap_or(bytes.len())
}

/// The length of what stands behind `--` and belongs to it.
fn comment(bytes: &[u8]) -> Option<usize> {
    if bytes.first() == Some(&b'[')
        && let Some(length) = bracketed(bytes)?
    {
        return Some(length);
    }
    Some(run(bytes, |b| b != b'\n' && b != b'\r'))
}

/// The length of a text in long brackets, `[[…]]` or `[=[…]=]`. The inner `None`: there is none at the front;
/// the outer: it has no end.
fn bracketed(bytes: &[u8]) -> Option<Option<usize>> {
    let level = run(&bytes[1..], |b| b == b'=');
    if bytes.get(1 + level) != Some(&b'[') {
        return Some(None);
    }
    let end = [b"]".as_slice(), &b"=".repeat(level), b"]"].concat();
    let start = level + 2;
    let inner = bytes[start..].windows(end.len()).position(|w| w == end)?;
    Some(Some(start + inner + end.len()))
}

/// The length of a text in quotes, with them. `None`: it has no end.
fn quoted(bytes: &[u8]) -> Option<usize> {
    let quote = bytes[0];
    let mut at = 1;
    loop {
        match *bytes.get(at)? {
            b'\\' => at += 2,
            b'\n' | b'\r' => return None,
            byte if byte == quote => return Some(at + 1),
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(source: &str, expected: &[&str]) {
        let found = commands(source.as_bytes());
        let expected: Vec<String> = expected.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(found, Some(expected), "{source}");
    }

    #[test]
    fn scripts_that_say_what_they_call() {
        check("", &[]);
        check("return 1", &[]);
        check("return redis.call('GET', KEYS[1])", &["get"]);
        check(
            "local n = redis.call(\"INCR\",KEYS[1])\nif n == 1 then redis.pcall('pExpire', KEYS[1], 1e3) end",
            &["incr", "pexpire"],
        );
        check(
            "redis.replicate_commands() redis . call ( 'TIME' )",
            &["time"],
        );
        check(
            "redis.log(redis.LOG_NOTICE, 'redis.call is fine here')",
            &[],
        );
        check(
            "-- redis.call(KEYS[1])\rreturn redis.call('GET',KEYS[1])",
            &["get"],
        );
        check("--[==[ redis.call(x) ]] ]==] return [[redis.call(x)]]", &[]);
        check(
            "local t = {} t[KEYS[1]] = redis.call('GET',KEYS[1]) .. 'it\\'s'",
            &["get"],
        );
    }

    #[test]
    fn scripts_that_do_not() {
        for source in [
            "return redis.call(ARGV[1], KEYS[1])",
            "return redis.call('PER' .. 'SIST', KEYS[1])",
            "return redis.call('PER\\83IST', KEYS[1])",
            "return redis.call [[PERSIST]]",
            "return redis.call'PERSIST'",
            "return redis.call([[PERSIST]], KEYS[1])",
            "return redis['call']('PERSIST', KEYS[1])",
            "local call = redis.call return call('PERSIST', KEYS[1])",
            "local r = redis return r.call('PERSIST', KEYS[1])",
            "return pcall(redis.call, 'PERSIST', KEYS[1])",
            "return _G[ARGV[1]]",
            "return loadstring(ARGV[1])()",
            "-- [[\nreturn redis.call(x)",
            "--[[ no end",
            "[[ no end",
            "'no end",
            "'no\nend'",
            "'\\",
            "return redis",
            "redis.",
            "#!lua\nreturn 1\u{7f}",
            "\u{1b}Lua",
        ] {
            assert_eq!(commands(source.as_bytes()), None, "{source}");
        }
    }
}
