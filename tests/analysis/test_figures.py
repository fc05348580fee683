"""The paper's trade-off figures, drawn and read back from the drawing."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from analysis import figures, paper

FIGURES = {3: figures.figure3, 4: figures.figure4, 5: figures.figure5}


def ours(*rows):
    """Rows of our own: NaN where a row says nothing."""
    usual = dict.fromkeys(figures.OURS, np.nan) | dict(pretrain="1K, MAE", seeds=1)
    usual |= dict(model="ViT-B", detector="Mask R-CNN", dataset="coco", params=111e6, macs=8.4e11)
    return pd.DataFrame([usual | row for row in rows])


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draws a figure and returns its axes as rows x columns, the files, and the points."""
    monkeypatch.setattr(plt, "close", lambda figure: None)  # to look at what was drawn

    def drawn(number, rows=None):
        rows = pd.DataFrame() if rows is None else rows
        files = FIGURES[number](rows, tmp_path / f"figure{number}")
        check_files(files, number)
        axes = plt.gcf().axes
        for axis in axes:
            check_names(axis)
        columns = 1 if number == 5 else 3
        return np.array(axes).reshape(-1, columns), files, pd.read_csv(files[-1])

    yield drawn
    monkeypatch.undo()
    plt.close("all")


def points_of(axis):
    """(x, y) of every point with AP."""
    found = [container.lines[0].get_xydata() for container in axis.containers]
    return sorted(map(tuple, np.concatenate([*found, np.empty((0, 2))]).round(6).tolist()))


def check_names(axis):
    """Every point has its name, inside the panel and clear of the others."""
    if points_of(axis):
        boxes = [text.get_window_extent().padded(-2) for text in axis.texts]
        assert len(boxes) == len(points_of(axis))
        for i, box in enumerate(boxes):
            assert box.count_overlaps(boxes[i + 1 :]) == 0
            assert axis.bbox.x0 <= box.x0 < box.x1 <= axis.bbox.x1


def check_files(files, number):
    assert [file.name for file in files] == [f"figure{number}.{s}" for s in ("png", "svg", "csv")]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    svg = files[1].read_text()
    assert f">Figure {number}: " in svg
    assert "dc:date" not in svg


def test_figure_3_draws_table_9(draw):
    panels, _, points = draw(3)
    assert panels.shape == (1, 3)
    assert points["origin"].tolist() == ["paper"] * 11
    table = paper.published().query("table == 'T9' and detector == 'Mask R-CNN'")
    for axis, column in zip(panels[0], ("params_m", "flops_t", "test_time_ms"), strict=True):
        assert points_of(axis) == sorted(zip(table[column], table["ap_box"], strict=True))
        assert sorted(t.get_text() for t in axis.texts) == sorted("BBLBLBLHBLH")
    assert [axis.get_xlabel().split(",")[0] for axis in panels[0]] == [
        "M parameters of the detector",
        "TMACs",
        "test time",
    ]
    labels = [text.get_text() for text in plt.gcf().legends[0].get_texts()]
    assert labels == [
        "Swin, 1K, sup (paper)",
        "Swin, 21K, sup (paper)",
        "MViTv2, 1K, sup (paper)",
        "MViTv2, 21K, sup (paper)",
        "ViT, 1K, MAE (paper)",
    ]


def test_our_points_are_filled_and_the_papers_hollow(draw):
    panels, _, points = draw(3, ours(dict(ap_box=51.0, ap_box_std=0.2, seeds=3)))
    assert (points["origin"] == "ours").sum() == 1
    lines = {c.get_label(): c.lines[0] for c in panels[0, 0].containers}
    own, printed = lines["ViT, 1K, MAE (ours)"], lines["ViT, 1K, MAE (paper)"]
    assert own.get_marker() == printed.get_marker()
    assert printed.get_markerfacecolor() == "white"
    assert len(set(to_rgb(printed.get_color()))) == 1  # grey
    assert own.get_markerfacecolor() == own.get_color()
    assert len(set(to_rgb(own.get_color()))) > 1
    assert (111.0, 51.0) in points_of(panels[0, 0])
    assert (0.84, 51.0) in points_of(panels[0, 1])
    assert len(points_of(panels[0, 2])) == 11  # our test time was not measured
    (bar,) = (c.lines[2][0] for c in panels[0, 0].containers if c.has_yerr)
    assert bar.get_segments()[0][:, 1].tolist() == pytest.approx([50.8, 51.2])
    assert "ours: mean of 3 seeds, bars: ± 1 std" in plt.gcf().get_suptitle()


def test_series_are_told_apart_without_color(draw):
    extra = ours(
        dict(model="ConvNeXt-B", ap_box=50.0),
        dict(model="Own-with-a-long-name", ap_box=54.0, params=688e6, test_ms=60),
        dict(model="Swin-B", pretrain="21K, sup", ap_box=48.0),
    )
    panels, _, _ = draw(3, extra)
    lines = [(c.get_label(), c.lines[0]) for c in panels[0, 0].containers]
    looks = {
        (line.get_marker(), line.get_linestyle(), line.get_markerfacecolor() == "white")
        for _, line in lines
    }
    assert len(looks) == len(lines) == 8


def test_rows_without_ap_are_marked_at_their_cost_only(draw):
    rows = ours(dict(test_ms=60.0, device="some GPU", seeds=0))
    panels, _, points = draw(3, rows)
    for axis, x in zip(panels[0], (111.0, 0.84, 60.0), strict=True):
        assert len(points_of(axis)) == 11
        (mark,) = (a for a in axis.get_lines() if a.get_label() == "ViT, 1K, MAE (ours, cost only)")
        assert mark.get_xdata() == pytest.approx([x])
        assert mark.get_transform() == axis.get_xaxis_transform()
    assert panels[0, 2].get_xlabel().endswith("(published: A100; ours: some GPU)")
    assert "mean of" not in plt.gcf().get_suptitle()
    assert len(points) == 12


def test_figure_4_draws_mask_ap_of_lvis(draw):
    rows = ours(
        dict(dataset="lvis", ap_mask=38.0, ap_mask_rare=28.0), dict(ap_box=50.0, ap_mask=44.0)
    )
    panels, _, points = draw(4, rows)
    assert panels.shape == (3, 3)
    assert points_of(panels[0, 0]) == [(111, 38.0), (111, 38.1), (331, 43.5), (662, 45.9)]
    assert points_of(panels[1, 0]) == [(111, 28.0), (111, 29.1), (331, 35.3), (662, 37.9)]
    assert len(points_of(panels[2, 0])) == 8
    assert (204, 46.6) in points_of(panels[2, 2])  # the released ViT-H's own time
    assert points["origin"].value_counts().to_dict() == {"released model": 8, "paper": 3, "ours": 1}
    assert set(points["dataset"]) == {"lvis"}


def test_figure_5_says_that_nothing_is_printed(draw):
    panels, files, points = draw(5)
    assert points.empty
    (text,) = panels[0, 0].texts
    assert "no point is published" in text.get_text()
    svg = files[1].read_text()
    assert "ViT-H is 3.4 box AP above MViTv2-H" in svg
    assert draw(5)[1][1].read_text() == svg  # the same points make the same file
    panels, _, points = draw(5, ours(dict(detector="RetinaNet", ap_box=45.0)))
    assert [t.get_text() for t in panels[0, 0].texts] == ["B"]
    assert points_of(panels[0, 0]) == [(111.0, 45.0)]
    assert len(points) == 1


def test_wrong_rows_are_told(tmp_path):
    good = ours(dict(ap_box=51.0))
    for wrong, message in (
        (good.drop(columns=["macs", "seeds"]), "lack macs, seeds"),
        (good.assign(dataset="COCO"), "dataset 'COCO': use coco, lvis"),
        (good.assign(detector="FCOS"), "detector 'FCOS': use Mask R-CNN"),
        (good.assign(pretrain=None), "no pretrain"),
    ):
        with pytest.raises(ValueError, match=message):
            figures.figure3(wrong, tmp_path / "figure3")
    assert not list(tmp_path.iterdir())
