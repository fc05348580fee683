"""detectron2's own encoders, backbones and detectors, saved its own way, loaded here."""

import pickle
from functools import partial
from pathlib import Path

import detectron2
import detectron2.modeling.backbone.vit as d2
import pytest
import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from segment_anything.modeling import ImageEncoderViT
from torch import nn

from backbones import SimpleFeaturePyramid, ViT, build_encoder
from backbones.weights import (
    FORMATS,
    WeightsError,
    encoder_of,
    encoder_words,
    load_detector,
    load_encoder,
    read,
)
from backbones.weights.account import group
from backbones.weights.fit import fit_detector, fit_own
from backbones.weights.writers import convert
from experiments.recipe import config
from tests.conftest import ROOT

# 16 x 16 tokens at 128 px; positions of 8 x 8 and a cls token.
SMALL = dict(
    img_size=128, patch_size=8, embed_dim=48, depth=4, num_heads=4, window_size=5,
    pretrain_img_size=64, use_rel_pos=True, norm_layer=partial(nn.LayerNorm, eps=1e-6),
)  # fmt: skip
PLANS = {
    "global": dict(window_block_indexes=[0, 2]),
    "conv": dict(window_block_indexes=[0, 1, 3], residual_block_indexes=[1, 3]),
    "conv, all windows": dict(window_block_indexes=[0, 1, 2, 3], residual_block_indexes=[0, 3]),
    "no cls token": dict(window_block_indexes=[0, 1, 2], pretrain_use_cls_token=False),
    "no positions": dict(window_block_indexes=[0, 1, 2], use_abs_pos=False),
    "no bias": dict(window_block_indexes=[0, 1, 2], qkv_bias=False, mlp_ratio=2.5),
}
# Square and native; not square; a map of 11 x 19 tokens, no multiple of the window.
IMAGES = [(128, 128), (96, 160), (88, 152)]


def randomized(module: nn.Module, std: float = 0.2) -> nn.Module:
    """The module, with random values in every parameter and statistic."""
    torch.manual_seed(0)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            nn.init.normal_(tensor, std=std)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            norm.num_batches_tracked.fill_(7)
    return module.eval()


def silent(account):
    """To show nothing."""


def assert_same_outputs(ours, theirs, images=IMAGES):
    for size in images:
        image = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected, found = theirs(image), ours.eval()(image)
        assert expected.keys() == found.keys()
        for name, feature in expected.items():
            assert found[name].shape == feature.shape
            assert (found[name] - feature).abs().max() <= 1e-4 * feature.abs().max(), (name, size)


def assert_whole(account, module):
    """Every tensor of the module is from the file, and nothing was left over or changed."""
    assert account.loaded.keys() == module.state_dict().keys()
    left = (account.resized, account.new, account.missing, account.unexpected)
    assert not any(left)


# ---- Encoders ----------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS)
def test_encoder_alone_as_the_file_shows_it(plan, tmp_path):
    theirs = randomized(d2.ViT(**SMALL, **PLANS[plan]))
    torch.save({"model": theirs.state_dict()}, tmp_path / "vit.pth")
    contents = read(tmp_path / "vit.pth")
    assert contents.format == "detectron2"
    ours = ViT(**encoder_words(contents))
    accounts = []
    account = load_encoder(ours, tmp_path / "vit.pth", show=accounts.append)
    assert accounts == [account]
    assert_whole(account, ours)
    assert not account.dropped
    assert not account.notes
    assert_same_outputs(ours, theirs)


def test_all_windows_by_words(tmp_path):
    """Tables of one length do not show whether they are windows'."""
    theirs = randomized(d2.ViT(**SMALL, window_block_indexes=[0, 1, 2, 3]))
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    ours = ViT(**SMALL, propagation="none")
    assert_whole(load_encoder(ours, tmp_path / "vit.pth", show=silent), ours)
    assert_same_outputs(ours, theirs)


@pytest.mark.parametrize("front", ["net", "bottom_up"])
def test_backbone_alone(front, tmp_path):
    words = dict(in_feature="last_feat", out_channels=16, scale_factors=(2.0, 1.0, 0.5), norm="LN")
    theirs = randomized(d2.SimpleFeaturePyramid(d2.ViT(**SMALL, **PLANS["conv"]), **words))
    state = {k.replace("net.", f"{front}."): v for k, v in theirs.state_dict().items()}
    torch.save(state, tmp_path / "backbone.pth")
    contents = read(tmp_path / "backbone.pth")
    assert contents.detector.keys() == {
        f"backbone.{k}" for k in state if not k.startswith(f"{front}.")
    }
    detector = nn.Module()
    detector.backbone = SimpleFeaturePyramid(ViT(**encoder_words(contents)), **words)
    account = load_detector(detector, tmp_path / "backbone.pth", show=silent)
    assert_whole(account, detector)
    assert_same_outputs(detector.backbone, theirs, [(128, 128), (96, 160)])


@pytest.mark.parametrize(
    "words",
    [
        dict(propagation="conv", count=2, stem="conv", use_rel_pos=True),
        dict(propagation="shifted", pre_norm=True, out_chans=8, stem="patchify_norm"),
    ],
)
def test_this_suites_encoders_alone(words, tmp_path):
    """Its own stems, norm before the blocks and SAM's neck are known too."""
    saved = randomized(build_encoder("vit-mini", **words))
    torch.save(saved.state_dict(), tmp_path / "encoder.pth")
    told, stride = encoder_words(read(tmp_path / "encoder.pth")), saved._out_feature_strides
    front = told["stem"], told["in_chans"], told["patch_size"]
    assert front == (words["stem"], 3, stride["last_feat"])
    loaded = build_encoder("vit-mini", **words)
    account = load_encoder(loaded, tmp_path / "encoder.pth", show=silent)
    assert "(detectron2)" in account.title
    assert_whole(account, loaded)
    for key, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


def test_another_size_resizes_positions_and_tables_and_says_so(tmp_path):
    """As detectron2 does it at every step, for maps that its tables are too short for."""
    theirs = randomized(d2.ViT(**SMALL, **PLANS["global"]))
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    words = SMALL | dict(img_size=192, window_size=7, pretrain_img_size=192)
    ours = ViT(**words, **PLANS["global"])
    account = load_encoder(ours, tmp_path / "vit.pth", show=silent)
    tables = {f"blocks.{i}.attn.rel_pos_{axis}" for i in range(4) for axis in "hw"}
    assert account.resized.keys() == {"pos_embed", *tables}
    assert account.resized["pos_embed"] == ("8x8 -> 24x24, bicubic", (24 * 24 + 1) * 48)
    assert account.resized["blocks.0.attn.rel_pos_h"][0] == "9 -> 13 offsets, linear"
    assert account.resized["blocks.1.attn.rel_pos_w"][0] == "31 -> 47 offsets, linear"
    assert "8x8 -> 24x24, bicubic" in str(account)
    assert "31 -> 47 offsets, linear" in str(account)
    for block in theirs.blocks:
        if block.window_size:
            block.window_size = 7
    assert_same_outputs(ours, theirs, [(192, 192)])


# ---- Detectors ---------------------------------------------------------------------------------


DETECTORS = {
    (detector, encoder): f"{detector}_{encoder}_mini"
    for detector in ("mask_rcnn", "cascade_mask_rcnn", "retinanet")
    for encoder in ("vit", "swin", "mvitv2")
}


def mini_model(name: str, **backbone):
    cfg = config.load(ROOT / "configs" / "mini" / f"{name}.py").model
    cfg.backbone.update(backbone)
    return cfg


@pytest.mark.parametrize("name", DETECTORS.values())
def test_a_runs_checkpoint(name, tmp_path):
    """Model, optimizer and iteration, as training writes them."""
    saved = randomized(instantiate(mini_model(name)))
    optimizer = torch.optim.AdamW(saved.parameters())
    checkpointer = DetectionCheckpointer(saved, str(tmp_path), optimizer=optimizer)
    checkpointer.save("model_final", iteration=7)
    loaded = instantiate(mini_model(name))
    account = load_detector(loaded, tmp_path / "model_final.pth", show=silent)
    assert_whole(account, loaded)
    assert not account.dropped
    own = loaded.state_dict()
    assert all(torch.equal(own[k], v) for k, v in saved.state_dict().items())

    # And the encoder of it.
    encoder = encoder_of(instantiate(mini_model(name)))[1]
    account = load_encoder(encoder, tmp_path / "model_final.pth", show=silent)
    assert_whole(account, encoder)
    assert {why for why, _ in account.dropped.values()} == {"neck and heads of a detector"}
    front = encoder_of(saved)[0]
    assert account.dropped.keys() == {
        k for k in saved.state_dict() if not k.startswith(f"{front}.")
    }
    own = encoder.state_dict()
    assert all(torch.equal(own[k], saved.state_dict()[f"{front}.{k}"]) for k in own)


def theirs_and_ours(**ours):
    """Mask R-CNN on detectron2's encoder and pyramid, and on ours."""
    plan = dict(window_block_indexes=[0, 1, 3, 4], residual_block_indexes=[1, 5])
    sizes = dict(embed_dim=64, depth=6, num_heads=2, patch_size=8)
    theirs = mini_model("mask_rcnn_vit_mini")
    theirs.backbone = L(d2.SimpleFeaturePyramid)(
        net=L(d2.ViT)(**SMALL | sizes | plan),
        in_feature="last_feat",
        out_channels=64,
        scale_factors=(2.0, 1.0),
        norm="LN",
        square_pad=128,
    )
    words = dict(stem="patchify", use_rel_pos=True, window_size=5, pretrain_use_cls_token=True)
    words |= dict(propagation=None, pretrain_img_size=64, **plan)
    return theirs, mini_model("mask_rcnn_vit_mini", **(words | ours))


class Pkl:
    """The model zoo's container."""

    @staticmethod
    def save(model, path):
        state = {k: v.numpy() for k, v in model.state_dict().items()}
        state["pixel_mean"] = model.pixel_mean.numpy()  # as detectron2 once did
        state["pixel_std"] = model.pixel_std.numpy()
        state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4).numpy()
        with path.open("wb") as file:
            pickle.dump({"model": state, "__author__": "Detectron2 ViTDet Model Zoo"}, file)


class Pth:
    @staticmethod
    def save(model, path):
        DetectionCheckpointer(model, str(path.parent)).save(path.stem)


def test_mask_rcnn_vitdet_of_the_model_zoo():
    """The config of detectron2's releases at ViT-B's width, two blocks; ours is coco's."""
    released = Path(detectron2.__file__).parent / "model_zoo/configs/common/models"
    theirs = LazyConfig.load(str(released / "mask_rcnn_vitdet.py")).model
    theirs.backbone.net.update(depth=2, window_block_indexes=[0])
    ours = config.load(ROOT / "configs" / "coco" / "mask_rcnn_vit_b.py").model
    ours.backbone.update(depth=2, count=1)
    contents = FORMATS.get("detectron2")().convert(instantiate(theirs).state_dict())
    with torch.device("meta"):
        model = instantiate(ours)
    _, account = fit_detector(model, contents, strict=True)
    assert_whole(account, model)
    assert not account.dropped
    assert not account.notes


@pytest.mark.parametrize("container", [Pkl, Pth])
def test_mask_rcnn_of_detectron2(container, tmp_path):
    """Equal tensors; equal maps, region proposals and masks' features; the config's constants."""
    theirs, ours = (instantiate(cfg) for cfg in theirs_and_ours())
    path = tmp_path / f"model_final.{container.__name__.lower()}"
    container.save(randomized(theirs, std=0.05), path)
    account = load_detector(ours, path, show=silent)
    assert_whole(account, ours)
    assert {why for why, _ in account.dropped.values()} <= {
        "pixel mean and std: those of the config are used",
        "anchors: those of the config are used",
    }
    assert len(account.dropped) == 3 * (container is Pkl)
    own, state = ours.state_dict(), theirs.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[k], v) for k, v in state.items())
    assert_same_outputs(ours.backbone, theirs.backbone, [(128, 128), (96, 160)])
    images = [dict(image=torch.randint(0, 256, (3, 128, 120)).float(), height=128, width=120)]
    boxes = ours.eval()(images)[0]["instances"].pred_boxes.tensor
    assert len(boxes)
    torch.testing.assert_close(boxes, theirs(images)[0]["instances"].pred_boxes.tensor)


def test_a_detector_of_another_size(tmp_path):
    """Encoder's positions and tables are resized, the heads are as they were."""
    theirs, ours = theirs_and_ours(img_size=192, window_size=7, pretrain_img_size=96)
    theirs, ours = randomized(instantiate(theirs)), instantiate(ours)
    Pth.save(theirs, tmp_path / "model_final.pth")
    account = load_detector(ours, tmp_path / "model_final.pth", show=silent)
    assert account.resized["backbone.net.pos_embed"][0] == "8x8 -> 12x12, bicubic"
    assert account.resized["backbone.net.blocks.2.attn.rel_pos_h"][0] == "31 -> 47 offsets, linear"
    assert len(account.resized) == 1 + 2 * 6
    assert account.resized.keys() | account.loaded.keys() == ours.state_dict().keys()
    assert {row[1] for row in account.rows() if row[0] == "resized"} == {
        "absolute positions",
        "relative positions",
    }


def test_a_detector_without_pyramid(tmp_path):
    """The encoder is the backbone itself."""
    saved, loaded = (nn.ModuleDict(dict(head=nn.Linear(48, 4))) for _ in range(2))
    saved.backbone = d2.ViT(**SMALL, **PLANS["global"])
    torch.save({"model": randomized(saved).state_dict()}, tmp_path / "detector.pth")
    loaded.backbone = ViT(**SMALL, **PLANS["global"])
    account = load_detector(loaded, tmp_path / "detector.pth", show=silent)
    assert_whole(account, loaded)
    assert_same_outputs(loaded.backbone, saved.backbone)


def test_eva_01s_detector(tmp_path):
    """Biases of q and v, none of k."""
    theirs = randomized(d2.ViT(**SMALL, **PLANS["global"]))
    state = {}
    for key, tensor in theirs.state_dict().items():
        if key.endswith("qkv.bias"):
            tensor[48:96] = 0
            q, _, v = tensor.chunk(3)
            state |= {key.replace("qkv.bias", f"{n}_bias"): b for n, b in (("q", q), ("v", v))}
        else:
            state[key] = tensor
    torch.save({f"backbone.net.{k}": v for k, v in state.items()}, tmp_path / "eva.pth")
    ours = ViT(**encoder_words(read(tmp_path / "eva.pth")))
    assert_whole(load_encoder(ours, tmp_path / "eva.pth", show=silent), ours)
    assert_same_outputs(ours, theirs)


# ---- Detectors of others, on the same encoder ---------------------------------------------------

MMDET = {
    "neck.lateral_convs.0.conv.weight": "pyramid of mmdetection's detector",
    "neck.fpn1.0.weight": "pyramid of mmdetection's detector",
    "rpn_head.rpn_conv.0.conv.weight": "heads of mmdetection's detector",
    "roi_head.bbox_head.fc_cls.weight": "heads of mmdetection's detector",
    "data_preprocessor.mean": "pixel mean and std: those of the config are used",
}


@pytest.mark.parametrize("plan", ["global", "no cls token", "no positions"])
def test_mmdetections_vitdet(plan, tmp_path):
    """Its encoder is detectron2's, its pyramid and heads are not, and go nowhere unsaid."""
    theirs = randomized(d2.ViT(**SMALL, **PLANS[plan]))
    state = {f"backbone.{k}": v for k, v in theirs.state_dict().items()}
    state |= {key: torch.ones(3) for key in MMDET}
    path = tmp_path / "mmdet.pth"
    torch.save({"state_dict": state, "meta": {"epoch": 100}}, path)
    contents = read(path)
    assert contents.format == "mmdet"
    assert not contents.detector
    ours = ViT(**encoder_words(contents))
    account = load_encoder(ours, path, show=silent)
    assert_whole(account, ours)
    assert {k: why for k, (why, _) in account.dropped.items()} == MMDET
    assert "SAM's neck" not in str(account)
    assert_same_outputs(ours, theirs)
    with pytest.raises(WeightsError, match=r"holds an encoder only \(mmdet\), no detector"):
        load_detector(instantiate(mini_model("mask_rcnn_vit_mini")), path)
    notes = convert(contents, "detectron2", tmp_path / "out.pth")
    assert "left out: pyramid of mmdetection's detector, heads of mmdetection's detector" in notes
    written = torch.load(tmp_path / "out.pth")["model"]
    assert all(key.startswith("backbone.net.") for key in written)
    assert read(tmp_path / "out.pth").encoder.keys() == contents.encoder.keys()


def test_parts_of_no_known_detector_are_never_passed_through(tmp_path):
    """A DETR on detectron2's encoder (detrex): the encoder loads, the rest is named, left out of a
    conversion, and loads into a detector that has it."""
    saved, loaded = (nn.ModuleDict(dict(neck=nn.Linear(48, 4), transformer=nn.Linear(4, 4)))
                     for _ in range(2))  # fmt: skip
    saved.backbone, loaded.backbone = nn.Module(), nn.Module()
    saved.backbone.net = randomized(d2.ViT(**SMALL, **PLANS["global"]))
    path = tmp_path / "detr.pth"
    torch.save({"model": saved.state_dict()}, path)
    contents = read(path)
    assert {group(key) for key in contents.unknown_parts()} == {"neck", "transformer"}
    account, refusal = fit_own(contents)
    assert not refusal
    assert account.unexpected.keys() == contents.unknown_parts().keys()
    assert account.notes[-1] == "only a detector that has neck, transformer loads that"
    assert convert(contents, "detectron2", tmp_path / "out.pth") == ["left out: neck, transformer"]
    assert not read(tmp_path / "out.pth").detector
    loaded.backbone.net = ViT(**SMALL, **PLANS["global"])
    assert_whole(load_detector(loaded, path, show=silent), loaded)
    other = nn.Module()
    other.backbone = loaded.backbone
    with pytest.raises(WeightsError, match=r"unused neck: neck.weight, neck.bias and 2 more"):
        load_detector(other, path)


# ---- What is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 67, 48), (64, 48)])
def test_positions_of_no_square(shape, tmp_path):
    state = {f"backbone.net.{k}": v for k, v in d2.ViT(**SMALL).state_dict().items()}
    torch.save(state | {"backbone.net.pos_embed": torch.zeros(shape)}, tmp_path / "vit.pth")
    with pytest.raises(WeightsError) as error:
        read(tmp_path / "vit.pth")
    assert str(error.value) == (
        f"{tmp_path}/vit.pth (detectron2): pos_embed is {shape}, not (1, rows * rows, channels), "
        "or one entry more for a cls token"
    )


def test_a_detector_of_another_number_of_classes_is_refused_by_key(tmp_path):
    """detectron2 loads such a file with a warning, its issue 5069."""
    saved, other = mini_model("mask_rcnn_vit_mini"), mini_model("mask_rcnn_vit_mini")
    other.roi_heads.num_classes = 7
    Pth.save(instantiate(saved), tmp_path / "model_final.pth")
    shapes = "other shapes: roi_heads.box_predictor.bbox_pred.bias 16 for 28, "
    with pytest.raises(WeightsError, match=shapes):
        load_detector(instantiate(other), tmp_path / "model_final.pth", strict=False)


@pytest.mark.parametrize(
    "build",
    [
        lambda: timm.create_model("vit_tiny_patch16_224", depth=1),
        lambda: timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0),
        lambda: timm.create_model("vit_base_patch16_siglip_224", depth=1, num_classes=0),
        lambda: timm.create_model("samvit_base_patch16", depth=1, num_classes=0),
        lambda: ImageEncoderViT(depth=1, use_rel_pos=True, window_size=14),
    ],
)
def test_encoders_of_others_with_such_keys_are_not_taken_for_it(build):
    with torch.device("meta"):
        assert not FORMATS.get("detectron2")().recognises(build().state_dict())


def test_what_has_no_blocks_is_no_encoder():
    recognises = FORMATS.get("detectron2")().recognises
    assert not recognises({})
    assert not recognises({"pos_embed": torch.zeros(1, 4, 8)})
    assert not recognises({"backbone.pos_embed": torch.zeros(1, 4, 8)})
