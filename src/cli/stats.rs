//! `ringmq stats`: what the broker, or one queue, is doing.

use std::io::{self, Write};

use crate::client::{Connection, typed_sources};

use super::args::{self, Args, Word};
use super::error::CliError;
use super::json::Object;

/// Asks and prints.
pub fn run(parser: lexopt::Parser) -> Result<(), CliError> {
    let mut args = Args::new("stats", parser);
    let mut addr = args::addr_from_environment();
    let (mut queue, mut json) = (None, false);
    while let Some(word) = args.next()? {
        match &word {
            Word::Value(value) if queue.is_none() => queue = Some(typed_sources(value)),
            Word::Option(name) if name == "--json" => json = true,
            Word::Option(name) if name == "-a" || name == "--addr" => addr = args.value()?,
            _ => return Err(args.unknown(&word)),
        }
    }
    let mut client = Connection::open(&addr)?;
    let command = match &queue {
        Some(queue) => format!("STATS q {queue}\n"),
        None => "STATS\n".to_owned(),
    };
    client.output().extend_from_slice(command.as_bytes());
    let data = client.expect_data()?;
    let text = String::from_utf8_lossy(&data);
    let text = match json {
        true => as_json(&text),
        false => text.trim_end().to_owned(),
    };
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(CliError::failed(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// `key=value` words as one object; whole numbers become numbers.
fn as_json(text: &str) -> String {
    let mut object = Object::default();
    for (key, value) in text
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
    {
        match args::count(value) {
            Some(number) => object.count(key, number),
            None => object.string(key, value),
        };
    }
    object.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_fields() {
        assert_eq!(
            as_json("ready=3 leased=0\nset.durable=disk\n"),
            r#"{"ready":3,"leased":0,"set.durable":"disk"}"#
        );
    }
}
