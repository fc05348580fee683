"""The benchmark of evaluation: its set is COCO's in shape, its rows agree."""

from collections import Counter

import pytest

from benchmarks import evaluation


def test_the_set_is_of_val2017s_size():
    truth, results = evaluation.simulate("box", images=100)
    assert len(results) == 100 * 100
    assert len(truth["annotations"]) == evaluation.OBJECTS // 50
    assert set(Counter(result["image_id"] for result in results).values()) == {100}


@pytest.mark.parametrize("kind", evaluation.KINDS)
def test_rows_agree(kind):
    theirs, ours = (
        evaluation.measured(f"{kind}: {name}", images=30)["values"]
        for name in ("pycocotools", "ours")
    )
    assert ours == pytest.approx(theirs, abs=1e-9)
    assert 5 < ours[0] < 60
