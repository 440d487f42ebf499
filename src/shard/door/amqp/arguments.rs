//! Arguments of queues and exchanges: which are known, what they set, and whether two declarations say the
//! same.

use super::{Fault, channel_fault, connection_fault, shown};
use crate::broker::exchanges::{Declared, FLAG_AUTO_DELETE, FLAG_DURABLE, FLAG_EXCLUSIVE};
use crate::broker::headers::{self, Value};
use crate::broker::id::Level;
use crate::broker::settings::{DeadOn, Settings, WhenFull};
use crate::protocol::amqp::code;

/// Numbers that are not negative, each with the least it can be.
const NUMBERS: [(&str, u64, u64); 6] = [
    ("x-message-ttl", 0, u64::MAX),
    ("x-expires", 1, u64::MAX),
    ("x-max-length", 0, u64::MAX),
    ("x-max-length-bytes", 0, u64::MAX),
    ("x-max-priority", 0, 255),
    ("x-delivery-limit", 0, u32::MAX as u64 - 1),
];
/// Texts.
const TEXTS: [&str; 6] = [
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-dead-letter-strategy",
    "x-overflow",
    "x-queue-type",
    "x-queue-mode",
];
/// What does not fit goes to the dead-letter exchange.
const REJECT_TO_DEAD: &[u8] = b"reject-publish-dlx";
const SINGLE: &str = "x-single-active-consumer";
/// Those that would change what a queue does and are not offered.
const REFUSED: [&str; 4] = [
    "x-max-age",
    "x-stream-max-segment-size-bytes",
    "x-stream-filter-size-bytes",
    "x-message-deduplication",
];

fn find<'a>(arguments: &'a [u8], name: &str) -> Option<Value<'a>> {
    headers::find(arguments, name.as_bytes())
}

fn invalid(name: &str, what: &str) -> Fault {
    let text = format!("invalid argument {name}: {what}");
    channel_fault(code::PRECONDITION_FAILED, text)
}

fn not_offered(name: &str) -> Fault {
    connection_fault(code::NOT_IMPLEMENTED, format!("{name} is not offered"))
}

/// Refuses arguments of a queue that make no sense or are not offered; others that nobody knows are kept
/// and mean nothing.
pub(super) fn check_queue(flags: u8, arguments: &[u8]) -> Result<(), Fault> {
    for (name, least, most) in NUMBERS {
        if let Some(value) = find(arguments, name) {
            match value.as_unsigned() {
                Some(number) if (least..=most).contains(&number) => {}
                _ => return Err(invalid(name, "it is no number that it can be")),
            }
        }
    }
    for name in TEXTS {
        match find(arguments, name) {
            None | Some(Value::Text(_)) => {}
            Some(_) => return Err(invalid(name, "it is no text")),
        }
    }
    match find(arguments, SINGLE) {
        None | Some(Value::Bool(_)) => {}
        Some(_) => return Err(invalid(SINGLE, "it is neither true nor false")),
    }
    if let Some(name) = REFUSED.iter().find(|name| find(arguments, name).is_some()) {
        return Err(not_offered(name));
    }
    let has_route = find(arguments, "x-dead-letter-exchange").is_some();
    if find(arguments, "x-dead-letter-routing-key").is_some() && !has_route {
        return Err(invalid(
            "x-dead-letter-routing-key",
            "there is no x-dead-letter-exchange",
        ));
    }
    match text(arguments, "x-overflow") {
        None | Some(b"drop-head" | b"reject-publish" | REJECT_TO_DEAD) => {}
        Some(_) => {
            let what = "it is drop-head, reject-publish or reject-publish-dlx";
            return Err(invalid("x-overflow", what));
        }
    }
    match text(arguments, "x-queue-type") {
        None | Some(b"classic") => Ok(()),
        Some(b"quorum") => {
            let fits = flags & (FLAG_DURABLE | FLAG_EXCLUSIVE | FLAG_AUTO_DELETE) == FLAG_DURABLE;
            match fits {
                true => Ok(()),
                false => Err(invalid(
                    "x-queue-type",
                    "a quorum queue is durable, and neither exclusive nor auto-delete",
                )),
            }
        }
        Some(b"stream") => Err(not_offered("x-queue-type=stream")),
        Some(_) => Err(invalid("x-queue-type", "it is classic or quorum")),
    }
}

fn text<'a>(arguments: &'a [u8], name: &str) -> Option<&'a [u8]> {
    match find(arguments, name) {
        Some(Value::Text(text)) => Some(text),
        _ => None,
    }
}

/// Does what a full queue refuses go to its dead-letter exchange?
pub(super) fn buries_refused(declared: &Declared) -> bool {
    declared.dead.is_some() && text(&declared.arguments, "x-overflow") == Some(REJECT_TO_DEAD)
}

/// The settings of a queue that is declared so. `has_log`: the broker stores at all.
pub(super) fn settings(defaults: &Settings, declared: &Declared, has_log: bool) -> Settings {
    let arguments = &declared.arguments;
    let number = |name: &str| find(arguments, name).and_then(Value::as_unsigned);
    let has_route = declared.dead.is_some();
    let mut settings = Settings {
        maxdeliver: number("x-delivery-limit").map_or(0, |limit| limit as u32 + 1),
        // Dead letters go by the route or nowhere.
        dead: Some(Box::default()),
        deadon: DeadOn {
            tries: true,
            ttl: has_route,
            full: has_route,
        },
        pri: 0,
        ..defaults.clone()
    };
    settings.durable = match (has_log, declared.is_transient(), defaults.durable) {
        (false, _, _) | (_, true, _) => Level::None,
        (true, false, Level::None) => Level::Disk,
        (true, false, level) => level,
    };
    if let Some(ttl_ms) = number("x-message-ttl") {
        settings.ttl_us = Some(ttl_ms.saturating_mul(1000));
    }
    let (length, bytes) = (number("x-max-length"), number("x-max-length-bytes"));
    let overflow = text(arguments, "x-overflow");
    settings.maxlen = length.or(settings.maxlen);
    settings.maxbytes = bytes.or(settings.maxbytes);
    if length.is_some() || bytes.is_some() || overflow.is_some() {
        settings.full = match overflow {
            Some(b"reject-publish" | REJECT_TO_DEAD) => WhenFull::Reject,
            _ => WhenFull::DropOld,
        };
    }
    if let Some(Value::Bool(single)) = find(arguments, SINGLE) {
        settings.single = single;
    }
    settings
}

/// What a declaration says otherwise than the one that made the queue: the name, and both values.
pub(super) fn difference(
    known: &Declared,
    flags: u8,
    arguments: &[u8],
) -> Option<(&'static str, String, String)> {
    let bits = [
        ("durable", FLAG_DURABLE),
        ("exclusive", FLAG_EXCLUSIVE),
        ("auto_delete", FLAG_AUTO_DELETE),
    ];
    for (name, flag) in bits {
        let (said, is) = (flags & flag != 0, known.is(flag));
        if said != is {
            return Some((name, said.to_string(), is.to_string()));
        }
    }
    let numbers = NUMBERS.iter().map(|(name, ..)| *name);
    let known_names = numbers.chain(TEXTS).chain([SINGLE]);
    for name in known_names {
        let (said, is) = (print(arguments, name), print(&known.arguments, name));
        if said != is {
            return Some((name, said, is));
        }
    }
    None
}

/// The value of an argument, as it is compared and shown. What is so where nothing is said is nothing.
fn print(arguments: &[u8], name: &str) -> String {
    match find(arguments, name) {
        None | Some(Value::Bool(false)) => "none".to_owned(),
        Some(Value::Text(b"classic" | b"default" | b"drop-head")) => "none".to_owned(),
        Some(Value::Text(text)) => format!("'{}'", shown(text)),
        Some(value) => match value.as_unsigned() {
            Some(number) => number.to_string(),
            None => format!("{value:?}"),
        },
    }
}

/// What an argument of an exchange says of its alternate.
pub(super) fn alternate(arguments: &[u8]) -> Result<Option<&[u8]>, Fault> {
    match find(arguments, "alternate-exchange") {
        None => Ok(None),
        Some(Value::Text(name)) => Ok(Some(name)),
        Some(_) => Err(invalid("alternate-exchange", "it is no text")),
    }
}

/// Refuses a binding of a headers exchange that asks for what there is not.
pub(super) fn check_match(arguments: &[u8]) -> Result<(), Fault> {
    match find(arguments, "x-match") {
        None | Some(Value::Text(b"all" | b"any" | b"all-with-x" | b"any-with-x")) => Ok(()),
        Some(_) => Err(invalid(
            "x-match",
            "it is all, any, all-with-x or any-with-x",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::amqp::table::{put_bool, put_number, put_text};

    fn texts(pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut table = Vec::new();
        for (name, value) in pairs {
            put_text(&mut table, name.as_bytes(), value.as_bytes());
        }
        table
    }

    fn numbers(pairs: &[(&str, u64)]) -> Vec<u8> {
        let mut table = Vec::new();
        for (name, value) in pairs {
            put_number(&mut table, name.as_bytes(), *value);
        }
        table
    }

    fn code_of(arguments: &[u8]) -> u16 {
        match check_queue(FLAG_DURABLE, arguments) {
            Ok(()) => 0,
            Err(Fault::Channel(code, _) | Fault::Connection(code, _)) => code,
            Err(Fault::Again) => panic!("nothing is waited for"),
        }
    }

    #[test]
    fn what_makes_no_sense_is_406_and_what_is_not_offered_540() {
        assert_eq!(code_of(b""), 0);
        assert_eq!(
            code_of(&numbers(&[("x-message-ttl", 0), ("x-max-length", 5)])),
            0
        );
        assert_eq!(code_of(&numbers(&[("x-expires", 0)])), 406);
        assert_eq!(code_of(&numbers(&[("x-max-priority", 256)])), 406);
        assert_eq!(code_of(b"\x0dx-message-ttlI\xff\xff\xff\xff"), 406);
        assert_eq!(code_of(&texts(&[("x-max-length", "5")])), 406);
        assert_eq!(code_of(&texts(&[("x-dead-letter-routing-key", "k")])), 406);
        assert_eq!(code_of(&texts(&[("x-overflow", "burn")])), 406);
        assert_eq!(code_of(&texts(&[("x-overflow", "reject-publish-dlx")])), 0);
        assert_eq!(code_of(&texts(&[("x-queue-type", "stream")])), 540);
        assert_eq!(code_of(&texts(&[("x-queue-type", "quorum")])), 0);
        assert_eq!(code_of(&texts(&[("x-max-age", "1D")])), 540);
        assert_eq!(code_of(&texts(&[("x-nobody-knows", "this")])), 0);
    }

    #[test]
    fn arguments_become_settings() {
        let defaults = Settings::default();
        let make =
            |flags, arguments: &[u8]| settings(&defaults, &Declared::new(flags, arguments), true);
        let plain = make(FLAG_DURABLE, b"");
        assert_eq!((plain.durable, plain.maxdeliver), (Level::Disk, 0));
        assert_eq!(plain.dead.as_deref(), Some(&b""[..]));
        assert_eq!(make(0, b"").durable, Level::None);
        assert_eq!(
            make(FLAG_DURABLE | FLAG_EXCLUSIVE, b"").durable,
            Level::None
        );
        let mut arguments = numbers(&[
            ("x-message-ttl", 1500),
            ("x-max-length", 10),
            ("x-max-length-bytes", 1000),
            ("x-delivery-limit", 3),
        ]);
        arguments.extend(texts(&[("x-dead-letter-exchange", "")]));
        put_bool(&mut arguments, SINGLE.as_bytes(), true);
        let full = make(FLAG_DURABLE, &arguments);
        assert_eq!((full.ttl_us, full.maxlen), (Some(1_500_000), Some(10)));
        assert_eq!((full.maxbytes, full.maxdeliver), (Some(1000), 4));
        assert!(full.single && full.deadon.ttl && full.deadon.full);
        assert_eq!(full.full, WhenFull::DropOld);
        let reject = texts(&[("x-overflow", "reject-publish")]);
        assert_eq!(make(0, &reject).full, WhenFull::Reject);
        let bury = texts(&[("x-overflow", "reject-publish-dlx")]);
        assert_eq!(make(0, &bury).full, WhenFull::Reject);
        assert!(!buries_refused(&Declared::new(0, &bury)));
        let bury = texts(&[
            ("x-overflow", "reject-publish-dlx"),
            ("x-dead-letter-exchange", ""),
        ]);
        assert!(buries_refused(&Declared::new(0, &bury)));
    }

    #[test]
    fn declarations_are_the_same_if_they_mean_the_same() {
        let known = Declared::new(FLAG_DURABLE, &numbers(&[("x-max-length", 7)]));
        let differs = |flags, arguments: &[u8]| difference(&known, flags, arguments).map(|it| it.0);
        assert_eq!(
            differs(FLAG_DURABLE, &numbers(&[("x-max-length", 7)])),
            None
        );
        assert_eq!(differs(FLAG_DURABLE, b"\x0cx-max-lengthb\x07"), None);
        let more = [
            numbers(&[("x-max-length", 7)]),
            texts(&[("x-queue-type", "classic")]),
        ];
        assert_eq!(differs(FLAG_DURABLE, &more.concat()), None);
        assert_eq!(differs(FLAG_DURABLE, b""), Some("x-max-length"));
        assert_eq!(
            differs(0, &numbers(&[("x-max-length", 7)])),
            Some("durable")
        );
        let other = numbers(&[("x-max-length", 7), ("x-expires", 9)]);
        assert_eq!(differs(FLAG_DURABLE, &other), Some("x-expires"));
    }
}
