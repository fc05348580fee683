"""Training images in an order that is a function of (seed, position) alone.

detectron2's training sampler restarts its stream when a run resumes, and augmentations draw from
whatever state numpy is in. Here position i of the stream is the same image with the same
augmentation in every process, for any number of workers, before and after a resume.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


class Stream(Dataset):
    """Endless shuffled epochs over `dicts`, mapped, indexed by position.

    Args:
        dicts: detectron2 dataset dicts.
        mapper: turns one into a model input.
        seed: of order and augmentation.
    """

    def __init__(self, dicts: list[dict], mapper: Callable[[dict], Any], seed: int):
        self.dicts, self.mapper, self.seed = dicts, mapper, seed
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=int))

    def source(self, position: int) -> dict:
        """The dataset dict at a position."""
        epoch, index = divmod(position, len(self.dicts))
        if self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._order = (epoch, rng.permutation(len(self.dicts)))
        return self.dicts[self._order[1][index]]

    def __getitem__(self, position: int) -> Any:
        # detectron2's augmentations draw from numpy's global generator.
        np.random.seed(np.random.SeedSequence([self.seed, position]).generate_state(4))
        return self.mapper(self.source(position))


class _PositionsFrom:
    """start, start + 1, ... without end; `itertools.count` that can be iterated more than once."""

    def __init__(self, start: int):
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)


def training_loader(
    dicts: list[dict],
    mapper: Callable[[dict], Any],
    seed: int,
    start: int,
    batch_size: int,
    num_workers: int = 0,
) -> DataLoader:
    """Batches (lists of model inputs) without end.

    Args:
        start: position of the first image.
        batch_size: images of one batch.
    """
    return DataLoader(
        Stream(dicts, mapper, seed),
        batch_size=batch_size,
        sampler=_PositionsFrom(start),
        num_workers=num_workers,
        # Else each new iterator draws from torch's default generator, which a resumed run restored.
        generator=torch.Generator(),
        collate_fn=list,
        worker_init_fn=lambda _: torch.set_num_threads(1),
        persistent_workers=num_workers > 0,
    )
