//! The decoder of one connection: bytes in any pieces to requests with their bodies.
//!
//! A body that has come whole is borrowed from where it was received; others are collected in memory that
//! grows with what has arrived. A request whose end is not beyond doubt (two lengths, a length and chunks, a
//! coding that is not known) is refused and the connection ends, so that nothing inside it is taken for
//! another request.
//!
//! ```text
//!   Head --> length known, body there -------------------------> request
//!     |  --> length known --> Body ----- more input -----------> request
//!     |  --> chunked -------> Chunks --- more input -----------> request
//!     '--> refused --> Closed
//! ```

use bytes::Bytes;

use super::{CHUNK_LINE_BYTES_MAX, FIELDS_MAX, HEAD_BYTES_MAX};
use crate::broker::command::Body;
use crate::config::Limits;
use crate::protocol::collect::Collect;
use crate::protocol::text::IN_PLACE_BYTES_MAX;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Method {
    Get,
    Head,
    Post,
    /// Any other; no route takes it.
    Other,
}

/// The head of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// What is asked for.
    pub method: Method,
    /// Path and parameters as sent.
    pub target: Box<[u8]>,
    /// The `Host` field; empty in a request of HTTP/1.0 without one.
    pub host: Box<[u8]>,
    /// The `Origin` field, which browsers send.
    pub origin: Option<Box<[u8]>>,
    /// Another request may follow on this connection.
    pub keep_alive: bool,
    /// It says how long its body is.
    pub has_length: bool,
}

/// Why a request cannot be taken. The connection ends behind the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status to answer with.
    pub status: u16,
    /// One sentence.
    pub text: &'static str,
}

/// What [`Decoder::decode`] found at the front of its input.
#[derive(Debug)]
pub enum Step<'a> {
    /// More bytes are needed.
    Incomplete,
    /// The client waits to be asked for its body: ask, and go on.
    Continue,
    /// A request. It comes again until [`Decoder::done`] says that it was run, or the input it lies in is
    /// not presented any more.
    Request(&'a Head, Body<'a>),
    /// A request that cannot be taken; everything after it is swallowed.
    Refused(Refusal),
}

/// Decodes one connection.
///
/// Calling order: as the line protocol's decoder, but for [`Decoder::done`] behind each request that was run.
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
    /// Whom the last request borrowed.
    head: Option<Box<Head>>,
}

#[derive(Debug)]
enum State {
    /// Between requests, or inside a head of which so many bytes hold no end.
    Head { searched: usize },
    /// A small body is waited for where it was received: the request has so many bytes.
    Short { needed: usize },
    /// A body of known length is coming in.
    Body(Collect),
    /// A body in chunks is coming in.
    Chunks(Box<Chunks>),
    /// A request whose body was collected.
    Whole(Bytes),
    /// Nobody knows where the next request begins.
    Closed,
}

impl Default for State {
    fn default() -> State {
        State::Head { searched: 0 }
    }
}

/// A body in chunks.
#[derive(Debug)]
struct Chunks {
    asked: bool,
    buffer: Vec<u8>,
    part: Part,
}

/// What of a body in chunks comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Size,
    /// So many octets of a chunk.
    Data(usize),
    /// The line end behind a chunk.
    End,
    /// Fields behind the last chunk, so many bytes until now.
    Trailer(usize),
}

/// How long a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    None,
    Octets(u64),
    Chunked,
}

const fn refusal(status: u16, text: &'static str) -> Refusal {
    Refusal { status, text }
}

const TOO_LARGE: Refusal = refusal(413, "the body is larger than --max-body");
const HEAD_TOO_LARGE: Refusal = refusal(
    431,
    "the head of a request has at most 16 KiB and 64 fields",
);
const BAD_CHUNK: Refusal = refusal(
    400,
    "a chunk is its size in hexadecimal, a line end, its octets, a line end",
);

impl Decoder {
    /// Decodes what is at the front of `input`; returns how many bytes were consumed.
    pub fn decode<'a>(&'a mut self, input: &'a [u8], limits: &Limits) -> (usize, Step<'a>) {
        match &mut self.state {
            State::Head { searched } => {
                let searched = *searched;
                self.head(input, searched, limits)
            }
            State::Short { needed } => {
                if input.len() < *needed {
                    return (0, Step::Incomplete);
                }
                self.state = State::default();
                self.front(input, true, limits)
            }
            State::Body(collect) => {
                let taken = collect.take(input);
                if !collect.is_whole() {
                    return (taken, Step::Incomplete);
                }
                self.state = State::Whole(collect.finish());
                (taken, self.whole())
            }
            State::Chunks(_) => self.chunks(input, limits),
            State::Whole(_) => (0, self.whole()),
            State::Closed => (input.len(), Step::Incomplete),
        }
    }

    /// The last request was run; the input behind it is presented next.
    pub fn done(&mut self) {
        if let State::Whole(_) = self.state {
            self.state = State::default();
        }
        self.head = None;
    }

    /// Inside a body of known length: where its next bytes can be received to.
    pub fn body_space(&mut self) -> Option<&mut [u8]> {
        match &mut self.state {
            State::Body(collect) => collect.space(),
            _ => None,
        }
    }

    /// So many bytes were received into the space.
    ///
    /// # Panics
    /// If there was no such space.
    pub fn body_filled(&mut self, count: usize) {
        match &mut self.state {
            State::Body(collect) => collect.filled(count),
            _ => panic!("bytes were received into a body that is not being collected"),
        }
    }

    /// A request has begun and is not complete.
    pub fn in_frame(&self) -> bool {
        match self.state {
            State::Head { searched } => searched > 0,
            State::Short { .. } | State::Body(_) | State::Chunks(_) => true,
            State::Whole(_) | State::Closed => false,
        }
    }

    /// Memory held, bytes, beyond the struct itself.
    pub fn memory(&self) -> usize {
        let head = self.head.as_ref().map_or(0, |head| {
            size_of::<Head>() + head.target.len() + head.host.len()
        });
        head + match &self.state {
            State::Head { .. } | State::Short { .. } | State::Closed => 0,
            State::Body(collect) => collect.memory(),
            State::Chunks(chunks) => size_of::<Chunks>() + chunks.buffer.capacity(),
            State::Whole(body) => body.len(),
        }
    }

    fn refuse(&mut self, consumed: usize, refusal: Refusal) -> (usize, Step<'static>) {
        self.state = State::Closed;
        (consumed, Step::Refused(refusal))
    }

    fn whole(&self) -> Step<'_> {
        let State::Whole(body) = &self.state else {
            unreachable!("it is asked of a whole request only");
        };
        let head = self.head.as_deref().expect("a body belongs to a head");
        Step::Request(head, Body::Owned(body.clone()))
    }

    /// Looks for the end of a head before it is parsed, so that one that comes octet by octet is not parsed
    /// again with each.
    fn head<'a>(
        &'a mut self,
        input: &'a [u8],
        searched: usize,
        limits: &Limits,
    ) -> (usize, Step<'a>) {
        // An empty line in front of a request is what some clients send behind a body.
        let begins = input
            .iter()
            .position(|octet| !matches!(octet, b'\r' | b'\n'));
        let Some(begins) = begins else {
            return (input.len(), Step::Incomplete);
        };
        if begins > 0 {
            self.state = State::default();
            let (consumed, step) = (begins, Step::Incomplete);
            if input.len() == begins {
                return (consumed, step);
            }
            let (more, step) = self.head(&input[begins..], 0, limits);
            return (begins + more, step);
        }
        let from = searched.saturating_sub(3);
        let is_whole = input[from..]
            .windows(2)
            .enumerate()
            .any(|(at, pair)| match pair {
                b"\n\n" => true,
                b"\n\r" => input.get(from + at + 2) == Some(&b'\n'),
                _ => false,
            });
        if is_whole {
            return self.front(input, false, limits);
        }
        if input.len() > HEAD_BYTES_MAX {
            return self.refuse(input.len(), HEAD_TOO_LARGE);
        }
        self.state = State::Head {
            searched: input.len(),
        };
        (0, Step::Incomplete)
    }

    /// The input begins with a whole head. `asked`: the client was asked for the body, if it wanted that.
    fn front<'a>(&'a mut self, input: &'a [u8], asked: bool, limits: &Limits) -> (usize, Step<'a>) {
        let parsed = match parse(input) {
            Ok(parsed) => parsed,
            Err(refusal) => return self.refuse(input.len(), refusal),
        };
        let Parsed {
            size,
            head,
            length,
            expects,
        } = parsed;
        self.head = Some(Box::new(head));
        let asked = asked || !expects;
        let octets = match length {
            Length::None => 0,
            Length::Octets(octets) if octets > limits.body_bytes_max as u64 => {
                return self.refuse(input.len(), TOO_LARGE);
            }
            Length::Octets(octets) => octets as usize,
            Length::Chunked => {
                self.state = State::Chunks(Box::new(Chunks {
                    asked,
                    buffer: Vec::new(),
                    part: Part::Size,
                }));
                let (more, step) = self.chunks(&input[size..], limits);
                return (size + more, step);
            }
        };
        if let Some(body) = input.get(size..size + octets) {
            self.state = State::default();
            let head = self.head.as_deref().expect("it was just set");
            return (size + octets, Step::Request(head, Body::Borrowed(body)));
        }
        if octets < IN_PLACE_BYTES_MAX {
            self.state = State::Short {
                needed: size + octets,
            };
            return match asked {
                true => (0, Step::Incomplete),
                false => (0, Step::Continue),
            };
        }
        let mut collect = Collect::new(octets);
        let taken = collect.take(&input[size..]);
        self.state = State::Body(collect);
        match asked {
            true => (size + taken, Step::Incomplete),
            false => (size + taken, Step::Continue),
        }
    }

    fn chunks<'a>(&'a mut self, input: &'a [u8], limits: &Limits) -> (usize, Step<'a>) {
        let State::Chunks(chunks) = &mut self.state else {
            unreachable!("it is called inside chunks only");
        };
        let mut used = 0;
        loop {
            let rest = &input[used..];
            match chunks.part {
                Part::Data(left) => {
                    let taken = left.min(rest.len());
                    chunks.buffer.extend_from_slice(&rest[..taken]);
                    used += taken;
                    chunks.part = match left - taken {
                        0 => Part::End,
                        left => Part::Data(left),
                    };
                    if taken < left {
                        break;
                    }
                }
                Part::Size | Part::End | Part::Trailer(_) => {
                    let Some(end) = memchr::memchr(b'\n', rest) else {
                        if rest.len() > CHUNK_LINE_BYTES_MAX {
                            return self.refuse(input.len(), BAD_CHUNK);
                        }
                        break;
                    };
                    let Some(line) = rest[..end].strip_suffix(b"\r") else {
                        return self.refuse(input.len(), BAD_CHUNK);
                    };
                    used += end + 1;
                    match next_part(chunks.part, line) {
                        Some(Part::Data(size))
                            if chunks.buffer.len().saturating_add(size) > limits.body_bytes_max =>
                        {
                            return self.refuse(input.len(), TOO_LARGE);
                        }
                        Some(Part::Trailer(total)) if line.is_empty() && total == DONE => {
                            let body = std::mem::take(&mut chunks.buffer);
                            self.state = State::Whole(Bytes::from(body));
                            return (used, self.whole());
                        }
                        Some(part) => chunks.part = part,
                        None => return self.refuse(input.len(), BAD_CHUNK),
                    }
                }
            }
        }
        match std::mem::replace(&mut chunks.asked, true) {
            true => (used, Step::Incomplete),
            false => (used, Step::Continue),
        }
    }
}

/// Stands for the end of the trailer.
const DONE: usize = usize::MAX;

/// What follows a line of a body in chunks; `None` if the line cannot stand there.
fn next_part(part: Part, line: &[u8]) -> Option<Part> {
    match part {
        Part::End => line.is_empty().then_some(Part::Size),
        Part::Trailer(_) if line.is_empty() => Some(Part::Trailer(DONE)),
        Part::Trailer(total) => {
            let total = total + line.len();
            (total <= HEAD_BYTES_MAX).then_some(Part::Trailer(total))
        }
        Part::Data(_) => None,
        Part::Size => {
            let digits = line.iter().take_while(|octet| octet.is_ascii_hexdigit());
            let digits = digits.count();
            if line.len() > CHUNK_LINE_BYTES_MAX || !(1..=15).contains(&digits) {
                return None;
            }
            // What an extension says is of no interest.
            if !matches!(line.get(digits), None | Some(b';' | b' ' | b'\t')) {
                return None;
            }
            let text = std::str::from_utf8(&line[..digits]).ok()?;
            Some(match usize::from_str_radix(text, 16).ok()? {
                0 => Part::Trailer(0),
                size => Part::Data(size),
            })
        }
    }
}

/// A parsed head.
struct Parsed {
    /// Bytes of it.
    size: usize,
    head: Head,
    length: Length,
    /// The client waits to be asked for its body.
    expects: bool,
}

fn parse(input: &[u8]) -> Result<Parsed, Refusal> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    let size = match request.parse(input) {
        Ok(httparse::Status::Complete(size)) if size <= HEAD_BYTES_MAX => size,
        Ok(httparse::Status::Complete(_)) | Err(httparse::Error::TooManyHeaders) => {
            return Err(HEAD_TOO_LARGE);
        }
        Err(httparse::Error::Version) => {
            return Err(refusal(505, "this is HTTP/1.1; HTTP/1.0 will do"));
        }
        Ok(httparse::Status::Partial) | Err(_) => {
            return Err(refusal(400, "the head of the request is malformed"));
        }
    };
    let is_old = request.version == Some(0);
    let method = match request.method.unwrap_or_default() {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        _ => Method::Other,
    };
    let mut head = Head {
        method,
        target: request.path.unwrap_or_default().as_bytes().into(),
        host: Box::default(),
        origin: None,
        keep_alive: !is_old,
        has_length: false,
    };
    let (mut length, mut hosts, mut expects) = (Length::None, 0, false);
    for field in request.headers.iter() {
        let value = field.value.trim_ascii();
        match field.name.to_ascii_lowercase().as_str() {
            "content-length" => {
                let octets = octets(value)?;
                match length {
                    Length::None => length = Length::Octets(octets),
                    Length::Octets(other) if other == octets => {}
                    _ => return Err(refusal(400, "the request has two lengths")),
                }
            }
            "transfer-encoding" => {
                if is_old || length != Length::None {
                    return Err(refusal(400, "the request has two lengths"));
                }
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(refusal(501, "the only transfer coding is chunked"));
                }
                length = Length::Chunked;
            }
            "connection" => {
                for option in value.split(|octet| *octet == b',') {
                    let option = option.trim_ascii();
                    if option.eq_ignore_ascii_case(b"close") {
                        head.keep_alive = false;
                    } else if option.eq_ignore_ascii_case(b"keep-alive") {
                        head.keep_alive = true;
                    }
                }
            }
            "expect" => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(refusal(417, "the only expectation is 100-continue"));
                }
                expects = !is_old;
            }
            "host" => {
                hosts += 1;
                head.host = value.into();
            }
            "origin" => head.origin = Some(value.into()),
            _ => {}
        }
    }
    if hosts > 1 || (hosts == 0 && !is_old) {
        return Err(refusal(400, "a request has one Host field"));
    }
    head.has_length = length != Length::None;
    Ok(Parsed {
        size,
        head,
        length,
        expects,
    })
}

/// The number of a `Content-Length`.
fn octets(value: &[u8]) -> Result<u64, Refusal> {
    let bad = refusal(400, "Content-Length is a number of octets");
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return Err(bad);
    }
    let text = std::str::from_utf8(value).map_err(|_| bad)?;
    text.parse().map_err(|_| bad)
}

#[cfg(test)]
mod tests;
