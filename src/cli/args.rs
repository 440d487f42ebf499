//! Reading arguments: what every subcommand shares.
//!
//! A value that cannot be used is answered with what would have been right.

use lexopt::{Arg, Parser, ValueExt};

use crate::protocol::text::value;

use super::error::CliError;

/// The broker's address when nothing else is said.
pub const ADDR_DEFAULT: &str = "127.0.0.1:7766";

/// Arguments of one subcommand, with its name for error messages.
pub struct Args {
    command: &'static str,
    parser: Parser,
    /// The option read last, as typed, for messages about its value.
    option: String,
}

impl Args {
    /// The arguments after the subcommand's name.
    pub fn new(command: &'static str, parser: Parser) -> Args {
        Args {
            command,
            parser,
            option: String::new(),
        }
    }

    /// The next option or value. Options come back as typed, with their dashes.
    ///
    /// # Errors
    /// `CliError::Usage` when an argument is not UTF-8 or stands where none can.
    pub fn next(&mut self) -> Result<Option<Word>, CliError> {
        let command = self.command;
        let bad = |error: lexopt::Error| CliError::usage(command, error.to_string());
        Ok(match self.parser.next().map_err(bad)? {
            None => None,
            Some(Arg::Value(value)) => Some(Word::Value(value.string().map_err(bad)?)),
            Some(Arg::Short(letter)) => {
                self.option = format!("-{letter}");
                Some(Word::Option(self.option.clone()))
            }
            Some(Arg::Long(name)) => {
                self.option = format!("--{name}");
                Some(Word::Option(self.option.clone()))
            }
        })
    }

    /// The value of the option just read.
    ///
    /// # Errors
    /// `CliError::Usage` when there is none or it is not UTF-8.
    pub fn value(&mut self) -> Result<String, CliError> {
        let value = self.parser.value().and_then(|value| value.string());
        value.map_err(|error| CliError::usage(self.command, error.to_string()))
    }

    /// The value of the option just read, as a count of at least `least`.
    ///
    /// # Errors
    /// `CliError::Usage` when it is not one.
    pub fn count(&mut self, least: u64) -> Result<u64, CliError> {
        let text = self.value()?;
        match count(&text) {
            Some(count) if count >= least => Ok(count),
            _ => Err(self.bad(&text, &format!("a whole number of at least {least}"))),
        }
    }

    /// The value of the option just read, as a duration in microseconds.
    ///
    /// # Errors
    /// `CliError::Usage` when it is not one.
    pub fn duration_us(&mut self) -> Result<u64, CliError> {
        let text = self.value()?;
        duration_us(&text).ok_or_else(|| self.bad(&text, "a duration like 500ms, 5s or 2m"))
    }

    /// The value of the option just read, as a size in bytes.
    ///
    /// # Errors
    /// `CliError::Usage` when it is not one.
    pub fn size(&mut self) -> Result<u64, CliError> {
        let text = self.value()?;
        size(&text).ok_or_else(|| self.bad(&text, "a size like 64K, 512M or 4G"))
    }

    /// The error for a value that the option just read cannot take.
    pub fn bad(&self, value: &str, wanted: &str) -> CliError {
        self.usage(format!("{} takes {wanted}, not '{value}'", self.option))
    }

    /// The error for an argument that this subcommand does not have.
    pub fn unknown(&self, word: &Word) -> CliError {
        match word {
            Word::Option(option) => self.usage(format!("there is no option {option}")),
            Word::Value(value) => self.usage(format!("'{value}' is one argument too many")),
        }
    }

    /// An error about the arguments as a whole.
    pub fn usage(&self, message: impl Into<String>) -> CliError {
        CliError::usage(self.command, message)
    }
}

/// One argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// `-n` or `--name`, as typed.
    Option(String),
    /// Anything else.
    Value(String),
}

/// The broker's address: the environment's `RINGMQ_ADDR`, or the default.
pub fn addr_from_environment() -> String {
    std::env::var("RINGMQ_ADDR").unwrap_or_else(|_| ADDR_DEFAULT.to_owned())
}

/// Digits only, without a sign, within 64 bits.
pub fn count(text: &str) -> Option<u64> {
    value::decimal(text.as_bytes())
}

/// A duration as the protocol types it, `digits [us|ms|s|m|h|d]`, in microseconds; a bare number
/// is milliseconds.
pub fn duration_us(text: &str) -> Option<u64> {
    value::duration_us(text.as_bytes())
}

/// A size as the protocol types it, `digits [K|M|G]`, in bytes, powers of 1024.
pub fn size(text: &str) -> Option<u64> {
    value::size("", text.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_typed_as_in_the_protocol() {
        assert_eq!(duration_us("5"), Some(5_000));
        assert_eq!(duration_us("2m"), Some(120_000_000));
        assert_eq!(duration_us("1.5s"), None);
        assert_eq!(size("64K"), Some(64 << 10));
        assert_eq!(size("4T"), None);
        assert_eq!(count("17"), Some(17));
        assert_eq!(count("+17"), None);
    }

    #[test]
    fn options_and_values() {
        let parser = lexopt::Parser::from_args(["jobs", "-n", "10", "--wait=5s", "--", "-x"]);
        let mut args = Args::new("pull", parser);
        assert_eq!(args.next(), Ok(Some(Word::Value("jobs".into()))));
        assert_eq!(args.next(), Ok(Some(Word::Option("-n".into()))));
        assert_eq!(args.count(1), Ok(10));
        assert_eq!(args.next(), Ok(Some(Word::Option("--wait".into()))));
        assert_eq!(args.duration_us(), Ok(5_000_000));
        assert_eq!(args.next(), Ok(Some(Word::Value("-x".into()))));
        assert_eq!(args.next(), Ok(None));
    }

    #[test]
    fn a_bad_value_says_what_would_be_right() {
        let mut args = Args::new("pull", lexopt::Parser::from_args(["-n", "1e3"]));
        args.next().expect("an option");
        assert_eq!(
            args.count(1).expect_err("not a count").to_string(),
            "ringmq: -n takes a whole number of at least 1, not '1e3'\nTry 'ringmq pull --help'."
        );
    }
}
