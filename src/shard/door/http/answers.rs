//! Responses: what the shard tells a connection, with the status and fields that it has in HTTP.

use super::{Current, Told, What, bodies};
use crate::broker::headers;
use crate::broker::reply::{Delivery, Error, ErrorCode, Payload, Reply};
use crate::buffer::send::Pool;
use crate::protocol::http::encode;
use crate::protocol::http::json;
use crate::protocol::text::{IN_PLACE_BYTES_MAX, encode as text};
use crate::shard::conn::{Conn, Life};

/// What a producer that posts to `/queue` is answered.
const RECEIVED: &[u8] = b"Message received successfully";

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
pub(super) const JSON: &str = "application/json";

/// A response without its body.
pub(super) struct Response<'a> {
    pub status: u16,
    pub content_type: &'a str,
    /// When to try again, seconds.
    pub retry_s: Option<u64>,
    /// Methods that the route takes.
    pub allow: Option<&'a str>,
    pub fields: &'a [(&'a str, &'a [u8])],
}

impl<'a> Response<'a> {
    pub fn new(status: u16, content_type: &'a str) -> Response<'a> {
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
    /// Answers the request under way; without one the connection ends behind the answer.
    pub(super) fn respond(&mut self, pool: &mut Pool, response: &Response<'_>, body: &[u8]) {
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
        self.end_request(keep_alive);
    }

    /// A request was answered. Its connection goes behind the last one; a guest stays until it is known what of its
    /// output was sent, and goes with the connection.
    fn end_request(&mut self, keep_alive: bool) {
        if !keep_alive && self.guest.is_none() {
            self.life = Life::Closing;
        }
    }

    pub(super) fn respond_error(&mut self, pool: &mut Pool, error: &Error) {
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
    pub(in crate::shard::door) fn tell_http(&mut self, pool: &mut Pool, told: Told<'_>) {
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
                    Some(What::Page(page)) => {
                        let page = *page;
                        return self.respond_page(pool, page, data);
                    }
                    Some(What::Queues) => bodies::queues(data),
                    _ => bodies::queue(data),
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
                return bodies::message(json, delivery);
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
                if let Some(value) = bodies::shown(&mut written, &value) {
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
                let keep_alive = current.keep_alive;
                self.http().current = None;
                self.end_request(keep_alive);
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

/// May the octet stand in the name of a field?
fn is_token(octet: &u8) -> bool {
    octet.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(octet)
}
