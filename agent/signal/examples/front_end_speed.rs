//! How long the front end takes for a frame, measured with the log-mel front end of a wake-word model: frames of 1024
//! samples, 512 apart, 40 mel bands, windows of 30 frames. Each measurement is one push of a hop, which completes one
//! frame and one window.
//!
//! `cargo run -p limpet-signal --example front_end_speed [-- --json]` prints the processor, the instruction sets that
//! matter, and the median and 99th percentile in microseconds; with `--json` one line for `scripts/bench`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use limpet_signal::{Frame, FrontEnd, Log, Mel, PowerSpectrum, Step, WindowFunction};

const RATE_HZ: f64 = 16_000.0;
const LENGTH: usize = 1024;
const HOP: usize = 512;
const BANDS: usize = 40;
const WARM_UP: usize = 2_000;
const FRAMES: usize = 20_000;

fn main() {
    let json = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [flag] if flag == "--json" => true,
        other => {
            eprintln!("front_end_speed: found the arguments {other:?}, expected none or --json");
            std::process::exit(64);
        }
    };
    let steps = [
        Step::PreEmphasis(0.96875),
        Step::Frame(Frame { length: LENGTH, hop: HOP, window: WindowFunction::HammingSymmetric }),
        Step::PowerSpectrum(PowerSpectrum { divide_by: 1024.0, fft_length: None }),
        Step::Mel(Mel { bands: BANDS, low_hz: 0.0, high_hz: RATE_HZ / 2.0 }),
        Step::Log10(Log { scale: 10.0, offset: 52.0, divide: 64.0, clip: Some([0.0, 1.0]), ..Log::default() }),
    ];
    let front_end = FrontEnd::new(&steps, RATE_HZ, 1, 30, 1).expect("the steps above are in order");
    let mut stream = front_end.stream();

    // A second of noise, so that no branch and no logarithm sees the same number each time.
    let mut state = 1_u32;
    let noise: Vec<f32> = (0..HOP * 31)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        })
        .collect();
    let mut times = Vec::with_capacity(FRAMES);
    let mut windows = 0;
    for (frame, hop) in noise.chunks_exact(HOP).cycle().take(WARM_UP + FRAMES).enumerate() {
        let start = Instant::now();
        stream
            .push(black_box(hop), |window| {
                black_box(window.features);
                windows += 1;
            })
            .expect("one channel is always whole");
        if frame >= WARM_UP {
            times.push(start.elapsed());
        }
    }
    assert!(windows >= FRAMES, "every measured push completes a window");
    times.sort_unstable();
    let microseconds = |time: Duration| time.as_secs_f64() * 1e6;
    let (median, p99) = (microseconds(times[FRAMES / 2]), microseconds(times[FRAMES * 99 / 100]));

    let (cpu, sets) = processor();
    if json {
        let line = serde_json::json!({
            "benchmark": "front_end",
            "cpu": cpu,
            "instruction_sets": sets,
            "frame_length": LENGTH,
            "hop": HOP,
            "bands": BANDS,
            "frames": FRAMES,
            "median_us": (median * 100.0).round() / 100.0,
            "p99_us": (p99 * 100.0).round() / 100.0,
        });
        println!("{line}");
    } else {
        println!("{cpu}, instruction sets {}", if sets.is_empty() { "unknown".to_owned() } else { sets.join(" ") });
        println!("{LENGTH}-sample frame, {BANDS} mel bands, {FRAMES} frames: median {median:.2} µs, p99 {p99:.2} µs");
    }
}

/// The processor's name and those of its instruction sets that matter here, as Linux tells them.
fn processor() -> (String, Vec<&'static str>) {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        info.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    // ARM boards name the board instead, with a zero at the end.
    let board = || {
        let model = std::fs::read_to_string("/proc/device-tree/model").ok()?;
        Some(model.trim_end_matches('\0').to_owned())
    };
    let cpu = field("model name").or_else(board).unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let flags = field("flags").or_else(|| field("Features")).unwrap_or_default();
    let sets = [
        ("sse4_1", "sse4.1"),
        ("avx", "avx"),
        ("fma", "fma"),
        ("avx2", "avx2"),
        ("avx512f", "avx512"),
        ("neon", "neon"),
        ("asimd", "neon"),
    ];
    let sets = sets.iter().filter(|(flag, _)| flags.split_whitespace().any(|f| f == *flag)).map(|(_, name)| *name);
    (cpu, sets.collect())
}
