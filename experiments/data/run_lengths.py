"""Compressed run lengths of foreign masks, looked at before pycocotools reads and writes memory by
them without a look.

The format is COCO's (public file common/maskApi.c): numbers of groups of 5 bits, least first, as
characters from "0" on, bit 5 set if more follow; from the fourth number on, less the last but one.
"""

import math

import numpy as np

_MASKS = 2**10  # whose run lengths are looked at at once: more do not fit in a cache
_CHARACTERS = 7  # of a run length at most: 35 bits, pycocotools has 32


def first_broken(masks: list) -> int | None:
    """Which of these masks, if any, has run lengths that are none, or do not fill its size. Those
    in another form are left to the scoring."""
    compressed = [i for i, mask in enumerate(masks) if _is_compressed(mask)]
    for block in range(0, len(compressed), _MASKS):
        entries = compressed[block : block + _MASKS]
        texts = [masks[i]["counts"].encode(errors="surrogatepass") or b"o" for i in entries]
        wrong = _ends_or_differs(texts)
        if not wrong.any():
            number, first, wrong = _numbers(texts)
            run = _runs(number, first)
            pixels = [math.prod(masks[i]["size"]) for i in entries]
            wrong |= np.add.reduceat(run, first) != pixels
            wrong |= np.minimum.reduceat(run, first) < 0
        if wrong.any():
            return entries[np.argmax(wrong)]
    return None


def _is_compressed(mask) -> bool:
    """Whether it has COCO's keys, of their types."""
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str):
        return False
    size = mask.get("size")
    return isinstance(size, list) and all(isinstance(side, int | float) for side in size)


def _characters(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Values of all characters, and where each text ends."""
    values = np.frombuffer(b"".join(texts), np.uint8) - np.uint8(ord("0"))
    return values, np.cumsum([len(text) for text in texts])


def _ends_or_differs(texts: list[bytes]) -> np.ndarray:
    """(M,) whether a text ends within a number, or has a character that is no group."""
    value, stop = _characters(texts)
    return (value[stop - 1] >= 32) | (np.maximum.reduceat(value, np.append(0, stop[:-1])) >= 64)


def _numbers(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All numbers (N,), the first one of each text (M,), and whether it has one too long (M,)."""
    group, stop = _characters(texts)
    last = np.flatnonzero(group < 32)  # character of each number
    start = np.append(0, last[:-1] + 1)
    length = last - start + 1
    number = (group[start] & 31).astype(np.int64)
    for k in range(1, min(length.max(), _CHARACTERS)):
        longer = np.flatnonzero(length > k)
        number[longer] |= (group[start[longer] + k] & 31).astype(np.int64) << 5 * k
    negative = np.flatnonzero(group[last] & 16)
    number[negative] -= 1 << 5 * length[negative].clip(max=_CHARACTERS)
    first = np.searchsorted(last, np.append(0, stop[:-1]))
    return number, first, np.maximum.reduceat(length, first) > _CHARACTERS


def _runs(number: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Lengths from differences: sums of every other number, but for a text's first, which stands
    alone."""
    count = np.diff(np.append(first, len(number)))
    odd = (np.arange(len(number)) - np.repeat(first, count)) % 2 == 1
    step, run = number.copy(), number.copy()
    step[first] = 0
    for these in (odd, ~odd):
        total = np.cumsum(np.where(these, step, 0))
        total -= np.repeat(total[first], count)
        run = np.where(these, total, run)
    run[first] = number[first]
    return run
