"""Installed into somebody's environment: what is in the wheel, and the front doors work from it."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import PACKAGES, ROOT, write_set


def pip(*words: str | Path) -> None:
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([sys.executable, "-m", "pip", *words, *options], check=True)


@pytest.fixture(scope="session")
def wheel(clone, tmp_path_factory) -> Path:
    pytest.importorskip("setuptools", reason="builds the wheel")
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", clone, "--wheel-dir", out)
    return next(out.glob("*.whl"))


def test_the_wheel_has_all_that_the_packages_are_made_of(clone, wheel):
    files = {
        str(path.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).rglob("*.*")
    }
    files = {name for name in files if "__pycache__" not in name}
    assert files >= {
        "analysis/paper/results.csv",
        "backbones/weights/shipped/vit-mini_windows.json",
    }
    assert {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n} == files


def _name(line: str) -> str:
    return re.split("[=><]", line)[0]


def test_it_asks_for_what_is_pinned():
    """By name; OpenCV comes with lvis, in whichever form."""
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pinned = (ROOT / "requirements.txt").read_text().splitlines()
    names = {_name(line) for line in pinned if not line.startswith("#")}
    assert {_name(line) for line in asked} == names - {"opencv-python-headless"}


# With configs/ of its own.
THEIR_PROJECT = """
import sys
from pathlib import Path

import backbones
import configs.theirs
import experiments
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_backbone

assert not Path(backbones.__file__).is_relative_to(sys.argv[1]), backbones.__file__
model = LazyConfig.load(str(experiments.CONFIGS / "mini" / "lvis_mask_rcnn_vit_mini.py")).model
assert instantiate(model.backbone).output_shape()["p2"].stride == 4
cfg = get_cfg()
backbones.add_vit_config(cfg)
cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_vit_backbone", "MODEL.VIT.SIZE", "vit-ti"])
print(sorted(build_backbone(cfg).output_shape()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("editable", [False, True])
def test_somebody_elses_project_and_both_front_doors(editable, clone, wheel, tmp_path):
    """In an environment that has torch and detectron2, and this suite from its wheel or clone."""
    venv.create(tmp_path / "env", symlinks=True)
    place = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env")}))
    (place / "theirs.pth").write_text(sysconfig.get_path("purelib"))
    binaries = tmp_path / "env" / "bin"
    pip("--python", binaries / "python", "install", *(["-e", clone] if editable else [wheel]))

    def run(command: str, *words: str | Path) -> str:
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        words = [binaries / command, *words]
        done = subprocess.run(
            words, cwd=tmp_path, capture_output=True, text=True, check=False, env=env
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "theirs.py").touch()
    (tmp_path / "theirs.py").write_text(THEIR_PROJECT)
    assert "'p2', 'p3'" in run("python", "theirs.py", ROOT)
    assert "global-vs-conv" in run("backbone-experiments", "studies")
    if editable:
        return
    config = "configs/coco/mask_rcnn_vit_b.py"
    assert "lr" in run("python", "-m", "experiments", "show-optim", config)
    train, val = (
        f"{write_set(tmp_path, s, n)},{tmp_path / s}" for s, n in [("train", 8), ("val", 4)]
    )
    own = ["--dataset", train, "--val", val]
    words = ["--variants", "none", "--seeds", "1", "--overrides", "train.max_iter=2", *own]
    run("backbone-experiments", "run", "global-vs-conv", *words)
    assert "none" in run("python", "-m", "analysis", "study", "runs/mini/global-vs-conv", *own)
    assert "written: " in run("backbone-analysis", "report")
