use tokio::{
    io::AsyncReadExt as _,
    time::{Instant, sleep},
};

use super::*;

/// A server that answers each line with itself, and remembers what it was sent.
async fn echo() -> (String, watch::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let (heard_in, heard) = watch::channel(Vec::new());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let heard_in = heard_in.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                while let Ok(len @ 1..) = stream.read(&mut buffer).await {
                    heard_in.send_modify(|heard| heard.extend_from_slice(&buffer[..len]));
                    stream.write_all(&buffer[..len]).await.ok();
                }
            });
        }
    });
    (addr, heard)
}

async fn hears(heard: &mut watch::Receiver<Vec<u8>>, all: &str) {
    let wanted = heard.wait_for(|heard| heard == all.as_bytes());
    drop(timeout(crate::SOON, wanted).await.expect(all).unwrap());
}

async fn says(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

async fn reads(stream: &mut TcpStream, text: &str) {
    let mut got = vec![0; text.len()];
    let read = timeout(crate::SOON, stream.read_exact(&mut got)).await;
    read.expect("it is silent").unwrap();
    assert_eq!(got, text.as_bytes());
}

async fn is_reset(stream: &mut TcpStream) {
    let read = timeout(crate::SOON, stream.read(&mut [0; 8])).await;
    assert!(read.expect("it is open").is_err());
}

async fn is_silent(stream: &mut TcpStream) {
    let read = timeout(Duration::from_millis(200), stream.read(&mut [0; 8])).await;
    assert!(read.is_err(), "{read:?}");
}

#[tokio::test]
async fn bytes_pass_and_ends_pass() {
    let (to, mut heard) = echo().await;
    let relay = Relay::start(&to);
    let mut stream = TcpStream::connect(&relay.addr).await.unwrap();
    says(&mut stream, "a").await;
    reads(&mut stream, "a").await;
    says(&mut stream, "b").await;
    stream.shutdown().await.unwrap();
    reads(&mut stream, "b").await;
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    hears(&mut heard, "ab").await;
}

#[tokio::test]
async fn what_is_cut_is_reset_until_it_is_healed() {
    let (to, _) = echo().await;
    let relay = Relay::start(&to);
    let mut stream = TcpStream::connect(&relay.addr).await.unwrap();
    says(&mut stream, "a").await;
    reads(&mut stream, "a").await;
    relay.set(Fault::Cut);
    is_reset(&mut stream).await;
    if let Ok(mut another) = TcpStream::connect(&relay.addr).await {
        is_reset(&mut another).await;
    }
    relay.heal();
    let mut stream = TcpStream::connect(&relay.addr).await.unwrap();
    says(&mut stream, "a").await;
    reads(&mut stream, "a").await;
}

#[tokio::test]
async fn a_black_hole_is_silent_and_what_fell_into_it_is_lost() {
    let (to, heard) = echo().await;
    let relay = Relay::start(&to);
    let mut used = TcpStream::connect(&relay.addr).await.unwrap();
    let mut idle = TcpStream::connect(&relay.addr).await.unwrap();
    says(&mut idle, "a").await;
    reads(&mut idle, "a").await;
    relay.set(Fault::BlackHole);
    says(&mut used, "b").await;
    is_silent(&mut used).await;
    relay.heal();
    is_reset(&mut used).await;
    assert_eq!(*heard.borrow(), b"a");
    says(&mut idle, "c").await;
    reads(&mut idle, "c").await;
}

#[tokio::test]
async fn what_is_held_arrives_late_also_from_who_is_gone() {
    let (to, mut heard) = echo().await;
    let relay = Relay::start(&to);
    let mut stream = TcpStream::connect(&relay.addr).await.unwrap();
    relay.set(Fault::Hold);
    says(&mut stream, "late").await;
    is_silent(&mut stream).await;
    stream.set_zero_linger().unwrap();
    drop(stream);
    assert_eq!(*heard.borrow(), b"");
    relay.heal();
    hears(&mut heard, "late").await;
}

#[tokio::test]
async fn what_begins_with_a_request_is_held_from_there() {
    let (to, mut heard) = echo().await;
    let relay = Relay::start(&to);
    let mut stream = TcpStream::connect(&relay.addr).await.unwrap();
    relay.set(Fault::HoldFrom(b"wanted".to_vec()));
    says(&mut stream, "other").await;
    reads(&mut stream, "other").await;
    says(&mut stream, "wanted").await;
    is_silent(&mut stream).await;
    assert_eq!(*heard.borrow(), b"other");
    relay.heal();
    hears(&mut heard, "otherwanted").await;
}

#[tokio::test]
async fn what_is_delayed_comes_later_and_in_order() {
    let (to, _) = echo().await;
    let relay = Relay::start(&to);
    let mut stream = TcpStream::connect(&relay.addr).await.unwrap();
    let delay = Duration::from_millis(100);
    relay.set(Fault::Delay(delay));
    let since = Instant::now();
    says(&mut stream, "a").await;
    sleep(delay / 2).await;
    says(&mut stream, "b").await;
    reads(&mut stream, "ab").await;
    assert!(since.elapsed() >= delay * 5 / 2, "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_reply_is_swallowed_once_and_its_request_has_arrived() {
    let (to, mut heard) = echo().await;
    let relay = Relay::start(&to);
    let mut stream = TcpStream::connect(&relay.addr).await.unwrap();
    relay.set(Fault::SwallowReply(b"wanted".to_vec()));
    says(&mut stream, "other").await;
    reads(&mut stream, "other").await;
    says(&mut stream, "it is wan").await;
    reads(&mut stream, "it is wan").await;
    says(&mut stream, "ted").await;
    is_reset(&mut stream).await;
    hears(&mut heard, "otherit is wanted").await;
    let mut stream = TcpStream::connect(&relay.addr).await.unwrap();
    says(&mut stream, "wanted").await;
    reads(&mut stream, "wanted").await;
}

#[tokio::test]
async fn what_is_truncated_arrives_in_part() {
    let (to, mut heard) = echo().await;
    let relay = Relay::start(&to);
    let mut stream = TcpStream::connect(&relay.addr).await.unwrap();
    relay.set(Fault::Truncate(5));
    says(&mut stream, "abc").await;
    reads(&mut stream, "abc").await;
    says(&mut stream, "defg").await;
    is_reset(&mut stream).await;
    hears(&mut heard, "abcde").await;
}

/// Each process has an edge of its own.
#[tokio::test]
async fn a_fault_concerns_one_process() {
    let (to, mut heard) = echo().await;
    let relay = Relay::start(&to);
    let port = relay.addr.rsplit(':').next().unwrap().to_owned();
    let dir = tempfile::tempdir().unwrap();
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; sleep 0.2; echo hi >&3; cat <&3");
    let spawn = |name| Process::start(dir.path(), name, "bash", ["-c", &script], &[]);
    let mut cut = spawn("cut");
    relay.set_for(&cut, Fault::SwallowReply(Vec::new()));
    let passes = spawn("passes");
    relay.becomes(&cut, Fault::Pass).await;
    cut.wait(crate::SOON);
    hears(&mut heard, "hi\nhi\n").await;
    crate::eventually(|| async {
        match passes.log().as_str() {
            "hi\n" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    assert!(!cut.log().contains("hi\n"), "{}", cut.log());
}

#[tokio::test]
async fn what_is_stranded_arrives_late_and_others_pass() {
    let (to, mut heard) = echo().await;
    let relay = Relay::start(&to);
    let port = relay.addr.rsplit(':').next().unwrap().to_owned();
    let dir = tempfile::tempdir().unwrap();
    let open = format!("exec 3<>/dev/tcp/127.0.0.1/{port}");
    let script =
        format!("{open}; sleep 0.2; echo wanted >&3; cat <&3; {open}; echo hi >&3; cat <&3");
    let client = Process::start(dir.path(), "client", "bash", ["-c", &script], &[]);
    relay.set_for(&client, Fault::HoldFrom(b"wanted".to_vec()));
    relay.becomes(&client, Fault::Hold).await;
    relay.strand(&client);
    hears(&mut heard, "hi\n").await;
    relay.release();
    hears(&mut heard, "hi\nwanted\n").await;
}
