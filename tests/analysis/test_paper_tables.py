"""The paper's tables with our columns: how they are made, and that they are the committed ones."""

import numpy as np
import pandas as pd
import pytest

from analysis import formulas, paper_tables
from analysis.paper import published
from analysis.paper_tables import Rows, Setting, settings
from backbones import SIZES
from experiments import records, studies
from experiments.recipe import identity, resolved
from tests.conftest import ROOT
from tests.experiments.records.test_records import make

COSTS = ["params", "macs", "activations", "encoder_params", "encoder_macs", "px"]
# docs/cost.md has the reasons.
OTHER_MACS = {"T9:4m", "T9:4c", "T9:6m", "T9:6c", "T9:7c"}  # MViTv2-L; MViTv2-H with Cascade


@pytest.fixture(scope="module")
def committed():
    table = pd.read_csv(ROOT / "results/paper/tables.csv", dtype={"row": str, "variant": str})
    return table.set_index(table["table"] + ":" + table["row"])


class Kept(Rows):
    """Costs as they are committed, for which there is a test of its own: to count all is a
    minute."""

    def __init__(self, committed: pd.DataFrame):
        super().__init__(runs=ROOT / "nowhere")
        self.committed = committed

    def costs(self, setting):
        where = next(where for where, other in settings().items() if other == setting)
        counted = self.committed.loc[where, COSTS].astype(int).to_dict()
        study, variant, size = setting
        return dict(study=study.name, variant=variant.name, size=size) | counted


@pytest.fixture(scope="module")
def made(committed):
    """The tables as the code makes them now."""
    table = paper_tables.paper_tables(Kept(committed))
    return table.set_index(table["table"] + ":" + table["row"])


@pytest.fixture(scope="module")
def rows():
    """Without any run."""
    return Rows(runs=ROOT / "nowhere")


PRINTED = sorted({setting.size for setting in settings().values()})


# The larger ones take the time; their networks are those of the smaller, wider and deeper.
@pytest.mark.parametrize(
    "size",
    [s if s.endswith("-b") else pytest.param(s, marks=pytest.mark.slow) for s in PRINTED],
)
def test_the_committed_costs_are_what_is_counted_now(committed, rows, size):
    of_size = {w: setting for w, setting in settings().items() if setting.size == size}
    assert of_size
    for where, setting in of_size.items():
        costs = rows.costs(setting)
        assert {k: committed.at[where, k] for k in COSTS} == {k: costs[k] for k in COSTS}, where


def test_every_printed_row_is_there(made):
    assert list(made.index) == list(published().index)
    same = ["ap_box", "ap_mask", "ap_mask_rare", "params_m", "flops_t", "test_time_ms"]
    ours = made[[f"paper_{k}" for k in same]].set_axis(same, axis=1)
    pd.testing.assert_frame_equal(ours, published()[same], check_names=False)


def test_parameters_are_the_papers(made):
    """ViT within 0.5 %; Swin and MViTv2 within 2 %."""
    printed = made.dropna(subset=["params_vs_paper"])
    assert set(printed["table"]) == {"T3", "T9"}
    plain = printed["model"].str.startswith("ViT-")
    assert plain.sum() == 7
    assert printed[plain]["params_vs_paper"].abs().max() < 0.005
    assert printed[~plain]["params_vs_paper"].abs().max() < 0.02
    ratios = made[made["table"] == "T3"]
    assert np.allclose(ratios["params_ratio"].round(2), ratios["paper_params_ratio"])


def test_macs_are_the_papers_flops_to_its_digits(made):
    printed = made.dropna(subset=["macs_vs_paper"])
    other = printed[(printed["macs"] / 1e12).round(1) != printed["paper_flops_t"]]
    assert set(other.index) == OTHER_MACS
    assert len(printed) == 22


def test_rows_of_other_works_have_published_figures_only(made):
    quoted = made[made["study"].isna()]
    assert len(quoted) == 12
    assert quoted[[*COSTS, "size"]].isna().all(axis=None)


def test_files_are_the_committed_ones(made, tmp_path):
    """Every table with its title, caption and rows; what was not done is an empty cell."""
    written = paper_tables.write(made.reset_index(drop=True), tmp_path / "paper")
    assert [path.name for path in written] == ["tables.csv", "tables.md", "tables.tex"]
    for path in written:
        text = path.read_text()
        kept = (ROOT / "results/paper" / path.name).read_text()
        parts = [t.partition("command: `make paper-tables`") for t in (text, kept)]
        assert parts[0][0] == parts[1][0], path.name
        if path.suffix != ".csv":
            for _, command, below in parts:
                assert command
                assert "versions: python" in below
                assert "commit: " in below
            assert "-dirty" not in kept
            assert " nan " not in text
            assert all(title in text for title in paper_tables.TITLES.values())
            assert "box AP, coco" in text
            assert "AP, mini" not in text


@pytest.mark.slow  # it counts all sizes
def test_command(committed, tmp_path, analysis):
    code, said = analysis("paper-tables", "--runs", tmp_path / "runs", "--out", tmp_path / "paper")
    assert code == 0
    for title in paper_tables.TITLES.values():
        assert title in said
    names = {path.name for path in (tmp_path / "paper").iterdir()}
    figures = {f"figure-{n}.{kind}" for n in (3, 4, 5) for kind in ("csv", "png", "svg")}
    tables = {"tables.csv", "tables.md", "tables.tex", "todays-encoders.csv", "todays-encoders.md"}
    assert names == tables | figures
    table = pd.read_csv(tmp_path / "paper" / "tables.csv", dtype={"row": str, "variant": str})
    table = table.set_index(table["table"] + ":" + table["row"])
    pd.testing.assert_frame_equal(table, committed)


class TestTrained:
    """From records and kept results to the columns of our AP."""

    setting = Setting(studies.find("count"), studies.find("count").variants[1], "vit-b")

    def write(self, folder, setting, scale="coco", images=(118287, 5000), **words):
        study, variant, size = setting
        cfg = resolved.resolve(study, study.variant(variant.name, scale), scale, size, words)
        for part in (cfg.dataloader.train, cfg.dataloader.test):
            part.dataset = "annotations.json,images/"  # as runs write it
        record = make(
            study="another",
            size=size,
            scale=scale,
            config=identity.plain_config(cfg),
            data=dict(kind="coco", images=images),
        )
        folder.mkdir(parents=True)
        records.write(folder, record)
        return record

    def test_a_record_of_the_same_setting_whatever_study_ran_it(self, tmp_path):
        record = self.write(tmp_path / "coco/another/run", self.setting)
        found = Rows(tmp_path, tmp_path).trained(self.setting)
        assert found["coco_ap_box"] == record.box["AP"]
        assert found["coco_seeds"] == 1
        assert np.isnan(found["coco_ap_box_std"])

    def test_neither_a_cut_recipe_nor_other_data_nor_another_size_or_row(self, tmp_path):
        study, _, _ = self.setting
        self.write(tmp_path / "coco/a/cut", self.setting, **{"train.max_iter": 20})
        self.write(tmp_path / "coco/a/sample", self.setting, images=(1182, 5000))
        self.write(tmp_path / "coco/a/large", self.setting._replace(size="vit-l"))
        self.write(tmp_path / "coco/a/four", self.setting._replace(variant=study.variants[2]))
        assert Rows(tmp_path, tmp_path).trained(self.setting) == {}

    def test_no_ap_of_another_scale(self, tmp_path):
        none = self.setting._replace(variant=self.setting.study.variants[0])
        self.write(tmp_path / "mini/a/run", none._replace(size="vit-mini"), "mini")
        folder = tmp_path / "results/mini/count"
        folder.mkdir(parents=True)
        kept = dict(variant=["none"], size="vit-mini", seeds=[2], ap_box=[30.0])
        pd.DataFrame(kept).to_csv(folder / "table.csv", index=False)
        assert Rows(tmp_path, tmp_path).trained(none) == {}

    def test_kept_results_where_there_is_no_record(self, tmp_path):
        folder = tmp_path / "results/coco/count"
        folder.mkdir(parents=True)
        kept = dict(variant=["none", "4"], size="vit-b", seeds=[2, 0], ap_box=[30.0, None])
        pd.DataFrame(kept).to_csv(folder / "table.csv", index=False)
        none, two, four = (
            self.setting._replace(variant=v) for v in self.setting.study.variants[:3]
        )
        rows = Rows(tmp_path, tmp_path / "runs")
        assert rows.trained(two) == rows.trained(four) == {}  # not there; not finished
        assert rows.trained(none) == {"coco_seeds": 2, "coco_ap_box": 30.0}


def test_measured_ratios_name_their_device(tmp_path):
    folder = tmp_path / "results/benchmarks/some-device"
    folder.mkdir(parents=True)
    columns = "module,size,blocks,implementation,mode,time_ratio,memory_ratio\n"
    (folder / "over-window-only.csv").write_text(
        columns
        + "detector,vit-l,all global,fused,train,2.0,1.5\n"
        + "detector,vit-l,all global,fused,forward,1.9,1.1\n"
        + "detector,vit-l,all global,detectron2,train,9.0,9.0\n"
        + "encoder,vit-l,all global,fused,train,9.0,9.0\n"
    )
    table = pd.DataFrame(dict(table=["T3", "T3", "T2d"], variant=["none", "all", "all"]))
    table = paper_tables._with_measured(table, tmp_path)
    row = table.loc[1]
    assert (row["train_memory_ratio"], row["test_time_ratio"]) == (1.5, 1.9)
    assert row["measured_on"] == "some-device"
    assert table.loc[[0, 2], "measured_on"].isna().all()


@pytest.mark.slow  # it counts all sizes
def test_points_of_the_figures(rows):
    points = paper_tables.points(rows)
    of = points.groupby(["dataset", "detector"])["model"].nunique()
    assert of.to_dict() == {
        ("coco", "Cascade Mask R-CNN"): 8,
        ("coco", "Mask R-CNN"): 8,
        ("coco", "RetinaNet"): 8,
        ("lvis", "Mask R-CNN"): 8,
    }
    assert points["params"].notna().all()


# ---- Encoders of today -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def todays():
    return paper_tables.todays_encoders().set_index("size")


def test_todays_parameters_are_as_printed(todays):
    """Within 0.5 % where three digits are printed, else rounded or cut to the digits that are. PE's
    are with attention pooling and the projection behind it, DINOv2's without positions."""
    printed = todays.dropna(subset="params_as_printed")
    assert len(printed) == 20
    for size, row in printed.iterrows():
        ours, theirs = row["params"] / 1e6, row["params_as_printed"] / 1e6
        dim = SIZES[size]["embed_dim"]
        if size.startswith("dinov2"):
            ours -= 37**2 * dim / 1e6
        if size.startswith("pe-"):
            ours += (12 * dim**2 + 1024 * dim) / 1e6
        digits = str(round(theirs)).rstrip("0")
        if len(digits) >= 3:
            assert abs(ours / theirs - 1) < 0.005, size
        else:
            assert abs(ours - theirs) < 10 ** (len(str(round(theirs))) - len(digits)), size


@pytest.mark.parametrize("size", ["dinov3-b", "eva02-b", "pe-core-b", "dinov2-b", "vit-b", "sam3"])
def test_todays_costs_by_the_closed_formula(todays, size):
    """The second counter of three; the third, fvcore's, has no place for that many tokens, and is
    held against both on small maps (tests/experiments/costs)."""
    amount = formulas.total(formulas.encoder(**SIZES[size] | dict(img_size=1024)).values())
    assert (amount.params, amount.macs) == tuple(todays.loc[size, ["params", "macs"]])


def test_todays_files_are_the_committed_ones(todays, tmp_path):
    for path in paper_tables.write_todays(todays.reset_index(), tmp_path):
        kept = (ROOT / "results/paper" / path.name).read_text()
        parts = [t.partition("- command: ") for t in (path.read_text(), kept)]
        assert parts[0][0] == parts[1][0]
        assert " nan " not in kept
