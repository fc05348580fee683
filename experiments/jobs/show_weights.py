"""What a file of weights holds, and the same in another format."""

import re
from pathlib import Path
from typing import Any

from rich.console import Console

from backbones import SIZES
from backbones.weights import FORMATS, Contents, WeightsError, encoder_words, read
from backbones.weights.fit import fit_own
from backbones.weights.writers import convert

from ..errors import UserError

_OF_A_SIZE = (
    "embed_dim",
    "depth",
    "num_heads",
    "patch_size",
    "stem",
    "pre_norm",
    "out_chans",
    "mlp",
)
_DEFAULTS = dict(patch_size=16, stem="patchify", pre_norm=False, out_chans=None, mlp="mlp")


def show(path: Path, console: Console) -> None:
    """Print format, sizes, and by group what loading does with it: what the file's own encoder and
    detector would be given, what is left out, what is refused.

    Raises:
        UserError: the file cannot be read, is of no known format or of a model that no encoder here
            computes, or loading refuses it.
    """
    contents = _read(path)
    console.print(
        f"{path}: {FORMATS.get(contents.format).title} ({contents.format})\n"
        f"{contents.tensors} tensors, {contents.bytes / 1e6:,.1f} MB, {', '.join(contents.dtypes)}"
    )
    if words := encoder_words(contents):
        console.print(f"encoder: {_in_words(contents, words)}")
    try:
        account, refusal = fit_own(contents)
    except WeightsError as error:
        raise UserError(str(error)) from error
    account.title = "what loading does"
    console.print(str(account))
    if refusal:
        raise UserError(refusal)


def write(path: Path, to: str, out: Path, console: Console) -> None:
    """Convert a file, see `backbones.weights.writers.convert`, and print what changed.

    Raises:
        UserError: the file cannot be read, or not be said in that format.
    """
    contents = _read(path)
    try:
        notes = convert(contents, to, out)
    except WeightsError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    for note in [*notes, f"{to}: {out}"]:
        console.print(note)


def _read(path: Path) -> Contents:
    if not path.exists():
        raise UserError(f"no file of weights at {path.absolute()}")
    try:
        return read(path)
    except WeightsError as error:
        raise UserError(str(error)) from error


def _in_words(contents: Contents, words: dict[str, Any]) -> str:
    """The size's name if it is one of ours, the numbers, positions and plan."""
    own = _of_a_size(words)
    parts = [f"{k}={v}" for k, v in own.items() if v != _DEFAULTS.get(k, "")]
    parts.append(f"norm_eps={words['norm_layer'].keywords['eps']:g}")
    parts += [f"{k}={words[k]}" for k in ("positions", "positions_resize", "qk_norm") if k in words]
    if "act_layer" in words:
        parts.append(f"act_layer={words['act_layer'].__name__}")
    if "pretrain_img_size" in words:
        parts.append(f"pretrain_img_size={words['pretrain_img_size']}")
    if words["use_rel_pos"]:
        parts.append("relative positions")
    if words["use_rel_pos"] or "window_block_indexes" in contents.settings:
        whole = [i for i in range(words["depth"]) if i not in words["window_block_indexes"]]
        parts.append(f"window_size={words['window_size']}, global blocks {whole}")
    parts += [f"among the others {word}s" for word in contents.settings.get("other_windows", ())]
    if words["residual_block_indexes"]:
        parts.append(f"conv blocks behind {words['residual_block_indexes']}")
    names = " or ".join(_names(contents, words))
    return f"{names}: " * bool(names) + ", ".join(parts)


def _of_a_size(words: dict[str, Any]) -> dict[str, Any]:
    return {k: (_DEFAULTS | words).get(k) for k in _OF_A_SIZE}


def _names(contents: Contents, words: dict[str, Any]) -> list[str]:
    """Named sizes that the encoder may be of: the first; with rotary positions, of which several
    pre-trainings have one shape, those that look like it, whatever their patches."""
    rotary = "rope" in words.get("positions", "")
    shape = _of_a_size(words | dict(patch_size=16) if rotary else words)
    same = {
        name: size
        for name, size in SIZES.items()
        if _of_a_size(size) == shape and ("rope" in size.get("positions", "")) == rotary
    }
    if not rotary:
        return list(same)[:1]
    tensors = contents.encoder | contents.unfolded
    shown = _side(words), any(re.search(r"\.ls1\.", key) for key in tensors)
    alike = [n for n, size in same.items() if (_side(size), "layer_scale" in size) == shown]
    return alike or list(same)


def _side(words: dict[str, Any]) -> int | None:
    """Patches along a side of the pre-training's images, where there are absolute positions."""
    if "learned" not in words.get("positions", ""):
        return None
    return words.get("pretrain_img_size", 224) // words.get("patch_size", 16)
