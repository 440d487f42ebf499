//! Content headers: the size of a body and the message's properties. Properties are kept as the octets that
//! came; the headers table is cut out and put back in its place, because the broker keeps headers for itself.

use super::wire::{Malformed, Reader, put_longlong, put_longstr, put_short, put_shortstr};

/// The class that contents belong to.
pub const BASIC: u16 = 60;

const CONTENT_TYPE: u16 = 1 << 15;
const CONTENT_ENCODING: u16 = 1 << 14;
const HEADERS: u16 = 1 << 13;
const DELIVERY_MODE: u16 = 1 << 12;
const PRIORITY: u16 = 1 << 11;
const CORRELATION_ID: u16 = 1 << 10;
const REPLY_TO: u16 = 1 << 9;
const EXPIRATION: u16 = 1 << 8;
const MESSAGE_ID: u16 = 1 << 7;
const TIMESTAMP: u16 = 1 << 6;
const TYPE: u16 = 1 << 5;
const USER_ID: u16 = 1 << 4;
const APP_ID: u16 = 1 << 3;
const CLUSTER_ID: u16 = 1 << 2;
/// The bit without a meaning, and the one that says that more flags follow, of which there are none.
const UNKNOWN: u16 = 0b11;

/// A content header's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// The class that it is of.
    pub class: u16,
    /// Size of the body, bytes; nothing may be reserved for it.
    pub body_bytes: u64,
    /// Flags and values as they came.
    pub properties: &'a [u8],
}

impl<'a> Header<'a> {
    /// Reads the payload of a header frame.
    ///
    /// # Errors
    /// It is too short for one.
    #[inline]
    pub fn decode(payload: &'a [u8]) -> Result<Header<'a>, Malformed> {
        let mut reader = Reader::new(payload);
        let class = reader.short()?;
        reader.short()?;
        Ok(Header {
            class,
            body_bytes: reader.longlong()?,
            properties: reader.rest(),
        })
    }
}

/// What the broker looks at among a message's properties.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Properties<'a> {
    /// The headers table, without its length, if there is one.
    pub headers: Option<&'a [u8]>,
    /// 2 = it is to survive a restart.
    pub delivery_mode: Option<u8>,
    /// Priority.
    pub priority: Option<u8>,
    /// Where an answer goes.
    pub reply_to: Option<&'a [u8]>,
    /// Time to live, milliseconds in digits.
    pub expiration: Option<&'a [u8]>,
    /// Who says to have sent it.
    pub user_id: Option<&'a [u8]>,
    /// Before the headers table: the flags and two short strings.
    front: &'a [u8],
    /// Behind the headers table.
    back: &'a [u8],
}

impl<'a> Properties<'a> {
    /// Reads flags and values; all of them are looked at.
    ///
    /// # Errors
    /// A value is cut, a flag means nothing, or something follows.
    #[inline]
    pub fn decode(octets: &'a [u8]) -> Result<Properties<'a>, Malformed> {
        let mut reader = Reader::new(octets);
        let flags = reader.short()?;
        if flags & UNKNOWN != 0 {
            return Err(Malformed);
        }
        let mut found = Properties::default();
        for text in [CONTENT_TYPE, CONTENT_ENCODING] {
            if flags & text != 0 {
                reader.shortstr()?;
            }
        }
        found.front = &octets[..octets.len() - reader.rest().len()];
        if flags & HEADERS != 0 {
            found.headers = Some(reader.table()?);
        }
        found.back = reader.rest();
        if flags & DELIVERY_MODE != 0 {
            found.delivery_mode = Some(reader.octet()?);
        }
        if flags & PRIORITY != 0 {
            found.priority = Some(reader.octet()?);
        }
        if flags & (DELIVERY_MODE - 1) & !PRIORITY != 0 {
            found.rare(flags, &mut reader)?;
        }
        match reader.is_empty() {
            true => Ok(found),
            false => Err(Malformed),
        }
    }

    fn rare(&mut self, flags: u16, reader: &mut Reader<'a>) -> Result<(), Malformed> {
        for flag in [
            CORRELATION_ID,
            REPLY_TO,
            EXPIRATION,
            MESSAGE_ID,
            TIMESTAMP,
            TYPE,
            USER_ID,
            APP_ID,
            CLUSTER_ID,
        ] {
            if flags & flag == 0 {
                continue;
            }
            if flag == TIMESTAMP {
                reader.longlong()?;
                continue;
            }
            let text = reader.shortstr()?;
            match flag {
                REPLY_TO => self.reply_to = Some(text),
                EXPIRATION => self.expiration = Some(text),
                USER_ID => self.user_id = Some(text),
                _ => {}
            }
        }
        Ok(())
    }

    /// Appends the properties without the headers table; the flag that there is one stays.
    pub fn put_without_headers(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.front);
        out.extend_from_slice(self.back);
    }

    /// What is passed on as it came; `scratch` takes the properties but the headers.
    pub fn kept<'s>(&self, scratch: &'s mut Vec<u8>) -> Kept<'s>
    where
        'a: 's,
    {
        self.put_without_headers(scratch);
        Kept {
            properties: scratch,
            headers: [self.headers.unwrap_or_default(), b""],
            reply_to: None,
        }
    }

    /// Nothing is said but perhaps a delivery mode: what most messages have.
    pub fn is_plain(&self) -> bool {
        self.front.len() == 2 && self.headers.is_none() && self.back.len() <= 1
    }

    /// Time to live, milliseconds.
    ///
    /// # Errors
    /// `expiration` is no number.
    pub fn ttl_ms(&self) -> Result<Option<u64>, Malformed> {
        let Some(digits) = self.expiration else {
            return Ok(None);
        };
        if digits.is_empty() || digits.len() > 19 || !digits.iter().all(u8::is_ascii_digit) {
            return Err(Malformed);
        }
        let number = digits
            .iter()
            .fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0'));
        Ok(Some(number))
    }

    /// Appends the same properties with another `reply_to`, without the headers table.
    pub fn put_with_reply_to(&self, out: &mut Vec<u8>, reply_to: &[u8]) {
        let Some(old) = self.reply_to else {
            return self.put_without_headers(out);
        };
        // The old one lies inside `back`, its length in front of it.
        let at = old.as_ptr() as usize - self.back.as_ptr() as usize - 1;
        out.extend_from_slice(self.front);
        out.extend_from_slice(&self.back[..at]);
        put_shortstr(out, reply_to);
        out.extend_from_slice(&self.back[at + 1 + old.len()..]);
    }
}

/// Flags of kept properties, the values before the time to live, it, and those behind it; `None` if there is none.
fn around_expiration(kept: &[u8]) -> Option<(u16, [&[u8]; 3])> {
    let (flags, values) = kept.split_first_chunk::<2>()?;
    let flags = u16::from_be_bytes(*flags);
    if flags & EXPIRATION == 0 {
        return None;
    }
    let mut reader = Reader::new(values);
    for flag in [
        CONTENT_TYPE,
        CONTENT_ENCODING,
        DELIVERY_MODE,
        PRIORITY,
        CORRELATION_ID,
        REPLY_TO,
    ] {
        match flag {
            _ if flags & flag == 0 => {}
            DELIVERY_MODE | PRIORITY => _ = reader.octet().ok()?,
            _ => _ = reader.shortstr().ok()?,
        }
    }
    let before = &values[..values.len() - reader.rest().len()];
    let expiration = reader.shortstr().ok()?;
    Some((flags, [before, expiration, reader.rest()]))
}

/// Kept properties without the time to live, which a message has no more once it has died.
pub fn without_expiration(kept: &[u8]) -> Vec<u8> {
    let Some((flags, [before, _, behind])) = around_expiration(kept) else {
        return kept.to_vec();
    };
    let mut out = Vec::with_capacity(kept.len());
    put_short(&mut out, flags & !EXPIRATION);
    out.extend_from_slice(before);
    out.extend_from_slice(behind);
    out
}

/// The time to live among kept properties, milliseconds in digits.
pub fn expiration(kept: &[u8]) -> Option<&[u8]> {
    around_expiration(kept).map(|(_, [_, expiration, _])| expiration)
}

/// Properties as the broker keeps them: without the headers table, whose flag may stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept<'a> {
    /// What [`Properties::put_without_headers`] wrote; empty if the message came by another protocol.
    pub properties: &'a [u8],
    /// The headers, of the message and of the broker: field tables, one behind the other.
    pub headers: [&'a [u8]; 2],
    /// Where an answer goes, of a message that came by another protocol.
    pub reply_to: Option<&'a [u8]>,
}

/// Appends a content header's payload.
pub fn put_header(out: &mut Vec<u8>, body_bytes: u64, kept: &Kept<'_>) {
    put_short(out, BASIC);
    put_short(out, 0);
    put_longlong(out, body_bytes);
    put_properties(out, kept);
}

/// Appends flags and values, the headers table in its place.
pub fn put_properties(out: &mut Vec<u8>, kept: &Kept<'_>) {
    let headers_bytes: usize = kept.headers.iter().map(|table| table.len()).sum();
    let Some((flags, values)) = kept.properties.split_first_chunk::<2>() else {
        let reply_to = kept.reply_to.filter(|reply| reply.len() < 256);
        let mut flags = 0;
        if headers_bytes > 0 {
            flags |= HEADERS;
        }
        if reply_to.is_some() {
            flags |= REPLY_TO;
        }
        put_short(out, flags);
        if headers_bytes > 0 {
            put_headers(out, kept, headers_bytes);
        }
        if let Some(reply_to) = reply_to {
            put_shortstr(out, reply_to);
        }
        return;
    };
    let flags = u16::from_be_bytes(*flags);
    if flags & HEADERS == 0 && headers_bytes == 0 {
        out.extend_from_slice(kept.properties);
        return;
    }
    put_short(out, flags | HEADERS);
    let mut reader = Reader::new(values);
    for text in [CONTENT_TYPE, CONTENT_ENCODING] {
        if flags & text != 0 && reader.shortstr().is_err() {
            break;
        }
    }
    let back = reader.rest();
    out.extend_from_slice(&values[..values.len() - back.len()]);
    put_headers(out, kept, headers_bytes);
    out.extend_from_slice(back);
}

fn put_headers(out: &mut Vec<u8>, kept: &Kept<'_>, headers_bytes: usize) {
    match kept.headers {
        [one, []] => put_longstr(out, one),
        [one, two] => {
            super::wire::put_long(
                out,
                u32::try_from(headers_bytes).expect("both came in frames"),
            );
            out.extend_from_slice(one);
            out.extend_from_slice(two);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::table;
    use super::*;

    /// Properties with the flags given, each value telling which it is.
    fn properties(flags: u16) -> Vec<u8> {
        let mut out = Vec::new();
        put_short(&mut out, flags);
        let mut headers = Vec::new();
        table::put_text(&mut headers, b"a", b"1");
        table::put_bool(&mut headers, b"b", true);
        for bit in (2..16).rev() {
            let flag = 1u16 << bit;
            if flags & flag == 0 {
                continue;
            }
            match flag {
                HEADERS => put_longstr(&mut out, &headers),
                DELIVERY_MODE => out.push(2),
                PRIORITY => out.push(9),
                TIMESTAMP => put_longlong(&mut out, 77),
                EXPIRATION => put_shortstr(&mut out, b"60000"),
                _ => put_shortstr(&mut out, format!("text {bit}").as_bytes()),
            }
        }
        out
    }

    fn kept_and_back(octets: &[u8]) -> Vec<u8> {
        let found = Properties::decode(octets).expect("they are whole");
        let mut without = Vec::new();
        found.put_without_headers(&mut without);
        let mut back = Vec::new();
        let kept = Kept {
            properties: &without,
            headers: [found.headers.unwrap_or_default(), b""],
            reply_to: None,
        };
        put_properties(&mut back, &kept);
        back
    }

    #[test]
    fn whatever_is_set_comes_back_octet_by_octet() {
        for bits in 0..1u16 << 14 {
            let octets = properties(bits << 2);
            assert_eq!(kept_and_back(&octets), octets, "flags {:016b}", bits << 2);
        }
    }

    #[test]
    fn values_are_found_where_they_are() {
        let octets = properties(0xfffc);
        let found = Properties::decode(&octets).expect("they are whole");
        assert_eq!(found.delivery_mode, Some(2));
        assert_eq!(found.priority, Some(9));
        assert_eq!(found.reply_to, Some(&b"text 9"[..]));
        assert_eq!(found.user_id, Some(&b"text 4"[..]));
        assert_eq!(found.ttl_ms(), Ok(Some(60_000)));
        assert_eq!(
            found.headers.map(|table| table::entries(table).count()),
            Some(2)
        );
        for cut in 0..octets.len() {
            assert_eq!(
                Properties::decode(&octets[..cut]),
                Err(Malformed),
                "cut at {cut}"
            );
        }
        let more = [&octets[..], b"x"].concat();
        assert_eq!(Properties::decode(&more), Err(Malformed));
        assert_eq!(
            Properties::decode(&properties(0)).map(|it| it.is_plain()),
            Ok(true)
        );
        assert_eq!(Properties::decode(&[0, 1]), Err(Malformed));
        assert_eq!(Properties::decode(&[0, 2]), Err(Malformed));
    }

    #[test]
    fn an_empty_table_is_not_none() {
        let octets = [&0x2000u16.to_be_bytes()[..], &[0; 4]].concat();
        assert_eq!(kept_and_back(&octets), octets);
    }

    #[test]
    fn headers_of_the_broker_stand_behind_those_of_the_message() {
        let octets = properties(CONTENT_TYPE | PRIORITY);
        let mut own = Vec::new();
        table::put_number(&mut own, b"x-delivery-count", 1);
        let mut out = Vec::new();
        let kept = Kept {
            properties: &octets,
            headers: [b"", &own],
            reply_to: None,
        };
        put_properties(&mut out, &kept);
        let found = Properties::decode(&out).expect("they are whole");
        assert_eq!((found.headers, found.priority), (Some(&own[..]), Some(9)));
    }

    #[test]
    fn a_message_of_another_protocol_has_what_it_has() {
        let mut headers = Vec::new();
        table::put_text(&mut headers, b"a", b"1");
        let mut out = Vec::new();
        let kept = Kept {
            properties: b"",
            headers: [&headers, b""],
            reply_to: Some(b"answers"),
        };
        put_properties(&mut out, &kept);
        let found = Properties::decode(&out).expect("they are whole");
        assert_eq!(found.headers, Some(&headers[..]));
        assert_eq!(found.reply_to, Some(&b"answers"[..]));
        out.clear();
        put_properties(&mut out, &Kept::default());
        assert_eq!(out, [0, 0]);
    }

    #[test]
    fn reply_to_is_replaced_in_its_place() {
        let octets = properties(0xfffc);
        let found = Properties::decode(&octets).expect("they are whole");
        let mut out = Vec::new();
        found.put_with_reply_to(&mut out, b"a.longer.name");
        let mut whole = Vec::new();
        let kept = Kept {
            properties: &out,
            headers: [found.headers.unwrap_or_default(), b""],
            reply_to: None,
        };
        put_properties(&mut whole, &kept);
        let again = Properties::decode(&whole).expect("they are whole");
        assert_eq!(again.reply_to, Some(&b"a.longer.name"[..]));
        assert_eq!(again.expiration, found.expiration);
        assert_eq!(again.headers, found.headers);
    }

    #[test]
    fn the_time_to_live_is_taken_out_of_kept_properties() {
        for bits in 0..1u16 << 14 {
            let flags = bits << 2;
            let kept = |flags| {
                let octets = properties(flags);
                let mut kept = Vec::new();
                let found = Properties::decode(&octets).expect("they are whole");
                found.put_without_headers(&mut kept);
                kept
            };
            let with = kept(flags);
            assert_eq!(without_expiration(&with), kept(flags & !EXPIRATION));
            let want = (flags & EXPIRATION != 0).then_some(&b"60000"[..]);
            assert_eq!(expiration(&with), want);
        }
    }

    #[test]
    fn a_time_to_live_is_digits() {
        for (text, want) in [
            ("0", Ok(Some(0))),
            ("9999999999999999999", Ok(Some(9_999_999_999_999_999_999))),
            ("", Err(Malformed)),
            ("-1", Err(Malformed)),
            ("1.5", Err(Malformed)),
            ("99999999999999999999", Err(Malformed)),
        ] {
            let found = Properties {
                expiration: Some(text.as_bytes()),
                ..Properties::default()
            };
            assert_eq!(found.ttl_ms(), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_at_all_comes_back(
            flags in any::<u16>(),
            at in any::<usize>(),
            octet in any::<u8>(),
        ) {
            let mut octets = properties(flags & 0xfffc);
            let at = at % octets.len();
            octets[at] = octet;
            if Properties::decode(&octets).is_ok() {
                prop_assert_eq!(kept_and_back(&octets), octets);
            }
        }
    }
}
