//! Which model was running when the process died.
//!
//! An engine is foreign code: what crashes there ends the process, and the service manager starts it again. So that a
//! version that crashes does not do so for ever, each worker notes in memory what it runs, and a signal handler writes
//! that, and which signal ended the process, to a file. The next start reads it ([`Crashes::take`]). Nothing is
//! written while all is well: with two writes to the file a run of keyword-spotting at 100 messages/s took 40 µs at the
//! median, without them 28. A version that ended the process twice
//! within ten minutes is blamed until its digest changes, or until somebody removes `crashes.json`.
//!
//! # What counts
//! SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT and SIGSYS that the process caused itself, and a session that hangs
//! ([`Marker::hung`]). The version of the worker whose thread got the signal counts; if another thread got it, which may
//! be an engine's or may have met what a worker destroyed, all versions that were running do. A panic outside of workers
//! is Limpet's own fault and counts against none ([`panicked`]).
//!
//! Power loss, SIGKILL, the memory killer and signals from other processes never count. Neither does a system-call filter
//! that kills outright (`SECCOMP_RET_KILL_PROCESS`): no handler runs then, so it cannot be told from SIGKILL.
//!
//! # `<run>/running`
//! Little-endian, made by each start, and written by the end that counts, by `pwrite` only:
//!
//! | at | bytes | |
//! |---|---|---|
//! | 0 | 8 | [`MAGIC`] |
//! | 8 | 36 | boot id, or zeros |
//! | 64 | 1 | the signal that ended the process, [`HANG`], or 0 |
//! | 68 | 4 | number of the record that it concerns, [`ALL`] or [`NOBODY`] |
//! | 72 | 8 | when: CLOCK_BOOTTIME in nanoseconds |
//! | 80 | 8 | when: Unix time in nanoseconds, as the wall clock had it |
//! | 128 + 64 n | 1 | record n: 1 if its worker is running a model, else 0 |
//! | 129 + 64 n | 32 | digest of the package |
//!
//! It lies in the page cache, so it outlives the process, and needs no more.
//!
//! # `<state>/crashes.json`
//! The last [`KEPT`] versions that ended the process, the latest last. Replaced at once or not at all; one that does not
//! read is as good as none.

#![allow(unsafe_code)] // sigaction and its handler.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use limpet_depot::Digest;
use limpet_runtime::Moment;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::wall;

/// Name of the file in the run folder.
const RUNNING: &str = "running";
/// Name of the file in the state folder.
const CRASHES: &str = "crashes.json";
/// Begins the file: its name and version.
const MAGIC: [u8; 8] = *b"limpet\x00\x01";
/// Place and length of the boot id.
const BOOT: std::ops::Range<usize> = 8..44;
/// Place of the note of what ended the process.
const NOTE: usize = 64;
/// Length of that note.
const NOTE_LEN: usize = 24;
/// Place of the first record.
const RECORDS: usize = 128;
/// Length of a record.
const RECORD_LEN: usize = 64;
/// Most workers that there may be.
const WORKERS_MAX: usize = 1024;
/// In place of a signal: a session that hangs.
const HANG: u8 = 255;
/// In place of a record's number: whoever was running.
const ALL: u32 = u32::MAX;
/// In place of a record's number: no model had to do with it.
const NOBODY: u32 = u32::MAX - 1;
/// Most versions in `crashes.json`.
const KEPT: usize = 64;
/// Largest `crashes.json` that is read back, in bytes.
const CRASHES_MAX: u64 = 64 << 10;
/// Two crashes within this time are not chance.
const WITHIN: Duration = Duration::from_secs(600);

/// What is caught, with its names.
const SIGNALS: [(c_int, &str); 6] = [
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGABRT, "SIGABRT"),
    (libc::SIGSYS, "SIGSYS"),
];

thread_local! {
    /// The record of the worker that runs on this thread. Without a destructor and made at compile time, so a signal
    /// handler may read it.
    static RECORD: Cell<u32> = const { Cell::new(ALL) };
}

/// The file in which workers note what they run.
#[derive(Debug, Clone, Copy)]
pub struct Markers {
    running: &'static Running,
    workers: usize,
}

#[derive(Debug)]
struct Running {
    file: File,
    /// Whether the end is noted. From then on the file stays as it is.
    ended: AtomicBool,
    records: Box<[Record]>,
}

/// What a worker runs, readable at any moment, also by a signal handler.
#[derive(Debug, Default)]
struct Record {
    running: AtomicBool,
    /// The digest, in parts. Read by another thread while it changes they may be of two versions, and then of none.
    digest: [AtomicU64; 4],
}

impl Markers {
    /// Makes the file, with room for so many workers. Call [`Crashes::take`] before: what the last process left is gone.
    ///
    /// It stays open until the process ends, since a signal may come at any time.
    ///
    /// # Errors
    /// A sentence that names the key and the file.
    pub fn create(run: &Path, workers: usize) -> Result<Self, String> {
        let path = run.join(RUNNING);
        let refuse = |error: io::Error| {
            format!(
                "gateway.run: the file {}, which tells after a crash which model caused it, cannot be made: {error}; let this user write there, or name another folder",
                path.display()
            )
        };
        let workers = workers.min(WORKERS_MAX);
        let mut bytes = vec![0; RECORDS + workers * RECORD_LEN];
        bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        if let Some(boot) = boot.trim_end().as_bytes().get(..BOOT.len()) {
            bytes[BOOT].copy_from_slice(boot);
        }
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&path).map_err(refuse)?;
        // All of it, so that no later write needs room that is not there.
        file.write_all(&bytes).map_err(refuse)?;
        let running = Box::leak(Box::new(Running {
            file,
            ended: AtomicBool::new(false),
            records: (0..workers).map(|_| Record::default()).collect(),
        }));
        Ok(Self { running, workers })
    }

    /// The marker of a worker, counted from 0; none beyond those that there is room for.
    pub fn marker(&self, worker: usize) -> Option<Marker> {
        (worker < self.workers).then_some(Marker { running: self.running, record: worker as u32 })
    }

    /// Notes from now on which signal ends the process. For the whole process, and once.
    ///
    /// What the process ends with stays what it was: the same signal, the same core file, and Rust's word about a stack
    /// that overflows.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn catch_signals(&self) -> io::Result<()> {
        let mut before = SIGNALS.map(|(signal, _)| (signal, default_action()));
        for (signal, action) in &mut before {
            // SAFETY: a null pointer in place of a new action only asks for the present one, which is written to a
            // struct of the right type.
            check(unsafe { libc::sigaction(*signal, std::ptr::null(), action) })?;
        }
        if CAUGHT.set(Caught { running: self.running, before }).is_err() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "signals are caught already"));
        }
        let mut action = default_action();
        action.sa_sigaction = caught as *const () as libc::sighandler_t;
        // On the stack that Rust keeps for it: a thread that overflowed has no other.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for (signal, _) in SIGNALS {
            // SAFETY: the handler has the signature that SA_SIGINFO asks for, and does only what is allowed in a signal
            // handler (see there); what it reads was set above and lives for ever.
            check(unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) })?;
        }
        Ok(())
    }
}

/// One worker's record: what it runs.
#[derive(Debug, Clone, Copy)]
pub struct Marker {
    running: &'static Running,
    record: u32,
}

impl Marker {
    /// This thread is about to run a version. A marker is set and cleared by its worker's thread alone.
    pub fn set(&self, digest: &Digest) {
        RECORD.set(self.record);
        let record = &self.running.records[self.record as usize];
        for (part, bytes) in record.digest.iter().zip(digest.0.chunks_exact(8)) {
            part.store(u64::from_le_bytes(bytes.try_into().unwrap_or_default()), Ordering::Relaxed);
        }
        record.running.store(true, Ordering::Release);
    }

    /// It is done.
    pub fn clear(&self) {
        self.running.records[self.record as usize].running.store(false, Ordering::Release);
    }

    /// Notes that this worker's session hangs, for whoever watches it and ends the process then. What it runs stays
    /// noted, even if it comes back before the end.
    pub fn hung(&self) {
        self.running.note(HANG, self.record);
    }
}

/// To be called by the panic hook before it ends the process: a panic on a thread that is no worker's counts against no
/// version.
pub fn panicked() {
    if RECORD.get() == ALL {
        RECORD.set(NOBODY);
    }
}

impl Running {
    /// Notes what ended the process, the first time. May be called in a signal handler.
    fn note(&self, signal: u8, record: u32) {
        if self.ended.swap(true, Ordering::Relaxed) {
            return;
        }
        for (index, record) in self.records.iter().enumerate() {
            if record.running.load(Ordering::Acquire) {
                let mut bytes = [1; 33];
                for (to, part) in bytes[1..].chunks_exact_mut(8).zip(&record.digest) {
                    to.copy_from_slice(&part.load(Ordering::Relaxed).to_le_bytes());
                }
                self.write(&bytes, RECORDS + index * RECORD_LEN);
            }
        }
        let wall = clock_gettime(ClockId::Realtime);
        let wall_ns = wall.tv_sec.wrapping_mul(1_000_000_000).wrapping_add(wall.tv_nsec);
        let mut note = [0; NOTE_LEN];
        note[0] = signal;
        note[4..8].copy_from_slice(&record.to_le_bytes());
        note[8..16].copy_from_slice(&Moment::now().0.to_le_bytes());
        note[16..24].copy_from_slice(&wall_ns.to_le_bytes());
        self.write(&note, NOTE);
    }

    fn write(&self, bytes: &[u8], at: usize) {
        // Nothing can be done about it here.
        let _ = rustix::io::pwrite(&self.file, bytes, at as u64);
    }
}

/// What the handler needs.
struct Caught {
    running: &'static Running,
    before: [(c_int, libc::sigaction); SIGNALS.len()],
}

static CAUGHT: OnceLock<Caught> = OnceLock::new();

fn default_action() -> libc::sigaction {
    // SAFETY: a struct of integers, of a mask and of an optional function pointer; all zeros is the default action with
    // no flags and an empty mask.
    unsafe { std::mem::zeroed() }
}

fn check(returned: c_int) -> io::Result<()> {
    if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Notes the signal and lets it do what it would have done.
///
/// It calls only what is allowed in a signal handler: clock_gettime, getpid, pwrite, sigaction and raise. It takes no
/// lock and no memory, and cannot panic.
extern "C" fn caught(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    let Some(Caught { running, before }) = CAUGHT.get() else { return };
    // SAFETY: with SA_SIGINFO the kernel passes a valid one.
    let info = unsafe { &*info };
    // The kernel's codes are positive; others say that it was sent.
    let sent = info.si_code <= 0;
    // SAFETY: a signal that was sent, by kill, tgkill or sigqueue, has the sender's process id.
    let from_outside = sent && unsafe { info.si_pid() } != rustix::process::getpid().as_raw_pid();
    if !from_outside {
        running.note(signal as u8, RECORD.get());
    }
    // What follows needs no second note, and finds all as it was before: a stack that overflows has Rust's handler speak
    // and abort, on a stack too small for one more handler of ours.
    for (other, action) in before {
        // SAFETY: both pointers are valid or null; the action is one that the kernel gave.
        unsafe { libc::sigaction(*other, action, std::ptr::null_mut()) };
    }
    // An instruction that failed fails once more on return, and in the right place for a core file. What was sent would
    // not come again, and neither does a system call that a filter stopped.
    if sent || signal == libc::SIGSYS {
        // SAFETY: the pointers are valid or null. The signal stays blocked until this handler returns.
        unsafe {
            libc::sigaction(signal, &default_action(), std::ptr::null_mut());
            libc::raise(signal);
        }
    }
}

/// What ended the last process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// Name of the signal, or `hang`.
    pub signal: &'static str,
    /// The versions that it counts against.
    pub digests: Vec<Digest>,
    at: When,
}

/// When a process died, by both clocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct When {
    /// The boot, or an empty string if it is not known.
    boot: String,
    /// Time since that boot, in nanoseconds.
    boot_ns: u64,
    /// Unix time in nanoseconds, as the wall clock had it.
    unix_ns: i64,
}

impl When {
    /// Whether both are known to lie within [`WITHIN`]: by the time since boot, and across boots by the wall clock if it
    /// was right both times.
    fn near(&self, other: &Self) -> bool {
        let apart_ns = if self.boot == other.boot && !self.boot.is_empty() {
            self.boot_ns.abs_diff(other.boot_ns)
        } else if self.unix_ns >= wall::EARLIEST_NS && other.unix_ns >= wall::EARLIEST_NS {
            self.unix_ns.abs_diff(other.unix_ns)
        } else {
            return false;
        };
        u128::from(apart_ns) <= WITHIN.as_nanos()
    }
}

/// Why a version is not to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blame {
    /// How often it ended the process, in all.
    pub times: u32,
    /// Name of the last signal, or `hang`.
    pub signal: String,
}

impl fmt::Display for Blame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it ended the agent {} times, the last time by {}", self.times, self.signal)
    }
}

/// The versions that ended the process.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Crashes {
    versions: Vec<Version>,
    #[serde(skip)]
    last: Option<Death>,
}

/// One version that did.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Version {
    digest: String,
    times: u32,
    signal: String,
    #[serde(flatten)]
    at: When,
    /// Whether two of the times were too near.
    blamed: bool,
}

impl Crashes {
    /// Reads what the last process left in the run folder, counts it against the versions that were running, and keeps
    /// that in the state folder.
    ///
    /// It never fails: what cannot be read or kept is said in the log, and the start goes on.
    pub fn take(run: &Path, state: &Path) -> Self {
        let mut crashes = read_crashes(&state.join(CRASHES));
        let running = run.join(RUNNING);
        let Some(death) = read_running(&running) else { return crashes };
        let counts = death.digests.iter().filter(|digest| crashes.count(digest, &death)).count();
        if counts > 0
            && let Err(error) = crashes.keep(state)
        {
            let path = state.join(CRASHES);
            tracing::error!(
                "{} cannot be written: {error}; a crash is not counted after the next start",
                path.display()
            );
        }
        crashes.last = Some(death);
        // Not before it is kept: whoever is ended in between counts it at the next start, and no crash counts twice.
        if let Err(error) = fs::remove_file(&running) {
            tracing::warn!("{} cannot be removed: {error}", running.display());
        }
        crashes
    }

    /// What ended the last process, if something that counts did.
    pub fn last(&self) -> Option<&Death> {
        self.last.as_ref()
    }

    /// Whether a version is not to run, and why.
    pub fn blamed(&self, digest: &Digest) -> Option<Blame> {
        let version = self.versions.iter().find(|version| version.digest == digest.to_string())?;
        version.blamed.then(|| Blame { times: version.times, signal: version.signal.clone() })
    }

    /// Counts a crash against a version; false if this one was counted before.
    fn count(&mut self, digest: &Digest, death: &Death) -> bool {
        let mut version = Version {
            digest: digest.to_string(),
            times: 1,
            signal: death.signal.to_owned(),
            at: death.at.clone(),
            blamed: false,
        };
        if let Some(index) = self.versions.iter().position(|known| known.digest == version.digest) {
            let before = &self.versions[index];
            if before.at == version.at {
                return false;
            }
            version.times = before.times.saturating_add(1);
            version.blamed = before.blamed || before.at.near(&version.at);
            self.versions.remove(index);
        }
        self.versions.push(version);
        if self.versions.len() > KEPT {
            // One that is blamed is still needed.
            let index = self.versions.iter().position(|version| !version.blamed).unwrap_or(0);
            self.versions.remove(index);
        }
        true
    }

    fn keep(&self, state: &Path) -> io::Result<()> {
        let new = state.join(format!("{CRASHES}.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(&new, state.join(CRASHES))?;
        File::open(state)?.sync_all()
    }
}

/// A file's first bytes; none if it is not there. What else is wrong with it is said in the log.
fn read(path: &Path, most: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes)) {
        Ok(_) => Some(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!("{} cannot be read: {error}; crashes before this start are not known", path.display());
            None
        }
    }
}

fn read_crashes(path: &Path) -> Crashes {
    let Some(bytes) = read(path, CRASHES_MAX) else { return Crashes::default() };
    serde_json::from_slice(&bytes).unwrap_or_else(|error| {
        tracing::warn!("{} is damaged: {error}; crashes before this start are forgotten", path.display());
        Crashes::default()
    })
}

fn read_running(path: &Path) -> Option<Death> {
    let bytes = read(path, (RECORDS + WORKERS_MAX * RECORD_LEN) as u64)?;
    if bytes.len() < RECORDS || !bytes.starts_with(&MAGIC) {
        tracing::warn!(
            "{} is damaged or of another version; it is not counted what ended the last run",
            path.display()
        );
        return None;
    }
    death(&bytes)
}

/// What a file of at least a header says; none if nothing that counts ended the process.
fn death(bytes: &[u8]) -> Option<Death> {
    let note = bytes[NOTE..NOTE + NOTE_LEN].first_chunk::<NOTE_LEN>()?;
    let signal = match note[0] {
        HANG => "hang",
        signal => SIGNALS.iter().find(|(known, _)| *known == c_int::from(signal))?.1,
    };
    let eight = |at: usize| note[at..].first_chunk::<8>().copied().unwrap_or_default();
    let record = u32::from_le_bytes(note[4..].first_chunk().copied()?);
    let mut digests = Vec::new();
    for (index, bytes) in bytes[RECORDS..].chunks_exact(RECORD_LEN).enumerate() {
        let concerned = record == ALL || record as usize == index;
        if let (true, [1, digest @ ..]) = (concerned, bytes)
            && let Some(digest) = digest.first_chunk().map(|digest| Digest(*digest))
            && !digests.contains(&digest)
        {
            digests.push(digest);
        }
    }
    let boot = String::from_utf8_lossy(&bytes[BOOT]).trim_end_matches('\0').to_owned();
    let at = When { boot, boot_ns: u64::from_le_bytes(eight(8)), unix_ns: i64::from_le_bytes(eight(16)) };
    Some(Death { signal, digests, at })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Child, Command, ExitStatus, Stdio};
    use std::sync::mpsc;

    use proptest::prelude::*;
    use rustix::process::{Resource, Rlimit, Signal, kill_process, setrlimit};

    use super::*;

    const A: Digest = Digest([0xa1; 32]);
    const B: Digest = Digest([0xb2; 32]);

    /// Where a child keeps its folders, and how it is to die.
    const FOLDER: &str = "LIMPET_TEST_CRASH_FOLDER";
    const END: &str = "LIMPET_TEST_CRASH_END";

    /// A device with its two folders.
    struct Device(tempfile::TempDir);

    impl Device {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("run")).unwrap();
            fs::create_dir(folder.path().join("state")).unwrap();
            Self(folder)
        }

        fn run(&self) -> std::path::PathBuf {
            self.0.path().join("run")
        }

        fn state(&self) -> std::path::PathBuf {
            self.0.path().join("state")
        }

        fn start(&self) -> Crashes {
            Crashes::take(&self.run(), &self.state())
        }

        fn spawn(&self, end: &str) -> Child {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "crash::tests::dies_as_it_is_told", "--nocapture"])
                .env(FOLDER, self.0.path())
                .env(END, end)
                .env_remove("RUST_TEST_THREADS")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        }

        /// A process that ends so: its status, and what it said.
        fn die(&self, end: &str) -> (ExitStatus, String) {
            let output = self.spawn(end).wait_with_output().unwrap();
            (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    fn ended(crashes: &Crashes) -> Option<(&'static str, Vec<Digest>)> {
        crashes.last().map(|death| (death.signal, death.digests.clone()))
    }

    /// A page that may not be touched.
    fn touch_what_is_not_there() {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        // SAFETY: the kernel chooses a place that is free; nobody else knows of it.
        let page = unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, ProtFlags::empty(), MapFlags::PRIVATE) };
        // SAFETY: none. The read must fail, and ends the process.
        unsafe { std::ptr::read_volatile(page.unwrap().cast::<u8>()) };
    }

    /// A page of a file that is shorter.
    fn touch_beyond_a_file(folder: &Path) {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        fs::write(folder.join("empty"), "").unwrap();
        let file = File::open(folder.join("empty")).unwrap();
        // SAFETY: the kernel chooses a place that is free; nobody else knows of it.
        let page = unsafe { mmap(std::ptr::null_mut(), 4096, ProtFlags::READ, MapFlags::SHARED, &file, 0) };
        // SAFETY: none. The read must fail, and ends the process.
        unsafe { std::ptr::read_volatile(page.unwrap().cast::<u8>()) };
    }

    #[expect(unconditional_recursion, reason = "the stack is to overflow")]
    fn overflow_the_stack(depth: u64) -> u64 {
        let frame = std::hint::black_box([depth; 64]);
        overflow_the_stack(depth + 1) + std::hint::black_box(frame)[0]
    }

    fn raise(signal: c_int) {
        // SAFETY: it takes no pointers.
        unsafe { libc::raise(signal) };
    }

    /// On a thread that is no worker's.
    fn elsewhere(run: impl FnOnce() + Send + 'static) {
        let _ = std::thread::spawn(run).join();
    }

    /// The child of the tests below; it does nothing for whoever is not told how to die.
    #[test]
    fn dies_as_it_is_told() {
        let Some(folder) = std::env::var_os(FOLDER).map(std::path::PathBuf::from) else { return };
        setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).unwrap();
        let end = std::env::var(END).unwrap();
        let markers = Markers::create(&folder.join("run"), 2).unwrap();
        markers.catch_signals().unwrap();
        let (mine, theirs) = (markers.marker(0).unwrap(), markers.marker(1).unwrap());
        // Another worker, in the middle of a run.
        let (set, is_set) = mpsc::channel();
        std::thread::spawn(move || {
            theirs.set(&B);
            set.send(()).unwrap();
            loop {
                std::thread::park();
            }
        });
        is_set.recv().unwrap();
        mine.set(&A);
        match end.as_str() {
            "segv" => touch_what_is_not_there(),
            "bus" => touch_beyond_a_file(&folder),
            "overflow" => println!("{}", overflow_the_stack(0)),
            "abort" => std::process::abort(),
            "abort without a model" => {
                mine.clear();
                std::process::abort()
            }
            "segv elsewhere" => elsewhere(touch_what_is_not_there),
            "panic" | "panic elsewhere" => {
                std::panic::set_hook(Box::new(|_| {
                    panicked();
                    std::process::abort();
                }));
                if end == "panic" {
                    panic!("as told");
                }
                elsewhere(|| panic!("as told"));
            }
            "hang" => {
                std::thread::spawn(move || mine.hung()).join().unwrap();
                mine.clear();
                std::process::abort();
            }
            "wait" => {
                println!("waiting");
                io::stdin().lines().next();
            }
            signal => raise(signal.parse().unwrap()),
        }
        panic!("the process is still alive");
    }

    #[test]
    fn each_signal_is_laid_to_the_version_that_its_thread_was_running() {
        let raised = |signal: c_int| signal.to_string();
        let ends = [
            ("segv".to_owned(), libc::SIGSEGV, "SIGSEGV"),
            ("bus".to_owned(), libc::SIGBUS, "SIGBUS"),
            ("abort".to_owned(), libc::SIGABRT, "SIGABRT"),
            ("panic".to_owned(), libc::SIGABRT, "SIGABRT"),
            (raised(libc::SIGSEGV), libc::SIGSEGV, "SIGSEGV"),
            (raised(libc::SIGBUS), libc::SIGBUS, "SIGBUS"),
            (raised(libc::SIGILL), libc::SIGILL, "SIGILL"),
            (raised(libc::SIGFPE), libc::SIGFPE, "SIGFPE"),
            (raised(libc::SIGABRT), libc::SIGABRT, "SIGABRT"),
            (raised(libc::SIGSYS), libc::SIGSYS, "SIGSYS"),
        ];
        for (end, signal, name) in ends {
            let device = Device::new();
            let (status, said) = device.die(&end);
            assert_eq!(status.signal(), Some(signal), "{end}: {said}");
            let crashes = device.start();
            assert_eq!(ended(&crashes), Some((name, vec![A])), "{end}");
            assert_eq!(crashes.blamed(&A), None, "{end}: once is chance");
            assert_eq!(ended(&device.start()), None, "{end}: it counts once");
        }
    }

    #[test]
    fn a_stack_that_overflows_still_has_rusts_word_and_end() {
        let device = Device::new();
        let (status, said) = device.die("overflow");
        assert!(said.contains("has overflowed its stack"), "{said}");
        assert_eq!(status.signal(), Some(libc::SIGABRT));
        assert_eq!(ended(&device.start()), Some(("SIGSEGV", vec![A])));
    }

    #[test]
    fn a_thread_that_is_no_workers_leaves_all_in_question() {
        let device = Device::new();
        assert_eq!(device.die("segv elsewhere").0.signal(), Some(libc::SIGSEGV));
        assert_eq!(ended(&device.start()), Some(("SIGSEGV", vec![A, B])));
    }

    #[test]
    fn what_no_model_did_counts_against_none() {
        for end in ["abort without a model", "panic elsewhere"] {
            let device = Device::new();
            assert_eq!(device.die(end).0.signal(), Some(libc::SIGABRT));
            assert_eq!(ended(&device.start()), Some(("SIGABRT", vec![])), "{end}");
        }
    }

    #[test]
    fn a_kill_leaves_no_signal_and_does_not_count() {
        let device = Device::new();
        assert_eq!(device.die(&libc::SIGKILL.to_string()).0.signal(), Some(libc::SIGKILL));
        let left = fs::read(device.run().join(RUNNING)).unwrap();
        assert_eq!((left[RECORDS], left[NOTE]), (0, 0), "a model was running, and nothing is written of it");
        assert_eq!(ended(&device.start()), None);
    }

    #[test]
    fn a_signal_from_another_process_ends_it_and_does_not_count() {
        for (signal, number) in [(Signal::ABORT, libc::SIGABRT), (Signal::SEGV, libc::SIGSEGV)] {
            let device = Device::new();
            let mut child = device.spawn("wait");
            let _open = child.stdin.take();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap().contains("waiting")));
            let pid = rustix::process::Pid::from_child(&child);
            kill_process(pid, signal).unwrap();
            assert_eq!(child.wait_with_output().unwrap().status.signal(), Some(number));
            assert_eq!(ended(&device.start()), None);
        }
    }

    #[test]
    fn a_hang_counts_even_if_the_session_comes_back_before_the_end() {
        let device = Device::new();
        assert_eq!(device.die("hang").0.signal(), Some(libc::SIGABRT));
        assert_eq!(ended(&device.start()), Some(("hang", vec![A])));
    }

    #[test]
    fn a_version_that_ends_the_process_twice_within_ten_minutes_is_blamed() {
        let device = Device::new();
        for times in 1..=3 {
            device.die("abort");
            let blame = device.start().blamed(&A);
            let expected = (times > 1).then(|| Blame { times, signal: "SIGABRT".to_owned() });
            assert_eq!(blame, expected);
        }
        // It is kept, and another digest is another version.
        let crashes = device.start();
        assert_eq!(
            crashes.blamed(&A).map(|blame| blame.to_string()).as_deref(),
            Some("it ended the agent 3 times, the last time by SIGABRT")
        );
        assert_eq!(crashes.blamed(&B), None);
    }

    fn death_at(boot: &str, boot_s: u64, unix_s: i64) -> Death {
        let at = When { boot: boot.to_owned(), boot_ns: boot_s * 1_000_000_000, unix_ns: unix_s * 1_000_000_000 };
        Death { signal: "SIGSEGV", digests: vec![A], at }
    }

    fn blamed_after(deaths: &[Death]) -> bool {
        let mut crashes = Crashes::default();
        deaths.iter().for_each(|death| _ = crashes.count(&A, death));
        crashes.blamed(&A).is_some()
    }

    #[test]
    fn time_is_counted_since_boot_and_by_the_wall_clock_only_across_boots() {
        let t = wall::EARLIEST_NS / 1_000_000_000;
        // The wall clock jumps; the time since boot does not.
        assert!(blamed_after(&[death_at("x", 100, t), death_at("x", 700, t + 90_000)]));
        assert!(!blamed_after(&[death_at("x", 100, t), death_at("x", 701, t)]));
        assert!(blamed_after(&[death_at("x", 5000, t), death_at("y", 20, t + 600)]));
        assert!(!blamed_after(&[death_at("x", 20, t), death_at("y", 20, t + 601)]));
        // Two boots without a clock: nobody knows how far apart.
        assert!(!blamed_after(&[death_at("x", 20, 20), death_at("y", 20, 20)]));
        assert!(!blamed_after(&[death_at("", 20, 20), death_at("", 21, 21)]));
        // Once near is enough for ever.
        assert!(blamed_after(&[death_at("x", 1, t), death_at("x", 2, t), death_at("x", 99_999, t)]));
        // The same crash, read again because the start was ended in between.
        assert!(!blamed_after(&[death_at("x", 1, t), death_at("x", 1, t)]));
    }

    #[test]
    fn the_list_is_bounded_and_keeps_those_that_are_blamed() {
        let mut crashes = Crashes::default();
        for second in [1, 2] {
            crashes.count(&A, &death_at("x", second, 0));
        }
        for n in 0..200 {
            crashes.count(&Digest([n; 32]), &death_at("x", 1000, 0));
        }
        assert_eq!(crashes.versions.len(), KEPT);
        assert!(crashes.blamed(&A).is_some());
        let device = Device::new();
        crashes.keep(&device.state()).unwrap();
        assert!(fs::metadata(device.state().join(CRASHES)).unwrap().len() < CRASHES_MAX / 2);
        assert!(device.start().blamed(&A).is_some());
    }

    #[test]
    fn damaged_files_are_as_good_as_none() {
        let device = Device::new();
        for damage in ["", "{", "{\"versions\": [{}]}", "[]", "\u{0}"] {
            fs::write(device.state().join(CRASHES), damage).unwrap();
            fs::write(device.run().join(RUNNING), damage).unwrap();
            let crashes = device.start();
            assert_eq!((ended(&crashes), crashes.blamed(&A)), (None, None), "{damage}");
        }
        // And it goes on from there.
        device.die("abort");
        assert_eq!(ended(&device.start()), Some(("SIGABRT", vec![A])));
        device.die("abort");
        assert!(device.start().blamed(&A).is_some());
    }

    #[test]
    fn a_state_folder_that_cannot_be_written_does_not_stop_the_start() {
        let device = Device::new();
        device.die("abort");
        let crashes = Crashes::take(&device.run(), &device.state().join("gone"));
        assert_eq!(ended(&crashes), Some(("SIGABRT", vec![A])));
    }

    #[test]
    fn a_run_folder_that_is_not_there_is_named_with_its_key() {
        let error = Markers::create(Path::new("/nonexistent/limpet"), 1).unwrap_err();
        assert!(error.starts_with("gateway.run: the file /nonexistent/limpet/running"), "{error}");
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), RECORDS..RECORDS + 300), signal in 0u8..32, record in 0u32..4) {
            let mut noise = noise;
            noise[NOTE] = signal;
            noise[NOTE + 4..NOTE + 8].copy_from_slice(&record.to_le_bytes());
            if let Some(death) = death(&noise) {
                prop_assert!(death.digests.len() <= 1);
                prop_assert!(SIGNALS.iter().any(|(_, name)| *name == death.signal));
                prop_assert!(Crashes::default().count(&A, &death));
            }
        }
    }
}
