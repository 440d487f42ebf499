//! What a binding of a headers exchange wants of a message's headers.

use crate::broker::headers::{Value, entries};

/// What is wanted: all of it, or any.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Match {
    is_any: bool,
    /// Names with `x-` in front count too.
    with_x: bool,
    table: Box<[u8]>,
}

impl Match {
    /// Reads a binding's arguments: `x-match` is `all`, `any`, `all-with-x` or `any-with-x`.
    pub(super) fn new(arguments: &[u8]) -> Match {
        let word = match crate::broker::headers::find(arguments, b"x-match") {
            Some(Value::Text(word)) => word,
            _ => b"all",
        };
        Match {
            is_any: word.starts_with(b"any"),
            with_x: word.ends_with(b"-with-x"),
            table: arguments.into(),
        }
    }

    /// The headers are as wanted.
    pub(super) fn matches(&self, headers: &[u8]) -> bool {
        let wanted = entries(&self.table)
            .filter(|(name, _)| *name != b"x-match" && (self.with_x || !name.starts_with(b"x-")));
        let mut is_met = wanted.map(|(name, want)| {
            entries(headers).any(|(other, got)| other == name && is_same(&want, &got))
        });
        match self.is_any {
            true => is_met.any(|met| met),
            false => is_met.all(|met| met),
        }
    }
}

/// The value is the one wanted, numbers by what they mean; a wanted void is met by any.
fn is_same(want: &Value<'_>, got: &Value<'_>) -> bool {
    let number = |value: &Value<'_>| match value {
        Value::Signed(number) => Some(i128::from(*number)),
        Value::Unsigned(number) => Some(i128::from(*number)),
        _ => None,
    };
    match (want, got) {
        (Value::Void, _) => true,
        // Values without a short form are compared by nobody who publishes them.
        (Value::Other(_), _) => false,
        _ => match (number(want), number(got)) {
            (Some(want), Some(got)) => want == got,
            _ => want == got,
        },
    }
}
