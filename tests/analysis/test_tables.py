"""Tables as text, in every format, and what may be kept of them."""

import re
from dataclasses import replace

import pandas as pd
import pytest

from analysis import plots, results, tables
from experiments.errors import UserError


def test_markdown(study):
    found = results.load(study)
    text = tables.markdown(found)
    first = text.split("\n\n")[2].splitlines()
    rows = {line.split("|")[1].strip(): line for line in first}
    table = found.table.set_index("variant")
    assert f"{table.ap_box['none']:.1f} ± {table.ap_box_std['none']:.1f} " in rows["none"]
    own = table.loc["own"]
    shown = f"{own.ap_box_diff:+.1f} ({own.ap_box_diff_low:+.1f} .. {own.ap_box_diff_high:+.1f})"
    assert shown in text
    assert "better, one seed" in text
    assert "within ±0.5 AP" in text
    assert "48.9 / 43.9" in text
    assert "- device: a CPU, threads 1" in text
    blocks = [b.splitlines() for b in text.split("\n\n") if b.startswith("|")]
    assert [len(lines) for lines in blocks] == [5, 5, 5]  # AP, and details of boxes and masks
    assert "| global " in blocks[2][3]
    row = table.loc["global"]
    bounds = (row.ap75_mask_diff_low, row.ap75_mask_diff_high)
    assert f"{row.ap75_mask_diff:+.1f} ({bounds[0]:+.1f} .. {bounds[1]:+.1f})" in blocks[2][3]
    for lines in blocks:
        assert len({line.count("|") for line in lines}) == 1


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


def test_the_formats(study, tmp_path):
    found = results.load(study)
    texts = {form: tables.whole(found, form) for form in tables.FORMATS}
    assert texts["md"] == tables.markdown(found)
    assert texts["latex"].count(r"\\") == 4
    around = re.sub(r"\\begin.*\\end{tabular}\n", "", texts["latex"], flags=re.DOTALL)
    assert all(line.startswith("% ") for line in around.splitlines())
    assert texts["html"].count("<tr>") == 4
    (tmp_path / "table.csv").write_text(texts["csv"])
    assert pd.read_csv(tmp_path / "table.csv").ap_box.tolist() == found.table.ap_box.tolist()
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
        tables.check_publishable(replace(found, table=found.table.assign(seeds=[2, 2, 0])))
    tables.check_publishable(found)
    found.manifest["command"] += " --overrides train.max_iter=4"
    with pytest.raises(UserError, match="run it without --overrides"):
        tables.check_publishable(found)
