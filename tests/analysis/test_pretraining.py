"""`python -m analysis pretraining`, on runs that were really trained, if only a little."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from analysis import pretraining
from experiments.data.mini import classes as mini_classes
from experiments.data.pretraining_images import prepare
from experiments.jobs.pretraining_runs import plan
from experiments.records import PretrainingRecord

WORDS = {
    "train.max_iter": 4,
    "dataloader.train.total_batch_size": 4,
    "dataloader.train.micro_batch_size": 4,
}


def write_images(root: Path, **counts: int) -> Path:
    for split, count in counts.items():
        for index in range(count):
            image, category = mini_classes.draw(index + 9, split)  # all categories in both
            folder = root / split / str(category)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{index}.bmp")
    return root


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory) -> dict[str, Path]:
    """Runs "mae" and "sup" of one scale, on 12 + 9 images; "data" are these."""
    root = tmp_path_factory.mktemp("pretrained")
    data = write_images(root / "images", train=12, val=9)
    found = {"data": data, "scale": root / "runs" / "mini"}
    for recipe in ("mae", "sup"):
        (run,) = plan(
            f"recipe:{recipe}", "mini", "vit-mini", prepare("mini", str(data)), root / "runs", WORDS
        )
        run()
        found[recipe] = Path(run.folder)
    return found


@pytest.fixture
def scale(pretrained, tmp_path) -> Path:
    return Path(shutil.copytree(pretrained["scale"], tmp_path / "runs" / "mini"))


def test_table_curves_and_pictures(analysis, scale, pretrained):
    code, said = analysis("pretraining", scale)
    assert code == 0
    record = json.loads((pretrained["sup"] / PretrainingRecord.FILE).read_text())
    (row,) = [line for line in said.splitlines() if line.startswith("sup ")]
    assert f"accuracy {100 * record['figures']['accuracy']:.1f} %" in row
    assert f"cross entropy, nats {record['figures']['loss_cls']:.3f}" in row
    assert f"{record['train_macs'] / 1e9:.2f}" in row
    assert record["device"] in row
    assert f"effective rank {record['figures']['effective_rank']:.1f}" in row
    page = (scale / "pretrained" / "table.md").read_text()
    assert f"accuracy {100 * record['figures']['accuracy']:.1f} %" in page
    assert f"sup vit-mini seed 0: commit {record['git_commit']}, finished" in page
    written = said.split("written: ")[1].split()
    pictures = scale / "pretrained" / pretrained["mae"].name / "reconstructions.png"
    assert {Path(p).name for p in written[:4]} == {
        "table.md",
        *(f"learning-curves.{kind}" for kind in ("png", "svg", "csv")),
    }
    assert written[4:] == [str(pictures)]  # a classifier fills nothing in
    assert all(Path(path).is_file() for path in written)

    curves = pd.read_csv(scale / "pretrained" / "learning-curves.csv")
    of_mae = curves[curves["kind"] == "loss_pixels"]
    assert of_mae["run"].unique().tolist() == ["mae vit-mini seed 0"]
    assert of_mae["images"].tolist() == [4, 8, 12, 16]
    lines = (pretrained["mae"] / "metrics.json").read_text().splitlines()
    losses = {entry["iteration"]: entry["loss_pixels"] for entry in map(json.loads, lines)}
    np.testing.assert_allclose(of_mae["loss"], [losses[i] for i in range(4)])


def test_reconstructions_are_the_trained_models(pretrained, tmp_path, monkeypatch):
    """The pictures are validation images, what is shown of them is true, and the same each time;
    other weights fill in something else."""
    drawn = []
    monkeypatch.setattr(pretraining, "_draw", lambda name, pictures, path: drawn.append(pictures))
    folder = Path(shutil.copytree(pretrained["mae"], tmp_path / "run"))
    run = pretraining.load(pretrained["scale"])[pretrained["mae"]]
    for _ in range(2):
        pretraining.reconstructions(folder, run, tmp_path / "r.png")
    first, again = drawn
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    images, shown, filled = first
    assert images.shape == (8, 3, 128, 128)
    files = sorted((pretrained["data"] / "val").rglob("*.bmp"))
    np.testing.assert_array_equal(images[0].permute(1, 2, 0), np.asarray(Image.open(files[0])))
    hidden = ((images - shown).abs() > 0.5).any(1)
    assert 0.6 < hidden.float().mean() <= 0.75
    assert not torch.allclose(filled, shown)

    state = torch.load(folder / "model_final.pth", weights_only=True)
    state["model"]["decoder.pred.bias"] += 1
    torch.save(state, folder / "model_final.pth")
    (folder / "model_final.pth.sha256").unlink()
    pretraining.reconstructions(folder, run, tmp_path / "r.png")
    assert torch.equal(drawn[2][1], shown)
    assert not torch.allclose(drawn[2][2], filled)


def test_without_validation_images_training_images_are_drawn(pretrained):
    run = pretraining.load(pretrained["scale"])[pretrained["mae"]]
    alone = dataclasses.replace(run, data=run.data | {"val": ""}, figures={})
    images = pretraining._images(alone, lambda entry: {"image": torch.zeros(3, 2, 2)}, 99)
    assert len(images) == 12
    assert pretraining.table({Path(): alone})["validation"].tolist() == ["no images"]


def test_runs_of_one_name_are_told_apart(analysis, scale):
    (mae,) = (scale / "pretrained").glob("mae-*")
    other = Path(shutil.copytree(mae, mae.with_name("other")))
    record = json.loads((other / PretrainingRecord.FILE).read_text())
    record["fingerprint"] = "0123456789"
    (other / PretrainingRecord.FILE).write_text(json.dumps(record))
    assert analysis("pretraining", scale)[0] == 0
    curves = pd.read_csv(scale / "pretrained" / "learning-curves.csv")
    assert curves["run"].nunique() == 3
    assert "mae vit-mini seed 0 012345" in set(curves["run"])


@pytest.mark.parametrize("fault", ["no checkpoint", "is broken", "no config"])
def test_a_run_without_what_a_picture_needs_is_named(analysis, scale, fault):
    (mae,) = (scale / "pretrained").glob("mae-*")
    weights = mae / "model_final.pth"
    if fault == "no checkpoint":
        weights.unlink()
    elif fault == "is broken":
        weights.write_bytes(weights.read_bytes()[:-9])
    else:
        (mae / "config.yaml").unlink()
    code, said = analysis("pretraining", scale)
    assert code == 0
    assert f"no {mae / 'reconstructions.png'}: " in said
    assert fault in said
    assert "learning-curves.png" in said


def test_what_is_not_there_is_one_line(analysis, scale, tmp_path):
    code, said = analysis("pretraining", tmp_path / "nowhere")
    assert (code, said.count("\n")) == (2, 1)
    assert f"no folder at {tmp_path / 'nowhere'}" in said
    code, said = analysis("pretraining", tmp_path)
    assert (code, said.count("\n")) == (2, 1)
    assert "nothing is pre-trained in" in said
    (mae,) = (scale / "pretrained").glob("mae-*")
    record = json.loads((mae / PretrainingRecord.FILE).read_text())
    del record["recipe"]
    (mae / PretrainingRecord.FILE).write_text(json.dumps(record))
    code, said = analysis("pretraining", scale)
    assert (code, said.count("\n")) == (2, 1)
    assert "is no whole record" in said
