//! Patterns of names: words joined by `.`, where `*` is any one word and `#` any number of them,
//! none included. Pure; linear in practice and never worse than words times words.

use super::reply::{Error, ErrorCode};

/// Longest pattern, octets as typed: that of a name all of whose octets are written `%XX`.
pub const PATTERN_BYTES_MAX: usize = 3 * 255;

/// One word of a pattern.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    /// `*`
    One,
    /// `#`
    Any,
    /// These octets.
    Exact(Box<[u8]>),
}

/// A pattern that can be asked about names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pattern {
    words: Vec<Word>,
}

/// Checks a pattern as typed.
///
/// # Errors
/// `NAME`, with what is wrong about it.
pub fn check(typed: &[u8]) -> Result<(), Error> {
    if typed.is_empty() || typed.len() > PATTERN_BYTES_MAX {
        return Err(Error::new(
            ErrorCode::Name,
            "a pattern has 1 to 765 characters",
        ));
    }
    for word in typed.split(|octet| *octet == b'.') {
        if matches!(word, b"*" | b"#") {
            continue;
        }
        let mut rest = word;
        while let [first, tail @ ..] = rest {
            rest = match (*first, tail) {
                (b'%', [high, low, after @ ..])
                    if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
                {
                    after
                }
                (octet, tail) if is_plain(octet) => tail,
                (b'*' | b'#', _) => {
                    return Err(Error::new(
                        ErrorCode::Name,
                        "in a pattern * and # stand for whole words between dots, as in \
                         jobs.* or jobs.#",
                    ));
                }
                _ => {
                    return Err(Error::new(
                        ErrorCode::Name,
                        "a pattern is words of a name joined by dots, * for one word and # for \
                         any number, as in jobs.*.eu or jobs.#",
                    ));
                }
            };
        }
    }
    Ok(())
}

/// The octet stands for itself in a word.
fn is_plain(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || matches!(octet, b'_' | b'-' | b':' | b'@' | b'+' | b'~')
}

/// The text has a wildcard where a pattern may have one.
pub fn has_wildcard(typed: &[u8]) -> bool {
    typed
        .split(|octet| *octet == b'.')
        .any(|word| matches!(word, b"*" | b"#"))
}

impl Pattern {
    /// Reads a pattern as typed.
    ///
    /// # Errors
    /// `NAME`, with what is wrong about it.
    pub fn new(typed: &[u8]) -> Result<Pattern, Error> {
        check(typed)?;
        let mut words = Vec::new();
        let mut scratch = Vec::new();
        for word in typed.split(|octet| *octet == b'.') {
            match word {
                b"*" => words.push(Word::One),
                b"#" if words.last() == Some(&Word::Any) => {}
                b"#" => words.push(Word::Any),
                word => {
                    let octets = super::command::Typed(word).decoded(&mut scratch);
                    words.extend(
                        octets
                            .split(|octet| *octet == b'.')
                            .map(|w| Word::Exact(w.into())),
                    );
                }
            }
        }
        Ok(Pattern { words })
    }

    /// The pattern that a binding key of AMQP is: octets stand for themselves, and a `*` or `#` that is not a
    /// word of its own is one like any other.
    pub fn of_binding_key(key: &[u8]) -> Pattern {
        let mut words = Vec::new();
        for word in key.split(|octet| *octet == b'.') {
            match word {
                b"*" => words.push(Word::One),
                b"#" if words.last() == Some(&Word::Any) => {}
                b"#" => words.push(Word::Any),
                word => words.push(Word::Exact(word.into())),
            }
        }
        Pattern { words }
    }

    /// Its words; no two `#` follow each other.
    pub fn words(&self) -> &[Word] {
        &self.words
    }

    /// Appends it as it is typed: [`Pattern::new`] reads the same pattern from that.
    pub fn print(&self, out: &mut Vec<u8>) {
        let start = out.len();
        for (nth, word) in self.words.iter().enumerate() {
            if nth > 0 {
                out.push(b'.');
            }
            match word {
                Word::One => out.push(b'*'),
                Word::Any => out.push(b'#'),
                Word::Exact(octets) => {
                    for octet in octets {
                        let leads = out.len() == start && matches!(octet, b':' | b'@');
                        if is_plain(*octet) && !leads {
                            out.push(*octet);
                        } else {
                            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
                            let digit = |half: u8| DIGITS[usize::from(half & 15)];
                            out.extend_from_slice(&[b'%', digit(octet >> 4), digit(*octet)]);
                        }
                    }
                }
            }
        }
    }

    /// As it is typed.
    pub fn printed(&self) -> Box<[u8]> {
        let mut out = Vec::new();
        self.print(&mut out);
        out.into()
    }

    /// The name, given in octets, is one of those meant.
    pub fn matches(&self, name: &[u8]) -> bool {
        let mut name_words = name.split(|octet| *octet == b'.');
        let mut at = 0;
        // Where to go on when the words after the last `#` turn out not to fit: the pattern's
        // word after it, and the name's words that it has not swallowed yet.
        let mut retry = None;
        loop {
            let here = name_words.clone();
            match (self.words.get(at), name_words.next()) {
                (Some(Word::Any), _) => {
                    at += 1;
                    if at == self.words.len() {
                        return true;
                    }
                    retry = Some((at, here.clone()));
                    name_words = here;
                }
                (Some(Word::One), Some(_)) => at += 1,
                (Some(Word::Exact(wanted)), Some(word)) if **wanted == *word => at += 1,
                (None, None) => return true,
                (_, None) => return false,
                (_, Some(_)) => match &mut retry {
                    None => return false,
                    Some((after, from)) => {
                        from.next();
                        at = *after;
                        name_words = from.clone();
                    }
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, name: &str, want: bool) {
        let read = Pattern::new(pattern.as_bytes()).expect("cases are valid");
        assert_eq!(read.matches(name.as_bytes()), want, "{pattern} {name}");
    }

    #[test]
    fn words_stars_and_hashes() {
        check("jobs", "jobs", true);
        check("jobs", "job", false);
        check("jobs", "jobs.x", false);
        check("*", "jobs", true);
        check("*", "jobs.x", false);
        check("*.*", "jobs.x", true);
        check("#", "jobs", true);
        check("#", "a.b.c.d", true);
        check("jobs.#", "jobs", true);
        check("jobs.#", "jobs.a.b", true);
        check("jobs.#", "jobsa", false);
        check("#.dead", "dead", true);
        check("#.dead", "a.b.dead", true);
        check("#.dead", "a.dead.b", false);
        check("a.#.b", "a.b", true);
        check("a.#.b", "a.x.b.b", true);
        check("a.#.b", "a.x.b.c", false);
        check("a.*.b", "a.b", false);
        check("#.a.#.b.#", "x.a.y.y.b", true);
        check("#.a.#.b.#", "x.b.y.y.a", false);
        check("#.*", "a", true);
        check("*.#", "a.b", true);
        check("#.#", "a", true);
        check("#.*.*", "a", false);
        check("a.*", "a.", true);
        check("%61%2Eb", "a.b", true);
        check("%2A", "*", true);
        check("%2A", "x", false);
    }

    #[test]
    fn what_is_printed_is_read_again() {
        for (typed, want) in [
            ("a.*.#", "a.*.#"),
            ("#.#.a", "#.a"),
            ("%61%2Eb%2a", "a.b%2A"),
            ("%3Aa.:b", "%3Aa.:b"),
            ("%2E", "."),
            ("%C3%BC", "%C3%BC"),
        ] {
            let pattern = Pattern::new(typed.as_bytes()).expect("cases are valid");
            let printed = pattern.printed();
            assert_eq!(String::from_utf8_lossy(&printed), want);
            assert_eq!(Pattern::new(&printed), Ok(pattern));
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in [
            "", "a*", "*a", "a.b#", "a b", "a/b", "%", "%g0", "**", "a,b", "$",
        ] {
            assert!(Pattern::new(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(super::check(&[b'x'; PATTERN_BYTES_MAX + 1]).is_err());
    }

    /// The meaning itself, written down without any care for time.
    fn naive(words: &[&str], name: &[&str]) -> bool {
        match words {
            [] => name.is_empty(),
            ["#", rest @ ..] => (0..=name.len()).any(|skip| naive(rest, &name[skip..])),
            [word, rest @ ..] => match name {
                [first, after @ ..] => (*word == "*" || word == first) && naive(rest, after),
                [] => false,
            },
        }
    }

    #[test]
    fn agrees_with_its_meaning_on_all_small_cases() {
        let all = |alphabet: &[&'static str], length: usize| {
            (0..length).fold(vec![Vec::new()], |shorter: Vec<Vec<&str>>, _| {
                let longer = shorter.iter().flat_map(|words| {
                    alphabet
                        .iter()
                        .map(move |word| [words.as_slice(), &[*word]].concat())
                });
                longer.collect()
            })
        };
        for pattern_words in (1..=4).flat_map(|length| all(&["a", "b", "*", "#"], length)) {
            let pattern = Pattern::new(pattern_words.join(".").as_bytes()).expect("valid");
            for name_words in (1..=5).flat_map(|length| all(&["a", "b"], length)) {
                let name = name_words.join(".");
                let want = naive(&pattern_words, &name_words);
                assert_eq!(
                    pattern.matches(name.as_bytes()),
                    want,
                    "{pattern_words:?} {name}"
                );
            }
        }
    }

    #[test]
    fn a_hostile_pattern_costs_little() {
        let pattern = Pattern::new(&b"#.a.".repeat(150))
            .or_else(|_| Pattern::new("#.a.".repeat(150).trim_end_matches('.').as_bytes()));
        let pattern = pattern.expect("words joined by dots");
        let name = "a.".repeat(126) + "b";
        for _ in 0..1000 {
            assert!(!pattern.matches(name.as_bytes()));
        }
    }
}
