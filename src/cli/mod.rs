//! The command line: arguments, subcommands, the logger, and the clients that ship in the binary.
//!
//! Each subcommand parses its own arguments, does its work through the front door of another
//! room or over a socket, and ends with an exit code. Nothing here reaches into the broker.
#![allow(
    clippy::disallowed_methods,
    reason = "the command line's clients measure and wait"
)]

mod args;
mod bench;
mod consume;
mod data;
mod error;
mod help;
mod json;
mod logger;
mod memory;
mod publish;
mod reshard;
pub mod serve;
mod serve_args;
mod stats;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use error::CliError;

/// Exit code of a command that could not do its work.
pub const EXIT_FAILED: u8 = 1;
/// Exit code of arguments that cannot be used.
pub const EXIT_USAGE: u8 = 2;
/// Exit code of a data directory that is refused.
pub const EXIT_REFUSED: u8 = 3;

/// The whole program: reads the process's arguments, runs the subcommand, returns its exit code.
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    match run(words) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Runs the subcommand that the first word names; options in its place mean `serve`.
fn run(mut words: Vec<OsString>) -> Result<ExitCode, CliError> {
    let first = words
        .first()
        .map(|word| word.to_string_lossy().into_owned());
    let command = match first.as_deref() {
        None => "serve".to_owned(),
        Some("-h" | "--help") => return show(help::MAIN),
        Some("-V" | "--version" | "version") => return show(help::VERSION),
        Some(word) if word.starts_with('-') => "serve".to_owned(),
        Some(_) => words.remove(0).to_string_lossy().into_owned(),
    };
    if command == "help" {
        let topic = words
            .first()
            .map(|word| word.to_string_lossy().into_owned());
        return show(help::page(topic.as_deref().unwrap_or("ringmq"))?);
    }
    let page = help::page(&command)?;
    if help::is_asked_for(&words) {
        return show(page);
    }
    let parser = lexopt::Parser::from_args(words);
    let done = match command.as_str() {
        "serve" => return serve_args::run(parser),
        "pub" => publish::run(parser),
        "pull" => consume::pull(parser),
        "sub" => consume::subscribe(parser),
        "ack" => consume::ack(parser),
        "stats" => stats::run(parser),
        "bench" => bench::run(parser),
        "reshard" => reshard::run(parser),
        "check" => data::check(parser),
        "dump" => data::dump(parser),
        _ => Err(CliError::usage(
            "ringmq",
            "that command has a page but no code",
        )),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// Prints a page; a reader that has gone away (`| head`) is not an error.
fn show(page: &str) -> Result<ExitCode, CliError> {
    match writeln!(std::io::stdout(), "{page}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CliError::failed(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}
