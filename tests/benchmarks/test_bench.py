"""The benchmark: rows are what they say, and its tables follow from what was measured."""

import multiprocessing
import shutil
import time

import pandas as pd
import pytest
import torch

from backbones import build_encoder
from benchmarks import __main__ as bench
from benchmarks import report, weights, worker
from benchmarks.cases import OURS, PEERS, SUITES, Case, suite
from benchmarks.implementations import build
from experiments.costs import detector_cost as cost
from experiments.costs import environment

TINY = dict(tokens=15, implementations=OURS + PEERS)  # one window and a token: padding


def output(case: Case, implementation: str) -> torch.Tensor:
    net, make_input = build(case, implementation)
    with torch.no_grad():
        found = net.eval()(make_input(0))
    if hasattr(found, "feature_maps"):
        return found.feature_maps[0]
    return found["last_feat"] if isinstance(found, dict) else found


@pytest.mark.parametrize("implementation", ["reference", *PEERS])
def test_every_row_is_a_network_of_the_same_size(implementation):
    case = Case(**TINY)
    ours, theirs = build(case, "fused")[0], build(case, implementation)[0]
    # Peers differ in the cls token's position, which is not used.
    sizes = {tuple(p.shape) for name, p in theirs.named_parameters() if "position" not in name}
    expected = {tuple(p.shape) for name, p in ours.named_parameters()}
    positions = {s for s in sizes ^ expected if len(s) in (3, 4) and s[-1] == 768}
    assert sizes ^ expected <= positions
    blocks = sum(p.numel() for name, p in theirs.named_parameters() if p.ndim == 2)
    assert blocks == sum(p.numel() for name, p in ours.named_parameters() if p.ndim == 2)
    shape = output(case, implementation).shape
    assert set(shape) == {1, 768, 15}
    # The same blocks attend globally: those without a window.
    if implementation in PEERS:
        windows = [m.window_size for m in theirs.modules() if hasattr(m, "window_size")]
        windows = [w if isinstance(w, int) else w[0] for w in windows]
        assert [i for i, w in enumerate(windows) if not w] == [2, 5, 8, 11]


def test_least_macs_are_the_textbooks_where_nothing_is_padded():
    """56 x 56 tokens are whole windows."""
    for blocks in ("window only", "4 global", "all global"):
        case = Case(size="vit-ti", blocks=blocks, tokens=28, rel_pos=False)
        encoder = build_encoder(**case.words())
        counted = cost.count(encoder, torch.zeros(1, 3, 448, 448))[""].macs
        assert case.macs() == counted
        assert Case(size="vit-ti", blocks=blocks, tokens=28, mode="train").macs() == 3 * counted


def test_conv_blocks_are_counted():
    case = Case(size="vit-ti", blocks="4 conv", tokens=28, rel_pos=False)
    counted = cost.count(build_encoder(**case.words()), torch.zeros(1, 3, 448, 448))[""].macs
    assert case.macs() == counted


@pytest.mark.parametrize("name", SUITES)
def test_suites_have_no_case_twice(name):
    for device in ("cpu", "cuda"):
        keys = [tuple(case.key().values()) for case in suite(name, device)]
        assert len(keys) == len(set(keys))


@pytest.mark.parametrize("name", SUITES)
def test_a_gpu_gets_batches_a_cpu_single_images(name):
    assert {case.batch for case in suite(name, "cuda")} == {8}
    assert {case.batch for case in suite(name, "cpu")} == {1}


@pytest.mark.parametrize("module", ["encoder", "neck", "linear", "detector"])
def test_inputs_have_as_many_images_as_the_case_says(module):
    case = Case(module, "vit-ti", tokens=4, batch=3)
    assert len(build(case, "fused")[1](0)) == 3
    assert "3 images" in str(case)
    if module == "linear":
        assert case.macs() == 3 * Case(module, "vit-ti", tokens=4).macs()


def test_kernels_are_named_by_their_time():
    a, b = torch.randn(2, 512, 512)
    names = worker.kernel_names(lambda: torch.softmax(a[:8] @ b, -1) + (a @ b)[:8], "cpu")
    assert names.startswith("aten::mm ")
    assert "aten::_softmax " in names


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A suite of two small cases, run as the command runs it."""
    cases = tuple(
        Case(size="vit-ti", blocks=blocks, tokens=8, implementations=rows, rounds=2)
        for blocks, rows in (
            ("window only", ("fused", "detectron2")),
            ("all global", ("fused", "detectron2", "timm")),
        )
    )
    monkeypatch.setitem(SUITES, "tiny", cases)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    bench.bench("tiny", device="cpu", only="", implementations="", list_cases=False)
    (folder,) = (tmp_path / "results" / "benchmarks").iterdir()
    return folder


@pytest.mark.slow
def test_a_suite_from_start_to_files(measured):
    found = pd.read_csv(measured / "encoder.csv")
    ran = found[found.seconds.notna()]
    assert list(ran.implementation) == ["fused", "detectron2"] * 2
    assert (ran.fastest <= ran.seconds).all()
    assert (ran.seconds <= ran.slowest).all()
    assert (ran.runs == 2).all()
    # Weights and more, but not the libraries.
    assert (ran.peak_mib > ran.weights_mib).all()
    assert (ran.peak_mib < ran.weights_mib + 400).all()
    for _, rows in ran.groupby("blocks"):
        rows = rows.set_index("implementation")
        base = rows.loc["detectron2"]
        assert rows.speed_ratio["fused"] == pytest.approx(
            base.seconds / rows.seconds["fused"], 1e-4
        )
        assert rows.memory_ratio["fused"] == pytest.approx(
            rows.peak_mib["fused"] / base.peak_mib, 1e-4
        )
    rate = 2 * ran.gmacs / ran.seconds / ran.matrix_gflops
    assert ran.matrix_share.tolist() == pytest.approx(rate.tolist(), rel=1e-4)
    assert (found.device == environment.device_name("cpu")).all()
    assert found.torch.notna().all()
    # A row that cannot be built is told, and the others run.
    (failed,) = found[found.seconds.isna()].itertuples()
    assert failed.implementation == "timm"
    assert "vit-ti" in failed.error
    compared = pd.read_csv(measured / "over-window-only.csv")
    assert set(compared.blocks) == {"window only", "all global"}
    assert compared[compared.blocks == "window only"].time_ratio.tolist() == [1.0, 1.0]


def test_a_case_measured_again_replaces_its_rows(tmp_path):
    def rows(seconds):
        return [
            dict(implementation=name, seconds=seconds, peak_mib=1.0, matrix_gflops=1.0, error="")
            for name in ("fused", "detectron2")
        ]

    for tokens, seconds in ((32, 1.0), (64, 2.0), (32, 3.0)):
        case = Case(tokens=tokens)
        report.keep(report.table(case, rows(seconds), dict(device="x", threads=2)), tmp_path)
    found = pd.read_csv(tmp_path / "encoder.csv")
    assert found.tokens.tolist() == [32, 32, 64, 64]
    assert found.seconds.tolist() == [3.0, 3.0, 2.0, 2.0]


def test_rows_one_by_one():
    """As on a GPU: each alone, with its kernels; one that cannot be built stops no other."""
    processes = multiprocessing.get_context("forkserver")
    case = Case(size="vit-ti", tokens=2, rounds=2, batch=2)
    rows, rates = bench._one_by_one(case, ["timm", "fused"], "cpu", processes)
    assert "vit-ti" in rows["timm"].error
    assert not rows["fused"].error
    assert len(rows["fused"].samples) == 2
    assert "aten::" in rows["fused"].kernels
    assert rates[0] > 0


def test_rows_of_before_there_were_batches_are_of_one_image(tmp_path):
    row = dict(implementation="fused", seconds=1.0, peak_mib=1.0, matrix_gflops=1.0, error="")
    report.keep(report.table(Case(), [row], dict(device="x", threads=2)), tmp_path)
    path = tmp_path / "encoder.csv"
    pd.read_csv(path).drop(columns="batch").to_csv(path, index=False)
    for batch in (1, 8):
        case = Case(batch=batch)
        row["seconds"] = 10.0 * batch
        report.keep(report.table(case, [row], dict(device="x", threads=2)), tmp_path)
    found = pd.read_csv(path)
    assert found.batch.tolist() == [1, 8]
    assert found.seconds.tolist() == [10.0, 80.0]


def test_table_3_stands_beside_the_papers(tmp_path):
    for blocks, seconds in (("window only", 1.0), ("4 global", 1.5), ("all global", 2.0)):
        for mode in ("train", "forward"):
            case = Case("detector", "vit-l", blocks, mode=mode, rel_pos=False)
            row = dict(implementation="fused", seconds=seconds, peak_mib=100 * seconds)
            row |= dict(matrix_gflops=1.0, error="")
            provenance = dict(device="x", threads=2, date="2026-11-22", run="1")
            report.keep(report.table(case, [row], provenance), tmp_path)
    found = report.over_window_only(tmp_path).set_index(["blocks", "mode"])
    assert found.loc[("all global", "train"), "memory_ratio"] == 2.0
    assert found.loc[("all global", "train"), "paper_memory_ratio"] == 3.34
    assert found.loc[("all global", "forward"), "paper_time_ratio"] == 1.86
    assert pd.isna(found.loc[("all global", "forward"), "paper_memory_ratio"])


def _peaks(queue) -> None:
    memory = worker.Memory("cpu")
    peaks = []
    for size in (0, 64 * 2**20, 0):  # 256 MiB
        memory.reset()
        block = torch.ones(size)
        peaks.append(memory.peak())
        del block
    queue.put(peaks)


def test_peak_memory_is_what_comes_on_top():
    processes = multiprocessing.get_context("spawn")
    queue = processes.Queue()
    process = processes.Process(target=_peaks, args=(queue,))
    process.start()
    before, peak, after = queue.get(timeout=120)
    process.join()
    assert 250 <= peak - before <= 270
    assert after - before <= 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(name="defalt"), "unknown suite 'defalt': did you mean 'default'?"),
        (dict(implementations="fusd"), "unknown implementation 'fusd': did you mean 'fused'?"),
        (dict(only="1024"), "no case of suite default has all of '1024': see --list"),
        (dict(device="cudaa"), "device 'cudaa' is not here"),
    ],
)
def test_wrong_arguments(arguments, message):
    words = dict(name="default", device="cpu", only="", implementations="", list_cases=False)
    with pytest.raises(bench.UserError) as error:
        bench.bench(**{**words, **arguments})
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("kind", weights.WRITERS)
def test_files_of_weights_are_read_and_converted(kind, tmp_path):
    path, out = tmp_path / f"detector{kind}", tmp_path / "out"
    weights._write("vit-ti", path)
    for row, (run, bound) in weights.ROWS.items():
        for disk in (False, True):
            assert weights._measured(row, path, disk) > 0
        assert not bound or bound in weights.ROWS
        assert not out.exists()
        run(path, out)
        assert out.exists() == ("copy the bytes" in (row, bound))
        if out.exists():
            shutil.rmtree(out) if out.is_dir() else out.unlink()
    ours, theirs = weights._ours(path), weights._theirs(path)
    assert len(ours) == len(theirs)
    assert torch.equal(
        ours["blocks.0.attn.qkv.weight"], theirs["backbone.net.blocks.0.attn.qkv.weight"]
    )


def _takes(size: int) -> float:
    block = bytearray(size)
    block[::4096] = bytes([1]) * len(block[::4096])
    time.sleep(0.05)
    return 1.0


def test_memory_of_a_process():
    processes = multiprocessing.get_context("forkserver")
    seconds, peak, anonymous = weights._in_process(processes, _takes, 2**27)
    assert seconds == 1
    assert 0.9 < peak / 2**27 < 1.2
    assert 0.9 < anonymous / 2**27 < 1.2


def test_a_table_of_files_of_weights():
    rows = [dict(row=row, cached=2.0, disk=3.0, peak=1.0, anonymous=0.5) for row in weights.ROWS]
    table = weights.shown(pd.DataFrame(rows).assign(cached_over_bound=None, disk_over_bound=1.5))
    assert "1.50x" in table
    assert weights.kinds_of("") == [".pth", ".pkl", ".safetensors"]
    with pytest.raises(bench.UserError, match="no kind of file has 'onnx': kinds are"):
        weights.kinds_of("onnx")
