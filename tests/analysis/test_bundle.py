"""A study's archive, opened in a fresh clone."""

import json
import re
import shutil
import subprocess
import sys
import zipfile

from experiments import records


def test_opened_in_a_fresh_clone_it_says_the_same(study, analysis, clone, tmp_path):
    shared = study.parent / "other" / "none-0"  # a run that another study has made
    shared.parent.mkdir()
    shutil.move(study / "none-0", shared)
    manifest = json.loads((study / records.MANIFEST).read_text())
    manifest["runs"][0]["folder"] = "../other/none-0"
    (study / records.MANIFEST).write_text(json.dumps(manifest))
    (study / "own-0" / "model_final.pth").touch()
    _, before = analysis("tables", study)
    code, said = analysis("bundle", study, "--out", tmp_path / "bundles")
    archive = tmp_path / "bundles" / "mini-some-study.zip"
    assert (code, said) == (0, f"written: {archive}\n")
    assert list(archive.parent.iterdir()) == [archive]
    shutil.rmtree(study.parent)

    shutil.unpack_archive(archive, clone)
    words = [sys.executable, "-W", "ignore", "-m", "analysis", "tables", "runs/mini/some-study"]
    after = subprocess.run(words, cwd=clone, capture_output=True, text=True, check=True).stdout
    assert after == before
    assert ".. +" in after  # intervals: the ground truth is there
    report = (clone / "report" / "report.html").read_text()
    for link in re.findall(r'href="([^"#:]+)"', report):
        assert (clone / "report" / link).exists(), link
    page = (clone / "mini-some-study.md").read_text()
    for words in ("python -m analysis study runs/mini/some-study", "make ablation-some-study"):
        assert f"\n{words}" in page
    names = zipfile.ZipFile(archive).namelist()
    assert not [name for name in names if name.endswith(".pth")]
    for name in names:
        if name.endswith((".json", ".md", ".html", ".csv", ".yaml")):
            assert str(tmp_path) not in zipfile.ZipFile(archive).read(name).decode(), name


def test_a_study_without_runs_and_one_without_ground_truth_are_refused(study, analysis, tmp_path):
    path = study / "own-0" / records.RECORD
    record = json.loads(path.read_text())
    record["data"]["val"] = "/nowhere/truth.json"
    path.write_text(json.dumps(record))
    code, said = analysis("bundle", study, "--out", tmp_path / "bundles")
    assert code == 2
    assert said == "error: no ground truth at /nowhere/truth.json, which own-0 was scored on\n"
    for folder in study.glob("*-?"):
        shutil.rmtree(folder)
    code, said = analysis("bundle", study, "--out", tmp_path / "bundles")
    assert code == 2
    assert "no run of" in said
    assert not list((tmp_path / "bundles").glob("*"))
