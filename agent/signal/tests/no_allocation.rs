//! Nothing is allocated after `FrontEnd::stream`.

use limpet_signal::{
    Detrend, Frame, FrontEnd, Log, Mel, Mfcc, PowerSpectrum, ScaleOffset, Statistic, Step, Stream, WindowFunction,
};

fn frame(length: usize, hop: usize) -> Step {
    Step::Frame(Frame { length, hop, window: WindowFunction::Rectangular })
}

fn spectrum() -> Step {
    Step::PowerSpectrum(PowerSpectrum { divide_by: 1.0, fft_length: None })
}

/// Pushes long and short messages, with a gap between, and returns how many windows came.
fn run(stream: &mut Stream, samples: &[f32], channels: usize) -> usize {
    let mut windows = 0;
    for start in [0, 1 << 40] {
        stream.reset(start);
        stream.push(samples, |_| windows += 1).expect("whole samples");
        for piece in samples.chunks(7 * channels) {
            stream.push(piece, |window| windows += usize::from(!window.features.is_empty())).expect("whole samples");
        }
        stream.push(&samples[..1], |_| windows += 1).unwrap_or_else(|error| assert!(error.channels > 1));
    }
    windows
}

#[test]
fn a_stream_allocates_nothing_after_it_is_made() {
    // The counter counts, or this test could not fail.
    assert!(allocation_counter::measure(|| drop(std::hint::black_box(vec![1_u8; 3]))).count_total > 0);

    let log_mel = |length| {
        vec![
            Step::PreEmphasis(0.97),
            Step::Frame(Frame { length, hop: length / 2, window: WindowFunction::HammingSymmetric }),
            spectrum(),
            Step::Mel(Mel { bands: 20, low_hz: 0.0, high_hz: 8000.0 }),
            Step::Ln(Log { clip: Some([-10.0, 10.0]), ..Log::default() }),
            Step::Mfcc(Mfcc { coefficients: 13 }),
        ]
    };
    let cases = [
        // A power of two, a mixed radix, a prime: three different algorithms of the FFT library.
        (log_mel(1024), 1, 3, 1),
        (log_mel(1000), 2, 3, 5),
        (log_mel(509), 3, 2, 1),
        (
            vec![
                frame(64, 200),
                Step::Detrend(Detrend::Linear),
                Step::Statistics(vec![Statistic::Rms, Statistic::Kurtosis, Statistic::Crest, Statistic::Peak]),
                Step::ScaleOffset(ScaleOffset {
                    scale: limpet_signal::Numbers::Each(vec![1.0, 2.0, 3.0, 4.0]),
                    offset: limpet_signal::Numbers::One(0.5),
                }),
            ],
            3,
            4,
            2,
        ),
        (vec![frame(48, 16), Step::Window(WindowFunction::HannPeriodic), spectrum()], 2, 1, 1),
        (vec![Step::PreEmphasis(0.5)], 3, 100, 30),
        (vec![], 1, 10, 400),
    ];
    for (steps, channels, window_frames, window_hop) in cases {
        let front_end = FrontEnd::new(&steps, 16_000.0, channels, window_frames, window_hop).expect("it builds");
        let samples: Vec<f32> = (0..6000 * channels).map(|i| (i as f32 * 0.37).sin()).collect();
        let mut stream = front_end.stream();
        let mut windows = 0;
        let allocations = allocation_counter::measure(|| windows = run(&mut stream, &samples, channels));
        assert!(windows > 2, "{steps:?} gave {windows} windows");
        assert_eq!((allocations.count_total, allocations.bytes_total), (0, 0), "{steps:?}");
    }
}
