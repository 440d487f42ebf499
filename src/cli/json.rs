//! Writing JSON: one flat object at a time, fields in the order they are added.

use std::fmt::Write;

/// An object that is being written.
#[derive(Debug, Default)]
pub struct Object {
    text: String,
}

impl Object {
    /// Adds a string.
    pub fn string(&mut self, key: &str, value: &str) -> &mut Object {
        self.key(key);
        quote(&mut self.text, value);
        self
    }

    /// Adds a whole number.
    pub fn count(&mut self, key: &str, value: u64) -> &mut Object {
        self.raw(key, &value.to_string())
    }

    /// Adds a number with three decimals; what is not finite becomes `null`.
    pub fn number(&mut self, key: &str, value: f64) -> &mut Object {
        match value.is_finite() {
            true => self.raw(key, &format!("{value:.3}")),
            false => self.raw(key, "null"),
        }
    }

    /// Adds a value that is JSON already.
    pub fn raw(&mut self, key: &str, json: &str) -> &mut Object {
        self.key(key);
        self.text.push_str(json);
        self
    }

    /// Adds octets: as a string under `key` when they are UTF-8, else as base64 under
    /// `<key>_base64`.
    pub fn octets(&mut self, key: &str, octets: &[u8]) -> &mut Object {
        match std::str::from_utf8(octets) {
            Ok(text) => self.string(key, text),
            Err(_) => self.string(&format!("{key}_base64"), &base64(octets)),
        }
    }

    /// The whole object, without a line end.
    pub fn finish(&self) -> String {
        format!("{{{}}}", self.text)
    }

    fn key(&mut self, key: &str) {
        if !self.text.is_empty() {
            self.text.push(',');
        }
        quote(&mut self.text, key);
        self.text.push(':');
    }
}

/// Appends a JSON string.
fn quote(out: &mut String, text: &str) {
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            letter if letter < ' ' => {
                write!(out, "\\u{:04x}", letter as u32).expect("a String takes everything");
            }
            letter => out.push(letter),
        }
    }
    out.push('"');
}

/// Base64 with padding.
fn base64(octets: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(octets.len().div_ceil(3) * 4);
    for chunk in octets.chunks(3) {
        let octet = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = octet(0) << 16 | octet(1) << 8 | octet(2);
        for digit in 0..4 {
            match digit <= chunk.len() {
                true => out.push(DIGITS[(bits >> (18 - 6 * digit)) as usize & 63] as char),
                false => out.push('='),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects() {
        let mut object = Object::default();
        assert_eq!(object.finish(), "{}");
        object
            .string("a", "x\"\\\n\u{1}é")
            .count("n", 7)
            .number("f", 0.5)
            .raw("o", "[1]");
        object
            .number("nan", f64::NAN)
            .octets("body", b"ok")
            .octets("bin", &[0xff, 0]);
        assert_eq!(
            object.finish(),
            r#"{"a":"x\"\\\n\u0001é","n":7,"f":0.500,"o":[1],"nan":null,"body":"ok","bin_base64":"/wA="}"#
        );
    }

    #[test]
    fn base64_of_every_length() {
        let cases = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ];
        for (text, want) in cases {
            assert_eq!(base64(text.as_bytes()), want);
        }
    }
}
