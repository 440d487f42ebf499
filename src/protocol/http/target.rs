//! The target of a request: its path and the parameters behind the question mark, as they were sent.

/// A target cut at its question mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// From the first slash on.
    pub path: &'a [u8],
    /// What is behind the question mark; empty if there is none.
    pub query: &'a [u8],
}

impl<'a> Target<'a> {
    /// Cuts a target. One with scheme and host (as proxies send) is reduced to what is behind them.
    pub fn new(target: &'a [u8]) -> Target<'a> {
        let target = match target {
            [b'/', ..] => target,
            _ => {
                let authority = target
                    .strip_prefix(b"http://".as_slice())
                    .unwrap_or_default();
                let slash = memchr::memchr(b'/', authority);
                slash.map_or(b"/".as_slice(), |at| &authority[at..])
            }
        };
        match memchr::memchr(b'?', target) {
            Some(at) => Target {
                path: &target[..at],
                query: &target[at + 1..],
            },
            None => Target {
                path: target,
                query: b"",
            },
        }
    }

    /// The parts of the path between its slashes; the first slash is left out.
    pub fn segments(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let path = self.path.strip_prefix(b"/").unwrap_or(self.path);
        path.split(|octet| *octet == b'/')
    }

    /// `key=value` pairs in the order written; a key alone has an empty value. Nothing is decoded.
    pub fn pairs(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let pairs = self.query.split(|octet| *octet == b'&');
        pairs
            .filter(|pair| !pair.is_empty())
            .map(|pair| match memchr::memchr(b'=', pair) {
                Some(at) => (&pair[..at], &pair[at + 1..]),
                None => (pair, b"".as_slice()),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(target: &str, path: &str, pairs: &[(&str, &str)]) {
        let found = Target::new(target.as_bytes());
        assert_eq!(found.path, path.as_bytes(), "{target}");
        let want: Vec<_> = pairs
            .iter()
            .map(|(key, value)| (key.as_bytes(), value.as_bytes()))
            .collect();
        assert_eq!(found.pairs().collect::<Vec<_>>(), want, "{target}");
    }

    #[test]
    fn a_target_is_a_path_and_pairs() {
        check("/queue", "/queue", &[]);
        check(
            "/queue/a%20b?n=3&wait=1s",
            "/queue/a%20b",
            &[("n", "3"), ("wait", "1s")],
        );
        check("/q?a&&b=", "/q", &[("a", ""), ("b", "")]);
        check("/q?h.x=a=b?c", "/q", &[("h.x", "a=b?c")]);
        check("http://host:1/metrics?x=1", "/metrics", &[("x", "1")]);
        check("http://host", "/", &[]);
        check("*", "/", &[]);
    }

    #[test]
    fn segments_are_what_slashes_separate() {
        let segments = |target: &'static str| -> Vec<&[u8]> {
            Target::new(target.as_bytes()).segments().collect()
        };
        assert_eq!(segments("/"), [b""]);
        assert_eq!(segments("/queue/a"), [b"queue".as_slice(), b"a"]);
        assert_eq!(segments("/queue/"), [b"queue".as_slice(), b""]);
    }
}
