"""The front end of this model in NumPy: the steps that model.toml names, as docs/front-end.md defines them.

Training and the golden `features` come from here; the agent's own code is judged against them.
"""

import numpy as np

RATE_HZ = 3200
LENGTH, HOP = 1024, 512
FRAMES = 5
BANDS, LOW_HZ, HIGH_HZ = 64, 5.0, 1600.0
FLOOR, SCALE, OFFSET, DIVIDE = 1e-6, 1.0, 5.0, 8.0
WINDOW_SAMPLES = LENGTH + (FRAMES - 1) * HOP


def mel_matrix():
    """[bin, band] weights: triangles on the HTK mel scale, as tf.signal.linear_to_mel_weight_matrix gives them."""
    mel = lambda hz: 1127.0 * np.log1p(np.asarray(hz, float) / 700.0)
    bins = mel(np.linspace(0.0, RATE_HZ / 2, LENGTH // 2 + 1)[1:])[:, None]
    edges = np.linspace(mel(LOW_HZ), mel(HIGH_HZ), BANDS + 2)
    low, center, high = edges[:-2], edges[1:-1], edges[2:]
    weights = np.maximum(0.0, np.minimum((bins - low) / (center - low), (high - bins) / (high - center)))
    return np.vstack([np.zeros((1, BANDS)), weights])  # the DC bin counts for nothing


def features(samples):
    """[..., WINDOW_SAMPLES, channel] samples in g -> [..., FRAMES, channel, BANDS] float32 in 0..1."""
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(LENGTH) / LENGTH)  # hann_periodic
    weights = mel_matrix()
    result = []
    for frame in range(FRAMES):
        cut = np.swapaxes(samples[..., frame * HOP : frame * HOP + LENGTH, :], -1, -2).astype(float)
        cut = (cut - cut.mean(-1, keepdims=True)) * window  # detrend constant, then the window
        power = np.abs(np.fft.rfft(cut)) ** 2 / LENGTH
        result.append((SCALE * np.log10(power @ weights + FLOOR) + OFFSET) / DIVIDE)
    return np.clip(np.stack(result, -3), 0.0, 1.0).astype(np.float32)
