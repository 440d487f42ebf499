//! A small client of HTTP for tests: requests as they are typed, responses taken apart.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// Nothing in these tests takes longer, whatever else the machine does.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// One connection.
pub struct Http(BufReader<TcpStream>);

/// A response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// The status line and every field, as sent.
    pub head: String,
    /// By names in small letters.
    pub fields: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

impl Http {
    pub fn connect(address: SocketAddr) -> Http {
        let stream = TcpStream::connect(address).expect("the broker listens");
        stream.set_nodelay(true).expect("a socket takes it");
        stream
            .set_read_timeout(Some(ANSWER_MAX))
            .expect("it is longer than 0");
        Http(BufReader::new(stream))
    }

    /// Sends bytes as they are. The broker may have closed already; what it said can still be read.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.get_mut().write_all(bytes);
    }

    /// Sends a request with `Host: localhost`; one of `POST` with its length and body.
    pub fn request(&mut self, method: &str, target: &str, body: &[u8]) {
        let mut request = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n");
        if method == "POST" {
            request += &format!("Content-Length: {}\r\n", body.len());
        }
        request += "\r\n";
        let body = if method == "POST" { body } else { b"" };
        self.send(&[request.as_bytes(), body].concat());
    }

    /// Sends a request and reads its response.
    pub fn ask(&mut self, method: &str, target: &str, body: &[u8]) -> Response {
        self.request(method, target, body);
        self.response(method == "HEAD")
    }

    pub fn half_close(&mut self) {
        let _ = self.0.get_mut().shutdown(Shutdown::Write);
    }

    /// The next response; one to a `HEAD` has no body.
    pub fn response(&mut self, is_head: bool) -> Response {
        let mut head = String::new();
        loop {
            let mut line = String::new();
            let count = self.0.read_line(&mut line).expect("a line comes");
            assert!(count > 0, "closed inside a head: {head:?}");
            if line == "\r\n" {
                break;
            }
            head += &line;
        }
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        let status = status.and_then(|word| word.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status in {head:?}"));
        let fields: BTreeMap<String, String> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let length = fields.get("content-length");
        let length = length.map_or(0, |length| length.parse().expect("a number"));
        let mut body = vec![0; if is_head { 0 } else { length }];
        self.0.read_exact(&mut body).expect("the body comes");
        Response {
            status,
            head,
            fields,
            body,
        }
    }

    /// The broker closes, and says nothing more.
    pub fn assert_closes(&mut self) {
        let mut more = Vec::new();
        match self.0.read_to_end(&mut more) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => panic!("it stays open: {error}"),
        }
        let more = String::from_utf8_lossy(&more);
        assert!(more.is_empty(), "there is more: {more:?}");
    }

    /// Nothing comes for so long.
    pub fn assert_silent(&mut self, time: Duration) {
        let stream = self.0.get_mut();
        stream.set_read_timeout(Some(time)).expect("above 0");
        let mut octet = [0];
        let found = self.0.read(&mut octet);
        let is_silent = matches!(&found, Err(error)
            if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
        assert!(is_silent, "{found:?} {octet:?}");
        let stream = self.0.get_mut();
        stream.set_read_timeout(Some(ANSWER_MAX)).expect("above 0");
    }
}
