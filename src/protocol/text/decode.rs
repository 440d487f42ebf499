//! The decoder of one connection: bytes in any pieces to requests. It never reads, never answers,
//! never looks at a clock, and never keeps more than it has received.
//!
//! Small commands are parsed where they were received and borrow from there. A counted body of
//! [`IN_PLACE_BYTES_MAX`] or more, and n lines, that have not arrived whole, are collected in
//! memory of their own, which grows with what has arrived and not with what was announced.
//!
//! ```text
//!                 +--> line incomplete --------------------- more input --+
//!                 |                                                       |
//!     Front ------+--> short body incomplete --------------- more input --+--> Front
//!                 |                                                       |
//!                 +--> long body or lines --> Collect --> request --------+
//!                 |                              | over a limit           |
//!                 +--> refused, body follows --> Skip --> refusal --------+
//!                 |
//!                 +--> no length, endless line --> Closed
//! ```
//!
//! How the input is cut into pieces never changes the steps that come out.

use bytes::Bytes;

use crate::broker::command::{Body, Command, Request};
use crate::broker::reply::{Error, ErrorCode};
use crate::buffer::bodies;
use crate::config::Limits;

use super::batch::{self, Extent, LineScan};
use super::line::{self, Form};
use super::parse::{self, Parsed};
use super::pieces::{
    Collect, LineEnd, Progress, Rest, Skip, SkipRest, batch_bytes_max, is_oversize, line_end,
    lines_verdict, no_line_end, oversize, proto,
};
use super::{IN_PLACE_BYTES_MAX, fast};

/// What [`Decoder::decode`] found at the front of its input.
#[derive(Debug)]
pub enum Step<'a> {
    /// Everything useful was consumed or must stay; more bytes are needed.
    Incomplete,
    /// An empty line; it cancels a waiting `PULL`.
    Empty,
    /// A command to run.
    Request(Request<'a>),
    /// A malformed command, its body skipped: answer, and go on.
    Refused {
        /// Its tag, if that could be read.
        tag: Option<&'a [u8]>,
        /// What to answer.
        error: Error,
    },
    /// Nobody knows where the next command begins: answer, and close.
    Fatal {
        /// The command's tag, if that could be read.
        tag: Option<&'a [u8]>,
        /// What to answer.
        error: Error,
    },
}

/// Decodes one connection.
///
/// Calling order: [`Decoder::decode`] until it says [`Step::Incomplete`] (take the consumed bytes
/// away each time), then wait for more input. While [`Decoder::body_space`] offers room, bytes may
/// be received straight into it instead, told by [`Decoder::body_filled`] and followed by `decode`.
/// After [`Step::Fatal`] all input is swallowed.
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
    /// What the last step borrowed (a command's line or tag), empty if it borrowed nothing here.
    pub(crate) told: Box<[u8]>,
    /// The line of the last large body that came in pieces.
    foreseen: Option<Box<Foreseen>>,
}

/// What a connection sends again and again.
#[derive(Debug)]
struct Foreseen {
    /// Without its end.
    line: Box<[u8]>,
    /// Of the body, bytes.
    size: usize,
    /// It came twice in a row, or was right since.
    is_likely: bool,
}

const _: () = assert!(size_of::<Decoder>() <= 64);

#[derive(Debug)]
enum State {
    /// Between commands, or inside one that is waited for where it was received.
    Front {
        /// So many bytes of the input hold no LF.
        searched: usize,
        /// The command has at least so many bytes.
        needed: usize,
    },
    /// A body with memory of its own is coming in.
    Collect(Box<Collect>),
    /// The body of a refused command is passing by.
    Skip(Box<Skip>),
    /// A command whose body was collected is to come out once more.
    Again(Box<Again>),
    /// The stream is out of step.
    Closed,
}

const BETWEEN: State = State::Front {
    searched: 0,
    needed: 0,
};

impl Default for State {
    fn default() -> State {
        BETWEEN
    }
}

/// A command that could not be run yet.
#[derive(Debug)]
struct Again {
    line: Box<[u8]>,
    body: Bytes,
}

impl Decoder {
    /// The next byte begins a command, of which nothing is known yet.
    #[inline]
    pub fn is_between(&self) -> bool {
        matches!(
            self.state,
            State::Front {
                searched: 0,
                needed: 0
            }
        )
    }

    /// Decodes what is at the front of `input`; returns how many bytes were consumed. Bytes not
    /// consumed must be presented again with more behind them.
    #[inline]
    pub fn decode<'a>(&'a mut self, input: &'a [u8], limits: &Limits) -> (usize, Step<'a>) {
        if let State::Front {
            searched: 0,
            needed: 0,
        } = self.state
            && let Some((consumed, plain)) = fast::decode(input, limits)
        {
            if !self.told.is_empty() {
                self.told = Box::default();
            }
            return (consumed, Step::Request(plain.request()));
        }
        self.decode_any(input, limits)
    }

    /// [`Decoder::decode`] without the short cut for plain commands.
    #[doc(hidden)]
    pub fn decode_any<'a>(&'a mut self, input: &'a [u8], limits: &Limits) -> (usize, Step<'a>) {
        self.told = Box::default();
        match std::mem::take(&mut self.state) {
            State::Front { searched, needed } => self.front(input, searched, needed, limits),
            State::Collect(collect) => self.collect(collect, input, limits),
            State::Skip(skip) => self.skip(skip, input, limits),
            State::Again(again) => (0, self.whole(again.line, again.body, None, limits)),
            State::Closed => {
                self.state = State::Closed;
                (input.len(), Step::Incomplete)
            }
        }
    }

    /// Inside a large counted body: where its next bytes can be received to; never empty, and
    /// `None` before the body's first byte has come through [`Decoder::decode`], so that an
    /// announcement alone takes no memory. The last byte of the room is for the line end's first.
    pub fn body_space(&mut self) -> Option<&mut [u8]> {
        let State::Collect(collect) = &mut self.state else {
            return None;
        };
        let Rest::Octets { size, filled } = collect.rest else {
            return None;
        };
        if filled == 0 || filled > size {
            return None;
        }
        collect.make_room(filled + 1, size);
        Some(&mut collect.buffer[filled..])
    }

    /// `count` bytes were received into the space.
    ///
    /// # Panics
    /// If there was no such space.
    pub fn body_filled(&mut self, count: usize) {
        let State::Collect(collect) = &mut self.state else {
            panic!("bytes were received into a body that is not being collected");
        };
        let Rest::Octets { filled, .. } = &mut collect.rest else {
            panic!("bytes were received into lines");
        };
        assert!(
            count <= collect.buffer.len() - *filled,
            "more was received than there was room"
        );
        *filled += count;
    }

    /// The line, without its end, and the size of the bodies that will probably come next.
    #[inline]
    pub fn foreseen(&self) -> Option<(&[u8], usize)> {
        let foreseen = self.foreseen.as_ref()?;
        foreseen
            .is_likely
            .then_some((&foreseen.line, foreseen.size))
    }

    /// [`Decoder::body_space`] has room for all that is left of the body, and for the first byte behind it.
    pub fn has_room_for_all(&self) -> bool {
        match &self.state {
            State::Collect(collect) => match collect.rest {
                Rest::Octets { size, filled } => {
                    filled > 0 && filled <= size && collect.buffer.len() > size
                }
                Rest::Lines(_) => false,
            },
            _ => false,
        }
    }

    /// What came was something else.
    pub fn was_wrong(&mut self) {
        if let Some(foreseen) = &mut self.foreseen {
            foreseen.is_likely = false;
        }
    }

    /// A body of that size has come in pieces.
    fn foresee(&mut self, line: &[u8], size: usize) {
        match &mut self.foreseen {
            Some(foreseen) if *foreseen.line == *line => foreseen.is_likely = true,
            foreseen => {
                *foreseen = Some(Box::new(Foreseen {
                    line: line.into(),
                    size,
                    is_likely: false,
                }));
            }
        }
    }

    /// What was foreseen has come, and `filled` bytes of its body and the line end behind it have been received into
    /// this buffer, which has room for one byte more than the body: it is the next step, or is collected to its end.
    ///
    /// # Panics
    /// If nothing was foreseen, a command has begun, or a whole body does not end with LF.
    pub fn received(&mut self, mut buffer: Vec<u8>, filled: usize) {
        assert!(self.is_between(), "a command comes behind another one");
        let foreseen = self.foreseen.as_ref().expect("it was foreseen");
        let (line, size) = (foreseen.line.clone(), foreseen.size);
        assert_eq!(buffer.len(), size + 1, "the buffer is made for it");
        if filled <= size {
            let rest = Rest::Octets { size, filled };
            self.state = State::Collect(Box::new(Collect { line, buffer, rest }));
            return;
        }
        assert_eq!(buffer.pop(), Some(b'\n'), "it is whole");
        let body = bodies::share(buffer);
        self.state = State::Again(Box::new(Again { line, body }));
    }

    /// The last step, a request with a body of its own, could not be run yet: it is the next step
    /// once more.
    ///
    /// # Panics
    /// If the last step was anything else.
    pub fn again(&mut self, body: Bytes) {
        let line = std::mem::take(&mut self.told);
        assert!(
            !line.is_empty() && matches!(self.state, State::Front { .. }),
            "only a request with a body of its own comes again"
        );
        self.state = State::Again(Box::new(Again { line, body }));
    }

    /// A command has begun and is not complete.
    pub fn in_frame(&self) -> bool {
        match self.state {
            State::Front { searched, needed } => searched > 0 || needed > 0,
            State::Collect(_) | State::Skip(_) => true,
            State::Again(_) | State::Closed => false,
        }
    }

    /// What to answer when the input ends here; `None` between commands.
    pub fn unfinished(&self) -> Option<Error> {
        self.in_frame().then(|| {
            proto(
                "the input ended inside a command, which was not run: end it with a line feed \
                   and send all of its body",
            )
        })
    }

    /// Memory held, bytes, beyond the struct itself.
    pub fn memory(&self) -> usize {
        let state = match &self.state {
            State::Front { .. } | State::Closed => 0,
            State::Collect(collect) => {
                size_of::<Collect>() + collect.line.len() + collect.buffer.capacity()
            }
            State::Again(again) => size_of::<Again>() + again.line.len() + again.body.len(),
            State::Skip(skip) => size_of::<Skip>() + skip.tag.as_ref().map_or(0, |tag| tag.len()),
        };
        let foreseen = self.foreseen.as_ref();
        let foreseen = foreseen.map_or(0, |it| size_of::<Foreseen>() + it.line.len());
        state + self.told.len() + foreseen
    }

    /// The input begins with a command.
    fn front<'a>(
        &'a mut self,
        input: &'a [u8],
        searched: usize,
        needed: usize,
        limits: &Limits,
    ) -> (usize, Step<'a>) {
        if input.len() < needed {
            return self.wait(searched, needed);
        }
        let line_max = limits.line_bytes_max;
        let Some(end) = line::find_end(input, searched) else {
            return match input.get(line_max..) {
                None | Some([] | [b'\r']) => self.wait(input.len(), 0),
                Some(_) => self.fatal(
                    input.len(),
                    parse::tag_of(&input[..line_max]),
                    line_error(limits),
                ),
            };
        };
        let line = line::without_cr(&input[..end]);
        if line.len() > line_max {
            return self.fatal(
                end + 1,
                parse::tag_of(&line[..line_max]),
                line_error(limits),
            );
        }
        let Ok(split) = line::split(line) else {
            let error = proto(
                "the size of a body is $ or * and 1 to 10 digits, as in PUB jobs $5; where the \
                 next command begins is lost, so the connection is closed",
            );
            return self.fatal(end + 1, parse::tag_of(line), error);
        };
        if split.form == Form::None && line.iter().all(|octet| *octet == b' ') {
            return (end + 1, Step::Empty);
        }
        let parsed = parse::parse(split.head, split.form, limits);
        match split.form {
            Form::None => self.answer(end + 1, parsed),
            Form::Inline(body) => self.inline(end + 1, body.len(), parsed, limits),
            Form::Counted(size) => self.counted(input, end, size, parsed, limits),
            Form::Lines(count) => self.lines(input, end, count, parsed, limits),
        }
    }

    fn wait(&mut self, searched: usize, needed: usize) -> (usize, Step<'static>) {
        self.state = State::Front { searched, needed };
        (0, Step::Incomplete)
    }

    fn fatal<'a>(
        &mut self,
        consumed: usize,
        tag: Option<&'a [u8]>,
        error: Error,
    ) -> (usize, Step<'a>) {
        self.state = State::Closed;
        (consumed, Step::Fatal { tag, error })
    }

    fn answer<'a>(&mut self, consumed: usize, parsed: Parsed<'a>) -> (usize, Step<'a>) {
        let step = match parsed.result {
            Ok(request) => Step::Request(request),
            Err(error) => Step::Refused {
                tag: parsed.tag,
                error,
            },
        };
        (consumed, step)
    }

    fn inline<'a>(
        &mut self,
        consumed: usize,
        size: usize,
        mut parsed: Parsed<'a>,
        limits: &Limits,
    ) -> (usize, Step<'a>) {
        if is_oversize(size as u64, limits.body_bytes_max) {
            return self.fatal(consumed, parsed.tag, oversize(batch::body_too_big(limits)));
        }
        if size > limits.body_bytes_max {
            parsed.result = parsed.result.and(Err(batch::body_too_big(limits)));
        }
        self.answer(consumed, parsed)
    }

    /// `size` octets and a line end follow the line that ends at `end`.
    fn counted<'a>(
        &'a mut self,
        input: &'a [u8],
        end: usize,
        size: u64,
        parsed: Parsed<'a>,
        limits: &Limits,
    ) -> (usize, Step<'a>) {
        let (size_max, too_big): (_, fn(&Limits) -> Error) = if parsed.is_single {
            (limits.body_bytes_max, batch::body_too_big)
        } else {
            (batch_bytes_max(limits), batch::batch_too_big)
        };
        if is_oversize(size, size_max) {
            return self.fatal(end + 1, parsed.tag, oversize(too_big(limits)));
        }
        let refused = match parsed.result {
            Ok(_) if size > size_max as u64 => Err(too_big(limits)),
            result => result,
        };
        let mut request = match refused {
            Ok(request) => request,
            Err(error) => {
                let skip = Skip {
                    tag: parsed.tag.map(Box::from),
                    error,
                    rest: SkipRest::Octets(size),
                };
                return self.skip_from(end + 1, Box::new(skip), input, limits);
            }
        };
        let size = size as usize;
        let body = end + 1;
        let consumed = match line_end(&input[body..], size) {
            LineEnd::At(consumed) => body + consumed,
            LineEnd::Missing => return self.fatal(input.len(), parsed.tag, no_line_end()),
            LineEnd::Needs(_) if size >= IN_PLACE_BYTES_MAX && input.len() <= body + size => {
                return self.collect_octets(input, end, size, limits);
            }
            LineEnd::Needs(bytes) => return self.wait(end, body + bytes),
        };
        let content = Body::Borrowed(&input[body..body + size]);
        let attached = attach(&mut request, content, None, limits);
        self.attached(consumed, request, attached)
    }

    /// `count` lines follow the line that ends at `end`.
    fn lines<'a>(
        &'a mut self,
        input: &'a [u8],
        end: usize,
        count: u64,
        parsed: Parsed<'a>,
        limits: &Limits,
    ) -> (usize, Step<'a>) {
        if is_oversize(count, limits.batch_count_max) {
            return self.fatal(end + 1, parsed.tag, oversize(batch::batch_too_long(limits)));
        }
        let refused = match parsed.result {
            Ok(_) if count > limits.batch_count_max as u64 => Err(batch::batch_too_long(limits)),
            result => result,
        };
        let mut scan = LineScan::new(count);
        let mut request = match refused {
            Ok(request) => request,
            Err(error) => {
                let skip = Skip {
                    tag: parsed.tag.map(Box::from),
                    error,
                    rest: SkipRest::Lines(scan),
                };
                return self.skip_from(end + 1, Box::new(skip), input, limits);
            }
        };
        let taken = scan.feed(&input[end + 1..]);
        let data = &input[end + 1..][..taken];
        if !scan.is_done() || lines_verdict(&scan, limits).is_err() {
            let collect = Collect {
                line: line::without_cr(&input[..end]).into(),
                buffer: data.to_vec(),
                rest: Rest::Lines(scan),
            };
            let (more, step) = self.collect(Box::new(collect), &input[end + 1 + taken..], limits);
            return (end + 1 + taken + more, step);
        }
        let content = Body::Borrowed(data);
        let attached = attach(&mut request, content, Some((count, scan)), limits);
        self.attached(end + 1 + taken, request, attached)
    }

    /// A request whose body was there and has been checked.
    fn attached<'a>(
        &mut self,
        consumed: usize,
        request: Request<'a>,
        attached: Result<(), Error>,
    ) -> (usize, Step<'a>) {
        let parsed = Parsed {
            tag: request.tag,
            is_single: false,
            result: attached.map(|()| request),
        };
        self.answer(consumed, parsed)
    }

    /// Begins to collect a counted body of which not everything is there.
    fn collect_octets<'a>(
        &'a mut self,
        input: &'a [u8],
        end: usize,
        size: usize,
        limits: &Limits,
    ) -> (usize, Step<'a>) {
        let collect = Collect {
            line: line::without_cr(&input[..end]).into(),
            buffer: Vec::new(),
            rest: Rest::Octets { size, filled: 0 },
        };
        let (taken, step) = self.collect(Box::new(collect), &input[end + 1..], limits);
        (end + 1 + taken, step)
    }

    fn collect<'a>(
        &'a mut self,
        mut collect: Box<Collect>,
        input: &'a [u8],
        limits: &Limits,
    ) -> (usize, Step<'a>) {
        let (taken, progress) = collect.take(input, limits);
        match progress {
            Progress::More => {
                self.state = State::Collect(collect);
                (taken, Step::Incomplete)
            }
            Progress::Whole => {
                let Collect {
                    line,
                    mut buffer,
                    rest,
                } = *collect;
                let scan = match rest {
                    Rest::Lines(scan) => Some(scan),
                    Rest::Octets { size, .. } => {
                        buffer.truncate(size);
                        self.foresee(&line, size);
                        None
                    }
                };
                (taken, self.whole(line, bodies::share(buffer), scan, limits))
            }
            Progress::Over(error) => {
                let Rest::Lines(scan) = collect.rest else {
                    unreachable!("the size of a counted body was checked before it came");
                };
                let skip = Skip {
                    tag: parse::tag_of(&collect.line).map(Box::from),
                    error,
                    rest: SkipRest::Lines(scan),
                };
                let (more, step) = self.skip(Box::new(skip), &input[taken..], limits);
                (taken + more, step)
            }
            Progress::Lost(error) => {
                self.told = collect.line;
                self.state = State::Closed;
                let tag = parse::tag_of(&self.told);
                (taken, Step::Fatal { tag, error })
            }
        }
    }

    /// Parses the line of a collected command again, now with its body. `scan` is what was found
    /// out about n lines, if that is still known.
    fn whole(
        &mut self,
        line: Box<[u8]>,
        body: Bytes,
        scan: Option<LineScan>,
        limits: &Limits,
    ) -> Step<'_> {
        self.told = line;
        let split = line::split(&self.told).expect("the line was split before");
        let parsed = parse::parse(split.head, split.form, limits);
        let mut request = parsed.result.expect("the line was parsed before");
        let scanned = match split.form {
            Form::Lines(count) => {
                let scan = scan.unwrap_or_else(|| {
                    let mut scan = LineScan::new(count);
                    scan.feed(&body);
                    scan
                });
                Some((count, scan))
            }
            _ => None,
        };
        match attach(&mut request, Body::Owned(body), scanned, limits) {
            Ok(()) => Step::Request(request),
            Err(error) => Step::Refused {
                tag: request.tag,
                error,
            },
        }
    }

    fn skip_from<'a>(
        &'a mut self,
        start: usize,
        skip: Box<Skip>,
        input: &'a [u8],
        limits: &Limits,
    ) -> (usize, Step<'a>) {
        let (taken, step) = self.skip(skip, &input[start..], limits);
        (start + taken, step)
    }

    fn skip<'a>(
        &'a mut self,
        mut skip: Box<Skip>,
        input: &'a [u8],
        limits: &Limits,
    ) -> (usize, Step<'a>) {
        let (taken, progress) = skip.take(input, limits);
        let (is_fatal, error) = match progress {
            Progress::More => {
                self.state = State::Skip(skip);
                return (taken, Step::Incomplete);
            }
            Progress::Whole => (false, skip.error),
            Progress::Over(error) | Progress::Lost(error) => (true, error),
        };
        if let Some(tag) = skip.tag {
            self.told = tag;
        }
        let tag = (!self.told.is_empty()).then_some(&*self.told);
        if is_fatal {
            self.state = State::Closed;
            (taken, Step::Fatal { tag, error })
        } else {
            (taken, Step::Refused { tag, error })
        }
    }
}

/// A request as its line would say it, without tag or line end, and its body: how other doors put what they
/// are asked into commands.
///
/// # Errors
/// What a client that typed it would be answered.
pub fn compose<'a>(
    line: &'a [u8],
    body: Option<Body<'a>>,
    limits: &Limits,
) -> Result<Request<'a>, Error> {
    let form = match &body {
        Some(body) => Form::Counted(body.as_slice().len() as u64),
        None => Form::None,
    };
    let mut request = parse::parse(line, form, limits).result?;
    if let Some(body) = body {
        attach(&mut request, body, None, limits)?;
    }
    Ok(request)
}

/// Gives a request its body and checks what is in it. `scanned` is set for lines.
fn attach<'a>(
    request: &mut Request<'a>,
    content: Body<'a>,
    scanned: Option<(u64, LineScan)>,
    limits: &Limits,
) -> Result<(), Error> {
    match &mut request.command {
        Command::PublishBatch {
            count,
            body_bytes,
            data,
            ..
        } => {
            let extent = match scanned {
                Some((lines, scan)) => Extent {
                    count: lines as u32,
                    body_bytes: scan.body_bytes,
                },
                None => batch::check_counted(content.as_slice(), limits)?,
            };
            *count = extent.count;
            *body_bytes = extent.body_bytes;
            *data = content;
        }
        command => *command.message_mut().expect("it takes a message") = content,
    }
    Ok(())
}

fn line_error(limits: &Limits) -> Error {
    Error::new(
        ErrorCode::Line,
        format!(
            "a line has at most {} bytes here (max_line of HELLO): send long bodies as $n and n \
             octets; the connection is closed",
            limits.line_bytes_max
        ),
    )
}
