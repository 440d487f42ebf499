//! Headers as the broker keeps them: the octets of an AMQP 0-9-1 field table, without the length
//! in front of it. Builds them from text and walks over any that came in, well-formed or not.
//!
//! ```text
//!     table = *entry
//!     entry = length:u8 name:length*octet type:u8 value
//!     text  = 'S' length:u32 length*octet          (every number is big-endian)
//! ```
//!
//! Never panics and never allocates for what a peer has written.

/// The value of one header.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// `S`: a text or any octets.
    Text(&'a [u8]),
    /// `t`
    Bool(bool),
    /// `b`, `s`, `I`, `l`, `L`
    Signed(i64),
    /// `B`, `u`, `i`, and `T`, a unix time in seconds.
    Unsigned(u64),
    /// `f`, `d`
    Float(f64),
    /// `V`
    Void,
    /// A value without a short form as text: its type, one of `D`, `x`, `A`, `F`.
    Other(u8),
}

impl Value<'_> {
    /// The number, if it is one that is not negative.
    pub fn as_unsigned(self) -> Option<u64> {
        match self {
            Value::Unsigned(number) => Some(number),
            Value::Signed(number) => u64::try_from(number).ok(),
            _ => None,
        }
    }
}

/// Longest name of a header, octets.
pub const NAME_BYTES_MAX: usize = 255;

/// Appends one header of text.
///
/// # Panics
/// If the name has more than [`NAME_BYTES_MAX`] octets or the value 4 GiB, which the protocols
/// refuse before.
pub fn push_text(table: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let name_len = u8::try_from(name.len()).expect("protocols refuse longer names");
    let value_len = u32::try_from(value.len()).expect("protocols refuse longer values");
    table.reserve(1 + name.len() + 5 + value.len());
    table.push(name_len);
    table.extend_from_slice(name);
    table.push(b'S');
    table.extend_from_slice(&value_len.to_be_bytes());
    table.extend_from_slice(value);
}

/// The entries of a table in order. Ends at the first entry that is cut short or of an unknown
/// type, since nobody can tell where the next one begins.
pub fn entries(table: &[u8]) -> Entries<'_> {
    Entries { rest: table }
}

/// Every entry of the table can be walked over.
pub fn is_well_formed(table: &[u8]) -> bool {
    let mut entries = entries(table);
    entries.by_ref().for_each(drop);
    entries.rest.is_empty()
}

/// The value of the first header of that name.
pub fn find<'a>(table: &'a [u8], name: &[u8]) -> Option<Value<'a>> {
    entries(table)
        .find(|(other, _)| *other == name)
        .map(|(_, value)| value)
}

/// Iterator over names and values; see [`entries`].
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a [u8], Value<'a>);

    fn next(&mut self) -> Option<(&'a [u8], Value<'a>)> {
        let mut rest = self.rest;
        let [length, kind_len @ ..] = rest else {
            return None;
        };
        rest = kind_len;
        let name = take(&mut rest, usize::from(*length))?;
        let value = value(&mut rest)?;
        self.rest = rest;
        Some((name, value))
    }
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(count)?;
    *rest = after;
    Some(taken)
}

fn array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*taken)
}

/// Octets behind their length in four.
fn long<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32::from_be_bytes(array(rest)?);
    take(rest, usize::try_from(length).ok()?)
}

/// One type octet and its value. Nested tables and arrays are stepped over by their length.
fn value<'a>(rest: &mut &'a [u8]) -> Option<Value<'a>> {
    let [kind] = array(rest)?;
    Some(match kind {
        b'S' => Value::Text(long(rest)?),
        b't' => Value::Bool(array::<1>(rest)? != [0]),
        b'b' => Value::Signed(i64::from(i8::from_be_bytes(array(rest)?))),
        b'B' => Value::Unsigned(u64::from(u8::from_be_bytes(array(rest)?))),
        b's' => Value::Signed(i64::from(i16::from_be_bytes(array(rest)?))),
        b'u' => Value::Unsigned(u64::from(u16::from_be_bytes(array(rest)?))),
        b'I' => Value::Signed(i64::from(i32::from_be_bytes(array(rest)?))),
        b'i' => Value::Unsigned(u64::from(u32::from_be_bytes(array(rest)?))),
        b'l' | b'L' => Value::Signed(i64::from_be_bytes(array(rest)?)),
        b'T' => Value::Unsigned(u64::from_be_bytes(array(rest)?)),
        b'f' => Value::Float(f64::from(f32::from_be_bytes(array(rest)?))),
        b'd' => Value::Float(f64::from_be_bytes(array(rest)?)),
        b'V' => Value::Void,
        b'D' => {
            take(rest, 5)?;
            Value::Other(kind)
        }
        b'x' | b'A' | b'F' => {
            long(rest)?;
            Value::Other(kind)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(table: &[u8], want: &[(&str, Value<'_>)], whole: bool) {
        let got: Vec<_> = entries(table).collect();
        let want: Vec<_> = want
            .iter()
            .map(|(name, value)| (name.as_bytes(), *value))
            .collect();
        assert_eq!(got, want, "{table:?}");
        assert_eq!(is_well_formed(table), whole, "{table:?}");
    }

    #[test]
    fn text_is_built_and_found() {
        let mut table = Vec::new();
        push_text(&mut table, b"a", b"1");
        push_text(&mut table, b"", b"");
        push_text(&mut table, &[b'n'; 255], &[0xff; 300]);
        assert_eq!(entries(&table).count(), 3);
        assert!(is_well_formed(&table));
        assert_eq!(find(&table, b"a"), Some(Value::Text(b"1")));
        assert_eq!(find(&table, &[b'n'; 255]), Some(Value::Text(&[0xff; 300])));
        assert_eq!(find(&table, b"b"), None);
    }

    #[test]
    fn every_type_is_walked_over() {
        check(b"", &[], true);
        check(
            b"\x01at\x01\x01bt\x00",
            &[("a", Value::Bool(true)), ("b", Value::Bool(false))],
            true,
        );
        check(b"\x01ab\xff", &[("a", Value::Signed(-1))], true);
        check(b"\x01aB\xff", &[("a", Value::Unsigned(255))], true);
        check(b"\x01as\xff\xfe", &[("a", Value::Signed(-2))], true);
        check(b"\x01au\xff\xfe", &[("a", Value::Unsigned(65_534))], true);
        check(b"\x01aI\xff\xff\xff\xfe", &[("a", Value::Signed(-2))], true);
        check(b"\x01ai\0\0\x01\0", &[("a", Value::Unsigned(256))], true);
        check(
            b"\x01al\0\0\0\0\0\0\0\x05",
            &[("a", Value::Signed(5))],
            true,
        );
        check(
            b"\x01aL\xff\xff\xff\xff\xff\xff\xff\xff",
            &[("a", Value::Signed(-1))],
            true,
        );
        check(
            b"\x01aT\0\0\0\0\0\0\0\x05",
            &[("a", Value::Unsigned(5))],
            true,
        );
        check(b"\x01af\x3f\xc0\0\0", &[("a", Value::Float(1.5))], true);
        check(
            b"\x01ad\x3f\xf8\0\0\0\0\0\0",
            &[("a", Value::Float(1.5))],
            true,
        );
        check(
            b"\x01aV\x01bV",
            &[("a", Value::Void), ("b", Value::Void)],
            true,
        );
        check(
            b"\x01aD\x02\0\0\0\x05\x01bV",
            &[("a", Value::Other(b'D')), ("b", Value::Void)],
            true,
        );
        for kind in *b"xAF" {
            let table = [b"\x01a", &[kind][..], b"\0\0\0\x02zz\x01bV"].concat();
            check(
                &table,
                &[("a", Value::Other(kind)), ("b", Value::Void)],
                true,
            );
        }
        check(b"\x01aV\x01b?", &[("a", Value::Void)], false);
        check(b"\x01aS\xff\xff\xff\xffx", &[], false);
    }

    #[test]
    fn a_table_cut_anywhere_gives_its_whole_entries() {
        let mut table = Vec::new();
        push_text(&mut table, b"first", b"value");
        let first = table.len();
        table.extend_from_slice(b"\x01aF\0\0\0\x02zz");
        for cut in 0..table.len() {
            let whole = usize::from(cut >= first);
            assert_eq!(entries(&table[..cut]).count(), whole, "cut at {cut}");
            assert_eq!(is_well_formed(&table[..cut]), cut == 0 || cut == first);
        }
    }
}
