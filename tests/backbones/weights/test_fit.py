"""Contents into a module: every tensor accounted for, or one line that says why not."""

from functools import partial

import pytest
import torch
from detectron2.config import instantiate
from segment_anything.modeling import ImageEncoderViT
from torch import nn

from backbones import QuickGELU, ViT, build_encoder
from backbones.weights import (
    WeightsError,
    encoder_words,
    load_detector,
    load_encoder,
    read,
)
from backbones.weights.account import group
from backbones.weights.fit import fit_encoder
from backbones.weights.formats.torchvision import Torchvision

from .test_detectron2 import Pth, mini_model, randomized, silent

# 8 x 8 tokens and positions, 4 heads of 12 channels; one window and one global block.
WORDS = dict(
    img_size=64, patch_size=8, embed_dim=48, depth=2, num_heads=4, window_size=3,
    window_block_indexes=[0], pretrain_img_size=64, use_rel_pos=True,
    norm_layer=partial(nn.LayerNorm, eps=1e-6),
)  # fmt: skip
IN_FILE = "Its encoder has embed_dim=48 depth=2 patch_size=8 use_rel_pos=True"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vit.pth"


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return randomized(ViT(**WORDS)).state_dict()


def pretrained(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same as a classifier, or MAE's encoder, would have it."""
    kept = {k: v for k, v in state.items() if "rel_pos" not in k}
    return kept | {"cls_token": torch.ones(1, 1, 48), "norm.weight": torch.ones(48)}


def refused(module: nn.Module, path, strict: bool = True, load=load_encoder) -> str:
    """The error's one line; the module is as it was."""
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load(module, path, strict, show=silent)
    after = module.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- What is refused, what is reported ---------------------------------------------------------


def test_what_is_missing(state, path):
    del state["blocks.1.norm2.weight"], state["blocks.1.norm2.bias"], state["pos_embed"]
    torch.save(state, path)
    assert refused(ViT(**WORDS), path) == (
        f"{path} (detectron2) does not fit: no absolute positions: pos_embed, "
        "blocks.1.norm2.weight and 1 more (the encoder's use_abs_pos decides). "
        "Its encoder has embed_dim=48 depth=2 patch_size=8 use_rel_pos=True"
    )
    encoder = ViT(**WORDS)
    kept = encoder.pos_embed.detach().clone()
    account = load_encoder(encoder, path, strict=False, show=silent)
    assert account.missing == {
        "pos_embed": 65 * 48,
        "blocks.1.norm2.weight": 48,
        "blocks.1.norm2.bias": 48,
    }
    assert ("missing", "absolute positions", 1, 65 * 48, "e.g. pos_embed") in account.rows()
    assert ("missing", "norms", 2, 96, "e.g. blocks.1.norm2.weight") in account.rows()
    assert torch.equal(encoder.pos_embed, kept)
    assert account.loaded.keys() == state.keys()
    assert all(torch.equal(encoder.state_dict()[k], v) for k, v in state.items())


def test_what_is_unexpected(state, path):
    more = {"blocks.2.norm1.weight": torch.ones(48), "blocks.2.attn.proj.bias": torch.ones(48)}
    torch.save({f"backbone.net.{k}": v for k, v in (state | more).items()}, path)
    assert refused(ViT(**WORDS), path) == (
        f"{path} (detectron2) does not fit: unused norms: blocks.2.norm1.weight, "
        f"blocks.2.attn.proj.bias. {IN_FILE}"
    )
    encoder = ViT(**WORDS)
    account = load_encoder(encoder, path, strict=False, show=silent)
    assert account.unexpected == dict.fromkeys(more, 48)
    assert ("unexpected", "norms", 1, 48, "e.g. blocks.2.norm1.weight") in account.rows()
    assert ("unexpected", "attention", 1, 48, "e.g. blocks.2.attn.proj.bias") in account.rows()
    assert all(torch.equal(encoder.state_dict()[k], v) for k, v in state.items())


@pytest.mark.parametrize("strict", [True, False])
def test_what_is_of_another_shape(state, path, strict):
    torch.save(state, path)
    told = refused(ViT(**WORDS | dict(mlp_ratio=2.0)), path, strict)
    assert told == (
        f"{path} (detectron2) does not fit: other shapes: blocks.0.mlp.fc1.bias 192 for 96, "
        f"blocks.0.mlp.fc1.weight 192x48 for 96x48 and 4 more. {IN_FILE}"
    )


def test_another_size_another_depth(state, path):
    """Everything wrong at once is one line."""
    torch.save(state, path)
    told = refused(ViT(**WORDS | dict(embed_dim=96, depth=3)), path)
    assert "no norms: blocks.2.norm1.weight, " in told
    assert "; other shapes: blocks.0.attn.proj.bias 48 for 96, " in told
    assert "strict=False" not in told
    assert told.endswith(IN_FILE)


def test_what_is_no_encoder(state, path):
    torch.save(state, path)
    told = refused(nn.Linear(1, 1), path)
    assert "no weight: weight, bias; unused absolute positions: pos_embed, " in told


# Tensors with axes, or without numbers, that nothing can be made of.
ODD = {
    "blocks.0.attn.qkv.weight": [(), (3,), (0, 0)],
    "blocks.0.mlp.fc1.weight": [(), (7,), (0, 48)],
    "blocks.0.attn.rel_pos_h": [(), (5,), (0, 12), (5, 0), (1, 5, 12)],
    "blocks.0.norm1.weight": [(), (1, 48)],
    "patch_embed.proj.weight": [(), (3, 3), (48, 3, 0, 0), (48, 3, 0, 8), (48, 3, 1, 8, 8)],
    "pos_embed": [(2, 64, 48), (2, 16, 48), (1, 0, 48), (1, 65, 0), (0, 65, 48)],
}


@pytest.mark.parametrize(("key", "shape"), [(k, s) for k, shapes in ODD.items() for s in shapes])
def test_odd_shapes_are_refused(key, shape, state, path):
    """By key, or at once if they show no ViT's sizes."""
    torch.save(state | {key: torch.ones(shape)}, path)
    for words in (WORDS, WORDS | dict(img_size=128, pretrain_img_size=128, window_size=5)):
        told = refused(ViT(**words), path, strict=False)
        assert key in told or told == f"{path}: its tensors have the shapes of no ViT", told


@pytest.mark.parametrize("lost", ["qkv", "fc1", "patch_embed", "mlp", "attn", "blocks.0."])
def test_sizes_that_a_file_does_not_show(lost, state, path):
    """The sizes in the message are read off tensors that may be missing."""
    torch.save({f"backbone.net.{k}": v for k, v in state.items() if lost not in k}, path)
    assert lost in refused(ViT(**WORDS), path)


# ---- Values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["blocks.1.mlp.fc2.bias", "pos_embed"])
def test_nan_and_infinite_weights(key, bad, strict, state, path):
    state[key].view(-1)[3:5] = bad
    torch.save(state, path)
    told = refused(ViT(**WORDS), path, strict)
    assert told == f"{path}: {key} has 2 values that are NaN or infinite"


def test_weights_too_large_for_the_module(state, path):
    state["blocks.1.mlp.fc2.bias"] = torch.full((48,), 1e39, dtype=torch.float64)
    torch.save(state, path)
    assert "blocks.1.mlp.fc2.bias has 48 values that are" in refused(ViT(**WORDS), path)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_weights_that_are_no_real_numbers(dtype, state, path):
    torch.save(state, path)
    contents = read(path)  # which refuses some of them by itself
    contents.encoder["blocks.1.mlp.fc2.bias"] = torch.ones(48, dtype=dtype)
    told = f"{path}: blocks.1.mlp.fc2.bias is {dtype}, not torch.float32"
    with pytest.raises(WeightsError, match=told):
        fit_encoder(ViT(**WORDS), contents, strict=False)


def test_counts_that_are_no_whole_numbers(path):
    """The other way round: a buffer of batch norm."""
    state = build_encoder("vit-mini").state_dict()
    key = "patch_embed.proj.1.num_batches_tracked"
    torch.save(state | {key: torch.ones(())}, path)
    assert f"{key} is torch.float32, not torch.int64" in refused(build_encoder("vit-mini"), path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast(dtype, state, path):
    cast = {k: v.to(dtype) for k, v in state.items()}
    torch.save(cast, path)
    encoder = ViT(**WORDS)
    load_encoder(encoder, path, show=silent)
    for key, tensor in encoder.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, cast[key].float()), key


def test_modules_of_another_precision(state, path):
    torch.save(state, path)
    encoder = ViT(**WORDS).bfloat16()
    load_encoder(encoder, path, show=silent)
    assert all(torch.equal(v, state[k].bfloat16()) for k, v in encoder.state_dict().items())


# ---- What detection adds -----------------------------------------------------------------------

CONV = dict(window_block_indexes=None, propagation="conv", count=1)


@pytest.mark.parametrize("front", ["backbone.net.", ""])
def test_residual_modules_a_file_has_not_are_new(front, state, path):
    """A conv row may start from an all-global detector or encoder: its modules start as the
    identity, so that the encoder computes what it did."""
    torch.save({f"{front}{k}": v for k, v in state.items()}, path)
    encoder, plain = ViT(**WORDS | CONV), ViT(**WORDS | dict(window_block_indexes=[0, 1]))
    account = load_encoder(encoder, path, show=silent)
    assert account.new.keys() == {k for k in encoder.state_dict() if ".residual." in k}
    ((_, name, _, _, why),) = [row for row in account.rows() if row[0] == "new"]
    assert (name, why) == ("residual modules", "keeps its initial values")
    load_encoder(plain, path, show=silent)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found, expected = (net.eval()(image)["last_feat"] for net in (encoder, plain))
    torch.testing.assert_close(found, expected)


def test_some_residual_modules_are_missed(path):
    """Of a file that has others; and of a whole detector, which is evaluated as it is."""
    words = WORDS | dict(propagation="conv", window_block_indexes=None)
    state = randomized(ViT(**words, count=2)).state_dict()
    lost = {k: v for k, v in state.items() if "blocks.1.residual" not in k}
    torch.save({f"backbone.net.{k}": v for k, v in lost.items()}, path)
    told = refused(ViT(**words, count=2), path)
    assert "no residual modules: blocks.1.residual.conv1.weight, " in told
    detector, saved = (nn.Module() for _ in range(2))
    for module, count in ((detector, 1), (saved, 0)):
        module.head = nn.Linear(1, 1)
        module.backbone = nn.Module()
        module.backbone.net = ViT(**words, count=count)
    torch.save(saved.state_dict(), path)
    told = refused(detector, path, load=load_detector)
    assert "no residual modules: backbone.net.blocks.1.residual.conv1.weight, " in told


@pytest.mark.parametrize(
    ("words", "new"),
    [
        (CONV | dict(use_rel_pos=False), {"residual modules"}),
        ({}, {"relative positions"}),
        (dict(out_chans=8), {"relative positions", "SAM's neck"}),
        (dict(use_rel_pos=False), set()),
    ],
)
def test_what_detection_adds_to_a_classifier(words, new, state, path):
    torch.save({"model": pretrained(state)}, path)
    encoder = ViT(**WORDS | words)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    account = load_encoder(encoder, path, show=silent)
    assert {row[1] for row in account.rows() if row[0] == "new"} == new
    assert account.new.keys() == before.keys() - state.keys() | {
        k for k in before if "rel_pos" in k
    }
    assert all(torch.equal(encoder.state_dict()[k], before[k]) for k in account.new)
    assert account.loaded.keys() == before.keys() - account.new.keys()


def test_what_a_classifier_promises(state, path):
    torch.save({"model": {k: v for k, v in pretrained(state).items() if "fc2" not in k}}, path)
    assert "no MLPs: blocks.0.mlp.fc2.weight, " in refused(ViT(**WORDS), path)


def test_a_neck_that_the_encoder_has_not(path):
    neck = randomized(ViT(**WORDS, out_chans=8))
    torch.save(neck.state_dict(), path)
    encoder = ViT(**WORDS)
    account = load_encoder(encoder, path, show=silent)
    assert set(account.dropped.values()) == {
        ("SAM's neck: this encoder has none", n) for n in (8 * 48, 8, 8 * 8 * 9)
    }
    assert len(account.dropped) == 6
    assert not account.unexpected

    torch.save(ViT(**WORDS).state_dict(), path)
    assert "no SAM's neck: neck.0.weight, " in refused(ViT(**WORDS, out_chans=8), path)


def test_as_many_positions_on_another_grid(path):
    """Same shape, but resized: 64 are 4 x 16 of them, and 65 are 5 x 13, not 8 x 8 and a cls
    token."""
    state = ImageEncoderViT(
        img_size=64, patch_size=8, embed_dim=48, depth=2, num_heads=4, window_size=3,
        use_rel_pos=True, global_attn_indexes=(1,), out_chans=8,
    ).state_dict()  # fmt: skip
    for grid, cls_token in [((4, 16), False), ((5, 13), True)]:
        torch.save(state | {"pos_embed": torch.randn(1, *grid, 48)}, path)
        encoder = ViT(**WORDS, pretrain_use_cls_token=cls_token)
        account = load_encoder(encoder, path, show=silent)
        assert account.resized["pos_embed"][0] == f"{grid[0]}x{grid[1]} -> 8x8, bicubic"


# ---- Detectors ---------------------------------------------------------------------------------


def test_an_encoder_is_no_detector(state, path):
    model = instantiate(mini_model("mask_rcnn_vit_mini"))
    torch.save(pretrained(state), path)
    told = f"{path} holds an encoder only (timm), no detector: training starts from it as "
    assert refused(model, path, load=load_detector) == told + "train.init_weights"
    torch.save({f"backbone.net.{k}": v for k, v in state.items()}, path)
    assert "holds an encoder only (detectron2)" in refused(model, path, load=load_detector)


def test_a_detectors_tensors_are_all_promised(path):
    model = instantiate(mini_model("mask_rcnn_vit_mini"))
    Pth.save(model, path)
    content = torch.load(path)
    del content["model"]["roi_heads.box_head.fc1.bias"]
    torch.save(content, path)
    told = refused(model, path, load=load_detector)
    assert "no box and mask heads: roi_heads.box_head.fc1.bias. " in told
    account = load_detector(model, path, strict=False, show=silent)
    assert account.missing == {"roi_heads.box_head.fc1.bias": 128}


# ---- The account -------------------------------------------------------------------------------


TABLE = """\
{path} (timm)
         group                 tensors    parameters
-------  ------------------  ---------  ------------  -----------------------------------
loaded   absolute positions          1         3,120
loaded   patch embedding             1            48
loaded   norms                       8           384
loaded   attention                   8        18,816
loaded   MLPs                        8        37,344
resized  patch embedding             1        36,864  8x8 -> 16x16 pixels, pseudo-inverse
dropped                              1            48  cls token
dropped                              1            48  norm behind the last block
new      relative positions          4           288  keeps its initial values"""


def test_it_is_printed_as_a_table(state, path, capsys):
    torch.save({"model": pretrained(state)}, path)
    account = load_encoder(ViT(**WORDS | dict(pretrain_img_size=128, patch_size=16)), path)
    assert capsys.readouterr().out == f"{account}\n"
    assert str(account) == TABLE.format(path=path) + "\nnot in the file: num_heads, 4 here"


def test_every_tensor_is_in_it_once(state, path):
    torch.save({"model": pretrained(state)}, path)
    encoder = ViT(**WORDS | CONV)
    account = load_encoder(encoder, path, show=silent)
    parts = [account.loaded, account.resized, account.new]
    assert sorted(k for part in parts for k in part) == sorted(encoder.state_dict())
    assert account.loaded.keys() | account.dropped.keys() == pretrained(state).keys()
    counted = [n for what, _, _, n, _ in account.rows() if what != "dropped"]
    assert sum(counted) == sum(v.numel() for v in encoder.state_dict().values())


GROUPS = {
    "absolute positions": ["pos_embed", "backbone.net.pos_embed"],
    "patch embedding": ["patch_embed.proj.weight", "backbone.net.patch_embed.proj.0.weight"],
    "norm before the blocks": ["norm_pre.weight"],
    "relative positions": [
        "blocks.0.attn.rel_pos_h",
        "backbone.net.blocks.10.attn.rel_pos_w",
        "layers.0.blocks.1.attn.relative_position_bias_table",
    ],
    "residual modules": ["backbone.net.blocks.2.residual.norm1.weight"],
    "attention": ["blocks.0.attn.qkv.weight", "layers.3.blocks.1.attn.proj.bias"],
    "MLPs": ["blocks.0.mlp.fc1.weight", "backbone.bottom_up.layers.0.blocks.1.mlp.fc2.bias"],
    "norms": ["blocks.11.norm1.weight", "backbone.bottom_up.layers.0.blocks.1.norm2.bias"],
    "SAM's neck": ["neck.0.weight", "backbone.net.neck.3.bias"],
    "layers between stages": [
        "layers.0.downsample.norm.weight",
        "scale2_norm.bias",
        "backbone.bottom_up.norm1.weight",
    ],
    "pyramid": ["backbone.simfp_2.0.weight", "backbone.fpn_lateral3.norm.weight"],
    "region proposals": ["proposal_generator.rpn_head.conv.conv0.bias"],
    "box and mask heads": ["roi_heads.box_head.conv1.norm.weight", "roi_heads.mask_head.x.weight"],
    "RetinaNet's head": ["head.cls_subnet.0.weight"],
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups(name):
    assert [group(key) for key in GROUPS[name]] == [name] * len(GROUPS[name])


@pytest.mark.parametrize("file", [WORDS, WORDS | dict(use_rel_pos=False)])
def test_what_is_no_tensor_is_noted(file, path):
    torch.save(ViT(**file).state_dict(), path)

    def notes(**words):
        return load_encoder(ViT(**file | words), path, show=silent).notes

    unseen = [] if file["use_rel_pos"] else ["not in the file: num_heads, 4 here"]
    assert notes() == unseen
    assert notes(norm_layer=nn.LayerNorm) == [
        "differs: norm_eps is 1e-05 here, 1e-06 in models of this format",
        *unseen,
    ]
    assert notes(act_layer=QuickGELU) == [
        "differs: act_layer is QuickGELU here, GELU in models of this format",
        *unseen,
    ]


def test_heads_of_a_known_size_are_noted(path):
    """No tensor shows them where there are no relative positions."""
    plain = WORDS | dict(use_rel_pos=False)
    differs = "differs: num_heads is 6 here, 3 in models of this format"
    unseen = "not in the file: num_heads, 2 here"
    for dim, heads, told in [(192, 3, []), (192, 6, [differs]), (48, 2, [unseen])]:
        words = plain | dict(embed_dim=dim, num_heads=heads)
        torch.save(ViT(**words).state_dict(), path)
        notes = load_encoder(ViT(**words), path, show=silent).notes
        assert notes == told


# ---- Beside a file -----------------------------------------------------------------------------


def test_a_module_without_memory_can_be_checked(state, path):
    torch.save(state, path)
    with torch.device("meta"):
        encoder = ViT(**WORDS | dict(img_size=128, pretrain_img_size=128, window_size=5))
        other = ViT(**WORDS | dict(depth=3))
    fitted, account = fit_encoder(encoder, read(path), strict=True)
    assert {k: v.shape for k, v in fitted.items()} == {
        k: v.shape for k, v in encoder.state_dict().items()
    }
    assert all(v.device.type == "cpu" for v in fitted.values())
    assert len(account.resized) == 1 + 4
    with pytest.raises(WeightsError, match=r"no norms: blocks.2.norm1.weight"):
        fit_encoder(other, read(path), strict=True)


def test_two_tensors_for_one_key():
    state = dict.fromkeys(
        [f"encoder.layers.encoder_layer_0.mlp.{k}.weight" for k in ("0", "linear_1")],
        torch.ones(1),
    )
    with pytest.raises(WeightsError, match=r"has two tensors for blocks.0.mlp.fc1.weight"):
        Torchvision().convert(state)


@pytest.mark.parametrize("hidden", [240, 488, 1000])
def test_words_of_any_mlp(hidden, path):
    """`ViT` takes a ratio and rounds the product down."""
    words = WORDS | dict(embed_dim=176, mlp_ratio=(hidden + 0.5) / 176)
    encoder = ViT(**words)
    assert encoder.blocks[0].mlp.fc1.out_features == hidden
    torch.save(encoder.state_dict(), path)
    load_encoder(ViT(**encoder_words(read(path))), path, show=silent)


def test_words_of_patches_that_do_not_divide_the_default_size(path):
    words = WORDS | dict(patch_size=14, img_size=56, use_rel_pos=False)
    torch.save(ViT(**words).state_dict(), path)
    load_encoder(ViT(**encoder_words(read(path))), path, show=silent)
