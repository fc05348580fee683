"""The benchmark of evaluation: its set is COCO's in shape, its rows agree."""

import json
from collections import Counter

import pytest

from benchmarks import evaluation
from experiments.evaluation import evaluate


def test_the_set_is_of_val2017s_size():
    truth, results = evaluation.simulate("box", images=100)
    assert len(results) == 100 * 100
    assert len(truth["annotations"]) == evaluation.OBJECTS // 50
    assert set(Counter(result["image_id"] for result in results).values()) == {100}


def test_rows_agree():
    rows = [row for row in evaluation.ROWS if "resamples" not in row]
    found = [evaluation.measured(row, images=30) for row in rows]
    table = evaluation.compared(found).set_index("row")
    cpu = {line["row"]: line["cpu"] for line in found}
    for kind in evaluation.KINDS:
        ours = table.loc[f"{kind}: ours"]
        assert ours["error"] < 1e-9
        assert ours["times_faster"] == cpu[f"{kind}: pycocotools"] / cpu[f"{kind}: ours"]
    assert all(5 < line["values"][0] < 60 for line in found)


def test_lviss_set_and_its_row(tmp_path):
    truth, found = evaluation.write_lvis(tmp_path, images=40)
    row = evaluation.measured_lvis(tmp_path, images=40)
    together = tmp_path / "all.json"
    lines = map(json.loads, found.read_text().splitlines())
    together.write_text(json.dumps([result for line in lines for result in line]))
    assert together.read_text().count('"score"') == 40 * 300
    theirs = evaluate.lvis_figures(truth, together, "mask")
    assert row["values"][9:18] == pytest.approx(list(theirs.values())[:9], abs=1e-9)
    assert 2 < row["values"][0] < 60
