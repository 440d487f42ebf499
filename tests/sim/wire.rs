//! What a client sees: cuts the bytes of one connection into server lines with their bodies, and
//! checks their form. It knows nothing of what was asked.

/// One line of the server, with its body if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The first word: `OK`, `ERR`, `MSG`, `END`, `PONG`, `DATA`, `LAG` or `EXPIRED`.
    pub kind: String,
    /// The tag it carries, without the `@`.
    pub tag: Option<String>,
    /// The other words, without the body's announcement and without a `:text`.
    pub words: Vec<String>,
    /// What follows ` :` on the line.
    pub text: Option<String>,
    /// The counted body.
    pub body: Option<Vec<u8>>,
}

impl Line {
    /// The value of the word `key=value`.
    pub fn option(&self, key: &str) -> Option<&str> {
        self.words
            .iter()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    /// The handles or ids of `stale=`.
    pub fn stale(&self) -> Vec<String> {
        match self.option("stale") {
            None | Some("") => Vec::new(),
            Some(list) => list.split(',').map(str::to_string).collect(),
        }
    }
}

/// Cuts a connection's bytes into lines.
#[derive(Debug, Default)]
pub struct LineReader {
    buffer: Vec<u8>,
}

/// Longest line a server may send, bytes.
const LINE_BYTES_MAX: usize = 64 << 10;

const KINDS: [&str; 8] = ["OK", "ERR", "MSG", "END", "PONG", "DATA", "LAG", "EXPIRED"];

const CODES: [&str; 23] = [
    "SYNTAX",
    "UNKNOWN",
    "NAME",
    "TOOBIG",
    "LINE",
    "PROTO",
    "NOQUEUE",
    "NOGROUP",
    "STALE",
    "NOCONSUMER",
    "TIMEOUT",
    "CONFLICT",
    "FULL",
    "MEM",
    "DISK",
    "PAUSED",
    "LIMIT",
    "DRAINING",
    "AUTH",
    "DENIED",
    "NOTLEADER",
    "UNKNOWNRESULT",
    "INTERNAL",
];

impl LineReader {
    /// Takes bytes in; gives every line that is complete now.
    ///
    /// # Errors
    ///
    /// What is wrong with the form of the bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Line>, String> {
        self.buffer.extend_from_slice(bytes);
        let mut lines = Vec::new();
        let mut start = 0;
        while let Some((line, size)) = parse(&self.buffer[start..])? {
            lines.push(line);
            start += size;
        }
        self.buffer.drain(..start);
        Ok(lines)
    }

    /// Whether a line has begun and not ended.
    pub fn inside_line(&self) -> bool {
        !self.buffer.is_empty()
    }
}

fn parse(bytes: &[u8]) -> Result<Option<(Line, usize)>, String> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return match bytes.len() > LINE_BYTES_MAX {
            true => Err("a line longer than 64 KiB".to_string()),
            false => Ok(None),
        };
    };
    let line = &bytes[..end];
    let shown = || String::from_utf8_lossy(&line[..line.len().min(200)]).to_string();
    if line.contains(&b'\r') || line.len() > LINE_BYTES_MAX {
        return Err(format!("a line with a CR or too long: {:?}", shown()));
    }
    let text = std::str::from_utf8(line).map_err(|_| format!("not UTF-8: {:?}", shown()))?;
    let (head, tail) = match text.find(" :") {
        Some(at) => (&text[..at], Some(text[at + 2..].to_string())),
        None => (text, None),
    };
    let mut words: Vec<String> = head.split(' ').map(str::to_string).collect();
    if words.iter().any(String::is_empty) {
        return Err(format!("an empty word: {:?}", shown()));
    }
    let kind = words.remove(0);
    if !KINDS.contains(&kind.as_str()) {
        return Err(format!("a line of no known kind: {:?}", shown()));
    }
    let tagged = words.first().is_some_and(|word| word.starts_with('@'));
    let tag = tagged.then(|| words.remove(0)[1..].to_string());
    let announced = words.last().and_then(|word| word.strip_prefix('$'));
    let length: Option<usize> = match announced {
        Some(digits) => Some(
            digits
                .parse()
                .map_err(|_| format!("length: {:?}", shown()))?,
        ),
        None => None,
    };
    if length.is_some() != matches!(kind.as_str(), "MSG" | "DATA") {
        return Err(format!("a body where none belongs, or none: {:?}", shown()));
    }
    if kind == "ERR"
        && !words
            .first()
            .is_some_and(|code| CODES.contains(&code.as_str()))
    {
        return Err(format!("an unknown error code: {:?}", shown()));
    }
    if kind == "ERR" && tail.as_ref().is_none_or(String::is_empty) && words[0] != "STALE" {
        return Err(format!("an error without a word of help: {:?}", shown()));
    }
    let mut size = end + 1;
    let mut body = None;
    if let Some(length) = length {
        words.pop();
        let Some(content) = bytes.get(size..size + length + 1) else {
            return Ok(None);
        };
        if content[length] != b'\n' {
            return Err(format!("no line end behind the body of {:?}", shown()));
        }
        body = Some(content[..length].to_vec());
        size += length + 1;
    }
    let line = Line {
        kind,
        tag,
        words,
        text: tail,
        body,
    };
    Ok(Some((line, size)))
}

#[test]
fn lines_are_cut_at_any_point() {
    let bytes = b"OK 1 disk\nMSG @t q 1.2.3 try=2 $3\na\nb\nEND @t 1\nERR FULL retry=5 :no room\n";
    for cut in 0..bytes.len() {
        let mut reader = LineReader::default();
        let mut lines = reader.feed(&bytes[..cut]).expect("well formed");
        lines.extend(reader.feed(&bytes[cut..]).expect("well formed"));
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[1].tag.as_deref(), Some("t"));
        assert_eq!(lines[1].body.as_deref(), Some(&b"a\nb"[..]));
        assert_eq!(lines[1].option("try"), Some("2"));
        assert_eq!(lines[3].words, ["FULL", "retry=5"]);
    }
    for bad in [
        "YES\n",
        "OK\r\n",
        "ERR WHAT :x\n",
        "MSG q 1.1.1\n",
        "OK  1\n",
        "ERR FULL\n",
    ] {
        assert!(
            LineReader::default().feed(bad.as_bytes()).is_err(),
            "{bad:?}"
        );
    }
}
