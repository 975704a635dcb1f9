//! How steps are written, and what the crate says about those that cannot be done.

use limpet_signal::{
    Detrend, Frame, FrontEnd, FrontEndError, Log, Mel, Mfcc, Numbers, PowerSpectrum, ScaleOffset, Statistic, Step,
    WindowFunction,
};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Debug, PartialEq)]
struct Manifest {
    front_end: Vec<Step>,
}

fn parse(front_end: &str) -> Result<Vec<Step>, toml::de::Error> {
    toml::from_str::<Manifest>(&format!("front_end = [{front_end}]")).map(|manifest| manifest.front_end)
}

/// The front end of 16 kHz mono with windows of one frame.
fn build(front_end: &str) -> Result<FrontEnd, FrontEndError> {
    FrontEnd::new(&parse(front_end).expect("the steps are well written"), 16_000.0, 1, 1, 1)
}

fn refusal(front_end: &str) -> String {
    build(front_end).expect_err("it has to be refused").to_string()
}

#[test]
fn every_step_reads_as_the_guide_writes_it() {
    let steps = parse(
        r#"{ scale_offset = { scale = 2.0, offset = -1.0 } }, { scale_offset = { scale = [1, 2.5] } },
           { pre_emphasis = 1 }, { frame = { length = 1024, hop = 512, window = "hann_periodic" } },
           { frame = { length = 4, hop = 2 } }, { detrend = "constant" }, { detrend = "linear" },
           { window = "hamming_symmetric" }, { power_spectrum = {} },
           { power_spectrum = { divide_by = 1024, fft_length = 2048 } },
           { mel = { bands = 40, low_hz = 0, high_hz = 8000 } }, { log10 = {} },
           { ln = { floor = 1e-6, scale = 10.0, offset = 52.0, divide = 64.0, clip = [0.0, 1.0] } },
           { mfcc = { coefficients = 13 } }, { statistics = ["rms", "peak", "crest", "kurtosis"] }"#,
    )
    .expect("it parses");
    let log = Log { floor: 1e-6, scale: 10.0, offset: 52.0, divide: 64.0, clip: Some([0.0, 1.0]) };
    let expected = [
        Step::ScaleOffset(ScaleOffset { scale: Numbers::One(2.0), offset: Numbers::One(-1.0) }),
        Step::ScaleOffset(ScaleOffset { scale: Numbers::Each(vec![1.0, 2.5]), offset: Numbers::One(0.0) }),
        Step::PreEmphasis(1.0),
        Step::Frame(Frame { length: 1024, hop: 512, window: WindowFunction::HannPeriodic }),
        Step::Frame(Frame { length: 4, hop: 2, window: WindowFunction::Rectangular }),
        Step::Detrend(Detrend::Constant),
        Step::Detrend(Detrend::Linear),
        Step::Window(WindowFunction::HammingSymmetric),
        Step::PowerSpectrum(PowerSpectrum { divide_by: 1.0, fft_length: None }),
        Step::PowerSpectrum(PowerSpectrum { divide_by: 1024.0, fft_length: Some(2048) }),
        Step::Mel(Mel { bands: 40, low_hz: 0.0, high_hz: 8000.0 }),
        Step::Log10(Log { floor: 1e-30, scale: 1.0, offset: 0.0, divide: 1.0, clip: None }),
        Step::Ln(log),
        Step::Mfcc(Mfcc { coefficients: 13 }),
        Step::Statistics(vec![Statistic::Rms, Statistic::Peak, Statistic::Crest, Statistic::Kurtosis]),
    ];
    assert_eq!(steps, expected);
}

#[test]
fn what_is_written_is_read_back_the_same() {
    let manifest = Manifest {
        front_end: vec![
            Step::ScaleOffset(ScaleOffset { scale: Numbers::Each(vec![0.5, 2.0]), offset: Numbers::One(0.0) }),
            Step::PreEmphasis(0.96875),
            Step::Frame(Frame { length: 64, hop: 32, window: WindowFunction::Rectangular }),
            Step::Detrend(Detrend::Linear),
            Step::Window(WindowFunction::HannSymmetric),
            Step::PowerSpectrum(PowerSpectrum { divide_by: 64.0, fft_length: None }),
            Step::Mel(Mel { bands: 8, low_hz: 20.0, high_hz: 4000.0 }),
            // Not the default floor: serde_json reads 1e-30 as its neighbor, unless it is built with float_roundtrip.
            Step::Log10(Log { floor: 1e-3, clip: Some([0.0, 1.0]), ..Log::default() }),
            Step::Mfcc(Mfcc { coefficients: 4 }),
            Step::Statistics(vec![Statistic::Crest]),
        ],
    };
    let text = toml::to_string(&manifest).expect("it can be written");
    assert_eq!(toml::from_str::<Manifest>(&text).expect("it can be read"), manifest, "{text}");
    let json = serde_json::to_string(&manifest).expect("it can be written");
    assert_eq!(serde_json::from_str::<Manifest>(&json).expect("it can be read"), manifest, "{json}");
}

/// The guide ships; an example in it that does not parse would be worse than none.
#[test]
fn the_guides_examples_parse() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/front-end.md");
    let guide = std::fs::read_to_string(path).expect("docs/front-end.md is part of the repository");
    let mut parsed = Vec::new();
    for line in guide.lines() {
        // Every second piece between backticks is code; in a table a bar in code is escaped.
        for code in line.split('`').skip(1).step_by(2) {
            if code.starts_with("{ ") && !code.contains('…') {
                let steps = parse(code).unwrap_or_else(|error| panic!("{code}: {error}"));
                parsed.push(steps[0].name());
            }
        }
    }
    parsed.sort_unstable();
    parsed.dedup();
    let all = [
        "detrend",
        "frame",
        "log10",
        "mel",
        "mfcc",
        "power_spectrum",
        "pre_emphasis",
        "scale_offset",
        "statistics",
        "window",
    ];
    assert_eq!(parsed, all, "every step but ln, which is written like log10, has an example");
}

#[test]
fn names_are_the_ones_written() {
    for text in [
        r#"{ scale_offset = {} }"#,
        r#"{ pre_emphasis = 0.5 }"#,
        r#"{ frame = { length = 1, hop = 1 } }"#,
        r#"{ detrend = "linear" }"#,
        r#"{ window = "rectangular" }"#,
        r#"{ power_spectrum = {} }"#,
        r#"{ mel = { bands = 1, low_hz = 0, high_hz = 1 } }"#,
        r#"{ log10 = {} }"#,
        r#"{ ln = {} }"#,
        r#"{ mfcc = { coefficients = 1 } }"#,
        r#"{ statistics = ["rms"] }"#,
    ] {
        let steps = parse(text).expect("it parses");
        assert!(text.contains(&format!("{{ {} = ", steps[0].name())), "{text}: {}", steps[0].name());
    }
    for function in ["rectangular", "hann_periodic", "hann_symmetric", "hamming_periodic", "hamming_symmetric"] {
        let steps = parse(&format!("{{ window = {function:?} }}")).expect("it parses");
        assert!(matches!(steps[0], Step::Window(parsed) if parsed.name() == function));
    }
    for statistic in ["rms", "peak", "crest", "kurtosis"] {
        let steps = parse(&format!("{{ statistics = [{statistic:?}] }}")).expect("it parses");
        assert!(matches!(&steps[0], Step::Statistics(parsed) if parsed[0].name() == statistic));
    }
}

#[test]
fn unknown_keys_and_wrong_types_are_errors() {
    for (text, expected) in [
        ("{ mels = { bands = 4 } }", "unknown variant `mels`"),
        ("{ mel = { bands = 4, low_hz = 0, high_hz = 8000, hertz = 3 } }", "unknown field `hertz`"),
        ("{ frame = { length = 4, hop = 2, windw = \"hann_periodic\" } }", "unknown field `windw`"),
        ("{ log10 = { floor = 1e-3, base = 2 } }", "unknown field `base`"),
        ("{ frame = { length = 4 } }", "missing field `hop`"),
        ("{ frame = { length = -4, hop = 2 } }", "-4"),
        ("{ window = \"hann\" }", "unknown variant `hann`"),
        ("{ scale_offset = { scale = \"2\" } }", "a number or a list of numbers"),
        ("{ statistics = [\"mean\"] }", "unknown variant `mean`"),
    ] {
        let message = parse(text).expect_err("it has to be refused").to_string();
        assert!(message.contains(expected), "{text}: {message}");
    }
}

#[test]
fn a_refusal_names_step_key_value_and_what_was_expected() {
    let frame = r#"{ frame = { length = 1024, hop = 512 } }"#;
    let spectrum = "{ power_spectrum = {} }";
    let mel = "{ mel = { bands = 40, low_hz = 0, high_hz = 8000 } }";
    for (front_end, expected) in [
        (
            format!(
                "{{ pre_emphasis = 0.97 }}, {frame}, {spectrum}, {{ mel = {{ bands = 40, low_hz = 0, high_hz = 9000 }} }}"
            ),
            "front_end step 4 (mel): high_hz = 9000 lies above half the sample rate, 8000",
        ),
        (
            format!("{frame}, {spectrum}, {{ mel = {{ bands = 0, low_hz = 0, high_hz = 8000 }} }}"),
            "front_end step 3 (mel): bands = 0: expected 1 to 4096",
        ),
        (
            format!("{frame}, {spectrum}, {{ mel = {{ bands = 4, low_hz = -1, high_hz = 8000 }} }}"),
            "front_end step 3 (mel): low_hz = -1: expected a frequency of at least 0",
        ),
        (
            format!("{frame}, {spectrum}, {{ mel = {{ bands = 4, low_hz = 500, high_hz = nan }} }}"),
            "front_end step 3 (mel): high_hz = NaN: expected a frequency above low_hz = 500",
        ),
        (format!("{frame}, {mel}"), "front_end step 2 (mel): needs a power spectrum, but gets a frame"),
        (
            format!("{frame}, {spectrum}, {{ ln = {{}} }}, {mel}"),
            "front_end step 4 (mel): needs a power spectrum, but gets a logarithm",
        ),
        (spectrum.to_owned(), "front_end step 1 (power_spectrum): works on frames, and no frame step stands before it"),
        (
            format!("{frame}, {{ power_spectrum = {{ fft_length = 512 }} }}"),
            "front_end step 2 (power_spectrum): fft_length = 512: expected at least the frame's length, 1024, and at most 1048576",
        ),
        (
            format!("{frame}, {{ power_spectrum = {{ divide_by = 0 }} }}"),
            "front_end step 2 (power_spectrum): divide_by = 0: expected a number above 0",
        ),
        (
            format!("{frame}, {spectrum}, {{ detrend = \"linear\" }}"),
            "front_end step 3 (detrend): needs a frame, but gets a power spectrum: put detrend right behind the frame step",
        ),
        (
            r#"{ frame = { length = 8, hop = 4, window = "hann_periodic" } }, { detrend = "constant" }"#.to_owned(),
            "front_end step 2 (detrend): the frame is already multiplied by hann_periodic: leave window out of the frame step and put a window step behind detrend",
        ),
        (
            r#"{ frame = { length = 8, hop = 4, window = "hann_periodic" } }, { window = "hann_periodic" }"#.to_owned(),
            "front_end step 2 (window): the frame is already multiplied by hann_periodic: expected one window function",
        ),
        (
            format!("{frame}, {frame}"),
            "front_end step 2 (frame): samples are already cut into frames: expected one frame step",
        ),
        (
            format!("{frame}, {{ pre_emphasis = 0.5 }}"),
            "front_end step 2 (pre_emphasis): works on samples: it has to stand before the frame step",
        ),
        (
            "{ pre_emphasis = inf }".to_owned(),
            "front_end step 1 (pre_emphasis): pre_emphasis = inf: expected a finite 32-bit number",
        ),
        (
            "{ frame = { length = 0, hop = 4 } }".to_owned(),
            "front_end step 1 (frame): length = 0: expected 1 to 1048576",
        ),
        (
            "{ frame = { length = 4, hop = 0 } }".to_owned(),
            "front_end step 1 (frame): hop = 0: expected 1 to 1073741824",
        ),
        (
            "{ scale_offset = { scale = [1, 2] } }".to_owned(),
            "front_end step 1 (scale_offset): scale has 2 numbers for 1 channel: expected one number, or one per channel",
        ),
        (
            format!("{frame}, {{ scale_offset = {{ offset = [1, 2] }} }}"),
            "front_end step 2 (scale_offset): offset has 2 numbers for the 1024 elements of the vector: expected one number, or one per element",
        ),
        (
            format!("{frame}, {{ log10 = {{ clip = [1, 0] }} }}"),
            "front_end step 2 (log10): clip = [1, 0]: expected the first number to be below the second",
        ),
        (
            format!("{frame}, {{ ln = {{ divide = 0 }} }}"),
            "front_end step 2 (ln): divide = 0: expected a number other than 0",
        ),
        (
            format!("{frame}, {{ ln = {{ floor = -1 }} }}"),
            "front_end step 2 (ln): floor = -1: expected a number of at least 0",
        ),
        (
            format!("{frame}, {spectrum}, {mel}, {{ mfcc = {{ coefficients = 13 }} }}"),
            "front_end step 4 (mfcc): needs log-mel bands (mel, then ln or log10), but gets mel bands",
        ),
        (
            format!("{frame}, {spectrum}, {mel}, {{ ln = {{}} }}, {{ mfcc = {{ coefficients = 41 }} }}"),
            "front_end step 5 (mfcc): coefficients = 41: expected 1 to 40, the number of mel bands",
        ),
        (
            format!("{frame}, {{ statistics = [] }}"),
            "front_end step 2 (statistics): names no statistic: expected some of rms, peak, crest, kurtosis",
        ),
        (format!("{frame}, {{ statistics = [\"rms\", \"rms\"] }}"), "front_end step 2 (statistics): names rms twice"),
    ] {
        assert_eq!(refusal(&front_end), expected, "{front_end}");
    }
}

#[test]
fn rate_channels_and_window_are_checked() {
    let steps = parse("{ frame = { length = 16, hop = 1000 } }").expect("it parses");
    let message = |rate, channels, frames, hop| {
        FrontEnd::new(&steps, rate, channels, frames, hop).expect_err("it has to be refused").to_string()
    };
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(message(rate, 1, 1, 1), format!("rate_hz = {rate}: expected samples a second, from 1e-9 to 1e12"));
    }
    assert_eq!(message(1.0, 0, 1, 1), "channels: found 0, expected 1 to 4096");
    assert_eq!(message(1.0, 1, 0, 1), "window: frames = 0, expected at least 1");
    assert_eq!(message(1.0, 1, 1, 0), "window: hop = 0, expected at least 1");
    assert_eq!(
        message(1.0, 1, 2_000_000, 1),
        "window: frames = 2000000 makes 1999999016 samples, expected at most 1073741824"
    );
    assert_eq!(
        message(1.0, 1, 1, usize::MAX),
        format!("window: hop = {} makes {}000 samples, expected at most 1073741824", usize::MAX, usize::MAX)
    );
    assert_eq!(
        message(1.0, 4, 100_000, 1),
        "window: 100000 frames of 4 channels with 16 elements each make 6400000 features, expected at most 4194304"
    );
    let long = [Step::Frame(Frame { length: 1 << 20, hop: 1, window: WindowFunction::Rectangular })];
    assert_eq!(
        FrontEnd::new(&long, 1.0, 4096, 1, 1).expect_err("it has to be refused").to_string(),
        "front_end step 1 (frame): length = 1048576 times 4096 channels makes 4294967296 values, expected at most 4194304"
    );
}
