"""The weights that mini runs start from: what is kept, and that all rows start from them."""

import json

import pytest
import torch
from detectron2.config import instantiate
from safetensors.torch import load_file

from backbones.weights import catalog, encoder_of, load_encoder
from experiments import records, studies
from experiments.errors import UserError
from experiments.jobs import mini_weights
from experiments.json_files import write_json
from experiments.recipe import config, resolved
from experiments.records import MANIFEST, VERSION, checkpoints
from tests.conftest import ROOT
from tests.experiments.records.test_records import make

SHIPPED = catalog.find(mini_weights.WORD, mini_weights.SIZE)


def test_they_are_small_and_say_where_they_come_from():
    assert SHIPPED.stat().st_size < 2**20
    record = json.loads(SHIPPED.with_suffix(".json").read_text())
    assert record["variant"] == "windows"
    assert record["config"]["model"]["backbone"]["propagation"] == "none"
    assert record["config"]["train"]["init_weights"] == "none"
    assert not record["git_commit"].endswith("-dirty")
    assert record["data"]["train"].startswith("datasets/")


@pytest.mark.parametrize("name", ["global-vs-conv", "count", "placement", "conv-block"])
def test_all_rows_start_from_them(name):
    """Every tensor of the file, and what a row has beyond it is its own residual modules."""
    study = studies.find(name)
    for variant in study.rows("mini"):
        cfg = resolved.resolve(study, variant, "mini", "vit-mini", {})
        assert cfg.train.init_weights == mini_weights.WORD
        _, encoder = encoder_of(instantiate(cfg.model))
        account = load_encoder(encoder, config.init_weights(cfg), show=lambda _: None)
        assert len(account.loaded) == len(load_file(SHIPPED))
        assert all(".residual." in key for key in account.new)
        assert bool(account.new) == (cfg.model.backbone.propagation == "conv")


def test_kept_is_the_encoder_of_the_run_in_half_precision(tmp_path):
    study = studies.find(str(ROOT / "experiments/studies/_windows_mini.py"))
    cfg = resolved.resolve(study, study.variants[0], "mini", "vit-mini", {})
    model = instantiate(cfg.model)
    run = tmp_path / "windows-mini" / "run"
    run.mkdir(parents=True)
    checkpoints.save(run, None, dict(model=model.state_dict()))
    data = dict(kind="coco", val=str(ROOT / "datasets/val.json"))
    record = make(variant="windows", data=data)
    records.write(run, record)
    write_json(
        run.parent / MANIFEST,
        dict(
            version=VERSION, study="windows-mini", question="?", scale="mini", base="windows",
            command="", runs=[dict(variant="windows", seed=0, folder="run")],
            variants=[dict(name="windows", size="vit-mini", words={}, published={})],
        ),
    )  # fmt: skip
    path = mini_weights.keep(run.parent, tmp_path / "shipped")
    assert path.name == SHIPPED.name
    assert path.stat().st_mode & 0o044 == 0o044  # others may read it
    kept = json.loads(path.with_suffix(".json").read_text())
    assert kept["data"]["val"] == "datasets/val.json"  # wherever the checkout lies
    assert kept["fingerprint"] == record.fingerprint
    kept, encoder = load_file(path), model.backbone.net.state_dict()
    assert kept.keys() == encoder.keys() == load_file(SHIPPED).keys()
    for key, value in encoder.items():
        wanted = value.half() if value.is_floating_point() else value
        assert torch.equal(kept[key], wanted)


def test_a_study_that_was_not_run_ends_in_a_line(tmp_path):
    with pytest.raises(UserError, match="no study was run"):
        mini_weights.keep(tmp_path)
