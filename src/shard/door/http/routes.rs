//! Routes: what a request asks for, as a line of the line protocol or a page of its own.

use super::What;
use super::answers::{Response, TEXT};
use crate::broker::command::Body;
use crate::broker::reply::{Error, ErrorCode};
use crate::log::Room;
use crate::log::disk::Storage;
use crate::protocol::http::decode::{Head, Method};
use crate::protocol::http::target::Target;
use crate::protocol::text::decode::compose;
use crate::shard::session::Flow;
use crate::shard::{Ending, Now, Shard};

/// The version that the text format of Prometheus has.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

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
        match route {
            (b"queue", name) if !is_get => self.http_publish(slot, name, target, body, now),
            (b"queue", name) if head.method == Method::Get => {
                self.http_pull(slot, name.unwrap_or(b"queue"), target, now)
            }
            // A HEAD never leases: it is told of the queue.
            (b"queue", name) => {
                let line = [b"QGET ", name.unwrap_or(b"queue")].concat();
                self.ask(slot, What::Queue, &line, None, now)
            }
            (b"ack" | b"nack" | b"touch", _) => {
                let line = settle_line(route.0, target, body.as_slice());
                match line {
                    Ok(line) => self.ask(slot, What::Count, &line, None, now),
                    Err(error) => self.refuse_http(slot, &error),
                }
            }
            (b"queues", None | Some(b"")) => {
                let mut line = b"QLS".to_vec();
                for (key, value) in target.pairs() {
                    if key != b"pattern" {
                        return self.refuse_http(slot, &no_parameter(key, "pattern"));
                    }
                    line.push(b' ');
                    line.extend_from_slice(value);
                }
                self.ask(slot, What::Queues, &line, None, now)
            }
            (b"queues", Some(name)) => {
                let line = [b"QGET ", name].concat();
                self.ask(slot, What::Queue, &line, None, now)
            }
            (b"metrics", _) => {
                let body = self.metrics(now);
                self.plain(slot, 200, METRICS, &body)
            }
            (b"healthz", _) => self.plain(slot, 200, TEXT, b"ok\n"),
            (b"readyz", _) => self.http_ready(slot),
            _ => self.plain(slot, 200, TEXT, ROUTES),
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

    fn refuse_http(&mut self, slot: usize, error: &Error) -> Flow {
        self.totals.count_error(error.code);
        self.conns[slot].respond_error(&mut self.pool, error);
        Flow::Done
    }

    /// Runs a command of the line protocol; what it is told becomes the response.
    fn ask(
        &mut self,
        slot: usize,
        what: What,
        line: &[u8],
        body: Option<Body<'_>>,
        now: Now,
    ) -> Flow {
        if let Some(current) = &mut self.conns[slot].http().current {
            current.what = what;
        }
        if line.len() > self.limits.line_bytes_max {
            let text = "this is more than a line of the broker's own protocol may have";
            return self.refuse_http(slot, &Error::new(ErrorCode::Line, text));
        }
        let limits = self.limits.clone();
        match compose(line, body, &limits) {
            Ok(request) => self.execute(slot, request, now),
            Err(error) => self.refuse_http(slot, &error),
        }
    }

    fn http_publish(
        &mut self,
        slot: usize,
        name: Option<&[u8]>,
        target: Target<'_>,
        body: Body<'_>,
        now: Now,
    ) -> Flow {
        let mut line = b"PUB ".to_vec();
        line.extend_from_slice(name.unwrap_or(b"queue"));
        for (key, value) in target.pairs() {
            push_option(&mut line, key, value);
        }
        let what = What::Receipt {
            is_text: name.is_none(),
        };
        self.ask(slot, what, &line, Some(body), now)
    }

    fn http_pull(&mut self, slot: usize, name: &[u8], target: Target<'_>, now: Now) -> Flow {
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
                    return self.refuse_http(slot, &no_parameter(key, known));
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
        self.ask(slot, what, &line, None, now)
    }

    /// Is the broker fit to take messages?
    fn http_ready(&mut self, slot: usize) -> Flow {
        let mut reasons = Vec::new();
        if self.is_draining() || self.ending != Ending::No {
            reasons.push("the broker is going down");
        }
        if self.failed.is_some() {
            reasons.push("the disk has failed");
        }
        if let Some(log) = &self.engine.log
            && log.room() == Room::DiskFull
        {
            reasons.push("the disk is full");
        }
        if self.engine.over_budget {
            reasons.push("the memory budget is used up");
        }
        if reasons.is_empty() {
            return self.plain(slot, 200, TEXT, b"ready\n");
        }
        let body = format!("not ready: {}\n", reasons.join(", "));
        self.plain(slot, 503, TEXT, body.as_bytes())
    }
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
fn settle_line(verb: &[u8], target: Target<'_>, body: &[u8]) -> Result<Vec<u8>, Error> {
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
    Ok(line)
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
        assert_eq!(line, b"NACK 1.1.1 1.1.2 1.1.3 delay=5s 1.2.3");
        let target = Target::new(b"/nack");
        assert!(settle_line(b"nack", target, b"1.1.1 dead=1").is_err());
        assert!(settle_line(b"ack", target, b" \n").is_err());
    }
}
