"""GPT-NeoX's order of samples, written again from its description, slowly: what neox_order is held to.

Lists and loops instead of kernels and files; imports nothing of ours."""

import math

import numpy as np


def epochs_for(tokens, length, samples):
    epochs = 1
    while (epochs * tokens - 1) // length < samples:
        epochs += 1
    return epochs


def indices(sizes, documents, samples, length, seed):
    """doc_idx, sample_idx, shuffle_idx of one dataset; `documents` are their numbers."""
    tokens = sum(int(sizes[d]) for d in documents)
    epochs = epochs_for(tokens, length, samples)
    state = np.random.RandomState(seed)
    order = np.array([d for _ in range(epochs) for d in documents], dtype=np.int32)
    state.shuffle(order)
    count = (epochs * tokens - 1) // length
    places = [(at, token) for at, d in enumerate(order.tolist()) for token in range(int(sizes[d]))]
    rows = [places[number * length] for number in range(count + 1)]
    rows[0] = (0, 0)
    dtype = np.int32 if 2 * ((epochs * tokens - 1) / length + 1) < 2**31 - 1 else np.int64
    shuffled = np.arange(count, dtype=np.uint32 if count < 2**32 - 2 else np.int64)
    state.shuffle(shuffled)
    return order, np.array(rows, dtype=dtype), shuffled


def sample(documents, order, rows, shuffled, number):
    """The tokens of sample `number`; `documents` are lists of ids."""
    row = int(shuffled[number])
    (first, offset), (last, end) = rows[row].tolist(), rows[row + 1].tolist()
    if first == last:
        return list(documents[order[first]][offset : end + 1])
    tokens = list(documents[order[first]][offset:])
    for at in range(first + 1, last):
        tokens += documents[order[at]]
    return tokens + list(documents[order[last]][: end + 1])


def blending(weights, size):
    """(dataset, its sample) of each step."""
    weights = np.array(weights, dtype=np.float64)
    weights = weights / np.sum(weights)
    taken, steps = [0] * len(weights), []
    for step in range(size):
        errors = [float(w) * max(float(step), 1.0) - float(n) for w, n in zip(weights, taken, strict=True)]
        best = errors.index(max(errors))
        steps.append((best, taken[best]))
        taken[best] += 1
    return steps


def blended(datasets, weights, train_samples, length, seed):
    """All samples of a run with train_data_paths: (source, its index, tokens) in order."""
    whole = sum(weights)
    weights = [w / whole for w in weights]
    made = []
    for documents, weight in zip(datasets, weights, strict=True):
        sizes = [len(d) for d in documents]
        wanted = math.ceil(train_samples * weight * 1.005)
        made.append(indices(sizes, range(len(documents)), wanted, length, seed))
    size = sum(len(shuffled) - 1 for _, _, shuffled in made)
    return [
        (source, number, sample(datasets[source], *made[source], number))
        for source, number in blending(weights, size)[:train_samples]
    ]


def split_of(text, size):
    """Begin and end of train, validation and test among `size` documents."""
    parts = [float(part) for part in text.split("," if "," in text else "/")]
    parts = (parts + [0.0] * 3)[:3]
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + round(part / sum(parts) * float(size)))
    surplus = ends[-1] - size
    return [0] + [end - surplus for end in ends[1:]]
