"""The training stream is a function of seed and position."""

import itertools

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import get_detection_dataset_dicts

from experiments import studies
from experiments.data import catalog
from experiments.data.stream import Stream, Views, training_loader
from experiments.recipe import resolved


def mapper(entry):
    return (entry["id"], int(np.random.randint(1_000_000)))


DICTS = [{"id": i} for i in range(10)]


def take(count, **words):
    stream = Stream(DICTS, mapper, words.pop("seed", 0))
    words = {"start": 0, "batch_size": 4, **words}
    return list(itertools.islice(training_loader(stream, **words), count))


def flat(batches):
    return [item for batch in batches for item in batch]


def test_every_epoch_is_a_permutation():
    ids = [i for i, _ in flat(take(10))]
    for epoch in range(4):
        assert sorted(ids[epoch * 10 : epoch * 10 + 10]) == list(range(10))
    assert ids[:10] != ids[10:20]


@pytest.mark.parametrize("start", [1, 7, 23])
def test_a_resumed_stream_goes_on_where_it_was(start):
    assert flat(take(3, start=start)) == flat(take(12))[start : start + 12]


def test_workers_change_nothing():
    assert take(5, num_workers=2) == take(5)


def test_batch_size_changes_no_image():
    assert flat(take(6, batch_size=2)) == flat(take(3, batch_size=4))


def test_seeds_differ():
    assert take(3, seed=1) != take(3)


def test_rows_with_one_seed_see_the_same_images_with_the_same_flips(small_set):
    dicts = get_detection_dataset_dicts(
        catalog.prepare("mini", small_set["dataset"], small_set["val"]).train.register()
    )
    study = studies.find("plain-vs-hierarchical")

    def seen(row: str, seed: int) -> list[dict]:
        cfg = resolved.resolve(study, study.variant(row, "mini"), "mini", "vit-mini", {})
        loader = training_loader(
            Stream(dicts, instantiate(cfg.dataloader.train.mapper), seed), 0, 8
        )
        images = []
        for batch in itertools.islice(loader, 6):
            torch.rand(len(row)), np.random.rand(len(row))  # as models draw between them
            images += batch
        return images

    one, same, other = seen("vit", 3), seen("swin-retinanet", 3), seen("vit", 4)
    for a, b in zip(one, same, strict=True):
        assert a["image_id"] == b["image_id"]
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
    assert [i["image_id"] for i in one] != [i["image_id"] for i in other]
    pairs = zip(
        *(sorted(i, key=lambda image: image["image_id"]) for i in (one, other)), strict=True
    )
    assert len({torch.equal(a["image"], b["image"]) for a, b in pairs}) == 2  # some flipped alike


@pytest.mark.parametrize("workers", [0, 2])
def test_views_never_change_and_take_turns(workers):
    """The same in every run, another in each epoch; images keep their order."""

    def epochs(seed, count=6):
        views = Views(DICTS, mapper, 3)
        loader = training_loader(Stream(DICTS, mapper, seed, views=views), 0, 10, workers)
        return list(itertools.islice(loader, count))

    found, other = epochs(0), epochs(1)
    assert [[i for i, _ in epoch] for epoch in found[:2]] == [
        [i for i, _ in epoch] for epoch in take(2, batch_size=10)
    ]
    assert found != other
    for epoch, own in zip(found, other, strict=True):
        assert sorted(epoch) == sorted(own)
    seen = [set(epoch) for epoch in found]
    assert seen[:3] == seen[3:]
    assert len(set.union(*seen)) == 3 * len(DICTS)
