"""The report: one file that needs nothing else, true to the table, and right in a browser."""

import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import foreign, plots, report, report_words, style
from analysis.report import Picture
from experiments.errors import UserError
from experiments.json_files import write_json
from experiments.records import MANIFEST, RECORD, VERSION
from tests.analysis.conftest import write_run
from tests.experiments.evaluation.test_matches import random_set

EVIL = "<b>`|x"  # names come from users' files
QUESTION = "Is a < b, or <script>alert(1)</script>?"
# Of each row and seed, which of the set's detections it makes; the last row's second is missing.
FOUND = {("none", 0): 3, ("none", 1): 4, (EVIL, 0): 1, (EVIL, 1): 2, ("half", 0): 2}
CONFIG = {
    "train": {"max_iter": 9, "seed": 0, "init_weights": ""},
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.1},
    "dataloader": {
        "train": {"mapper": {"augmentations": [{"p": 1, "_target_": "some.module.Flip"}]}},
        "test": {"dataset": "truth.json,images/"},
    },
}


def make_study(folder: Path, found: dict = FOUND, name: str = "some-study", scale: str = "mini"):
    """A study that was run, without training; the path of its folder."""
    truth, results = random_set(5, images=20)
    truth["images"] = [image | {"file_name": f"{image['id']}.jpg"} for image in truth["images"]]
    folder.mkdir(parents=True)
    (folder / "truth.json").write_text(json.dumps(truth))
    runs = []
    for i, variant in enumerate(dict.fromkeys(variant for variant, _ in FOUND)):
        for seed in (0, 1):
            run = f"row{i}-{seed}"
            runs.append(dict(variant=variant, seed=seed, folder=run))
            if (variant, seed) in found:
                detections = results[seed :: found[variant, seed]]
                words = dict(variant=variant, seed=seed, macs=(10 + i) * 10**8, config=CONFIG)
                write_run(folder / run, folder / "truth.json", detections, **words)
    write_json(
        folder / MANIFEST,
        dict(
            version=VERSION, study=name, question=QUESTION, scale=scale, base="none", runs=runs,
            command=f"python -m experiments run {name} --scale {scale} --seeds 2 --jobs 0",
            variants=[
                dict(name=v, size="vit-mini", words={"model.word": v}, published={"vit-b": "T8a:0"})
                for v in dict.fromkeys(variant for variant, _ in FOUND)
            ],
        ),
    )  # fmt: skip
    return folder


def raster(results, path):
    figure, axis = style.plt.subplots()
    axis.imshow(np.arange(9).reshape(3, 3))
    return style.save(figure, path, pd.DataFrame({"x": [1]}))


def lacking(results, path):
    raise UserError("no checkpoint <there>")


PICTURES = {
    "First": (
        Picture("ap_vs_macs", "AP against MACs", "Up is better.", plots.ap_vs_macs),
        Picture("ap_by_size", "AP by size", "Bars.", plots.ap_by_size),
    ),
    "Second": (
        Picture("raster", "A raster", "Pixels.", raster),
        Picture("nothing", "Nothing to draw", "Not shown.", lambda results, path: []),
        Picture("lacking", "Lacking", "Not shown.", lacking),
    ),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """report.html and report.md of two studies."""
    root = tmp_path_factory.mktemp("report")
    folders = [
        make_study(root / "runs" / "mini" / "some-study"),
        make_study(root / "runs" / "coco" / "other", scale="coco", name="other"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "PICTURES", PICTURES)
        return report.write(folders, root / "out")


def study_of(written) -> Path:
    """The folder of the first study in the report."""
    return written[0].parents[1] / "runs" / "mini" / "some-study"


class Page(HTMLParser):
    """Elements with their attributes, and the text between them."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements, self.text = [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_alone(written):
    page = Page(written[0])
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    refer = [a["href"][1:] for _, a in page.elements if a.get("href", "").startswith("#")]
    refer += re.findall(r"url\(#([^)]+)\)", written[0].read_text())
    assert refer
    assert set(refer) <= set(ids)
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "base")
        assert attributes.get("src", "data:").startswith("data:")
        if tag in ("img", "svg") and "aria-hidden" not in attributes:
            assert attributes.get("alt") or attributes.get("aria-label")
        if tag == "a" and not attributes["href"].startswith(("#", "https://arxiv.org/")):
            assert (written[0].parent / attributes["href"]).exists()
    assert sum(a.get("src", "").startswith("data:image/webp;") for _, a in page.elements) == 2
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_names_are_text(written):
    page = Page(written[0])
    tags = [tag for tag, _ in page.elements]
    assert "b" not in tags
    assert tags.count("script") == 1
    text = "".join(page.text)
    assert QUESTION in text
    assert f"{EVIL}: +" in text
    assert any(a.get("data-row") == EVIL for _, a in page.elements)
    assert r"&lt;b&gt;\`\|x" in written[1].read_text()
    assert "<b>" not in re.sub("```.*?```", "", written[1].read_text(), flags=re.DOTALL)


def test_findings_are_the_tables_numbers(written):
    found = report.results.load(study_of(written))
    row = found.table.set_index("variant").loc[EVIL]
    text = report_words.finding(found.table.iloc[1], found)["text"]
    interval = f"(95 %: {row.ap_box_diff_low:+.1f} .. {row.ap_box_diff_high:+.1f})"
    assert text.startswith(f"{row.ap_box_diff:+.1f} box AP {interval}: {row.ap_box_verdict}; ")
    assert "1.10 x the MACs, 1.00 x the parameters" in text
    assert text.endswith(" of none.")
    assert report_words.finding(found.table.iloc[0], found)["text"].startswith("the base: ")
    assert f"{row.ap_box_verdict}: {EVIL}" in report_words.overview(found)


def test_what_is_missing_is_said(written):
    text = "".join(Page(written[0]).text)
    assert "Not finished: half, seed 1." in text
    assert "Lacking: no checkpoint <there>" in text
    assert "Not shown." not in text
    markdown = written[1].read_text()
    assert "**Not finished:** half, seed 1." in markdown
    assert "- not drawn: Lacking: no checkpoint &lt;there&gt;" in markdown


def test_the_recipe_is_in_short_words():
    recipe = report_words.recipe(CONFIG)
    assert recipe == {
        "initial weights": "none",
        "iterations": "9",
        "optimizer": "AdamW",
        "learning rate": "0.1",
        "augmentations": "Flip(p=1)",
        "evaluated on": "truth.json,images/",
    }


def test_commands_are_those_of_make():
    rows = [dict(name=name, size="vit-b", words={}) for name in ("none", "a b")]
    command = "python -m experiments run count --scale coco --seeds 0 --jobs 0"
    manifest = dict(base="none", variants=rows)
    options = " --overrides 'train.max_iter=4 a=1' --yes"
    assert report_words.commands(manifest | dict(command=command)) == [
        ("all rows", "make ablation-count SCALE=coco"),
        ("all rows", f".venv/bin/{command}"),
        ("none", "make ablation-count SCALE=coco VARIANTS=none"),
        ("a b", "make ablation-count SCALE=coco VARIANTS='none,a b'"),
    ]
    made = report_words.commands(manifest | dict(command=command + options))[0][1]
    assert made == "make ablation-count SCALE=coco OVERRIDES='train.max_iter=4 a=1' YES=1"
    own = "python -m experiments run my/study.py --scale mini"
    assert report_words.commands(manifest | dict(command=own)) == [("all rows", f".venv/bin/{own}")]


def test_the_markdown_shows_the_same(written):
    text = written[1].read_text()
    pictures = re.findall(r"^!\[.+\]\((.+)\)$", text, flags=re.MULTILINE)
    assert len(pictures) == 2 * 3
    assert all((written[1].parent / path).read_bytes()[:4] == b"\x89PNG" for path in pictures)
    tables = [block.splitlines() for block in re.split("\n\n+", text) if block.startswith("|")]
    # AP, the paper's, masks, sizes, costs, boxes and masks by category; and the recipe's.
    assert len(tables) == 2 * (7 + 2)
    for lines in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert all((written[1].parent / path).exists() for path in links)


def test_every_plot_is_in_the_report():
    shown = [p for pictures in report.PICTURES.values() for p in pictures]
    assert plots.ALL.items() <= {p.name: p.draw for p in shown}.items()
    assert len({p.name for p in shown}) == len(shown)


def test_a_study_is_in_it_once(written, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "PICTURES", {})
    with pytest.raises(UserError, match="hold the same study: report one of them"):
        report.write([study_of(written)] * 2, tmp_path)


def test_foreign_results_are_rows(written, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "PICTURES", PICTURES)
    folder = tmp_path / "study"
    shutil.copytree(study_of(written), folder)
    foreign.add(folder, folder / "row1-0" / "coco_instances_results.json", "other", macs=2e9)
    path, markdown = report.write([folder], tmp_path / "out")
    text = "".join(Page(path).text)
    assert "2.00 x the MACs of none" in text
    assert "a foreign result: how it was trained is not known" in text
    assert "VARIANTS=none,other" not in text
    assert "/foreign/other/record.json" in markdown.read_text()


@pytest.mark.parametrize("finished", [{}, {("none", 0): 2}])
def test_a_study_that_has_just_begun(tmp_path, finished):
    folder = make_study(tmp_path / "study", finished)
    path, markdown = report.write([folder], tmp_path / "out")
    text = "".join(Page(path).text)
    assert "none, seed 1; " in text
    assert "no run of it is finished." in text
    assert "make ablation-some-study" in markdown.read_text()
    assert (folder / "row0-0" / RECORD).exists() == bool(finished)


# ---- In a browser ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="no playwright to drive a browser")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if not path:
        pytest.skip("no chromium on this machine")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser, written):
    """Opens the report from disk; fails if the browser had to complain or to ask elsewhere."""
    complaints, pages = [], []

    def opened(width: int, height: int, scheme: str = "light", **words):
        page = browser.new_page(
            viewport=dict(width=width, height=height), color_scheme=scheme, **words
        )
        page.on("console", lambda m: m.type in ("error", "warning") and complaints.append(m.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url[:99]}"))
        page.on(
            "request",
            lambda r: r.url.startswith(("file:", "data:")) or complaints.append(r.url[:99]),
        )
        page.goto(written[0].as_uri())
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_it_fits_the_screen(open_page, width, height, scheme):
    page = open_page(width, height, scheme)
    page.click("#open")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = page.evaluate(
        "[...document.querySelectorAll('img, svg')].map(e => e.getBoundingClientRect())"
        ".map(r => Math.min(r.width, r.height))"
    )
    assert min(sizes) >= 15
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth)")
    # The plots' text is in the page's color.
    colors = "[document.body, ...document.querySelectorAll('figure svg text')]"
    found = page.evaluate(f"{colors}.map((e, i) => getComputedStyle(e)[i ? 'fill' : 'color'])")
    assert set(found[1:]) == {found[0]}
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_a_point_shows_its_row(open_page):
    page = open_page(1280, 900)
    tips = page.locator("figure svg g.tip")
    mine = tips.and_(page.locator(f'[aria-label^="{EVIL}"]')).first
    mine.scroll_into_view_if_needed()
    mine.hover()
    tip = page.locator("#tip")
    assert tip.is_visible()
    shown = tip.inner_text()
    assert shown.startswith(EVIL)
    assert "box AP" in shown
    lit = page.locator(".lit")
    assert {row.get_attribute("data-row") for row in lit.all()} == {EVIL}
    page.mouse.move(1, 1)
    assert tip.is_hidden()
    assert lit.count() == 0


def test_keys_go_through_the_points(open_page):
    page = open_page(390, 844)
    page.locator("figure svg").first.focus()
    page.keyboard.press("ArrowRight")
    first = page.locator("#tip").inner_text()
    page.keyboard.press("ArrowRight")
    assert first
    assert page.locator("#tip").inner_text() != first
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


def test_without_scripts_the_browser_shows_tips(open_page):
    page = open_page(1280, 900, java_script_enabled=False)
    titles = page.locator("figure svg g.tip > title")
    assert EVIL in titles.first.text_content() or titles.count() > 1


def test_it_prints(open_page, written):
    page = open_page(1280, 900, "dark")
    pdf = page.pdf(prefer_css_page_size=True, tagged=True, outline=True)
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 5
    for study in ("some-study, mini scale", "other, coco scale"):
        assert f"/Title ({study}".encode() in pdf
    # What is folded is printed, and folded again.
    folded = page.locator("details:not([open])")
    before = folded.count()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert folded.count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert folded.count() == before > 0
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("#open").is_hidden()
