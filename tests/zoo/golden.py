"""Golden vectors: which inputs to keep, how to judge another executor by them, how to store both."""

import hashlib
import json
import os
import struct

import numpy as np

VECTORS = 24


class Unfit(Exception):
    """A case that cannot serve: its golden vectors would not tell right from wrong, or its peer disagrees."""


def real(values, quantization):
    """Stored values as real numbers."""
    values = values.astype(np.float64)
    if quantization is None:
        return values
    scale, zero_point = quantization
    return (values - zero_point) * scale


def flat(values):
    return values.reshape(len(values), -1)


def margin(output):
    """Distance between the best element and the second, as a share of the vector's range."""
    ordered = np.sort(flat(output), axis=1)
    return (ordered[:, -1] - ordered[:, -2]) / np.maximum(ordered[:, -1] - ordered[:, 0], 1e-9)


def choose(outputs, label, margins):
    """Indices of VECTORS candidates: classes alternate, every output has a clear winner by its share in `margins`.

    `outputs` are the reference's, dequantized; the first is the one that must name the class. Where the network does
    not classify, its winners only have to be clear and spread over at least four places.
    """
    clear = np.all([margin(output) >= least for output, least in zip(outputs, margins)], axis=0)
    winner = flat(outputs[0]).argmax(1)
    if label is not None:
        clear &= winner == label
    groups = [list(np.flatnonzero(clear & (winner == w))) for w in np.unique(winner[clear])]
    if label is None:  # more places than classes: keep the most frequent
        groups = sorted(groups, key=len, reverse=True)[:6]
    wanted = 4 if label is None else len(np.unique(label))
    if len(groups) < wanted or min(map(len, groups)) < 4:
        raise Unfit(f"clear winners a class: {[len(g) for g in groups]}, wanted at least {wanted} classes of four")
    chosen = []
    while len(chosen) < VECTORS:
        if not any(groups):
            raise Unfit(f"only {len(chosen)} of {VECTORS} candidates have a clear winner")
        chosen += [group.pop(0) for group in groups if group]
    chosen = chosen[:VECTORS]
    counts = np.unique(winner[chosen], return_counts=True)[1]
    if counts.min() < 3 or counts.max() > VECTORS // 2:
        raise Unfit(f"vectors a class {counts.tolist()}: wanted at least 3 and at most half")
    return chosen


def nmae(output, reference):
    """The measure of limpet's proof: mean error over the error of the best constant, both in real units."""
    output, reference = flat(output), flat(reference)
    spread = np.abs(reference - np.median(reference, axis=0)).mean()
    return float(np.abs(output - reference).mean() / spread)


def top1(output, reference):
    """Share of vectors whose best element is the reference's; a tie counts as a disagreement.

    None where the proof would not judge it: 1 or more than 256 elements, or ties in the reference.
    """
    output, reference = flat(output), flat(reference)
    ties = ((reference == reference.max(1, keepdims=True)).sum(1) > 1).any()
    if ties or not 2 <= reference.shape[1] <= 256:
        return None
    best = output.max(1, keepdims=True)
    single = (output == best).sum(1) == 1
    return float((single & (output.argmax(1) == reference.argmax(1))).mean())


def tensor_names(kind, names):
    """Names in the golden file: `input`, or `input.<tensor>` where there are several."""
    return [kind] if len(names) == 1 else [f"{kind}.{name}" for name in names]


def write(path, inputs, outputs, source):
    """Write a golden file; `inputs` and `outputs` are lists of (tensor name, values, quantization or None)."""
    tensors, metadata = {}, {"source": source}
    for kind, edges in (("input", inputs), ("output", outputs)):
        for name, (_, values, quantization) in zip(tensor_names(kind, [edge[0] for edge in edges]), edges):
            tensors[name] = np.ascontiguousarray(values)
            if quantization is not None and np.issubdtype(values.dtype, np.integer):
                metadata[f"{name}_scale"] = repr(float(quantization[0]))
                metadata[f"{name}_zero_point"] = str(int(quantization[1]))
    save(path, tensors, metadata)


def save(path, tensors, metadata):
    """A safetensors file whose bytes depend on its content alone (the library's own writer shuffles metadata)."""
    codes = {"float32": "F32", "float16": "F16", "int8": "I8", "uint8": "U8", "int16": "I16", "uint16": "U16"}
    header, offset = {"__metadata__": metadata}, 0
    for name, values in tensors.items():
        header[name] = {"dtype": codes[str(values.dtype)], "shape": list(values.shape),
                        "data_offsets": [offset, offset + values.nbytes]}
        offset += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(values.tobytes() for values in tensors.values()))


def describe(name, values):
    """A graph's input or output in zoo.json; the shape is one vector's, without the vector axis."""
    return {"name": name, "dtype": str(values.dtype), "shape": list(values.shape[1:])}


def make(case, model, path, out, candidates, label, run, peer, edges, source, exact):
    """Choose vectors, write `<name>.golden.safetensors`, judge the peer; returns the entry for zoo.json.

    `run(inputs)` and `peer(inputs)` take one list of arrays, first axis = vectors, and give lists in the same form.
    `edges` is (inputs, outputs), each a list of (tensor name, quantization or None). `exact` holds the float network's
    outputs for the candidates: what quantization was to preserve.
    """
    reference = run(candidates)
    as_real = [real(values, q) for values, (_, q) in zip(reference, edges[1])]
    for values in as_real:
        if not np.isfinite(values).all():
            raise Unfit("the reference's output is not finite")
    margins = case.pop("margin", [0.2] * len(as_real))
    chosen = choose(as_real, label if case["task"] == "classification" else None, margins)
    inputs = [values[chosen] for values in candidates]
    outputs = [values[chosen] for values in reference]
    golden = f"{case['name']}.golden.safetensors"
    write(os.path.join(out, golden),
          [(name, values, q) for values, (name, q) in zip(inputs, edges[0])],
          [(name, values, q) for values, (name, q) in zip(outputs, edges[1])], source)
    cost = max(nmae(values[chosen], wanted[chosen]) for values, wanted in zip(as_real, exact))
    scores = []
    for got, values, (_, q) in zip(peer(inputs), outputs, edges[1]):
        got, values = real(got, q), real(values, q)
        if nmae(np.roll(values, 1, axis=0), values) < 0.5:
            raise Unfit("another vector's answer would nearly pass")
        scores.append((top1(got, values), nmae(got, values)))
    entry = {
        **case,
        "file": os.path.basename(path),
        "golden": golden,
        "reference": source,
        "inputs": [describe(name, values) for values, (name, _) in zip(inputs, edges[0])],
        "outputs": [describe(name, values) for values, (name, _) in zip(outputs, edges[1])],
        "peer_top1": min((round(t, 4) for t, _ in scores if t is not None), default=None),
        "peer_nmae": round(max(n for _, n in scores), 5),
        "quantization_nmae": round(cost, 5),
        "bytes": len(model),
        "sha256": hashlib.sha256(model).hexdigest(),
    }
    if (entry["peer_top1"] is not None and entry["peer_top1"] < 0.95) or entry["peer_nmae"] > 0.15:
        raise Unfit(f"the peer disagrees: top-1 {entry['peer_top1']}, NMAE {entry['peer_nmae']}")
    if cost > 0.3:
        raise Unfit(f"quantization or conversion lost the network: NMAE {cost:.3f} against float")
    return entry


def write_index(out, entries, versions):
    """zoo.json: the list of cases, one a line so that a diff is readable, after the versions that made them."""
    with open(os.path.join(out, "zoo.json"), "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(entry, sort_keys=False) for entry in entries) + "\n]\n")
    with open(os.path.join(out, "versions.json"), "w") as file:
        json.dump(versions, file, indent=2, sort_keys=True)
        file.write("\n")
