"""Training images in an order that is a function of (seed, position) alone.

detectron2's training sampler restarts its stream when a run resumes, and augmentations draw from
whatever state numpy is in. Here position i of the stream is the same image with the same
augmentation in every process, for any number of workers, before and after a resume.
"""

import bisect
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from torch.utils.data import DataLoader, Dataset


def repeat_factors(dicts: list[dict], threshold: float) -> np.ndarray:
    """How often repeat-factor sampling wants each image in an epoch (arXiv:1908.03195, B.2).

    Args:
        dicts: detectron2 dataset dicts.
        threshold: share of images; those with a category that fewer images have are repeated.
            0: none.

    Returns:
        float64 (len(dicts),): of the image's rarest category, max(1, sqrt(threshold / its share)).
    """
    present = [{a["category_id"] for a in entry.get("annotations", ())} for entry in dicts]
    images = Counter(category for categories in present for category in categories)
    of_category = {c: (threshold * len(dicts) / count) ** 0.5 for c, count in images.items()}
    return np.array([max((1.0, *map(of_category.get, categories))) for categories in present])


class Views(Dataset):
    """Images as a few views that never change: view v of image i has the number i * count + v, and
    augmentations by (v, i) alone, the same in every run.

    Args:
        dicts: detectron2 dataset dicts.
        mapper: turns one into a model input.
        count: of views of an image.
    """

    def __init__(self, dicts: list[dict], mapper: Callable[[dict], Any], count: int):
        self.dicts = DatasetFromList(dicts, copy=False)
        self.mapper, self.count = mapper, count

    def __len__(self) -> int:
        return len(self.dicts) * self.count

    def __getitem__(self, number: int) -> Any:
        image, view = divmod(number, self.count)
        _seed([view, image])
        return self.mapper(self.dicts[image])


class Stream(Dataset):
    """Endless shuffled epochs over `dicts`, mapped, indexed by position.

    Args:
        dicts: detectron2 dataset dicts.
        mapper: turns one into a model input.
        seed: of order and augmentation.
        repeat_threshold: of `repeat_factors`; what is fractional in them is rounded at random,
            anew in each epoch, up as often as the fraction says.
        views: of `dicts`, which are then given in place of what `mapper` makes: of each image the
            next one in each epoch.
    """

    def __init__(
        self,
        dicts: list[dict],
        mapper: Callable[[dict], Any],
        seed: int,
        repeat_threshold: float = 0.0,
        views: Views | None = None,
    ):
        # As one array: each worker's own copy of so many objects would grow to gigabytes.
        self.dicts = DatasetFromList(dicts, copy=False)
        self.mapper, self.seed, self.views = mapper, seed, views
        self.factors = repeat_factors(dicts, repeat_threshold)
        self._starts = [0]  # position of each epoch's first image, as far as was asked for
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=int))

    def source(self, position: int) -> dict:
        """The dataset dict at a position."""
        return self.dicts[self._place(position)[1]]

    def _place(self, position: int) -> tuple[int, int]:
        """Epoch, and index of the image."""
        while self._starts[-1] <= position:
            length = self._repeats(len(self._starts) - 1).sum()
            self._starts.append(self._starts[-1] + int(length))
        epoch = bisect.bisect_right(self._starts, position) - 1
        if self._order[0] != epoch:
            # Without repeats the same as rng.permutation(len(self.dicts)).
            indexes = np.repeat(np.arange(len(self.dicts)), self._repeats(epoch))
            rng = np.random.default_rng([self.seed, epoch])
            self._order = (epoch, rng.permutation(indexes))
        return epoch, int(self._order[1][position - self._starts[epoch]])

    def _repeats(self, epoch: int) -> np.ndarray:
        """int (len(dicts),): how often each image is in an epoch."""
        whole = np.floor(self.factors)
        rng = np.random.default_rng([self.seed, epoch, 1])
        return (whole + (rng.random(len(whole)) < self.factors - whole)).astype(int)

    def __getitem__(self, position: int) -> Any:
        if self.views is not None:
            epoch, image = self._place(position)
            return self.views[image * self.views.count + (image + epoch) % self.views.count]
        _seed([self.seed, position])
        return self.mapper(self.source(position))


def _seed(numbers: list[int]) -> None:
    # detectron2's augmentations draw from numpy's global generator, a user's may from others.
    words = np.random.SeedSequence(numbers).generate_state(4)
    np.random.seed(words)
    random.seed(int(words[0]))
    torch.manual_seed(int(words[0]))


class _MicroBatches:
    """Positions of one process's micro batches, from some position on, without end."""

    def __init__(self, start: int, batch_size: int, per_step: int, rank: int, world: int):
        self.start, self.batch_size = start, batch_size
        self.per_step, self.rank, self.world = per_step, rank, world

    def __iter__(self) -> Iterator[range]:
        for number in itertools.count():
            if number % self.per_step % self.world == self.rank:
                first = self.start + number * self.batch_size
                yield range(first, first + self.batch_size)


def training_loader(
    stream: Stream,
    start: int,
    batch_size: int,
    num_workers: int = 0,
    per_step: int = 1,
    rank: int = 0,
    world: int = 1,
) -> DataLoader:
    """Micro batches (lists of model inputs) without end.

    Of the micro batches of each step, process `rank` gets those with the numbers rank,
    rank + world, ...

    Args:
        start: position of the first image of a step.
        batch_size: images of a micro batch.
        per_step: micro batches of one optimizer step, of all processes together.
        rank, world: of this process, and how many there are; at most `per_step`.
    """
    return DataLoader(
        stream,
        batch_sampler=_MicroBatches(start, batch_size, per_step, rank, world),
        num_workers=num_workers,
        # Else each new iterator draws from torch's default generator.
        generator=torch.Generator(),
        collate_fn=list,
        persistent_workers=num_workers > 0,
    )
