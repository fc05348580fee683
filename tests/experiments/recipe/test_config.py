"""From words to one config and its fingerprint."""

import hashlib
import json

import pytest
import torch

from backbones import build_encoder
from backbones.meta import on_meta
from experiments import studies
from experiments.errors import UserError
from experiments.jobs import pretraining_runs, runs
from experiments.recipe import config
from experiments.studies import Variant

STUDY = studies.find("global-vs-conv")


def resolve(variant="none", scale="mini", size="vit-mini", seed=0, **overrides):
    words = {key.replace("__", "."): value for key, value in overrides.items()}
    row = next(v for v in STUDY.variants if v.name == variant)
    cfg = config.resolve(STUDY, row, scale, size, words)
    cfg.train.seed = seed
    return cfg


def test_rows_differ_by_their_words_only():
    base, row = (config.plain_config(resolve(name)) for name in ("none", "global"))
    assert base["model"]["backbone"].pop("propagation") == "none"
    assert row["model"]["backbone"].pop("propagation") == "global"
    # The strategies' own numbers of blocks, written out.
    assert base["model"]["backbone"].pop("count") == 0
    assert row["model"]["backbone"].pop("count") == 3
    assert base == row


def test_the_papers_conv_block_of_each_size():
    assert resolve("conv", "coco", "vit-b").model.backbone.conv_block == "bottleneck"
    assert resolve("conv", "coco", "vit-l").model.backbone.conv_block == "basic"


def test_all_blocks_are_a_number_of_them():
    every = resolve("global", model__backbone__count="all")
    assert every.model.backbone.count == 6
    number = resolve("global", model__backbone__count=6)
    assert config.fingerprint(every, "data") == config.fingerprint(number, "data")
    study = studies.find("count")
    row = study.variant("all", "coco")
    words = {"model.backbone.count": 3}  # over a row's word
    assert config.resolve(study, row, "coco", "vit-ti", words).model.backbone.count == 3


def test_overrides_win():
    cfg = resolve("global", model__backbone__count=1, train__max_iter=7)
    assert (cfg.model.backbone.count, cfg.train.max_iter) == (1, 7)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train.max_iter=4", "train.max_iter", 4),
        ("optimizer.lr=1e-4", "optimizer.lr", 1e-4),
        ("train.amp=false", "train.amp", False),
        ("model.backbone.count=null", "model.backbone.count", None),
        ("model.backbone.conv_block=basic", "model.backbone.conv_block", "basic"),
        ("train.init_weights=none", "train.init_weights", "none"),
        ("train.init_weights=", "train.init_weights", ""),
        ("x=[1, 2]", "x", [1, 2]),
    ],
)
def test_parse_override(text, key, value):
    assert config.parse_override(text) == (key, value)


MISTAKES = {
    "unknown study 'global-vs-cov': did you mean 'global-vs-conv'": lambda: studies.find(
        "global-vs-cov"
    ),
    "no study file at none/such.py": lambda: studies.find("none/such.py"),
    "unknown variant 'globl' of study 'global-vs-conv' at scale 'mini': did you mean 'global'": (
        lambda: STUDY.variant("globl", "mini")
    ),
    "unknown scale 'cocoo': did you mean 'coco'": lambda: resolve(scale="cocoo"),
    "unknown size 'vit-minni' of configs/mini/mask_rcnn_*: did you mean 'vit-mini'": lambda: (
        resolve(size="vit-minni")
    ),
    "unknown size 'vit-b' of configs/mini/mask_rcnn_*: ": lambda: resolve(size="vit-b"),
    "unknown config key 'train.max_itr' in OVERRIDES: did you mean 'train.max_iter'": lambda: (
        resolve(train__max_itr=4)
    ),
    "unknown config key 'model.backbone.propagation.x'": lambda: resolve(
        model__backbone__propagation__x=4
    ),
    "config key 'train.max_iter' in OVERRIDES is 'abc': it takes a whole number": lambda: resolve(
        train__max_iter="abc"
    ),
    "config key 'train.amp' in OVERRIDES is 1: it takes true or false": lambda: resolve(
        train__amp=1
    ),
    "variant 'none': train.max_iter=0 is too small: at least 1": lambda: resolve(train__max_iter=0),
    "variant 'global': count='al' does not fit: a whole number or 'all' does": lambda: resolve(
        "global", model__backbone__count="al"
    ),
    "config key 'model.backbone.qk_norm' in OVERRIDES is 1: it takes true or false": lambda: (
        resolve(model__backbone__qk_norm=1)
    ),
    "unknown config key 'model.backbone.layer_scal' in OVERRIDES: did you mean "
    "'model.backbone.layer_scale'": lambda: resolve(model__backbone__layer_scal=1),
    "positions='rope' does not fit use_rel_pos=True": lambda: resolve(
        model__backbone__positions="rope", model__backbone__use_rel_pos=True
    ),
    "config key 'train' in OVERRIDES is 5: it takes keys of its own": lambda: resolve(train=5),
    "micro_batch_size=3 does not divide total_batch_size=8": lambda: resolve(
        dataloader__train__micro_batch_size=3
    ),
    "variant 'none': 'BNN'": lambda: resolve(model__backbone__norm="BNN"),
    "train.seed in OVERRIDES has no effect: choose with SEEDS=": lambda: resolve(train__seed=3),
    "variant 'none': train.init_weights: '' names no weights: 'none' is the word for random": (
        lambda: resolve(train__init_weights="")
    ),
    "weights='mae-in1k' is unknown: did you mean 'mae_in1k'": lambda: resolve(
        train__init_weights="mae-in1k"
    ),
    "no weights 'mae_in1k' are known for vit-ti, only for vit-b, vit-l": lambda: resolve(
        scale="coco", size="vit-ti", train__init_weights="mae_in1k"
    ),
    "variant 'swin': layer_decay=0.7 has no effect": lambda: config.resolve(
        studies.find("plain-vs-hierarchical"),
        studies.find("plain-vs-hierarchical").variant("swin", "mini"),
        "mini",
        "",
        {"param_groups.layer_decay": 0.7},
    ),
    "variant 'none': count=9 does not fit": lambda: resolve(model__backbone__count=9),
    "conv_block='basik' is unknown: did you mean 'basic'": lambda: resolve(
        "conv", model__backbone__conv_block="basik"
    ),
    "is not of the form a.b=c": lambda: config.parse_override("train.max_iter"),
    "no config at nowhere.py": lambda: config.load("nowhere.py"),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_told_in_one_line(message):
    with pytest.raises(UserError) as caught:
        MISTAKES[message]()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_config_file(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("model = (")
    with pytest.raises(UserError, match="cannot read the config"):
        config.load(broken)
    broken.write_text("model = dict()")
    with pytest.raises(UserError, match="lacks dataloader, optimizer"):
        config.load(broken)


class TestFingerprint:
    def mark(self, data="data", **words):
        return config.fingerprint(resolve(**words), data)

    def test_same_for_the_same_run(self):
        assert self.mark() == self.mark()

    def test_code_that_trains_otherwise_makes_another_run(self, monkeypatch):
        before = self.mark()
        monkeypatch.setattr(config, "PROCEDURE", config.PROCEDURE + 1)
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
        plain = config.plain_config(cfg)
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
        parts = json.dumps([plain, "data", weights, {}, config.PROCEDURE], sort_keys=True)
        expected = hashlib.sha256(parts.encode()).hexdigest()[:16]
        assert config.fingerprint(cfg, "data") == expected

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
        marks = {config.fingerprint(plain, "")}
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
            marks.add(config.fingerprint(cfg, ""))
        assert len(marks) == 7
        # A row's, taken back by the user.
        row = Variant("gated", {"model.backbone.mlp": "swiglu"})
        back = config.resolve(STUDY, row, "mini", "vit-mini", {"model.backbone.mlp": "mlp"})
        assert "mlp" not in back.model.backbone

    @pytest.mark.parametrize("size", ["dinov3-b", "eva02-b", "pe-core-b", "dinov2-b", "vit-l"])
    def test_another_size_has_all_its_words(self, size):
        """None is left of the size that the config is of."""
        words = dict(model__backbone__size=size, train__init_weights="none")
        cfg = resolve("global", scale="coco", size="vit-b", **words)
        made = config.build_on_meta(cfg.model).backbone.net
        with on_meta():
            own = build_encoder(size, img_size=1024)
        assert {k: v.shape for k, v in made.state_dict().items()} == {
            k: v.shape for k, v in own.state_dict().items()
        }
        assert made.plan == own.plan
        assert getattr(made, "unseen", None) is None or made.unseen.words == own.unseen.words
        assert made.blocks[0].norm1.eps == own.blocks[0].norm1.eps

    def test_what_a_row_or_the_user_says_is_over_the_size(self):
        row = Variant("row", {"model.backbone.positions": "rope(base=50)"})
        words = {"model.backbone.registers": 2, "model.backbone.size": "dinov3-s"}
        words |= {"train.init_weights": "none"}
        backbone = config.resolve(STUDY, row, "coco", "vit-b", words).model.backbone
        assert backbone.positions == "rope(base=50)"
        assert backbone.registers == 2
        assert backbone.block_norm == "layer(eps=1e-5)"

    def test_a_size_for_another_one_of_its_own(self):
        """The mini config has the words of vit-mini, which vit-ti has not."""
        cfg = resolve("none", model__backbone__size="vit-ti", train__init_weights="none")
        backbone = cfg.model.backbone
        assert (backbone.stem, backbone.window_size, backbone.img_size) == ("patchify", 14, 128)
        assert config.build_on_meta(cfg.model).backbone.net.patch_embed.patch_size == 16

    @pytest.mark.parametrize(
        ("size", "of", "told"),
        [
            (
                "dinov3-x",
                "vit-b",
                "unknown size 'dinov3-x' in variant 'none': did you mean 'dinov3-",
            ),
            ("dinov3-b", "swin-b", "unknown config key 'model.backbone.size'"),
        ],
    )
    def test_a_size_that_does_not_fit(self, size, of, told):
        with pytest.raises(UserError, match=told):
            resolve(scale="coco", size=of, model__backbone__size=size)

    def test_of_an_evaluation_and_a_pre_training_too(self):
        """Words that are set in a config by themselves."""
        cfg = config.load(config.base_path("coco", "vit-b"))
        words = {"model.backbone.registers": 1, "model.backbone.size": "dinov3-b"}
        config.set_words(cfg, words, "OVERRIDES")
        backbone = cfg.model.backbone
        assert (backbone.positions, backbone.registers, backbone.use_rel_pos) == ("rope", 1, False)
        with pytest.raises(UserError, match="positions without rope"):
            pretraining_runs.resolve("mae", "vit-b", {"model.encoder.size": "dinov3-b"})

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
            cfg = config.resolve(own, own.variants[0], "mini", "vit-mini", {})
            marks.append(config.fingerprint(cfg, "data"))
        assert marks[0] != marks[1]


class TestInitialWeights:
    """The fingerprint counts what the weights are, not what they are called or where they lie."""

    FILE = "mae_pretrain_vit_base.pth"

    @pytest.fixture(autouse=True)
    def elsewhere(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("DETECTRON2_WEIGHTS", raising=False)

    def mark(self, word, size="vit-b"):
        return config.fingerprint(
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
