//! Responses to bytes: a status line, fields, and the length of the body that follows.

/// What a status code is called; empty for one that this broker never sends.
pub fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

/// What asks a client that waits for it to send its body.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The head of a response, field by field.
#[derive(Debug)]
pub struct Head<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Head<'a> {
    /// The status line.
    pub fn new(out: &'a mut Vec<u8>, status: u16) -> Head<'a> {
        out.extend_from_slice(b"HTTP/1.1 ");
        crate::protocol::text::encode::number(out, u64::from(status));
        out.push(b' ');
        out.extend_from_slice(reason(status).as_bytes());
        out.extend_from_slice(b"\r\n");
        Head { out }
    }

    /// One field. Octets that cannot stand in a value are sent as `%XX`.
    pub fn field(&mut self, name: &str, value: &[u8]) {
        self.out.extend_from_slice(name.as_bytes());
        self.field_of(value);
    }

    /// The same, the name in two parts.
    pub fn prefixed_field(&mut self, prefix: &str, name: &[u8], value: &[u8]) {
        self.out.extend_from_slice(prefix.as_bytes());
        self.out.extend_from_slice(name);
        self.field_of(value);
    }

    fn field_of(&mut self, value: &[u8]) {
        self.out.extend_from_slice(b": ");
        for octet in value {
            match octet {
                b' '..=b'~' if *octet != b'%' => self.out.push(*octet),
                other => self
                    .out
                    .extend_from_slice(format!("%{other:02X}").as_bytes()),
            }
        }
        self.out.extend_from_slice(b"\r\n");
    }

    /// One field with a number.
    pub fn number(&mut self, name: &str, value: u64) {
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b": ");
        crate::protocol::text::encode::number(self.out, value);
        self.out.extend_from_slice(b"\r\n");
    }

    /// The end of a head, with the length of the body that follows; `None` = a response that has none.
    pub fn end(mut self, length: Option<usize>, keep_alive: bool) {
        if !keep_alive {
            self.out.extend_from_slice(b"Connection: close\r\n");
        }
        if let Some(length) = length {
            self.number("Content-Length", length as u64);
        }
        self.out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_with_an_empty_line_and_no_value_breaks_it() {
        let mut out = Vec::new();
        let mut head = Head::new(&mut out, 200);
        head.field("X-A", b"one\r\nX-Evil: 1\xff%");
        head.prefixed_field("X-H-", b"b", b"2");
        head.end(Some(5), false);
        let want = "HTTP/1.1 200 OK\r\nX-A: one%0D%0AX-Evil: 1%FF%25\r\nX-H-b: 2\r\n\
                    Connection: close\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(String::from_utf8_lossy(&out), want);
        out.clear();
        Head::new(&mut out, 204).end(None, true);
        assert_eq!(out, b"HTTP/1.1 204 No Content\r\n\r\n");
    }
}
