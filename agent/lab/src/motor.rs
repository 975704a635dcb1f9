//! A virtual electric motor: the vibration that an accelerometer on its housing would see, one sample after the other.
//!
//! This is `models/motor-health/simulate.py` in Rust, so that the demo's sensor needs no Python. The physics, its sources
//! and the choice of amplitudes are documented there. The parameters come from the *held-out* side of its table: no such
//! motor was in the training of the motor-health model.
//!
//! Promises: a seed gives the same motor and the same samples as in Python (but for the last bits of transcendental
//! functions); the condition can change while the motor runs; nothing is allocated; a sample takes about a microsecond.

use std::f64::consts::TAU;

/// Samples per second.
pub const RATE_HZ: f64 = 3200.0;
/// The sensor clips at plus and minus this, in g.
pub const RANGE_G: f64 = 16.0;

/// Steps of the sensor's integers in one g.
pub const LSB_PER_G: f64 = 256.0;
const STANDARD_GRAVITY: f64 = 9.80665;
/// Samples between steps of the slow processes: 10 ms.
const SLOW: u64 = 32;

/// What is wrong with the motor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing: residual imbalance and harmless disturbances only.
    Healthy,
    /// An eccentric mass on the rotor.
    Imbalance,
    /// A defect on a race or a ball of the rolling-element bearing.
    Bearing,
    /// A foot that lifts from its base.
    Looseness,
}

impl Condition {
    /// The motor-health model's label for this condition.
    pub fn label(self) -> &'static str {
        match self {
            Condition::Healthy => "healthy",
            Condition::Imbalance => "imbalance",
            Condition::Bearing => "bearing",
            Condition::Looseness => "looseness",
        }
    }
}

/// One stream of counted random numbers: number `n` is a pure function of seed, stream and `n`.
///
/// The numbers are those of SplitMix64 (Steele, Lea, Flood 2014), reached at random instead of in sequence.
#[derive(Clone, Copy)]
struct Random(u64);

impl Random {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

    fn new(seed: u64, stream: Stream) -> Self {
        Random(Self::mix(seed.wrapping_add(Self::GOLDEN.wrapping_mul(stream as u64 + 1))))
    }

    fn mix(z: u64) -> u64 {
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    fn uniform(self, n: u64) -> f64 {
        let z = Self::mix(self.0.wrapping_add(n.wrapping_add(1).wrapping_mul(Self::GOLDEN)));
        (z >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Two independent standard normal numbers (Box and Muller 1958).
    fn gaussian_pair(self, n: u64) -> (f64, f64) {
        let radius = (-2.0 * (1.0 - self.uniform(2 * n)).ln()).sqrt();
        let angle = TAU * self.uniform(2 * n + 1);
        (radius * angle.cos(), radius * angle.sin())
    }
}

/// The streams of one motor; their order is part of the simulation.
#[derive(Clone, Copy)]
enum Stream {
    Parameters,
    SensorXy,
    SensorZ,
    ProcessHv,
    ProcessA,
    SlowA,
    SlowB,
    Revolution,
    Impulse,
    Knock,
}

/// Draws a motor's parameters: each is the next number of its stream.
struct Draw {
    random: Random,
    next: u64,
}

impl Draw {
    fn uniform(&mut self) -> f64 {
        self.next += 1;
        self.random.uniform(self.next - 1)
    }

    fn choice(&mut self, values: &[f64]) -> f64 {
        let at = (self.uniform() * values.len() as f64) as usize;
        values[at.min(values.len() - 1)]
    }

    /// Spread evenly over the union of the intervals.
    fn linear(&mut self, intervals: &[(f64, f64)]) -> f64 {
        let mut position = self.uniform() * intervals.iter().map(|(low, high)| high - low).sum::<f64>();
        for &(low, high) in intervals {
            if position < high - low {
                return low + position;
            }
            position -= high - low;
        }
        intervals[intervals.len() - 1].1 // rounding took the position past the last end
    }

    /// The same on a logarithmic scale.
    fn log<const N: usize>(&mut self, intervals: [(f64, f64); N]) -> f64 {
        self.linear(&intervals.map(|(low, high)| (low.ln(), high.ln()))).exp()
    }
}

/// Which part of the bearing has the defect.
#[derive(Clone, Copy)]
enum Defect {
    OuterRace,
    InnerRace,
    Ball,
}

/// The constants of one motor; see `PARAMETER_TABLE` in simulate.py for what they mean and where held-out motors lie.
struct Parameters {
    shaft_hz: f64,
    defect: Defect,
    /// Impulses per turn of the shaft.
    defect_order: f64,
    /// Turns of the cage per turn of the shaft.
    cage_order: f64,
    /// Cosine and sine of the sensor's angle about the shaft, and of its tilt.
    mount: [f64; 4],
    mount_gain: f64,
    sensor_noise_g: f64,
    process_pole: f64,
    process_drive: f64,
    blades: f64,
    teeth: f64,
    line_hz: f64,
    wander: f64,
    stiffness_ratio: f64,
    residual_um: f64,
    misalignment_g: f64,
    hum_g: f64,
    blade_g: f64,
    gear_g: f64,
    knock_hz: f64,
    knock_g: f64,
    phase: [f64; 3],
    imbalance_um: f64,
    bearing_g: f64,
    bearing_slip: f64,
    load_zone: f64,
    looseness_g: f64,
    looseness_sub: f64,
    looseness_stop: f64,
    looseness_blow: f64,
}

/// A damped structural resonance that rings along one direction.
struct Mode {
    twice_cos: f64,
    square: f64,
    gain: f64,
    noise_gain: f64,
    direction: [f64; 3],
    last: f64,
    before: f64,
}

impl Mode {
    fn new(hz: f64, damping: f64, azimuth: f64, axial: f64, share: f64, process_mode_g: f64) -> Self {
        let angle = TAU * hz / RATE_HZ;
        let radius = (-damping * angle).exp();
        let radial = (1.0 - axial * axial).sqrt();
        Mode {
            twice_cos: 2.0 * radius * angle.cos(),
            square: radius * radius,
            // With `sin` the response to a unit impulse peaks near 1; the noise gain makes that to unit noise unit.
            gain: share * angle.sin(),
            noise_gain: process_mode_g * (2.0 * (1.0 - radius * radius)).sqrt(),
            direction: [radial * azimuth.cos(), radial * azimuth.sin(), axial],
            last: 0.0,
            before: 0.0,
        }
    }

    fn ring(&mut self, blow: f64, noise: f64) -> f64 {
        let force = blow + self.noise_gain * noise;
        let ring = self.twice_cos * self.last - self.square * self.before + self.gain * force;
        self.before = self.last;
        self.last = ring;
        ring
    }
}

/// A running motor with its sensor.
pub struct Motor {
    parameters: Parameters,
    condition: Condition,
    modes: [Mode; 2],
    sensor_xy: Random,
    sensor_z: Random,
    process_hv: Random,
    process_a: Random,
    slow_a: Random,
    slow_b: Random,
    revolution: Random,
    impulse: Random,
    knock: Random,
    /// Samples given so far.
    n: u64,
    /// Turns of the shaft modulo 2, so that half orders go on smoothly; of twice the line frequency; of the cage.
    shaft: f64,
    line: f64,
    cage: f64,
    shaft_hz: f64,
    /// Slow Gauss-Markov processes of unit variance: speed, level of the process, level of the tones.
    slow: [f64; 3],
    process: [f64; 3],
    revolutions: u64,
    revolution_gain: f64,
    /// Passes of the bearing's defect left until the next impulse.
    until_impulse: f64,
    impulses: u64,
    /// Samples left until the next knock.
    until_knock: f64,
    knocks: u64,
    above_stop: bool,
    /// The share of the last impulse that belongs to the next sample.
    carry: f64,
}

impl Motor {
    /// The held-out motor with this seed, at rest, in this condition.
    pub fn new(seed: u64, condition: Condition) -> Self {
        let (parameters, modes) = draw(seed);
        let knock = Random::new(seed, Stream::Knock);
        let mut motor = Motor {
            shaft_hz: parameters.shaft_hz,
            parameters,
            condition,
            modes,
            sensor_xy: Random::new(seed, Stream::SensorXy),
            sensor_z: Random::new(seed, Stream::SensorZ),
            process_hv: Random::new(seed, Stream::ProcessHv),
            process_a: Random::new(seed, Stream::ProcessA),
            slow_a: Random::new(seed, Stream::SlowA),
            slow_b: Random::new(seed, Stream::SlowB),
            revolution: Random::new(seed, Stream::Revolution),
            impulse: Random::new(seed, Stream::Impulse),
            knock,
            n: 0,
            shaft: 0.0,
            line: 0.0,
            cage: 0.0,
            slow: [0.0; 3],
            process: [0.0; 3],
            revolutions: 0,
            revolution_gain: 1.0,
            until_impulse: 1.0,
            impulses: 0,
            until_knock: 0.0,
            knocks: 0,
            above_stop: true,
            carry: 0.0,
        };
        motor.until_knock = motor.knock_interval();
        motor
    }

    /// Changes the condition from the next sample on; the motor keeps turning.
    pub fn set_condition(&mut self, condition: Condition) {
        self.condition = condition;
    }

    /// The next sample: acceleration along the sensor's x, y and z in g, gravity included.
    pub fn sample(&mut self) -> [f32; 3] {
        if self.n.is_multiple_of(SLOW) {
            self.step_slow();
        }
        let p = &self.parameters;
        let process_gain = (0.35 * self.slow[1]).exp();
        let tone_gain = (0.2 * self.slow[2]).exp();
        let [phase_a, phase_b, phase_c] = p.phase;

        let turn = self.shaft_hz / RATE_HZ;
        self.shaft += turn;
        self.cage = (self.cage + turn * p.cage_order) % 1.0;
        self.line = (self.line + 2.0 * p.line_hz / RATE_HZ) % 1.0;
        if self.shaft >= 2.0 {
            self.shaft -= 2.0;
            self.revolutions += 1;
            self.revolution_gain = (1.0 + 0.25 * self.revolution.gaussian_pair(self.revolutions).0).max(0.2);
        }
        let theta = TAU * self.shaft;

        // Imbalance: u w^2, in g, on the horizontal, vertical and axial direction of the motor.
        let omega = TAU * self.shaft_hz;
        let displacement = p.residual_um + if self.condition == Condition::Imbalance { p.imbalance_um } else { 0.0 };
        let unbalance = displacement * 1e-6 * omega * omega / STANDARD_GRAVITY;
        let mut h = unbalance * theta.cos();
        let mut v = unbalance * p.stiffness_ratio * theta.sin();
        let mut a = 0.08 * h;

        // Harmless tones.
        let misalignment = p.misalignment_g * (2.0 * theta + phase_a).cos();
        let hum = p.hum_g * (TAU * self.line).cos();
        let blade = p.blade_g * tone_gain * (p.blades * theta + phase_b).cos();
        let gear = p.gear_g * tone_gain * (p.teeth * theta + phase_c).cos();
        h += 0.6 * misalignment + 0.7 * hum + 0.8 * blade + 0.5 * gear;
        v += 0.5 * misalignment + 0.7 * hum + 0.5 * blade + 0.7 * gear;
        a += 0.7 * misalignment + 0.1 * hum + 0.6 * blade + 0.5 * gear;

        // The driven process: low-passed noise on each axis, and a force on the modes.
        let (noise_h, noise_v) = self.process_hv.gaussian_pair(self.n);
        let (noise_a, mode_noise) = self.process_a.gaussian_pair(self.n);
        for (state, noise) in self.process.iter_mut().zip([noise_h, noise_v, noise_a]) {
            *state = p.process_pole * *state + p.process_drive * noise;
        }
        h += process_gain * self.process[0];
        v += process_gain * self.process[1];
        a += process_gain * self.process[2];

        // Looseness: the foot moves until it meets its base, and strikes it.
        let mut blow = std::mem::take(&mut self.carry);
        let mut above = true;
        if self.condition == Condition::Looseness {
            let halves = (0.5 * theta + phase_b).cos() + 0.6 * (1.5 * theta + phase_c).cos();
            let harmonics =
                (theta + phase_a).cos() + 0.5 * (2.0 * theta + phase_b).cos() + 0.3 * (3.0 * theta + phase_c).cos();
            let motion = self.revolution_gain * (harmonics + p.looseness_sub * halves);
            above = motion > -p.looseness_stop;
            let moved = p.looseness_g * motion.max(-p.looseness_stop);
            v += moved;
            h += 0.4 * moved;
            a += 0.2 * moved;
            if self.above_stop && !above {
                blow += p.looseness_g * p.looseness_blow * self.revolution_gain;
            }
        }
        self.above_stop = above;

        // Impulses of the bearing fall between two samples and are shared between them.
        let passes = turn * p.defect_order;
        self.until_impulse -= passes;
        if self.until_impulse <= 0.0 {
            let late = (-self.until_impulse / passes).min(1.0); // how long ago, in samples
            let (slip, strength) = self.impulse.gaussian_pair(self.impulses);
            if self.condition == Condition::Bearing {
                let angle = match p.defect {
                    Defect::OuterRace => 0.0,
                    Defect::InnerRace => theta,
                    Defect::Ball => TAU * self.cage,
                };
                let load = (1.0 - (1.0 - angle.cos()) / (2.0 * p.load_zone)).max(0.0);
                let strength = p.bearing_g * load * load.sqrt() * (1.0 + 0.2 * strength).max(0.0);
                blow += strength * late;
                self.carry += strength * (1.0 - late);
            }
            self.impulses += 1;
            self.until_impulse += (1.0 + p.bearing_slip * slip).max(0.5);
        }

        // Knocks from outside.
        self.until_knock -= 1.0;
        if self.until_knock <= 0.0 {
            blow += p.knock_g * (0.3 + 0.7 * self.knock.uniform(2 * self.knocks + 1));
            self.knocks += 1;
            self.until_knock = self.knock_interval();
        }

        for mode in &mut self.modes {
            let ring = mode.ring(blow, mode_noise * process_gain);
            h += ring * mode.direction[0];
            v += ring * mode.direction[1];
            a += ring * mode.direction[2];
        }
        self.sense(h, v, a)
    }

    /// Mounting, gravity, which a sensor at rest shows as 1 g upwards, and the sensor itself.
    fn sense(&mut self, h: f64, v: f64, a: f64) -> [f32; 3] {
        let p = &self.parameters;
        let (h, v, a) = (p.mount_gain * h, p.mount_gain * v + 1.0, p.mount_gain * a);
        let [cos_mount, sin_mount, cos_tilt, sin_tilt] = p.mount;
        let side = cos_mount * v - sin_mount * h;
        let axes = [cos_mount * h + sin_mount * v, cos_tilt * side - sin_tilt * a, sin_tilt * side + cos_tilt * a];
        let (noise_x, noise_y) = self.sensor_xy.gaussian_pair(self.n);
        let (noise_z, _) = self.sensor_z.gaussian_pair(self.n);
        self.n += 1;
        let mut sample = [0.0; 3];
        for ((out, axis), noise) in sample.iter_mut().zip(axes).zip([noise_x, noise_y, noise_z]) {
            let steps = ((axis + p.sensor_noise_g * noise) * LSB_PER_G + 0.5).floor();
            *out = (steps / LSB_PER_G).clamp(-RANGE_G, RANGE_G) as f32;
        }
        sample
    }

    /// Every 10 ms: the speed and the levels wander.
    fn step_slow(&mut self) {
        let step = self.n / SLOW;
        let (first, second) = self.slow_a.gaussian_pair(step);
        let (third, _) = self.slow_b.gaussian_pair(step);
        for ((process, drive), seconds) in self.slow.iter_mut().zip([first, second, third]).zip([2.0, 0.7, 1.5]) {
            let keep = (-(SLOW as f64) / RATE_HZ / seconds).exp();
            *process = *process * keep + (1.0 - keep * keep).sqrt() * drive;
        }
        self.shaft_hz = self.parameters.shaft_hz * (1.0 + self.parameters.wander * self.slow[0]);
    }

    /// Samples until the next knock: exponential, so that knocks come as a Poisson process.
    fn knock_interval(&self) -> f64 {
        -(1.0 - self.knock.uniform(2 * self.knocks)).ln() * RATE_HZ / self.parameters.knock_hz.max(1e-3)
    }
}

/// The parameters of the held-out motor with this seed. The order of the draws is that of simulate.py's table.
fn draw(seed: u64) -> (Parameters, [Mode; 2]) {
    let mut d = Draw { random: Random::new(seed, Stream::Parameters), next: 0 };
    let shaft_hz = d.linear(&[(17.5, 18.5), (22.7, 24.3), (28.7, 30.3), (35.8, 38.2), (43.8, 46.2)]);
    let balls = d.choice(&[9.0, 12.0]);
    let ball_ratio = d.linear(&[(0.225, 0.245)]);
    let contact = d.linear(&[(8.0, 12.0)]).to_radians();
    let mode_hz = [d.linear(&[(560.0, 630.0)]), d.linear(&[(1015.0, 1105.0)])];
    let damping = d.linear(&[(0.031, 0.039)]);
    let mount = d.linear(&[(55.0, 85.0), (145.0, 175.0), (235.0, 265.0), (325.0, 355.0)]).to_radians();
    let tilt = d.linear(&[(-12.0, -7.0), (7.0, 12.0)]).to_radians();
    let mount_gain = d.log([(0.77, 0.88), (1.12, 1.28)]);
    let load = d.linear(&[(0.52, 0.68)]);
    let sensor_noise_g = d.linear(&[(0.0085, 0.011)]);
    let process_g = d.log([(0.0205, 0.0295), (0.051, 0.069)]);
    let process_corner_hz = d.log([(205.0, 295.0)]);
    let blades = d.choice(&[6.0, 8.0]);
    let teeth = d.choice(&[19.0, 25.0]);
    let line_hz = d.choice(&[50.0, 60.0]);
    let wander = d.linear(&[(0.001, 0.004)]);
    let stiffness_ratio = d.linear(&[(0.6, 1.0)]);
    let residual_um = d.log([(1.0, 8.0)]);
    let misalignment_g = d.log([(0.001, 0.012)]);
    let hum_g = d.log([(0.002, 0.05)]);
    let blade_g = d.log([(0.002, 0.10)]);
    let gear_g = d.log([(0.001, 0.06)]);
    let process_mode_g = d.log([(0.002, 0.02)]);
    let knock_hz = d.linear(&[(0.0, 2.0)]);
    let knock_g = d.log([(0.05, 1.0)]);
    let azimuth = [d.linear(&[(0.0, TAU)]), d.linear(&[(0.0, TAU)])];
    let axial = [d.linear(&[(0.1, 0.7)]), d.linear(&[(0.1, 0.7)])];
    let share = [1.0, d.linear(&[(0.4, 1.0)])];
    let phase = [d.linear(&[(0.0, TAU)]), d.linear(&[(0.0, TAU)]), d.linear(&[(0.0, TAU)])];
    let imbalance_um = d.log([(25.0, 110.0)]);
    let kind = d.choice(&[0.0, 1.0, 2.0]);

    let geometry = ball_ratio * contact.cos();
    let (defect, defect_order) = match kind as u8 {
        0 => (Defect::OuterRace, balls / 2.0 * (1.0 - geometry)),
        1 => (Defect::InnerRace, balls / 2.0 * (1.0 + geometry)),
        _ => (Defect::Ball, (1.0 - geometry * geometry) / ball_ratio),
    };
    let process_pole = (-TAU * process_corner_hz / RATE_HZ).exp();
    let mode = |at: usize| Mode::new(mode_hz[at], damping, azimuth[at], axial[at], share[at], process_mode_g);
    let modes = [mode(0), mode(1)];
    let parameters = Parameters {
        shaft_hz,
        defect,
        defect_order,
        cage_order: 0.5 * (1.0 - geometry),
        mount: [mount.cos(), mount.sin(), tilt.cos(), tilt.sin()],
        mount_gain,
        sensor_noise_g,
        process_pole,
        process_drive: process_g * (0.5 + 0.5 * load) * (1.0 - process_pole * process_pole).sqrt(),
        blades,
        teeth,
        line_hz,
        wander,
        stiffness_ratio,
        residual_um,
        misalignment_g,
        hum_g: hum_g * (0.6 + 0.4 * load),
        blade_g,
        gear_g: gear_g * load,
        knock_hz,
        knock_g,
        phase,
        imbalance_um,
        // Draws go on in the order of the table; fields of a struct expression are evaluated in the order written.
        bearing_g: d.log([(0.2, 0.9)]),
        bearing_slip: d.linear(&[(0.005, 0.02)]),
        load_zone: d.linear(&[(0.35, 0.5)]),
        looseness_g: d.log([(0.08, 0.35)]),
        looseness_sub: d.linear(&[(0.2, 0.6)]),
        looseness_stop: d.linear(&[(0.2, 0.6)]),
        looseness_blow: d.log([(0.3, 1.5)]),
    };
    (parameters, modes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONDITIONS: [Condition; 4] =
        [Condition::Healthy, Condition::Imbalance, Condition::Bearing, Condition::Looseness];

    /// `simulate.py --fixture` printed it: every 64th sample of a second, four motors in four conditions.
    const FIXTURE: &str = include_str!("../tests/motor.csv");

    #[test]
    fn a_motor_is_the_python_simulation_sample_for_sample() {
        let mut rows = 0;
        let mut motor = Motor::new(0, Condition::Healthy);
        let mut current = String::new();
        for line in FIXTURE.lines().filter(|line| !line.starts_with('#')) {
            let fields: Vec<&str> = line.split(',').collect();
            let [seed, condition, n, x, y, z] = fields[..] else { panic!("fixture: {line}") };
            if current != format!("{seed}{condition}") {
                current = format!("{seed}{condition}");
                let condition = CONDITIONS.into_iter().find(|known| known.label() == condition).unwrap();
                motor = Motor::new(seed.parse().unwrap(), condition);
            }
            let n: u64 = n.parse().unwrap();
            while motor.n < n {
                motor.sample();
            }
            for (ours, theirs) in motor.sample().into_iter().zip([x, y, z]) {
                let theirs: f32 = theirs.parse().unwrap();
                assert!((ours - theirs).abs() < 1e-4, "{line}: this motor gives {ours}");
            }
            rows += 1;
        }
        assert_eq!(rows, 4 * 4 * 50);
    }

    #[test]
    fn a_fault_shows_while_the_motor_turns_and_goes_when_it_is_mended() {
        for fault in [Condition::Imbalance, Condition::Bearing, Condition::Looseness] {
            let mut motor = Motor::new(5, Condition::Healthy);
            let mut healthy = Motor::new(5, Condition::Healthy);
            let difference = |motor: &mut Motor, healthy: &mut Motor| {
                let mut sum = 0.0;
                for _ in 0..3200 {
                    for (one, other) in motor.sample().into_iter().zip(healthy.sample()) {
                        sum += (one - other).powi(2);
                    }
                }
                (sum / 3200.0).sqrt()
            };
            assert_eq!(difference(&mut motor, &mut healthy), 0.0, "before");
            motor.set_condition(fault);
            assert!(difference(&mut motor, &mut healthy) > 0.02, "{fault:?}");
            motor.set_condition(Condition::Healthy);
            difference(&mut motor, &mut healthy); // the modes ring down
            assert_eq!(difference(&mut motor, &mut healthy), 0.0, "after");
        }
    }

    #[test]
    fn samples_are_steps_of_the_sensor_and_hold_gravity() {
        for condition in CONDITIONS {
            let mut motor = Motor::new(9, condition);
            let mut mean = [0.0_f64; 3];
            for _ in 0..32_000 {
                for (mean, value) in mean.iter_mut().zip(motor.sample()) {
                    assert_eq!(f64::from(value) * LSB_PER_G, (f64::from(value) * LSB_PER_G).round());
                    *mean += f64::from(value) / 32_000.0;
                }
            }
            let gravity = mean.iter().map(|value| value * value).sum::<f64>().sqrt();
            assert!((gravity - 1.0).abs() < 0.2, "{condition:?}: {gravity}");
        }
    }
}
