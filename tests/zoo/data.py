"""Synthetic problems for the zoo: small, separable, the same at every run.

Every problem gives inputs and class labels. Classes differ in shape, not in size, so a network has to look at
structure, and a zeroed or shuffled input cannot pass for the real one.
"""

import zlib

import numpy as np


def rng(*words):
    """A generator that depends on the words alone, not on what ran before."""
    return np.random.default_rng([zlib.crc32(word.encode()) for word in words])


def labels(count, classes):
    """`count` labels in turn: every class equally often."""
    return np.arange(count) % classes


def gratings(count, split, side=12, classes=4):
    """[count, side, side, 1]: stripes at one of four angles, any phase, with noise. Values about -1 to 1."""
    random, label = rng("gratings", split), labels(count, classes)
    y, x = np.mgrid[0:side, 0:side]
    angle = (np.pi * label / classes)[:, None, None]
    phase = random.uniform(0, 2 * np.pi, (count, 1, 1))
    wave = np.sin(1.3 * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    image = wave * random.uniform(0.7, 1.0, (count, 1, 1)) + random.normal(0, 0.08, wave.shape)
    return image[..., None].astype(np.float32), label


def bumps(count, split, length=32, classes=5):
    """[count, length]: one clear bump at one of five places over a slow wave. Values about -0.5 to 2."""
    random, label = rng("bumps", split), labels(count, classes)
    x = np.arange(length)
    centre = ((label + 0.5) * length / classes)[:, None] + random.uniform(-0.5, 0.5, (count, 1))
    bump = random.uniform(1.4, 1.8, (count, 1)) * np.exp(-(((x - centre) / 1.2) ** 2))
    wave = 0.3 * np.sin(x * 0.4 + random.uniform(0, 2 * np.pi, (count, 1)))
    return (bump + wave + random.normal(0, 0.02, bump.shape)).astype(np.float32), label


def chirps(count, split, length=48, channels=3, classes=4):
    """[count, length, channels]: a tone per class on three axes, in shifted phases. Values about -1.2 to 1.2."""
    random, label = rng("chirps", split), labels(count, classes)
    time = np.arange(length)[None, :, None]
    pace = np.array([0.25, 0.55, 0.95, 1.5])[label][:, None, None]
    phase = random.uniform(0, 2 * np.pi, (count, 1, 1)) + np.arange(channels) * 0.9
    tone = random.uniform(0.8, 1.1, (count, 1, 1)) * np.sin(pace * time + phase)
    return (tone + random.normal(0, 0.06, tone.shape)).astype(np.float32), label


def ridge(features, targets, strength=1e-2):
    """Weights and bias of the linear map from features to targets, by regularized least squares.

    The regularizer keeps weights small, so that the network survives quantization.
    """
    features = features.astype(np.float64)
    centre, spread = features.mean(0), features.std(0).mean() + 1e-9
    scaled = (features - centre) / spread
    gram = scaled.T @ scaled / len(scaled) + strength * np.eye(scaled.shape[1])
    weights = np.linalg.solve(gram, scaled.T @ (targets - targets.mean(0)) / len(scaled)) / spread
    return weights.astype(np.float32), (targets.mean(0) - centre @ weights).astype(np.float32)


def logits(label, classes, height=4.0):
    """Targets for a classifier that ends in a Softmax: `height` for the class, 0 elsewhere."""
    return height * np.eye(classes)[label]
