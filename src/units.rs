//! Quantities and how people read them. Every type here is a number with a unit; `Display` is its human form.

use std::fmt;
use std::time::Duration;

/// A size in bytes, shown in binary units: `512 B`, `1.2 GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1024 {
            return f.pad(&format!("{} B", self.0));
        }
        let (value, unit) = scale(self.0 as f64, 1024.0, &["KiB", "MiB", "GiB", "TiB", "PiB"]);
        f.pad(&format!("{value:.1} {unit}"))
    }
}

/// A span of time: `340 ms`, `12.3 s`, `3m 12s`, `2h 05m`, `4d 03h`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default)]
pub struct Span(pub Duration);

impl Span {
    /// From seconds; what is negative, infinite or NaN counts as zero.
    pub fn from_seconds(seconds: f64) -> Self {
        Self(Duration::try_from_secs_f64(seconds).unwrap_or_default())
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rounded first, so that 59.97 s is "1m 00s" and never "60.0 s".
        let tenths = (self.0.as_secs_f64() * 10.0).round() / 10.0;
        let whole = self.0.as_secs_f64().round() as u64;
        let text = if self.0.is_zero() {
            "0 s".to_owned()
        } else if self.0 < Duration::from_millis(1000) {
            format!("{} ms", self.0.as_millis())
        } else if tenths < 60.0 {
            format!("{tenths:.1} s")
        } else if whole < 3600 {
            format!("{}m {:02}s", whole / 60, whole % 60)
        } else if whole < 86_400 {
            format!("{}h {:02}m", whole / 3600, whole / 60 % 60)
        } else {
            format!("{}d {:02}h", whole / 86_400, whole / 3600 % 24)
        };
        f.pad(&text)
    }
}

/// An exact count with its digits grouped: `1,597`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Count(pub u64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut grouped = String::with_capacity(digits.len() * 4 / 3);
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                grouped.push(',');
            }
            grouped.push(digit);
        }
        f.pad(&grouped)
    }
}

/// A count to three digits or fewer, as model sizes are told: `950`, `1.6K`, `135M`, `1.7B`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Rounded(pub u64);

impl fmt::Display for Rounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1000 {
            return f.pad(&self.0.to_string());
        }
        let (value, unit) = scale(self.0 as f64, 1000.0, &["K", "M", "B", "T"]);
        f.pad(&if value < 9.95 { format!("{value:.1}{unit}") } else { format!("{value:.0}{unit}") })
    }
}

/// Divides by `base` until the value, as it will be printed, is below it. `value` is at least `base`.
fn scale<'a>(mut value: f64, base: f64, units: &[&'a str]) -> (f64, &'a str) {
    let mut unit = "";
    for &next in units {
        // 0.05 is half of the last printed digit: 1023.97 KiB is 1.0 MiB, 999,960 is 1.0M.
        if value < base - if base == 1000.0 { 0.5 } else { 0.05 } {
            break;
        }
        value /= base;
        unit = next;
    }
    (value, unit)
}

/// The machine's memory in bytes. `None` where the platform does not tell.
pub fn total_memory_bytes() -> Option<u64> {
    kib_of("/proc/meminfo", "MemTotal:")
}

fn kib_of(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Bytes that are free for this user on the disk of `dir`. `None` where the platform does not tell.
pub fn free_bytes(dir: &std::path::Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(dir).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// The most memory this process has held resident so far, in bytes. `None` where the platform does not tell.
pub fn peak_rss_bytes() -> Option<u64> {
    // VmHWM, not getrusage: ru_maxrss survives exec on Linux, so it would report a larger parent's peak as ours.
    kib_of("/proc/self/status", "VmHWM:")
}

/// `bytes` in hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_roll_over_to_the_next_unit_when_they_would_print_as_1024() {
        let text = |n| Bytes(n).to_string();
        assert_eq!(text(0), "0 B");
        assert_eq!(text(1023), "1023 B");
        assert_eq!(text(1024), "1.0 KiB");
        assert_eq!(text(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(text(1_288_490_189), "1.2 GiB");
        assert_eq!(text(u64::MAX), "16384.0 PiB");
    }

    #[test]
    fn spans_use_the_two_units_that_matter() {
        let text = |s| Span::from_seconds(s).to_string();
        assert_eq!(text(0.0), "0 s");
        assert_eq!(text(0.34), "340 ms");
        assert_eq!(text(12.34), "12.3 s");
        assert_eq!(text(59.97), "1m 00s");
        assert_eq!(text(192.4), "3m 12s");
        assert_eq!(text(3599.7), "1h 00m");
        assert_eq!(text(7500.0), "2h 05m");
        assert_eq!(text(97.0 * 3600.0), "4d 01h");
        assert_eq!(text(f64::NAN), "0 s");
    }

    #[test]
    fn counts_are_grouped_exactly_and_rounded_as_model_sizes_are_told() {
        assert_eq!(Count(7).to_string(), "7");
        assert_eq!(Count(1_597).to_string(), "1,597");
        assert_eq!(Count(1_234_567).to_string(), "1,234,567");
        assert_eq!(Rounded(950).to_string(), "950");
        assert_eq!(Rounded(1_597).to_string(), "1.6K");
        assert_eq!(Rounded(134_515_008).to_string(), "135M");
        assert_eq!(Rounded(999_960).to_string(), "1.0M");
        assert_eq!(Rounded(1_711_376_384).to_string(), "1.7B");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn peak_memory_is_at_least_what_was_touched() {
        let block = std::hint::black_box(vec![1u8; 32 << 20]);
        assert!(peak_rss_bytes().unwrap() > block.len() as u64);
    }
}
