"""A frozen encoder's features, kept: what computing them takes, once, and each detector on them.

The row "none" of study "frozen-probe", ViT-S at 512 px, on 400 + 100 images that are made here: its
random weights cost what pre-trained ones do. Two runs, that differ in learning rate, go one after
the other, each from start to record: the first computes the features of all images, which is shown
apart, the second reads them. A third, of a few steps, keeps none. By the clock, in one process with
all cores and the libraries loaded; nothing else should run.
"""

import contextlib
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pandas as pd
from rich.console import Console
from tabulate import tabulate

from experiments import records, studies
from experiments.data import catalog
from experiments.jobs import runs
from experiments.studies import Words
from experiments.training import features

from . import page
from .input_pipeline import generated

SUITE = "probe"
IMAGES = (400, 100)  # to train on, to validate on
ROWS = (
    "features, computed once",
    "the run that computed them",
    "another run on them",
    "its training",
    "its evaluation",
    "a step of it",
    "a step that computes them anew",
)
_STEPS = 6  # of a run that keeps no features


def dataset(folder: Path, images: tuple[int, int]) -> list[str]:
    """Two COCO-format sets of generated images, as `catalog.prepare` takes them."""
    splits = []
    for part, (name, count) in enumerate(zip(("train", "val"), images, strict=True)):
        root = folder / name
        root.mkdir()
        content = dict(categories=[dict(id=1, name="object")], images=[], annotations=[])
        for number in range(count):
            entry = generated(root / f"{number}.jpg", seed=part * images[0] + number)
            content["images"].append(
                dict(
                    id=number + 1,
                    file_name=f"{number}.jpg",
                    height=entry["height"],
                    width=entry["width"],
                )
            )
            for found in entry["annotations"]:
                words = dict(id=len(content["annotations"]) + 1, image_id=number + 1, category_id=1)
                words |= {key: found[key] for key in ("bbox", "iscrowd", "segmentation")}
                content["annotations"].append(
                    words | dict(area=found["bbox"][2] * found["bbox"][3])
                )
        path = folder / f"{name}.json"
        path.write_text(json.dumps(content))
        splits.append(f"{path},{root}")
    return splits


def measure(images: tuple[int, int] = IMAGES, words: Words | None = None) -> pd.DataFrame:
    """A line per row of what was measured.

    Args:
        words: over those of the study.
    """
    words = words or {}
    with (
        tempfile.TemporaryDirectory() as scratch,
        open(Path(scratch) / "stdout", "w") as out,
        contextlib.redirect_stdout(out),
        _timed() as computing,
    ):
        folder = Path(scratch)
        data = catalog.prepare("coco", *dataset(folder, images))
        whole, _ = _run(folder, data, words)
        once = sum(computing)
        again, second = _run(folder, data, words | {"optimizer.lr": 2e-3})
        if len(computing) != 2:
            raise RuntimeError("the second run computed features")
        size = sum(path.stat().st_size for path in folder.rglob("features.npy"))
        anew = {"dataloader.train.views": 0, "train.max_iter": _STEPS}
        _, plain = _run(folder, data, words | anew)
        logging.getLogger("detectron2").handlers.clear()  # they write where soon nothing is
    steps = second.config["train"]["max_iter"]
    return pd.DataFrame(
        [
            dict(row=ROWS[0], seconds=once, what=f"{sum(images)} images, {size / 1e9:.2f} GB"),
            dict(row=ROWS[1], seconds=whole - once, what="the same process, without that"),
            dict(row=ROWS[2], seconds=again, what="from start to record"),
            dict(row=ROWS[3], seconds=second.train_seconds, what=f"{steps} steps of 8 images"),
            dict(row=ROWS[4], seconds=second.evaluate_seconds, what=f"{images[1]} images"),
            dict(row=ROWS[5], seconds=second.train_seconds / steps, what="8 images"),
            dict(row=ROWS[6], seconds=plain.train_seconds / _STEPS, what="8 images"),
        ]
    )


@contextlib.contextmanager
def _timed() -> Iterator[list[float]]:
    """Seconds of each time that features are computed in the block."""
    compute, found = features._compute, []

    def timed(*args) -> None:
        start = time.perf_counter()
        compute(*args)
        found.append(time.perf_counter() - start)

    with mock.patch.object(features, "_compute", timed):
        yield found


def _run(folder: Path, data: catalog.Data, words: Words) -> tuple[float, records.Record]:
    """Seconds of a run, and its record."""
    study = studies.find("frozen-probe")
    (row,) = runs.rows(study, "coco", "vit-s", words, ["none"])
    run = runs.run_of(study, study.name, "coco", row, 0, data, folder)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start, records.read(Path(run.folder) / records.RECORD)


def shown(table: pd.DataFrame, style: str = "simple") -> str:
    """The table, as text."""
    columns = {"": table.row, "seconds": [f"{s:.3g}" for s in table.seconds], "of": table.what}
    return tabulate(columns, headers="keys", tablefmt=style, disable_numparse=True)


def bench(to: Path, provenance: dict, console: Console) -> None:
    """Measure, print the table, and keep it as probe.csv and probe.md."""
    table = measure().assign(**provenance)
    console.print(shown(table))
    text = [*__doc__.splitlines(), "", shown(table, "pipe")]
    written = page.write(to, SUITE, table, text, provenance)
    console.print(f"\nwritten: {'  '.join(map(str, written))}")
