//! `ringmq pub`: publishes arguments, or the lines of stdin, and waits for the receipts.

use std::io::{self, BufRead, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};

use crate::client::{Connection, Error, Reply, typed_name, typed_value};

use super::args::{self, Args, Word};
use super::error::CliError;

/// Most messages on the way when stdin is published. Their receipts fit in the sockets' buffers,
/// so that neither side can wait for the other.
const WINDOW: u64 = 4096;
/// Output collected before it is sent, bytes.
const FLUSH_BYTES: usize = 64 << 10;

/// What the arguments asked for.
struct Options {
    addr: String,
    /// `PUB q k=v…` without the body.
    head: String,
    bodies: Vec<String>,
    stdin: bool,
    quiet: bool,
}

/// Publishes and tells the receipts.
pub fn run(parser: lexopt::Parser) -> Result<(), CliError> {
    let options = parse(parser)?;
    let mut client = Connection::open(&options.addr)?;
    match options.stdin {
        true => publish_lines(&mut client, &options),
        false => publish_arguments(&mut client, &options),
    }
}

fn parse(parser: lexopt::Parser) -> Result<Options, CliError> {
    let mut args = Args::new("pub", parser);
    let mut addr = args::addr_from_environment();
    let mut words = Vec::new();
    let (mut fields, mut quiet, mut once) = (String::new(), false, false);
    while let Some(word) = args.next()? {
        let name = match &word {
            Word::Option(name) => name.as_str(),
            Word::Value(value) => {
                words.push(value.clone());
                continue;
            }
        };
        match name {
            "-a" | "--addr" => addr = args.value()?,
            "-q" | "--quiet" => quiet = true,
            "--delay" => fields += &format!(" delay={}us", args.duration_us()?),
            "--ttl" => fields += &format!(" ttl={}us", args.duration_us()?),
            "--pri" => fields += &format!(" pri={}", args.count(0)?),
            "--key" => fields += &format!(" key={}", typed_value(&args.value()?)),
            "--once" => {
                once = true;
                fields += &format!(" once={}", typed_value(&args.value()?));
            }
            "-H" | "--header" => fields += &header(&mut args)?,
            _ => return Err(args.unknown(&word)),
        }
    }
    if words.is_empty() {
        return Err(args.usage("name the queue, as in ringmq pub jobs 'Hello, world'"));
    }
    let queue = words.remove(0);
    let stdin = words.is_empty() || words == ["-"];
    if once && (stdin || words.len() > 1) {
        return Err(args.usage("--once names one message, so it goes with exactly one BODY"));
    }
    Ok(Options {
        addr,
        head: format!("PUB {}{fields}", typed_name(&queue)),
        bodies: words,
        stdin,
        quiet,
    })
}

/// The value of `-H` as an option of `PUB`.
fn header(args: &mut Args) -> Result<String, CliError> {
    let text = args.value()?;
    let allowed = |octet: u8| octet.is_ascii_alphanumeric() || b".-_".contains(&octet);
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && name.bytes().all(allowed) => {
            Ok(format!(" h.{name}={}", typed_value(value)))
        }
        _ => Err(args.bad(
            &text,
            "NAME=VALUE with letters, digits, '.', '-' and '_' in the name",
        )),
    }
}

/// Appends one counted publish.
fn append(output: &mut Vec<u8>, head: &str, body: &[u8]) {
    output.extend_from_slice(head.as_bytes());
    output.extend_from_slice(format!(" ${}\n", body.len()).as_bytes());
    output.extend_from_slice(body);
    output.push(b'\n');
}

/// One message for each argument, one receipt line for each.
fn publish_arguments(client: &mut Connection, options: &Options) -> Result<(), CliError> {
    for body in &options.bodies {
        append(client.output(), &options.head, body.as_bytes());
        let receipt = client.expect_ok()?;
        if !options.quiet {
            writeln!(io::stdout(), "OK {receipt}").map_err(stdout_failed)?;
        }
    }
    Ok(())
}

/// One message for each line of stdin, many on the way at once.
fn publish_lines(client: &mut Connection, options: &Options) -> Result<(), CliError> {
    let mut input = io::BufReader::with_capacity(FLUSH_BYTES, io::stdin());
    let (mut sent, mut confirmed) = (0_u64, 0_u64);
    let mut level = String::new();
    let mut line = Vec::new();
    let bar = progress();
    let outcome = loop {
        // A pipe that pauses must not keep back what came before the pause.
        if input.buffer().is_empty() {
            client.flush()?;
        }
        line.clear();
        match input.read_until(b'\n', &mut line) {
            Ok(0) => break receipts(client, &mut confirmed, sent, &mut level),
            Ok(_) => {}
            Err(error) => break Err(CliError::failed(format!("cannot read stdin: {error}"))),
        }
        let body = line.strip_suffix(b"\n").unwrap_or(&line);
        let body = body.strip_suffix(b"\r").unwrap_or(body);
        append(client.output(), &options.head, body);
        sent += 1;
        if client.output().len() >= FLUSH_BYTES {
            client.flush()?;
        }
        if sent - confirmed >= WINDOW {
            let wanted = sent - WINDOW / 2;
            if let Err(error) = receipts(client, &mut confirmed, wanted, &mut level) {
                break Err(error);
            }
            if let Some(bar) = &bar {
                bar.set_position(confirmed);
            }
        }
    };
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    match outcome {
        Err(error) => Err(CliError::failed(format!(
            "{confirmed} messages were confirmed, then: {}",
            error.to_string().trim_start_matches("ringmq: ")
        ))),
        Ok(()) if options.quiet => Ok(()),
        Ok(()) => writeln!(io::stdout(), "{confirmed} messages {level}").map_err(stdout_failed),
    }
}

/// A count of confirmed messages on stderr, when somebody looks and nobody types the messages.
fn progress() -> Option<ProgressBar> {
    if !io::stderr().is_terminal() || io::stdin().is_terminal() {
        return None;
    }
    let style = ProgressStyle::with_template("{spinner} {human_pos} messages, {per_sec}");
    let bar = ProgressBar::new_spinner();
    bar.set_style(style.expect("the template is a constant"));
    Some(bar)
}

/// Reads receipts until so many are confirmed.
fn receipts(
    client: &mut Connection,
    confirmed: &mut u64,
    wanted: u64,
    level: &mut String,
) -> Result<(), CliError> {
    while *confirmed < wanted {
        match client.receive()? {
            Reply::Ok(rest) => {
                *confirmed += 1;
                if *confirmed == wanted {
                    *level = rest.split(' ').nth(1).unwrap_or_default().to_owned();
                }
            }
            other => return Err(Error::unexpected(other).into()),
        }
    }
    Ok(())
}

/// The error of a stdout that takes nothing.
fn stdout_failed(error: io::Error) -> CliError {
    CliError::failed(format!("cannot write to stdout: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(words: &[&str]) -> Result<String, String> {
        parse(lexopt::Parser::from_args(words))
            .map(|options| options.head)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn options_become_the_command() {
        assert_eq!(head(&["jobs", "x"]).expect("good"), "PUB jobs");
        assert_eq!(
            head(&[
                "a b", "--delay", "5s", "--pri=9", "--key", "k 1", "-H", "X_a=b c", "body"
            ])
            .expect("good"),
            "PUB a%20b delay=5000000us pri=9 key=k%201 h.X_a=b%20c"
        );
        assert!(head(&[]).expect_err("no queue").contains("name the queue"));
        assert!(
            head(&["jobs", "-H", "a b=c", "x"])
                .expect_err("a space")
                .contains("NAME=VALUE")
        );
        assert!(
            head(&["jobs", "--once", "1"])
                .expect_err("stdin")
                .contains("exactly one")
        );
    }

    #[test]
    fn bodies_are_counted() {
        let mut output = Vec::new();
        append(&mut output, "PUB jobs", b"a\nb");
        assert_eq!(output, b"PUB jobs $3\na\nb\n");
    }
}
