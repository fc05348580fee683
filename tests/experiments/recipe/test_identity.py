"""A run's fingerprint: what makes two of them the same."""

import hashlib
import json

import pytest
import torch

from experiments import studies
from experiments.jobs import runs
from experiments.recipe import config, identity, resolved
from experiments.studies import Variant

from .rows import STUDY, resolve


class TestFingerprint:
    def mark(self, data="data", **words):
        return identity.fingerprint(resolve(**words), data)

    def test_same_for_the_same_run(self):
        assert self.mark() == self.mark()

    def test_code_that_trains_otherwise_makes_another_run(self, monkeypatch):
        before = self.mark()
        monkeypatch.setattr(identity, "PROCEDURE", identity.PROCEDURE + 1)
        assert self.mark() != before

    @pytest.mark.parametrize(
        "words",
        [
            dict(variant="conv"),
            dict(seed=1),
            dict(train__max_iter=5),
            dict(model__backbone__propagation="global", model__backbone__count=1),
            dict(optimizer__lr=1e-3),
            dict(data="other"),
        ],
    )
    def test_another_run_has_another(self, words):
        assert self.mark(**words) != self.mark()

    @pytest.mark.parametrize(
        "words",
        [
            dict(train__log_period=1),
            dict(train__checkpoint_period=7),
            dict(dataloader__train__num_workers=2),
            dict(model__backbone__count=0),
            dict(model__backbone__use_act_checkpoint=True),
        ],
    )
    def test_what_changes_no_result_changes_no_fingerprint(self, words):
        assert self.mark(**words) == self.mark()

    @pytest.mark.parametrize("amp", [False, True])
    def test_it_is_the_same_on_every_machine(self, amp, monkeypatch):
        """What was asked for counts; and a GPU is not asked, whose context would stay."""
        marks = {self.mark(train__amp=amp)}
        for there in (False, True):
            monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda there=there: there)
            monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda there=there: there)
            marks.add(self.mark(train__amp=amp))

        def context():
            pytest.fail("the GPU is asked")

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "_lazy_init", context)
        marks.add(self.mark(train__amp=amp))
        assert len(marks) == 1
        assert (self.mark(train__amp=not amp) in marks) is False

    @pytest.mark.parametrize("variant", ["none", "global", "conv", "shifted"])
    def test_runs_of_before_are_found(self, variant):
        """As it was made when activation checkpointing, train.amp of the machine, and images of a
        pass still counted: of the mini scale, where nobody had changed them, they are the same."""
        cfg = resolve(variant)
        plain = identity.plain_config(cfg)
        for key in (
            "checkpoint_period", "checkpoint_minutes", "log_period", "may_skip", "parallel",
            "compile", "init_weights", "tuning",
        ):  # fmt: skip
            del plain["train"][key]
        del (
            plain["dataloader"]["train"]["num_workers"],
            plain["dataloader"]["train"]["loss_batch_size"],
            plain["dataloader"]["train"]["views"],
        )
        del plain["dataloader"]["test"]["num_workers"], plain["dataloader"]["test"]["batch_size"]
        weights = hashlib.sha256(config.init_weights(cfg).read_bytes()).hexdigest()
        parts = json.dumps([plain, "data", weights, {}, identity.PROCEDURE], sort_keys=True)
        expected = hashlib.sha256(parts.encode()).hexdigest()[:16]
        assert identity.fingerprint(cfg, "data") == expected

    def test_words_that_a_config_leaves_out(self):
        """They are there to be set; at their default they are not said, and the run is the same."""
        plain = resolve("none")
        assert not {"mlp", "layer_scale", "qk_norm"} & plain.model.backbone.keys()
        same = dict(
            model__backbone__mlp="mlp",
            model__backbone__layer_scale=None,
            model__backbone__qk_norm=False,
            model__backbone__positions_resize="bicubic",
            model__backbone__qkv_bias=True,
        )
        assert resolve("none", **same) == plain
        marks = {identity.fingerprint(plain, "")}
        for word, value in (
            ("mlp", "swiglu(hidden=64)"),
            ("layer_scale", 1e-5),
            ("qk_norm", True),
            ("positions_resize", "tile"),
            ("qkv_bias", "qv"),
            ("positions", "learned+rope(unit=token)"),
        ):
            cfg = resolve("none", **{f"model__backbone__{word}": value})
            assert cfg.model.backbone[word] == value
            marks.add(identity.fingerprint(cfg, ""))
        assert len(marks) == 7
        # A row's, taken back by the user.
        row = Variant("gated", {"model.backbone.mlp": "swiglu"})
        back = resolved.resolve(STUDY, row, "mini", "vit-mini", {"model.backbone.mlp": "mlp"})
        assert "mlp" not in back.model.backbone

    @pytest.mark.parametrize("word", ["own", "own(more=2)"])
    def test_editing_ones_own_class_makes_a_new_run(self, tmp_path, word):
        marks = []
        for i, default in enumerate((1, 2)):
            path = tmp_path / f"own_{len(word)}_{i}.py"
            path.write_text(
                "from backbones import PROPAGATIONS, Propagation\n"
                "from experiments.studies import Study, Variant\n"
                "PROPAGATIONS._obj_map.pop('own', None)\n"
                "@PROPAGATIONS.register('own')\n"
                "class Own(Propagation):\n"
                "    def __init__(self, encoder, more=0):\n"
                "        super().__init__(encoder)\n"
                f"    def default_count(self):\n        return {default}\n"
                f"words = {{'model.backbone.propagation': {word!r}}}\n"
                "study = Study('own', '?', (Variant('own', words),))\n"
            )
            own = studies.find(str(path))
            cfg = resolved.resolve(own, own.variants[0], "mini", "vit-mini", {})
            marks.append(identity.fingerprint(cfg, "data"))
        assert marks[0] != marks[1]


class TestInitialWeights:
    """The fingerprint counts what the weights are, not what they are called or where they lie."""

    FILE = "mae_pretrain_vit_base.pth"

    @pytest.fixture(autouse=True)
    def elsewhere(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("DETECTRON2_WEIGHTS", raising=False)

    def mark(self, word, size="vit-b"):
        return identity.fingerprint(
            resolve(scale="coco", size=size, train__init_weights=word), "data"
        )

    def test_the_same_file_is_the_same_run(self, tmp_path, monkeypatch):
        missing = self.mark("mae_in1k")
        for folder in ("weights", "elsewhere"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / self.FILE).write_bytes(b"weights")
        marks = {self.mark(w) for w in ("mae_in1k", f"elsewhere/{self.FILE}")}
        (tmp_path / "weights" / self.FILE).unlink()
        monkeypatch.setenv("DETECTRON2_WEIGHTS", str(tmp_path / "elsewhere"))
        marks |= {self.mark("mae_in1k")}
        assert len(marks) == 1
        assert missing not in marks

    def test_other_weights_are_another_run(self, tmp_path):
        for name in ("one", "two"):
            (tmp_path / f"{name}.pth").write_bytes(name.encode())
            (tmp_path / name).mkdir()
            (tmp_path / name / "model.safetensors").write_bytes(name.encode())
        words = ("none", "mae_in1k", "sup_in1k", "one.pth", "two.pth", "./one", "./two")
        assert len({self.mark(word) for word in words}) == len(words)

    def test_missing_weights_are_told_once_each(self):
        cfgs = [
            resolve(scale="coco", size="vit-b", train__init_weights=word)
            for word in ("mae_in1k", "none", "mae_in1k", "no/such.pth")
        ]
        (line,) = runs.missing_weights(cfgs)
        assert line.count("no weights mae_in1k of vit-b: save https://") == 1
        assert line.count("no weights at ") == 1
        assert "OVERRIDES='train.init_weights=none'" in line
        assert runs.missing_weights([cfgs[1]]) == []
