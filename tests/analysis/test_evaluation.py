"""An evaluated checkpoint beside what is published for it."""

import json
import shutil
from pathlib import Path

import pytest

from analysis import compare, evaluation, paper
from experiments import records
from experiments.errors import UserError
from experiments.evaluation import average_precision, matches
from experiments.json_files import write_json
from experiments.records import FOREIGN, MANIFEST, VERSION
from tests.experiments.evaluation.test_matches import random_set
from tests.experiments.records.test_records import make

RELEASED = paper.load("released_models").to_dict("records")


@pytest.fixture(scope="session")
def _evaluation(tmp_path_factory) -> Path:
    """As `make eval-coco` leaves it, of random detections."""
    root = tmp_path_factory.mktemp("evaluations")
    folder = root / "evaluation"
    folder.mkdir()
    truth, results = random_set(3, images=40)
    file = root / "instances_val2017.json"
    file.write_text(json.dumps(truth))
    predictions = folder / "coco_instances_results.json"
    predictions.write_text(json.dumps(results))
    figures = {
        kind: average_precision.coco_figures(matches.of_file(file, predictions, kind))
        for kind in matches.KINDS
    }
    data = dict(kind="coco", val=str(file))
    record = dict.fromkeys(records.Record.__dataclass_fields__) | vars(
        make(study="", scale="", fingerprint=FOREIGN, data=data, macs=None, config={}, **figures)
    )
    records.write(folder, records.Record(**record))
    result = dict(
        weights=str(root / "model_final_61ccd1.pkl"), overrides="", data=data, images=40,
        seconds=20.0, processes=2, device="a GPU", **figures,
    )  # fmt: skip
    write_json(folder / "result.json", result)
    evaluation.table(folder)  # keeps draws, which take their time
    return folder


@pytest.fixture
def folder(_evaluation, tmp_path) -> Path:
    return shutil.copytree(_evaluation, tmp_path / "evaluation")


def change(folder: Path, **words) -> dict:
    result = evaluation.read(folder) | words
    write_json(folder / "result.json", result)
    return result


def write_trained(folder: Path, size: str = "vit-b", **words) -> Path:
    """A run of a study, as far as it is known by its files; its weights."""
    study = folder / "count"
    (study / "run").mkdir(parents=True)
    records.write(study / "run", make(variant="all", size=size, **words))
    variants = [
        dict(name="none", size="", words={}, published={"vit-b": "T8d:0"}),
        dict(name="all", size="", words={}, published={"vit-b": "T8d:3 T3:1"}),
    ]
    write_json(
        study / MANIFEST,
        dict(
            version=VERSION, study="count", question="?", scale="coco", base="none", command="",
            runs=[], variants=variants,
        ),
    )  # fmt: skip
    return study / "run" / "model_final.pth"


@pytest.mark.parametrize("row", RELEASED, ids=lambda row: row["config"])
def test_released_models_are_known_by_their_file_name(row):
    found = evaluation.published(Path("weights") / row["checkpoint"].split("/")[-1])
    assert found.ap == {"box": row["ap_box"], "mask": row["ap_mask"]}
    assert found.dataset == row["dataset"].lower()
    assert row["source"] in found.of


def test_a_run_has_the_papers_ap_of_its_row_and_size(tmp_path):
    found = evaluation.published(write_trained(tmp_path))
    row = paper.published().loc["T8d:3"]
    assert found.ap == {"box": row.ap_box, "mask": row.ap_mask}
    assert found.of == "the paper's Table 8d, row 3: all, vit-b; trained by its authors"
    assert found.dataset == "coco"


@pytest.mark.parametrize("words", [dict(size="vit-h"), dict(variant="another")])
def test_what_the_paper_lacks_is_not_published(tmp_path, words):
    words = dict(size="vit-b") | words
    weights = write_trained(tmp_path, words.pop("size"))
    if words:
        records.write(weights.parent, make(size="vit-b", **words))
    assert evaluation.published(weights) is None
    assert evaluation.published(tmp_path / "model_final.pth") is None


def test_figures_and_intervals_beside_what_is_published(folder, monkeypatch):
    monkeypatch.setitem(evaluation.PAPERS_DATA, "coco", ("", "instances_val2017.json", 40))
    result = evaluation.read(folder)
    table = evaluation.table(folder)
    assert list(table.columns) == ["", *records.COCO_FIGURES]
    names = ["± 95 %", "published", "difference"]
    assert list(table[""]) == ["box", *names, "mask", *names]
    for kind, at, ap in (("box", 0, 51.6), ("mask", 4, 45.9)):
        assert list(table.iloc[at, 1:]) == [f"{value:.1f}" for value in result[kind].values()]
        assert 0 < float(table.AP[at + 1]) < 50
        assert table.AR100[at + 1] == table.AR100[at + 2] == ""
        assert table.AP[at + 2] == str(ap)
        assert table.AP[at + 3] == f"{result[kind]['AP'] - ap:+.1f}"
    notes = evaluation.notes(folder)
    assert "40 images of" in notes[0]
    assert "20 s, 2.00 images/s on 2 x a GPU" in notes[0]
    assert notes[1].startswith("published: released model model_final_61ccd1.pkl (Mask R-CNN, ")
    assert not any("not comparable" in note for note in notes)


@pytest.mark.parametrize("images", [40, 5000])
def test_ap_on_other_images_is_not_comparable(folder, images):
    """Fewer of them, or as many of another file."""
    data = {"kind": "coco", "val": "val.json" if images == 5000 else "instances_val2017.json"}
    change(folder, images=images, data=data)
    table = evaluation.table(folder)
    assert "difference" not in set(table[""])
    assert "published" in set(table[""])
    told = f"published AP is on the 5000 images of COCO val2017, this on {images} of {data['val']}"
    assert f"not comparable: {told}" in evaluation.notes(folder)


def test_unknown_weights_and_overrides(folder):
    change(folder, weights=str(folder / "model.pth"), overrides="test.soft_nms=linear")
    assert list(evaluation.table(folder)[""]) == ["box", "± 95 %", "mask", "± 95 %"]
    notes = evaluation.notes(folder)
    assert notes[1] == "with overrides: test.soft_nms=linear"
    assert notes[2].startswith("nothing is published for these weights")


def test_boxes_alone_and_no_ground_truth(folder):
    change(folder, mask={})
    assert "mask" not in set(evaluation.table(folder)[""])
    change(folder, box={}, mask={})
    assert evaluation.table(folder).empty
    assert any("no ground truth" in note for note in evaluation.notes(folder))


def test_it_is_compared_like_a_run(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    table = compare.ap_table(folder, other)
    assert set(table.kind) == {"box", "mask"}
    assert (table.difference == 0).all()


def test_no_evaluation(tmp_path):
    with pytest.raises(UserError, match=r"no finished evaluation in .*: make one with"):
        evaluation.table(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*Move it away and evaluate again"):
        evaluation.notes(tmp_path)


def test_the_command(folder, analysis):
    code, out = analysis("evaluation", folder)
    assert code == 0
    assert "published  51.6" in out
    assert "not comparable" in out
