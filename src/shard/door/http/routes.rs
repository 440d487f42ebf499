//! Routes: what a request asks for, as a line of the line protocol or a page of its own.

use super::answers::{Response, TEXT};
use super::{Page, What};
use crate::broker::command::Body;
use crate::broker::reply::{Error, ErrorCode};
use crate::log::disk::Storage;
use crate::protocol::http::decode::{Head, Method};
use crate::protocol::http::target::Target;
use crate::protocol::text::decode::compose;
use crate::shard::peers::Plan;
use crate::shard::session::Flow;
use crate::shard::{Now, Shard};

const ROUTES: &[u8] = b"RingMQ speaks HTTP here:\n\
  POST /queue/NAME      publish the body            ?delay= &pri= &key= &once= &ttl= &h.NAME=\n\
  GET  /queue/NAME      take a message              ?wait=30s &n= &lease= &group= &from= &ack=auto\n\
  POST /ack             handles in the body\n\
  POST /nack            handles in the body         ?delay= &dead=1 &why=\n\
  POST /touch           handles in the body         ?lease=\n\
  GET  /queues          every queue                 ?pattern=\n\
  GET  /queues/NAME     one queue\n\
  GET  /metrics /healthz /readyz\n";

impl<S: Storage> Shard<S> {
    fn plain(&mut self, slot: usize, status: u16, content_type: &str, body: &[u8]) -> Flow {
        let response = Response::new(status, content_type);
        self.conns[slot].respond(&mut self.pool, &response, body);
        Flow::Done
    }

    pub(super) fn run_route(&mut self, slot: usize, head: &Head, body: Body<'_>, now: Now) -> Flow {
        if let Some((status, text)) = self.is_foreign(slot, head) {
            return self.plain(slot, status, TEXT, text.as_bytes());
        }
        let target = Target::new(&head.target);
        let mut segments = target.segments();
        let route = (segments.next().unwrap_or_default(), segments.next());
        if segments.next().is_some() {
            return self.plain(slot, 404, TEXT, b"there is no such page; / lists them\n");
        }
        let is_get = matches!(head.method, Method::Get | Method::Head);
        let allow = match route.0 {
            b"queue" => "GET, HEAD, POST",
            b"ack" | b"nack" | b"touch" if route.1.is_none() => "POST",
            b"queues" => "GET, HEAD",
            b"" | b"metrics" | b"healthz" | b"readyz" if route.1.is_none() => "GET, HEAD",
            _ => return self.plain(slot, 404, TEXT, b"there is no such page; / lists them\n"),
        };
        let fits = match head.method {
            Method::Get | Method::Head => allow.starts_with("GET"),
            Method::Post => allow.ends_with("POST"),
            Method::Other => false,
        };
        if !fits {
            let response = Response {
                allow: Some(allow),
                ..Response::new(405, TEXT)
            };
            let body = format!("this page takes {allow}\n");
            self.conns[slot].respond(&mut self.pool, &response, body.as_bytes());
            return Flow::Done;
        }
        if !is_get && !head.has_length {
            let text = b"a POST says how long its body is: Content-Length, or chunks\n";
            return self.plain(slot, 411, TEXT, text);
        }
        let line = match route {
            (b"queue", name) if !is_get => Ok(publish_line(name, target)),
            (b"queue", name) if head.method == Method::Get => {
                pull_line(name.unwrap_or(b"queue"), target)
            }
            // A HEAD never leases: it is told of the queue.
            (b"queue", name) => Ok(queue_line(name.unwrap_or(b"queue"))),
            (b"ack" | b"nack" | b"touch", _) => settle_line(route.0, target, body.as_slice()),
            (b"queues", None | Some(b"")) => list_line(target),
            (b"queues", Some(name)) => Ok(queue_line(name)),
            (b"metrics", _) => return self.http_page(slot, Page::Metrics, now),
            (b"healthz", _) => return self.plain(slot, 200, TEXT, b"ok\n"),
            (b"readyz", _) => return self.http_page(slot, Page::Ready, now),
            _ => return self.plain(slot, 200, TEXT, ROUTES),
        };
        match line {
            Ok(line) => self.ask(slot, line, head, body, now),
            Err(error) => self.refuse_http(slot, &error),
        }
    }

    /// A browser may send requests that its user never meant: by a page of another origin, or by a name that
    /// its owner has made to mean this machine.
    fn is_foreign(&self, slot: usize, head: &Head) -> Option<(u16, &'static str)> {
        let entrance = self.conns[slot].entrance;
        if entrance.is_loopback && !head.host.is_empty() && !is_this_machine(&head.host) {
            let text = "this address is called localhost, 127.0.0.1 or [::1]\n";
            return Some((421, text));
        }
        let origin = head.origin.as_deref()?;
        let own = origin
            .strip_prefix(b"http://".as_slice())
            .or_else(|| origin.strip_prefix(b"https://"));
        if own.is_some_and(|own| own.eq_ignore_ascii_case(&head.host)) {
            return None;
        }
        Some((403, "pages of other origins may not use this broker\n"))
    }

    pub(super) fn refuse_http(&mut self, slot: usize, error: &Error) -> Flow {
        self.totals.count_error(error.code);
        self.conns[slot].respond_error(&mut self.pool, error);
        Flow::Done
    }

    /// Runs a command of the line protocol; what it is told becomes the response.
    fn ask(&mut self, slot: usize, line: Line, head: &Head, body: Body<'_>, now: Now) -> Flow {
        if line.text.len() > self.limits.line_bytes_max {
            let text = "this is more than a line of the broker's own protocol may have";
            return self.refuse_http(slot, &Error::new(ErrorCode::Line, text));
        }
        let limits = self.limits.clone();
        let message = line.takes_body.then(|| body.clone());
        let request = match compose(&line.text, message, &limits) {
            Ok(request) => request,
            Err(error) => return self.refuse_http(slot, &error),
        };
        if let Some(current) = &mut self.conns[slot].http().current {
            current.what = line.what;
        }
        if self.peers.is_some() {
            let plan = self.route(slot, &request);
            if !matches!(plan, Plan::Here) {
                return self.pass_on(slot, plan, (head, &body), &line.text, &request, now);
            }
        }
        self.execute(slot, request, now)
    }
}

/// What a request asks for, in the line protocol.
struct Line {
    text: Vec<u8>,
    /// Its body is the command's.
    takes_body: bool,
    what: What,
}

impl Line {
    fn new(what: What, text: Vec<u8>) -> Line {
        Line {
            text,
            takes_body: false,
            what,
        }
    }
}

fn queue_line(name: &[u8]) -> Line {
    Line::new(What::Queue, [b"QGET ", name].concat())
}

fn list_line(target: Target<'_>) -> Result<Line, Error> {
    let mut line = b"QLS".to_vec();
    for (key, value) in target.pairs() {
        if key != b"pattern" {
            return Err(no_parameter(key, "pattern"));
        }
        line.push(b' ');
        // With a colon in front the rest of a line would be a body.
        let value = match value {
            [b':', rest @ ..] => {
                line.extend_from_slice(b"%3A");
                rest
            }
            value => value,
        };
        line.extend_from_slice(value);
    }
    Ok(Line::new(What::Queues, line))
}

fn publish_line(name: Option<&[u8]>, target: Target<'_>) -> Line {
    let mut line = b"PUB ".to_vec();
    line.extend_from_slice(name.unwrap_or(b"queue"));
    for (key, value) in target.pairs() {
        push_option(&mut line, key, value);
    }
    let what = What::Receipt {
        is_text: name.is_none(),
    };
    Line {
        takes_body: true,
        ..Line::new(what, line)
    }
}

fn pull_line(name: &[u8], target: Target<'_>) -> Result<Line, Error> {
    let mut line = b"PULL ".to_vec();
    line.extend_from_slice(name);
    let value = |wanted: &[u8]| target.pairs().find(|(key, _)| *key == wanted);
    if let Some((_, group)) = value(b"group") {
        line.push(b'/');
        line.extend_from_slice(group);
    }
    let count = value(b"n").map_or(b"1".as_slice(), |(_, count)| count);
    line.push(b' ');
    line.extend_from_slice(count);
    let mut holds = true;
    for (key, value) in target.pairs() {
        match key {
            b"group" | b"n" => {}
            b"wait" | b"lease" | b"from" | b"bytes" => push_option(&mut line, key, value),
            b"ack" => {
                push_option(&mut line, key, value);
                holds = false;
            }
            _ => {
                let known = "n, wait, lease, group, from, bytes and ack";
                return Err(no_parameter(key, known));
            }
        }
    }
    line.extend_from_slice(match holds {
        // The message is worked on after the connection has gone.
        true => b" ts=1 hold=1",
        false => b" ts=1",
    });
    let what = match count {
        b"1" => What::Message { is_given: false },
        _ => What::Messages {
            json: Vec::new(),
            count: 0,
        },
    };
    Ok(Line::new(what, line))
}

fn no_parameter(key: &[u8], known: &str) -> Error {
    let text = format!(
        "there is no parameter {} here, only {known}",
        String::from_utf8_lossy(key)
    );
    Error::new(ErrorCode::Syntax, text)
}

fn push_option(line: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    line.push(b' ');
    line.extend_from_slice(key);
    line.push(b'=');
    line.extend_from_slice(value);
}

/// `ACK`, `NACK` or `TOUCH` with the handles of a body, which white space or commas separate.
fn settle_line(verb: &[u8], target: Target<'_>, body: &[u8]) -> Result<Line, Error> {
    let mut line = verb.to_ascii_uppercase();
    let mut count = 0;
    let mut push = |line: &mut Vec<u8>, handle: &[u8]| {
        if handle.contains(&b'=') {
            let text = "the body holds handles, separated by white space or commas";
            return Err(Error::new(ErrorCode::Syntax, text));
        }
        count += 1;
        line.push(b' ');
        line.extend_from_slice(handle);
        Ok(())
    };
    let is_between = |octet: &u8| octet.is_ascii_whitespace() || *octet == b',' || *octet == 0;
    for handle in body.split(is_between).filter(|handle| !handle.is_empty()) {
        push(&mut line, handle)?;
    }
    for (key, value) in target.pairs() {
        match key {
            b"handle" => push(&mut line, value)?,
            _ => push_option(&mut line, key, value),
        }
    }
    if count == 0 {
        let text = "name handles in the body or with ?handle=, as X-RingMQ-Handle says them";
        return Err(Error::new(ErrorCode::Syntax, text));
    }
    Ok(Line::new(What::Count, line))
}

/// A name or address of the machine itself, with or without a port.
fn is_this_machine(host: &[u8]) -> bool {
    let host = String::from_utf8_lossy(host).to_ascii_lowercase();
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost"
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_its_own() {
        for own in [
            "localhost",
            "LOCALHOST:7766",
            "127.0.0.1",
            "127.8.8.8:1",
            "[::1]:7766",
        ] {
            assert!(is_this_machine(own.as_bytes()), "{own}");
        }
        for other in [
            "",
            "example.com",
            "localhost.example.com",
            "10.0.0.1:7766",
            "127.0.0.1.nip.io",
            "[::2]",
        ] {
            assert!(!is_this_machine(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn handles_are_separated_by_anything_white_and_never_options() {
        let target = Target::new(b"/nack?delay=5s&handle=1.2.3");
        let line = settle_line(b"nack", target, b"1.1.1\n1.1.2, 1.1.3\r\n").expect("it is good");
        assert_eq!(line.text, b"NACK 1.1.1 1.1.2 1.1.3 delay=5s 1.2.3");
        let target = Target::new(b"/nack");
        assert!(settle_line(b"nack", target, b"1.1.1 dead=1").is_err());
        assert!(settle_line(b"ack", target, b" \n").is_err());
    }
}
