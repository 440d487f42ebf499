//! `ringmq bench idle`: what connections cost a server while they do nothing.

use std::time::Duration;

use crate::cli::error::CliError;
use crate::cli::json::Object;

use super::connection::Role;
use super::control::Server;
use super::plan::Plan;
use super::{driver, machine};

/// How long a server may take to come to rest after the connections were made.
const REST: Duration = Duration::from_millis(500);

/// Opens the plan's consumers, each with one exchange, and tells what the server's memory grew by
/// and which CPU time it took while they did nothing.
///
/// # Errors
/// `CliError::Failed` when a connection cannot be made or the server's process is not there.
pub fn run(plan: &Plan) -> Result<String, CliError> {
    let pid = plan.server_pid.unwrap_or(0);
    let measured = Duration::from_micros(plan.duration_us.unwrap_or(1_000_000));
    let gone = || CliError::failed("idle needs the --server-pid of a process that is there");
    let server = Server::prepare(plan)?;
    let resident = || machine::resident_bytes(pid).ok_or_else(gone);
    let before = resident()?;
    let mut held = Vec::with_capacity(plan.consumers);
    for index in 0..plan.consumers {
        let stream = driver::connect(server.addr, &*server.dialect, Role::Consumer);
        held.push(stream.map_err(|error| {
            CliError::failed(format!("connection {index} to {}: {error}", plan.addr))
        })?);
    }
    std::thread::sleep(REST);
    let (with, began) = (resident()?, machine::cpu_ns(pid).ok_or_else(gone)?);
    std::thread::sleep(measured);
    let cpu_ns = machine::cpu_ns(pid).ok_or_else(gone)? - began;
    drop(held);
    server.clean_up()?;
    let each = with.saturating_sub(before) as f64 / plan.consumers as f64;
    let cpu_ms = cpu_ns as f64 / 1e6 / measured.as_secs_f64();
    if plan.json {
        let mut object = Object::default();
        object
            .string("mode", plan.mode.word())
            .string("protocol", plan.protocol.word())
            .string("server", &server.version)
            .string("machine", &machine::describe())
            .string("label", plan.label.as_deref().unwrap_or(""))
            .count("connections", plan.consumers as u64)
            .count("resident_before_bytes", before)
            .count("resident_with_bytes", with)
            .number("bytes_per_connection", each)
            .number("server_cpu_ms_per_s", cpu_ms);
        return Ok(object.finish());
    }
    Ok(format!(
        "server     {} at {}\nmachine    {}\nidle       {} connections, {each:.0} bytes each, \
         {cpu_ms:.1} ms of CPU a second",
        server.version,
        plan.addr,
        machine::describe(),
        plan.consumers,
    ))
}

#[cfg(test)]
mod tests {
    use super::super::{forwarder, plan};

    #[test]
    fn connections_are_held_and_measured() {
        let pid = std::process::id();
        let addr = forwarder::start();
        let line = format!(
            "idle --frames {addr} --consumers 50 --duration 20ms --json --server-pid {pid}"
        );
        let args = lexopt::Parser::from_args(line.split_whitespace());
        let plan = plan::parse(args).expect("good");
        let text = super::run(&plan).expect("it runs");
        assert!(text.contains("\"connections\":50,"), "{text}");
        assert!(text.contains("\"bytes_per_connection\":"), "{text}");
    }
}
