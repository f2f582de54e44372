use super::*;

const LIMITS: Limits = Limits {
    args: 1024,
    arg_bytes: 1 << 20,
    request_bytes: 1 << 21,
};

/// Scans all of `bytes`, given in chunks cut at `cuts`; what was found, as texts.
fn scan_all(bytes: &[u8], cuts: &[usize], authenticated: bool) -> Result<Vec<String>, String> {
    let limits = if authenticated {
        LIMITS
    } else {
        Limits::UNAUTHENTICATED
    };
    let mut found = Vec::new();
    let (mut progress, mut args, mut start) = (Progress::default(), Vec::new(), 0);
    for &end in cuts.iter().chain([&bytes.len()]) {
        loop {
            let rest = &bytes[start..end];
            let scanned = progress
                .scan(rest, &mut args, &limits, authenticated)
                .map_err(|e| e.to_string())?;
            let len = match scanned {
                Scanned::Incomplete => break,
                Scanned::Nothing(len) => len,
                Scanned::Request(len) => {
                    let request = Request::new(&rest[..len], &args);
                    let texts = request.args_from(0).map(String::from_utf8_lossy);
                    found.push(texts.collect::<Vec<_>>().join("|"));
                    len
                }
                Scanned::Inline(len) => {
                    let request = split_inline(&rest[..len]).map_err(|e| e.to_string())?;
                    found.extend(scan_all(&request, &[], true)?);
                    len
                }
            };
            start += len;
            (progress, args) = (Progress::default(), Vec::new());
        }
    }
    Ok(found)
}

/// The result must be the same however the bytes are cut.
fn check(bytes: &[u8], expected: Result<&[&str], &str>) {
    let expected = expected
        .map(|texts| texts.iter().map(|&t| t.to_owned()).collect::<Vec<_>>())
        .map_err(str::to_owned);
    let every_byte: Vec<usize> = (0..bytes.len()).collect();
    assert_eq!(scan_all(bytes, &every_byte, true), expected, "byte by byte");
    for cut in 0..=bytes.len() {
        let got = scan_all(bytes, &[cut], true);
        assert_eq!(
            got,
            expected,
            "{:?} cut at {cut}",
            String::from_utf8_lossy(bytes)
        );
    }
}

#[test]
fn requests() {
    check(b"*1\r\n$4\r\nPING\r\n", Ok(&["PING"]));
    check(
        b"*2\r\n$3\r\nGET\r\n$0\r\n\r\n*1\r\n$4\r\nPING\r\n",
        Ok(&["GET|", "PING"]),
    );
    check(
        b"*3\r\n$3\r\nSET\r\n$3\r\na\r\n\r\n$11\r\n01234567890\r\n",
        Ok(&["SET|a\r\n|01234567890"]),
    );
    check(
        b"*0\r\n*-1\r\n\r\n  \r\n*1\r\n$4\r\nPING\r\n",
        Ok(&["PING"]),
    );
}

#[test]
fn inline_requests() {
    check(b"PING\r\n", Ok(&["PING"]));
    check(b"set  a\t\"b c\\x41\\n\\\"\"  \n", Ok(&["set|a|b cA\n\""]));
    check(b"set 'it\\'s' \"\\xzz\"\n", Ok(&["set|it's|xzz"]));
    check(b"get \"\"\n", Ok(&["get|"]));
    check(
        b"\x0b\x0cget a\x0bb \"c\"\x0b\n\x0b\n",
        Ok(&["get|a\x0bb|c"]),
    );
    check(
        b"get \"a\n",
        Err("Protocol error: unbalanced quotes in request"),
    );
    check(
        b"get \"a\"b\n",
        Err("Protocol error: unbalanced quotes in request"),
    );
    check(
        b"\"x\\x4\n",
        Err("Protocol error: unbalanced quotes in request"),
    );
}

#[test]
fn broken_requests() {
    check(b"*x\r\n", Err("Protocol error: invalid multibulk length"));
    check(
        b"*2000000000\r\n",
        Err("Protocol error: invalid multibulk length"),
    );
    check(
        b"*99999999999999999999\r\n",
        Err("Protocol error: invalid multibulk length"),
    );
    check(
        b"*1\r\n*1\r\n$1\r\na\r\n",
        Err("Protocol error: expected '$', got '*'"),
    );
    check(
        b"*1\r\n:5\r\n",
        Err("Protocol error: expected '$', got ':'"),
    );
    check(b"*1\r\n$-1\r\n", Err("Protocol error: invalid bulk length"));
    check(b"*1\r\n$-2\r\n", Err("Protocol error: invalid bulk length"));
    check(
        b"*1\r\n$+4\r\nPING\r\n",
        Err("Protocol error: invalid bulk length"),
    );
    check(
        b"*1\r\n$536870913\r\n",
        Err("Protocol error: invalid bulk length"),
    );
}

#[test]
fn long_lines_without_an_end() {
    for (first, error) in [
        (&b"*1"[..], "too big mbulk count string"),
        (b"*1\r\n$1", "too big bulk count string"),
        (b"GET ", "too big inline request"),
    ] {
        let mut bytes = first.to_vec();
        bytes.resize(first.len() + 70_000, b'1');
        let got = scan_all(&bytes, &[], true).unwrap_err();
        assert!(got.contains(error), "{got}");
    }
}

#[test]
fn strangers_may_send_little() {
    let error = |bytes| scan_all(bytes, &[], false).unwrap_err();
    assert!(error(b"*11\r\n").contains("unauthenticated multibulk length"));
    assert!(error(b"*2\r\n$16385\r\n").contains("unauthenticated bulk length"));
    assert_eq!(
        scan_all(b"*1\r\n$4\r\nPING\r\n", &[], false).unwrap(),
        ["PING"]
    );
}

#[test]
fn a_request_in_many_reads_is_scanned_once() {
    let mut bytes = b"*2\r\n$3\r\nGET\r\n$100000\r\n".to_vec();
    let header = bytes.len();
    bytes.resize(header + 100_000, b'x');
    bytes.extend_from_slice(b"\r\n");
    let (mut progress, mut args) = (Progress::default(), Vec::new());
    let scanned = progress.scan(&bytes[..header + 1], &mut args, &LIMITS, true);
    assert_eq!(scanned, Ok(Scanned::Incomplete));
    assert_eq!((progress.need, args.len()), (bytes.len(), 1));
    assert_eq!(
        progress.scan(&bytes, &mut args, &LIMITS, true),
        Ok(Scanned::Request(bytes.len()))
    );
}

#[test]
fn numbers_are_redis_numbers() {
    for (text, number) in [
        ("0", Some(0)),
        ("-1", Some(-1)),
        ("9223372036854775807", Some(i64::MAX)),
        ("-9223372036854775808", Some(i64::MIN)),
        ("9223372036854775808", None),
        ("-0", None),
        ("01", None),
        ("+1", None),
        (" 1", None),
        ("", None),
        ("-", None),
    ] {
        assert_eq!(parse_int(text.as_bytes()), number, "{text:?}");
    }
}

#[test]
fn replies_of_every_type_are_framed() {
    let replies: &[&[u8]] = &[
        b"+OK\r\n",
        b"-ERR no\r\n",
        b":-12\r\n",
        b"$5\r\nhel\r\n\r\n",
        b"$0\r\n\r\n",
        b"$-1\r\n",
        b"*-1\r\n",
        b"*0\r\n",
        b"*2\r\n$1\r\na\r\n*2\r\n:1\r\n$-1\r\n",
        b"_\r\n",
        b"#t\r\n",
        b",3.14\r\n",
        b"(3492890328409238509324850943850943825024385\r\n",
        b"!5\r\nERR x\r\n",
        b"=7\r\ntxt:abc\r\n",
        b"~2\r\n+a\r\n+b\r\n",
        b"%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n:2\r\n",
        b"|1\r\n+ttl\r\n:3600\r\n:7\r\n",
        b">2\r\n+invalidate\r\n*1\r\n$1\r\na\r\n",
    ];
    for reply in replies {
        let shown = String::from_utf8_lossy(reply);
        let mut progress = ReplyProgress::default();
        for end in 0..reply.len() {
            assert_eq!(
                progress.scan(&reply[..end]),
                Ok(None),
                "{shown} cut at {end}"
            );
        }
        let mut bytes = reply.to_vec();
        bytes.extend_from_slice(b"+next\r\n");
        assert_eq!(progress.scan(&bytes), Ok(Some(reply.len())), "{shown}");
        assert_eq!(progress.scan(&bytes[reply.len()..]), Ok(Some(7)), "{shown}");
    }
}

#[test]
fn a_million_levels_of_nesting_cost_nothing() {
    let bytes = b"*1\r\n".repeat(1_000_000);
    assert_eq!(ReplyProgress::default().scan(&bytes), Ok(None));
}

#[test]
fn broken_replies() {
    for bytes in [
        &b"hello\r\n"[..],
        b"$x\r\n",
        b"$-2\r\n",
        b"*-7\r\n",
        b"+OK\rX",
        b"%9223372036854775807\r\n%9223372036854775807\r\n",
    ] {
        let shown = String::from_utf8_lossy(bytes);
        assert_eq!(
            ReplyProgress::default().scan(bytes),
            Err(BadReply),
            "{shown}"
        );
    }
}

/// However it is cut, walking over the rest of a request ends where scanning it does.
#[test]
fn the_rest_of_a_large_request_is_walked_over() {
    let mut bytes = b"*4\r\n$3\r\nSET\r\n$1\r\na\r\n".to_vec();
    let head = bytes.len();
    bytes.extend_from_slice(b"$20\r\n01234\r\n$9\r\n012345678\r\n$2\r\nxx\r\n");
    let end = bytes.len();
    bytes.extend_from_slice(b"*1\r\n$4\r\nPING\r\n");
    for received in head..end {
        let (mut progress, mut args) = (Progress::default(), Vec::new());
        let scanned = progress.scan(&bytes[..received], &mut args, &LIMITS, true);
        assert_eq!(scanned, Ok(Scanned::Incomplete));
        assert_eq!(progress.argc(args.len()), 4);
        for cut in received..=bytes.len() {
            let (passed, mut tail) = progress.tail(received, &LIMITS);
            let first = passed + tail.walk(&bytes[passed..cut], &LIMITS).unwrap();
            let all = first + tail.walk(&bytes[first..], &LIMITS).unwrap();
            assert_eq!((all, tail.is_done()), (end, true), "{received} {cut}");
        }
    }
}

#[test]
fn the_rest_of_a_large_request_has_the_same_limits() {
    let check = |rest: &[u8], expected| {
        let (mut progress, mut args) = (Progress::default(), Vec::new());
        let head = b"*4\r\n$3\r\nSET\r\n$1\r\na\r\n$20\r\n0123456789";
        progress.scan(head, &mut args, &LIMITS, true).unwrap();
        let (_, mut tail) = progress.tail(head.len(), &LIMITS);
        let bytes = [b"0123456789\r\n", rest].concat();
        assert_eq!(tail.walk(&bytes, &LIMITS), Err(expected), "{rest:?}");
    };
    check(b"*1\r\n", ProtocolError::ExpectedBulk(b'*'));
    check(b"$-1\r\n", ProtocolError::BulkLength);
    check(b"$x\r\n", ProtocolError::BulkLength);
    check(b"$1048577\r\n", ProtocolError::BulkLength);
    let (mut progress, mut args) = (Progress::default(), Vec::new());
    let head = b"*5\r\n$1\r\na\r\n$1048576\r\n";
    progress.scan(head, &mut args, &LIMITS, true).unwrap();
    let (_, mut tail) = progress.tail(head.len(), &LIMITS);
    let mut bytes = vec![b'x'; (1 << 20) + 2];
    bytes.extend_from_slice(b"$1048576\r\n");
    assert_eq!(
        tail.walk(&bytes, &LIMITS),
        Err(ProtocolError::RequestTooLarge)
    );
}

/// However much of a reply is passed on before it is whole, it ends where it ends.
#[test]
fn a_reply_can_be_passed_on_before_it_is_whole() {
    let reply = b"*3\r\n$20\r\n01234567890123456789\r\n:1234\r\n$5\r\nabcde\r\n";
    let mut bytes = reply.to_vec();
    bytes.extend_from_slice(b"+next\r\n");
    for cut in 1..reply.len() {
        for second in cut..reply.len() {
            let mut progress = ReplyProgress::default();
            let mut passed = 0;
            for end in [cut, second] {
                assert_eq!(progress.scan(&bytes[passed..end]), Ok(None));
                passed += progress.pass(end - passed);
            }
            let rest = progress.scan(&bytes[passed..]).unwrap().unwrap();
            assert_eq!(passed + rest, reply.len(), "{cut} {second}");
            assert_eq!(progress.scan(&bytes[passed + rest..]), Ok(Some(7)));
        }
    }
}

/// What a line costs that comes byte by byte must not grow with the square of its length.
#[test]
fn a_line_that_trickles_in_is_looked_through_once() {
    for head in [&b"*2\r\n$3\r\nGET\r\n$"[..], b"*", b"GET "] {
        let mut bytes = head.to_vec();
        bytes.resize(60_000, b'1');
        let (mut progress, mut args) = (Progress::default(), Vec::new());
        for end in head.len()..=bytes.len() {
            let scanned = progress.scan(&bytes[..end], &mut args, &LIMITS, true);
            assert_eq!(scanned, Ok(Scanned::Incomplete));
            assert_eq!(progress.looked, end - 1, "{end}");
        }
    }
    let tail = |body| Tail {
        body,
        missing: 1,
        budget: 1 << 20,
        looked: 0,
    };
    let bytes = [&b"$"[..], &[b'1'; 60_000]].concat();
    let mut walked = tail(0);
    for end in 2..=bytes.len() {
        assert_eq!(walked.walk(&bytes[..end], &LIMITS), Ok(0));
        assert_eq!(walked.looked, end - 1, "{end}");
    }
    // Half of its end may have come, and too long is still too long.
    let mut walked = tail(0);
    assert_eq!(walked.walk(b"$1\r", &LIMITS), Ok(0));
    assert_eq!(walked.walk(b"$1\r\nx\r\n", &LIMITS), Ok(7));
    assert!(walked.is_done());
    let mut walked = tail(0);
    let long = [&b"$"[..], &vec![b'1'; LINE_MAX]].concat();
    assert_eq!(walked.walk(&long[..LINE_MAX], &LIMITS), Ok(0));
    assert_eq!(
        walked.walk(&long, &LIMITS),
        Err(ProtocolError::LongBulkHeader)
    );
}
