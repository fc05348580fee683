"""A tiny study as jobs of a real Slurm, through the command line: `make test-slurm`."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from experiments import records
from experiments.records import looks
from tests.conftest import ROOT, study_folder, write_set
from tests.slurm import cluster as private

pytestmark = pytest.mark.slurm

TINY = "train.log_period=1 train.checkpoint_period=3 train.amp=false"
HALVES = "dataloader.train.micro_batch_size=4"  # a step's 8 images, for two processes


@contextlib.contextmanager
def keeper() -> Iterator[tuple[subprocess.Popen, dict[str, str]]]:
    """A private Slurm's process, and the environment in which commands find it. It ends with this
    process, even if that is killed."""
    if why := private.missing():
        pytest.skip(why)
    with subprocess.Popen(
        [sys.executable, "-m", "tests.slurm.cluster"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        name, _, conf = process.stdout.readline().removeprefix("export ").strip().partition("=")
        assert conf, "the private Slurm did not start"
        yield process, {name: conf}
        process.stdin.close()
        assert process.wait(timeout=60) == 0
    assert not Path(conf).parent.exists()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            assert conf.encode() not in environment.read_bytes()


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    with keeper() as (_, environment):
        yield environment


class Study:
    """A study in a folder of its own, on a cluster."""

    def __init__(
        self,
        cluster: dict[str, str],
        small_set: dict[str, str],
        runs: Path,
        name: str = "global-vs-conv",
    ):
        self.environment = os.environ | cluster | {"OMP_NUM_THREADS": "1"}
        self.small_set, self.runs = small_set, runs
        self.name, self.folder = name, study_folder(runs, name, small_set)

    def start(self, *words: str, overrides: str = "", settings: str = "") -> subprocess.Popen:
        """The command, under way."""
        file = self.runs / "slurm.toml"
        file.write_text(settings)
        command = [sys.executable, "-W", "ignore", "-m", "experiments", "run", self.name]
        command += ["--runs", self.runs, "--seeds", "1", "--launcher", "slurm", *words]
        command += ["--dataset", self.small_set["dataset"], "--val", self.small_set["val"]]
        return subprocess.Popen(
            [*command, "--overrides", f"{TINY} {overrides}"],
            cwd=ROOT,
            env=self.environment | {"ABLATIONS_SLURM": str(file)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def call(self, *words: str, **options: str) -> tuple[int, str]:
        """Exit code and output of the command."""
        process = self.start(*words, **options)
        output, _ = process.communicate(timeout=600)
        return process.returncode, output

    def slurm(self, *words: str) -> str:
        """The output of one of Slurm's commands."""
        answer = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, check=True
        )
        return answer.stdout.strip()

    def queue(self) -> list[str]:
        """Numbers of the jobs that wait or run."""
        return self.slurm("squeue", "--noheader", "--format=%A").split()

    def run(self, variant: str) -> Path:
        (folder,) = self.folder.glob(f"{variant}-*")
        return folder

    def has_checkpoint(self) -> bool:
        return bool(list(self.folder.glob("none-*/model_0*.pth")))

    def starts(self, variant: str) -> list[int]:
        """The iterations that training started from."""
        log = (self.run(variant) / "log.txt").read_text()
        return [int(n) for n in re.findall(r"Starting training from iteration (\d+)", log)]

    def arrays(self) -> int:
        """How often something was submitted."""
        return len(list((self.folder / "jobs").iterdir()))


@pytest.fixture
def study(cluster, small_set, tmp_path) -> Iterator[Study]:
    study = Study(cluster, small_set, tmp_path)
    yield study
    study.slurm("scancel", "--user=root")
    wait(lambda: not study.queue())


def wait(ready: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    """Until something is so, while a process goes on."""
    deadline = time.monotonic() + 300
    while not ready():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.stdout.read()
        time.sleep(0.1)


def test_a_cluster_leaves_nothing_not_even_its_jobs(tmp_path):
    hosts = Path("/etc/hosts").read_bytes()
    with keeper() as (process, environment):
        task = f"setsid sleep 600 & touch {tmp_path}/\\$SLURM_NODEID; sleep 600"
        words = ["sbatch", "--nodes=2", "--output=/dev/null", f'--wrap=srun sh -c "{task}"']
        subprocess.run(words, env=os.environ | environment, check=True, capture_output=True)
        wait(lambda: {path.name for path in tmp_path.iterdir()} == {"0", "1"}, process)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    assert Path("/etc/hosts").read_bytes() == hosts


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "model_final.pth", weights_only=True)["model"]


WORDS = f"train.max_iter=8 {HALVES}"


@pytest.fixture(scope="module")
def finished(cluster, small_set, tmp_path_factory) -> Study:
    """Two rows, one on each node."""
    study = Study(cluster, small_set, tmp_path_factory.mktemp("finished"))
    code, output = study.call("--variants", "none,shifted", overrides=WORDS)
    assert code == 0, output
    return study


def test_rows_are_jobs_of_one_array_and_run_once(finished):
    assert sorted(records.load(finished.folder).variant) == ["none", "shifted"]
    logs = "".join(p.read_text() for p in finished.folder.glob("jobs/*/*_log.out"))
    (array,) = {n for n, _ in re.findall(r"job_id=(\d+)_([01])", logs)}
    assert {f"job_id={array}_0", f"job_id={array}_1"} <= set(re.findall(r"job_id=\w+", logs))
    code, output = finished.call("--variants", "none,shifted", overrides=WORDS)
    assert code == 0
    assert "2 runs, 2 of them done" in output
    assert finished.arrays() == 1


def test_a_run_over_two_nodes_is_as_over_one(finished, study):
    code, output = study.call("--variants", "none", "--gpus", "2", overrides=WORDS)
    assert code == 0, output
    logs = "".join(p.read_text() for p in study.folder.glob("jobs/*/*_log.out"))
    assert "node=1(2), global_rank=1(2)" in logs
    # The gradients are the same, up to the order in which they are added.
    torch.testing.assert_close(
        weights(study.run("none")), weights(finished.run("none")), rtol=1e-4, atol=1e-5
    )


def test_rows_that_share_a_training_wait_for_it(cluster, small_set, tmp_path):
    study = Study(cluster, small_set, tmp_path, "system-level")
    rows = ["hard-nms", "soft-nms"]  # differ at test time only
    code, output = study.call("--variants", ",".join(rows), overrides="train.max_iter=4")
    assert code == 0, output
    assert "soft-nms  seed 0  waiting (Dependency)" in output
    assert (study.starts("hard-nms"), study.starts("soft-nms")) == ([0], [])
    assert sorted(records.load(study.folder).variant) == rows


def test_what_a_row_starts_from_is_pre_trained_first(cluster, small_set, tmp_path):
    study = Study(cluster, small_set, tmp_path, "pretraining")
    images = small_set["val"].partition(",")[2]
    short = ["train.max_iter=2", "train.amp=false"]
    short += [f"dataloader.train.{key}_batch_size=4" for key in ("total", "micro")]
    overrides = " ".join(["train.max_iter=2", *(f"pretraining.{word}" for word in short)])
    words = ["--variants", "mae", "--images", images]
    process = study.start(*words, overrides=overrides)
    wait(lambda: len(set(study.queue())) == 2, process)
    process.kill()  # the launcher; Slurm knows what comes after what
    process.communicate()
    wait(lambda: not study.queue())
    code, output = study.call(*words, overrides=overrides)
    assert code == 0, output
    assert "1 runs, 1 of them done" in output
    (encoder,) = (tmp_path / "mini" / "pretrained").glob("mae-*/encoder.pth")
    assert str(encoder) in (study.run("mae") / "log.txt").read_text()
    for folder in (encoder.parents[1], study.folder):
        logs = "".join(p.read_text() for p in folder.glob("jobs/*/*_log.out"))
        assert "Job completed successfully" in logs
    code, output = study.call(*words, overrides=overrides)
    assert code == 0
    assert "1 runs, 1 of them done" in output
    assert study.arrays() == 1


def preempt(study: Study) -> None:
    words = ["--partition=high", "--nodes=2", "--output=/dev/null", "--wrap=sleep 3"]
    study.slurm("sbatch", *words)


def test_preempted_on_two_nodes_is_requeued_and_resumed(study):
    words = f"train.max_iter=30 {HALVES}"
    process = study.start("--variants", "none", "--gpus", "2", overrides=words)
    wait(study.has_checkpoint, process)
    preempt(study)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert "requeued" in output
    first, second = study.starts("none")
    assert first == 0 < second
    assert study.arrays() == 1
    # Its last step before was not lost: the signal made the checkpoint.
    log = (study.run("none") / "log.txt").read_text()
    assert f"checkpoint written after iteration {second - 1}" in log
    table = subprocess.run(
        [sys.executable, "-m", "analysis", "study", study.folder],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert re.search(r"none .*\d", table)


def test_preempted_before_it_listens_is_not_lost(study):
    """The signal comes while Python imports: it is done within the time of grace, or requeued."""
    process = study.start("--variants", "none", overrides="train.max_iter=4")
    wait(lambda: study.slurm("squeue", "--noheader", "--states=RUNNING"), process)
    assert not list(study.folder.glob("none-*/log.txt"))  # it has not begun
    preempt(study)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert study.arrays() == 1


def test_at_its_time_limit_it_is_requeued_and_resumed(finished, study):
    # Slurm looks every 30 s: it signals 30 to 60 s after the start of a job. This one takes 90.
    iterations = 90 * records.load(finished.folder).images_per_second.max() / 8
    settings = 'time = "00:02:00"\nsbatch.signal = "USR2@60"'
    code, output = study.call(
        "--variants", "none", overrides=f"train.max_iter={iterations:.0f}", settings=settings
    )
    assert code == 0, output
    starts = study.starts("none")
    assert len(starts) > 1
    assert starts[0] == 0 < starts[1]
    log = next(study.folder.glob("jobs/*/*_log.out")).read_text()
    assert "this job is timed-out" in log
    assert records.load(study.folder).variant.tolist() == ["none"]


def test_jobs_outlive_their_launcher(study):
    """Ctrl-C, then SIGKILL; whoever calls again follows the same job."""
    words = dict(overrides="train.max_iter=60")
    process = study.start("--variants", "none", **words)
    wait(study.has_checkpoint, process)
    (number,) = study.queue()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"scancel {number}" in output
    assert study.queue() == [number]

    process = study.start("--variants", "none", **words)
    wait(lambda: "none  seed 0" in process.stdout.readline(), process)
    process.kill()
    process.communicate()

    code, output = study.call("--variants", "none", **words)
    assert code == 0, output
    assert study.starts("none") == [0]
    assert study.arrays() == 1


def test_rounds_follow_one_another_with_or_without_their_launcher(study):
    """A sweep's runs that choose, a first look, and seeds that are added: an array each."""
    words = ["--variants", "none,global", "--sweep", "optimizer.lr=1,2"]
    words += ["--seeds", "auto", "--max-seeds", "4", "--delta", "0.001"]
    short = dict(overrides="train.max_iter=12")
    process = study.start(*words, **short)
    wait(study.queue, process)
    process.kill()
    process.communicate()
    wait(lambda: not study.queue())

    code, output = study.call(*words, **short)
    assert code == 0, output
    assert re.search(r"optimizer.lr: none x\d, global x\d\n", output)
    assert "6 runs, 0 of them done" in output
    assert "with 3 seeds: global undecided" in output
    assert "8 runs, 6 of them done" in output
    assert "MAX_SEEDS=4 is spent: not decided: global" in output
    assert study.arrays() == 3
    assert len(records.load(study.folder)) == 8 + 4  # that chose
    assert [look["said"]["global"]["seeds"] for look in looks.read(study.folder)] == [3, 4]
    code, again = study.call(*words, **short)
    assert code == 0, again
    assert study.arrays() == 3


def test_cancelled_fails_and_the_same_command_goes_on(study):
    words = dict(overrides="train.max_iter=30")
    process = study.start("--variants", "none", **words)
    wait(study.has_checkpoint, process)
    (number,) = study.queue()
    study.slurm("scancel", number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"none seed 0 failed: its job {number} ended as CANCELLED" in output
    (log,) = re.findall(r"log: (\S+)", output)
    assert "CANCELLED" in Path(log).read_text()
    code, output = study.call("--variants", "none", **words)
    assert code == 0, output
    first, second = study.starts("none")
    assert first == 0 < second


def test_what_a_run_raises_is_told(study, tmp_path):
    train, val = (write_set(tmp_path / "set", split, 4) for split in ("train", "val"))
    folders = [path.with_suffix("") for path in (train, val)]
    study.small_set = {"dataset": f"{train},{folders[0]}", "val": f"{val},{folders[1]}"}
    code, output = study.call(
        "--variants",
        "none",
        overrides="train.max_iter=4",
        settings=f'setup = ["rm -r {folders[0]}"]',
    )
    assert code == 1
    assert re.search(r"none seed 0 failed: .*No such file or directory", output)


def test_refused_leaves_nothing(study):
    code, output = study.call("--variants", "none", settings='partition = "nosuch"')
    assert code == 2
    assert output.splitlines()[-1].startswith("error: sbatch refused: ")
    assert "nvalid partition" in output.splitlines()[-1]
    assert not study.queue()
    assert study.arrays() == 0
    assert not list(study.folder.glob("*/slurm.json"))
