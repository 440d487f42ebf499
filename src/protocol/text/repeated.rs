//! Commands with a body that follow one another with the same verb and name.
//!
//! A producer's messages are mostly of one size, and then their lines are the same: a line that has been read
//! once is recognised, not read again. Decides nothing: a body is given if, and only if, [`fast::body_to`] gives it.

use super::fast;
use super::line::behind_end;
use super::words::begins_with;
use crate::config::Limits;

/// The bodies of the whole commands at the front of an input, one after another.
pub struct Bodies<'a, const N: usize> {
    input: &'a [u8],
    verb: &'static [u8; N],
    name: &'a [u8],
    limits: &'a Limits,
    /// The line of the last command whose body was counted, with its end; empty if there was none.
    line: &'a [u8],
    /// Bytes of that body.
    size: usize,
}

impl<'a, const N: usize> Bodies<'a, N> {
    /// Of commands with that verb and plain name.
    #[inline]
    pub fn new(
        input: &'a [u8],
        verb: &'static [u8; N],
        name: &'a [u8],
        limits: &'a Limits,
    ) -> Bodies<'a, N> {
        Bodies {
            input,
            verb,
            name,
            limits,
            line: &[],
            size: 0,
        }
    }

    /// The body of the command in front, and how many bytes the command is; `None` if there is no such command, or
    /// not all of it.
    #[inline(always)]
    pub fn peek(&mut self) -> Option<(&'a [u8], usize)> {
        if !self.line.is_empty() && begins_with(self.input, self.line) {
            let end = self.line.len() + self.size;
            let consumed = behind_end(self.input, end)?;
            return Some((&self.input[self.line.len()..end], consumed));
        }
        self.read()
    }

    /// Reads the command in front, whose line is another one than that of the last.
    #[inline(never)]
    fn read(&mut self) -> Option<(&'a [u8], usize)> {
        if self.input.is_empty() {
            return None;
        }
        let (body, consumed) = fast::body_to(self.input, self.verb, self.name, self.limits)?;
        if self.input[N + self.name.len() + 1] == b'$' {
            let before = body.as_ptr().addr() - self.input.as_ptr().addr();
            self.line = &self.input[..before];
            self.size = body.len();
        }
        Some((body, consumed))
    }

    /// Goes on behind the command in front.
    #[inline(always)]
    pub fn advance(&mut self, consumed: usize) {
        self.input = &self.input[consumed..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bodies at the front of `input`, and how many bytes their commands are, by one reader and by the other.
    fn both(input: &[u8], name: &[u8]) -> [(Vec<Vec<u8>>, usize); 2] {
        let limits = Limits::default();
        let mut bodies = Bodies::new(input, fast::PUBLISH, name, &limits);
        let (mut repeated, mut used) = (Vec::new(), 0);
        while let Some((body, consumed)) = bodies.peek() {
            repeated.push(body.to_vec());
            bodies.advance(consumed);
            used += consumed;
        }
        let (mut single, mut at) = (Vec::new(), 0);
        while let Some((body, consumed)) = fast::body_to(&input[at..], fast::PUBLISH, name, &limits)
        {
            single.push(body.to_vec());
            at += consumed;
        }
        [(repeated, used), (single, at)]
    }

    #[test]
    fn a_line_that_was_read_is_recognised_wherever_it_is_cut() {
        let long = "q".repeat(60);
        for (name, want) in [
            ("q", 9),
            ("orders.eu", 9),
            (&*long, 9),
            ("jobs.of.this.length", 9),
        ] {
            let text = format!(
                "PUB {name} $5\n\nPUB \nPUB {name} $5\n12345\r\nPUB {name} $5\r\n12345\nPUB {name} $5\r\n\r\n\r\n\r\r\n\
                 PUB {name} :inline\nPUB {name} $5\n67890\nPUB {name} $05\nabcde\nPUB {name} $0\n\nPUB {name} $0\n\n\
                 PUB {name} $5\n12345x"
            );
            let text = text.as_bytes();
            let [repeated, single] = both(text, name.as_bytes());
            assert_eq!(repeated, single);
            assert_eq!(repeated.0.len(), want);
            for cut in 0..text.len() {
                let [repeated, single] = both(&text[..cut], name.as_bytes());
                assert_eq!(repeated, single, "cut at {cut}");
            }
        }
    }

    #[test]
    fn another_verb_name_or_size_is_no_repetition() {
        for other in [
            "PUB jobs2 $5\n12345\n",
            "PUB job $5\n12345\n",
            "PUB! jobs $5\n12345\n",
            "PUB jobs $50\n12345\n",
            "PUB jobs  $5\n12345\n",
            "PUB jobs key=a $5\n12345\n",
            "CAST jobs $5\n12345\n",
        ] {
            let text = format!("PUB jobs $5\n12345\n{other}");
            let [repeated, single] = both(text.as_bytes(), b"jobs");
            assert_eq!((repeated.0.len(), repeated.1), (1, 18), "{other}");
            assert_eq!(repeated, single);
        }
    }
}
