"""segment-anything's own models, saved its own way, loaded here."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from segment_anything import sam_model_registry
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import nn

from backbones import ViT, build_encoder
from backbones.weights import FORMATS, WeightsError, encoder_words, load_encoder, read

from .test_detectron2 import assert_whole, randomized, silent

# 16 x 16 tokens at 128 px, the last of each two blocks global.
SMALL = dict(
    img_size=128, patch_size=8, embed_dim=48, depth=4, num_heads=4, window_size=5,
    use_rel_pos=True, out_chans=16, norm_layer=partial(nn.LayerNorm, eps=1e-6),
)  # fmt: skip
OURS = SMALL | dict(
    window_block_indexes=[0, 2], pretrain_img_size=128, pretrain_use_cls_token=False
)


@pytest.fixture
def encoder() -> ImageEncoderViT:
    return randomized(ImageEncoderViT(**SMALL, global_attn_indexes=(1, 3)))


@pytest.fixture
def sam(encoder, tmp_path):
    """A whole SAM's checkpoint, as `sam_vit_*.pth`: its state dict, no more."""
    whole = Sam(
        encoder,
        PromptEncoder(
            embed_dim=16,
            image_embedding_size=(16, 16),
            input_image_size=(128, 128),
            mask_in_chans=4,
        ),
        MaskDecoder(
            transformer_dim=16,
            transformer=TwoWayTransformer(depth=1, embedding_dim=16, num_heads=2, mlp_dim=8),
        ),
    )
    constants = dict(pixel_mean=whole.pixel_mean, pixel_std=whole.pixel_std)  # in forks' files
    torch.save(whole.state_dict() | constants, tmp_path / "sam_vit_s.pth")
    return tmp_path / "sam_vit_s.pth"


def assert_same_map(ours: ViT, theirs: ImageEncoderViT, size: tuple[int, int]):
    """Theirs has positions of one size only: they are resized for it, bicubic as ours."""
    positions = theirs.pos_embed.data
    grid = (size[0] // 8, size[1] // 8)
    resized = F.interpolate(positions.permute(0, 3, 1, 2), grid, mode="bicubic")
    theirs.pos_embed.data = resized.permute(0, 2, 3, 1)
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected, found = theirs(image), ours.eval()(image)["last_feat"]
    theirs.pos_embed.data = positions
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("words", [None, OURS])
def test_encoder_with_its_neck(sam, encoder, words):
    """At native size, at another one, at one that is no multiple of the window."""
    contents = read(sam)
    assert contents.format == "sam"
    ours = ViT(**(words or encoder_words(contents)))
    account = load_encoder(ours, sam, show=silent)
    assert_whole(account, ours)
    reasons = {k.partition(".")[0]: why for k, (why, _) in account.dropped.items()}
    assert reasons == {
        "prompt_encoder": "SAM's prompt encoder",
        "mask_decoder": "SAM's mask decoder",
        "pixel_mean": "pixel mean and std: those of the config are used",
        "pixel_std": "pixel mean and std: those of the config are used",
    }
    for size in [(128, 128), (96, 160), (88, 152)]:
        assert_same_map(ours, encoder, size)


def test_encoder_alone(encoder, tmp_path):
    torch.save(encoder.state_dict(), tmp_path / "encoder.pth")
    ours = ViT(**OURS)
    account = load_encoder(ours, tmp_path / "encoder.pth", show=silent)
    assert_whole(account, ours)
    assert not account.dropped
    assert_same_map(ours, encoder, (96, 160))


def test_encoder_without_neck(sam, encoder):
    """ViTDet's own pyramid takes the map in front of the neck."""
    ours = ViT(**OURS | dict(out_chans=None))
    account = load_encoder(ours, sam, show=silent)
    assert_whole(account, ours)
    left = {k for k, (why, _) in account.dropped.items() if why.startswith("SAM's neck")}
    assert left == {
        "neck.0.weight", "neck.1.bias", "neck.1.weight", "neck.2.weight", "neck.3.bias",
        "neck.3.weight",
    }  # fmt: skip
    encoder.neck = nn.Identity()
    assert_same_map(ours, encoder, (96, 160))


def test_another_image_size_resizes_positions_and_global_tables(sam, encoder):
    ours = ViT(**OURS | dict(img_size=192, pretrain_img_size=192))
    account = load_encoder(ours, sam, show=silent)
    assert account.resized["pos_embed"][0] == "16x16 -> 24x24, bicubic"
    assert account.resized["blocks.1.attn.rel_pos_h"][0] == "31 -> 47 offsets, linear"
    assert len(account.resized) == 1 + 2 * 2
    assert_same_map(ours, encoder, (192, 192))


@pytest.mark.parametrize(
    ("lacking", "told"),
    [
        (".attn.rel_pos_w", "no relative positions: blocks.0.attn.rel_pos_w"),
        ("neck.2.", "no SAM's neck: neck.2.weight"),
    ],
)
def test_what_sam_promises_is_missed(lacking, told, sam):
    state = {k: v for k, v in torch.load(sam).items() if lacking not in k}
    torch.save(state, sam)
    with pytest.raises(WeightsError, match=told):
        load_encoder(ViT(**OURS), sam)


def test_positions_must_be_a_map(sam):
    state = torch.load(sam)
    state["image_encoder.pos_embed"] = state["image_encoder.pos_embed"].flatten(1, 2)
    torch.save(state, sam)
    with pytest.raises(WeightsError, match=r"\(sam\): pos_embed is \(1, 256, 48\), not \(1, rows"):
        read(sam)


@pytest.mark.parametrize(
    ("letter", "parameters"), [("b", 88_790_784), ("l", 307_291_136), ("h", 635_905_280)]
)
def test_named_sizes_are_segment_anythings(letter, parameters):
    """Every name and shape; and the closed formula, without relative positions and neck."""
    with torch.device("meta"):
        theirs = sam_model_registry[f"vit_{letter}"]()
        ours = build_encoder(f"sam-vit-{letter}")
    contents = FORMATS.get("sam")().convert(theirs.state_dict())
    assert {k: v.shape for k, v in contents.encoder.items()} == {
        k: v.shape for k, v in ours.state_dict().items()
    }
    words = encoder_words(contents)
    with torch.device("meta"):
        assert ViT(**words).plan == ours.plan
    blocks = theirs.image_encoder.blocks
    assert ours.plan == tuple("window" if block.window_size else "global" for block in blocks)
    assert {block.window_size for block in blocks} == {0, ours.spec.window_size}
    assert {block.attn.num_heads for block in blocks} == {ours.spec.num_heads}
    counted = sum(
        v.numel()
        for k, v in ours.named_parameters()
        if "rel_pos" not in k and not k.startswith("neck.")
    )
    E, D = words["embed_dim"], words["depth"]
    assert counted == (12 * E**2 + 13 * E) * D + 4865 * E == parameters
