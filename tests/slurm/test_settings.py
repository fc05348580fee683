"""slurm.toml, and what is refused before Slurm is asked; no cluster is needed."""

import re
import tomllib

import pytest

from experiments.errors import UserError
from experiments.launching.settings import FILE, VARIABLE, Settings, read_settings, settings_for
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "cluster.md").read_text()


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Settings from the text of a file."""

    def settings(text: str) -> Settings:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        monkeypatch.setenv(VARIABLE, str(path))
        return read_settings()

    return settings


@pytest.mark.parametrize("text", re.findall(r"```toml\n(.*?)```", PAGE, re.S))
def test_examples_of_the_guide_are_read(read, text):
    settings = read(text)
    for key, value in tomllib.loads(text).items():
        assert getattr(settings, key) == value


def test_without_a_file_there_are_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    assert read_settings() == Settings()
    (tmp_path / FILE).write_text('partition = "here"')
    assert read_settings().partition == "here"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("partion = 'gpu'", "unknown key 'partion' in .*did you mean 'partition'"),
        ("gpus_per_node = '8'", "gpus_per_node .* is '8': it takes a whole number"),
        ("partition = 1", "partition .* is 1: it takes a word in quotes"),
        ("max_jobs = true", "max_jobs .* is True: it takes a whole number"),
        ("max_nodes = -1", "no negative number"),
        ("setup = 'module load cuda'", "it takes a list of shell lines"),
        ("setup = [1]", "setup .* has 1: it takes shell lines in quotes"),
        ("time = 12:00:00", "it takes minutes, or a time in quotes"),
        ("time = 'a day'", r"time .* is 'a day': it takes minutes, or"),
        ("time = 0", "it takes minutes, or"),
        ("sbatch.exclusive = false", "exclusive of .* is False: it takes a word or true"),
        ("sbatch.job-name = 'mine'", "job-name of .* is not for there"),
        ("sbatch.nice = [1]", "it takes a word or true"),
        ("partition = gpu", "cannot read .*mine.toml"),
    ],
)
def test_mistakes_are_told(read, text, told):
    with pytest.raises(UserError, match=told):
        read(text)


def test_a_file_that_is_named_must_be_there(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.toml"))
    with pytest.raises(UserError, match=r"cannot read .*none.toml: No such file"):
        read_settings()


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        (90, 90),
        ("90", 90),
        ("90:30", 91),
        ("1:00:00", 60),
        ("24:00:00", 1440),
        ("1-12", 2160),
        ("1-2:30", 1590),
        ("2-0:0:1", 2881),
    ],
)
def test_time_limits_are_read_as_sbatch_does(text, minutes):
    assert Settings(time=text).minutes == minutes


@pytest.mark.parametrize(
    ("settings", "processes", "layout"),
    [
        ({}, 1, (1, 1)),
        ({}, 2, (2, 1)),
        ({"gpus_per_node": 8}, 1, (1, 1)),
        ({"gpus_per_node": 8}, 8, (1, 8)),
        ({"gpus_per_node": 8}, 64, (8, 8)),
        ({"gpus_per_node": 8, "ntasks_per_node": 4}, 8, (2, 4)),
        ({"ntasks_per_node": 8}, 16, (2, 8)),
    ],
)
def test_processes_are_laid_out_on_nodes(settings, processes, layout):
    assert Settings(**settings).layout(processes) == layout


def test_nodes_are_filled_and_limited():
    settings = Settings(gpus_per_node=8, max_nodes=2)
    with pytest.raises(UserError, match="GPUS=12 do not fill nodes of 8"):
        settings.layout(12)
    with pytest.raises(UserError, match=r"GPUS=24 take 3 nodes of 8, max_nodes .* is 2"):
        settings.layout(24)


def test_no_slurm_here(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="LAUNCHER=slurm needs sbatch, srun, squeue, scontrol here"):
        settings_for(1)


def test_a_run_on_a_part_of_a_node_asks_for_that_part():
    settings = Settings(gres="gpu:a100:8", mem="480G", ntasks_per_node=8)
    asked = {n: settings.parameters("x", 0, n, set()) for n in (1, 2, 16)}
    assert {n: (p["gres"], p["mem"], p["nodes"]) for n, p in asked.items()} == {
        1: ("gpu:a100:1", "60G", 1),
        2: ("gpu:a100:2", "120G", 1),
        16: ("gpu:a100:8", "480G", 2),
    }


def test_gres_alone_does_not_say_how_many_processes_fill_a_node(tmp_path, monkeypatch):
    (tmp_path / FILE).write_text('gres = "gpu:8"')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="give ntasks_per_node too"):
        read_settings()
