//! Values of JSON, appended to bytes.

/// A string; octets that are no UTF-8 are replaced.
pub fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    for character in String::from_utf8_lossy(text).chars() {
        match character {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            control if u32::from(control) < 0x20 => {
                out.extend_from_slice(format!("\\u{:04x}", u32::from(control)).as_bytes());
            }
            other => {
                let mut octets = [0; 4];
                out.extend_from_slice(other.encode_utf8(&mut octets).as_bytes());
            }
        }
    }
    out.push(b'"');
}

/// A value that a text names: digits are a number, everything else a string.
pub fn number_or_string(out: &mut Vec<u8>, text: &[u8]) {
    let is_number = !text.is_empty()
        && text.len() <= 15
        && text.iter().all(u8::is_ascii_digit)
        && (text.len() == 1 || text[0] != b'0');
    match is_number {
        true => out.extend_from_slice(text),
        false => string(out, text),
    }
}

/// Octets as base64 with padding (RFC 4648), without quotes.
pub fn base64(out: &mut Vec<u8>, octets: &[u8]) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in octets.chunks(3) {
        let mut bits = 0u32;
        for at in 0..3 {
            bits = bits << 8 | u32::from(chunk.get(at).copied().unwrap_or(0));
        }
        for at in 0..4 {
            let sextet = (bits >> (18 - 6 * at) & 63) as usize;
            out.push(match at <= chunk.len() {
                true => ALPHABET[sextet],
                false => b'=',
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(write: impl Fn(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("JSON is text")
    }

    #[test]
    fn strings_are_escaped() {
        let check = |text: &[u8], want: &str| assert_eq!(shown(|out| string(out, text)), want);
        check(b"plain", "\"plain\"");
        check(b"a\"b\\c\n\r\t\x01", "\"a\\\"b\\\\c\\n\\r\\t\\u0001\"");
        check("ü€".as_bytes(), "\"ü€\"");
        check(b"\xff", "\"\u{fffd}\"");
    }

    #[test]
    fn only_plain_digits_are_numbers() {
        let check = |text: &str, want: &str| {
            assert_eq!(shown(|out| number_or_string(out, text.as_bytes())), want);
        };
        check("0", "0");
        check("12", "12");
        check("012", "\"012\"");
        check("", "\"\"");
        check("12345678901234567", "\"12345678901234567\"");
        check("30s", "\"30s\"");
    }

    #[test]
    fn base64_has_padding() {
        let check = |text: &str, want: &str| {
            assert_eq!(shown(|out| base64(out, text.as_bytes())), want);
        };
        check("", "");
        check("f", "Zg==");
        check("fo", "Zm8=");
        check("foo", "Zm9v");
        check("foobar", "Zm9vYmFy");
    }
}
