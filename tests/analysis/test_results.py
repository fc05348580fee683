"""A study's numbers: means, spreads, differences with intervals, and what is not comparable."""

import dataclasses
import json
import shutil

import pandas as pd
import pytest

from analysis import bootstrap, results
from experiments import records
from experiments.errors import UserError


def aps(study, variant: str, kind: str = "box") -> list[float]:
    files = sorted(study.glob(f"{variant}-*/record.json"))
    return [json.loads(path.read_text())[kind]["AP"] for path in files]


def test_means_spreads_and_differences(study):
    rows = results.load(study).table.set_index("variant")
    assert rows.seeds.to_dict() == {"none": 2, "global": 2, "own": 1}
    for kind in ("box", "mask"):
        base, ours = aps(study, "none", kind), aps(study, "global", kind)
        row = rows.loc["global"]
        assert row[f"ap_{kind}"] == pytest.approx(sum(ours) / 2)
        assert row[f"ap_{kind}_std"] == pytest.approx(abs(ours[0] - ours[1]) / 2**0.5)
        assert row[f"ap_{kind}_diff"] == pytest.approx((sum(ours) - sum(base)) / 2)
        # Of the last row one seed is there: it is set against all of the base.
        (alone,) = aps(study, "own", kind)
        assert rows[f"ap_{kind}_diff"]["own"] == pytest.approx(alone - sum(base) / 2)
        assert pd.isna(rows[f"ap_{kind}_std"]["own"])
        assert pd.isna(rows[f"ap_{kind}_diff"]["none"])


def test_intervals_and_verdicts_are_those_of_the_bootstrap(study):
    rows = results.load(study, delta=3).table.set_index("variant")
    drawn = {
        v: {int(f.name[-1]): bootstrap.of_run(f) for f in sorted(study.glob(f"{v}-*"))}
        for v in rows.index
    }
    found = bootstrap.against("none", drawn)
    first_look = dict(error=0.04)
    expected = dataclasses.replace(found["global"]["AP"], **first_look)
    row = rows.loc["global"]
    assert (row.ap_box_diff_low, row.ap_box_diff_high) == expected.interval()
    assert row.ap_box_verdict == expected.verdict(3)
    alone = bootstrap.bootstrap(list(drawn["global"].values()))["AP"]
    assert (row.ap_box_low, row.ap_box_high) == alone.interval()
    own = dataclasses.replace(found["own"]["AP"], **first_look)
    assert rows.loc["own"].ap_box_diff_low == own.interval()[0]
    assert rows.ap_box_spread.to_dict() == {"none": "", "global": "own", "own": "unpaired"}


def test_of_one_seed_each_it_is_said(study):
    for folder in study.glob("*-1"):
        (folder / "record.json").unlink(missing_ok=True)
    row = results.load(study).table.set_index("variant").loc["own"]
    drawn = [[bootstrap.of_run(study / name)] for name in ("own-0", "none-0")]
    alone = bootstrap.paired(*drawn)["AP"]
    assert alone.verdict(0.5) == "better"
    assert row.ap_box_verdict == "one seed"
    assert row.ap_box_diff_low == alone.interval()[0]


def test_rows_without_a_common_seed_are_compared(study):
    (study / "none-0" / "record.json").unlink()
    row = results.load(study).table.set_index("variant").loc["own"]
    assert row.ap_box_diff == pytest.approx(aps(study, "own")[0] - aps(study, "none")[0])
    assert row.ap_box_verdict == "one seed"


def test_an_interval_of_ap_is_within_its_range(study):
    """Two seeds that are far apart say next to nothing."""
    (study / "global-0" / "coco_instances_results.json").write_text("[]")
    row = results.load(study).table.set_index("variant").loc["global"]
    assert (row.ap_box_low, row.ap_box_high) == (0, 100)


def test_draws_are_kept_beside_the_records(study, monkeypatch):
    for path in study.glob("*/draws_*.npz"):
        path.unlink()
    first = results.load(study).table
    assert len(list(study.glob("*/draws_*.npz"))) == 10
    monkeypatch.setattr(bootstrap, "draw", None)
    pd.testing.assert_frame_equal(results.load(study).table, first)


def test_draws_of_other_predictions_are_not_used(study):
    before = results.load(study).table.set_index("variant")
    path = study / "own-0" / "coco_instances_results.json"
    path.write_text(json.dumps(json.loads(path.read_text())[::4]))
    after = results.load(study).table.set_index("variant")
    assert after.ap_box_high["own"] != before.ap_box_high["own"]
    assert after.ap_box_high["none"] == before.ap_box_high["none"]


def test_the_papers_figures_stand_beside(study):
    rows = results.load(study).table.set_index("variant")
    assert rows.paper_ap_box_vitb["none"] == 48.9
    assert rows.paper_ap_mask_vitl["none"] == 47.2
    assert rows.paper_ap_box_vitb["global"] == 51.2
    assert pd.isna(rows.paper_ap_box_vitb["own"])


def test_columns_that_readers_rely_on(study):
    promised = (
        "variant scale size seeds ap_box ap_box_std ap_box_low ap_box_high ap_box_diff "
        "ap_box_diff_low ap_box_diff_high ap_box_verdict ap_mask ap_mask_std params macs "
        "train_seconds peak_memory_mib paper_ap_box_vitb paper_ap_box_vitl"
    )
    assert set(promised.split()) <= set(results.load(study).table.columns)


def rewrite(run, **changes) -> None:
    record = records.read(run / "record.json")
    records.write(run, dataclasses.replace(record, **changes))


def recipe_notes(found: results.Results) -> list[str]:
    return [note for note in found.notes if " differs from " in note]


def test_runs_of_one_recipe_need_no_note(study):
    assert recipe_notes(results.load(study)) == []


def test_whose_seeds_an_interval_is_of_is_said(study):
    assert [n for n in results.load(study).notes if "look 1" not in n and "done" not in n] == [
        "global: two seeds say nothing of a row's spread: interval of its own pairs",
        "own: one run: its interval takes its seeds to spread as the base's do; no verdict",
    ]
    # Tested otherwise: of one training.
    for run in study.glob("own-0"):
        (study / "own-1").mkdir()
        shutil.copytree(study / "none-1", study / "own-1", dirs_exist_ok=True)
        record = records.read(study / "none-0" / "record.json")
        rewrite(run, config=record.config | {"test": {"soft_nms": "linear"}})
    notes = results.load(study).notes
    assert "own: the base's trainings, tested otherwise: paired by them" in notes
    (study / "global-0" / "record.json").unlink()
    (study / "global-2").mkdir()
    shutil.copytree(study / "global-1", study / "global-2", dirs_exist_ok=True)
    rewrite(study / "global-2", seed=2)
    manifest = json.loads((study / records.MANIFEST).read_text())
    manifest["runs"].append(dict(variant="global", seed=2, folder="global-2"))
    (study / records.MANIFEST).write_text(json.dumps(manifest))
    notes = results.load(study).notes
    assert "global: fewer than two seeds shared with the base: not paired by seed" in notes


def test_a_difference_of_fewer_seeds_is_said(study):
    for name in ("none", "global"):
        folder = study / f"{name}-2"
        shutil.copytree(study / f"{name}-1", folder)
        rewrite(folder, seed=2)
    manifest = json.loads((study / records.MANIFEST).read_text())
    manifest["runs"] += [dict(variant=n, seed=2, folder=f"{n}-2") for n in ("none", "global")]
    (study / records.MANIFEST).write_text(json.dumps(manifest))
    (study / "none-0" / "record.json").unlink()
    found = results.load(study)
    assert "global: difference over the 2 seeds that it shares with none" in found.notes
    row = found.table.set_index("variant").loc["global"]
    pairs = zip(aps(study, "global")[1:], aps(study, "none"), strict=True)
    assert row.ap_box_diff == pytest.approx(sum(ours - base for ours, base in pairs) / 2)


def test_what_is_of_no_interest_is_the_scales(study):
    assert results.load(study).delta == bootstrap.DELTAS["mini"] == 2
    manifest = json.loads((study / records.MANIFEST).read_text())
    (study / records.MANIFEST).write_text(json.dumps(manifest | {"scale": "coco"}))
    assert results.load(study).delta == 0.5
    assert results.load(study, delta=0).delta == 0


def test_another_recipe_or_device_is_named(study):
    config = {"model": {"word": "global"}, "train": {"seed": 1, "max_iter": 7}}
    rewrite(study / "global-1", config=config, device="another CPU")
    assert recipe_notes(results.load(study)) == [
        "global differs from none in train.max_iter: 9 -> 7; device: a CPU -> another CPU"
    ]


def test_words_that_came_later_are_no_difference(study):
    """Runs of before have none of them in their config."""

    def write(run, more, train=None):
        reading = {"micro_batch_size": 2} | (train or {})
        words = {"train": {"max_iter": 9} | more, "dataloader": {"train": reading}}
        rewrite(run, config=words)

    later = {"loss_batch_size": 2, "views": 0}
    for run in study.glob("none-*"):
        write(run, {})
    for run in study.glob("global-*"):
        write(run, {"tuning": "full"}, later)
    assert not any(note.startswith("global") for note in recipe_notes(results.load(study)))
    write(run, {"tuning": "frozen"}, later)
    assert "global differs from none in train.tuning: full -> frozen" in recipe_notes(
        results.load(study)
    )


def test_other_training_data_are_named(study):
    data = records.read(study / "own-0" / "record.json").data
    rewrite(study / "own-0", data={**data, "digest": "other"})
    assert recipe_notes(results.load(study)) == ["own differs from none in data: d -> other"]


def test_other_validation_images_are_refused(study, finished, tmp_path):
    truth = json.loads((finished.parent / "truth.json").read_text())
    gone = truth["images"].pop()["id"]
    (tmp_path / "other.json").write_text(json.dumps(truth))
    run = study / "own-0"
    data = records.read(run / "record.json").data
    rewrite(run, data={**data, "val": str(tmp_path / "other.json")})
    kept = json.loads((run / "coco_instances_results.json").read_text())
    kept = [result for result in kept if result["image_id"] != gone]
    (run / "coco_instances_results.json").write_text(json.dumps(kept))
    with pytest.raises(UserError, match="own and none: runs were evaluated on different images"):
        results.load(study)


def test_without_predictions_the_row_stays_and_is_named(study):
    (study / "own-0" / "coco_instances_results.json").unlink()
    found = results.load(study)
    row = found.table.set_index("variant").loc["own"]
    assert row.ap_box == aps(study, "own")[0]
    assert row.ap_box_diff == pytest.approx(aps(study, "own")[0] - sum(aps(study, "none")) / 2)
    assert pd.isna(row.ap_box_diff_low)
    assert row.ap_box_verdict == ""
    assert [note.partition(": cannot read")[0] for note in found.notes if "cannot" in note] == [
        "own: no interval of box AP", "own: no interval of mask AP"
    ]  # fmt: skip


def test_a_study_without_any_result(study):
    for path in study.rglob("record.json"):
        path.unlink()
    found = results.load(study)
    assert found.table.seeds.tolist() == [0, 0, 0]
    assert found.table.ap_box.isna().all()


def test_all_studies_or_those_that_were_chosen(study, tmp_path):
    runs = tmp_path / "runs"
    assert results.folders(None, runs) == [study]
    assert results.folders([study / ".."], runs) == [study / ".."]
    with pytest.raises(UserError, match="no study was run in"):
        results.folders([], tmp_path / "nowhere")


def test_before_the_base_is_done_rows_are_named_against_the_first(study):
    for folder in study.glob("none-*"):
        (folder / "record.json").unlink(missing_ok=True)
    data = records.read(study / "own-0" / "record.json").data
    rewrite(study / "own-0", data={**data, "digest": "other"})
    found = results.load(study)
    assert recipe_notes(found) == ["own differs from global in data: d -> other"]
    assert found.table.ap_box_diff.isna().all()


@pytest.mark.parametrize(
    ("val", "images", "expected"),
    [
        ("instances_val2017.json", 5000, ("COCO val2017", True)),
        ("instances_val2017.json", 66, ("COCO val2017", False)),
        ("my_val.json", 5000, ("COCO val2017", False)),
    ],
)
def test_the_papers_data_are_known_by_file_and_number(study, val, images, expected):
    found = results.load(study)
    data = dict(kind="coco", val=f"/somewhere/{val}", images=[9, images])
    runs = found.records.assign(data=[data] * len(found.records))
    found = dataclasses.replace(found, records=runs)
    assert results.paper_data(found) == expected
    small = dataclasses.replace(found, manifest={**found.manifest, "scale": "small"})
    assert results.paper_data(small) == (expected[0], False)  # of another recipe


def test_how_often_a_row_beats_the_base(study):
    """In four of the five seeds that both have."""
    manifest = json.loads((study / records.MANIFEST).read_text())
    for seed in (2, 3, 4):
        for name in ("none", "global"):
            of, number = ("none", 0) if name == "none" else ("own", 0)
            if seed == 4:  # the base's run is the better one
                of, number = ("own", 0) if name == "none" else ("none", 0)
            shutil.copytree(study / f"{of}-{number}", study / f"{name}-{seed}")
            rewrite(study / f"{name}-{seed}", seed=seed)
            entry = dict(variant=name, seed=seed, folder=f"{name}-{seed}")
            manifest["runs"].append(entry)
    found = results.load(study).table.set_index("variant")
    assert found.ap_box_beats.isna().all()  # of two seeds
    (study / records.MANIFEST).write_text(json.dumps(manifest))
    row = results.load(study).table.set_index("variant").loc["global"]
    assert row.ap_box_beats == 0.8
    # Wilson 1927 by hand: (p + z2/2n +- z sqrt(pq/n + z2/4n2)) / (1 + z2/n)
    assert (row.ap_box_beats_low, row.ap_box_beats_high) == pytest.approx(
        (0.3755, 0.9638), abs=1e-4
    )
