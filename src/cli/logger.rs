//! The logger: lines on stderr, filtered by `--log-level` or `RUST_LOG`.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Starts the logger. `filter` is a level (`warn`) or a filter of `RUST_LOG`'s form; without it
/// `RUST_LOG` counts, and without that `info`.
pub fn start(filter: Option<&str>) {
    let mut builder = env_logger::Builder::new();
    match (filter, std::env::var("RUST_LOG")) {
        (Some(filter), _) => builder.parse_filters(filter),
        (None, Ok(filter)) => builder.parse_filters(&filter),
        (None, Err(_)) => builder.filter_level(::log::LevelFilter::Info),
    };
    builder.format(|out, record| {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        writeln!(
            out,
            "{} {:<5} {}",
            utc(since),
            record.level(),
            record.args()
        )
    });
    // A second start in one process (tests) keeps the first logger, which is as good.
    let _ = builder.try_init();
}

/// Unix time as `2026-01-31T09:00:00.123Z`.
pub fn utc(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    let ms = since_epoch.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// Days since 1970-01-01 as year, month and day. Counts from 0000-03-01, so that the leap day is
/// the last day of a year and a month's first day follows from its number.
fn date(days_since_epoch: u64) -> (u64, u64, u64) {
    let days = days_since_epoch + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ];
        for (seconds, want) in cases {
            assert_eq!(utc(Duration::from_secs(seconds)), want);
        }
        assert_eq!(
            utc(Duration::from_millis(1_007)),
            "1970-01-01T00:00:01.007Z"
        );
    }
}
