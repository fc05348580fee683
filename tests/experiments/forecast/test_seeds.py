"""Seeds until verdicts are decided: what is wanted, what comes next, what fits a budget."""

from types import SimpleNamespace

import pytest

from experiments.errors import UserError
from experiments.forecast import seeds
from experiments.forecast.seeds import Limits
from experiments.json_files import write_json
from experiments.records import MANIFEST, VERSION


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("0", None, ""), 0),
        (("5", None, ""), 5),
        (("auto", None, ""), Limits(17, "")),
        (("auto", 4, "2h"), Limits(4, "2h")),
    ],
)
def test_words(words, expected):
    assert seeds.parse(*words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("two", None, ""), "--seeds two is no integer"),
        (("-1", None, ""), "--seeds -1 is no integer"),
        (("3", 5, ""), "go with SEEDS=auto"),
        (("0", None, "2h"), "go with SEEDS=auto"),
        (("auto", 1, ""), "MAX_SEEDS=1: a verdict needs 2 seeds"),
        (("auto", 0, ""), "MAX_SEEDS=0"),
        (("auto", None, "2"), "BUDGET=2 is no time: 90m, 2h or 1.5d"),
        (("auto", None, "two hours"), "BUDGET=two hours is no time"),
    ],
)
def test_wrong_words(words, message):
    with pytest.raises(UserError, match=message):
        seeds.parse(*words)


@pytest.mark.parametrize(("text", "hours"), [("90m", 1.5), ("1.5d", 36), ("36s", 0.01), ("", 1e99)])
def test_budgets(text, hours):
    assert min(Limits(17, text).hours, 1e99) == pytest.approx(hours)


def rows(*names):
    return [SimpleNamespace(variant=SimpleNamespace(name=name)) for name in names]


def test_what_is_wanted_first():
    limits = Limits(17, "")
    assert seeds.first(rows("a", "b"), {}, limits) == {"a": 3, "b": 3}
    assert seeds.first(rows("a", "b"), {}, Limits(2, "")) == {"a": 2, "b": 2}
    # Gone on with: what was asked for last, the base with as many as any.
    assert seeds.first(rows("a", "b", "c"), {"a": 2, "b": 5}, limits) == {"a": 5, "b": 5, "c": 3}
    assert seeds.first(rows("a", "b"), {"a": 30, "b": 30}, limits) == {"a": 17, "b": 17}
    with pytest.raises(UserError, match="compares rows with the first, a"):
        seeds.first(rows("a"), {}, limits)


def test_what_comes_next():
    counts = {"a": 6, "b": 6, "c": 4}
    assert seeds.more(counts, ["b"], 17) == [{"a": 8, "b": 8, "c": 4}, {"a": 7, "b": 7, "c": 4}]
    assert seeds.more(counts, ["b", "c"], 17)[0] == {"a": 8, "b": 8, "c": 5}
    assert seeds.more(counts, ["b"], 7) == [{"a": 7, "b": 7, "c": 4}]
    assert seeds.more(counts, ["b"], 6) == []


def test_what_was_asked_for_last(tmp_path):
    assert seeds.last_asked(tmp_path) == set()
    (tmp_path / MANIFEST).write_text('{"version": 1, "ru')
    assert seeds.last_asked(tmp_path) == set()
    planned = [
        SimpleNamespace(variant=name, seed=seed, folder=f"/x/{name}-{seed}")
        for seed in range(4)
        for name in "ab"
    ]
    asked = [("a", 0, "../x/a-0"), ("a", 2, "a-2"), ("b", 0, "other-b-0"), ("c", 0, "c-0")]
    runs = [dict(variant=v, seed=s, folder=f) for v, s, f in asked]
    write_json(tmp_path / MANIFEST, dict(version=VERSION, runs=runs))
    assert seeds.asked_for(seeds.last_asked(tmp_path), planned) == {"a": 3}


def test_what_fits():
    runs = [SimpleNamespace(variant=name, done=done) for name, done in (("a", True), ("b", False))]
    limits = Limits(17, "2h")
    assert seeds.fits(limits, runs, {"a": [1.0]}, {})
    assert not seeds.fits(limits, runs, {"a": [0.8, 0.8]}, {})
    assert seeds.fits(limits, runs, {"a": [1.0], "b": [0.25, 0.25]}, {})
    assert not seeds.fits(limits, runs, {}, {"b": 2.5})
    with pytest.raises(UserError, match="BUDGET=2h fits no look at verdicts: it takes 1 runs, "):
        seeds.check_fits(limits, runs, {}, {"b": 2.5})
    assert not seeds.fits(limits, runs, {}, {"b": float("nan")})
    with pytest.raises(UserError, match="BUDGET=2h needs to know what a run takes"):
        seeds.check_fits(limits, runs, {}, {"b": float("nan")})


def test_what_is_said():
    verdicts = dict(a="", b="better", c="equal within ±2", d="undecided")
    words, still = seeds.said(verdicts, ["b", "c", "d", "e"])
    assert words == "b better, c equal, d undecided, e no verdict"
    assert still == ["d", "e"]
