//! Where worker threads run, before whom, and with memory that is never paged out: each off unless it is asked for.
//!
//! Every one of them needs something of the system, and says what if that is missing. A capability counts only in the
//! first user namespace: the kernel asks for it there, so under `PrivateUsers=yes` the limits are the only way.

use std::fs;
use std::io;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, CpuSet, capabilities, sched_getaffinity, sched_setaffinity};
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

/// Priorities that SCHED_FIFO has.
pub const FIFO_PRIORITIES: std::ops::RangeInclusive<u8> = 1..=99;

/// How far threads step back that are not workers.
const NICE: i32 = 19;

/// Lets this thread step back behind all others, by which its I/O has the lowest best-effort priority too. Where that is not
/// allowed, they share.
pub fn step_back() {
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
}

/// Where a thread runs and before whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// The CPUs that it may run on; empty: all that the process may.
    pub affinity: Vec<usize>,
    /// Its SCHED_FIFO priority, 1 to 99; none: it shares time with all others.
    ///
    /// Such a thread runs until it waits. The kernel leaves the others 5 % of the time
    /// (`kernel.sched_rt_runtime_us`), and the threads that feed it are among these.
    pub fifo_priority: Option<u8>,
}

/// Puts this thread, and the threads that it will make, where it belongs.
///
/// # Errors
/// A sentence that names the key, what the kernel said, and what would allow it. What was done before stays done.
pub fn apply_to_this_thread(placement: &Placement) -> Result<(), String> {
    if !placement.affinity.is_empty() {
        set_affinity(&placement.affinity)?;
    }
    placement.fifo_priority.map_or(Ok(()), set_fifo)
}

fn set_affinity(cpus: &[usize]) -> Result<(), String> {
    let list = ranges(cpus);
    let refuse = |why: String| {
        format!(
            "runtime.affinity: a worker cannot be bound to CPU {list}: {why}; name CPUs that the unit's AllowedCPUs= and the container leave it, or remove the key"
        )
    };
    if let Some(cpu) = cpus.iter().find(|cpu| **cpu >= CpuSet::MAX_CPU) {
        return Err(refuse(format!("there is no CPU {cpu}")));
    }
    let mut wanted = CpuSet::new();
    cpus.iter().for_each(|cpu| wanted.set(*cpu));
    sched_setaffinity(None, &wanted).map_err(|error| refuse(error.to_string()))?;
    // The kernel takes a set of which only a part is there, and says nothing.
    let got = sched_getaffinity(None).map_err(|error| refuse(error.to_string()))?;
    if got != wanted {
        return Err(refuse(format!("the kernel gives it {} alone", ranges(&members(&got)))));
    }
    Ok(())
}

fn set_fifo(priority: u8) -> Result<(), String> {
    let value = ThreadPriorityValue::try_from(priority).ok().filter(|_| FIFO_PRIORITIES.contains(&priority));
    let Some(value) = value else {
        return Err(format!("runtime.fifo_priority: {priority} is no SCHED_FIFO priority; give one from 1 to 99"));
    };
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Crossplatform(value), policy).map_err(|error| {
        let said = match error {
            thread_priority::Error::OS(code) => io::Error::from_raw_os_error(code).to_string(),
            other => format!("{other:?}"),
        };
        let limit = getrlimit(Resource::Rtprio).current;
        let missing = if holds(CapabilitySet::SYS_NICE) || limit.is_none_or(|limit| limit >= u64::from(priority)) {
            "it is allowed, so a sandbox (RestrictRealtime=) or the kernel's real-time groups stand in the way; set RestrictRealtime=no in the unit".to_owned()
        } else {
            let limit = limit.unwrap_or_default();
            format!("CAP_SYS_NICE is missing and the limit on priorities is {limit}; set LimitRTPRIO={priority} and RestrictRealtime=no in the unit")
        };
        format!("runtime.fifo_priority: the kernel refuses SCHED_FIFO at priority {priority}: {said}; {missing}, or remove the key")
    })
}

/// Keeps all memory of this process, present and future, in RAM.
///
/// That includes what is mapped and not used yet, such as the stack of every thread: a process of 6.7 MB came to 27.9 MB
/// resident (the test `locks_its_memory` prints it). Under a limit a later allocation would fail and end the process, so
/// it is refused unless there is no limit.
///
/// # Errors
/// A sentence that names the key, what the kernel said, and what would allow it.
pub fn lock_memory() -> Result<(), String> {
    let limit = getrlimit(Resource::Memlock).current;
    if let Some(bytes) = limit.filter(|_| !holds(CapabilitySet::IPC_LOCK)) {
        return Err(format!(
            "runtime.lock_memory: CAP_IPC_LOCK is missing and the limit on locked memory is {bytes} bytes, so what is allocated beyond it later would fail and end the agent; set LimitMEMLOCK=infinity in the unit, or remove the key"
        ));
    }
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).map_err(|error| {
        format!(
            "runtime.lock_memory: the kernel does not lock the memory: {error}; set LimitMEMLOCK=infinity and a MemoryMax= that holds all of it in the unit, or remove the key"
        )
    })
}

/// Whether these CPUs are there and this process may use them. Ask before a thread is bound.
///
/// # Errors
/// A sentence that names the key and the CPUs that there are.
pub fn check_affinity(cpus: &[usize]) -> Result<(), String> {
    let usable = sched_getaffinity(None).map_err(|error| {
        format!("runtime.affinity: the kernel does not tell which CPUs may be used: {error}; remove the key")
    })?;
    let present = fs::read_to_string("/sys/devices/system/cpu/present").ok().and_then(|list| parse_ranges(&list));
    check_against(cpus, &members(&usable), present.as_deref())
}

fn check_against(cpus: &[usize], usable: &[usize], present: Option<&[usize]>) -> Result<(), String> {
    let may = ranges(usable);
    if let (Some(present), Some(missing)) =
        (present, present.and_then(|present| some_of(cpus, |cpu| !present.contains(&cpu))))
    {
        return Err(format!(
            "runtime.affinity: there is no CPU {missing}: this machine has {}, and this process may use {may}; name some of these",
            ranges(present)
        ));
    }
    match some_of(cpus, |cpu| !usable.contains(&cpu)) {
        Some(barred) => Err(format!(
            "runtime.affinity: this process may not use CPU {barred}, only {may}; name some of these, or give it more by AllowedCPUs= or CPUAffinity= in the unit"
        )),
        None => Ok(()),
    }
}

/// Those that `picked` picks, as text; none if there are none.
fn some_of(cpus: &[usize], picked: impl Fn(usize) -> bool) -> Option<String> {
    let some: Vec<usize> = cpus.iter().copied().filter(|cpu| picked(*cpu)).collect();
    (!some.is_empty()).then(|| ranges(&some))
}

fn members(set: &CpuSet) -> Vec<usize> {
    (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
}

/// As the kernel writes them: `0-3,6`.
fn ranges(cpus: &[usize]) -> String {
    let mut cpus = cpus.to_vec();
    cpus.sort_unstable();
    cpus.dedup();
    let runs = cpus.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [one] => one.to_string(),
        run => format!("{}-{}", run[0], run[run.len() - 1]),
    });
    runs.collect::<Vec<_>>().join(",")
}

/// What [`ranges`] writes; none if it is something else.
fn parse_ranges(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for run in text.trim().split(',') {
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        cpus.extend((first..=last).take(CpuSet::MAX_CPU));
    }
    Some(cpus)
}

/// Whether this thread has a capability, and in the namespace in which the kernel asks for it.
fn holds(capability: CapabilitySet) -> bool {
    let first = fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_ascii_whitespace().eq(["0", "0", "4294967295"]));
    first && capabilities(None).is_ok_and(|sets| sets.effective.contains(capability))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::{Rlimit, setrlimit};
    use rustix::thread::set_capabilities;

    use super::*;

    /// Runs something on a thread of its own, since what it sets stays set.
    fn on_a_thread<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(run).join().unwrap()
    }

    /// Takes a capability from this thread.
    fn drop_capability(capability: CapabilitySet) {
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(capability);
        set_capabilities(None, sets).unwrap();
    }

    #[test]
    fn nothing_is_done_unless_asked() {
        on_a_thread(|| {
            let before = sched_getaffinity(None).unwrap();
            apply_to_this_thread(&Placement::default()).unwrap();
            assert_eq!(sched_getaffinity(None).unwrap(), before);
        });
    }

    #[test]
    fn a_thread_is_bound_to_its_cpus() {
        on_a_thread(|| {
            let one = members(&sched_getaffinity(None).unwrap())[0];
            check_affinity(&[one]).unwrap();
            apply_to_this_thread(&Placement { affinity: vec![one], fifo_priority: None }).unwrap();
            assert_eq!(members(&sched_getaffinity(None).unwrap()), [one]);
        });
    }

    #[test]
    fn a_cpu_that_does_not_exist_is_named_and_so_are_those_that_do() {
        on_a_thread(|| {
            let usable = ranges(&members(&sched_getaffinity(None).unwrap()));
            let error = check_affinity(&[0, 1023, 4096]).unwrap_err();
            assert!(error.starts_with("runtime.affinity: there is no CPU 1023,4096: this machine has 0"), "{error}");
            assert!(error.ends_with(&format!("this process may use {usable}; name some of these")), "{error}");
            // The kernel alone would take the first and say nothing.
            let one = members(&sched_getaffinity(None).unwrap())[0];
            let bind = |affinity| apply_to_this_thread(&Placement { affinity, fifo_priority: None }).unwrap_err();
            let error = bind(vec![one, 1023]);
            assert!(error.contains("runtime.affinity") && error.contains(&format!("gives it {one} alone")), "{error}");
            assert!(bind(vec![4096]).contains("there is no CPU 4096"));
        });
    }

    #[test]
    fn a_cpu_that_this_process_may_not_use_is_told_from_one_that_is_not_there() {
        let check = |cpus: &[usize]| check_against(cpus, &[0, 1], Some(&[0, 1, 2, 3]));
        assert_eq!(check(&[1, 0]), Ok(()));
        assert_eq!(
            check(&[1, 3]).unwrap_err(),
            "runtime.affinity: this process may not use CPU 3, only 0-1; name some of these, or give it more by AllowedCPUs= or CPUAffinity= in the unit"
        );
        assert_eq!(
            check(&[3, 5, 4]).unwrap_err(),
            "runtime.affinity: there is no CPU 4-5: this machine has 0-3, and this process may use 0-1; name some of these"
        );
        assert!(check_against(&[7], &[0], None).unwrap_err().contains("may not use CPU 7, only 0"));
    }

    #[test]
    fn lists_of_cpus_read_back_what_was_written() {
        for cpus in [vec![0], vec![0, 1, 2, 3], vec![1, 3, 4, 9]] {
            assert_eq!(parse_ranges(&ranges(&cpus)), Some(cpus));
        }
        assert_eq!(parse_ranges("0-\n"), None);
        assert_eq!(parse_ranges("0-18446744073709551615").map(|cpus| cpus.len()), Some(CpuSet::MAX_CPU));
    }

    #[test]
    fn a_priority_that_fifo_does_not_have_is_refused() {
        for priority in [0, 100, 255] {
            let error = apply_to_this_thread(&Placement { affinity: Vec::new(), fifo_priority: Some(priority) });
            let expected =
                format!("runtime.fifo_priority: {priority} is no SCHED_FIFO priority; give one from 1 to 99");
            assert_eq!(error, Err(expected));
        }
    }

    #[test]
    fn fifo_is_had_by_capability_and_without_it_the_error_says_what_is_missing() {
        on_a_thread(|| {
            let fifo = Placement { affinity: Vec::new(), fifo_priority: Some(7) };
            // For this whole process, which has no other use of it.
            setrlimit(Resource::Rtprio, Rlimit { current: Some(0), maximum: Some(0) }).unwrap();
            if holds(CapabilitySet::SYS_NICE) {
                match apply_to_this_thread(&fifo) {
                    Ok(()) => assert_eq!(
                        thread_priority::thread_schedule_policy(),
                        Ok(ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo))
                    ),
                    Err(error) => assert!(error.contains("RestrictRealtime="), "{error}"),
                }
                drop_capability(CapabilitySet::SYS_NICE);
            }
            // Raising what it has needs the capability again.
            let error = apply_to_this_thread(&Placement { fifo_priority: Some(9), ..fifo }).unwrap_err();
            assert_eq!(
                error,
                "runtime.fifo_priority: the kernel refuses SCHED_FIFO at priority 9: Operation not permitted (os error 1); CAP_SYS_NICE is missing and the limit on priorities is 0; set LimitRTPRIO=9 and RestrictRealtime=no in the unit, or remove the key"
            );
        });
    }

    #[test]
    fn locked_memory_under_a_limit_is_refused_before_it_can_end_the_process() {
        on_a_thread(|| {
            let maximum = getrlimit(Resource::Memlock).maximum;
            setrlimit(Resource::Memlock, Rlimit { current: Some(65536), maximum }).unwrap();
            if holds(CapabilitySet::IPC_LOCK) {
                drop_capability(CapabilitySet::IPC_LOCK);
            }
            let error = lock_memory().unwrap_err();
            assert_eq!(
                error,
                "runtime.lock_memory: CAP_IPC_LOCK is missing and the limit on locked memory is 65536 bytes, so what is allocated beyond it later would fail and end the agent; set LimitMEMLOCK=infinity in the unit, or remove the key"
            );
        });
    }

    #[test]
    fn memory_is_locked_where_that_is_allowed() {
        if !holds(CapabilitySet::IPC_LOCK) && getrlimit(Resource::Memlock).maximum.is_some() {
            return; // The test before this one says what happens then.
        }
        // In a process of its own: the memory of the other tests is not to be locked.
        let run = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "threads::tests::locks_its_memory", "--nocapture"])
            .env(LOCKS, "1")
            .output()
            .unwrap();
        assert!(
            run.status.success(),
            "{}{}",
            String::from_utf8_lossy(&run.stdout),
            String::from_utf8_lossy(&run.stderr)
        );
    }

    /// Tells the child of the test above that it is one.
    const LOCKS: &str = "LOCKS_ITS_MEMORY";

    #[test]
    fn locks_its_memory() {
        if std::env::var_os(LOCKS).is_none() {
            return;
        }
        let kilobytes = |key: &str| {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap().to_owned();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        // The test before this one may have lowered it for this process too.
        let maximum = getrlimit(Resource::Memlock).maximum;
        setrlimit(Resource::Memlock, Rlimit { current: maximum, maximum }).unwrap();
        let (resident, locked) = (kilobytes("VmRSS:"), kilobytes("VmLck:"));
        lock_memory().unwrap();
        println!("resident {resident} to {} kB, locked {locked} to {} kB", kilobytes("VmRSS:"), kilobytes("VmLck:"));
        assert_eq!(locked, 0);
        assert!(kilobytes("VmLck:") >= resident);
    }
}
