//! A client that sends just the bytes it is told to, and reads replies byte by byte.

use std::time::Duration;

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::timeout,
};

use crate::SOON;

/// See the module.
pub struct Raw {
    stream: BufReader<TcpStream>,
}

impl Raw {
    /// Connects.
    pub async fn connect(addr: &str) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).await.unwrap();
    }

    /// Sends commands, each given as words, in one write.
    pub async fn pipeline(&mut self, commands: &[Vec<String>]) {
        let mut bytes = Vec::new();
        for words in commands {
            bytes.extend(format!("*{}\r\n", words.len()).bytes());
            for word in words {
                bytes.extend(format!("${}\r\n{word}\r\n", word.len()).bytes());
            }
        }
        self.send(&bytes).await;
    }

    /// Sends one command, given as words, and reads its reply.
    pub async fn command(&mut self, words: &str) -> String {
        let words = words.split(' ').map(str::to_owned).collect();
        self.pipeline(&[words]).await;
        self.reply().await
    }

    /// The next reply, as its bytes without line breaks: `+OK`, `$3 abc`, `*2 :1 :2`.
    pub async fn reply(&mut self) -> String {
        timeout(SOON, self.read_value())
            .await
            .expect("no reply")
            .expect("connection closed")
    }

    /// The same, if something comes within this time.
    pub async fn reply_within(&mut self, most: Duration) -> Option<String> {
        match timeout(most, self.stream.fill_buf()).await {
            Ok(read) => {
                read.expect("connection broken");
                Some(self.reply().await)
            }
            Err(_) => None,
        }
    }

    async fn read_value(&mut self) -> std::io::Result<String> {
        let mut text = String::new();
        let mut missing = 1;
        while missing > 0 {
            missing -= 1;
            let line = self.read_line().await?;
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(&line);
            let count = || line[1..].parse::<i64>().unwrap();
            match line.as_bytes()[0] {
                b'$' | b'=' if count() >= 0 => {
                    let mut body = vec![0; count() as usize + 2];
                    self.stream.read_exact(&mut body).await?;
                    text.push(' ');
                    text.push_str(&String::from_utf8_lossy(&body[..body.len() - 2]));
                }
                b'*' | b'~' | b'>' => missing += count().max(0),
                b'%' => missing += 2 * count(),
                _ => {}
            }
        }
        Ok(text)
    }

    async fn read_line(&mut self) -> std::io::Result<String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(self.stream.read_u8().await?);
        }
        line.truncate(line.len() - 2);
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// Sends bytes to somebody who may close, and drops what comes until then.
    pub async fn send_to_the_end(&mut self, bytes: &[u8]) {
        let (mut from, mut to) = tokio::io::split(self.stream.get_mut());
        let mut dropped = tokio::io::sink();
        let (sent, read) = tokio::join!(
            to.write_all(bytes),
            tokio::io::copy(&mut from, &mut dropped)
        );
        drop((sent, read)); // it was closed, one way or another
    }

    /// All that comes until the other side closes; panics if it does not.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match timeout(SOON, self.stream.read_to_end(&mut bytes))
            .await
            .expect("was not closed")
        {
            Ok(_) => {}
            // Closed with bytes unread: a reset, after what was sent before.
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(e) => panic!("{e}"),
        }
        bytes
    }
}
