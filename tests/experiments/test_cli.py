"""A user's mistake: one line that says what, where and what to do; exit code 2; nothing lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from backbones.weights import catalog as weights
from experiments import records, studies
from experiments.data import catalog
from experiments.forecast import budget
from experiments.jobs import runs
from experiments.json_files import write_json
from tests.conftest import ROOT
from tests.experiments.records.test_records import make


def experiments(*words, **env):
    command = [sys.executable, "-W", "ignore", "-m", "experiments", *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=env or None
    )


@pytest.mark.parametrize("own", [{}, {"GLIBC_TUNABLES": ""}])
def test_what_a_command_starts_takes_large_pages_unless_the_user_says(own):
    """A shell in the place of a run, which it starts as any process: with its own environment."""
    words = "import os, sys; sys.argv[1:] = ['--help']; from experiments import __main__ as m\n"
    words += "try: m.main()\nexcept SystemExit: os.system('echo is $GLIBC_TUNABLES.')"
    done = subprocess.run(
        [sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True, check=True,
        env={k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"} | own,
    )  # fmt: skip
    assert done.stdout.endswith(f"is {own.get('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1')}.\n")


def assert_told(done, *parts):
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = done.stdout.splitlines()
    for part in ("error: ", *parts):
        assert part in line


def own(small_set, **changes):
    options = small_set | changes
    return ["--dataset", options["dataset"], "--val", options["val"]]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["global-vs-con"], ["unknown study 'global-vs-con'", "did you mean 'global-vs-conv'"]),
        (["global-vs-conv", "--scale", "tiny"], ["unknown scale 'tiny'", "known are coco, mini"]),
        (["global-vs-conv", "--size", "vit-xl"], ["unknown size 'vit-xl'"]),
        (["global-vs-conv", "--variants", "none,glob"], ["unknown variant 'glob'"]),
        (["global-vs-conv", "--overrides", "train.lr=1"], ["unknown config key 'train.lr'"]),
        (["global-vs-conv", "--overrides", "a='"], ["cannot be split"]),
        (["global-vs-conv", "--overrides", "train.seed=3"], ["train.seed in OVERRIDES", "SEEDS="]),
        (
            ["global-vs-conv", "--overrides", "train.init_weights=mae_in1"],
            ["train.init_weights: weights='mae_in1' is unknown: did you mean 'mae_in1k'"],
        ),
        (
            ["global-vs-conv", "--overrides", "train.init_weights="],
            ["train.init_weights: '' names no weights: 'none' is the word"],
        ),
        (["global-vs-conv", "--seeds", "-1"], ["seeds"]),
        (["global-vs-conv", "--seeds", "two"], ["--seeds", "integer"]),
        (
            ["global-vs-conv", "--sweep", "optimizer.lr=0.5,2"],
            ["SWEEP=optimizer.lr=0.5,2 lacks the factor 1, the recipe as it is"],
        ),
        (["global-vs-conv", "--seeds", "auto", "--max-seeds", "1"], ["MAX_SEEDS=1"]),
        (
            ["global-vs-conv", "--seeds", "auto", "--variants", "conv"],
            ["SEEDS=auto compares rows with the first, conv"],
        ),
        (
            ["global-vs-conv", "--seeds", "auto", "--variants", "none,conv", "--budget", "5s"],
            ["BUDGET=5s fits no look at verdicts: it takes 6 runs, about", "MAX_SEEDS=2"],
        ),
        (["broken[1].py"], ["cannot read the study", "broken[1].py", "SyntaxError"]),
        (["global-vs-conv", "--dataset", "a.json,b"], ["--dataset and --val go together"]),
    ],
)
def test_wrong_words(words, parts, small_set, tmp_path):
    if words[0].endswith(".py"):
        (tmp_path / words[0]).write_text("study = (")
        words = [tmp_path / words[0], *words[1:]]
    data = [] if "--dataset" in words else own(small_set)
    assert_told(experiments("run", *words, "--runs", tmp_path, *data), *parts)


def test_no_coco(tmp_path):
    done = experiments(
        "run", "global-vs-conv", "--scale", "coco", "--runs", tmp_path,
        DETECTRON2_DATASETS=str(tmp_path / "nowhere"),
    )  # fmt: skip
    assert_told(done, f"no COCO 2017 at {tmp_path}/nowhere/coco", "DETECTRON2_DATASETS", "val2017/")


def test_no_pretrained_weights(small_set, tmp_path):
    done = experiments(
        "run", "global-vs-conv", "--scale", "coco", "--runs", tmp_path, *own(small_set),
        DETECTRON2_WEIGHTS=str(tmp_path),
    )  # fmt: skip
    assert_told(
        done,
        "no weights mae_in1k of vit-b: save https://dl.fbaipublicfiles.com/mae/",
        f" as {ROOT}/weights/mae_pretrain_vit_base.pth, or in $DETECTRON2_WEIGHTS ({tmp_path})",
        "OVERRIDES='train.init_weights=none'",
    )


BROKEN = {
    "is no valid JSON": "{",
    "it has no list of images": "{}",
    "annotation 1: image 99 is not listed": lambda c: c["annotations"][0].update(image_id=99),
    "annotation 1: category 99 is not listed": lambda c: c["annotations"][0].update(category_id=99),
    "annotation 1: another has the id 1 too": lambda c: c["annotations"][1].update(id=1),
    "annotation 1: no segmentation, where others": lambda c: c["annotations"][0].pop(
        "segmentation"
    ),
    "annotation at entry 0 .* lacks 'bbox'": lambda c: c["annotations"][0].pop("bbox"),
    r"image 1 \(gone.bmp\): no file .*/gone\.bmp": lambda c: c["images"][0].update(
        file_name="gone.bmp"
    ),
    "category 1 is 'another', in .*json 'warm square'": lambda c: c["categories"][0].update(
        name="another"
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_data_set(message, small_set, tmp_path):
    source, images = small_set["val"].split(",")
    broken = tmp_path / "broken.json"
    change = BROKEN[message]
    if isinstance(change, str):
        broken.write_text(change)
    else:
        coco = json.loads(Path(source).read_text())
        change(coco)
        broken.write_text(json.dumps(coco))
    from experiments.data import catalog
    from experiments.errors import UserError

    with pytest.raises(UserError, match=message) as caught:
        catalog.prepare("mini", small_set["dataset"], f"{broken},{images}")
    assert str(broken) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nowhere_to_write(small_set, tmp_path):
    (tmp_path / "file").write_text("")
    done = experiments("run", "global-vs-conv", "--runs", tmp_path / "file", *own(small_set))
    assert_told(done, f"cannot write to {tmp_path}/file/mini/global-vs-conv@small-set")


def test_an_old_record_stops_before_anything_trains(small_set, tmp_path):
    words = ["run", "global-vs-conv", "--seeds", 1, "--variants", "none", "--runs", tmp_path]
    from experiments import studies
    from experiments.data import catalog
    from experiments.jobs import runs

    study = studies.find("global-vs-conv")
    data = catalog.prepare("mini", small_set["dataset"], small_set["val"])
    rows = runs.rows(study, "mini", "", {}, ["none"])
    (run,) = runs.plan(study, study.name, "mini", rows, 1, data, tmp_path)
    folder = Path(run.folder)
    folder.mkdir(parents=True)
    (folder / "record.json").write_text('{"version": 0}')
    assert_told(experiments(*words, *own(small_set)), "is of version 0, this suite reads 1")
    assert (folder / "record.json").read_text() == '{"version": 0}'


def test_evaluating_what_does_not_fit(small_set, tmp_path):
    import torch

    config_file = "configs/mini/mask_rcnn_vit_mini.py"
    weights = tmp_path / "weights.pth"
    words = ["evaluate", config_file, weights, "--val", small_set["val"], "--runs", tmp_path]
    assert_told(experiments(*words), f"no checkpoint at {weights}")
    weights.write_text("<html>")
    assert_told(experiments(*words), f"cannot read {weights}: it is a web page")
    torch.save({"model": {"a": torch.zeros(1)}}, weights)
    assert_told(experiments(*words), f"{weights} has keys a, ...: its format is none of")


def test_studies_are_listed_with_question_rows_and_state(tmp_path):
    folder = tmp_path / "mini" / "count"
    runs = [dict(variant="none", seed=seed, folder=f"none-{seed}") for seed in (0, 1)]
    (folder / "none-0").mkdir(parents=True)
    records.write(folder / "none-0", make(variant="none", seed=0))
    variants = [dict(name="none", size="", words={}, published={})]
    manifest = dict(
        version=records.VERSION, study="count", question="?", scale="mini", base="none",
        command="python -m experiments run count", variants=variants, runs=runs,
    )  # fmt: skip
    write_json(folder / records.MANIFEST, manifest)
    done = experiments("studies", "--runs", tmp_path)
    assert done.returncode == 0
    assert "global-vs-conv  How should windows exchange information" in done.stdout
    assert "rows: none, global, conv, shifted" in done.stdout
    assert "rows: none, 2, 4, all\n  rows at mini scale: none, 1, 3, 6\n" in done.stdout
    assert "  done: mini 1 of 2 runs\n" in done.stdout


def test_picture_sheet(small_set, tmp_path):
    done = experiments("data", "mini", "--show", "--runs", tmp_path, *own(small_set))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train: " in done.stdout
    assert "24 images" in done.stdout
    assert "by size: small" in done.stdout
    assert (tmp_path / "mini" / "data.png").stat().st_size > 50_000


def test_all_that_a_study_lacks_is_said_at_once(tmp_path):
    words = ["run", "pretraining", "--scale", "coco", "--runs", tmp_path]
    done = experiments(*words, DETECTRON2_DATASETS=str(tmp_path))
    assert_told(done, f"no COCO 2017 at {tmp_path}/coco/annotations", "train.init_weights=none")
    for word in ("mae_in1k", "sup_in1k", "sup_in21k"):
        source = weights.source(word, "vit-b")
        assert f"no weights {word} of vit-b: save {source.address} as " in done.stdout
        assert f"{ROOT}/weights/{source.file}" in done.stdout
    assert not list(tmp_path.rglob("record.json"))


def test_days_on_a_cpu_must_be_wanted(small_set, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    words = ["run", "count", "--scale", "coco", "--size", "vit-ti", "--runs", tmp_path]
    done = experiments(*words, *own(small_set))
    *_, batch, line = done.stdout.splitlines()
    assert done.returncode == 2
    assert batch.startswith("images of a step: 8, in passes of 1 on the CPU")
    assert line.startswith("error: all runs will take about ")
    assert "say YES=1 (--yes) to start all the same" in line


def test_minutes_on_a_cpu_need_no_yes(small_set, tmp_path):
    study = studies.find("count")
    data = catalog.prepare("coco", small_set["dataset"], small_set["val"])
    rows = runs.rows(study, "coco", "vit-ti", {"train.max_iter": 1})
    planned = runs.plan(study, "count", "coco", rows, 1, data, tmp_path)
    console = Console(record=True, width=200)
    budget.announce(1, False, console, planned)
    if not torch.cuda.is_available():
        assert " on this CPU, there is no GPU" in console.export_text()
        one, four = budget.cpu_hours(planned[:1]), budget.cpu_hours(planned)
        assert 0 < one < four
