"""The code of docs/your-own-variant.md works as the page says."""

import re
import subprocess
import sys

import pandas as pd
import pytest
import torch

from tests.conftest import ROOT, study_folder

PAGE = ROOT / "docs" / "your-own-variant.md"


@pytest.fixture(scope="module")
def grid_file(tmp_path_factory):
    grid, dilated = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    path = tmp_path_factory.mktemp("variant") / "grid.py"
    path.write_text(f"{grid}\n\n{dilated}")
    return path


def python(*words):
    command = [sys.executable, "-W", "ignore", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_class_reaches_the_whole_map_at_a_windows_price(grid_file):
    from backbones import build_encoder
    from experiments import studies

    study = studies.find(str(grid_file))
    assert [v.name for v in study.variants] == ["none", "global", "grid"]
    encoder = build_encoder("vit-mini", propagation="grid", use_rel_pos=True, use_abs_pos=False)
    assert encoder.plan == ("window", "grid") * 3
    image = torch.randn(1, 3, 120, 136, requires_grad=True)
    features = encoder.eval()(image)["last_feat"]
    assert features.shape == (1, 64, 15, 17)
    features[0, :, 0, 0].sum().backward()
    assert (image.grad.abs().sum((0, 1))[-8:, -8:] > 0).any()  # the far corner


def test_a_word_sets_the_size_and_a_partition_knows_its_block(grid_file):
    from backbones import build_encoder
    from experiments import studies
    from experiments.recipe import config, identity, resolved
    from experiments.recipe.words import parse_overrides

    study = studies.find(str(grid_file))
    overrides = parse_overrides('"model.backbone.propagation=grid(size=2)"')
    cfg = resolved.resolve(study, study.variants[2], "mini", "vit-mini", overrides)
    encoder = config.build_on_meta(cfg.model).backbone.net
    assert encoder.plan == ("window", "grid(size=2)") * 3
    assert encoder.blocks[1].attn.partition.group_size(16, 16) == (2, 2)
    plain = resolved.resolve(study, study.variants[2], "mini", "vit-mini", {})
    assert identity.fingerprint(cfg, "") != identity.fingerprint(plain, "")

    encoder = build_encoder("vit-mini", propagation="dilated(every=2)", count="all")
    assert [block.attn.partition.step for block in encoder.blocks] == [1, 1, 2, 2, 4, 4]
    assert encoder(torch.randn(1, 3, 120, 136))["last_feat"].shape == (1, 64, 15, 17)


@pytest.mark.slow
def test_the_commands_make_the_table(grid_file, small_set, tmp_path):
    run = python(
        "-m", "experiments", "run", grid_file, "--seeds", 1, "--runs", tmp_path,
        "--dataset", small_set["dataset"], "--val", small_set["val"],
        "--overrides", "train.max_iter=2 train.log_period=1",
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    folder = study_folder(tmp_path, "grid", small_set)
    table = python("-m", "analysis", "study", folder)
    assert table.returncode == 0, table.stdout + table.stderr
    rows = pd.read_csv(folder / "table.csv").set_index("variant")
    assert list(rows.index) == ["none", "global", "grid"]
    # Same groups of 16 tokens as windows, so the same products; global attention has more.
    assert rows.macs["grid"] == rows.macs["none"] < rows.macs["global"]
