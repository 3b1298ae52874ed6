//! `/proc/meminfo` (proc_meminfo(5)): what the machine has, and what could be had of it now.

/// A line's figure in bytes.
pub(crate) fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:        2048 kB\nMemFree: 1 kB\nMemAvailable:   512 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(2 << 20));
        assert_eq!(meminfo(text, "MemAvailable"), Some(512 << 10));
        assert_eq!(meminfo(text, "Mem"), None);
        assert_eq!(meminfo("MemFree: 1 kB\n", "MemTotal"), None);
        assert_eq!(meminfo("MemTotal: 99999999999999999999 kB\n", "MemTotal"), None);
        assert!(
            meminfo(&std::fs::read_to_string("/proc/meminfo").unwrap(), "MemAvailable").unwrap() > 1 << 20
        );
    }
}
