"""Tables as text, in every format, and what may be kept of them."""

import re
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest

from analysis import plots, provenance, results, tables
from experiments.errors import UserError
from tests.conftest import ROOT


def blocks_of(text: str) -> list[list[str]]:
    return [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]


def test_markdown(study):
    found = results.load(study)
    text = tables.markdown(found)
    first, published = blocks_of(text)
    rows = {line.split("|")[1].strip(): line for line in first}
    table = found.table.set_index("variant")
    assert f"{table.ap_box['none']:.1f} ± {table.ap_box_std['none']:.1f} " in rows["none"]
    row, own = table.loc["global"], table.loc["own"]
    shown = f"{row.ap_box_diff:+.1f} ({row.ap_box_diff_low:+.1f} .. {row.ap_box_diff_high:+.1f})†"
    assert shown in rows["global"]
    assert row.ap_box_verdict in rows["global"]
    assert f"{own.ap_box:.1f} " in rows["own"]
    assert "one seed" in rows["own"]
    heads = [head.strip() for head in first[0].split("|")[1:-1]]
    assert heads == ["variant", "seeds", "box AP", "diff (95 %)", "verdict", "GMACs", "time"]
    assert "within ±2 AP" in " ".join(text.split())
    assert "48.9" in published[2]
    assert "43.9" in published[2]
    assert "- device: a CPU, threads 1" in text


def test_what_is_shown_on_demand(study):
    found = results.load(study)
    text = tables.markdown(found, wide=True)
    blocks = blocks_of(text)
    assert [block[0].split("|")[1].strip() for block in blocks] == [
        "variant", "variant", "variant", "figure", "variant", "category", "category",
    ]  # fmt: skip
    row = found.table.set_index("variant").loc["global"]
    bounds = (row.ap75_mask_diff_low, row.ap75_mask_diff_high)
    (line,) = [line for line in blocks[3] if "mask AP75" in line and " global " in line]
    assert f"{row.ap75_mask_diff:+.1f} ({bounds[0]:+.1f} .. {bounds[1]:+.1f})" in line
    assert f"{row.peak_memory_mib:.0f}" in blocks[4][3]
    for lines in blocks:
        assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize("form", ["md", "text"])
def test_lines_fit_a_terminal(study, form):
    """Also with names, notes, commands and intervals that are long."""
    found = results.load(study)
    names = ["none", "x" * 90, "a|b" * 20]
    table = found.table.assign(variant=names, ap_box_diff_low=-88.88, ap_box_diff_high=88.88)
    notes = ["global differs from none in " + "train.max_iter: 9 -> 7; " * 20]
    manifest = found.manifest | {"command": "python -m experiments run " + "--word a " * 40}
    long = replace(found, table=table, notes=notes, manifest=manifest)
    for wide in (False, True):
        lines = tables.whole(long, form, wide).splitlines()
        assert max(map(len, lines)) <= tables.WIDTH
        assert any("xxx…" in line for line in lines)


def test_what_is_not_comparable_is_said(study):
    found = replace(results.load(study), notes=["own differs from none in data: d -> other"])
    for form in ("md", "latex", "html", "text"):
        text = tables.whole(found, form)
        assert "own differs from none in data" in text.replace("&gt;", ">"), form


def test_a_study_without_any_result(study):
    for path in study.rglob("record.json"):
        path.unlink()
    found = results.load(study)
    assert "none" in tables.markdown(found)
    assert plots.ap_vs_macs(found, study / "ap_vs_macs") == []


def test_csv_is_one_table_of_all_studies(study, tmp_path):
    first = results.load(study)
    other = replace(first, manifest={**first.manifest, "study": "other"}, delta=1.0)
    (tmp_path / "table.csv").write_text(tables.csv([first, other]))
    read = pd.read_csv(tmp_path / "table.csv")
    assert read.study.tolist() == ["some-study"] * 3 + ["other"] * 3
    assert read.delta.tolist() == [2.0] * 3 + [1.0] * 3
    assert read.ap_box.tolist() == [*first.table.ap_box, *first.table.ap_box]


def test_a_bar_in_a_name_does_not_end_a_cell(study):
    found = results.load(study)
    table = found.table.assign(variant=["a|b", "c", "d"])
    assert "| a\\|b " in tables.markdown(replace(found, table=table))


def test_the_caption_names_the_papers_data(study):
    found = results.load(study)
    assert "on COCO val2017; another set" in tables.markdown(found)
    runs = found.records
    data = [dict(d, kind="lvis") for d in runs["data"]]
    of_lvis = replace(found, records=runs.assign(data=data))
    assert "on LVIS v1 val; another set" in tables.markdown(of_lvis)
    papers = [c for c in found.table if c.startswith("paper_")]
    assert "arXiv" not in tables.markdown(replace(found, table=found.table.drop(columns=papers)))


@pytest.mark.parametrize(("word", "trained"), [("none", False), ("", False), ("mae_in1k", True)])
def test_the_caption_names_weights_that_were_trained(study, word, trained):
    found = results.load(study)
    records = found.records.assign(config=[{"train": {"init_weights": word}}] * len(found.records))
    text = tables.caption(replace(found, records=records))
    assert ("weights that were trained before" in text) == trained


def test_the_formats(study):
    found = results.load(study)
    texts = {form: tables.whole(found, form) for form in tables.FORMATS if form != "csv"}
    assert texts["md"] == tables.markdown(found)
    assert texts["latex"].count(r"\\") == 2 * 4  # AP, and the paper's
    around = re.sub(r"\\begin.*?\\end{tabular}\n", "", texts["latex"], flags=re.DOTALL)
    assert all(line.startswith("% ") for line in around.splitlines())
    assert texts["html"].count("<tr>") == 2 * 4
    assert "some-study, mini scale, vit-mini" in texts["text"]


def test_the_command_prints_all_studies(study, tmp_path, analysis):
    code, printed = analysis("tables", "--runs", tmp_path / "runs", "--format", "md")
    assert code == 0
    assert printed == tables.markdown(results.load(study)) + "\n"


def test_wrong_words_are_told_in_a_line(study, tmp_path, analysis):
    code, printed = analysis("tables", study, "--format", "latx")
    assert code == 2
    assert "unknown format 'latx': did you mean 'latex'?" in printed
    code, printed = analysis("tables", "--runs", tmp_path / "nowhere")
    assert code == 2
    assert printed.startswith("error: no study was run in")


def test_results_keep_whole_studies_with_their_own_settings(study):
    found = results.load(study)
    with pytest.raises(UserError, match="some rows of this one are not done"):
        provenance.check_publishable(replace(found, table=found.table.assign(seeds=[2, 2, 0])))
    provenance.check_publishable(found)
    found.manifest["command"] += " --overrides train.max_iter=4"
    with pytest.raises(UserError, match="run it without --overrides"):
        provenance.check_publishable(found)


def test_the_table_of_a_finished_study_does_not_wait_for_torch():
    code = (
        "import sys; from analysis import plots, results, tables; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
