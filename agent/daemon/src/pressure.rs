//! Whether the machine is too hot, too busy, or throttled.
//!
//! [`Probe`] reads what the kernel tells; [`Pressure`] decides, on readings and a clock value alone. Pressure begins
//! when one quantity stays beyond its limit for [`Limits::sustain`] without a break, and ends when all of them stay on
//! the good side of a second, milder bound for [`Limits::recover`]. A reading between the two bounds changes nothing,
//! so what Limpet itself relieves by going down to a reduced variant does not bring the full one back at once.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use limpet_runtime::Moment;

/// Temperature that a sensor without a limit of its own may reach, in °C: most SoCs throttle between 80 and 95.
const CELSIUS: f64 = 80.0;
/// How far below the limit it is cool again, in °C.
const CELSIUS_BACK: f64 = 5.0;
/// How far above its limit the frequency is good again.
const FREQUENCY_BACK: f64 = 0.1;
/// What a sensor may say, in °C; beyond it, it is not connected or its driver has no value.
const PLAUSIBLE: std::ops::Range<f64> = -50.0..200.0;
/// A CPU that worked this share of the time wants all the frequency that it can get.
const BUSY: f64 = 0.9;
/// Time between two readings below which they tell nothing about the time between them.
const SHORTEST: Duration = Duration::from_millis(100);
/// Ticks of `/proc/stat` below which the share of busy ones is too coarse.
const TICKS: u64 = 20;
/// Most trip points that a zone is asked for; the kernel knows no more than 12.
const TRIPS: usize = 16;

/// A temperature sensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensor {
    /// As the kernel calls it.
    pub name: String,
    /// What it says, in °C.
    pub celsius: f64,
    /// Where the machine begins to throttle because of it, in °C, if it says so: the lowest trip point of type
    /// `passive` or `hot`, or hwmon's `max` or `crit`.
    pub limit_celsius: Option<f64>,
}

/// What was read. A quantity that this machine does not tell is none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    /// All sensors that gave a value. Empty if there are none.
    pub sensors: Vec<Sensor>,
    /// Share of the time, 0 to 1, in which some task waited for a CPU: since the reading before, or over ten seconds if
    /// there was none.
    pub cpu_pressure: Option<f64>,
    /// Share of its full frequency, 0 to 1, that the slowest CPU may run at.
    pub frequency: Option<f64>,
}

/// Reads the machine's state below a root folder.
///
/// - Temperature: `sys/class/thermal`, and where no zone there gives a value, `sys/class/hwmon`.
/// - CPU pressure: `proc/pressure/cpu`.
/// - Frequency: `sys/devices/system/cpu/cpu*/cpufreq`. A CPU counts with the highest frequency that it is allowed
///   (`scaling_max_freq`, which the kernel lowers when it throttles); with the one it has only if it was busy since the
///   reading before, by `proc/stat`, because an idle CPU runs slowly by choice. Full is `base_frequency` where the
///   driver tells it, so that a turbo which does not last is not missed, and `cpuinfo_max_freq` elsewhere.
///
/// A machine need have none of it (containers, virtual machines): that is said once in the log and is no error.
#[derive(Debug)]
pub struct Probe {
    root: PathBuf,
    before: Option<Before>,
}

/// Counters of the reading before.
#[derive(Debug)]
struct Before {
    at: Moment,
    /// Time in which some task waited, in microseconds.
    waited_us: Option<u64>,
    ticks: BTreeMap<usize, Ticks>,
}

/// One CPU's time since boot.
#[derive(Debug, Clone, Copy)]
struct Ticks {
    idle: u64,
    total: u64,
}

impl Probe {
    /// A probe for the machine whose `proc` and `sys` lie below `root`: `/`, or a fake tree.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), before: None }
    }

    /// Reads everything. Some sensors sit on slow buses, so not on a thread that others wait for.
    pub fn read(&mut self, now: Moment) -> Reading {
        let (waited_us, average) = self.waited();
        let ticks = self.ticks();
        let mut sensors = self.zones();
        if sensors.is_empty() {
            sensors = self.hwmon();
        }
        let before = self.before.as_ref().filter(|before| now.since(before.at) >= SHORTEST);
        let share = before.and_then(|before| {
            let waited = waited_us?.checked_sub(before.waited_us?)?;
            Some((waited as f64 / now.micros_since(before.at) as f64).min(1.0))
        });
        let reading = Reading { sensors, cpu_pressure: share.or(average), frequency: self.frequency(before, &ticks) };
        if self.before.is_none() {
            tell_what_is_missing(&reading);
        }
        self.before = Some(Before { at: now, waited_us, ticks });
        reading
    }

    fn zones(&self) -> Vec<Sensor> {
        let zones = numbered(&self.root.join("sys/class/thermal"), "thermal_zone");
        zones.values().filter_map(|zone| read_zone(zone)).collect()
    }

    fn hwmon(&self) -> Vec<Sensor> {
        let mut sensors = Vec::new();
        for chip in numbered(&self.root.join("sys/class/hwmon"), "hwmon").into_values() {
            let chip_name = text(&chip.join("name")).unwrap_or_else(|| file_name(&chip));
            for input in children(&chip) {
                let name = file_name(&input);
                let Some(sensor) = name.strip_suffix("_input").filter(|name| name.starts_with("temp")) else {
                    continue;
                };
                let Some(celsius_now) = celsius(&input) else { continue };
                let limit = |kind: &str| celsius(&chip.join(format!("{sensor}_{kind}"))).filter(|c| *c > 0.0);
                let label = text(&chip.join(format!("{sensor}_label"))).unwrap_or_else(|| sensor.to_owned());
                sensors.push(Sensor {
                    name: format!("{chip_name} {label}"),
                    celsius: celsius_now,
                    limit_celsius: limit("max").or_else(|| limit("crit")),
                });
            }
        }
        sensors
    }

    /// Time in which some task waited for a CPU since boot, in microseconds, and its share over ten seconds.
    fn waited(&self) -> (Option<u64>, Option<f64>) {
        let pressure = text(&self.root.join("proc/pressure/cpu")).unwrap_or_default();
        let some = pressure.lines().find_map(|line| line.strip_prefix("some ")).unwrap_or_default();
        let field = |key: &str| some.split(' ').find_map(|field| field.strip_prefix(key));
        let average = field("avg10=").and_then(|percent| percent.parse::<f64>().ok());
        let average = average.filter(|percent| percent.is_finite()).map(|percent| (percent / 100.0).clamp(0.0, 1.0));
        (field("total=").and_then(|total| total.parse().ok()), average)
    }

    /// The time of each CPU since boot: `cpuN user nice system idle iowait irq softirq steal …`.
    fn ticks(&self) -> BTreeMap<usize, Ticks> {
        let stat = text(&self.root.join("proc/stat")).unwrap_or_default();
        let of_line = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let cpu = words.next()?.strip_prefix("cpu")?.parse().ok()?;
            // What comes after the eighth is counted in the first two already.
            let times: Vec<u64> = words.take(8).map_while(|word| word.parse().ok()).collect();
            Some((cpu, Ticks { idle: times.get(3)? + times.get(4)?, total: times.iter().sum() }))
        };
        stat.lines().filter_map(of_line).collect()
    }

    fn frequency(&self, before: Option<&Before>, ticks: &BTreeMap<usize, Ticks>) -> Option<f64> {
        let busy = |cpu: usize| {
            let (was, is) = before.and_then(|before| Some((before.ticks.get(&cpu)?, ticks.get(&cpu)?)))?;
            let total = is.total.checked_sub(was.total).filter(|total| *total >= TICKS)?;
            Some(1.0 - is.idle.saturating_sub(was.idle) as f64 / total as f64 >= BUSY)
        };
        let cpus = numbered(&self.root.join("sys/devices/system/cpu"), "cpu");
        cpus.into_iter()
            .filter_map(|(cpu, folder)| {
                let khz = |name: &str| number(&folder.join("cpufreq").join(name)).filter(|khz| *khz > 0.0);
                let full = khz("base_frequency").or_else(|| khz("cpuinfo_max_freq"))?;
                let allowed = khz("scaling_max_freq")?;
                let present = khz("scaling_cur_freq").filter(|_| busy(cpu) == Some(true));
                Some((present.unwrap_or(allowed).min(allowed) / full).min(1.0))
            })
            .reduce(f64::min)
    }
}

fn read_zone(zone: &Path) -> Option<Sensor> {
    let trips = (0..TRIPS).map_while(|trip| Some((trip, text(&zone.join(format!("trip_point_{trip}_type")))?)));
    let limits = trips
        .filter(|(_, kind)| kind == "passive" || kind == "hot")
        .filter_map(|(trip, _)| celsius(&zone.join(format!("trip_point_{trip}_temp"))))
        // Zero and below: the trip point is switched off.
        .filter(|limit| *limit > 0.0);
    Some(Sensor {
        celsius: celsius(&zone.join("temp"))?,
        name: text(&zone.join("type")).unwrap_or_else(|| file_name(zone)),
        limit_celsius: limits.reduce(f64::min),
    })
}

/// Says which quantities this machine does not tell.
fn tell_what_is_missing(reading: &Reading) {
    if reading.sensors.is_empty() {
        tracing::info!("this machine tells no temperature, so heat never calls for a reduced variant");
    }
    if reading.cpu_pressure.is_none() {
        tracing::info!("this machine tells no CPU pressure (PSI), so it never calls for a reduced variant");
    }
    if reading.frequency.is_none() {
        tracing::info!("this machine tells no CPU frequency, so throttling never calls for a reduced variant");
    }
}

/// The entries of a folder, in order of their names. None if it cannot be read.
fn children(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    paths.sort();
    paths
}

/// The entries called `prefix` and a number, in order of that.
fn numbered(folder: &Path, prefix: &str) -> BTreeMap<usize, PathBuf> {
    let number = |path: &PathBuf| file_name(path).strip_prefix(prefix)?.parse().ok();
    children(folder).into_iter().filter_map(|path| Some((number(&path)?, path))).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A file's text without the line's end. None if it cannot be read: a sensor asleep, or a CPU that is off.
fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned())
}

fn number(path: &Path) -> Option<f64> {
    text(path)?.parse::<i64>().ok().map(|number| number as f64)
}

fn celsius(path: &Path) -> Option<f64> {
    number(path).map(|thousandths| thousandths / 1000.0).filter(|celsius| PLAUSIBLE.contains(celsius))
}

/// What counts as pressure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Temperature in °C that every sensor is held to. None: to its own limit, or 80 °C if it has none.
    pub temperature_c: Option<f64>,
    /// Share of the time, 0 to 1, in which some task waits for a CPU.
    ///
    /// Limpet causes some of it itself. It runs no more workers than there are CPUs, so its workers do not wait for one
    /// another; at full budget it is the short work beside them (messages, the broker, the kernel's threads) that finds
    /// no CPU free for a moment. Half of the time means that another load of about a CPU stands beside a full budget; a
    /// proof can be one. Where `budget.cpu` is all that the machine has and it has more to do
    /// than Limpet, a higher limit is right; 1 switches it off.
    pub cpu_pressure: f64,
    /// Share of the full frequency, 0 to 1, below which a CPU is throttled. Somebody who keeps `scaling_max_freq` low
    /// for good wants a lower limit; 0 switches it off.
    pub frequency: f64,
    /// How long one quantity is beyond its limit before that is pressure.
    pub sustain: Duration,
    /// How long all quantities are well before the pressure is over.
    pub recover: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            temperature_c: None,
            cpu_pressure: 0.5,
            frequency: 0.6,
            sustain: Duration::from_secs(10),
            recover: Duration::from_secs(60),
        }
    }
}

impl Limits {
    /// Time between two readings that suits these limits.
    pub fn interval(&self) -> Duration {
        (self.sustain.min(self.recover) / 4).clamp(SHORTEST, Duration::from_secs(2))
    }
}

/// The quantity that was beyond its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Too hot.
    Temperature,
    /// Too busy.
    CpuPressure,
    /// Throttled.
    Frequency,
}

const CAUSES: [Cause; 3] = [Cause::Temperature, Cause::CpuPressure, Cause::Frequency];

/// Pressure began or ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// What began it; none if it ended.
    pub cause: Option<Cause>,
    /// A sentence for an event.
    pub message: String,
}

/// Where a quantity stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    /// Well, or not told.
    Well,
    /// Neither.
    Between,
    /// Beyond its limit.
    Beyond,
}

/// Whether there is pressure.
#[derive(Debug)]
pub struct Pressure {
    limits: Limits,
    cause: Option<Cause>,
    /// Without pressure: since when each quantity has been beyond its limit.
    beyond: [Option<Moment>; 3],
    /// Under pressure: since when all have been well.
    well: Option<Moment>,
    last: Option<Moment>,
}

impl Pressure {
    /// No pressure.
    pub fn new(limits: Limits) -> Self {
        Self { limits, cause: None, beyond: [None; 3], well: None, last: None }
    }

    /// What the present pressure began with; none if there is none.
    #[cfg(test)]
    pub fn cause(&self) -> Option<Cause> {
        self.cause
    }

    /// Takes a reading; there should be one every [`Limits::interval`]. After a hole of ten of them (the machine slept)
    /// nothing is known of the time between, and what had begun begins anew.
    pub fn take(&mut self, now: Moment, reading: &Reading) -> Option<Change> {
        if self.last.is_some_and(|last| now.since(last) > self.limits.interval() * 10) {
            (self.beyond, self.well) = ([None; 3], None);
        }
        self.last = Some(now);
        let levels = CAUSES.map(|cause| self.limits.level(cause, reading));
        if self.cause.is_some() {
            if levels.iter().any(|level| *level != Level::Well) {
                self.well = None;
                return None;
            }
            let lasted = now.since(*self.well.get_or_insert(now));
            if lasted < self.limits.recover {
                return None;
            }
            self.cause = None;
            self.well = None;
            let seconds = lasted.as_secs_f64();
            let heat = self
                .limits
                .hottest(reading)
                .map(|(sensor, limit)| format!("; {} is at {:.1} °C, limit {limit} °C", sensor.name, sensor.celsius));
            let heat = heat.unwrap_or_default();
            return Some(Change {
                cause: None,
                message: format!("the pressure has been over for {seconds:.0} s{heat}"),
            });
        }
        for (since, level) in self.beyond.iter_mut().zip(levels) {
            *since = if level == Level::Beyond { since.or(Some(now)) } else { None };
        }
        let sustained = |since: &Option<Moment>| since.is_some_and(|since| now.since(since) >= self.limits.sustain);
        let index = self.beyond.iter().position(sustained)?;
        let seconds = self.beyond[index].map_or(0.0, |since| now.since(since).as_secs_f64());
        self.cause = Some(CAUSES[index]);
        self.beyond = [None; 3];
        let state = self.limits.describe(CAUSES[index], reading);
        Some(Change { cause: self.cause, message: format!("{state}, for {seconds:.0} s") })
    }
}

impl Limits {
    /// The sensor that is farthest beyond its limit, or nearest to it, and the limit.
    fn hottest<'a>(&self, reading: &'a Reading) -> Option<(&'a Sensor, f64)> {
        let limit = |sensor: &Sensor| self.temperature_c.or(sensor.limit_celsius).unwrap_or(CELSIUS);
        let sensors = reading.sensors.iter().map(|sensor| (sensor, limit(sensor)));
        sensors.max_by(|(a, a_limit), (b, b_limit)| (a.celsius - a_limit).total_cmp(&(b.celsius - b_limit)))
    }

    fn level(&self, cause: Cause, reading: &Reading) -> Level {
        let level = |beyond: bool, well: bool| match (beyond, well) {
            (true, _) => Level::Beyond,
            (false, true) => Level::Well,
            (false, false) => Level::Between,
        };
        let known = match cause {
            Cause::Temperature => self
                .hottest(reading)
                .map(|(sensor, limit)| level(sensor.celsius >= limit, sensor.celsius < limit - CELSIUS_BACK)),
            Cause::CpuPressure => {
                reading.cpu_pressure.map(|share| level(share > self.cpu_pressure, share < self.cpu_pressure / 2.0))
            }
            // A limit near 1 must still be reachable from the good side.
            Cause::Frequency => reading
                .frequency
                .map(|share| level(share < self.frequency, share >= (self.frequency + FREQUENCY_BACK).min(1.0))),
        };
        known.unwrap_or(Level::Well)
    }

    fn describe(&self, cause: Cause, reading: &Reading) -> String {
        let percent = |share: Option<f64>| share.unwrap_or_default() * 100.0;
        match cause {
            Cause::Temperature => self.hottest(reading).map_or_else(String::new, |(sensor, limit)| {
                format!("{} is at {:.1} °C, limit {limit} °C", sensor.name, sensor.celsius)
            }),
            Cause::CpuPressure => format!(
                "tasks wait for a CPU {:.0} % of the time, limit {:.0} %",
                percent(reading.cpu_pressure),
                self.cpu_pressure * 100.0
            ),
            Cause::Frequency => format!(
                "a CPU is held to {:.0} % of its full frequency, limit {:.0} %",
                percent(reading.frequency),
                self.frequency * 100.0
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A fake root with these files.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), files);
        folder
    }

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
    }

    fn seconds(seconds: f64) -> Moment {
        Moment((seconds * 1e9) as u64)
    }

    fn hot(celsius: f64) -> Reading {
        let sensor = Sensor { name: "cpu-thermal".to_owned(), celsius, limit_celsius: None };
        Reading { sensors: vec![sensor], ..Reading::default() }
    }

    #[test]
    fn a_zones_limit_is_its_lowest_passive_or_hot_trip_point() {
        let root = tree(&[
            ("sys/class/thermal/cooling_device0/type", "Processor"),
            ("sys/class/thermal/thermal_zone0/type", "cpu-thermal"),
            ("sys/class/thermal/thermal_zone0/temp", "71234"),
            ("sys/class/thermal/thermal_zone0/trip_point_0_type", "active"),
            ("sys/class/thermal/thermal_zone0/trip_point_0_temp", "50000"),
            ("sys/class/thermal/thermal_zone0/trip_point_1_type", "passive"),
            ("sys/class/thermal/thermal_zone0/trip_point_1_temp", "0"),
            ("sys/class/thermal/thermal_zone0/trip_point_2_type", "hot"),
            ("sys/class/thermal/thermal_zone0/trip_point_2_temp", "95000"),
            ("sys/class/thermal/thermal_zone0/trip_point_3_type", "passive"),
            ("sys/class/thermal/thermal_zone0/trip_point_3_temp", "85000"),
            ("sys/class/thermal/thermal_zone0/trip_point_4_type", "critical"),
            ("sys/class/thermal/thermal_zone0/trip_point_4_temp", "60000"),
            ("sys/class/thermal/thermal_zone1/type", "modem"),
            ("sys/class/thermal/thermal_zone1/temp", "-274000"),
            ("sys/class/thermal/thermal_zone10/type", "board"),
            ("sys/class/thermal/thermal_zone10/temp", "41000"),
            ("sys/class/hwmon/hwmon0/temp1_input", "99000"),
        ]);
        let reading = Probe::new(root.path()).read(seconds(1.0));
        let sensor = |name: &str, celsius, limit_celsius| Sensor { name: name.to_owned(), celsius, limit_celsius };
        assert_eq!(reading.sensors, [sensor("cpu-thermal", 71.234, Some(85.0)), sensor("board", 41.0, None)]);
    }

    #[test]
    fn hwmon_is_read_where_no_zone_gives_a_value() {
        let root = tree(&[
            ("sys/class/thermal/thermal_zone0/type", "asleep"),
            ("sys/class/hwmon/hwmon1/name", "coretemp"),
            ("sys/class/hwmon/hwmon1/temp1_label", "Package id 0"),
            ("sys/class/hwmon/hwmon1/temp1_input", "55000"),
            ("sys/class/hwmon/hwmon1/temp1_max", "90000"),
            ("sys/class/hwmon/hwmon1/temp1_crit", "100000"),
            ("sys/class/hwmon/hwmon1/temp2_input", "54000"),
            ("sys/class/hwmon/hwmon1/temp2_crit", "100000"),
            ("sys/class/hwmon/hwmon1/fan1_input", "1200"),
        ]);
        let sensors = Probe::new(root.path()).read(seconds(1.0)).sensors;
        let sensor = |name: &str, celsius, limit| Sensor { name: name.to_owned(), celsius, limit_celsius: Some(limit) };
        assert_eq!(sensors, [sensor("coretemp Package id 0", 55.0, 90.0), sensor("coretemp temp2", 54.0, 100.0)]);
    }

    #[test]
    fn a_machine_that_tells_nothing_or_nonsense_is_never_under_pressure() {
        let nothing = tree(&[]);
        let nonsense = tree(&[
            ("sys/class/thermal/thermal_zone0/temp", "warm"),
            ("sys/class/thermal/thermal_zonex/temp", "99000"),
            ("proc/pressure/cpu", "some avg10=NaN avg60=1 total=-5"),
            ("proc/stat", "cpu0 1 2\ncpu1 a b c d e\ncpu\n\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", "0"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", "1000"),
            ("sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq", "1000"),
        ]);
        for root in [nothing, nonsense] {
            let mut probe = Probe::new(root.path());
            let mut pressure = Pressure::new(Limits::default());
            for second in 1..40 {
                let reading = probe.read(seconds(f64::from(second)));
                assert_eq!(reading, Reading::default());
                assert_eq!(pressure.take(seconds(f64::from(second)), &reading), None);
            }
        }
    }

    #[test]
    fn cpu_pressure_is_of_the_time_since_the_reading_before() {
        let root =
            tree(&[("proc/pressure/cpu", "some avg10=12.50 avg60=0.00 avg300=0.00 total=1000000\nfull avg10=0.00")]);
        let mut probe = Probe::new(root.path());
        assert_eq!(probe.read(seconds(10.0)).cpu_pressure, Some(0.125));
        write(root.path(), &[("proc/pressure/cpu", "some avg10=20.00 avg60=0.00 avg300=0.00 total=2500000")]);
        assert_eq!(probe.read(seconds(12.0)).cpu_pressure, Some(0.75));
        // Two readings at one moment say nothing about the time between them.
        assert_eq!(probe.read(seconds(12.0)).cpu_pressure, Some(0.2));
        write(root.path(), &[("proc/pressure/cpu", "some avg10=20.00 avg60=0.00 avg300=0.00 total=5")]);
        assert_eq!(probe.read(seconds(14.0)).cpu_pressure, Some(0.2));
    }

    #[test]
    fn a_slow_cpu_is_throttled_only_if_it_was_busy_or_may_not_be_faster() {
        let cpu = |name: &str, current: &str, allowed: &str| {
            let folder = format!("sys/devices/system/cpu/{name}/cpufreq");
            [("scaling_cur_freq", current), ("scaling_max_freq", allowed), ("cpuinfo_max_freq", "2000000")]
                .map(|(file, text)| (format!("{folder}/{file}"), text.to_owned()))
        };
        let root = tree(&[]);
        let put = |cpus: &[[(String, String); 3]], stat: &str| {
            let files: Vec<_> = cpus.iter().flatten().map(|(path, text)| (path.as_str(), text.as_str())).collect();
            write(root.path(), &files);
            write(root.path(), &[("proc/stat", stat)]);
        };
        let mut probe = Probe::new(root.path());
        put(
            &[cpu("cpu0", "600000", "2000000"), cpu("cpu1", "600000", "2000000")],
            "cpu  0 0 0 0 0\ncpu0 0 0 0 0 0\ncpu1 0 0 0 0 0",
        );
        assert_eq!(probe.read(seconds(1.0)).frequency, Some(1.0), "nothing is known of the time before");
        put(&[], "cpu0 20 0 0 180 0\ncpu1 0 0 0 200 0");
        assert_eq!(probe.read(seconds(3.0)).frequency, Some(1.0), "idle");
        put(&[], "cpu0 215 0 0 185 0\ncpu1 0 0 0 400 0");
        assert_eq!(probe.read(seconds(5.0)).frequency, Some(0.3), "busy and slow");
        put(
            &[cpu("cpu0", "2000000", "2000000"), cpu("cpu1", "600000", "1000000")],
            "cpu0 415 0 0 185 0\ncpu1 0 0 0 600 0",
        );
        assert_eq!(probe.read(seconds(7.0)).frequency, Some(0.5), "held to half");
        write(root.path(), &[("sys/devices/system/cpu/cpu1/cpufreq/base_frequency", "1000000")]);
        assert_eq!(probe.read(seconds(9.0)).frequency, Some(1.0), "the rest is turbo");
    }

    #[test]
    fn heat_that_lasts_is_pressure_and_ends_only_when_it_is_cool_for_long() {
        let mut pressure = Pressure::new(Limits::default());
        for second in 0..10 {
            assert_eq!(pressure.take(seconds(f64::from(second)), &hot(84.2)), None);
        }
        let change = pressure.take(seconds(10.0), &hot(84.2)).unwrap();
        assert_eq!(change.cause, Some(Cause::Temperature));
        assert_eq!(change.message, "cpu-thermal is at 84.2 °C, limit 80 °C, for 10 s");
        for second in 11..100 {
            assert_eq!(pressure.take(seconds(f64::from(second)), &hot(76.0)), None, "not cool enough");
        }
        for second in 100..160 {
            assert_eq!(pressure.take(seconds(f64::from(second)), &hot(74.0)), None, "not long enough");
        }
        let change = pressure.take(seconds(160.0), &hot(74.0)).unwrap();
        assert_eq!(change.cause, None);
        assert_eq!(change.message, "the pressure has been over for 60 s; cpu-thermal is at 74.0 °C, limit 80 °C");
    }

    #[test]
    fn every_quantity_is_pressure_of_its_own_kind() {
        let busy = Reading { cpu_pressure: Some(0.63), ..Reading::default() };
        let slow = Reading { frequency: Some(0.45), ..Reading::default() };
        let causes = [
            (busy, Cause::CpuPressure, "tasks wait for a CPU 63 % of the time, limit 50 %, for 10 s"),
            (slow, Cause::Frequency, "a CPU is held to 45 % of its full frequency, limit 60 %, for 10 s"),
        ];
        for (reading, cause, message) in causes {
            let mut pressure = Pressure::new(Limits::default());
            let change = (0..=10).find_map(|second| pressure.take(seconds(f64::from(second)), &reading)).unwrap();
            assert_eq!((change.cause, change.message.as_str()), (Some(cause), message));
            assert_eq!(pressure.cause(), Some(cause));
        }
    }

    #[test]
    fn a_limit_of_the_configuration_holds_for_every_sensor() {
        let sensor = |name: &str, celsius, limit| Sensor { name: name.to_owned(), celsius, limit_celsius: Some(limit) };
        let reading =
            Reading { sensors: vec![sensor("a", 75.0, 110.0), sensor("b", 62.0, 60.0)], ..Reading::default() };
        assert_eq!(Limits::default().hottest(&reading).unwrap().0.name, "b");
        let limits = Limits { temperature_c: Some(70.0), ..Limits::default() };
        assert_eq!(limits.hottest(&reading).map(|(sensor, limit)| (sensor.name.as_str(), limit)), Some(("a", 70.0)));
    }

    #[test]
    fn a_sleep_between_two_hot_readings_is_not_heat_that_lasts() {
        let mut pressure = Pressure::new(Limits::default());
        assert_eq!(pressure.take(seconds(1.0), &hot(90.0)), None);
        assert_eq!(pressure.take(seconds(3600.0), &hot(90.0)), None);
        assert_eq!(pressure.take(seconds(3609.0), &hot(90.0)), None);
        assert!(pressure.take(seconds(3610.0), &hot(90.0)).is_some());
    }

    /// A reading for three levels, and what [`Limits::level`] must say of it.
    fn reading_of(levels: [Option<u8>; 3]) -> Reading {
        let value = |index: usize, values: [f64; 3]| levels[index].map(|level| values[usize::from(level)]);
        let sensors = value(0, [60.0, 77.0, 85.0]).map(|celsius| hot(celsius).sensors).unwrap_or_default();
        Reading { sensors, cpu_pressure: value(1, [0.1, 0.4, 0.9]), frequency: value(2, [1.0, 0.65, 0.3]) }
    }

    proptest! {
        #[test]
        fn it_never_flaps(
            runs in prop::collection::vec((prop::array::uniform3(prop::option::weighted(0.9, 0u8..3)), 1usize..60, 200u64..2500), 1..40),
            sustain in 1u64..20,
            recover in 1u64..90,
        ) {
            let limits = Limits {
                sustain: Duration::from_secs(sustain),
                recover: Duration::from_secs(recover),
                ..Limits::default()
            };
            let mut pressure = Pressure::new(limits);
            let mut now = Moment(0);
            // Every reading, and when the present state began.
            let mut past: Vec<(Moment, [Option<u8>; 3])> = Vec::new();
            let mut changed = None;
            for (levels, count, millis) in runs {
                for _ in 0..count {
                    now = now.after(Duration::from_millis(millis));
                    past.push((now, levels));
                    let was = pressure.cause();
                    let Some(change) = pressure.take(now, &reading_of(levels)) else {
                        prop_assert_eq!(pressure.cause(), was);
                        continue;
                    };
                    prop_assert_eq!(change.cause, pressure.cause());
                    prop_assert_ne!(was.is_some(), change.cause.is_some());
                    let apart = if change.cause.is_some() { limits.sustain } else { limits.recover };
                    if let Some(changed) = changed {
                        prop_assert!(now.since(changed) >= apart);
                    }
                    changed = Some(now);
                    // What the change rests on held at every reading of that time, which began with one.
                    let from = now.before(apart);
                    let begin = past.iter().rposition(|(at, _)| *at <= from);
                    prop_assert!(begin.is_some());
                    for (_, levels) in &past[begin.unwrap()..] {
                        match change.cause {
                            Some(cause) => prop_assert_eq!(levels[CAUSES.iter().position(|c| *c == cause).unwrap()], Some(2)),
                            None => prop_assert!(levels.iter().all(|level| level.unwrap_or(0) == 0)),
                        }
                    }
                }
            }
        }

        #[test]
        fn what_lasts_is_noticed(cause in 0usize..3, millis in 100u64..2000) {
            let mut pressure = Pressure::new(Limits::default());
            let mut levels = [Some(0); 3];
            levels[cause] = Some(2);
            let mut take = |from: u64, until: u64, levels| {
                (from..=until).find_map(|n| pressure.take(Moment(n * millis * 1_000_000), &reading_of(levels)))
            };
            let pressed = 10_000_u64.div_ceil(millis);
            prop_assert_eq!(take(0, pressed, levels).map(|change| change.cause), Some(Some(CAUSES[cause])));
            let relieved = pressed + 1 + 60_000_u64.div_ceil(millis);
            prop_assert_eq!(take(pressed + 1, relieved, [Some(0); 3]).map(|change| change.cause), Some(None));
        }
    }
}
