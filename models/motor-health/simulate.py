"""Vibration of an electric motor, as an accelerometer on its housing sees it.

A lumped physical simulation: three axes, 3,200 samples a second, in g, clipped at +-16 g and rounded to 1/256 g like a
common MEMS sensor. One motor is a set of parameters (`draw`) and a 64-bit seed; its condition (`HEALTHY`, `IMBALANCE`,
`BEARING`, `LOOSENESS`) can change while it runs. `agent/lab/src/motor.rs` is the same simulation in Rust, sample for
sample; `agent/lab/tests/motor.csv`, which `simulate.py --fixture` prints, holds the two together.

What is in the signal
---------------------
* Shaft: speed wanders slowly about its mean (first-order Gauss-Markov process).
* Imbalance: the force of an eccentric mass grows with the square of the speed, so a = u w^2 for a displacement u, on two
  radial axes 90 degrees apart, weaker on the stiffer one [1, ch. 2; 2]. Every healthy motor has a residual one.
* Bearing defect: impulses at the ball-pass frequency of the outer (BPFO) or inner race (BPFI), or at twice the ball spin
  frequency (BSF), from the geometry [1, ch. 2; 3]:
      BPFO = n/2 f (1 - g)   BPFI = n/2 f (1 + g)   BSF = f / (2 d/D) (1 - g^2)   FTF = f/2 (1 - g)   g = d/D cos(contact)
  Intervals jitter because balls slip by a percent or so [4]. Each impulse is weighted by the load where it strikes, which
  follows Stribeck's q = (1 - (1 - cos a) / 2e)^1.5 [3]: `a` turns with the shaft (inner race) or the cage (ball) or stands
  still (outer race). Impulses ring two structural modes, damped second-order resonances.
* Looseness: a foot that lifts gives harmonics of the shaft, half-order sub-harmonics and a waveform cut off on one side
  where the foot meets its base, with a blow at each contact [1, ch. 2; 5]. (The cut leaves a mean that no acceleration
  has; it falls to the front end's detrend, as gravity does.)
* Harmless in all conditions: magnetic hum at twice the line frequency, slight misalignment (2x), blade pass, gear mesh,
  noise of the driven process (its level varies; it also rings the modes), knocks from outside, gravity, sensor noise.
* Mounting: the sensor is turned about the shaft, tilted, and couples more or less stiffly.

Sources: [1] R. B. Randall, Vibration-based Condition Monitoring, Wiley 2011. [2] ISO 21940-11, rotor balancing.
[3] P. D. McFadden, J. D. Smith, "Model for the vibration produced by a single point defect in a rolling element bearing",
J. Sound and Vibration 96(1), 1984. [4] R. B. Randall, J. Antoni, "Rolling element bearing diagnostics: a tutorial",
Mechanical Systems and Signal Processing 25(2), 2011. [5] P. Goldman, A. Muszynska, "Chaotic behavior of rotor/stator
systems with rubs", J. Engineering for Gas Turbines and Power 116(3), 1994, for half-order response of a one-sided contact.
Amplitudes are choices of ours, of the order that ISO 20816 calls good (healthy) and unsatisfactory (faults).

Random numbers are counted, not drawn in sequence: number n of stream s of a seed is a pure function, so any language
gives the same ones. `Motors` runs many motors side by side as NumPy vectors, one sample of all of them at a time.
"""

import sys

import numpy as np

RATE_HZ = 3200
RANGE_G = 16.0
LSB_PER_G = 256.0
STANDARD_GRAVITY = 9.80665
CONDITIONS = ("healthy", "imbalance", "bearing", "looseness")
HEALTHY, IMBALANCE, BEARING, LOOSENESS = range(4)
OUTER, INNER, BALL = range(3)

# --- Counted random numbers -------------------------------------------------------------------------------------------

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
# Streams. A stream's numbers are indexed by sample, by slow step, by revolution, by impulse or by parameter.
(PARAMETERS, SENSOR_XY, SENSOR_Z, PROCESS_HV, PROCESS_A, SLOW_A, SLOW_B, REVOLUTION, IMPULSE, KNOCK) = range(10)
STREAMS = 10


def splitmix(z):
    """SplitMix64's output function (Steele, Lea, Flood 2014), on uint64 arrays."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def stream_base(seed, stream):
    """Where the SplitMix64 sequence of one stream of a seed starts."""
    seed = np.asarray(seed, np.uint64)
    return splitmix(seed + np.uint64((GOLDEN * (stream + 1)) & MASK))


def uniform(base, n):
    """Number `n` of a stream: uniform in [0, 1), 53 bits."""
    n = np.asarray(n, np.uint64)
    return (splitmix(base + (n + np.uint64(1)) * np.uint64(GOLDEN)) >> np.uint64(11)) * (1.0 / (1 << 53))


def gaussian_pair(base, n):
    """Pair `n` of a stream: two independent standard normal numbers (Box and Muller 1958)."""
    n = np.asarray(n, np.uint64) * np.uint64(2)
    radius = np.sqrt(-2.0 * np.log(1.0 - uniform(base, n)))
    angle = 2.0 * np.pi * uniform(base, n + np.uint64(1))
    return radius * np.cos(angle), radius * np.sin(angle)


# --- Parameters -------------------------------------------------------------------------------------------------------

# name: (kind, values of training motors, values of held-out motors). The two never overlap where both are given: a
# held-out motor differs from every training motor in speed, bearing, resonances, mounting, load and noise at once.
# Where one is given it is common to both. "linear" and "log" are spread evenly over the union of the intervals.
PARAMETER_TABLE = {
    "shaft_hz": ("linear", [(14, 17), (19, 22), (25, 28), (31, 35), (39, 43), (47, 52)],
                 [(17.5, 18.5), (22.7, 24.3), (28.7, 30.3), (35.8, 38.2), (43.8, 46.2)]),
    "balls": ("choice", [7, 8, 10, 11, 13], [9, 12]),
    "ball_ratio": ("linear", [(0.18, 0.22), (0.25, 0.30)], [(0.225, 0.245)]),
    "contact_deg": ("linear", [(0, 7), (13, 20)], [(8, 12)]),
    "mode1_hz": ("linear", [(420, 550), (640, 760)], [(560, 630)]),
    "mode2_hz": ("linear", [(850, 1000), (1120, 1400)], [(1015, 1105)]),
    "damping": ("linear", [(0.02, 0.03), (0.04, 0.06)], [(0.031, 0.039)]),
    "mount_deg": ("linear", [(0, 50), (90, 140), (180, 230), (270, 320)],
                  [(55, 85), (145, 175), (235, 265), (325, 355)]),
    "tilt_deg": ("linear", [(-6, 6)], [(-12, -7), (7, 12)]),
    "mount_gain": ("log", [(0.6, 0.75), (0.9, 1.1), (1.3, 1.6)], [(0.77, 0.88), (1.12, 1.28)]),
    "load": ("linear", [(0.15, 0.5), (0.7, 1.0)], [(0.52, 0.68)]),
    "sensor_noise_g": ("linear", [(0.004, 0.008)], [(0.0085, 0.011)]),
    "process_g": ("log", [(0.008, 0.02), (0.03, 0.05), (0.07, 0.13)], [(0.0205, 0.0295), (0.051, 0.069)]),
    "process_corner_hz": ("log", [(80, 200), (300, 500)], [(205, 295)]),
    "blades": ("choice", [5, 7, 9, 11], [6, 8]),
    "teeth": ("choice", [15, 17, 21, 23, 27], [19, 25]),
    # Common to both.
    "line_hz": ("choice", [50, 60], None),
    "wander": ("linear", [(0.001, 0.004)], None),
    "stiffness_ratio": ("linear", [(0.6, 1.0)], None),
    "residual_um": ("log", [(1.0, 8.0)], None),
    "misalignment_g": ("log", [(0.001, 0.012)], None),
    "hum_g": ("log", [(0.002, 0.05)], None),
    "blade_g": ("log", [(0.002, 0.10)], None),
    "gear_g": ("log", [(0.001, 0.06)], None),
    "process_mode_g": ("log", [(0.002, 0.02)], None),
    "knock_hz": ("linear", [(0.0, 2.0)], None),
    "knock_g": ("log", [(0.05, 1.0)], None),
    "mode1_azimuth": ("linear", [(0.0, 2.0 * np.pi)], None),
    "mode2_azimuth": ("linear", [(0.0, 2.0 * np.pi)], None),
    "mode1_axial": ("linear", [(0.1, 0.7)], None),
    "mode2_axial": ("linear", [(0.1, 0.7)], None),
    "mode2_share": ("linear", [(0.4, 1.0)], None),
    "phase_a": ("linear", [(0.0, 2.0 * np.pi)], None),
    "phase_b": ("linear", [(0.0, 2.0 * np.pi)], None),
    "phase_c": ("linear", [(0.0, 2.0 * np.pi)], None),
    # What is wrong with this motor when it is wrong.
    "imbalance_um": ("log", [(25.0, 110.0)], None),
    "bearing_kind": ("choice", [OUTER, INNER, BALL], None),
    "bearing_g": ("log", [(0.2, 0.9)], None),
    "bearing_slip": ("linear", [(0.005, 0.02)], None),
    "load_zone": ("linear", [(0.35, 0.5)], None),
    "looseness_g": ("log", [(0.08, 0.35)], None),
    "looseness_sub": ("linear", [(0.2, 0.6)], None),
    "looseness_stop": ("linear", [(0.2, 0.6)], None),
    "looseness_blow": ("log", [(0.3, 1.5)], None),
}


def spread(kind, values, u):
    """The value at `u` in [0, 1) of a list of choices or a union of intervals."""
    if kind == "choice":
        return np.asarray(values, float)[np.minimum((u * len(values)).astype(int), len(values) - 1)]
    ends = np.asarray(values, float)
    if kind == "log":
        ends = np.log(ends)
    widths = ends[:, 1] - ends[:, 0]
    position = u * widths.sum()
    result = np.empty_like(u)
    start = 0.0
    for (low, _), width in zip(ends, widths):
        inside = position >= start
        result[inside] = low + (position[inside] - start)
        start += width
    return np.exp(result) if kind == "log" else result


def draw(seeds, held_out):
    """Parameters of the motors with these seeds, each an array, from the training or the held-out side of the table."""
    base = stream_base(seeds, PARAMETERS)
    parameters = {}
    for index, (name, (kind, training, other)) in enumerate(PARAMETER_TABLE.items()):
        values = other if held_out and other is not None else training
        parameters[name] = spread(kind, values, uniform(base, index))
    return parameters


# --- The motor --------------------------------------------------------------------------------------------------------

SLOW = 32  # samples between steps of the slow processes: 10 ms


class Motors:
    """Motors side by side: `next()` gives one sample of each, [motor, axis] in g.

    `conditions` has one condition per motor and may be changed between samples.
    """

    def __init__(self, seeds, parameters, conditions):
        p = self.p = parameters
        self.conditions = np.asarray(conditions)
        count = len(self.conditions)
        self.base = [stream_base(seeds, stream) for stream in range(STREAMS)]
        self.n = 0

        zeros = lambda: np.zeros(count)
        # Turns of the shaft, modulo 2 so that half orders go on smoothly; of the line; of the cage.
        self.shaft, self.line, self.cage = zeros(), zeros(), zeros()
        self.shaft_hz = p["shaft_hz"].copy()
        # Slow Gauss-Markov processes of unit variance: speed, process level, tone level.
        self.slow = [zeros(), zeros(), zeros()]
        self.process_gain, self.tone_gain = np.ones(count), np.ones(count)
        self.process = [zeros(), zeros(), zeros()]
        # Passes of the defect left until the next impulse; impulses so far; revolutions and their strength.
        self.until_impulse = np.ones(count)
        self.impulses = np.zeros(count, np.uint64)
        self.revolutions = np.zeros(count, np.uint64)
        self.revolution_gain = np.ones(count)
        self.above_stop = np.ones(count, bool)
        self.knocks = np.zeros(count, np.uint64)
        self.until_knock = self._knock_interval()
        self.carry = zeros()
        self.mode_state = [[zeros(), zeros()], [zeros(), zeros()]]

        # Constants of the equations.
        pi2 = 2.0 * np.pi
        geometry = p["ball_ratio"] * np.cos(np.deg2rad(p["contact_deg"]))
        outer = p["balls"] / 2.0 * (1.0 - geometry)
        inner = p["balls"] / 2.0 * (1.0 + geometry)
        ball = (1.0 - geometry * geometry) / p["ball_ratio"]  # twice the spin frequency: both races are struck
        self.defect_order = np.choose(p["bearing_kind"].astype(int), [outer, inner, ball])
        self.cage_order = 0.5 * (1.0 - geometry)
        self.modes = []
        for mode, share in (("mode1", np.ones(count)), ("mode2", p["mode2_share"])):
            angle = pi2 * p[mode + "_hz"] / RATE_HZ
            radius = np.exp(-p["damping"] * angle)
            axial = p[mode + "_axial"]
            radial = np.sqrt(1.0 - axial * axial)
            direction = (radial * np.cos(p[mode + "_azimuth"]), radial * np.sin(p[mode + "_azimuth"]), axial)
            # `sin(angle)` makes the response to a unit impulse peak near 1; the noise gain makes that to unit noise unit.
            noise = p["process_mode_g"] * np.sqrt(2.0 * (1.0 - radius * radius))
            self.modes.append((2.0 * radius * np.cos(angle), radius * radius, share * np.sin(angle), noise, direction))
        self.process_pole = np.exp(-pi2 * p["process_corner_hz"] / RATE_HZ)
        self.process_drive = p["process_g"] * (0.5 + 0.5 * p["load"]) * np.sqrt(1.0 - self.process_pole**2)
        self.hum = p["hum_g"] * (0.6 + 0.4 * p["load"])
        self.gear = p["gear_g"] * p["load"]
        mount, tilt = np.deg2rad(p["mount_deg"]), np.deg2rad(p["tilt_deg"])
        self.mount = np.cos(mount), np.sin(mount), np.cos(tilt), np.sin(tilt)

    def _knock_interval(self):
        """Samples until the next knock: exponential, so that knocks come as a Poisson process."""
        u = uniform(self.base[KNOCK], self.knocks * np.uint64(2))
        return -np.log(1.0 - u) * RATE_HZ / np.maximum(self.p["knock_hz"], 1e-3)

    def _step_slow(self):
        """Every 10 ms: the speed and the levels wander."""
        p, step = self.p, self.n // SLOW
        first, second = gaussian_pair(self.base[SLOW_A], step)
        third, _ = gaussian_pair(self.base[SLOW_B], step)
        for process, drive, seconds in zip(self.slow, (first, second, third), (2.0, 0.7, 1.5)):
            keep = np.exp(-SLOW / RATE_HZ / seconds)
            process *= keep
            process += np.sqrt(1.0 - keep * keep) * drive
        self.shaft_hz = p["shaft_hz"] * (1.0 + p["wander"] * self.slow[0])
        self.process_gain = np.exp(0.35 * self.slow[1])
        self.tone_gain = np.exp(0.2 * self.slow[2])

    def next(self):
        p, n, pi2 = self.p, self.n, 2.0 * np.pi
        if n % SLOW == 0:
            self._step_slow()
        imbalanced = self.conditions == IMBALANCE
        defective = self.conditions == BEARING
        loose = self.conditions == LOOSENESS

        # Phases.
        turn = self.shaft_hz / RATE_HZ
        self.shaft += turn
        self.cage = (self.cage + turn * self.cage_order) % 1.0
        self.line = (self.line + 2.0 * p["line_hz"] / RATE_HZ) % 1.0
        wrapped = self.shaft >= 2.0
        self.shaft[wrapped] -= 2.0
        # A new strength every two revolutions, when the half order starts again.
        if wrapped.any():
            self.revolutions += wrapped
            strength, _ = gaussian_pair(self.base[REVOLUTION], self.revolutions)
            self.revolution_gain = np.where(wrapped, np.maximum(1.0 + 0.25 * strength, 0.2), self.revolution_gain)
        theta = pi2 * self.shaft

        # Imbalance: u w^2, in g.
        omega = pi2 * self.shaft_hz
        displacement = p["residual_um"] + np.where(imbalanced, p["imbalance_um"], 0.0)
        unbalance = displacement * 1e-6 * omega * omega / STANDARD_GRAVITY
        h = unbalance * np.cos(theta)
        v = unbalance * p["stiffness_ratio"] * np.sin(theta)
        a = 0.08 * h

        # Harmless tones.
        misalignment = p["misalignment_g"] * np.cos(2.0 * theta + p["phase_a"])
        hum = self.hum * np.cos(pi2 * self.line)
        blade = p["blade_g"] * self.tone_gain * np.cos(p["blades"] * theta + p["phase_b"])
        gear = self.gear * self.tone_gain * np.cos(p["teeth"] * theta + p["phase_c"])
        h += 0.6 * misalignment + 0.7 * hum + 0.8 * blade + 0.5 * gear
        v += 0.5 * misalignment + 0.7 * hum + 0.5 * blade + 0.7 * gear
        a += 0.7 * misalignment + 0.1 * hum + 0.6 * blade + 0.5 * gear

        # The driven process: low-passed noise on each axis, and a force on the modes.
        noise_h, noise_v = gaussian_pair(self.base[PROCESS_HV], n)
        noise_a, mode_noise = gaussian_pair(self.base[PROCESS_A], n)
        for axis, noise in enumerate((noise_h, noise_v, noise_a)):
            self.process[axis] = self.process_pole * self.process[axis] + self.process_drive * noise
        h += self.process_gain * self.process[0]
        v += self.process_gain * self.process[1]
        a += self.process_gain * self.process[2]
        mode_noise = mode_noise * self.process_gain

        # Looseness: the foot moves until it meets its base, and strikes it.
        blow = self.carry
        self.carry = np.zeros_like(blow)
        if loose.any():
            sub = p["looseness_sub"]
            motion = self.revolution_gain * (
                np.cos(theta + p["phase_a"]) + 0.5 * np.cos(2.0 * theta + p["phase_b"])
                + 0.3 * np.cos(3.0 * theta + p["phase_c"])
                + sub * (np.cos(0.5 * theta + p["phase_b"]) + 0.6 * np.cos(1.5 * theta + p["phase_c"])))
            above = motion > -p["looseness_stop"]
            strikes = loose & self.above_stop & ~above
            self.above_stop = np.where(loose, above, True)
            motion = np.maximum(motion, -p["looseness_stop"]) * np.where(loose, p["looseness_g"], 0.0)
            v += motion
            h += 0.4 * motion
            a += 0.2 * motion
            blow = blow + np.where(strikes, p["looseness_g"] * p["looseness_blow"] * self.revolution_gain, 0.0)

        # Impulses fall between two samples and are shared between them.
        passes = turn * self.defect_order
        self.until_impulse -= passes
        due = self.until_impulse <= 0.0
        if due.any():
            late = np.minimum(-self.until_impulse / passes, 1.0)  # how long ago, in samples
            slip, spread_of_strength = gaussian_pair(self.base[IMPULSE], self.impulses)
            angle = pi2 * np.choose(p["bearing_kind"].astype(int), [0.0 * self.shaft, self.shaft, self.cage])
            load = np.maximum(1.0 - (1.0 - np.cos(angle)) / (2.0 * p["load_zone"]), 0.0)
            strength = p["bearing_g"] * load * np.sqrt(load) * np.maximum(1.0 + 0.2 * spread_of_strength, 0.0)
            strength = np.where(due & defective, strength, 0.0)
            blow = blow + strength * late
            self.carry = self.carry + strength * (1.0 - late)
            self.impulses += due
            interval = np.maximum(1.0 + p["bearing_slip"] * slip, 0.5)
            self.until_impulse = np.where(due, self.until_impulse + interval, self.until_impulse)

        # Knocks from outside.
        self.until_knock -= 1.0
        knocked = self.until_knock <= 0.0
        if knocked.any():
            hardness = uniform(self.base[KNOCK], self.knocks * np.uint64(2) + np.uint64(1))
            blow = blow + np.where(knocked, p["knock_g"] * (0.3 + 0.7 * hardness), 0.0)
            self.knocks += knocked
            self.until_knock = np.where(knocked, self._knock_interval(), self.until_knock)

        # Structural modes.
        for state, (twice_cos, square, gain, noise, direction) in zip(self.mode_state, self.modes):
            ring = twice_cos * state[0] - square * state[1] + gain * (blow + noise * mode_noise)
            state[1] = state[0]
            state[0] = ring
            h += ring * direction[0]
            v += ring * direction[1]
            a += ring * direction[2]

        # Mounting, and gravity, which a sensor at rest shows as 1 g upwards.
        h, v, a = p["mount_gain"] * h, p["mount_gain"] * v + 1.0, p["mount_gain"] * a
        cos_mount, sin_mount, cos_tilt, sin_tilt = self.mount
        x = cos_mount * h + sin_mount * v
        side = cos_mount * v - sin_mount * h
        y = cos_tilt * side - sin_tilt * a
        z = sin_tilt * side + cos_tilt * a
        noise_x, noise_y = gaussian_pair(self.base[SENSOR_XY], n)
        noise_z, _ = gaussian_pair(self.base[SENSOR_Z], n)
        sample = np.stack([x, y, z], -1) + p["sensor_noise_g"][:, None] * np.stack([noise_x, noise_y, noise_z], -1)
        self.n += 1
        return np.clip(np.floor(sample * LSB_PER_G + 0.5) / LSB_PER_G, -RANGE_G, RANGE_G)


def record(seeds, held_out, conditions, windows, length, gap, settle=RATE_HZ):
    """Windows of `length` samples, `gap` samples apart, after `settle` samples: [motor, window, sample, axis] float32."""
    seeds = np.asarray(seeds, np.uint64)
    with np.errstate(over="ignore"):
        motors = Motors(seeds, draw(seeds, held_out), conditions)
        result = np.empty((len(seeds), windows, length, 3), np.float32)
        for _ in range(settle):
            motors.next()
        for window in range(windows):
            for sample in range(length):
                result[:, window, sample] = motors.next()
            for _ in range(gap):
                motors.next()
    return result


def fixture(out):
    """Samples of held-out motors in every condition, as text, for the test of the Rust port."""
    print("# seed,condition,sample,x,y,z (g); from: python models/motor-health/simulate.py --fixture", file=out)
    seeds = np.repeat(np.asarray([1, 2, 3, 2**63 + 7], np.uint64), len(CONDITIONS))
    conditions = np.tile(np.arange(len(CONDITIONS)), 4)
    with np.errstate(over="ignore"):
        motors = Motors(seeds, draw(seeds, True), conditions)
        samples = np.stack([motors.next() for _ in range(RATE_HZ)], 1)
    for seed, condition, series in zip(seeds, conditions, samples):
        for n in range(0, RATE_HZ, 64):  # every 64th of a second: drift of any phase shows
            print(seed, CONDITIONS[condition], n, *(f"{value:.8f}" for value in series[n]), sep=",", file=out)


if __name__ == "__main__":
    if sys.argv[1:] != ["--fixture"]:
        sys.exit("usage: simulate.py --fixture > agent/lab/tests/motor.csv")
    fixture(sys.stdout)
