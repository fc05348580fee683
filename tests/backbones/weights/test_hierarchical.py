"""ConvNeXt, Swin and MViTv2: the latter's releases are written with detectron2's modules, whose
keys are the
releases' own, with what classifiers have beside them."""

import re
from functools import partial

import pytest
import timm
import torch
import torchvision
import transformers
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.modeling import MViT, SwinTransformer, build_backbone
from torch import nn
from torchvision.models.convnext import CNBlockConfig

from backbones import ConvNeXt, build_encoder
from backbones.weights import WeightsError, load_detector, load_encoder, read
from backbones.weights.fit import fit_own
from backbones.weights.own import own_encoder
from experiments.recipe import config
from tests.conftest import ROOT

from .test_detectron2 import assert_same_outputs, assert_whole, randomized, silent

IMAGES = [(64, 64), (96, 160)]


def swin():
    return SwinTransformer(embed_dim=16, depths=(2, 2), num_heads=(1, 2), out_indices=(0, 1))


def mvit():
    words = dict(embed_dim=16, depth=4, last_block_indexes=(0, 1, 2, 3), img_size=64)
    return MViT(**words, norm_layer=partial(nn.LayerNorm, eps=1e-6))


def write(build, path) -> tuple[nn.Module, list[str]]:
    """A classifier's checkpoint; the module that it was written with, and the keys of the norms
    which it has not."""
    trained = randomized(build())
    state = trained.state_dict()
    if build is swin:
        new = [k for k in state if k.startswith("norm")]
        state["layers.0.blocks.1.attn_mask"] = torch.ones(4, 49, 49)
        state["head.weight"] = torch.ones(7, 32)
    else:
        new = [k for k in state if k.startswith("scale")]
        # Convolutions of images, kept as those of videos of one frame.
        state = {k: v.unsqueeze(2) if v.ndim == 4 else v for k, v in state.items()}
        state["head.projection.weight"] = torch.ones(7, 128)
        state["cls_token"] = torch.ones(1, 1, 16)
    state["norm.weight"] = torch.ones(32)
    state = {k: v for k, v in state.items() if k not in new}
    torch.save({"model" if build is swin else "model_state": state, "epoch": 300}, path)
    return trained, new


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pretrained.pyth"


@pytest.mark.parametrize("build", [swin, mvit])
def test_releases(build, path):
    """All but the norms of the maps put out, which classifiers have not; their own are dropped."""
    trained, new = write(build, path)
    encoder = build()
    before = {k: encoder.state_dict()[k].clone() for k in new}
    assert before
    account = load_encoder(encoder, path, show=silent)
    assert account.new.keys() == before.keys()
    assert account.loaded.keys() == encoder.state_dict().keys() - before.keys()
    assert all(torch.equal(encoder.state_dict()[k], v) for k, v in before.items())
    reasons = {"norm behind the last block", "classifier's head"}
    reasons.add(
        "masks of shifted windows: computed for each image" if build is swin else "cls token"
    )
    assert {why for why, _ in account.dropped.values()} == reasons
    assert len(account.dropped) == len(reasons)
    assert not account.missing
    assert not account.unexpected
    trained.load_state_dict(before, strict=False)
    assert_same_outputs(encoder, trained, IMAGES)


@pytest.mark.parametrize(("build", "word"), [(swin, "swin"), (mvit, "mvitv2")])
def test_detection_encoders_alone(build, word, path):
    """They promise the norms of their maps."""
    trained = randomized(build())
    torch.save(trained.state_dict(), path)
    assert read(path).format == word
    encoder = build()
    assert_whole(load_encoder(encoder, path, show=silent), encoder)
    assert_same_outputs(encoder, trained, IMAGES)

    state = trained.state_dict()
    lost = next(k for k in state if k.startswith(("norm1", "scale3_norm")))
    torch.save({k: v for k, v in state.items() if k != lost}, path)
    with pytest.raises(WeightsError, match=f"no layers between stages: {lost}"):
        load_encoder(build(), path)


@pytest.mark.parametrize(
    ("build", "lost"),
    [(swin, "layers.0.blocks.0.norm1.bias"), (mvit, "blocks.2.attn.norm_k.weight")],
)
def test_a_missing_norm_inside_is_noticed(build, lost, path):
    trained, new = write(build, path)
    state = {k: v for k, v in trained.state_dict().items() if k not in [*new, lost]}
    torch.save({"model": state}, path)
    with pytest.raises(WeightsError, match=lost) as error:
        load_encoder(build(), path)
    assert "\n" not in str(error.value)


def test_timms_swin(path):
    """It merges patches in front of a stage, and saves no index: one function all the same."""
    sizes = dict(embed_dim=16, depths=(2, 2, 2), num_heads=(1, 2, 4))
    theirs = randomized(
        timm.create_model("swin_tiny_patch4_window7_224", **sizes, img_size=224, num_classes=7)
    )
    torch.save(theirs.state_dict(), path)
    assert read(path).format == "swin"
    encoder = SwinTransformer(**sizes, out_indices=(0, 1, 2)).eval()
    account = load_encoder(encoder, path, show=silent)
    assert not account.missing
    assert not account.unexpected
    assert {k for k in account.new if not k.startswith("norm")} == {
        k for k in encoder.state_dict() if k.endswith("relative_position_index")
    }
    assert {why for why, _ in account.dropped.values()} == {
        "norm behind the last block",
        "classifier's head",
    }
    maps = {}
    for i in range(3):
        encoder.get_submodule(f"norm{i}").register_forward_hook(
            lambda module, tokens, out, i=i: maps.update({i: tokens[0]})
        )
    # timm does not shift windows as large as the map, detectron2 does: 14 tokens at least.
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        encoder(image)
        expected = theirs.patch_embed(image)
        for i, layer in enumerate(theirs.layers):
            expected = layer(expected)
            found = maps[i].view_as(expected)
            assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("build", [swin, mvit])
@pytest.mark.parametrize("whole", [True, False])
def test_what_is_shown_is_what_loading_does(build, whole, path):
    """The file's own encoder is built from its shapes, a classifier's without the maps' norms."""
    if whole:
        torch.save(randomized(build()).state_dict(), path)
    else:
        write(build, path)
    account, refused = fit_own(read(path))
    loaded = load_encoder(build(), path, show=silent)
    assert not refused
    assert (account.loaded, account.new) == (loaded.loaded, loaded.new)
    state = torch.load(path)
    state = state.get("model", state.get("model_state", state))
    torch.save({k: v for k, v in state.items() if "blocks.1.norm2" not in k}, path)
    account, refused = fit_own(read(path))
    with pytest.raises(WeightsError) as error:
        load_encoder(build(), path)
    assert refused == str(error.value)
    assert all("blocks.1.norm2" in key for key in account.missing)


def test_swin_of_another_window_is_refused(path):
    write(swin, path)
    other = SwinTransformer(
        embed_dim=16, depths=(2, 2), num_heads=(1, 2), out_indices=(0, 1), window_size=4
    )
    with pytest.raises(WeightsError, match="relative_position_bias_table 169x1 for 49x1"):
        load_encoder(other, path, strict=False)


def test_mvitv2_that_expands_in_its_mlps_is_refused(path):
    """MViTv2-L and -H as released for classification: the last block of a stage makes the channels
    of the next in its MLP, detectron2's first block of a stage in its attention."""
    state = mvit().state_dict()
    state["blocks.0.mlp.fc2.weight"] = torch.ones(32, 64)
    state["blocks.0.mlp.fc2.bias"] = torch.ones(32)
    state["blocks.0.proj.weight"] = torch.ones(32, 16)
    state["blocks.0.proj.bias"] = torch.ones(32)
    torch.save({"model_state": state}, path)
    with pytest.raises(WeightsError) as error:
        load_encoder(mvit(), path)
    assert str(error.value) == (
        f"{path} (mvitv2): blocks.0 gets its channels, 32, in its MLP (DIM_MUL_IN_ATT: False); in "
        "detectron2's MViT the attention makes them"
    )


def test_kernels_of_videos_are_refused(path):
    write(mvit, path)
    state = torch.load(path)["model_state"]
    state["patch_embed.proj.weight"] = torch.ones(16, 3, 3, 7, 7)
    torch.save({"model_state": state}, path)
    with pytest.raises(WeightsError, match=r"patch_embed.proj.weight reads 3 video frames, not an"):
        load_encoder(mvit(), path)


@pytest.mark.parametrize("build", [swin, mvit])
def test_they_are_no_plain_vits(build, path):
    write(build, path)
    with pytest.raises(WeightsError, match="does not fit: no ") as error:
        load_encoder(build_encoder("vit-mini"), path)
    assert "Its encoder has" not in str(error.value)


# ---- ConvNeXt ----------------------------------------------------------------------------------

SMALL_CONVNEXT = dict(embed_dim=8, depths=(1, 2, 3, 1))
DIMS = (8, 16, 32, 64)


def theirs_convnext(whose: str):
    """A model with random weights, its state dict, and its maps of strides 4 to 32."""
    torch.manual_seed(0)
    depths = SMALL_CONVNEXT["depths"]
    if whose == "transformers":
        config = transformers.DINOv3ConvNextConfig(hidden_sizes=list(DIMS), depths=list(depths))
        model = transformers.DINOv3ConvNextModel(config)

        def maps(image):
            return model(image, output_hidden_states=True).hidden_states[-4:]
    elif whose == "torchvision":
        stages = [
            CNBlockConfig(d, n, k) for d, n, k in zip(DIMS, (*DIMS[1:], None), depths, strict=True)
        ]
        model = torchvision.models.ConvNeXt(stages)

        def maps(image):
            found, x = [], image
            for i, part in enumerate(model.features):
                x = part(x)
                found += [x] if i % 2 else []
            return found
    else:
        model = timm.create_model("convnext_tiny", dims=DIMS, depths=depths)

        def maps(image):
            return model.forward_intermediates(image, intermediates_only=True)

    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.eval()
    state = model.state_dict()
    return (as_authors(state) if whose in ("its authors", "dinov3") else state), maps


def as_authors(state: dict) -> dict:
    """Of timm's, in the keys of facebookresearch/ConvNeXt, and of DINOv3's, which has norms of all
    maps, the last one twice."""
    found = {}
    for key, tensor in state.items():
        key = re.sub(r"^stem\.", "downsample_layers.0.", key)
        key = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", key)
        key = re.sub(r"\.blocks\.(\d+)\.", r".\1.", key)
        for timms, own in (("conv_dw", "dwconv"), ("mlp.fc1", "pwconv1"), ("mlp.fc2", "pwconv2")):
            key = key.replace(f".{timms}.", f".{own}.")
        key = key.replace("head.norm.", "norm.").replace("head.fc.", "head.")
        found[key] = tensor
    return found | {k.replace("norm.", "norms.3."): v for k, v in found.items() if k[:5] == "norm."}


@pytest.mark.parametrize("whose", ["transformers", "timm", "torchvision", "its authors", "dinov3"])
def test_convnext(whose, tmp_path):
    state, maps = theirs_convnext(whose)
    torch.save(state, tmp_path / "model.pth")
    assert read(tmp_path / "model.pth").format == "convnext"
    ours = ConvNeXt(**SMALL_CONVNEXT).eval()
    account = load_encoder(ours, tmp_path / "model.pth", show=lambda account: None)
    assert not account.missing
    assert not account.unexpected
    assert set(account.new) == {f"norm{i}.{part}" for i in range(4) for part in ("weight", "bias")}
    for i in range(4):
        ours.add_module(f"norm{i}", nn.Identity())  # new
    for size in ((64, 64), (96, 160)):
        image = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected, found = maps(image), ours(image)
        for stage, (name, shape) in enumerate(ours.output_shape().items()):
            theirs, own = expected[stage], found[name]
            assert own.shape[1:] == (shape.channels, *(s // shape.stride for s in size))
            assert (own - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_our_own_convnext_and_a_detector_on_it(tmp_path):
    cfg = config.load(ROOT / "configs" / "mini" / "mask_rcnn_convnext_mini.py")
    model = instantiate(cfg.model)
    torch.save({"model": model.state_dict()}, tmp_path / "detector.pth")
    again = instantiate(cfg.model)
    account = load_detector(again, tmp_path / "detector.pth", show=lambda account: None)
    assert not account.new
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    encoder = own_encoder(read(tmp_path / "detector.pth"))
    assert {k: v.shape for k, v in encoder.state_dict().items()} == {
        k: v.shape for k, v in model.backbone.bottom_up.state_dict().items()
    }
    torch.save(model.backbone.bottom_up.state_dict(), tmp_path / "encoder.pth")
    assert read(tmp_path / "encoder.pth").format == "convnext"
    fresh = instantiate(cfg.model.backbone.bottom_up)
    assert not load_encoder(fresh, tmp_path / "encoder.pth", show=lambda account: None).new


def test_convnext_v2_is_refused(tmp_path):
    model = timm.create_model("convnextv2_tiny", dims=DIMS, depths=(1, 1, 1, 1))
    torch.save(model.state_dict(), tmp_path / "v2.pth")
    with pytest.raises(WeightsError, match=r"grn\.\w+: ConvNeXt V2, whose norm"):
        read(tmp_path / "v2.pth")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (dict(depths=(1, 0)), "depths=0 does not fit"),
        (dict(depths=()), r"depths=\(\) do not fit"),
        (dict(embed_dim=0), "embed_dim=0 does not fit"),
        (dict(drop_path_rate=1.0), "drop_path_rate=1.0 does not fit"),
        (dict(out_indices=[4]), r"out_indices=\[4\] do not fit"),
    ],
)
def test_convnext_of_what_does_not_fit(words, told):
    with pytest.raises(ValueError, match=told):
        ConvNeXt(**words)


def test_convnext_in_yacs_configs():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_convnext_backbone"
    cfg.MODEL.CONVNEXT = CfgNode(dict(EMBED_DIM=8, DEPTHS=(1, 1, 1, 1)))
    assert build_backbone(cfg).output_shape()["p3"].channels == 64
