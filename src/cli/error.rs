//! How a subcommand ends when it does not end well.

use std::fmt;
use std::io;

use crate::client;

use super::{EXIT_FAILED, EXIT_REFUSED, EXIT_USAGE};

/// Why a subcommand did not do what it was asked. Displays as the whole text for stderr.
#[derive(Debug, PartialEq, Eq)]
pub enum CliError {
    /// The arguments cannot be used.
    Usage {
        /// The subcommand, whose help page is pointed at.
        command: &'static str,
        /// One sentence: what is wrong and what would be right.
        message: String,
    },
    /// The world refused: no broker, an `ERR`, a disk.
    Failed(String),
    /// A data directory that is refused.
    Refused(String),
}

impl CliError {
    /// Arguments that cannot be used.
    pub fn usage(command: &'static str, message: impl Into<String>) -> CliError {
        CliError::Usage {
            command,
            message: message.into(),
        }
    }

    /// Something outside the arguments went wrong.
    pub fn failed(message: impl Into<String>) -> CliError {
        CliError::Failed(message.into())
    }

    /// The exit code that scripts see.
    pub fn exit_code(&self) -> u8 {
        match self {
            CliError::Usage { .. } => EXIT_USAGE,
            CliError::Failed(_) => EXIT_FAILED,
            CliError::Refused(_) => EXIT_REFUSED,
        }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CliError::Usage { command, message } => {
                let page = match *command {
                    "ringmq" => "ringmq --help".to_owned(),
                    command => format!("ringmq {command} --help"),
                };
                write!(f, "ringmq: {message}\nTry '{page}'.")
            }
            CliError::Failed(message) | CliError::Refused(message) => {
                write!(f, "ringmq: {message}")
            }
        }
    }
}

impl std::error::Error for CliError {}

impl From<client::Error> for CliError {
    fn from(error: client::Error) -> CliError {
        match &error {
            client::Error::Connect { source, .. }
                if source.kind() == io::ErrorKind::ConnectionRefused =>
            {
                CliError::failed(format!(
                    "{error}: start one with 'ringmq serve', or name its address with --addr or \
                     RINGMQ_ADDR"
                ))
            }
            _ => CliError::failed(error.to_string()),
        }
    }
}
