"""A study's plots, read back from the drawing and from their CSV."""

import itertools
import json
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from analysis import plots
from analysis.results import Results
from backbones import build_encoder
from experiments.costs.detector_cost import count
from tests.experiments.records.test_records import make

VARIANTS = ("none", "one", "three", "all-of-them", "own")
COUNTS = {"none": 0, "one": 1, "three": 3, "all-of-them": 6}
BOX = {"none": (40, 44), "one": (50, 50), "three": (60, 66), "all-of-them": (58, 62), "own": (30,)}
# Of differences to "none"; and how far their intervals go.
VERDICTS = dict(zip(VARIANTS, ("", "undecided", "better", "better", "one seed"), strict=True))
DIFFERENCES = {"three": (-3, 3), "all-of-them": (-4, 4)}
MACS = {"none": 10, "one": 11, "three": 12, "all-of-them": 13, "own": 10}  # of 10^8
# Right of 100 found, at each distance; the second seed 6 less at the last ones.
RIGHT = {
    "none": (100, 99, 90, 55, 50, 50),
    "one": (100, 99, 98, 98, 80, 60),
    "three": (100, 100, 99, 99, 99, 98),
    "all-of-them": (99, 100, 98, 98, 98, 97),
    "own": (99, 98, 97, 97, 95, 70),
}
DISTANCES = ("self", "0", "convs", "1", "2", "3")
PAPER = {"none": 48.9, "one": None, "three": 51.2, "all-of-them": 50.4, "own": None}


def backbone(variant):
    """Words of a config; of "own", such as the closed formulas do not know."""
    words = dict(size="vit-mini", img_size=128, stem="conv", use_rel_pos=False)
    if variant == "own":
        return words | dict(propagation="grid")
    propagation = "global" if COUNTS[variant] else "none"
    return words | dict(propagation=propagation, count=COUNTS[variant])


def of_cue(variant, seed, shown=None):
    """Reach of a run; `shown` are right where they show the colour themselves."""
    right = [n - 6 * seed * (i > 2) for i, n in enumerate(RIGHT[variant])]
    right[0] = right[0] if shown is None else shown
    return {distance: [120, 100, n] for distance, n in zip(DISTANCES, right, strict=True)}


def encoder_macs(variant, side=128):
    words = {k: v for k, v in backbone(variant).items() if k != "size"}
    encoder = build_encoder("vit-mini", **words)
    return count(encoder, torch.zeros(1, 3, side, side))[""].macs


@pytest.fixture(scope="session")
def macs_of_encoders():
    return {variant: encoder_macs(variant) for variant in COUNTS} | {"own": 90_000_000}


@pytest.fixture
def study(tmp_path, macs_of_encoders):
    """Five rows of the mini scale, of two seeds but the last, of one."""
    runs, rows = [], []
    for variant in VARIANTS:
        for seed, ap in enumerate(BOX[variant]):
            folder = tmp_path / f"{variant}-{seed}"
            folder.mkdir()
            losses = [dict(iteration=i, total_loss=4.0 - i / 10 - seed) for i in (9, 19, 29)]
            (folder / "metrics.json").write_text("\n".join(map(json.dumps, losses)))
            record = make(
                variant=variant,
                seed=seed,
                encoder_macs=macs_of_encoders[variant],
                images_per_second=20.0 + seed,
                reach=of_cue(variant, seed),
                data=dict(kind="coco", images=[1200, 300], val="instances_val.json"),
                config=dict(model=dict(backbone=backbone(variant), _target_="d2.RetinaNet")),
            )
            run = dict(vars(record), path=str(folder / "record.json"), ap_box=ap, ap_mask=ap - 5)
            runs.append(run)
        mean = sum(BOX[variant]) / len(BOX[variant])
        row = dict(variant=variant, scale="mini", size="vit-mini", seeds=len(BOX[variant]))
        for kind, ap in (("box", mean), ("mask", mean - 5)):
            row |= {f"ap_{kind}": ap, f"ap_{kind}_low": ap - 9, f"ap_{kind}_high": ap + 9}
            of_base = 42 if kind == "box" else 37
            low, high = (ap - of_base + end for end in DIFFERENCES.get(variant, (-9, 9)))
            row |= {f"ap_{kind}_diff": ap - of_base, f"ap_{kind}_verdict": VERDICTS[variant]}
            row |= {f"ap_{kind}_diff_low": low, f"ap_{kind}_diff_high": high}
            for figure, more in (("aps", -20), ("apm", 0), ("apl", 20)):
                row |= {f"{figure}_{kind}": ap + more, f"{figure}_{kind}_std": 2.0}
        row |= dict(params=1e6, macs=MACS[variant] * 1e8, train_seconds=100, peak_memory_mib=900)
        row |= dict(paper_ap_box_vitb=PAPER[variant], paper_ap_mask_vitb=PAPER[variant])
        rows.append(row)
    manifest = dict(study="some-study", scale="mini", base="none")
    return Results(tmp_path, manifest, pd.DataFrame(runs), pd.DataFrame(rows), 0.5, [])


@pytest.fixture
def marked(study):
    """The same, but "one" and the second seed of "three" did not learn the cue."""
    shown = {("one", 0): 97, ("one", 1): 60, ("three", 1): 50}
    runs = study.records
    keys = zip(runs["variant"], runs["seed"], strict=True)
    runs = runs.assign(reach=[of_cue(*key, shown.get(key)) for key in keys])
    table = study.table.assign(cue_not_learned=[0, 2, 1, 0, 0], seeds=[2, 0, 1, 2, 1])
    gone = [c for c in table if c.startswith("ap_")]
    table[gone] = table[gone].astype(object)
    table.loc[1, gone] = None
    return replace(study, records=runs, table=table)


@pytest.fixture
def at_coco_scale(study):
    """The same as if it had been run on COCO with ViT-B."""
    data = dict(kind="coco", images=[118287, 5000], val="a/instances_val2017.json")
    return replace(
        study,
        manifest=study.manifest | dict(scale="coco"),
        records=study.records.assign(data=[data] * len(study.records)),
        table=study.table.assign(size="vit-b", paper_ap_box_vitl=55.0, paper_ap_mask_vitl=49.0),
    )


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draws a plot and returns its panels, and what its CSV says."""
    monkeypatch.setattr(plt, "close", lambda figure: None)  # to look at what was drawn

    def drawn(name, results):
        files = plots.ALL[name](results, tmp_path / name)
        assert [f.name for f in files] == [f"{name}.{suffix}" for suffix in ("png", "svg", "csv")]
        check_layout(plt.gcf())
        return plt.gcf().axes, pd.read_csv(files[-1])

    yield drawn
    monkeypatch.undo()
    plt.close("all")


def check_layout(figure):
    """Nothing outside the figure, no legend over a panel or the title."""
    figure.set_dpi(150)  # as it is saved: letters of another size are not as wide in proportion
    figure.draw_without_rendering()
    panels = [axis.get_tightbbox() for axis in figure.axes if axis.axison]
    others = [legend.get_window_extent() for legend in figure.legends]
    title = figure.get_suptitle()
    (title,) = [text for text in figure.texts if text.get_text() == title]
    boxes = [*panels, *others, title.get_window_extent()]
    for i, box in enumerate(boxes):
        assert figure.bbox.x0 - 1 <= box.x0
        assert box.x1 <= figure.bbox.x1 + 1
        assert figure.bbox.y0 - 1 <= box.y0
        assert box.y1 <= figure.bbox.y1 + 1
        assert box.padded(-2).count_overlaps(boxes[i + 1 :]) == 0


def tips(axis):
    """What hovering shows -> x and y of its line."""
    lines = {line.get_gid(): line.get_xydata() for line in axis.lines if line.get_gid()}
    return {gid.removeprefix("tip "): xy.tolist() for gid, xy in lines.items()}


def point(axis, variant):
    """x and y of the only point of a variant."""
    (xy,) = [xy for tip, xy in tips(axis).items() if tip.split("\n")[0] == variant]
    assert len(xy) == 1
    return tuple(xy[0])


def test_ap_vs_macs(draw, study):
    panels, points = draw("ap_vs_macs", study)
    box = points[points["kind"] == "box"].set_index("variant")
    assert box["pareto_front"].to_dict() == {
        "none": True,  # nothing costs less; of "own" nothing is decided
        "one": False,  # undecided
        "three": True,
        "all-of-them": False,  # costs more than "three", and is not surely better
        "own": False,
    }
    for variant in VARIANTS:
        x, y = MACS[variant] / 10, box.at[variant, "ap"]
        assert point(panels[0], variant) == pytest.approx((x, y))
        assert point(panels[1], variant) == pytest.approx((x, y - 5))
        assert panels[0].get_xlim()[0] < x < panels[0].get_xlim()[1]
    assert panels[0].get_xlabel() == "GMACs, one image"
    assert [axis.get_ylabel() for axis in panels[:2]] == ["box AP, mini set", "mask AP, mini set"]
    (tip,) = [tip for tip in tips(panels[0]) if tip.startswith("three\n")]
    assert tip == (
        "three\nbox AP 63.0 (95 % interval 54.0 to 72.0), 2 seeds\n"
        "+21.0 to none: better\n1.2 GMACs, one image"
    )
    rings = [line for line in panels[0].lines if line.get_markerfacecolor() == "none"]
    assert [tuple(line.get_xydata()[0]) for line in rings] == [(1.0, 42), (1.2, 63)]
    bars = [line.get_ydata() for line in panels[0].lines if line.get_marker() == "_"]
    assert [33, 51] in [list(bar) for bar in bars]
    runs = [line.get_ydata() for line in panels[0].lines if line.get_marker() == "."]
    assert [list(run) for run in runs] == [list(BOX[variant]) for variant in VARIANTS[:4]]


def test_a_front_is_what_is_surely_better():
    cost = pd.Series([1.0, 2.0, 3.0, 4.0, 3.0])
    low, high = pd.Series([0, 1, 2, 9, None]), pd.Series([0, 3, 5, 11, None])
    assert plots.pareto_front(cost, low, high) == [True, True, False, True, False]
    cheaper = pd.Series([1.0, 0.5])
    of_cheaper = dict(low=pd.Series([0.0, -5.0]), high=pd.Series([0.0, -1.0]))
    assert plots.pareto_front(cheaper, **of_cheaper) == [True, True]
    of_cheaper["high"] = pd.Series([0.0, 1.0])
    assert plots.pareto_front(cheaper, **of_cheaper) == [False, True]


def test_a_few_percent_of_a_cost_look_like_a_few_percent(draw, study):
    macs = [1e9 * (1 + i / 100) for i in range(5)]
    (axis, *_), _ = draw("ap_vs_macs", replace(study, table=study.table.assign(macs=macs)))
    left, right = axis.get_xlim()
    assert (right - left) > 0.45
    assert left > 0


def test_forest(draw, study):
    panels, numbers = draw("forest", study)
    box = numbers[numbers["kind"] == "box"].set_index("variant")
    assert list(box.index) == list(VARIANTS[1:])
    assert box.loc["three", ["diff", "low", "high"]].tolist() == [21, 18, 24]
    assert [axis.get_xlabel() for axis in panels[:2]] == [
        "box AP less that of none",
        "mask AP less that of none",
    ]
    assert [t.get_text() for t in panels[0].get_yticklabels()] == list(VARIANTS[1:])
    assert point(panels[0], "three") == (21, 1)
    (band,) = panels[0].patches
    assert (band.get_x(), band.get_width()) == (-0.5, 1.0)
    filled = {
        line.get_gid().split("\n")[0].removeprefix("tip "): line.get_markerfacecolor()
        for line in panels[0].lines
        if line.get_gid()
    }
    assert {name for name, face in filled.items() if face != "white"} == {"three", "all-of-them"}
    low, high = panels[0].get_xlim()
    assert low < 0 < 24 < high


def test_forest_of_very_long_intervals_and_names(draw, study):
    table = study.table.assign(ap_box_diff_low=-300.0, ap_box_diff_high=300.0)
    table["variant"] = ["none", "x" * 60, *VARIANTS[2:]]
    (axis, *_), _ = draw("forest", replace(study, table=table))
    assert axis.get_xlim()[1] < 60
    assert axis.get_yticklabels()[0].get_text().endswith("…")


def test_forest_of_rows_without_intervals(draw, study):
    table = study.table.assign(ap_box_diff_low=np.nan, ap_box_diff_high=np.nan)
    (axis, *_), _ = draw("forest", replace(study, table=table))
    low, high = axis.get_xlim()
    assert low < 0 < 21 < high < 60


def test_seeds(draw, study):
    (axis, *_), numbers = draw("seeds", study)
    assert len(numbers) == 9
    drawn = tips(axis)
    first = next(xy for tip, xy in drawn.items() if tip.startswith("seed 0\n"))
    assert [y for _, y in first] == [BOX[variant][0] for variant in VARIANTS]
    assert [t.get_text() for t in axis.get_xticklabels()] == list(VARIANTS)


def test_points_of_one_cost_stand_beside_each_other(draw, study):
    (axis, *_), _ = draw("ap_vs_params", study)
    at = {}
    for line in axis.lines:
        if line.get_gid():
            at[line.get_gid()] = line.get_transform().transform(line.get_xydata())[0][0]
    pixels = sorted(at.values())
    apart = [right - left for left, right in itertools.pairwise(pixels)]
    assert apart == pytest.approx([11 * axis.figure.dpi / 72] * 4)


def test_a_long_interval_leaves_the_frame_and_not_the_points(draw, study):
    table = study.table.assign(ap_box_low=-97.0, ap_box_high=227.0)
    (axis, *_), points = draw("ap_vs_macs", replace(study, table=table))
    low, high = axis.get_ylim()
    assert 0 <= low < 30
    assert 66 < high <= 104
    assert points["low"].min() == -97.0


def test_mini_ap_shares_no_axis_with_the_papers(draw, study):
    panels, points = draw("ap_vs_macs", study)
    assert len(panels) == 4
    for ours, paper in ((panels[0], panels[2]), (panels[1], panels[3])):
        assert paper.get_xlabel() == "paper, COCO val2017, ViT-B, row by row"
        shown = [xy[0][1] for xy in tips(paper).values()]
        assert shown == [48.9, 51.2, 50.4]
        assert not ours.get_shared_y_axes().joined(ours, paper)
        assert len(tips(ours)) == 5
        for line in ours.lines:
            assert not set(shown) & set(line.get_ydata())
    assert set(points["paper"].dropna()) == {48.9, 51.2, 50.4}


def test_on_the_papers_data_its_points_stand_at_our_cost(draw, at_coco_scale):
    panels, points = draw("ap_vs_macs", at_coco_scale)
    assert len(panels) == 2
    hollow = [line for line in panels[0].lines if line.get_markerfacecolor() == "white"]
    assert [tuple(line.get_xydata()[0]) for line in hollow if line.get_ydata()[0] > 0] == [
        (1.0, 48.9),
        (1.2, 51.2),
        (1.3, 50.4),
    ]
    assert set(points["paper_is"]) == {"paper, COCO val2017, ViT-B"}
    assert panels[0].get_ylabel() == "box AP, COCO val2017"
    labels = [text.get_text() for text in plt.gcf().legends[0].get_texts()]
    assert "paper,\nCOCO val2017, ViT-B" in labels
    for measured in ("ap_vs_time", "ap_vs_memory"):
        panels, _ = draw(measured, at_coco_scale)
        assert len(panels) == 6 - 2


@pytest.mark.parametrize(("share", "label"), [(1.0, ""), (0.2, "a part of ")])
def test_small_scale_is_another_recipe_on_the_papers_data(draw, at_coco_scale, share, label):
    """The paper's points are in panels of their own."""
    config = dict(dataloader=dict(test=dict(share=share)))
    records = at_coco_scale.records
    small = replace(
        at_coco_scale,
        manifest=at_coco_scale.manifest | dict(scale="small"),
        records=records.assign(config=[config] * len(records)),
    )
    panels, _ = draw("ap_vs_macs", small)
    assert len(panels) == 4
    assert panels[0].get_ylabel() == f"box AP, {label}COCO val2017"


def test_a_data_set_of_ones_own_is_not_the_papers(draw, at_coco_scale):
    own = [dict(kind="coco", images=[100, 10], val="mine.json")] * len(at_coco_scale.records)
    results = replace(at_coco_scale, records=at_coco_scale.records.assign(data=own))
    panels, _ = draw("ap_vs_macs", results)
    assert len(panels) == 4
    assert panels[0].get_ylabel() == "box AP, own set"


def test_measured_costs_say_of_what(draw, study):
    panels, _ = draw("ap_vs_time", study)
    assert panels[0].get_xlabel() == "training time, s"
    assert "a CPU, threads: 1, memory: process resident" in plt.gcf().get_suptitle()
    days = replace(study, table=study.table.assign(train_seconds=36000.0))
    panels, _ = draw("ap_vs_time", days)
    assert panels[0].get_xlabel() == "training time, h"
    assert point(panels[0], "one") == (10.0, 50.0)


def test_rows_without_a_cost_or_masks_are_left_out(draw, study):
    """Foreign results, and detectors of boxes only."""
    table = study.table.copy()
    table.loc[0, "macs"] = None
    table.loc[1, ["ap_mask", "ap_mask_low", "ap_mask_high"]] = None
    _, points = draw("ap_vs_macs", replace(study, table=table))
    assert points.groupby("kind")["variant"].apply(list).to_dict() == {
        "box": ["one", "three", "all-of-them", "own"],
        "mask": ["three", "all-of-them", "own"],
    }


def test_runs_that_did_not_learn_the_cue_are_crosses(draw, marked):
    panels, points = draw("ap_vs_macs", marked)
    box = points[points["kind"] == "box"].set_index("variant")
    assert pd.isna(box.at["one", "ap"])
    assert box["pareto_front"].to_dict() == dict.fromkeys(VARIANTS, False) | {
        "none": True,
        "three": True,
    }
    crosses = {tuple(line.get_ydata()) for line in panels[0].lines if line.get_marker() == "x"}
    assert crosses == {BOX["one"], (BOX["three"][1],)}
    dots = [list(line.get_ydata()) for line in panels[0].lines if line.get_marker() == "."]
    assert dots == [list(BOX["none"]), list(BOX["all-of-them"])]
    labels = [text.get_text() for text in plt.gcf().legends[0].get_texts()]
    assert "cue not learned: says\nnothing about propagation" in labels
    assert "one" in labels


def curve(curves, variant, learned=True):
    mine = curves[(curves["variant"] == variant) & (curves["cue_learned"] == learned)]
    return mine.set_index("distance")


def test_reach_curve(draw, study):
    (axis,), curves = draw("reach_curve", study)
    none = curve(curves, "none")
    assert none.index.tolist() == list(DISTANCES)
    assert none["right"].tolist() == pytest.approx([1, 0.99, 0.9, 0.52, 0.47, 0.47])
    assert none.loc["1", ["low", "high", "seeds"]].tolist() == pytest.approx([0.49, 0.55, 2])
    assert none.at["1", "std"] == pytest.approx(0.06 / 2**0.5)
    assert curve(curves, "own")["seeds"].tolist() == [1] * 6
    drawn = tips(axis)
    assert len(drawn) == 5
    (line,) = [xy for tip, xy in drawn.items() if tip == "none\n1.00, 0.99, 0.90, 0.52, 0.47, 0.47"]
    assert [y for _, y in line] == pytest.approx(none["right"].tolist())
    assert [round(x) for x, _ in line] == [0, 1, 2, 3, 4, 5]
    starts = {xy[0][0] for xy in drawn.values()}
    assert len(starts) == 5  # beside each other
    chance = [line for line in axis.lines if set(line.get_ydata()) == {0.5}]
    assert len(chance) == 1
    assert [text.get_text() for text in axis.texts] == ["chance"]
    ticks = [tick.get_text() for tick in axis.get_xticklabels()]
    words = ["shown\non itself", "same\nwindow", "read by\nconvs", "next\nwindow"]
    assert ticks == [*words, "2", "3"]
    labels = [text.get_text() for text in plt.gcf().legends[0].get_texts()]
    assert labels == [*VARIANTS, "lowest to highest seed"]


def test_a_run_that_did_not_learn_the_cue_has_a_marked_curve(draw, marked):
    (axis,), curves = draw("reach_curve", marked)
    assert curve(curves, "three")["right"].tolist() == [1, 1, 0.99, 0.99, 0.99, 0.98]
    assert curve(curves, "three", False)["right"].tolist() == [0.5, 1, 0.99, 0.93, 0.93, 0.92]
    assert curve(curves, "one").empty
    assert curve(curves, "one", False)["seeds"].tolist() == [2] * 6
    crossed = [line.get_gid() for line in axis.lines if line.get_marker() == "x"]
    assert len(crossed) == 2
    assert all(tip.endswith("\ncue not learned: says nothing about propagation") for tip in crossed)
    labels = [text.get_text() for text in plt.gcf().legends[0].get_texts()]
    assert labels[-1] == "cue not learned: says\nnothing about propagation"


def test_without_a_cue_there_is_no_reach_curve(study):
    none = replace(study, records=study.records.assign(reach=None))
    assert plots.reach_curve(none, study.folder / "reach_curve") == []
    before_it = replace(study, records=study.records.drop(columns="reach"))
    assert plots.reach_curve(before_it, study.folder / "reach_curve") == []


def test_rows_without_a_cue_are_not_in_the_reach_curve(draw, study):
    """Foreign results, say."""
    records = study.records.copy()
    records["reach"] = records["reach"].where(records["variant"] != "own", None)
    _, curves = draw("reach_curve", replace(study, records=records))
    assert curves["variant"].unique().tolist() == list(VARIANTS[:4])


def test_ap_by_size(draw, study):
    panels, points = draw("ap_by_size", study)
    assert len(points) == 2 * 5 * 3
    row = points[(points["variant"] == "three") & (points["kind"] == "mask")]
    assert dict(zip(row["objects"], row["ap"], strict=True)) == dict(small=38, medium=58, large=78)
    places = {tip: xy[0] for tip, xy in tips(panels[1]).items()}
    x, y = places["three\nmask AP 78.0, large\n(above 96² px)"]
    assert x == pytest.approx(2)
    assert y == 78
    assert len({tuple(xy) for xy in places.values()}) == 15


def test_learning_curves(draw, study):
    again = '{"iteration": 19, "total_loss": 9.0}\n{"iteration": 29, "total_loss": 1.0}'
    with open(study.folder / "one-0" / "metrics.json", "a") as file:
        file.write('\n{"iteration": 39, "total_lo\n' + again)  # killed, and went on from before
    only_evaluated = study.folder / "three-1" / "metrics.json"
    only_evaluated.write_text('{"evaluated": 1, "batches": 30}\n')
    (axis,), curves = draw("learning_curves", study)
    curves = curves.set_index(["variant", "iteration"])
    assert curves.loc[("none", 9), ["loss", "low", "high", "seeds"]].tolist() == [2.6, 2.1, 3.1, 2]
    assert curves.loc[("one", 19), ["loss", "high"]].tolist() == [(9.0 + 1.1) / 2, 9.0]
    assert curves.loc[("one", 29), ["loss", "high"]].tolist() == [(1.0 + 0.1) / 2, 1.0]
    assert curves.loc[("three", 9), "seeds"] == 1
    assert len(curves) == 5 * 3
    assert len(axis.collections) == 3  # bands of what has two seeds
    assert len({line.get_linestyle() + line.get_marker() for line in axis.lines}) == 5


def test_long_curves_are_averaged_over_a_hundredth(draw, study):
    lines = [json.dumps(dict(iteration=i, total_loss=float(i % 2 + 1))) for i in range(5000)]
    for run in study.folder.glob("*/metrics.json"):
        run.write_text("\n".join(lines))
    _, curves = draw("learning_curves", study)
    assert len(curves) == 5 * 100
    assert set(curves["loss"]) == {1.5}
    assert curves["iteration"].iloc[1] == 50 + 49 / 2


def test_losses_of_different_detectors_have_panels_of_their_own(draw, study):
    runs = study.records.copy()
    cascade = dict(model=dict(roi_heads=dict(_target_="d2.CascadeROIHeads")))
    runs["config"] = [cascade if v == "own" else c for v, c in runs[["variant", "config"]].values]
    panels, _ = draw("learning_curves", replace(study, records=runs))
    assert [axis.get_title() for axis in panels] == ["RetinaNet", "CascadeROIHeads"]
    assert [len(axis.lines) for axis in panels] == [4, 1]


def test_cost_vs_input_size_is_what_is_counted(draw, study, macs_of_encoders):
    (total, per_pixel), curves = draw("cost_vs_input_size", study)
    curves = curves.set_index(["encoder", "side_px"])["macs"]
    for variant in ("none", "three"):
        assert curves[variant, 128] == macs_of_encoders[variant]
    assert curves["all-of-them", 72] == encoder_macs("all-of-them", side=72)  # windows are padded
    assert curves["own"].to_dict() == {128: 90_000_000}  # the formulas do not know it
    lines = {tip: dict(xy) for tip, xy in tips(per_pixel).items()}
    assert lines["own"] == {128: pytest.approx(90e6 / 128**2 / 1e3)}
    assert lines["none"][512] == pytest.approx(curves["none", 512] / 512**2 / 1e3)
    assert dict(tips(total)["none"])[512] == pytest.approx(curves["none", 512] / 1e9)


def test_only_what_the_formulas_know_and_the_record_confirms_is_a_curve(
    draw, study, macs_of_encoders
):
    runs = study.records.copy()
    runs.loc[runs["variant"] == "own", "encoder_macs"] = macs_of_encoders["none"]  # at this size
    runs.loc[runs["variant"] == "one", "encoder_macs"] = 5
    _, curves = draw("cost_vs_input_size", replace(study, records=runs))
    points = curves["encoder"].value_counts()
    assert points[["own", "one"]].tolist() == [1, 1]
    assert points["none"] > 1


def test_encoders_of_the_same_cost_are_one_line(draw, study):
    runs = study.records.copy()
    first = runs[runs["variant"] == "none"].iloc[0]
    runs["config"] = [first["config"]] * len(runs)
    runs["encoder_macs"] = first["encoder_macs"]
    (_, axis), curves = draw("cost_vs_input_size", replace(study, records=runs))
    assert set(curves["encoder"]) == {", ".join(VARIANTS)}
    assert len(tips(axis)) == 1


def test_cost_vs_count(draw, study):
    (time, memory), table = draw("cost_vs_count", study)
    assert table["count"].tolist() == [0, 1, 3, 6]  # not "own", which has none
    assert table["milliseconds_mean"].tolist() == pytest.approx([(50 + 1000 / 21) / 2] * 4)
    assert table["seeds"].tolist() == [2] * 4
    assert tips(memory)["three, vit-mini\n700"] == [[3, 700]]
    for axis in (time, memory):
        assert axis.get_ylim()[0] == 0  # growth is to be seen as it is
    fewer = study.records[study.records["variant"].isin(["none", "three"])]
    nothing = plots.cost_vs_count(replace(study, records=fewer), study.folder / "nothing")
    assert nothing == []


@pytest.mark.parametrize("name", plots.ALL)
def test_nothing_is_drawn_of_nothing(study, tmp_path, name):
    before = sorted(tmp_path.rglob("*"))
    table = pd.DataFrame({column: [None] * 5 for column in study.table}).assign(
        variant=VARIANTS, size="vit-mini", seeds=0
    )
    nothing = replace(study, records=pd.DataFrame(), table=table)
    assert plots.ALL[name](nothing, tmp_path / name) == []
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", plots.ALL)
def test_the_same_results_make_the_same_files(study, tmp_path, name):
    files = plots.ALL[name](study, tmp_path / name)
    first = [file.read_bytes() for file in files]
    assert first[0].startswith(b"\x89PNG")
    assert b"<title>" in first[1]
    assert b">some-study: " in first[1]
    assert [f.read_bytes() for f in plots.ALL[name](study, tmp_path / name)] == first


def test_many_rows_with_long_names_find_room(draw, study):
    rows, runs = [], []
    for i in range(4):
        names = {v: f"a-rather-long-name-{i}-of-the-variant-{v}" for v in VARIANTS}
        rows.append(study.table.replace({"variant": names}))
        runs.append(study.records.replace({"variant": names}))
    table, records = (pd.concat(parts, ignore_index=True) for parts in (rows, runs))
    for name in ("reach_curve", "ap_vs_time", "learning_curves", "cost_vs_input_size"):
        draw(name, replace(study, table=table, records=records))
