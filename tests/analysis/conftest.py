"""A study that was run, without training: records with real predictions on a real ground truth."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from analysis import results as results_of
from analysis.__main__ import app, console
from experiments import commands, records
from experiments.evaluation import average_precision, matches
from experiments.json_files import write_json
from experiments.recipe import config
from experiments.records import FOREIGN, MANIFEST, VERSION, looks
from tests.conftest import ROOT
from tests.experiments.evaluation.test_matches import random_set
from tests.experiments.records.test_records import make

PUBLISHED = {"none": {"vit-b": "T8a:0", "vit-l": "T2a:0"}, "global": {"vit-b": "T8a:1"}, "own": {}}
# Of each row and seed, which of the set's detections it makes.
FOUND = {
    ("none", 0): slice(0, None, 3),
    ("none", 1): slice(1, None, 3),
    ("global", 0): slice(0, None, 2),
    ("global", 1): slice(1, None, 2),
    ("own", 0): slice(0, None, 1),
}


def write_run(folder: Path, truth: Path, results: list[dict], **words) -> records.Record:
    """A finished run with its predictions, figures and matches."""
    folder.mkdir(parents=True)
    predictions = folder / "coco_instances_results.json"
    predictions.write_text(json.dumps(results))
    figures = {
        kind: average_precision.coco_figures(matches.of_file(truth, predictions, kind))
        for kind in matches.KINDS
    }
    data = dict(kind="coco", digest="d", train=str(truth), val=str(truth))
    record = make(**figures, **{"data": data, **words})
    records.write(folder, record)
    return record


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """What `study` is a copy of, with its ground truth beside it."""
    root = tmp_path_factory.mktemp("finished")
    folder = root / "some-study"
    folder.mkdir()
    truth, results = random_set(3, images=40)
    (root / "truth.json").write_text(json.dumps(truth))
    runs = []
    for variant in PUBLISHED:
        for seed in (0, 1):
            name = f"{variant}-{seed}"
            runs.append(dict(variant=variant, seed=seed, folder=name))
            if (variant, seed) in FOUND:
                write_run(
                    folder / name,
                    root / "truth.json",
                    results[FOUND[variant, seed]],
                    variant=variant,
                    seed=seed,
                    macs={"none": 10, "global": 12, "own": 14}[variant] * 10**8,
                    config={"model": {"word": variant}, "train": {"seed": seed, "max_iter": 9}},
                )
    write_json(
        folder / MANIFEST,
        dict(
            version=VERSION, study="some-study", question="What?", scale="mini",
            base="none", command="python -m experiments run some-study", runs=runs,
            variants=[
                dict(name=v, size="vit-mini", words={}, published=p) for v, p in PUBLISHED.items()
            ],
        ),
    )  # fmt: skip
    results_of.load(folder)  # keeps draws, which take their time
    return folder


@pytest.fixture
def study(finished, tmp_path) -> Path:
    """Rows of two seeds, two seeds, and one of two; costs 10, 12 and 14 x 10^8 MACs."""
    nobody_looked = shutil.ignore_patterns(looks.FILE)
    folder = tmp_path / "runs" / "mini" / "some-study"
    return shutil.copytree(finished, folder, ignore=nobody_looked)


@pytest.fixture
def analysis(monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """`python -m analysis` in this process: its exit code, and what it printed."""

    def call(*words) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["analysis", *map(str, words)])
        code = commands.run(app, console)
        return code, capsys.readouterr().out

    return call


@pytest.fixture(scope="session")
def _trained_run(tmp_path_factory, small_set) -> Path:
    """What `trained_run` is a copy of."""
    folder = tmp_path_factory.mktemp("study") / "run"
    folder.mkdir()
    cfg = config.load(ROOT / "configs/mini/mask_rcnn_vit_mini.py")
    cfg.dataloader.test.dataset = small_set["val"]
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    torch.manual_seed(0)
    torch.save({"model": instantiate(cfg.model).state_dict()}, folder / "model_final.pth")
    return folder


@pytest.fixture
def trained_run(_trained_run, tmp_path) -> Path:
    """A finished run's folder as far as its encoder is concerned, untrained."""
    return Path(shutil.copytree(_trained_run, tmp_path / "run"))


def runs_of(*folders: Path) -> SimpleNamespace:
    """What a picture needs of `Results`: rows a, b, ..., one that has not run, a foreign one."""
    names = [chr(ord("a") + i) for i in range(len(folders))]
    rows = [
        dict(variant=name, seed=0, path=str(folder / "record.json"), fingerprint="0")
        for name, folder in zip(names, folders, strict=True)
    ]
    foreign = dict(variant="theirs", seed=0, path="nowhere/record.json", fingerprint=FOREIGN)
    table = pd.DataFrame(dict(variant=[*names, "unfinished", "theirs"]))
    records = pd.DataFrame([*rows, foreign] if rows else [])
    return SimpleNamespace(manifest=dict(study="known"), records=records, table=table)
