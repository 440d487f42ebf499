//! Tells by a connection's first bytes which protocol its client speaks. Consumes nothing.

pub use crate::config::Door;

/// What an AMQP client sends first, as far as it must be seen.
const AMQP: &[u8] = b"AMQP\0";

/// The methods of HTTP, each with its space.
const METHODS: [&[u8]; 9] = [
    b"GET ",
    b"PUT ",
    b"POST ",
    b"HEAD ",
    b"PATCH ",
    b"TRACE ",
    b"DELETE ",
    b"OPTIONS ",
    b"CONNECT ",
];

/// Classifies the first bytes of a connection; `None` = more bytes are needed. At most 8 bytes
/// ever are.
pub fn detect(first: &[u8]) -> Option<Door> {
    match first.first()? {
        b'*' => return Some(Door::Resp),
        0x16 => return Some(Door::Tls),
        _ => {}
    }
    let mut undecided = false;
    for (door, opening) in METHODS
        .iter()
        .map(|method| (Door::Http, *method))
        .chain([(Door::Amqp, AMQP)])
    {
        if first.starts_with(opening) {
            return Some(door);
        }
        undecided |= opening.starts_with(first);
    }
    (!undecided).then_some(Door::Text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every shorter piece is undecided, and the decision stands whatever follows.
    fn check(opening: &[u8], want: Door) {
        for cut in 0..opening.len() {
            assert_eq!(detect(&opening[..cut]), None, "{opening:?} cut at {cut}");
        }
        assert_eq!(detect(opening), Some(want), "{opening:?}");
        for more in [b"x", b"\n", b"\0"] {
            let longer = [opening, more].concat();
            assert_eq!(detect(&longer), Some(want), "{longer:?}");
        }
    }

    #[test]
    fn each_door_is_recognised_by_its_shortest_opening() {
        check(b"*", Door::Resp);
        check(b"\x16", Door::Tls);
        check(b"AMQP\0", Door::Amqp);
        for method in METHODS {
            check(method, Door::Http);
        }
    }

    #[test]
    fn anything_else_is_the_line_protocol_as_soon_as_that_is_certain() {
        check(b"PUB", Door::Text);
        check(b"PUL", Door::Text);
        check(b"p", Door::Text);
        check(b"DEL ", Door::Text);
        check(b"HEL", Door::Text);
        check(b"GET\n", Door::Text);
        check(b"AMQP\x01", Door::Text);
        check(b"AMQQ", Door::Text);
        check(b"\n", Door::Text);
        check(b"@", Door::Text);
        check(b"\0", Door::Text);
        check(b"\xff", Door::Text);
    }
}
