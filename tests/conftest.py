"""Shared pieces of the tests."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from experiments.data import annotations
from experiments.data.mini import detection as mini

# Where no GPU is, Triton's kernels are interpreted: to be said before anything imports triton.
if not torch.cuda.device_count():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Two test processes share two cores.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("analysis", "backbones", "configs", "experiments")


def write_set(root: Path, split: str, count: int) -> Path:
    """The first `count` images of the mini set as a COCO-format set; returns the json."""
    folder = root / split
    folder.mkdir(parents=True)
    coco = dict(images=[], annotations=[], categories=mini.categories())
    for index in range(count):
        image, annotations = mini.draw(index, split)
        Image.fromarray(image).save(folder / f"{index}.bmp")
        coco["images"].append(
            dict(id=index + 1, file_name=f"{index}.bmp", height=mini.SIDE, width=mini.SIDE)
        )
        for annotation in annotations:
            number = len(coco["annotations"]) + 1
            coco["annotations"].append(dict(id=number, image_id=index + 1, **annotation))
    path = root / f"{split}.json"
    path.write_text(json.dumps(coco))
    return path


def study_folder(runs: Path, study: str, own: dict[str, str], scale: str = "mini") -> Path:
    """Of a study on a set as of `small_set`."""
    return runs / scale / annotations.study_folder(study, annotations.set_name(*own.values()))


@pytest.fixture(scope="session")
def small_set(tmp_path_factory) -> dict[str, str]:
    """A COCO-format set of 24 + 10 images, as the commands take it."""
    root = tmp_path_factory.mktemp("small-set")
    return {
        "dataset": f"{write_set(root, 'train', 24)},{root / 'train'}",
        "val": f"{write_set(root, 'val', 10)},{root / 'val'}",
    }


@pytest.fixture(scope="session")
def clone(tmp_path_factory) -> Path:
    """What is installed of this checkout, elsewhere: what is done there leaves files behind."""
    folder = tmp_path_factory.mktemp("clone")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="session")
def coco() -> Path:
    """A folder with real COCO images in COCO's layout, as $DETECTRON2_DATASETS."""
    for folder in (os.environ.get("DETECTRON2_DATASETS"), ROOT.parent / "shared" / "data"):
        if folder and (Path(folder) / "coco/annotations/instances_val2017.json").is_file():
            return Path(folder)
    pytest.skip("no COCO images: set DETECTRON2_DATASETS to the folder that holds coco/")
