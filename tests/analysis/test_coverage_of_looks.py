"""Where seeds are added until verdicts are decided they err as rarely as is said."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from analysis import bootstrap, coverage, coverage_of_looks
from analysis.coverage_of_looks import BOUNDARY, NOTHING, SOMETHING, Case
from tests.conftest import ROOT


@pytest.mark.parametrize("effect", [NOTHING, SOMETHING, BOUNDARY])
def test_few_simulations(effect):
    found = coverage_of_looks.simulate(Case("alike", 4, 0.7, effect), 400)
    assert 100 * found.wrong.any(0).mean() <= 5 + 3.1 * (95 * 5 / 400) ** 0.5
    assert set(np.unique(found.seeds)) <= {3, 4, 5, 6, 8, 10, 13, 17}
    if effect == NOTHING:
        careless = coverage_of_looks.simulate(Case("alike", 4, 0.7, effect), 200, lambda look: 0.05)
        assert careless.wrong.any(0).mean() > 2 * found.wrong.any(0).mean()
    else:
        assert found.decided.mean() > 0.9
        assert found.seeds.mean() < 10


def test_a_row_with_more_seeds_uses_all_that_is_known_of_spreads():
    """Of rows that were decided early, too: not its own pairs alone, nor three seeds of all."""
    layout = coverage.Case("alike", 4, 8, 0.7)
    values, images, rows, seeds, _ = coverage.studies(layout, 1.0, 200, np.random.default_rng(0))
    here = (rows < 3) & (seeds < 5) | (rows == 3) & (seeds < 3) | (seeds < 4) & (rows == 1)
    parts = (values[here], images[:, here][:, :, here], rows[here], seeds[here])
    freedoms = {}
    for row, _, found in bootstrap.differences(*parts):
        if found.spread == "pooled":
            freedoms.setdefault(row, set()).add(found.freedom)
    # Three rows of five seeds tell more than four of three; the row of three has those of three.
    assert max(freedoms[1]) == max(freedoms[2]) == 2 * 4
    assert max(freedoms[3]) == 3 * 2


def test_rare_errors_take_no_integral():
    estimate = bootstrap.Estimate(0.0, 1.0, 0.0, 1.0, 8, "pooled", rows=4, correlation=0.5)
    low, high = (dataclasses.replace(estimate, error=e).interval()[1] for e in (0.04, 0.001))
    assert 2.5 < low < high < 7


def test_what_is_kept_reaches_the_bar():
    found = pd.read_csv(ROOT / "results" / "coverage" / "looks.csv")
    assert set(found["spreads"]) == set(coverage.LAYOUTS)
    assert found["false"].max() <= 5
    assert found["uncorrected"].max() > 8
    of_effect = found[found["effect"] == SOMETHING]
    assert of_effect["decided"].min() > 95
    assert of_effect["seeds"].max() < 8
    assert set(found["effect"]) == {NOTHING, SOMETHING, BOUNDARY}


def test_what_is_kept_is_what_the_code_counts():
    found = coverage_of_looks.run([Case("alike", 3, 0.7, NOTHING)])
    kept = pd.read_csv(ROOT / "results" / "coverage" / "looks.csv")
    words = list(Case._fields)
    kept = kept.set_index(words).loc[pd.MultiIndex.from_frame(found[words])]
    pd.testing.assert_frame_equal(found.set_index(words), kept, rtol=0, atol=0.05)
