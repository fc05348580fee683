"""Tables and plots from records, without training."""

import pandas as pd
import pytest

from analysis import plots, tables
from experiments import records
from experiments.errors import UserError
from experiments.records import MANIFEST, VERSION, write_json
from tests.experiments.test_records import make

PUBLISHED = {"none": {"vit-b": "T8a:0", "vit-l": "T2a:0"}, "global": {"vit-b": "T8a:1"}, "own": {}}
AP = {
    ("none", 0): 20.0,
    ("none", 1): 24.0,
    ("global", 0): 23.0,
    ("global", 1): 26.0,
    ("own", 0): 30.0,
}


@pytest.fixture
def study(tmp_path):
    """Rows of two seeds, two seeds, and one of two."""
    folder = tmp_path / "runs" / "mini" / "some-study"
    runs = []
    for variant in PUBLISHED:
        for seed in (0, 1):
            name = f"{variant}-{seed}"
            runs.append(dict(variant=variant, seed=seed, folder=name))
            if (variant, seed) in AP:
                (folder / name).mkdir(parents=True)
                ap = AP[variant, seed]
                box = dict(make().box, AP=ap)
                macs = {"none": 10, "global": 12, "own": 14}[variant] * 10**8
                record = make(variant=variant, seed=seed, box=box, macs=macs)
                records.write(folder / name, record)
    write_json(
        folder / MANIFEST,
        dict(
            version=VERSION, study="some-study", question="What?", scale="mini",
            base="none", command="python -m experiments run some-study", runs=runs,
            variants=[
                dict(name=v, size="vit-mini", words={}, published=p) for v, p in PUBLISHED.items()
            ],
        ),
    )  # fmt: skip
    return folder


def test_numbers(study):
    _, table = tables.study_table(study)
    rows = table.set_index("variant")
    assert rows.seeds.to_dict() == {"none": 2, "global": 2, "own": 1}
    assert rows.ap_box.to_dict() == {"none": 22.0, "global": 24.5, "own": 30.0}
    assert rows.ap_box_std["none"] == pytest.approx(8**0.5)
    assert pd.isna(rows.ap_box_std["own"])
    # Differences at the same seed: 3 and 2; for the last row only seed 0 is there.
    assert rows.ap_box_diff["global"] == 2.5
    assert rows.ap_box_diff_std["global"] == pytest.approx(0.5**0.5)
    assert rows.ap_box_diff["own"] == 10.0
    assert pd.isna(rows.ap_box_diff["none"])
    assert rows.apl_mask.isna().all()


def test_the_papers_figures_stand_beside(study):
    _, table = tables.study_table(study)
    rows = table.set_index("variant")
    assert rows.paper_ap_box_vitb["none"] == 48.9
    assert rows.paper_ap_mask_vitl["none"] == 47.2
    assert rows.paper_ap_box_vitb["global"] == 51.2
    assert pd.isna(rows.paper_ap_box_vitb["own"])


def test_columns_that_readers_rely_on(study):
    _, table = tables.study_table(study)
    promised = (
        "variant scale size seeds ap_box ap_box_std ap_mask ap_mask_std params macs train_seconds "
        "peak_memory_mib paper_ap_box_vitb paper_ap_box_vitl"
    )
    assert set(promised.split()) <= set(table.columns)


def test_a_study_without_any_result(study):
    for path in study.rglob("record.json"):
        path.unlink()
    manifest, table = tables.study_table(study)
    assert table.seeds.tolist() == [0, 0, 0]
    assert table.ap_box.isna().all()
    assert "| none | 0 |" in tables.markdown(manifest, table, tables.provenance(study))
    assert plots.ap_vs_macs(manifest, table, study / "ap_vs_macs") == []


def test_markdown(study):
    manifest, table = tables.study_table(study)
    text = tables.markdown(manifest, table, tables.provenance(study))
    assert "| none | 2 | 22.0 ± 2.8 |" in text
    assert "+2.5 ± 0.7" in text
    assert "48.9 / 43.9" in text
    assert "- device: a CPU, threads 1" in text
    tables_found = [b.splitlines() for b in text.split("\n\n") if b.startswith("|")]
    assert [len(lines) for lines in tables_found] == [5, 5]
    for lines in tables_found:
        assert len({line.count("|") for line in lines}) == 1


def test_plot_shows_every_row_with_its_spread(study):
    manifest, table = tables.study_table(study)
    written = plots.ap_vs_macs(manifest, table, study / "ap_vs_macs")
    assert [path.name for path in written] == ["ap_vs_macs.png", "ap_vs_macs.svg"]
    drawn = written[1].read_text()
    for text in ("none", "global", "own", "box AP", "mask AP", "GMACs of the detector, one image"):
        assert f">{text}<" in drawn
    assert written[0].read_bytes().startswith(b"\x89PNG")


def test_results_keep_whole_studies_with_their_own_settings(study):
    manifest, table = tables.study_table(study)
    with pytest.raises(UserError, match="some rows of this one are not done"):
        tables.check_publishable(manifest, table.assign(seeds=[2, 2, 0]))
    tables.check_publishable(manifest, table)
    manifest["command"] += " --overrides train.max_iter=4"
    with pytest.raises(UserError, match="run it without --overrides"):
        tables.check_publishable(manifest, table)
