"""A share of a set: the same on every machine, nested, of the whole's classes and sizes."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from experiments.__main__ import main
from experiments.data import catalog, subsets
from experiments.data.annotations import Split
from experiments.data.subsets import Shares
from experiments.errors import UserError

SHARES = (0.01, 0.05, 0.1, 0.2)
CLASSES = 30
# Of the real sample beside the checkout, by hand from one machine: image ids at seed 0.
REAL = {0.5: "596d8ad6770abb41", 0.8: "5c93e5754a3c5b69"}


def long_tailed(images: int = 6000, seed: int = 0) -> dict:
    """Categories with 3 to 3,000 images of their own, and objects of all sizes; a tenth without."""
    draw = random.Random(seed)
    weights = [1000 ** (-c / CLASSES) for c in range(CLASSES)]
    content = dict(
        images=[
            dict(id=7 * i + 5, file_name=f"{i}.jpg", height=400, width=500) for i in range(images)
        ],
        annotations=[],
        categories=[dict(id=c + 1, name=f"c{c}") for c in range(CLASSES)],
    )
    for image in content["images"]:
        for _ in range(draw.choice([0, 1, 1, 2, 2, 3, 5, 8, 13, 3])):
            category = draw.choices(range(CLASSES), weights)[0] + 1
            side = min(int(6 * 2 ** draw.uniform(0, 6 - category / 8)), 390)
            content["annotations"].append(
                dict(
                    id=len(content["annotations"]) + 1, image_id=image["id"], iscrowd=0,
                    category_id=category, bbox=[1, 1, side, side], area=float(side**2),
                )
            )  # fmt: skip
    return content


@pytest.fixture(scope="module")
def content() -> dict:
    return long_tailed()


def shuffled(content: dict, seed: int) -> dict:
    """Lists, and the keys of entries, in another order."""
    draw = random.Random(seed)

    def other(entries: list) -> list:
        entries = [dict(draw.sample(list(e.items()), len(e))) for e in entries]
        return draw.sample(entries, len(entries))

    parts = ["images", "annotations", "categories"]
    return {part: other(content[part]) for part in draw.sample(parts, 3)}


def parts_of(content: dict, ids: set[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The share of each class, and of each of COCO's sizes, in the objects of some images."""
    mine = [a for a in content["annotations"] if ids is None or a["image_id"] in ids]
    classes = Counter(a["category_id"] for a in mine)
    sizes = Counter((a["area"] >= 32**2) + (a["area"] >= 96**2) for a in mine)
    return (
        np.array([classes[c + 1] for c in range(CLASSES)]) / len(mine),
        np.array([sizes[s] for s in range(3)]) / len(mine),
    )


class TestChosen:
    def test_the_file_s_order_has_no_part_in_it(self, content):
        ids = subsets.chosen(content, 0.1, 0, "")
        for seed in range(3):
            np.random.seed(seed)
            random.seed(seed)
            assert subsets.chosen(shuffled(content, seed), 0.1, 0, "") == ids
        assert subsets.digest(ids) == "956a1f3ac198a5c5"

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_shares_are_nested_of_exact_number_and_hold_every_category(self, content, seed):
        before: set[int] = set()
        for share in SHARES:
            ids = subsets.chosen(content, share, seed, "")
            assert before < ids
            assert len(ids) == round(share * 6000)
            assert {a["category_id"] for a in content["annotations"] if a["image_id"] in ids} == {
                c + 1 for c in range(CLASSES)
            }
            before = ids

    def test_another_seed_takes_others(self, content):
        one, other = (subsets.chosen(content, 0.1, seed, "") for seed in (0, 1))
        assert len(one & other) < 0.2 * len(one)

    @pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
    def test_classes_and_sizes_are_the_wholes(self, content, share):
        """By less than a draw of images without strata is off, over seeds."""
        whole = parts_of(content)
        errors = {"ours": [], "plain": []}
        numbers = [image["id"] for image in content["images"]]
        for seed in range(5):
            ids = subsets.chosen(content, share, seed, "")
            plain = set(random.Random(seed).sample(numbers, len(ids)))
            for name, found in (("ours", ids), ("plain", plain)):
                pairs = zip(parts_of(content, found), whole, strict=True)
                errors[name].append([np.abs(part - all_).sum() for part, all_ in pairs])
        ours, plain = (np.mean(errors[name], 0) for name in ("ours", "plain"))
        assert (ours < 0.9 * plain).all(), (ours, plain)

    def test_images_without_objects_have_their_part(self, content):
        busy = {a["image_id"] for a in content["annotations"]}
        empty = {image["id"] for image in content["images"]} - busy
        ids = subsets.chosen(content, 0.2, 0, "")
        assert abs(len(ids & empty) - 0.2 * len(empty)) <= 1

    def test_a_share_without_a_category_is_refused(self, content):
        with pytest.raises(UserError, match=r"share of 0\.002 of a\.json is 12 of 6000 images and"):
            subsets.chosen(content, 0.002, 0, "a.json")
        least = r"its 30 categories: take 0\.00\d or more$"
        with pytest.raises(UserError, match=least) as caught:
            subsets.chosen(content, 0.002, 0, "a.json")
        said = float(str(caught.value).split("take ")[1].split()[0])
        assert len(subsets.chosen(content, said, 0, "")) == round(said * 6000)


class TestTake:
    def test_same_bytes_whatever_the_order(self, content, tmp_path):
        found = []
        for seed in range(2):
            path = tmp_path / f"{seed}.json"
            path.write_text(json.dumps(shuffled(content, seed)))
            split = subsets.take(Split(str(path), ""), 0.05, 0, tmp_path / "shares")
            found.append(Path(split.json_file).read_bytes())
            assert subsets.take(Split(str(path), ""), 1.0, 0, tmp_path).json_file == str(path)
        assert found[0] == found[1]
        assert subsets.told(split) == [
            f"a share of 0.05 of 6000 images, seed 0; sha256 of its image ids: "
            f"{subsets.digest(subsets.chosen(content, 0.05, 0, ''))}"
        ]
        assert subsets.told(Split(str(path), "")) == []

    def test_a_file_that_changed_makes_another_share(self, content, tmp_path):
        path = tmp_path / "a.json"
        path.write_text(json.dumps(content))
        one = subsets.take(Split(str(path), ""), 0.5, 0, tmp_path)
        path.write_text(json.dumps(long_tailed(seed=1)))
        assert subsets.take(Split(str(path), ""), 0.5, 0, tmp_path) != one

    def test_what_cannot_be_used_is_named(self, content, tmp_path):
        path = tmp_path / "a.json"
        with pytest.raises(UserError, match=r"cannot read .*a\.json: No such file"):
            subsets.take(Split(str(path), ""), 0.5, 0, tmp_path)
        broken = json.loads(json.dumps(content))
        broken["annotations"][3]["category_id"] = 99
        path.write_text(json.dumps(broken))
        with pytest.raises(UserError, match=r"category 99 is not listed"):
            subsets.take(Split(str(path), ""), 0.5, 0, tmp_path)
        path.write_text(json.dumps(content))
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match=r"cannot make .*/a-0\.5-seed0-.*: File exists; it"):
            subsets.take(Split(str(path), ""), 0.5, 0, tmp_path / "file")


class TestData:
    def test_of_ones_own_set(self, small_set, tmp_path, monkeypatch):
        monkeypatch.setattr(catalog, "ROOT", tmp_path)
        whole = catalog.prepare("small", small_set["dataset"], small_set["val"])
        shares = Shares(0.5, 0.8, 3)
        half = catalog.prepare("small", small_set["dataset"], small_set["val"], shares=shares)
        assert (half.images, half.name) == ((12, 8), whole.name)
        assert half.categories == whole.categories
        assert all(half.image_counts)
        assert half.digest != whole.digest
        assert half.train.image_root == whole.train.image_root
        again = catalog.prepare("small", small_set["dataset"], small_set["val"], shares=shares)
        assert again == half

    def test_of_lvis_with_all_that_its_scoring_needs(self, tmp_path, monkeypatch):
        whole = catalog.find("mini", dataset="lvis")[0]
        split = subsets.take(whole, 0.1, 0, tmp_path)
        assert split.kind == "lvis"
        found, all_ = split.read(), whole.read()
        assert len(found["images"]) == 120
        assert found["categories"] == all_["categories"]
        by_id = {image["id"]: image for image in all_["images"]}
        assert all(image == by_id[image["id"]] for image in found["images"])
        assert catalog.dicts(split)[0]["neg_category_ids"] is not None

    def test_of_real_images(self, coco, tmp_path, monkeypatch):
        monkeypatch.setattr(catalog, "ROOT", tmp_path)
        path = coco / "coco" / "annotations" / "instances_train2017.json"
        content = json.loads(path.read_text())
        if len(content["images"]) != 92:
            pytest.skip("another part of COCO than that of which the digests are known")
        for share, digest in REAL.items():
            ids = subsets.chosen(shuffled(content, 0), share, 0, "")
            assert subsets.digest(ids) == digest
            split = subsets.take(Split(str(path), ""), share, 0, tmp_path)
            assert {image["id"] for image in split.read()["images"]} == ids


# ---- As commands ---------------------------------------------------------------------------------


@pytest.fixture
def experiments(tmp_path, monkeypatch, capsys):
    """A command, in this process: its exit code and what it printed."""
    monkeypatch.setattr(catalog, "ROOT", tmp_path)

    def call(*words) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["experiments", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, capsys.readouterr().out

    return call


def own(small_set) -> list[str]:
    return ["--dataset", small_set["dataset"], "--val", small_set["val"]]


class TestCommands:
    def test_data_says_which_part_it_is(self, experiments, small_set, tmp_path):
        words = "dataloader.train.share=0.5 dataloader.share_seed=4"
        code, printed = experiments(
            "data", "small", *own(small_set), "--overrides", words, "--runs", tmp_path
        )
        assert code == 0, printed
        assert "a share of 0.5 of 24 images, seed 4; sha256 of its image ids: " in printed
        shares = Shares(0.5, 1.0, 4)
        data = catalog.prepare("small", small_set["dataset"], small_set["val"], shares=shares)
        assert printed.splitlines()[-1].endswith(f"as records have it: {data.digest}")

    def test_check_data_reads_that_part_alone(self, experiments, small_set, tmp_path):
        words = ["check-data", "small", *own(small_set), "--runs", tmp_path, "--jobs", 1]
        code, printed = experiments(*words, "--overrides", "dataloader.train.share=0.5")
        assert code == 0, printed
        assert "22 images in " in printed

    def test_check_data_lists_what_no_share_can_be_made_of(self, experiments, small_set, tmp_path):
        path, images = small_set["dataset"].split(",")
        broken = json.loads(Path(path).read_text())
        for annotation in broken["annotations"][:2]:
            annotation["category_id"] = 99
        (tmp_path / "broken.json").write_text(json.dumps(broken))
        mine = small_set | {"dataset": f"{tmp_path / 'broken.json'},{images}"}
        code, printed = experiments("data", "small", *own(mine))
        assert (code, printed.count("\n")) == (2, 1)
        assert "category 99 is not listed; 1 more like it, make check-data lists all" in printed
        code, printed = experiments(
            "check-data", "small", *own(mine), "--runs", tmp_path, "--jobs", 1
        )
        assert code == 1
        assert "unknown category, 2 in train" in printed

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ("dataloader.train.share=1.5", "dataloader.train.share=1.5 is no share of a set"),
            ("dataloader.test.share=0", "dataloader.test.share=0 is no share of a set"),
            ("dataloader.train.share=all", "'all': it takes a number"),
            ("dataloader.train.share=0.01", "is 0 of 24 images and lacks some of its 4 categories"),
        ],
    )
    @pytest.mark.parametrize("command", [["data", "small"], ["run", "count", "--scale", "small"]])
    def test_what_is_no_share_is_one_line(
        self, experiments, small_set, tmp_path, command, words, said
    ):
        words += " train.init_weights=none" if command[0] == "run" else ""
        code, printed = experiments(
            *command, *own(small_set), "--overrides", words, "--runs", tmp_path
        )
        assert (code, printed.count("\n")) == (2, 1), printed
        assert said in printed

    @pytest.mark.parametrize("command", [["data"], ["check-data"]])
    @pytest.mark.parametrize("kind", ["coco", "lvis"])
    def test_missing_coco_is_one_line_with_path_and_layout(
        self, experiments, tmp_path, monkeypatch, command, kind
    ):
        monkeypatch.chdir(tmp_path)
        code, printed = experiments(*command, "small", "--kind", kind)
        assert (code, printed.count("\n")) == (2, 1)
        assert "set DETECTRON2_DATASETS to the folder that holds" in printed
        assert "train2017/*.jpg" in printed

    def test_other_scales_have_no_share(self, experiments):
        code, printed = experiments("data", "coco", "--overrides", "dataloader.train.share=0.1")
        assert code == 2
        assert "unknown config key 'dataloader.train.share'" in printed

    def test_missing_weights_are_told_once_for_all_rows_with_what_else_is(
        self, experiments, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        code, printed = experiments("run", "pretraining", "--scale", "small", "--size", "vit-b")
        assert (code, printed.count("\n")) == (2, 1)
        for word in ("no COCO 2017 at", "mae_in1k of vit-b: save https://", "sup_in21k of vit-b"):
            assert word in printed
