//! Field tables: whether they are whole, and those that the broker itself writes. Reading their values is
//! [`crate::broker::headers`]' business.

use super::wire::{put_long, put_longlong, put_longstr, put_shortstr};

/// Tables and arrays may stand in each other so deep.
const DEPTH_MAX: usize = 64;

/// Every entry of the table, those of inner tables and arrays too, is of a known type and whole.
pub fn is_valid(table: &[u8]) -> bool {
    walk_table(table, 0).is_some()
}

fn walk_table(mut rest: &[u8], depth: usize) -> Option<()> {
    while let [length, tail @ ..] = rest {
        rest = tail.get(usize::from(*length)..)?;
        rest = skip_value(rest, depth)?;
    }
    Some(())
}

fn walk_array(mut rest: &[u8], depth: usize) -> Option<()> {
    while !rest.is_empty() {
        rest = skip_value(rest, depth)?;
    }
    Some(())
}

/// Steps over a type octet and its value.
fn skip_value(rest: &[u8], depth: usize) -> Option<&[u8]> {
    let (kind, rest) = rest.split_first()?;
    let fixed = match kind {
        b'V' => 0,
        b't' | b'b' | b'B' => 1,
        b's' | b'u' => 2,
        b'I' | b'i' | b'f' => 4,
        b'D' => 5,
        b'l' | b'L' | b'T' | b'd' => 8,
        b'S' | b'x' | b'A' | b'F' => {
            let (length, rest) = rest.split_first_chunk::<4>()?;
            let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
            let (inner, rest) = rest.split_at_checked(length)?;
            match kind {
                b'A' | b'F' if depth == DEPTH_MAX => return None,
                b'A' => walk_array(inner, depth + 1)?,
                b'F' => walk_table(inner, depth + 1)?,
                _ => {}
            }
            return Some(rest);
        }
        _ => return None,
    };
    rest.get(fixed..)
}

/// The values of an array, each with its type octet in front. Ends at what is malformed.
pub fn array_values(array: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = array;
    std::iter::from_fn(move || {
        let after = skip_value(rest, 0)?;
        let value = &rest[..rest.len() - after.len()];
        rest = after;
        Some(value)
    })
}

/// The names of a table, each with its value, the type octet in front. Ends at what is malformed.
pub fn entries(table: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = table;
    std::iter::from_fn(move || {
        let (length, tail) = rest.split_first()?;
        let (name, tail) = tail.split_at_checked(usize::from(*length))?;
        let after = skip_value(tail, 0)?;
        let value = &tail[..tail.len() - after.len()];
        rest = after;
        Some((name, value))
    })
}

/// The value of the first entry of that name, its type octet in front.
pub fn find<'a>(table: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    entries(table)
        .find(|(other, _)| *other == name)
        .map(|(_, value)| value)
}

/// The octets of a value that is of a type whose length stands before it (`S`, `x`, `A`, `F`).
pub fn inner(value: &[u8], kind: u8) -> Option<&[u8]> {
    match value.split_first()? {
        (found, rest) if *found == kind => rest.get(4..),
        _ => None,
    }
}

/// Appends a text.
pub fn put_text(table: &mut Vec<u8>, name: &[u8], text: &[u8]) {
    put_shortstr(table, name);
    put_text_value(table, text);
}

/// Appends a text as an array has it: without a name.
pub fn put_text_value(array: &mut Vec<u8>, text: &[u8]) {
    array.push(b'S');
    put_longstr(array, text);
}

/// Appends yes or no.
pub fn put_bool(table: &mut Vec<u8>, name: &[u8], is: bool) {
    put_shortstr(table, name);
    table.extend_from_slice(&[b't', u8::from(is)]);
}

/// Appends a number of eight octets.
pub fn put_number(table: &mut Vec<u8>, name: &[u8], number: u64) {
    put_shortstr(table, name);
    table.push(b'l');
    put_longlong(table, number);
}

/// Appends a time, unix seconds.
pub fn put_time(table: &mut Vec<u8>, name: &[u8], unix_s: u64) {
    put_shortstr(table, name);
    table.push(b'T');
    put_longlong(table, unix_s);
}

/// Appends an inner table (`F`) or array (`A`).
pub fn put_inner(table: &mut Vec<u8>, name: &[u8], kind: u8, inner: &[u8]) {
    put_shortstr(table, name);
    put_inner_value(table, kind, inner);
}

/// Appends an inner table or array as an array has it: without a name.
pub fn put_inner_value(array: &mut Vec<u8>, kind: u8, inner: &[u8]) {
    array.push(kind);
    put_longstr(array, inner);
}

/// Appends a value as it is, type octet included.
pub fn put_value(table: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    put_shortstr(table, name);
    table.extend_from_slice(value);
}

/// A whole table with its length in front.
pub fn put(out: &mut Vec<u8>, table: &[u8]) {
    put_long(
        out,
        u32::try_from(table.len()).expect("tables are far smaller"),
    );
    out.extend_from_slice(table);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One entry of every type.
    fn every_type() -> Vec<u8> {
        let mut table = Vec::new();
        put_text(&mut table, b"text", b"caf\xc3\xa9");
        put_bool(&mut table, b"bool", true);
        put_number(&mut table, b"number", u64::MAX);
        put_time(&mut table, b"time", 7);
        for (kind, octets) in [
            (b'b', 1),
            (b'B', 1),
            (b's', 2),
            (b'u', 2),
            (b'I', 4),
            (b'i', 4),
            (b'f', 4),
            (b'D', 5),
            (b'L', 8),
            (b'd', 8),
            (b'V', 0),
        ] {
            put_value(
                &mut table,
                &[kind],
                &[&[kind], &vec![9; octets][..]].concat(),
            );
        }
        let mut inner = Vec::new();
        put_text(&mut inner, b"in", b"side");
        let mut array = Vec::new();
        put_text_value(&mut array, b"one");
        put_inner_value(&mut array, b'F', &inner);
        put_inner(&mut table, b"array", b'A', &array);
        put_inner(&mut table, b"table", b'F', &inner);
        put_inner(&mut table, b"octets", b'x', b"\0\xff");
        table
    }

    #[test]
    fn every_type_is_walked_over_and_every_cut_is_seen() {
        let table = every_type();
        assert!(is_valid(&table));
        let names: Vec<_> = entries(&table).map(|(name, _)| name).collect();
        assert_eq!(names.len(), 18);
        let ends: Vec<usize> = {
            let mut end = 0;
            entries(&table)
                .map(|(name, value)| {
                    end += 1 + name.len() + value.len();
                    end
                })
                .collect()
        };
        for cut in 0..table.len() {
            let whole = cut == 0 || ends.contains(&cut);
            assert_eq!(is_valid(&table[..cut]), whole, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_inside_is_looked_at_too() {
        let mut table = Vec::new();
        put_inner(&mut table, b"t", b'F', b"\x01aS\0\0\0\x09short");
        assert!(!is_valid(&table));
        let mut table = Vec::new();
        put_inner(&mut table, b"a", b'A', b"?");
        assert!(!is_valid(&table));
        assert!(!is_valid(b"\x01aZ"));
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |levels: usize| {
            let mut table = Vec::new();
            for _ in 0..levels {
                let mut outer = Vec::new();
                put_inner(&mut outer, b"t", b'F', &table);
                table = outer;
            }
            table
        };
        assert!(is_valid(&nested(DEPTH_MAX)));
        assert!(!is_valid(&nested(DEPTH_MAX + 1)));
        assert!(!is_valid(&nested(10_000)));
    }

    #[test]
    fn values_are_found_with_their_types() {
        let table = every_type();
        assert_eq!(find(&table, b"bool"), Some(&b"t\x01"[..]));
        assert_eq!(find(&table, b"none"), None);
        let array = find(&table, b"array").and_then(|value| inner(value, b'A'));
        let values: Vec<_> = array_values(array.expect("it is there")).collect();
        assert_eq!(values.len(), 2);
        assert_eq!(inner(values[0], b'S'), Some(&b"one"[..]));
        assert_eq!(inner(values[0], b'F'), None);
    }
}
