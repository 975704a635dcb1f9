//! CPU time and memory of another process, from /proc.

use std::fs;
use std::time::Duration;

use anyhow::Context;

use crate::unavailable;

/// A process that is watched from now on.
pub struct Process {
    pid: u32,
    cpu_before: Duration,
}

/// What it used since.
pub struct Used {
    /// User and system time of all its threads.
    pub cpu: Duration,
    /// Resident memory now.
    pub rss_bytes: u64,
    /// Proportional set size now, if the kernel tells.
    pub pss_bytes: Option<u64>,
}

impl Process {
    /// Starts watching.
    ///
    /// # Errors
    /// Unavailable if there is no such process.
    pub fn new(pid: u32) -> anyhow::Result<Self> {
        Ok(Self { pid, cpu_before: cpu(pid)? })
    }

    /// What it used since it is watched.
    ///
    /// # Errors
    /// Unavailable if the process has ended.
    pub fn used(&self) -> anyhow::Result<Used> {
        let cpu = cpu(self.pid)?.saturating_sub(self.cpu_before);
        let status = read(self.pid, "status")?;
        let rss_bytes = field_kb(&status, "VmRSS:").context("/proc has no VmRSS")? * 1024;
        // Only of one's own processes, and only since Linux 4.14.
        let pss_bytes =
            read(self.pid, "smaps_rollup").ok().and_then(|rollup| field_kb(&rollup, "Pss:")).map(|kb| kb * 1024);
        Ok(Used { cpu, rss_bytes, pss_bytes })
    }
}

fn read(pid: u32, file: &str) -> anyhow::Result<String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).map_err(|e| unavailable(format!("{path}: {e}; is process {pid} still running?")))
}

fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let stat = read(pid, "stat")?;
    let ticks = cpu_ticks(&stat).with_context(|| format!("/proc/{pid}/stat does not read as expected: '{stat}'"))?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// `utime + stime` of a line of /proc/PID/stat. The name in it may hold spaces and parentheses, so fields are counted
/// from the last parenthesis: state is the 3rd, utime the 14th, stime the 15th (proc(5)).
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(14 - 3);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// A line `KEY  N kB`.
fn field_kb(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 12 34 0 0 20 0 1 0 5 1 1";
        assert_eq!(cpu_ticks(stat), Some(46));
    }

    #[test]
    fn this_process_has_memory_and_one_that_is_not_there_is_an_error() {
        let used = Process::new(std::process::id()).unwrap().used().unwrap();
        assert!(used.rss_bytes > 1 << 20);
        assert!(Process::new(u32::MAX).is_err());
    }
}
