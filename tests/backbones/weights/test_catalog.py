"""Words for public weights: what they mean, and what is said when a file is not there."""

import re
from pathlib import Path

import pytest
import timm
import torch

from backbones import SIZES, build_encoder
from backbones.weights import FORMATS, WeightsError, load_encoder
from backbones.weights.catalog import SHIPPED, SOURCES, find, source, table
from tests.conftest import ROOT

HIERARCHICAL = {"swin-b", "swin-l", "mvitv2-b", "mvitv2-l", "mvitv2-h"}
HIERARCHICAL |= {f"convnext-{letter}" for letter in "tsbl"}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """`weights/` of the working directory, and the folder of $DETECTRON2_WEIGHTS."""
    here, elsewhere = tmp_path / "weights", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_WEIGHTS", str(elsewhere))
    return here, elsewhere


class TestTable:
    def test_each_word_means_one_file_for_a_size(self):
        assert len({(s.word, s.size) for s in SOURCES}) == len(SOURCES)
        # Files lie in one folder: a name is one address's.
        assert len({s.file for s in SOURCES}) == len({s.address or s.file for s in SOURCES})

    @pytest.mark.parametrize("entry", SOURCES, ids=lambda s: f"{s.word}-{s.size}")
    def test_entry(self, entry):
        assert re.fullmatch(r"[a-z0-9]+_[a-z0-9]+", entry.word)  # no path has this form
        assert entry.size in SIZES or entry.size in HIERARCHICAL
        if entry.address:
            assert re.fullmatch(r"https://[^ |)]+\.(pth|pyth|bin|pt|safetensors)", entry.address)
            assert re.fullmatch(r"[\w.-]+\.(pth|pyth|bin|pt|safetensors)", entry.file)
        else:
            assert find(entry.word, entry.size) == SHIPPED / entry.file
        assert entry.format in {word for word, _ in FORMATS}

    def test_the_documentation_shows_it(self):
        assert table() in (ROOT / "docs" / "weights.md").read_text()
        assert len(table().splitlines()) == len(SOURCES) + 2


class TestFind:
    def test_in_the_working_directory_then_in_the_variables_folder(self, folders):
        here, elsewhere = folders
        (elsewhere / "mae_pretrain_vit_base.pth").touch()
        assert find("mae_in1k", "vit-b") == elsewhere / "mae_pretrain_vit_base.pth"
        (here / "mae_pretrain_vit_base.pth").touch()
        assert find("mae_in1k", "vit-b").absolute() == here / "mae_pretrain_vit_base.pth"

    def test_none_is_random(self):
        assert find("none", "vit-b") is None
        assert source("none", "vit-mini") is None

    def test_a_path_needs_no_size(self, folders):
        here, _ = folders
        for path in (Path("own.pth"), here / "own", Path("weights"), Path("nosuffix")):
            path.touch()
            assert find(str(path)) == path
            assert source(str(path), "") is None

    def test_a_bare_name_is_looked_for_as_a_words_file_is(self, folders):
        here, elsewhere = folders
        (elsewhere / "own.pth").touch()
        assert find("own.pth") == elsewhere / "own.pth"
        (here / "own.pth").touch()
        assert find("own.pth").absolute() == here / "own.pth"

    def test_what_else_to_set_is_said_with_the_address(self, folders):
        with pytest.raises(FileNotFoundError, match=r"; with `model\.backbone\.pre_norm=true`"):
            find("clip_laion2b", "vit-b")

    def test_a_word_stays_a_word_beside_a_file_of_that_name(self, folders):
        Path("mae_in1k").touch()
        assert source("mae_in1k", "vit-b").file == "mae_pretrain_vit_base.pth"

    @pytest.mark.parametrize("variable", [None, "/some/where"])
    def test_a_missing_file(self, folders, monkeypatch, variable):
        here, _ = folders
        monkeypatch.delenv("DETECTRON2_WEIGHTS")
        if variable:
            monkeypatch.setenv("DETECTRON2_WEIGHTS", variable)
        with pytest.raises(FileNotFoundError) as caught:
            find("sup_in21k", "vit-b")
        message = str(caught.value)
        assert message.startswith("no weights sup_in21k of vit-b: save https://huggingface.co/")
        assert f"pytorch_model.bin as {here}/vit-base-patch16-224-in21k.bin" in message
        assert f"$DETECTRON2_WEIGHTS ({variable or 'not set'})" in message
        assert "\n" not in message

    def test_a_missing_path(self, folders):
        with pytest.raises(FileNotFoundError) as caught:
            find("no/such.pth")
        assert str(caught.value) == f"no weights at {Path.cwd()}/no/such.pth"

    @pytest.mark.parametrize(
        ("word", "size", "parts"),
        [
            ("", "vit-b", ["'' names no weights", "'none' is the word for random ones"]),
            ("mae_in1", "vit-b", ["did you mean 'mae_in1k'?", "none, mae_in1k, sup_in1k", "path"]),
            (
                "mae_in1k",
                "vit-ti",
                ["'mae_in1k' are known for vit-ti", "only for vit-b, vit-l, vit-h", "sup_in1k"],
            ),
            ("mae_in1k", "swin-l", ["for swin-l there are sup_in21k"]),
            ("mae_in1k", "vit-mini", ["known for vit-mini, only for vit-b, vit-l, vit-h"]),
            ("sup_in1k", "", ["known for a model of this size, only for vit-ti, vit-s"]),
        ],
    )
    def test_mistakes(self, word, size, parts):
        for function in (source, find):
            with pytest.raises(WeightsError) as caught:
                function(word, size)
            for part in parts:
                assert part in str(caught.value)
            assert "\n" not in str(caught.value)


def test_a_downloaded_file_becomes_the_encoder(folders):
    """DeiT-Ti as its authors save it: {"model": state dict} of timm's network."""
    torch.manual_seed(0)
    deit = timm.create_model("deit_tiny_patch16_224")
    here, _ = folders
    torch.save({"model": deit.state_dict()}, here / source("sup_in1k", "vit-ti").file)
    encoder = build_encoder("vit-ti")
    load_encoder(encoder, find("sup_in1k", "vit-ti"), show=lambda account: None)
    assert torch.equal(encoder.blocks[11].mlp.fc2.weight, deit.blocks[11].mlp.fc2.weight)
    assert torch.equal(encoder.pos_embed, deit.pos_embed)
