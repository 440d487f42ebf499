//! `ringmq bench floor`: what the machine itself takes for the two things that a durable publish
//! cannot do without: one exchange over loopback, and one write that is synced.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::cli::error::CliError;
use crate::cli::json::Object;

use super::machine;
use super::plan::Plan;
use super::report::{latencies, percentiles};
use super::tally::histogram;

/// Bytes of the command and log fields around a body.
const AROUND_BYTES: usize = 60;
/// Size of the file that is written over and over, bytes. It is written and synced before the
/// measuring starts, as a broker does with a segment.
const FILE_BYTES: u64 = 16 << 20;

/// Measures and tells.
///
/// # Errors
/// `CliError::Failed` when the directory cannot be written or loopback does not work.
pub fn run(plan: &Plan, dir: &Path) -> Result<String, CliError> {
    let measured = Duration::from_micros(plan.duration_us.unwrap_or(1_000_000)) / 2;
    let bytes = (plan.body_bytes + AROUND_BYTES) * plan.batch as usize;
    let exchange = exchanges(bytes, measured)
        .map_err(|error| CliError::failed(format!("cannot exchange over loopback: {error}")))?;
    let path = dir.join(format!("ringmq-bench-{}.tmp", std::process::id()));
    let sync = syncs(&path, bytes, measured);
    fs::remove_file(&path).ok();
    let sync = sync
        .map_err(|error| CliError::failed(format!("cannot write in {}: {error}", dir.display())))?;
    let floor_ns = exchange.value_at_percentile(50.0) + sync.value_at_percentile(50.0);
    if plan.json {
        let mut object = Object::default();
        object
            .string("mode", "floor")
            .string("machine", &machine::describe())
            .string("label", plan.label.as_deref().unwrap_or(""))
            .count("write_bytes", bytes as u64)
            .count("messages_per_write", plan.batch)
            .raw("exchange_us", &latencies(&exchange))
            .raw("sync_us", &latencies(&sync))
            .number("floor_p50_us", floor_ns as f64 / 1e3);
        return Ok(object.finish());
    }
    Ok(format!(
        "machine    {}\nexchange   {} bytes and back over loopback, both ends blocking\n{}\n\
         sync       pwrite and fdatasync of {} bytes in {}\n{}\nfloor      {:.0} us, the sum of the medians",
        machine::describe(),
        bytes,
        percentiles(&exchange),
        bytes,
        dir.display(),
        percentiles(&sync),
        floor_ns as f64 / 1e3
    ))
}

/// Times `act` again and again.
fn timed(
    measured: Duration,
    mut act: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<Histogram<u64>> {
    let mut times = histogram();
    let started = Instant::now();
    let mut index = 0;
    while index < 10 || started.elapsed() < measured {
        let before = Instant::now();
        act(index)?;
        times.saturating_record(before.elapsed().as_nanos() as u64);
        index += 1;
    }
    Ok(times)
}

/// `bytes` there and 16 back, with a thread at the other end.
fn exchanges(bytes: usize, measured: Duration) -> io::Result<Histogram<u64>> {
    const ANSWER_BYTES: usize = 16;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let echo = std::thread::spawn(move || {
        let mut question = vec![0; bytes];
        // Ends when the other side closes.
        while server.read_exact(&mut question).is_ok() {
            if server.write_all(&question[..ANSWER_BYTES]).is_err() {
                return;
            }
        }
    });
    let question = vec![b'x'; bytes];
    let mut answer = [0; ANSWER_BYTES];
    let times = timed(measured, |_| {
        client.write_all(&question)?;
        client.read_exact(&mut answer)
    });
    drop(client);
    echo.join()
        .map_err(|_| io::Error::other("the other end has panicked"))?;
    times
}

/// One write of `bytes` and a sync, at the next place of a file that is there already.
fn syncs(path: &Path, bytes: usize, measured: Duration) -> io::Result<Histogram<u64>> {
    let file = OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .open(path)?;
    let zeros = vec![0; 1 << 20];
    for offset in (0..FILE_BYTES).step_by(zeros.len()) {
        file.write_all_at(&zeros, offset)?;
    }
    file.sync_all()?;
    let record = vec![b'x'; bytes];
    let places = (FILE_BYTES / bytes as u64).max(1);
    timed(measured, |index| {
        file.write_all_at(&record, index % places * bytes as u64)?;
        file.sync_data()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_timed() {
        let moment = Duration::from_millis(10);
        let times = exchanges(100, moment).expect("loopback works");
        assert!(times.len() >= 10 && times.value_at_percentile(50.0) > 1_000);
        let path = std::env::temp_dir().join(format!("ringmq-floor-{}", std::process::id()));
        let times = syncs(&path, 100, moment).expect("the temporary directory is writable");
        fs::remove_file(&path).expect("it was made");
        assert!(times.len() >= 10 && times.value_at_percentile(50.0) > 100);
    }
}
