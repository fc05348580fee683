"""Resampled figures are the references' on the resampled set; intervals hold what they say."""

import copy
import dataclasses
import functools
import json
import math

import numpy as np
import pytest
from scipy import stats

from analysis import bootstrap, estimates
from analysis.bootstrap import Draws
from analysis.estimates import Estimate
from experiments import records
from experiments.errors import UserError
from experiments.evaluation import average_precision, matches
from experiments.evaluation.matches import IOUS, Matches
from experiments.records import COCO_FIGURES, LVIS_FIGURES
from tests.experiments.evaluation.test_matches import (
    lvis_package,
    pycocotools,
    random_lvis_set,
    random_set,
)
from tests.experiments.records.test_records import make

RATES = np.array([1.5, 0.6, 0.3, 0.15])  # objects per image, by category
LEVELS = (0.5, 0.8)  # skills of two variants
SEED_STD = 0.08  # of skill
IMAGES = 300


def resampled(truth: dict, results: list[dict], weights: np.ndarray) -> tuple[dict, list[dict]]:
    """The set with images as often as the weights say, as images of their own."""
    new, detections = dict(truth, images=[], annotations=[]), []
    for image in sorted(truth["images"], key=lambda image: image["id"]):
        order = np.argmax(np.array(sorted(i["id"] for i in truth["images"])) == image["id"])
        for _ in range(weights[order]):
            number = len(new["images"]) + 1
            new["images"].append(dict(image, id=number))
            for annotation in truth["annotations"]:
                if annotation["image_id"] == image["id"]:
                    identity = len(new["annotations"]) + 1
                    new["annotations"].append(dict(annotation, id=identity, image_id=number))
            mine = [r for r in results if r["image_id"] == image["id"]]
            detections += [dict(copy.deepcopy(r), image_id=number) for r in mine]
    return new, detections


def reference(truth: dict, results: list[dict], kind: str, rules: str) -> np.ndarray:
    """(6,) or (9,) figures."""
    if rules == "coco":
        values = pycocotools(truth, results, kind).stats[:6] * 100
    else:
        found = lvis_package(truth, results, kind).results
        values = np.array([100 * found[figure] for figure in LVIS_FIGURES])
    return np.where(values < 0, np.nan, values)


@pytest.mark.parametrize("rules", ["coco", "lvis"])
@pytest.mark.parametrize("kind", matches.KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_weights_are_images_that_occur_so_often(seed, kind, rules):
    truth, results = (random_set if rules == "coco" else random_lvis_set)(seed)
    # The references take the id 0 for none, and there is none in the resampled set.
    truth["annotations"] = [dict(a, id=a["id"] + 1) for a in truth["annotations"]]
    for i, result in enumerate(results):
        result["score"] += i * 1e-6 * (1 - result["score"])  # without ties
    found = matches.compute(truth, results, kind, rules=rules)
    weights = bootstrap.resample(len(found.images), 3, seed)
    weights[2] = 0
    weights[2, :2] = 5  # most categories and areas are not in it
    ours = average_precision.figures(found, weights)
    for row, mine in zip(weights, ours, strict=True):
        theirs = reference(*resampled(truth, results, row), kind, rules)
        assert mine == pytest.approx(theirs, abs=1e-9, nan_ok=True)


def test_recalls_that_no_float_hits_are_pycocotools():
    """Out of 100 objects recalls are hundredths, to the last bit or not."""
    objects = np.full(3, 100)
    expected = np.searchsorted(np.linspace(0, 1, 101), np.arange(101) / 100, side="right")
    assert (average_precision._reached(objects) == expected).all()


def test_resamples_draw_each_image_once_in_the_mean():
    weights = bootstrap.resample(50, 400, seed=3)
    assert (weights.sum(1) == 50).all()
    assert abs(weights.mean(0) - 1).max() < 5 * math.sqrt(1 / 400)
    assert (weights == bootstrap.resample(50, 400, seed=3)).all()
    assert (weights != bootstrap.resample(50, 400, seed=4)).any()


def simulate(skills: list[float], random: np.random.Generator, images: int = IMAGES):
    """Runs on the same images: what is hard in one image or object is hard for all of them."""
    hard = random.normal(size=images)
    counts = random.poisson(random.gamma(1.5, 1 / 1.5, (images, 1)) * RATES)
    image = np.repeat(np.arange(images), counts.sum(1))
    category = np.repeat(np.tile(np.arange(4), images), counts.ravel())
    area = random.integers(1, 4, len(image))
    difficulty = 0.7 * random.normal(size=len(image)) + 0.6 * hard[image]
    objects = np.zeros((images, 4, 4), np.uint16)
    np.add.at(objects, (image, category, 0), 1)
    np.add.at(objects, (image, category, area), 1)
    return [
        _run(skill, image, category, area, difficulty, hard, objects, random) for skill in skills
    ]


def _run(skill, image, category, area, difficulty, hard, objects, random) -> Matches:
    """One detection of each object, the better the more certain, and some of nothing."""
    quality = skill + difficulty + 0.5 * random.normal(size=len(image))
    level = np.searchsorted(IOUS, 1 / (1 + np.exp(-quality)), side="right")
    score = quality + 0.8 * random.normal(size=len(image))
    wrong = np.repeat(np.arange(len(hard)), random.poisson(np.exp(0.3 - 0.5 * hard)))
    image = np.append(image, wrong)
    category = np.append(category, random.choice(4, len(wrong), p=RATES / RATES.sum()))
    area = np.append(area, random.integers(1, 4, len(wrong)))
    level = np.append(level, np.zeros(len(wrong), int))
    score = np.append(score, random.normal(-0.7, 1, len(wrong)))
    order = np.lexsort((-score, category))
    within = (area[order] == np.arange(4)[:, None]) | (np.arange(4) == 0)[:, None]
    return Matches(
        images=np.arange(len(hard)),
        categories=np.arange(4),
        start=np.searchsorted(category[order], np.arange(5)),
        image=image[order],
        rank=np.zeros(len(order), np.uint8),
        matched=np.broadcast_to((1 << level[order]) - 1, within.shape).astype(np.uint16),
        ignored=np.where(within, 0, 1023).astype(np.uint16),
        objects=objects,
        frequency=np.zeros(0, "U1"),
    )


@functools.cache
def true_difference(seed_std: float) -> dict[str, float]:
    """Of the variants, over images and seeds: of so many images that it has 1/20 of the error of
    the simulations' sets, and seeds one standard deviation off to either side."""
    skills = [level + s * seed_std for level in LEVELS for s in (-1, 1)]
    runs = simulate(skills, np.random.default_rng(99), 400 * IMAGES)
    low, high = np.array([average_precision.figures(m) for m in runs]).reshape(2, 2, 6)
    return dict(zip(COCO_FIGURES[:6], (high - low).mean(0), strict=True))


def differences(count: int, seeds: int, seed_std: float) -> list[dict[str, Estimate]]:
    found = []
    for number in range(count):
        random = np.random.default_rng([number, seeds])
        skills = np.repeat(LEVELS, seeds) + seed_std * random.normal(size=2 * seeds)
        runs = simulate(skills.tolist(), random)
        draws = [bootstrap.draw(run, resamples=150, seed=number) for run in runs]
        found.append(bootstrap.paired(draws[seeds:], draws[:seeds]))
    return found


def check_coverage(found: list[dict], truth: dict[str, float], low: float, high: float) -> None:
    for figure in ("AP", "AP50", "AP75"):
        intervals = [f[figure].interval() for f in found]
        held = np.mean([a <= truth[figure] <= b for a, b in intervals])
        assert low <= held <= high, (figure, held)
    # At the boundary two one-sided tests at 5 % find equality in 5 %.
    equal = [f["AP"].verdict(delta=truth["AP"]).startswith("equal") for f in found]
    assert np.mean(equal) <= 0.05 + 2.33 * math.sqrt(0.05 * 0.95 / len(found))
    assert np.mean([f["AP"].verdict(truth["AP"] + 100).startswith("equal") for f in found]) == 1


def test_intervals_of_few_simulations():
    """Of 40, 95 % intervals hold the truth in 33 or more with probability 0.9993."""
    check_coverage(differences(40, 1, 0.0), true_difference(0.0), 33 / 40, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "seed_std"),
    [
        (1, 0.0),
        (2, SEED_STD),
        (3, 0.0),
        (3, SEED_STD),
    ],
)
def test_intervals_hold_the_truth(seeds, seed_std):
    """Of 200; `make coverage` has whole tables. Where seeds do not differ they are too long."""
    high = 0.98 if seeds == 1 or seed_std else 1
    check_coverage(differences(200, seeds, seed_std), true_difference(seed_std), 0.91, high)


@pytest.mark.parametrize("seeds", [(2,), (3,), (1, 2), (2, 2), (3, 3), (5, 5)])
@pytest.mark.parametrize("of_seeds", [0.3, 1.0, 3.0])
def test_intervals_of_few_seeds_are_not_too_short(seeds, of_seeds):
    """Of normal figures whose error over images is 1 for all runs of a row, 0.3 for each: 1,000
    intervals that hold the truth in 95 % do so in less than 92.9 % with probability 0.001."""
    random = np.random.default_rng(0)
    rows = np.repeat(np.arange(len(seeds)), seeds)
    values = random.normal(size=(len(seeds), 1000))[rows]
    values += math.hypot(of_seeds, 0.3) * random.normal(size=values.shape)
    images = (np.equal.outer(rows, rows) + 0.09 * np.eye(len(rows)))[None]
    if len(seeds) == 1:
        weights = np.full(len(rows), 1 / len(rows))
        found = bootstrap._estimate(values, images, rows, rows, weights, "own")
    else:
        found = bootstrap._unpaired(values, images, rows, 1)
    low, high = found.interval()
    assert np.mean((low <= 0) & (high >= 0)) >= 0.929


def test_one_run_and_its_interval():
    (run,) = simulate([0.5], np.random.default_rng(0))
    draws = bootstrap.draw(run, resamples=200)
    ap = bootstrap.bootstrap([draws])["AP"]
    assert ap.value == average_precision.coco_figures(run)["AP"]
    assert ap.std == ap.std_images == pytest.approx(draws.resampled[:, 0].std(ddof=1))
    assert ap.std_seeds is None
    assert ap.interval() == pytest.approx(
        (ap.value - 1.96 * ap.std, ap.value + 1.96 * ap.std), 1e-4
    )


def test_pairing_takes_out_what_runs_share():
    a, b = (bootstrap.draw(m) for m in simulate([0.5, 0.5], np.random.default_rng(0)))
    alone = math.hypot(*(bootstrap.bootstrap([run])["AP"].std for run in (a, b)))
    assert bootstrap.paired([a], [b])["AP"].std < 0.8 * alone
    same = bootstrap.paired([a], [a])["AP"]
    assert same.value == 0
    assert same.std == pytest.approx(0, abs=1e-6)
    assert same.verdict(0.5) == "equal within ±0.5"


def of_values(values: list[float], noise: np.ndarray) -> list[Draws]:
    """Runs whose resampled figures are their own with noise, (runs, R)."""
    values = np.array(values)
    return [
        Draws(np.full(6, v), np.repeat(v + n[:, None], 6, axis=1), "same")
        for v, n in zip(values, noise, strict=True)
    ]


def test_both_sources_are_named_and_combined():
    random = np.random.default_rng(0)
    shared = random.normal(size=(1, 4000)).repeat(4, axis=0)
    values = [10.0, 11.0, 12.0, 15.0]
    # What all runs have alike is not in their difference.
    runs = of_values(values, shared)
    found = bootstrap.paired(runs[2:], runs[:2])["AP"]
    pooled = (0.5 + 4.5) / 2
    assert found.value == 3
    assert found.std_images == pytest.approx(0, abs=1e-6)
    assert found.std_seeds == pytest.approx(math.sqrt(pooled * (1 / 2 + 1 / 2)))
    assert found.std == pytest.approx(found.std_seeds)
    assert found.freedom == 2
    assert found.interval() == pytest.approx(
        (3 - 4.30265 * found.std, 3 + 4.30265 * found.std), 1e-4
    )
    # In a mean over seeds it is; seeds and images add up.
    found = bootstrap.bootstrap(runs)["AP"]
    assert found.std_images == pytest.approx(shared[0].std(ddof=1))
    assert found.std_seeds == pytest.approx(np.std(values, ddof=1) / 2)
    assert found.std**2 == pytest.approx(found.std_images**2 + found.std_seeds**2)
    half = math.hypot(1.95996 * found.std_images, 3.18245 * found.std_seeds)
    assert found.interval() == pytest.approx((12 - half, 12 + half), 1e-4)
    # What each run has for itself is in the spread of both, and is counted once.
    own = random.normal(size=(4, 4000)) * 1.5
    found = bootstrap.bootstrap(of_values(values, own))["AP"]
    deviations = own - own.mean(0)
    both = deviations.var(axis=1, ddof=1).sum() / 3 / 4
    assert both == pytest.approx(found.std_images**2, rel=0.05)
    expected = found.std_images**2 + found.std_seeds**2 - both
    assert found.std**2 == pytest.approx(expected)


def test_verdicts():
    def verdict(value: float, std: float, delta: float = 0.5) -> str:
        return Estimate(value, std, std, None, math.inf).verdict(delta)

    assert verdict(1.0, 0.5) == "better"
    assert verdict(-1.0, 0.5) == "worse"
    assert verdict(0.95, 0.5) == "undecided"
    assert verdict(0.0, 0.30) == "equal within ±0.5"
    assert verdict(0.0, 0.31) == "undecided"
    assert verdict(0.0, 0.31, delta=0.6) == "equal within ±0.6"
    # Surely not 0, but surely of no interest.
    assert verdict(0.3, 0.1) == "equal within ±0.5"
    assert verdict(-0.3, 0.13) == "worse"


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.7062), (2, 4.3027), (10, 2.2281), (999, 1.9623), (1e9, 1.96)]
)
def test_student(freedom, expected):
    """Of published tables."""
    assert Estimate(0.0, 1.0, 0.0, 1.0, freedom, rows=4).interval()[1] > expected
    estimate = Estimate(0.0, 1.0, 0.0, 1.0, freedom)
    assert estimate.interval() == pytest.approx((-expected, expected), abs=1e-4)


# ---- Rows of a study ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sides", "rows", "freedom", "expected"),
    [(2, 2, 6, 2.86), (2, 3, 20, 2.54), (2, 4, 20, 2.65), (2, 9, 20, 2.95), (1, 4, 20, 2.30)],
)
def test_quantiles_are_those_of_published_tables(sides, rows, freedom, expected):
    """Dunnett 1964, Tables 1 and 2, 95 %."""
    assert estimates._quantiles(0.95, sides, freedom, rows, 0.5)[1] == pytest.approx(
        expected, abs=0.01
    )


def test_quantiles_are_scipys():
    """Of its test for designs without blocks."""
    samples = np.random.default_rng(0).normal(size=(4, 6))
    bounds = stats.dunnett(*samples[1:], control=samples[0]).confidence_interval(0.95)
    half = (bounds.high - bounds.low) / 2
    error = math.sqrt(samples.var(axis=1, ddof=1).mean() * 2 / 6)
    assert half / error == pytest.approx(estimates._quantiles(0.95, 2, 20, 3, 0.5)[1], rel=0.003)


def study_of(values: np.ndarray, noise: float = 0.0) -> dict[str, dict[int, Draws]]:
    """Runs of rows a, b, ... and seeds 0, 1, ... by their figure; NaN: not run."""
    random = np.random.default_rng(0)
    return {
        "abcdefghijkl"[row]: {
            seed: of_values([value], noise * random.normal(size=(1, 50)))[0]
            for seed, value in enumerate(of_row)
            if not np.isnan(value)
        }
        for row, of_row in enumerate(values)
    }


def blocks(rows: int, seeds: int, std: np.ndarray | float = 1.0, seed: int = 0) -> np.ndarray:
    """Figures of rows and seeds; what a seed does in all rows is large."""
    random = np.random.default_rng(seed)
    return (
        50 + 9 * random.normal(size=seeds) + (np.array(std) * random.normal(size=(seeds, rows))).T
    )


def test_what_a_seed_does_in_all_rows_is_in_no_interval():
    values = blocks(4, 3)
    found = bootstrap.against("a", study_of(values))
    # The residuals of least squares, the textbook's way.
    rows, seeds = (part.ravel() for part in np.indices(values.shape))
    design = np.concatenate([np.equal.outer(part, range(4)) for part in (rows, seeds)], axis=1)
    left = np.linalg.lstsq(design.astype(float), values.ravel(), rcond=None)[0]
    variance = np.square(values.ravel() - design @ left).sum() / (3 * 2)
    quantile = estimates._quantiles(0.97, 2, 6, 3, 0.5)[1]
    for name, row in zip("bcd", values[1:], strict=True):
        estimate = found[name]["AP"]
        assert (estimate.spread, estimate.freedom, estimate.rows) == ("pooled", 6, 3)
        assert estimate.value == pytest.approx((row - values[0]).mean())
        half = quantile * math.sqrt(variance * 2 / 3)
        assert estimate.interval()[1] - estimate.value == pytest.approx(half, rel=1e-3)
        low, high = estimate.by_itself().interval()
        assert (high - low) / 2 == pytest.approx(
            stats.t.ppf(1 - 0.03 / 2, 6) * math.sqrt(variance * 2 / 3)
        )
    shifted = bootstrap.against("a", study_of(values + 7 * np.arange(3)))
    assert shifted["b"]["AP"].interval() == pytest.approx(found["b"]["AP"].interval())


def test_a_row_that_spreads_more_is_by_itself_and_leaves_the_others_alone():
    values = blocks(6, 4, [1, 1, 1, 1, 1, 60], seed=1)
    with_it, without = (bootstrap.against("a", study_of(v)) for v in (values, values[:5]))
    assert {name: found["AP"].spread for name, found in with_it.items()} == dict(
        b="pooled", c="pooled", d="pooled", e="pooled", f="own"
    )
    assert with_it["b"]["AP"].std_seeds == pytest.approx(without["b"]["AP"].std_seeds)
    pairs = values[5] - values[0]
    mine = with_it["f"]["AP"]
    assert (mine.value, mine.freedom) == (pytest.approx(pairs.mean()), 3)
    assert mine.std_seeds == pytest.approx(pairs.std(ddof=1) / 2)
    quantile = stats.t.ppf((1 + 0.95 ** (1 / 5)) / 2, 3)
    assert mine.interval()[1] == pytest.approx(mine.value + quantile * mine.std_seeds)


def test_a_base_that_spreads_more_is_in_every_interval():
    values = blocks(6, 4, [60, 1, 1, 1, 1, 1])
    found = bootstrap.against("a", study_of(values))
    assert {estimates["AP"].spread for estimates in found.values()} == {"own"}


@pytest.mark.parametrize(("rows", "seeds"), [(2, 5), (5, 2)])
def test_too_few_to_tell_spreads(rows, seeds):
    """Of two rows there are the pairs alone; two seeds say nothing of a row's spread."""
    values = blocks(rows, seeds)
    found = bootstrap.against("a", study_of(values))
    assert {estimates["AP"].spread for estimates in found.values()} == {"own"}
    assert found["b"]["AP"].freedom == seeds - 1
    pairs = values[1] - values[0]
    expected = stats.ttest_1samp(pairs, 0).confidence_interval(0.95 ** (1 / (rows - 1)))
    assert found["b"]["AP"].interval() == pytest.approx(tuple(expected))


def test_rows_that_share_a_training_are_paired_by_it():
    """Tested otherwise, they differ by next to nothing in each seed."""
    values = blocks(5, 3, seed=6)
    values[1] = values[0] + [0.2, 0.21, 0.19]
    values[3] = values[2] + [0.1, 0.3, 0.2]
    same = {"a": "a", "b": "a", "c": "c", "d": "c", "e": "e"}
    found = bootstrap.against("a", study_of(values), trained_as=same)
    assert found["b"]["AP"].spread == "own"
    assert found["b"]["AP"].verdict(0.5) == "equal within ±0.5"
    # Of two rows of one training one is enough to tell how it spreads.
    fewer = bootstrap.against("a", study_of(values[[0, 2, 4]]))
    for name, of_fewer in (("c", "b"), ("d", "b"), ("e", "c")):
        assert found[name]["AP"].spread == "pooled"
        assert found[name]["AP"].freedom == 4
        assert found[name]["AP"].std_seeds == pytest.approx(fewer[of_fewer]["AP"].std_seeds)


def test_a_missing_run_leaves_the_pairs_that_there_are():
    values = blocks(4, 5)
    values[2, 4] = values[0, 0] = np.nan
    found = bootstrap.against("a", study_of(values))
    assert found["b"]["AP"].value == pytest.approx((values[1] - values[0])[1:].mean())
    assert found["c"]["AP"].value == pytest.approx((values[2] - values[0])[1:4].mean())
    assert found["c"]["AP"].freedom == 3 * 2  # of the seeds that all have
    assert found["c"]["AP"].std_seeds > found["b"]["AP"].std_seeds


def test_without_common_seeds_there_are_no_pairs():
    values = blocks(3, 6)
    values[0, 3:] = values[1, :3] = np.nan
    runs = study_of(values)
    found = bootstrap.against("a", runs)
    apart = bootstrap.paired(list(runs["b"].values()), list(runs["a"].values()))["AP"]
    assert found["b"]["AP"] == dataclasses.replace(apart, rows=2)
    assert apart.spread == "unpaired"
    assert found["c"]["AP"].spread == "own"


def test_a_foreign_result_spreads_as_the_base_does():
    """Its seed is called 0, but is none of ours."""
    values = blocks(4, 3)
    values[3, 1:] = np.nan
    runs = study_of(values)
    found = bootstrap.against("a", runs, foreign=["d"])
    assert found["d"]["AP"].spread == "unpaired"
    assert found["d"]["AP"].value == pytest.approx(values[3, 0] - values[0].mean())
    spread = values[0].std(ddof=1) * math.sqrt(1 + 1 / 3)
    assert found["d"]["AP"].std_seeds == pytest.approx(spread)
    assert found["b"]["AP"].rows == 3  # it is one of the table's intervals


def test_one_seed_each_is_about_images_alone():
    found = bootstrap.against("a", study_of(blocks(3, 1), noise=1.0))
    estimate = found["b"]["AP"]
    assert (estimate.std_seeds, estimate.spread, estimate.rows) == (None, "", 1)
    assert estimate.std > 0


def test_images_are_counted_once_in_blocks_too():
    """What each run has for itself is in its residual and in the error over images."""
    values, noise = blocks(4, 3), 1.5
    runs = study_of(values, noise)
    estimate = bootstrap.against("a", runs)["b"]["AP"]
    rows = [np.array([run.resampled[:, 0] for run in runs[name].values()]) for name in "abcd"]
    drawn = np.array(rows)
    over_images = (drawn[1] - drawn[0]).mean(0).var(ddof=1)
    assert estimate.std_images**2 == pytest.approx(over_images)
    left = drawn - drawn.mean(0) - drawn.mean(1, keepdims=True) + drawn.mean((0, 1))
    both = left.var(axis=2, ddof=1).sum() / 6 * 2 / 3
    expected = over_images + estimate.std_seeds**2 - both
    assert estimate.std**2 == pytest.approx(max(expected, over_images, estimate.std_seeds**2))


def test_runs_of_other_images_are_named():
    runs = study_of(blocks(3, 2))
    runs["c"][1] = dataclasses.replace(runs["c"][1], truth="other")
    with pytest.raises(UserError, match="c and a: runs were evaluated on different images"):
        bootstrap.against("a", runs)


def test_figures_of_nothing_are_none():
    """Objects of some areas only in resamples, or in none."""
    truth, results = random_set(0)
    truth["annotations"] = [a for a in truth["annotations"] if a["area"] < 32**2]
    draws = bootstrap.draw(matches.compute(truth, results), resamples=20)
    found = bootstrap.bootstrap([draws])
    assert [figure for figure, value in found.items() if value is None] == ["APm", "APl"]
    draws.resampled[3] = np.nan
    assert bootstrap.bootstrap([draws])["AP"].std > 0


@pytest.mark.parametrize("kind", matches.KINDS)
def test_a_run_on_lvis_has_all_its_intervals(kind, tmp_path):
    """Also when its draws come from the file that is kept."""
    truth, results = random_lvis_set(1)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "coco_instances_results.json").write_text(json.dumps(results))
    data = {"digest": "d", "val": str(tmp_path / "truth.json"), "kind": "lvis"}
    records.write(tmp_path, make(data=data))
    first, again = (bootstrap.bootstrap([bootstrap.of_run(tmp_path, kind)]) for _ in range(2))
    assert first == again
    expected = reference(truth, results, kind, "lvis")
    assert tuple(first) == LVIS_FIGURES
    assert [e.value for e in first.values()] == pytest.approx(expected, abs=1e-9)
    assert all(estimate.std > 0 for estimate in first.values())
    coco = bootstrap.draw(matches.compute(truth, results, kind))
    with pytest.raises(UserError, match="different images or objects"):
        bootstrap.paired([bootstrap.of_run(tmp_path, kind)], [coco])


def test_runs_on_other_images_are_refused():
    a, b = simulate([0.5, 0.6], np.random.default_rng(0))
    other = dataclasses.replace(b, objects=b.objects.copy())
    other.objects[0, 0, 0] += 1
    first = bootstrap.draw(a, resamples=5)
    assert bootstrap.paired([first], [bootstrap.draw(b, resamples=5)])
    for wrong in (bootstrap.draw(other, resamples=5), bootstrap.draw(b, resamples=5, seed=1)):
        with pytest.raises(UserError, match="different images or objects"):
            bootstrap.paired([first], [wrong])
