//! `ringmq bench`: measures a broker from outside, over its sockets.
//!
//! One thread generates the load, so that figures of one run compare. Latency counts from the
//! time a message was due, not from the time it left: a server that stalls cannot hide behind a
//! generator that waits for it. Every message carries a number, and what is lost or delivered
//! twice is reported.

mod connection;
mod control;
mod driver;
#[cfg(test)]
mod fakes;
mod floor;
mod forwarder;
mod idle;
mod machine;
mod plan;
mod report;
mod seen;
mod tally;
#[cfg(test)]
mod tests;
mod wire;

use std::io::{IsTerminal, Write};
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::error::CliError;

use control::Server;
use driver::{Driver, Outcome, Part};
use plan::{Mode, Plan};
use report::Report;
use seen::Seen;
use tally::Counts;

/// Runs what the arguments ask for and prints the result.
pub fn run(parser: lexopt::Parser) -> Result<(), CliError> {
    let plan = plan::parse(parser)?;
    let (text, faults) = match plan.mode {
        Mode::Floor => {
            let here = Path::new(".");
            (
                floor::run(&plan, plan.data.as_deref().unwrap_or(here))?,
                Vec::new(),
            )
        }
        Mode::Idle => (idle::run(&plan)?, Vec::new()),
        Mode::Forwarder => (forwarder::run(&plan)?, Vec::new()),
        _ => measure(&plan)?,
    };
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            return Err(CliError::failed(format!("cannot write to stdout: {error}")));
        }
        _ => {}
    }
    match faults.is_empty() {
        true => Ok(()),
        false => Err(CliError::failed(format!(
            "the run has faults: {}",
            faults.join("; ")
        ))),
    }
}

/// One run: the result as text or JSON, and everything that was wrong.
fn measure(plan: &Plan) -> Result<(String, Vec<String>), CliError> {
    let server = Server::prepare(plan)?;
    let mut seen = Seen::default();
    let mut part = Part {
        publish: plan.mode != Mode::Pull,
        consume: plan.mode != Mode::Publish,
        measured: true,
        backlog: 0,
    };
    let mut filled = None;
    if plan.is_filled {
        part.backlog = plan.count.unwrap_or(0);
    } else if plan.mode == Mode::Pull {
        let fill = Part {
            publish: true,
            consume: false,
            measured: false,
            backlog: 0,
        };
        let outcome = run_part(plan, fill, &server, &mut seen, "filling")?;
        part.backlog = outcome.total.confirmed;
        filled = Some(outcome);
    }
    let outcome = match filled {
        Some(outcome) if outcome.refused.is_some() || outcome.stalled => outcome,
        filled => {
            let mut outcome = run_part(plan, part, &server, &mut seen, plan.mode.word())?;
            if let Some(filled) = filled {
                outcome.level = filled.level;
            }
            outcome
        }
    };
    let published = if part.publish {
        outcome.total.confirmed
    } else {
        0
    };
    let expected = (part.backlog + published) * plan.copies();
    let left = if part.consume { 0 } else { expected };
    let report = Report {
        plan,
        server: &server,
        outcome: &outcome,
        seen: &seen,
        expected,
        left,
        // A server that has stopped answering is not asked.
        held: match outcome.stalled {
            true => None,
            false => server.held(left)?,
        },
    };
    let text = if plan.json {
        report.json()
    } else {
        report.text()
    };
    let faults = report.faults();
    if !outcome.stalled {
        server.clean_up()?;
    }
    Ok((text, faults))
}

fn run_part(
    plan: &Plan,
    part: Part,
    server: &Server,
    seen: &mut Seen,
    name: &'static str,
) -> Result<Outcome, CliError> {
    let driver = Driver::connect(plan, part, server, seen)?;
    let bar = progress_bar(plan, part, name);
    let outcome = driver.run(&mut |counts, elapsed_ns| {
        if let Some(bar) = &bar {
            show(bar, plan, part, counts, elapsed_ns);
        }
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    outcome
}

/// A bar on stderr, when somebody looks.
fn progress_bar(plan: &Plan, part: Part, name: &'static str) -> Option<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let length = match (plan.count, plan.duration_us) {
        (Some(count), _) => count,
        (None, duration_us) => (duration_us.unwrap_or(0) + plan.warmup_us) / 1000,
    };
    let style = ProgressStyle::with_template("{prefix} [{bar:40}] {percent:>3} %  {msg}");
    let bar = ProgressBar::new(length.max(part.backlog));
    bar.set_style(
        style
            .expect("the template is a constant")
            .progress_chars("=> "),
    );
    bar.set_prefix(name);
    Some(bar)
}

fn show(bar: &ProgressBar, plan: &Plan, part: Part, counts: &Counts, elapsed_ns: u64) {
    let done = if part.consume {
        counts.delivered
    } else {
        counts.confirmed
    };
    bar.set_position(if plan.count.is_some() {
        done
    } else {
        elapsed_ns / 1_000_000
    });
    let rate = done as f64 / (elapsed_ns.max(1) as f64 / 1e9);
    bar.set_message(format!(
        "{:.2} M messages, {:.0}/s",
        done as f64 / 1e6,
        rate
    ));
}
