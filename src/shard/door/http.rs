//! HTTP/1.1: routes to commands, and what the shard tells to responses.
//!
//! A request is a line of the line protocol that its route and parameters spell (`text::decode::compose`), so
//! limits, names, options and errors are the same. One request of a connection is under way at a time; those
//! behind it stay in the input.

use super::super::conn::{Conn, Life};
use super::super::session::Flow;
use super::super::{Ending, Now, Shard};
use super::{Session as Door, Told};
use crate::broker::command::Body;
use crate::broker::headers::{self, Value};
use crate::broker::reply::{Delivery, Error, ErrorCode, Payload, Reply};
use crate::buffer::send::Pool;
use crate::log::Room;
use crate::log::disk::Storage;
use crate::protocol::http::decode::{Decoder, Head, Method, Refusal, Step};
use crate::protocol::http::encode::{self, CONTINUE};
use crate::protocol::http::json;
use crate::protocol::http::target::Target;
use crate::protocol::text::decode::compose;
use crate::protocol::text::{IN_PLACE_BYTES_MAX, encode as text};

/// What a producer that posts to `/queue` is answered.
const RECEIVED: &[u8] = b"Message received successfully";

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
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

/// One connection.
#[derive(Debug, Default)]
pub struct Session {
    /// What comes in.
    pub decoder: Decoder,
    /// The request that is being answered.
    current: Option<Current>,
}

impl Session {
    /// What to answer when the input ends here.
    pub fn unfinished(&self) -> Option<Error> {
        self.decoder.in_frame().then(|| {
            Error::new(
                ErrorCode::Proto,
                "the input ended inside a request, which was not run",
            )
        })
    }

    /// Memory held, bytes.
    pub fn memory(&self) -> usize {
        let json = match &self.current {
            Some(Current {
                what: What::Messages { json, .. },
                ..
            }) => json.capacity(),
            _ => 0,
        };
        size_of::<Session>() + self.decoder.memory() + json
    }
}

/// A request whose answer is to come.
#[derive(Debug)]
struct Current {
    what: What,
    is_head: bool,
    keep_alive: bool,
}

/// What the answer is to look like.
#[derive(Debug)]
enum What {
    /// Written where it is decided.
    Plain,
    /// A receipt, as text for `/queue`, as JSON for others.
    Receipt { is_text: bool },
    /// A message is the body.
    Message { is_given: bool },
    /// Messages in JSON, as far as there are any.
    Messages { json: Vec<u8>, count: u64 },
    /// How many handles were live.
    Count,
    /// The lines of `QLS`.
    Queues,
    /// The lines of `QGET`.
    Queue,
}

/// A response without its body.
struct Response<'a> {
    status: u16,
    content_type: &'a str,
    /// When to try again, seconds.
    retry_s: Option<u64>,
    /// Methods that the route takes.
    allow: Option<&'a str>,
    fields: &'a [(&'a str, &'a [u8])],
}

impl<'a> Response<'a> {
    fn new(status: u16, content_type: &'a str) -> Response<'a> {
        Response {
            status,
            content_type,
            retry_s: None,
            allow: None,
            fields: &[],
        }
    }
}

impl Conn {
    fn http(&mut self) -> &mut Session {
        match &mut self.session {
            Door::Http(session) => session,
            other => unreachable!("{other:?} is no session of HTTP"),
        }
    }

    /// Answers the request under way; without one the connection ends behind the answer.
    fn respond(&mut self, pool: &mut Pool, response: &Response<'_>, body: &[u8]) {
        let current = self.http().current.take();
        let (is_head, keep_alive) = match &current {
            Some(current) => (current.is_head, current.keep_alive),
            None => (false, false),
        };
        let out = self.out.writer(pool);
        let mut head = encode::Head::new(out, response.status);
        if let Some(retry_s) = response.retry_s {
            head.number("Retry-After", retry_s);
        }
        if let Some(allow) = response.allow {
            head.field("Allow", allow.as_bytes());
        }
        for (name, value) in response.fields {
            head.field(name, value);
        }
        if response.status == 204 {
            head.end(None, keep_alive);
        } else {
            head.field("Content-Type", response.content_type.as_bytes());
            head.end(Some(body.len()), keep_alive);
            if !is_head {
                out.extend_from_slice(body);
            }
        }
        if !keep_alive {
            self.life = Life::Closing;
        }
    }

    fn respond_error(&mut self, pool: &mut Pool, error: &Error) {
        let mut body = b"{\"error\":".to_vec();
        json::string(&mut body, error.code.word().as_bytes());
        body.extend_from_slice(b",\"text\":");
        json::string(&mut body, error.text.as_bytes());
        body.extend_from_slice(b"}\n");
        let status = status_of(error.code);
        let retry_s = error.retry_ms.map(|ms| u64::from(ms).div_ceil(1000).max(1));
        let response = Response {
            retry_s,
            ..Response::new(status, JSON)
        };
        if error.code == ErrorCode::Proto {
            // Nobody knows where the next request begins.
            self.http().current = None;
        }
        self.respond(pool, &response, &body);
    }

    /// What the shard tells becomes the response, or a part of it.
    #[cold]
    pub(super) fn tell_http(&mut self, pool: &mut Pool, told: Told<'_>) {
        let reply = match told {
            Told::Message(delivery) => return self.http_message(pool, delivery),
            // There are no subscriptions here, and nobody asks to be told of leases.
            Told::Gone { .. } | Told::Lag { .. } | Told::Expired(_) => return,
            Told::Reply(reply) => reply,
        };
        match reply {
            Reply::Error(error) => self.respond_error(pool, error),
            Reply::Receipt {
                id,
                level,
                duplicate,
            } => {
                let id = id.to_string();
                let level = level.receipt();
                let mut fields = vec![
                    ("X-RingMQ-Id", id.as_bytes()),
                    ("X-RingMQ-Level", level.as_bytes()),
                ];
                if *duplicate {
                    fields.push(("X-RingMQ-Duplicate", b"1"));
                }
                let is_text = matches!(
                    self.http().current,
                    Some(Current {
                        what: What::Receipt { is_text: true },
                        ..
                    })
                );
                let told =
                    format!("{{\"id\":{id},\"level\":\"{level}\",\"duplicate\":{duplicate}}}\n");
                let (content_type, body) = match is_text {
                    true => (TEXT, RECEIVED),
                    false => (JSON, told.as_bytes()),
                };
                let response = Response {
                    fields: &fields,
                    ..Response::new(200, content_type)
                };
                self.respond(pool, &response, body);
            }
            Reply::Count { count, stale } => {
                let mut body = format!("{{\"count\":{count},\"stale\":[").into_bytes();
                let tokens = stale.split(|octet| *octet == b',');
                for (at, token) in tokens.filter(|token| !token.is_empty()).enumerate() {
                    if at > 0 {
                        body.push(b',');
                    }
                    json::string(&mut body, token);
                }
                body.extend_from_slice(b"]}\n");
                let status = if *count == 0 && !stale.is_empty() {
                    410
                } else {
                    200
                };
                self.respond(pool, &Response::new(status, JSON), &body);
            }
            Reply::End { .. } => self.end_messages(pool),
            Reply::Data(data) => {
                let body = match self.http().current.as_ref().map(|current| &current.what) {
                    Some(What::Queues) => queues(data),
                    _ => queue(data),
                };
                self.respond(pool, &Response::new(200, JSON), &body);
            }
            other => {
                let mut body = Vec::new();
                text::reply(&mut body, None, other);
                self.respond(pool, &Response::new(200, TEXT), &body);
            }
        }
    }

    /// One message of a pull: the response itself, or one more in JSON.
    fn http_message(&mut self, pool: &mut Pool, delivery: &Delivery<'_>) {
        // After a failure of the log nobody is answered any more; the lease goes back with the connection.
        let Some(current) = self.http().current.as_mut() else {
            return;
        };
        let keep_alive = current.keep_alive;
        match &mut current.what {
            What::Message { is_given } => *is_given = true,
            What::Messages { json, count } => {
                json.extend_from_slice(if *count == 0 { b"\n" } else { b",\n" });
                *count += 1;
                return message(json, delivery);
            }
            _ => return,
        }
        let mut head = encode::Head::new(self.out.writer(pool), 200);
        head.field("Content-Type", b"application/octet-stream");
        head.field("X-RingMQ-Queue", delivery.source);
        let mut handle = Vec::new();
        if let Some(named) = delivery.handle {
            text::handle(&mut handle, named);
            head.field("X-RingMQ-Handle", &handle);
        }
        head.number("X-RingMQ-Id", delivery.id);
        head.number("X-RingMQ-Try", u64::from(delivery.tries));
        if let Some(timestamp_ms) = delivery.timestamp_ms {
            head.number("X-RingMQ-Time-Ms", timestamp_ms);
        }
        if let Some(key) = delivery.key {
            head.field("X-RingMQ-Key", key);
        }
        if let Some(reply) = delivery.reply {
            head.field("X-RingMQ-Reply", reply);
        }
        for (name, value) in headers::entries(delivery.headers) {
            if name.iter().all(is_token) && !name.is_empty() {
                let mut written = Vec::new();
                if let Some(value) = shown(&mut written, &value) {
                    head.prefixed_field("X-RingMQ-H-", name, value);
                }
            }
        }
        let body = delivery.body.as_slice();
        head.end(Some(body.len()), keep_alive);
        match &delivery.body {
            Payload::Shared(bytes) if bytes.len() >= IN_PLACE_BYTES_MAX => {
                self.out.share(bytes.clone());
            }
            _ => self.out.writer(pool).extend_from_slice(body),
        }
    }

    /// A pull has ended.
    fn end_messages(&mut self, pool: &mut Pool) {
        let Some(current) = self.http().current.as_mut() else {
            return;
        };
        match &mut current.what {
            What::Message { is_given: true } => {
                if !current.keep_alive {
                    self.life = Life::Closing;
                }
                self.http().current = None;
            }
            What::Messages { json, .. } => {
                let mut body = b"{\"messages\":[".to_vec();
                body.append(json);
                body.extend_from_slice(b"]}\n");
                self.respond(pool, &Response::new(200, JSON), &body);
            }
            _ => self.respond(pool, &Response::new(204, TEXT), b""),
        }
    }
}

impl<S: Storage> Shard<S> {
    /// Runs the requests at the front of `input`; returns how many bytes were used up.
    pub(super) fn run_http(&mut self, slot: usize, input: &[u8], now: Now) -> usize {
        let mut decoder = std::mem::take(&mut self.conns[slot].http().decoder);
        let used = self.run_requests(slot, &mut decoder, input, now);
        self.conns[slot].http().decoder = decoder;
        used
    }

    fn run_requests(
        &mut self,
        slot: usize,
        decoder: &mut Decoder,
        input: &[u8],
        now: Now,
    ) -> usize {
        let mut used = 0;
        loop {
            if !self.may_run(slot, &input[used..]) {
                return used;
            }
            let (consumed, step) = decoder.decode(&input[used..], &self.limits);
            match step {
                Step::Incomplete => return used + consumed,
                Step::Continue => {
                    let out = self.conns[slot].out.writer(&mut self.pool);
                    out.extend_from_slice(CONTINUE);
                }
                Step::Request(head, body) => {
                    self.totals.commands += 1;
                    let is_collected = matches!(body, Body::Owned(_));
                    self.conns[slot].http().current = Some(Current {
                        what: What::Plain,
                        is_head: head.method == Method::Head,
                        keep_alive: head.keep_alive,
                    });
                    if self.run_route(slot, head, body, now) == Flow::Again {
                        // It is decoded again, or still there with its body.
                        self.conns[slot].rare.take_kept_body();
                        return if is_collected { used + consumed } else { used };
                    }
                    decoder.done();
                }
                Step::Refused(Refusal { status, text }) => {
                    let conn = &mut self.conns[slot];
                    let body = format!("{text}\n");
                    conn.respond(
                        &mut self.pool,
                        &Response::new(status, TEXT),
                        body.as_bytes(),
                    );
                    self.totals.count_error(ErrorCode::Proto);
                    return input.len();
                }
            }
            used += consumed;
        }
    }

    fn plain(&mut self, slot: usize, status: u16, content_type: &str, body: &[u8]) -> Flow {
        let response = Response::new(status, content_type);
        self.conns[slot].respond(&mut self.pool, &response, body);
        Flow::Done
    }

    fn run_route(&mut self, slot: usize, head: &Head, body: Body<'_>, now: Now) -> Flow {
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

/// The status that an error has.
fn status_of(code: ErrorCode) -> u16 {
    match code {
        ErrorCode::Syntax | ErrorCode::Unknown | ErrorCode::Name => 400,
        ErrorCode::Auth => 401,
        ErrorCode::Denied => 403,
        ErrorCode::NoQueue | ErrorCode::NoGroup => 404,
        ErrorCode::Proto => 408,
        ErrorCode::Conflict => 409,
        ErrorCode::Stale => 410,
        ErrorCode::TooBig | ErrorCode::Line => 413,
        ErrorCode::NotLeader => 421,
        ErrorCode::Full | ErrorCode::Paused | ErrorCode::Limit => 429,
        ErrorCode::Mem | ErrorCode::Disk | ErrorCode::Draining | ErrorCode::NoConsumer => 503,
        ErrorCode::Timeout => 504,
        ErrorCode::UnknownResult | ErrorCode::Internal => 500,
    }
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

/// May the octet stand in the name of a field?
fn is_token(octet: &u8) -> bool {
    octet.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(octet)
}

/// A header's value as text, if it has such a form.
fn shown<'a>(scratch: &'a mut Vec<u8>, value: &Value<'a>) -> Option<&'a [u8]> {
    let text = match value {
        Value::Text(text) => return Some(text),
        Value::Bool(value) => value.to_string(),
        Value::Signed(value) => value.to_string(),
        Value::Unsigned(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Void | Value::Other(_) => return None,
    };
    scratch.extend_from_slice(text.as_bytes());
    Some(scratch)
}

/// One message as JSON.
fn message(out: &mut Vec<u8>, delivery: &Delivery<'_>) {
    let text_field = |out: &mut Vec<u8>, name: &str, value: &[u8]| {
        out.extend_from_slice(format!(",\"{name}\":").as_bytes());
        json::string(out, value);
    };
    out.extend_from_slice(b"{\"queue\":");
    json::string(out, delivery.source);
    if let Some(named) = delivery.handle {
        let mut handle = Vec::new();
        text::handle(&mut handle, named);
        text_field(out, "handle", &handle);
    }
    let Delivery { id, tries, .. } = delivery;
    out.extend_from_slice(format!(",\"id\":{id},\"try\":{tries}").as_bytes());
    if let Some(timestamp_ms) = delivery.timestamp_ms {
        out.extend_from_slice(format!(",\"time_ms\":{timestamp_ms}").as_bytes());
    }
    if let Some(key) = delivery.key {
        text_field(out, "key", key);
    }
    if let Some(reply) = delivery.reply {
        text_field(out, "reply", reply);
    }
    if !delivery.headers.is_empty() {
        out.extend_from_slice(b",\"headers\":{");
        let mut is_first = true;
        for (name, value) in headers::entries(delivery.headers) {
            let mut written = Vec::new();
            if let Some(value) = shown(&mut written, &value) {
                if !std::mem::take(&mut is_first) {
                    out.push(b',');
                }
                json::string(out, name);
                out.push(b':');
                json::string(out, value);
            }
        }
        out.push(b'}');
    }
    let body = delivery.body.as_slice();
    match std::str::from_utf8(body) {
        Ok(_) => text_field(out, "body", body),
        Err(_) => {
            out.extend_from_slice(b",\"body_base64\":\"");
            json::base64(out, body);
            out.push(b'"');
        }
    }
    out.push(b'}');
}

/// The lines of `QLS`, a name and `key=value` words each, as JSON.
fn queues(lines: &[u8]) -> Vec<u8> {
    let mut out = b"{\"queues\":[".to_vec();
    let lines = lines.split(|octet| *octet == b'\n');
    for (at, line) in lines.filter(|line| !line.is_empty()).enumerate() {
        out.extend_from_slice(if at == 0 { b"\n{" } else { b",\n{" });
        let mut words = line.split(|octet| *octet == b' ');
        out.extend_from_slice(b"\"name\":");
        json::string(&mut out, words.next().unwrap_or_default());
        for word in words {
            out.push(b',');
            member(&mut out, word);
        }
        out.push(b'}');
    }
    out.extend_from_slice(b"]}\n");
    out
}

/// The lines of `QGET`, `key=value` each, as JSON.
fn queue(lines: &[u8]) -> Vec<u8> {
    let mut out = b"{".to_vec();
    let lines = lines.split(|octet| *octet == b'\n');
    for (at, line) in lines.filter(|line| !line.is_empty()).enumerate() {
        out.extend_from_slice(if at == 0 { b"\n" } else { b",\n" });
        member(&mut out, line);
    }
    out.extend_from_slice(b"}\n");
    out
}

fn member(out: &mut Vec<u8>, text: &[u8]) {
    let at = memchr::memchr(b'=', text).unwrap_or(text.len());
    json::string(out, &text[..at]);
    out.push(b':');
    json::number_or_string(out, text.get(at + 1..).unwrap_or_default());
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

    #[test]
    fn listings_become_json() {
        assert_eq!(
            String::from_utf8_lossy(&queues(b"a ready=1 leased=0\nb%20c ready=2\n")),
            "{\"queues\":[\n{\"name\":\"a\",\"ready\":1,\"leased\":0},\n{\"name\":\"b%20c\",\"ready\":2}]}\n"
        );
        assert_eq!(queues(b""), b"{\"queues\":[]}\n");
        assert_eq!(
            String::from_utf8_lossy(&queue(b"ready=1\nset.lease=30s\n")),
            "{\n\"ready\":1,\n\"set.lease\":\"30s\"}\n"
        );
    }
}
