//! Messages and listings in JSON.

use crate::broker::headers::{self, Value};
use crate::broker::reply::Delivery;
use crate::protocol::http::json;
use crate::protocol::text::encode as text;

/// A header's value as text, if it has such a form.
pub(super) fn shown<'a>(scratch: &'a mut Vec<u8>, value: &Value<'a>) -> Option<&'a [u8]> {
    let text = match value {
        Value::Text(text) => return Some(text),
        Value::Bool(value) => value.to_string(),
        Value::Signed(value) => value.to_string(),
        Value::Unsigned(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Void | Value::Other(_) => return None,
    };
    scratch.extend_from_slice(text.as_bytes());
    Some(scratch)
}

/// One message as JSON.
pub(super) fn message(out: &mut Vec<u8>, delivery: &Delivery<'_>) {
    let text_field = |out: &mut Vec<u8>, name: &str, value: &[u8]| {
        out.extend_from_slice(format!(",\"{name}\":").as_bytes());
        json::string(out, value);
    };
    out.extend_from_slice(b"{\"queue\":");
    json::string(out, delivery.source);
    if let Some(named) = delivery.handle {
        let mut handle = Vec::new();
        text::handle(&mut handle, named);
        text_field(out, "handle", &handle);
    }
    let Delivery { id, tries, .. } = delivery;
    out.extend_from_slice(format!(",\"id\":{id},\"try\":{tries}").as_bytes());
    if let Some(timestamp_ms) = delivery.timestamp_ms {
        out.extend_from_slice(format!(",\"time_ms\":{timestamp_ms}").as_bytes());
    }
    if let Some(key) = delivery.key {
        text_field(out, "key", key);
    }
    if let Some(reply) = delivery.reply {
        text_field(out, "reply", reply);
    }
    if !delivery.headers.is_empty() {
        out.extend_from_slice(b",\"headers\":{");
        let mut is_first = true;
        for (name, value) in headers::entries(delivery.headers) {
            let mut written = Vec::new();
            if let Some(value) = shown(&mut written, &value) {
                if !std::mem::take(&mut is_first) {
                    out.push(b',');
                }
                json::string(out, name);
                out.push(b':');
                json::string(out, value);
            }
        }
        out.push(b'}');
    }
    let body = delivery.body.as_slice();
    match std::str::from_utf8(body) {
        Ok(_) => text_field(out, "body", body),
        Err(_) => {
            out.extend_from_slice(b",\"body_base64\":\"");
            json::base64(out, body);
            out.push(b'"');
        }
    }
    out.push(b'}');
}

/// The lines of `QLS`, a name and `key=value` words each, as JSON.
pub(super) fn queues(lines: &[u8]) -> Vec<u8> {
    let mut out = b"{\"queues\":[".to_vec();
    let lines = lines.split(|octet| *octet == b'\n');
    for (at, line) in lines.filter(|line| !line.is_empty()).enumerate() {
        out.extend_from_slice(if at == 0 { b"\n{" } else { b",\n{" });
        let mut words = line.split(|octet| *octet == b' ');
        out.extend_from_slice(b"\"name\":");
        json::string(&mut out, words.next().unwrap_or_default());
        for word in words {
            out.push(b',');
            member(&mut out, word);
        }
        out.push(b'}');
    }
    out.extend_from_slice(b"]}\n");
    out
}

/// The lines of `QGET`, `key=value` each, as JSON.
pub(super) fn queue(lines: &[u8]) -> Vec<u8> {
    let mut out = b"{".to_vec();
    let lines = lines.split(|octet| *octet == b'\n');
    for (at, line) in lines.filter(|line| !line.is_empty()).enumerate() {
        out.extend_from_slice(if at == 0 { b"\n" } else { b",\n" });
        member(&mut out, line);
    }
    out.extend_from_slice(b"}\n");
    out
}

fn member(out: &mut Vec<u8>, text: &[u8]) {
    let at = memchr::memchr(b'=', text).unwrap_or(text.len());
    json::string(out, &text[..at]);
    out.push(b':');
    json::number_or_string(out, text.get(at + 1..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_become_json() {
        assert_eq!(
            String::from_utf8_lossy(&queues(b"a ready=1 leased=0\nb%20c ready=2\n")),
            "{\"queues\":[\n{\"name\":\"a\",\"ready\":1,\"leased\":0},\n{\"name\":\"b%20c\",\"ready\":2}]}\n"
        );
        assert_eq!(queues(b""), b"{\"queues\":[]}\n");
        assert_eq!(
            String::from_utf8_lossy(&queue(b"ready=1\nset.lease=30s\n")),
            "{\n\"ready\":1,\n\"set.lease\":\"30s\"}\n"
        );
    }
}
