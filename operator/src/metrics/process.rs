//! What Prometheus clients usually say of their own process, read from `/proc/self` at each scrape.
//!
//! The names are those of <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>. What cannot be
//! read is left out: a wrong number is worse than none.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// The unit of times in `/proc`, per second: 100 on every architecture that this runs on, whatever the kernel's own
/// clock does, see <https://man7.org/linux/man-pages/man7/time.7.html>.
const TICKS_PER_SECOND: f64 = 100.0;

/// One look at the process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Usage {
    cpu_seconds: Option<f64>,
    start_seconds: Option<f64>,
    resident_bytes: Option<u64>,
    threads: Option<u64>,
    open_fds: Option<u64>,
    max_fds: Option<u64>,
}

impl Usage {
    fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let mut usage = Self::of(
            &text("/proc/self/stat"),
            &text("/proc/self/status"),
            &text("/proc/self/limits"),
            &text("/proc/stat"),
        );
        usage.open_fds = fs::read_dir("/proc/self/fd")
            .ok()
            // The one that reads the folder is not counted.
            .and_then(|entries| u64::try_from(entries.count().saturating_sub(1)).ok());
        usage
    }

    fn of(stat: &str, status: &str, limits: &str, system: &str) -> Self {
        // The name of the process stands in parentheses and may hold anything; what follows is field 3.
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        let ticks = |number: usize| -> Option<f64> { fields.get(number - 3)?.parse().ok() };
        let line = |text: &str, name: &str| -> Option<u64> {
            text.lines()
                .find_map(|line| line.strip_prefix(name))?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        };
        let booted: Option<f64> = system
            .lines()
            .find_map(|line| line.strip_prefix("btime "))
            .and_then(|seconds| seconds.trim().parse().ok());
        Self {
            cpu_seconds: ticks(14)
                .zip(ticks(15))
                .map(|(user, system)| (user + system) / TICKS_PER_SECOND),
            start_seconds: ticks(22)
                .zip(booted)
                .map(|(since_boot, booted)| booted + since_boot / TICKS_PER_SECOND),
            resident_bytes: line(status, "VmRSS:").map(|kib| kib.saturating_mul(1024)),
            threads: line(status, "Threads:"),
            open_fds: None,
            max_fds: line(limits, "Max open files"),
        }
    }
}

/// Reads the process when it is asked.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let usage = Usage::read();
        if let Some(seconds) = usage.cpu_seconds {
            let metric = ConstCounter::new(seconds);
            metric.encode(encoder.encode_descriptor(
                "process_cpu",
                "User and system time of the process.",
                Some(&Unit::Seconds),
                metric.metric_type(),
            )?)?;
        }
        if let Some(seconds) = usage.start_seconds {
            let metric = ConstGauge::new(seconds);
            metric.encode(encoder.encode_descriptor(
                "process_start_time",
                "When the process started, since 1970.",
                Some(&Unit::Seconds),
                metric.metric_type(),
            )?)?;
        }
        for (name, help, unit, value) in [
            (
                "process_resident_memory",
                "Memory of the process that is resident.",
                Some(&Unit::Bytes),
                usage.resident_bytes,
            ),
            (
                "process_threads",
                "Threads of the process.",
                None,
                usage.threads,
            ),
            (
                "process_open_fds",
                "Open file descriptors of the process.",
                None,
                usage.open_fds,
            ),
            (
                "process_max_fds",
                "File descriptors that the process may have open.",
                None,
                usage.max_fds,
            ),
        ] {
            let Some(value) = value else { continue };
            let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            metric.encode(encoder.encode_descriptor(name, help, unit, metric.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_blanks_shifts_no_field() {
        // utime and stime are fields 14 and 15, the start is field 22.
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 12345 1000 200";
        let usage = Usage::of(
            stat,
            "Name:\ta\nVmRSS:\t   20480 kB\nThreads:\t9\n",
            "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 4096                 files\n",
            "cpu 1 2 3\nbtime 1000\n",
        );
        assert_eq!(
            usage,
            Usage {
                cpu_seconds: Some(3.0),
                start_seconds: Some(1123.45),
                resident_bytes: Some(20_971_520),
                threads: Some(9),
                open_fds: None,
                max_fds: Some(1024),
            }
        );
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
        assert_eq!(
            Usage::of("", "", "Max open files unlimited unlimited files", ""),
            Usage::default()
        );
    }

    #[test]
    fn this_process_has_memory_a_start_and_files() {
        let usage = Usage::read();
        assert!(
            usage.resident_bytes > Some(1 << 20) && usage.open_fds > Some(2),
            "{usage:?}"
        );
        assert!(usage.start_seconds > Some(1_500_000_000.0), "{usage:?}");
        assert!(
            usage.cpu_seconds.is_some() && usage.max_fds.is_some(),
            "{usage:?}"
        );
    }
}
