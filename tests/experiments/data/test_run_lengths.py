"""Run lengths are refused where pycocotools would trust them."""

import numpy as np
from pycocotools import mask as masks

from experiments.data.run_lengths import first_broken


def run_lengths(counts: list[int]) -> str:
    """Compressed as pycocotools does it."""
    characters = ""
    for i, count in enumerate(counts):
        rest = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            group, rest = rest & 31, rest >> 5
            more = rest != (-1 if group & 16 else 0)
            characters += chr(48 + group + 32 * more)
    return characters


def test_run_lengths_are_whole_or_broken():
    random = np.random.default_rng(0)
    whole = []
    for _ in range(300):
        canvas = np.zeros((37, 53), np.uint8, order="F")
        canvas[random.random(canvas.shape) < random.random()] = 1
        canvas[:, random.integers(53) :] = random.integers(2)
        mask = masks.encode(canvas)
        whole.append(dict(size=mask["size"], counts=mask["counts"].decode()))
    whole += [
        dict(size=[5000, 7000], counts=run_lengths(c)) for c in ([35 * 10**6], [0, 35 * 10**6])
    ]
    assert first_broken(whole) is None
    size = [4, 4]
    texts = [
        "",
        "o",
        "P",
        "@@@@zzz",
        "\u00e9",
        "\ud800",
        "/",
        "\0",
        "P4",
        "00",
        "?",
        "`p0",
        "`PPPPPPP1",
    ]
    lengths = ([15], [17], [8, 9], [20, -4], [1, 2, 3, 4, 5], [8, -3, 3, 8], [16 + 2**32])
    texts += map(run_lengths, lengths)
    for text in texts:
        for others in ([], whole[:3], whole * 5):
            found = [*others, dict(size=size, counts=text), *others[:2]]
            assert first_broken(found) == len(others), text
