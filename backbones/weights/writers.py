"""Weights out: files that detectron2, transformers and segment-anything load."""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..positions import resized_positions
from .account import group
from .contents import Contents, State, WeightsError, is_finite, square_grid
from .formats.transformers import ACTIVATIONS
from .words import encoder_words, known_heads

# What the readers of these files have not, but for "safetensors", which is this suite's.
_OURS = (
    r"\.mlp\.w\d\.|\.ls[12]\.|\.attn\.[qk]_norm\.|\.norm\d\.running_"
    r"|^registers$|^norm_pre\.|^patch_embed\.proj\.\d"
)


def convert(contents: Contents, to: str, out: str | Path) -> list[str]:
    """Write the contents of a file in another format; the file is there whole or not at all.

    Args:
        contents: see `read`.
        to: a word of `WRITERS`. "detectron2": a .pth with the keys of a detectron2 detector, as far
            as the contents go; "safetensors": the same keys in that container; "hf": a folder for
            transformers' `VitDetModel.from_pretrained`; "sam": a .pth with the `image_encoder.`
            of segment-anything.
        out: file or folder to write; must not exist.

    Returns:
        What was changed or left out, a line each.

    Raises:
        WeightsError: an unknown format, `out` exists, or the format has no place for a tensor.
        OSError: `out` cannot be written.
    """
    out = Path(out)
    if to not in WRITERS:
        raise WeightsError(f"unknown format {to!r}: allowed are {', '.join(WRITERS)}")
    if out.exists():
        raise WeightsError(f"{out} exists already: choose another name")
    if "patch_embed.norm_pixels.weight" in contents.encoder:
        raise WeightsError(
            f"{contents.path}: {to} has no place for a {contents.format}'s stem and computed "
            "positions; this suite loads the file as it is"
        )
    for unseen, what in (
        ("rope" in contents.settings, "rotary positions"),
        (contents.settings.get("positions_resize") == "tile", "tiled positions"),
    ):
        if unseen:
            raise WeightsError(
                f"{contents.path}: {to} has no place for a {contents.format}'s {what}, which "
                "leave no tensor; this suite loads the file as it is"
            )
    contents, added = _with_k_biases(contents)
    if "mask_token" in contents.encoder and to != "safetensors":
        kept = {k: v for k, v in contents.encoder.items() if k != "mask_token"}
        contents = dataclasses.replace(contents, encoder=kept)
        added.append("left out: mask token, of training only")
    for key, tensor in (contents.encoder | contents.detector).items():
        if tensor.is_floating_point() and not is_finite(tensor):
            raise WeightsError(f"{contents.path}: {key} has values that are NaN or infinite")
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        notes = added + WRITERS[to](contents, scratch)
        os.replace(scratch, out)
    finally:
        shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink(missing_ok=True)
    return notes


def _detectron2(contents: Contents, out: Path) -> list[str]:
    if words := encoder_words(contents):
        _refuse(contents, "detectron2's ViT", hint="; --to safetensors has, for this suite")
        _refuse_conv_blocks(contents, words, "detectron2's ViT")
    state, notes = _detector(contents)
    torch.save({"model": state}, out)
    return notes + _unsaid(contents)


def _safetensors(contents: Contents, out: Path) -> list[str]:
    state, notes = _detector(contents)
    save_file(state, out, metadata={"format": "pt"})
    return notes + _unsaid(contents)


def _detector(contents: Contents) -> tuple[State, list[str]]:
    """Contents by the keys of a detectron2 detector."""
    encoder, notes = dict(contents.encoder), []
    if "pos_embed" in encoder:
        encoder["pos_embed"], notes = _positions(contents, cls_token=contents.prefix > 0)
    name = "backbone.net" if encoder_words(contents) else "backbone.bottom_up"
    state = {f"{name}.{k}": v.contiguous() for k, v in encoder.items()}
    unknown = contents.unknown_parts()
    state |= {k: v.contiguous() for k, v in contents.detector.items() if k not in unknown}
    left = [*contents.around, *dict.fromkeys(group(key) for key in unknown)]
    return state, notes + ([f"left out: {', '.join(left)}"] if left else [])


def _unsaid(contents: Contents) -> list[str]:
    """What the file's model computes otherwise than the readers of its conversion take for
    granted, and its keys do not show."""
    words = encoder_words(contents)
    if not words:
        return []
    plain = Contents(contents.encoder, settings={"norm_eps": 1e-6})
    assumed = encoder_words(plain) | {"act_layer": nn.GELU}
    own = assumed | words | {"norm_eps": words["norm_layer"].keywords["eps"]}
    assumed["norm_eps"] = 1e-6
    if contents.settings.get("act_layer", nn.GELU) is None:
        own["act_layer"] = "not known"
    return [
        f"not in the written file: {word}={getattr(own[word], '__name__', own[word])}"
        for word in ("norm_eps", "act_layer", "num_heads", "window_size", "window_block_indexes")
        if own[word] != assumed[word]
    ]


def _hf(contents: Contents, out: Path) -> list[str]:
    words = _plain_words(contents, "transformers' VitDet")
    _refuse(contents, "transformers' VitDet")
    _refuse_conv_blocks(contents, words, "transformers' VitDet")
    _refuse_unknown_heads(contents, "transformers' VitDet")
    if words["mlp_ratio"] % 1:
        raise WeightsError(
            f"{contents.path}: transformers' VitDet has a whole mlp_ratio, this is "
            f"{words['mlp_ratio']}"
        )
    encoder = {k: v for k, v in contents.encoder.items() if not k.startswith("neck.")}
    notes = _left_out(contents)
    if len(encoder) < len(contents.encoder):
        notes.append("left out: SAM's neck")
    if "pos_embed" in encoder:
        # transformers' positions always start with one of a cls token, which it does not read.
        encoder["pos_embed"], changes = _positions(contents, cls_token=True)
        notes += changes
    else:
        # VitDetModel.from_pretrained fails without them (transformers 5.23).
        encoder["pos_embed"] = torch.zeros(1, 2, words["embed_dim"])
        words |= dict(use_abs_pos=True, pretrain_img_size=words["patch_size"])
        notes.append("added: absolute positions of zeros")
    for pattern, replacement in (
        (r"^blocks\.(\d+)\.attn\.", r"encoder.layer.\1.attention."),
        (r"^blocks\.", "encoder.layer."),
        (r"^patch_embed\.proj\.", "embeddings.projection."),
        (r"^pos_embed$", "embeddings.position_embeddings"),
    ):
        encoder = {re.sub(pattern, replacement, k): v for k, v in encoder.items()}
    config = dict(
        architectures=["VitDetModel"],
        model_type="vitdet",
        hidden_size=words["embed_dim"],
        num_hidden_layers=words["depth"],
        num_attention_heads=words["num_heads"],
        mlp_ratio=int(words["mlp_ratio"]),
        hidden_act=next(k for k, v in ACTIVATIONS.items() if v is words.get("act_layer", nn.GELU)),
        layer_norm_eps=words["norm_layer"].keywords["eps"],
        image_size=words.get("img_size", 1024),
        pretrain_image_size=words.get("pretrain_img_size", 224),
        patch_size=words["patch_size"],
        num_channels=words["in_chans"],
        qkv_bias=words["qkv_bias"],
        window_block_indices=words["window_block_indexes"],
        residual_block_indices=words["residual_block_indexes"],
        use_absolute_position_embeddings=words["use_abs_pos"],
        use_relative_position_embeddings=words["use_rel_pos"],
        window_size=words["window_size"],
    )
    if contents.settings.get("act_layer", nn.GELU) is None:
        notes.append("config.json has hidden_act=gelu: the file does not show its activation")
    if not words["use_rel_pos"] and "window_block_indexes" not in contents.settings:
        notes.append("config.json has no windows: the file does not show which blocks have them")
    out.mkdir()
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    encoder = {k: v.contiguous() for k, v in encoder.items()}
    save_file(encoder, out / "model.safetensors", metadata={"format": "pt"})
    return notes


def _sam(contents: Contents, out: Path) -> list[str]:
    words = _plain_words(contents, "segment-anything")
    for key, what in (
        ("neck.0.weight", "SAM's neck"),
        ("blocks.0.attn.rel_pos_h", "relative positions"),
        ("pos_embed", "absolute positions"),
    ):
        if key not in contents.encoder:
            raise WeightsError(
                f"{contents.path}: segment-anything's encoder has {what}, it has none"
            )
    _refuse(contents, "segment-anything", r"\.residual\.")
    side = words["img_size"] // words["patch_size"]
    encoder = dict(contents.encoder)
    pos_1PC, notes = _positions(contents, cls_token=False, grid=(side, side))
    encoder["pos_embed"] = pos_1PC.unflatten(1, (side, side))
    encoder = {re.sub(r"\.mlp\.fc([12])\.", r".mlp.lin\1.", k): v for k, v in encoder.items()}
    notes += _left_out(contents)
    torch.save({f"image_encoder.{k}": v.contiguous() for k, v in encoder.items()}, out)
    return notes + _unsaid(contents)


# Formats that are written, by their word.
WRITERS: dict[str, Callable[[Contents, Path], list[str]]] = {
    "sam": _sam,
    "hf": _hf,
    "detectron2": _detectron2,
    "safetensors": _safetensors,
}


def _with_k_biases(contents: Contents) -> tuple[Contents, list[str]]:
    """Zeros for k's where q and v have biases alone."""
    filled = {}
    for key, bias in contents.encoder.items():
        weight = contents.encoder.get(key.removesuffix("bias") + "weight")
        if key.endswith(".attn.qkv.bias") and 3 * len(bias) == 2 * len(weight):
            q, v = bias.chunk(2)
            filled[key] = torch.cat([q, torch.zeros_like(q), v])
    if not filled:
        return contents, []
    contents = dataclasses.replace(contents, encoder=contents.encoder | filled)
    return contents, ["added: biases of zeros for k, which has none"]


def _plain_words(contents: Contents, whose: str) -> dict[str, Any]:
    words = encoder_words(contents)
    if not words:
        raise WeightsError(f"{contents.path}: {whose} is a plain ViT, {contents.format} is none")
    return words


def _refuse(contents: Contents, whose: str, also: str = "(?!)", hint: str = "") -> None:
    keys = [k for k in contents.encoder if re.search(f"{also}|{_OURS}", k)]
    if keys:
        raise WeightsError(
            f"{contents.path}: {whose} has no place for its {group(keys[0])}: {keys[0]}{hint}"
        )


def _refuse_unknown_heads(contents: Contents, whose: str) -> None:
    if known_heads(contents) is None:
        raise WeightsError(
            f"{contents.path}: {whose} needs the number of heads, which the file does not show"
        )


def _refuse_conv_blocks(contents: Contents, words: dict[str, Any], whose: str) -> None:
    if words.get("conv_block", "bottleneck") != "bottleneck":
        raise WeightsError(f"{contents.path}: {whose} has bottleneck conv blocks only")


def _left_out(contents: Contents) -> list[str]:
    parts = [*contents.around, *dict.fromkeys(group(key) for key in contents.detector)]
    return [f"left out: {', '.join(parts)}"] if parts else []


def _positions(
    contents: Contents, cls_token: bool, grid: tuple[int, int] | None = None
) -> tuple[Tensor, list[str]]:
    """Absolute positions, (1, cls_token + rows * columns, C), for a grid or as they are; and what
    was changed."""
    pos_1PC, notes = contents.encoder["pos_embed"], []
    if pos_1PC.ndim != 3:
        raise WeightsError(f"{contents.path}: pos_embed is {tuple(pos_1PC.shape)}, not (1, P, C)")
    patches_1PC = pos_1PC[:, contents.prefix :]
    own = square_grid(patches_1PC.shape[1])
    if not own or contents.grid not in (None, own):
        raise WeightsError(
            f"{contents.path}: absolute positions are of "
            f"{contents.grid or patches_1PC.shape[1]} patches, not of a square"
        )
    if grid and grid != own:
        patches_1PC = resized_positions(patches_1PC.float().unflatten(1, own), grid).flatten(1, 2)
        notes.append(
            f"resized: absolute positions {own[0]}x{own[1]} -> {grid[0]}x{grid[1]}, bicubic"
        )
    if not cls_token:
        if contents.prefix:
            notes.append("left out: cls token's position, which detection does not read")
        return patches_1PC, notes
    if contents.prefix == 1 and not notes:
        return pos_1PC, notes
    if not contents.prefix:
        notes.append("added: a position of zeros for a cls token, which detection does not read")
    cls_11C = pos_1PC[:, :1] if contents.prefix else torch.zeros_like(pos_1PC[:, :1])
    return torch.cat([cls_11C, patches_1PC], 1), notes
