//! What a stream promises whatever the front end: pieces, gaps, indices, bad samples, mad specifications.

mod common;

use common::{RATE_HZ, front_end, window_function};
use limpet_signal::{
    Detrend, Frame, FrontEnd, Log, Mel, Mfcc, NotWholeSamples, Numbers, PowerSpectrum, ScaleOffset, Statistic, Step,
    Stream, WindowFunction,
};
use proptest::prelude::*;

/// First index, last index and the features' bits: NaNs have to be equal too. Which NaN it is is not promised (the
/// compiler may exchange the operands of a sum), so all count as one.
type Bits = (u64, u64, Vec<u32>);

fn push(stream: &mut Stream, samples: &[f32]) -> Vec<Bits> {
    let mut windows = Vec::new();
    stream
        .push(samples, |window| {
            let bits = window.features.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() });
            windows.push((window.first, window.last, bits.collect()));
        })
        .expect("whole samples");
    windows
}

fn frame(length: usize, hop: usize) -> Step {
    Step::Frame(Frame { length, hop, window: WindowFunction::Rectangular })
}

fn ramp(len: usize) -> Vec<f32> {
    (0..len).map(|i| i as f32).collect()
}

fn floats(features: &[Bits]) -> Vec<Vec<f32>> {
    features.iter().map(|(_, _, bits)| bits.iter().map(|bits| f32::from_bits(*bits)).collect()).collect()
}

#[test]
fn features_lie_by_frame_then_channel_then_element() {
    let front_end = FrontEnd::new(&[frame(3, 2)], 1.0, 2, 2, 1).expect("it builds");
    assert_eq!(front_end.feature_shape(), [2, 2, 3]);
    assert_eq!((front_end.channels(), front_end.features_len()), (2, 12));
    assert_eq!((front_end.samples_per_window(), front_end.samples_per_hop()), (5, 2));
    // Channel 0 holds 0, 2, 4, …; channel 1 holds 1, 3, 5, ….
    let windows = floats(&push(&mut front_end.stream(), &ramp(10)));
    assert_eq!(windows, [[0.0, 2.0, 4.0, 1.0, 3.0, 5.0, 4.0, 6.0, 8.0, 5.0, 7.0, 9.0]]);
}

#[test]
fn without_a_frame_step_windows_are_of_samples() {
    let front_end = FrontEnd::new(&[Step::PreEmphasis(1.0)], 1.0, 2, 3, 1).expect("it builds");
    assert_eq!(front_end.feature_shape(), [3, 2, 1]);
    assert_eq!((front_end.samples_per_window(), front_end.samples_per_hop()), (3, 1));
    let windows = push(&mut front_end.stream(), &[1.0, 10.0, 2.0, 30.0, 4.0, 60.0, 7.0, 100.0]);
    assert_eq!(floats(&windows), [[1.0, 10.0, 1.0, 20.0, 2.0, 30.0], [1.0, 20.0, 2.0, 30.0, 3.0, 40.0]]);
    assert_eq!((windows[1].0, windows[1].1), (1, 3));
}

#[test]
fn a_hop_longer_than_the_frame_skips_samples() {
    let front_end = FrontEnd::new(&[Step::PreEmphasis(1.0), frame(2, 5)], 1.0, 1, 2, 2).expect("it builds");
    assert_eq!((front_end.samples_per_window(), front_end.samples_per_hop()), (7, 10));
    let squares: Vec<f32> = (0..20).map(|i| (i * i) as f32).collect();
    let windows = push(&mut front_end.stream(), &squares);
    // Pre-emphasis of n² is 2n − 1, also right behind skipped samples.
    assert_eq!(floats(&windows), [[0.0, 1.0, 9.0, 11.0], [19.0, 21.0, 29.0, 31.0]]);
    assert_eq!((windows[1].0, windows[1].1), (10, 16));
}

#[test]
fn a_hop_longer_than_the_window_leaves_frames_out() {
    let front_end = FrontEnd::new(&[frame(2, 2)], 1.0, 1, 2, 5).expect("it builds");
    let windows = floats(&push(&mut front_end.stream(), &ramp(30)));
    assert_eq!(windows, [[0.0, 1.0, 2.0, 3.0], [10.0, 11.0, 12.0, 13.0], [20.0, 21.0, 22.0, 23.0]]);
    let front_end = FrontEnd::new(&[], 1.0, 1, 3, 10).expect("it builds");
    let windows = floats(&push(&mut front_end.stream(), &ramp(30)));
    assert_eq!(windows, [[0.0, 1.0, 2.0], [10.0, 11.0, 12.0], [20.0, 21.0, 22.0]]);
}

#[test]
fn a_gap_resets_the_window() {
    let front_end = FrontEnd::new(&[Step::PreEmphasis(1.0), frame(2, 1)], 1.0, 1, 2, 1).expect("it builds");
    let mut stream = front_end.stream();
    assert_eq!(push(&mut stream, &[1.0, 2.0]), []);
    assert_eq!((stream.next_index(), stream.samples_to_next_window()), (2, 1));
    stream.reset(100);
    assert_eq!((stream.next_index(), stream.samples_to_next_window()), (100, 3));
    assert_eq!(push(&mut stream, &[5.0, 6.0]), []);
    let windows = push(&mut stream, &[8.0]);
    assert_eq!((windows[0].0, windows[0].1), (100, 102));
    // 5, not 3: the filter has forgotten the sample before the gap.
    assert_eq!(floats(&windows), [[5.0, 1.0, 1.0, 2.0]]);
}

#[test]
fn a_broken_sample_is_refused_and_nothing_is_taken() {
    let front_end = FrontEnd::new(&[], 1.0, 3, 1, 1).expect("it builds");
    let mut stream = front_end.stream();
    let error = stream.push(&[0.0; 7], |_| panic!("no window")).expect_err("7 is no multiple of 3");
    assert_eq!(error, NotWholeSamples { values: 7, channels: 3 });
    assert_eq!(error.to_string(), "7 values are not whole samples of 3 channels: expected a multiple of 3");
    assert_eq!(stream.next_index(), 0);
    assert_eq!(push(&mut stream, &[]), []);
}

#[test]
fn a_nan_spoils_the_frames_that_hold_it_and_no_others() {
    let steps = [
        Step::PreEmphasis(0.5),
        frame(16, 8),
        Step::PowerSpectrum(PowerSpectrum { divide_by: 1.0, fft_length: None }),
        Step::Mel(Mel { bands: 3, low_hz: 0.0, high_hz: 500.0 }),
        Step::Log10(Log { clip: Some([-1.0, 1.0]), ..Log::default() }),
    ];
    let front_end = FrontEnd::new(&steps, 1000.0, 1, 1, 1).expect("it builds");
    let clean: Vec<f32> = (0..160).map(|i| (i as f32).sin()).collect();
    let mut spoiled = clean.clone();
    spoiled[80] = f32::NAN;
    let clean = push(&mut front_end.stream(), &clean);
    let spoiled = push(&mut front_end.stream(), &spoiled);
    assert_eq!(clean.len(), spoiled.len());
    for (clean, spoiled) in clean.iter().zip(&spoiled) {
        // With pre-emphasis samples 80 and 81 are not numbers.
        if spoiled.0 <= 81 && spoiled.1 >= 80 {
            assert!(spoiled.2.iter().all(|bits| f32::from_bits(*bits).is_nan()), "window from {}", spoiled.0);
        } else {
            assert_eq!(clean, spoiled);
        }
    }
}

#[test]
fn indices_wrap_instead_of_overflowing() {
    let front_end = FrontEnd::new(&[], 1.0, 1, 4, 1).expect("it builds");
    let mut stream = front_end.stream();
    stream.reset(u64::MAX - 1);
    let windows = push(&mut stream, &ramp(5));
    assert_eq!((windows[0].0, windows[0].1), (u64::MAX - 1, 1));
    assert_eq!((windows[1].0, windows[1].1, stream.next_index()), (u64::MAX, 2, 3));
}

#[test]
fn front_ends_and_streams_cross_threads() {
    fn crosses<T: Send + Sync + 'static>() {}
    crosses::<FrontEnd>();
    crosses::<Stream>();
}

/// A number that a person might write, or a fuzzer.
fn number() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => -2.0..2.0,
        2 => 0.0..600.0,
        1 => prop::sample::select(vec![0.0, -0.0, 1.0, 1e-30, 1e-300, 1e300, f64::NAN, f64::INFINITY, -1.0]),
    ]
}

fn numbers() -> impl Strategy<Value = Numbers> {
    prop_oneof![number().prop_map(Numbers::One), proptest::collection::vec(number(), 0..4).prop_map(Numbers::Each)]
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![10 => 1..40_usize, 1 => prop::sample::select(vec![0, 997, 1 << 12, usize::MAX])]
}

fn frame_step() -> impl Strategy<Value = Step> {
    (size(), size(), window_function()).prop_map(|(length, hop, window)| Step::Frame(Frame { length, hop, window }))
}

fn log() -> impl Strategy<Value = Log> {
    (number(), number(), number(), number(), prop::option::of([number(), number()]))
        .prop_map(|(floor, scale, offset, divide, clip)| Log { floor, scale, offset, divide, clip })
}

fn any_step() -> impl Strategy<Value = Step> {
    let statistic = prop::sample::select(vec![Statistic::Rms, Statistic::Peak, Statistic::Crest, Statistic::Kurtosis]);
    prop_oneof![
        (numbers(), numbers()).prop_map(|(scale, offset)| Step::ScaleOffset(ScaleOffset { scale, offset })),
        number().prop_map(Step::PreEmphasis),
        frame_step(),
        prop::sample::select(vec![Detrend::Constant, Detrend::Linear]).prop_map(Step::Detrend),
        window_function().prop_map(Step::Window),
        (number(), prop::option::of(size()))
            .prop_map(|(divide_by, fft_length)| Step::PowerSpectrum(PowerSpectrum { divide_by, fft_length })),
        (size(), number(), number()).prop_map(|(bands, low_hz, high_hz)| Step::Mel(Mel { bands, low_hz, high_hz })),
        log().prop_map(Step::Log10),
        log().prop_map(Step::Ln),
        size().prop_map(|coefficients| Step::Mfcc(Mfcc { coefficients })),
        proptest::collection::vec(statistic, 0..4).prop_map(Step::Statistics),
    ]
}

/// Lists as they come, sensible ones, and sensible ones with a step too many or too few.
fn steps(channels: usize) -> impl Strategy<Value = Vec<Step>> {
    prop_oneof![
        1 => proptest::collection::vec(any_step(), 0..5),
        1 => front_end(channels),
        2 => (front_end(channels), any_step(), any::<prop::sample::Index>()).prop_map(|(mut steps, step, at)| {
            steps.insert(at.index(steps.len() + 1), step);
            steps
        }),
        1 => (front_end(channels), any::<prop::sample::Index>()).prop_map(|(mut steps, at)| {
            if !steps.is_empty() {
                steps.remove(at.index(steps.len()));
            }
            steps
        }),
    ]
}

fn sample() -> impl Strategy<Value = f32> {
    prop_oneof![
        20 => -1.0..1.0_f32,
        1 => prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 0.0]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases * 4))]

    #[test]
    fn any_list_builds_or_is_refused_and_what_built_never_panics(
        (channels, steps) in (0..4_usize).prop_flat_map(|channels| (Just(channels), steps(channels.max(1)))),
        rate_hz in prop_oneof![4 => Just(RATE_HZ), 1 => number()],
        samples in proptest::collection::vec(sample(), 0..600),
        window_frames in prop_oneof![4 => 1..5_usize, 1 => size()],
        window_hop in prop_oneof![4 => 1..5_usize, 1 => size()],
    ) {
        match FrontEnd::new(&steps, rate_hz, channels, window_frames, window_hop) {
            Err(error) => prop_assert!(!error.to_string().is_empty()),
            Ok(front_end) => {
                let samples = &samples[..samples.len() / channels * channels];
                let [frames, of_channels, elements] = front_end.feature_shape();
                prop_assert_eq!(frames * of_channels * elements, front_end.features_len());
                let mut stream = front_end.stream();
                let windows = push(&mut stream, samples);
                let count = samples.len() / channels;
                let (span, hop) = (front_end.samples_per_window(), front_end.samples_per_hop());
                let expected = if count < span { 0 } else { (count - span) / hop + 1 };
                prop_assert_eq!(windows.len(), expected);
                prop_assert_eq!(stream.next_index(), count as u64);
                prop_assert_eq!(stream.samples_to_next_window(), span + expected * hop - count);
                prop_assert!(windows.iter().all(|(_, _, features)| features.len() == front_end.features_len()));
            }
        }
    }
}

/// A front end and samples for it, some of them not finite.
fn built() -> impl Strategy<Value = (FrontEnd, Vec<f32>)> {
    (1..4_usize)
        .prop_flat_map(|channels| (Just(channels), front_end(channels)))
        .prop_flat_map(|(channels, steps)| {
            (Just(channels), Just(steps), 1..5_usize, 1..7_usize, proptest::collection::vec(sample(), 0..600))
        })
        .prop_map(|(channels, steps, window_frames, window_hop, samples)| {
            let front_end =
                FrontEnd::new(&steps, RATE_HZ, channels, window_frames, window_hop).expect("such lists build");
            let whole = samples.len() / channels * channels;
            (front_end, samples[..whole].to_vec())
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases * 2))]

    #[test]
    fn pieces_give_the_same_windows_to_the_last_bit(
        (front_end, samples) in built(),
        cuts in proptest::collection::vec(0..60_usize, 1..50),
    ) {
        let expected = push(&mut front_end.stream(), &samples);
        let mut stream = front_end.stream();
        let mut windows = Vec::new();
        let mut rest = &samples[..];
        for cut in cuts {
            let cut = (cut * front_end.channels()).min(rest.len());
            windows.extend(push(&mut stream, &rest[..cut]));
            rest = &rest[cut..];
        }
        windows.extend(push(&mut stream, rest));
        prop_assert_eq!(windows, expected);
    }

    #[test]
    fn splitting_at_samples_to_next_window_gives_one_window_a_push((front_end, samples) in built()) {
        let mut stream = front_end.stream();
        let mut rest = &samples[..];
        while !rest.is_empty() {
            let ask = stream.samples_to_next_window() * front_end.channels();
            let here = ask.min(rest.len());
            let windows = push(&mut stream, &rest[..here]);
            prop_assert_eq!(windows.len(), usize::from(here == ask));
            rest = &rest[here..];
        }
    }

    #[test]
    fn reset_is_a_fresh_stream(
        (front_end, samples) in built(),
        before in 0..200_usize,
        index in 0..1_u64 << 60,
    ) {
        let mut expected = push(&mut front_end.stream(), &samples);
        for (first, last, _) in &mut expected {
            *first += index;
            *last += index;
        }
        let mut stream = front_end.stream();
        push(&mut stream, &samples[..(before * front_end.channels()).min(samples.len())]);
        stream.reset(index);
        prop_assert_eq!(push(&mut stream, &samples), expected);
    }
}
