"""`make gpu-check`, rehearsed on the CPU: rows, limits, parts that fail, and calling it again."""

import json
import multiprocessing
import os
import signal
import time

import pytest
import torch
from rich.console import Console

from benchmarks import gpu_check, gpu_journal, gpu_page
from benchmarks.attention_errors import Setting, errors, settings
from benchmarks.attention_kernels import KERNELS, Kernel, kernels
from benchmarks.cases import OURS, OURS_ON_GPU, PEERS, Case
from benchmarks.implementations import build
from experiments.errors import UserError

# ---- kernels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", kernels("cpu"))
def test_every_kernel_is_the_reference(name):
    """In float32; masks, padding, relative positions. FlexAttention has no gradients on a CPU."""
    for setting in settings(tiny=True):
        if setting.dtype == "float32" and setting.N == 64 and name != "flex":
            row = errors(setting, name, "cpu")
            assert row["finite"]
            assert max(row["output_error"], row["gradient_error"]) < 1e-5
    if name == "flex":
        x = Setting(64, 16, True, True, "float32").input()
        with torch.no_grad():
            found, expected = (KERNELS[n].run(x) for n in (name, "reference"))
        assert (found - expected).norm() < 1e-5 * expected.norm()


def test_settings_are_what_they_say():
    for setting in settings(tiny=False):
        x = setting.input()
        h, w = x.partition.group_size(*x.padded)
        assert h * w == setting.N
        assert (x.partition.mask(*x.padded, "cpu") is not None) == setting.masked
        assert (x.tables is not None) == setting.rel_pos
        assert ("pad" in x.leaves()) == (setting.N < 1024)


def test_every_kernel_has_its_rows():
    """Where it is another one than the rest; the Triton operator before all others."""
    full = gpu_journal.Call("", "cuda", False, "")
    for items in (gpu_check._errors(full), gpu_check._attention(full)):
        names = [key.split(": ")[0] for key in items]
        assert set(names) == set(kernels("cuda"))
        assert "triton" in names[:2]
        labelled = [key for key in items if key.startswith("labelled")]
        assert all("masked" in key or "shifted" in key for key in labelled)
        narrow = [key for key in items if key.startswith("narrow")]
        assert all("4096" in key or "global" in key for key in narrow)
        assert not any("no relative positions" in key for key in narrow)


def test_encoders_of_a_gpu_only():
    case = Case(size="vit-ti", tokens=4)
    assert {b.attn.attention for b in build(case, "triton")[0].blocks} == {"triton"}
    with torch._dynamo.config.patch(recompile_limit=8):
        compiled = build(case, "blocks compiled")[0]
    assert all(block._compiled_call_impl for block in compiled.blocks)
    wanted = {name for case in gpu_check._cases(tiny=False) for name in case.implementations}
    assert set(OURS_ON_GPU) <= wanted <= {*OURS, *OURS_ON_GPU, *PEERS}


def test_a_kernel_that_is_wrong_or_not_finite_is_told(monkeypatch, tmp_path):
    """cuDNN's backward pass with a mask, say: a row, not an end."""
    reference = KERNELS["reference"]

    def broken(x):
        return reference.run(x) * torch.tensor(float("nan"))

    def rough(x):
        return reference.run(x) * 1.5

    monkeypatch.setitem(KERNELS, "broken", Kernel(broken))
    monkeypatch.setitem(KERNELS, "rough", Kernel(rough))
    setting = Setting(64, 16, True, True, "bfloat16")
    journal = gpu_journal.Journal(call(tmp_path), "errors")
    for name in ("reference", "broken", "rough"):
        journal.attempt(name, lambda n=name: errors(setting, n, "cpu"))
    rows = journal.rows()
    assert not rows["broken"]["finite"]
    assert rows["broken"]["not_finite"] == "output, qkv, pad, rel_pos_h, rel_pos_w"
    gpu_page.write(tmp_path, gpu_journal.read(tmp_path), journal.mark)
    lines = (tmp_path / gpu_page.PAGE).read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("| broken"))
    assert [cell.strip() for cell in line.split("|")[6:8]] == ["broken", ""]
    (line,) = (line for line in lines if line.startswith("| rough"))
    assert [cell.strip() for cell in line.split("|")[6:8]] == ["", "rough"]


# ---- the command ------------------------------------------------------------------------------


def call(out, started="2026-01-01T00:00:00+00:00") -> gpu_journal.Call:
    return gpu_journal.Call(str(out), "cpu", True, started)


def row_mark() -> dict:
    return call("").mark()


def check(out, only="", minutes=20.0) -> tuple[bool, str]:
    console = Console(record=True, width=200)
    return gpu_check.check(out, "cpu", minutes, True, only, console), console.export_text()


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """All parts, on tiny inputs."""
    out = tmp_path_factory.mktemp("gpu-check")
    return out, *check(out)


def rows_of(out, part: str) -> list[dict]:
    return [row for row in gpu_journal.read(out) if row["part"] == part and row["key"]]


def test_every_part_comes_to_its_end(rehearsed):
    out, well, text = rehearsed
    assert not well  # FlexAttention has no gradients on a CPU
    assert "not complete" not in text
    for part in gpu_check.PARTS:
        rows = rows_of(out, part)
        assert rows, part
        wrong = [row for row in rows if row["error"] and not row["key"].startswith("flex")]
        assert wrong == []
        (planned,) = {
            r["planned"] for r in gpu_journal.read(out) if r["part"] == part and not r["key"]
        }
        assert planned == len({row["key"] for row in rows})
    measured = [row for row in rows_of(out, "attention") if not row["error"]]
    assert all(row["fastest"] <= row["seconds"] <= row["slowest"] for row in measured)
    assert all("%" in row["kernels"] and row["finite"] for row in measured)
    assert {"triton", "labelled"} <= {row["kernel"] for row in measured}
    assert {row["outcome"] for row in rows_of(out, "tests")} == {"passed"}


def test_its_page(rehearsed):
    page = (rehearsed[0] / gpu_page.PAGE).read_text()
    assert "A rehearsal on tiny inputs" in page
    for part in gpu_check.PARTS:
        assert f"## {part.capitalize()}" in page
    for word in ("- torch: ", "- triton: ", "- commit: ", "- dates: ", "Table 3", "| folded"):
        assert word in page
    assert len(list(rehearsed[0].iterdir())) <= 8


def test_a_second_call_does_what_is_missing(rehearsed):
    """A row that is not there, one that failed, a torn line: the last rows of a killed call."""
    out = rehearsed[0]
    lines = (out / gpu_journal.ROWS).read_text().splitlines()
    gone = [line for line in lines if '"key": "copy"' in line]
    failed = json.loads(gone[0]) | {"key": "versions", "error": "x", "call": "before"}
    kept = [line for line in lines if line not in gone]
    (out / gpu_journal.ROWS).write_text("\n".join([*kept, json.dumps(failed), gone[0][:40]]))
    before = len(rows_of(out, "machine"))
    assert check(out, only="machine")[0]
    new = rows_of(out, "machine")[before:]
    assert [row["key"] for row in new] == ["copy", "versions"]
    assert not any(row["error"] for row in new)


def work(journal: gpu_journal.Journal) -> None:
    """A part whose rows come to every end there is."""

    def hang() -> dict:
        time.sleep(100)
        return {}

    def ends(what) -> dict:
        return dict(what())

    items = {
        "good": lambda: dict(value=1),
        "raises": lambda: 1 / 0,
        "killed": lambda: ends(lambda: os.kill(os.getpid(), signal.SIGKILL)),
        "poisons": lambda: ends(_poison),
        "also good": lambda: dict(value=2),
        "hangs": hang,
        "behind": lambda: dict(value=3),
    }
    for key in journal.todo(list(items)):
        journal.attempt(key, items[key])


def _poison() -> dict:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def fails(journal: gpu_journal.Journal) -> None:
    raise ValueError("of no row")


def test_rows_that_die_or_hang_cost_themselves_only(tmp_path, monkeypatch):
    parts = {"rows": gpu_check.Part(1, "", work), "fails": gpu_check.Part(1, "", fails)}
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    processes = multiprocessing.get_context("fork")
    assert not gpu_check._run(call(tmp_path), "rows", time.monotonic() + 4, processes)
    rows = gpu_journal.Journal(call(tmp_path), "rows").rows()
    errors = {key: row["error"] for key, row in rows.items() if key}
    assert errors["good"] == errors["also good"] == ""
    assert errors["raises"] == "ZeroDivisionError: division by zero"
    assert errors["killed"] == "its process ended with -9: see log.txt"
    assert errors["poisons"].startswith("RuntimeError: CUDA error")
    assert errors["hangs"] == "cut off by the limit of time"
    assert "behind" not in errors
    # Another call does the missing one first.
    again = call(tmp_path, "2026-01-02T00:00:00+00:00")
    todo = gpu_journal.Journal(again, "rows").todo(list(rows | {"behind": {}}))
    assert [key for key in todo if key][:2] == ["behind", "raises"]
    assert not gpu_check._run(call(tmp_path), "fails", time.monotonic() + 4, processes)
    (row,) = rows_of(tmp_path, "fails")
    assert row["error"] == "ValueError: of no row"
    parts["fails"] = gpu_check.Part(1, "", lambda journal: journal.todo([]))
    assert gpu_check._run(call(tmp_path), "fails", time.monotonic() + 4, processes)
    assert not [
        key for key in gpu_page.latest(gpu_journal.read(tmp_path), row_mark()) if "fails" in key
    ]


def test_rows_of_another_device_do_not_count(tmp_path):
    journal = gpu_journal.Journal(call(tmp_path), "machine")
    journal.write("copy", value=1)
    journal.mark = journal.mark | {"device": "another"}
    assert journal.todo(["copy"]) == ["copy"]


def test_wrong_arguments(tmp_path):
    with pytest.raises(UserError, match="unknown part 'eror': did you mean 'errors'"):
        check(tmp_path, only="eror")
    with pytest.raises(UserError, match="minutes=0 leave no time"):
        check(tmp_path, minutes=0)


def test_the_limits_are_eight_minutes():
    assert sum(part.seconds for part in gpu_check.PARTS.values()) == 8 * 60
