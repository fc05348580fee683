"""What mini runs say of the paper's order: which pairs, verdicts on known runs, tau."""

import csv
import itertools
import json
import os
import shutil
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import bootstrap, paper, paper_pairs, validity
from analysis.estimates import Estimate
from experiments import records, studies
from experiments.errors import UserError
from experiments.json_files import write_json
from experiments.records import MANIFEST, VERSION
from tests.analysis.conftest import write_run
from tests.experiments.evaluation.test_matches import random_set

STUDIES = (
    "feature-pyramid", "global-vs-conv", "conv-block", "placement", "count", "pretraining",
)  # fmt: skip
# Printed rows that are at mini scale, by hand.
AT_MINI = {
    "T1": ["0B", "1B", "2B", "3B", "0L", "1L", "2L", "3L", "text"],
    "T8a": "013",  # its conv row has other blocks than vit-mini's
    "T4": ["0B", "1B", "3B", "0L", "1L", "3L"],
} | {f"T{table}": "0123" for table in ("2a", "2b", "2c", "2d", "8b", "8c", "8d")}


def separated() -> set[frozenset[str]]:
    """Pairs of printed rows of one table and model, half an AP or more apart."""
    with open(Path(paper.__file__).parent / "results.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["row"] in AT_MINI.get(row["table"], "")]
    return {
        frozenset(f"{row['table']}:{row['row']}" for row in two)
        for two in itertools.combinations(rows, 2)
        if two[0]["table"] == two[1]["table"] and two[0]["model"] == two[1]["model"]
        if abs(Decimal(two[0]["ap_box"]) - Decimal(two[1]["ap_box"])) >= Decimal("0.5")
    }


@pytest.fixture(scope="module")
def rows() -> tuple[paper_pairs.Row, ...]:
    return paper_pairs.rows()


@pytest.fixture(scope="module")
def small_rows() -> tuple[paper_pairs.Row, ...]:
    return paper_pairs.rows("small")


@pytest.fixture(scope="module")
def pairs(rows) -> list[paper_pairs.Pair]:
    return paper_pairs.pairs(rows)


class TestPairs:
    def test_all_that_the_paper_separates_and_no_other(self, pairs):
        printed = paper.published()["ap_box"].to_dict()
        found = [
            frozenset(two)
            for pair in pairs
            for two in pair.printed
            if abs(Decimal(str(printed[two[0]])) - Decimal(str(printed[two[1]]))) >= Decimal("0.5")
        ]
        assert len(found) == len(set(found))
        assert set(found) == separated()
        assert all(pair.separating for pair in pairs)

    def test_each_once_whatever_studies_have_it(self, pairs):
        assert len({frozenset(pair.settings) for pair in pairs}) == len(pairs) == 25
        rows = {setting for pair in pairs for setting in pair.settings}
        assert len(rows) == 17  # as docs/analysis.md says
        of = {pair.names: pair for pair in pairs}
        assert of["global", "none"].tables == "2acd, 8acd"
        assert of["conv", "none"].tables == "2ab, 8b"
        assert ("even", "none") not in of
        assert ("basic", "none") not in of

    def test_one_pair_has_one_difference_in_all_its_tables(self, pairs):
        printed = paper.published()
        for pair in pairs:
            for one, other in pair.printed:
                size = printed.at[one, "model"].lower()
                difference = printed.at[one, "ap_box"] - printed.at[other, "ap_box"]
                assert difference == pytest.approx(pair.paper[size])

    def test_the_papers_better_row_is_the_first(self, pairs):
        of = {pair.names: pair for pair in pairs}
        assert of["none", "sup"].paper == {"vit-b": 0.5, "vit-l": 0.4}
        assert of["3", "6"].paper == {"vit-b": 0.8, "vit-l": -0.5}
        assert of["conv", "shifted"].paper == {"vit-l": 0.8}
        assert all(pair.separating[0] > 0 for pair in pairs)

    def test_no_study_prints_figures_of_what_its_rows_only_stand_for(self):
        for name in studies.files():
            study = studies.find(name)
            for variant in (*study.variants, *study.mini, *study.small):
                assert not (variant.published and variant.stands_for)
                for where in variant.stands_for.values():
                    assert where in paper.published().index


# ---- Runs whose order is known -------------------------------------------------------------------

# Of the set's detections, by seed: "low" < "middle" < "high"; "any" may be anything.
FOUND = {
    "low": (slice(0, None, 9), slice(1, None, 9), slice(2, None, 9)),
    "middle": (slice(0, None, 3), slice(1, None, 3), slice(2, None, 3)),
    "high": (slice(0, None), slice(0, -1), slice(1, None)),
    "any": (slice(0, None), slice(0, None, 9), slice(1, None, 2)),
}
# Of rows, the others are "middle".
LEVELS = {
    "global-vs-conv/global": "high",  # the paper's order
    "global-vs-conv/shifted": "low",  # not the paper's
    "global-vs-conv/conv": "any",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Finished runs of each level, with what is kept beside them."""
    root = tmp_path_factory.mktemp("levels")
    truth, results = random_set(3, images=40)
    (root / "truth.json").write_text(json.dumps(truth))
    for level, parts in FOUND.items():
        for seed, part in enumerate(parts):
            folder = root / f"{level}-{seed}"
            write_run(folder, root / "truth.json", results[part], variant=level, seed=seed)
            bootstrap.of_run(folder)
    return root


@pytest.fixture
def run(made, rows, small_rows, tmp_path, monkeypatch):
    """Makes studies that were run in runs/, here an empty folder; they share runs as real ones."""
    monkeypatch.chdir(tmp_path)
    folders: dict[tuple[str, int], Path] = {}

    def call(
        *names: str,
        seeds: int = 3,
        command: str = "python -m experiments run",
        scale: str = "mini",
        size: str = "vit-mini",
    ) -> Path:
        of = rows if scale == "mini" else small_rows
        for name in names:
            folder = tmp_path / "runs" / scale / name
            folder.mkdir(parents=True)
            entries, variants = [], []
            for row in (row for row in of if row.study == name):
                variants.append(dict(name=row.name, size=size, words={}, published={}))
                for seed in range(seeds):
                    level = LEVELS.get(f"{name}/{row.name}", "middle")
                    there = folders.get((row.setting, seed))
                    if there is None:
                        there = folder / f"{row.name}-{seed}"
                        folders[row.setting, seed] = shutil.copytree(
                            made / f"{level}-{seed}", there
                        )
                    where = os.path.relpath(there, folder)
                    entries.append(dict(variant=row.name, seed=seed, folder=where))
            manifest = dict(
                version=VERSION, study=name, question="What?", scale=scale,
                base=variants[0]["name"], command=f"{command} {name}", variants=variants,
                runs=entries,
            )  # fmt: skip
            write_json(folder / MANIFEST, manifest)
        return tmp_path / "runs"

    return call


def verdicts(found: validity.Validity) -> dict[tuple[str, str], str]:
    table = found.table
    return dict(
        zip(zip(table["better"], table["worse"], strict=True), table["verdict"], strict=True)
    )


class TestVerdicts:
    def test_of_known_runs(self, run):
        found = validity.load(run("global-vs-conv"))
        of = verdicts(found)
        assert of["global", "none"] == of["global", "shifted"] == "agree"
        assert of["shifted", "none"] == "contradict"
        assert of["conv", "none"] == of["conv", "shifted"] == "undecided"
        assert set(found.table.loc[found.table["study"] != "global-vs-conv", "verdict"]) == {
            "not run",
            "paper differs",
        }
        assert validity.totals(found)[:2] == [
            "25 pairs, 5 compared: 2 agree, 1 contradict, 2 undecided",
            "decided: 3 of 5 (60 %)",
        ]

    def test_differences_are_those_of_the_bootstrap(self, run, made):
        found = validity.load(run("global-vs-conv"))
        levels = dict(none="middle", **{k.split("/")[1]: level for k, level in LEVELS.items()})
        runs = {
            row: {seed: bootstrap.of_run(made / f"{level}-{seed}") for seed in range(3)}
            for row, level in levels.items()
        }
        expected = bootstrap.against("none", runs)["global"]["AP"].by_itself()
        assert expected.spread == "pooled"
        row = found.table.set_index(["better", "worse"]).loc[("global", "none")]
        assert row["mini_diff"] == expected.value
        assert (row["mini_low"], row["mini_high"]) == expected.interval()
        assert (row["paper_diff_vitb"], row["paper_diff_vitl"]) == (2.3, 1.7)

    def test_a_pair_of_many_studies_counts_once(self, run):
        alone = validity.load(run("global-vs-conv"))
        found = validity.load(run("placement", "count"))
        both = [t.set_index(["better", "worse"]).loc[("global", "none")] for t in
                (alone.table, found.table)]  # fmt: skip
        pd.testing.assert_series_equal(*both)
        assert len(found.table) == len(alone.table)
        assert not found.records["path"].duplicated().any()

    def test_shared_runs_serve_whatever_study_made_them(self, run):
        """`even` of placement is `global`, and is trained there first."""
        found = validity.load(run("placement"))
        of = verdicts(found)
        assert of["global", "none"] == "undecided"
        assert of["global", "shifted"] == "not run"

    def test_where_the_paper_has_no_answer_it_is_said(self, run):
        found = validity.load(run("count"))
        row = found.table.set_index(["better", "worse"]).loc[("3", "6")]
        assert row["verdict"] == "paper differs"
        assert not pd.isna(row["mini_diff"])
        assert "not compared: " in validity.totals(found)[-1]

    def test_one_seed_decides_nothing(self, run):
        found = validity.load(run("global-vs-conv", seeds=1))
        assert verdicts(found)["global", "none"] == "one seed"
        assert np.isnan(found.tau).all()
        assert "25 pairs, 0 compared" in validity.markdown(found)

    def test_runs_on_other_data_than_the_last_are_left_out(self, run):
        runs = run("global-vs-conv")
        for path in (runs / "mini" / "global-vs-conv").glob("global-*/record.json"):
            old = json.loads(path.read_text())
            old |= dict(data={**old["data"], "digest": "old"}, finished="2025-01-01T00:00:00+00:00")
            path.write_text(json.dumps(old))
        found = validity.load(runs)
        assert verdicts(found)["global", "none"] == "left out"
        assert verdicts(found)["shifted", "none"] in validity.COMPARED
        assert found.notes == ["3 runs are left out: they are on other data than the last"]

    def test_runs_that_did_not_learn_the_cue_enter_no_verdict(self, run):
        runs = run("global-vs-conv")
        for path in (runs / "mini" / "global-vs-conv").glob("*-*/record.json"):
            old = json.loads(path.read_text())
            right = 97 if path.parent.name.startswith("global-") else 98
            path.write_text(json.dumps(old | dict(reach={"self": [100, 100, right]})))
        found = validity.load(runs)
        assert verdicts(found)["global", "none"] == "left out"
        assert verdicts(found)["shifted", "none"] in validity.COMPARED
        assert found.notes == [
            "3 runs are left out: cue not learned: says nothing about propagation"
        ]

    def test_altered_runs_are_left_out(self, run):
        run("placement", command="python -m experiments run --overrides train.max_iter=9")
        found = validity.load(run("global-vs-conv"))
        assert found.notes == ["placement is left out: it was run with --overrides"]
        assert verdicts(found)["last", "first"] == "not run"

    def test_runs_without_predictions_are_named(self, run):
        runs = run("global-vs-conv")
        (runs / "mini/global-vs-conv/global-1/coco_instances_results.json").unlink()
        found = validity.load(runs)
        assert (
            found.table.set_index(["better", "worse"]).at[("global", "none"), "seeds_better"] == 2
        )
        assert found.notes[0].startswith("global-1 is left out: ")


class TestSmallScale:
    def test_rows_are_the_papers_own(self, small_rows):
        """Of twelve blocks, as ViT-B; but for MAE's, which has no weights of this size."""
        found = {row.name: row.printed for row in small_rows if row.study == "count"}
        assert found == {
            "none": ("T8d:0", "T2d:0"),
            "2": ("T8d:1", "T2d:1"),
            "4": ("T8d:2", "T2d:2"),
            "all": ("T8d:3", "T2d:3"),
        }
        of = {pair.names: pair for pair in paper_pairs.pairs(small_rows)}
        assert of["conv", "none"].paper["vit-b"] == 2.1  # bottleneck blocks, Table 8a
        assert of["none", "sup-in1k"].paper == {"vit-b": 0.5, "vit-l": 0.4}
        assert {row.study for row in small_rows} == set(STUDIES)
        whole = paper_pairs.rows("small", "vit-b")
        mae = [row for row in whole if row.study == "pretraining" and "mae" in row.name]
        assert mae[0].printed == ("T4:3B", "T4:3L")

    def test_verdicts_on_whatever_is_finished(self, run):
        runs = run("global-vs-conv", scale="small", size="vit-s")
        found = validity.load(runs, "small")
        of = verdicts(found)
        assert (of["global", "none"], of["shifted", "none"]) == ("agree", "contradict")
        assert of["last", "first"] == "not run"
        text = validity.markdown(found)
        assert "# Validity of the small scale" in text
        assert " ours, small (95 %) |" in text
        assert "command: `make validity SCALE=small SIZE=vit-s`" in text
        assert "this suite's on COCO with vit-s (docs/small.md)" in text

    def test_studies_of_the_same_overrides_are_compared(self, run):
        """A share, a length: what is compared has the same, by the last run."""
        words = "python -m experiments run --overrides 'dataloader.train.share=0.05 train.epochs=6'"
        same = "python -m experiments run --overrides 'train.epochs=6 dataloader.train.share=0.05'"
        run("placement", scale="small", size="vit-s")
        run("count", scale="small", size="vit-s", command=same)
        runs = run("global-vs-conv", scale="small", size="vit-s", command=words)
        for path in runs.glob("small/global-vs-conv/*/record.json"):
            record = json.loads(path.read_text())
            path.write_text(json.dumps(record | dict(finished="2030-01-01T00:00:00+00:00")))
        found = validity.load(runs, "small")
        note = "placement is left out: its OVERRIDES are not those of the last run"
        assert found.notes == [note]
        assert verdicts(found)["4", "2"] in validity.COMPARED
        assert verdicts(found)["last", "first"] == "not run"

    def test_another_size_is_left_out(self, run):
        runs = run("global-vs-conv", scale="small", size="vit-s")
        with pytest.raises(UserError, match="global-vs-conv is left out: it was run with vit-s"):
            validity.load(runs, "small", "vit-b")

    def test_other_scales_are_told_which_there_are(self, analysis):
        code, printed = analysis("validity", "--scale", "coco")
        assert (code, printed.count("\n")) == (2, 1)
        assert "there is no validity of scale 'coco': of mini and small only" in printed


# ---- Kendall's tau -------------------------------------------------------------------------------


def estimate(value: float, std: float = 1e-9, freedom: float = 8) -> Estimate:
    return Estimate(value, std, 0.0, std, freedom)


class TestTau:
    def test_of_a_perfect_order_and_of_its_opposite(self):
        assert validity.tau([estimate(value) for value in (0.1, 3, 40)]) == (1, 1, 1)
        assert validity.tau([estimate(-value) for value in (0.1, 3, 40)]) == (-1, -1, -1)

    def test_is_kendalls_where_all_pairs_of_a_table_are_compared(self):
        """1 - 4 I / n (n - 1) with I inversions (Kendall, 1938)."""
        order = [2, 0, 3, 1, 4, 5]  # ours, of rows 0 < 1 < ... < 5: three inversions
        two = itertools.combinations(range(6), 2)
        found = validity.tau([estimate(order[b] - order[a]) for a, b in two])
        assert found[0] == pytest.approx(1 - 4 * 3 / 30)

    def test_undecided_pairs_count_both_ways_in_its_interval(self):
        found = validity.tau([estimate(5), estimate(1, std=9), estimate(-1, std=9), estimate(-5)])
        assert found == (0, -0.5, 0.5)

    @pytest.mark.parametrize("spread", [0.5, 10])
    def test_its_interval_holds_that_of_the_true_order(self, spread):
        """Ten rows of three seeds that spread by 5; all pairs are compared."""
        random, held, simulations = np.random.default_rng(0), 0, 40
        for _ in range(simulations):
            true = random.normal(0, spread, 10)
            seeds = true[:, None] + random.normal(0, 5, (10, 3))
            mean, variance = seeds.mean(1), seeds.var(1, ddof=1)
            differences, signs = [], []
            for a, b in itertools.combinations(range(10), 2):
                std = ((variance[a] + variance[b]) / 3) ** 0.5
                differences.append(estimate(mean[b] - mean[a], std, freedom=4))
                signs.append(np.sign(true[b] - true[a]))
            _, low, high = validity.tau(differences)
            held += low <= np.mean(signs) <= high
        assert held >= 0.95 * simulations


# ---- The command ---------------------------------------------------------------------------------


def test_where_nothing_was_run_it_says_what_to_run(analysis, tmp_path):
    code, printed = analysis("validity", "--runs", tmp_path)
    assert code == 2
    assert (
        f"no run to compare with the paper in {tmp_path}/mini: run {', '.join(STUDIES)}" in printed
    )
    assert printed.count("\n") == 1


def test_what_is_printed_and_written(analysis, run):
    runs = run("global-vs-conv")
    code, printed = analysis("validity", "--runs", runs)
    assert code == 0
    assert "decided: 3 of 5 (60 %)" in printed
    text = (runs / "mini" / "validity.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 27
    assert all(len(line) <= 110 for line in text.splitlines() if not line.startswith("- "))
    header = [cell.strip() for cell in table[0].strip("|").split("|")]
    assert header[2:5] == ["paper B", "paper L", "ours, mini (95 %)"]
    for line in (
        "- command: `make validity`",
        "- seeds: 3 to 3",
        "- device: a CPU",
        "- commit: abc",
    ):
        assert line in text
    csv_ = pd.read_csv(runs / "mini" / "validity.csv")
    assert list(csv_["verdict"]) == list(validity.load(runs).table["verdict"])


def test_results_keep_the_whole_comparison_only(analysis, run, tmp_path):
    run("global-vs-conv")
    code, printed = analysis("validity", "--keep")
    assert code == 2
    assert "not all rows were run, see feature-pyramid, conv-block, placement" in printed
    assert not (tmp_path / "results").exists()
    run(*(name for name in STUDIES if name != "global-vs-conv"))
    code, printed = analysis("validity", "--keep")
    assert code == 0
    kept = tmp_path / "results" / "mini"
    assert (kept / "validity.md").read_text() == Path("runs/mini/validity.md").read_text()
    assert len(pd.read_csv(kept / "validity.csv")) == 25
    assert records.load(tmp_path / "runs").shape[0] == 51
