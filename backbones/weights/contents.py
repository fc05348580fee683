"""What a file of weights holds, in the words and keys of `backbones.ViT`; and the formats."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..registries import WordRegistry
from .account import group

State = dict[str, Tensor]

# Formats of weights: subclasses of `Format`. A file has the one format that recognises its keys.
FORMATS = WordRegistry("FORMATS")


# What detectron2's detectors, and this suite's, have around an encoder.
DETECTOR_PARTS = r"^(backbone|proposal_generator|roi_heads|head)\."


class WeightsError(ValueError):
    """A file of weights that cannot be used: which, what is wrong, what to do, in one line."""


@dataclass
class Contents:
    """A file of weights, converted.

    Args:
        encoder: tensors of the encoder, by the keys of `ViT` (or of detectron2's SwinTransformer or
            MViT). `pos_embed` is (1, `prefix` + rows * columns, C), as in the file.
        detector: tensors around the encoder, by their keys in a detectron2 detector:
            "backbone.simfp_2...", "proposal_generator...", "roi_heads..."; and what else is
            there, see `unknown_parts`.
        dropped: why each of the other keys of the file is left out, and its size; see `drop`.
        prefix: leading entries of `pos_embed` that belong to no patch (cls token, registers).
        grid: rows and columns of `pos_embed`; None: a square.
        registers: key in the file and (1, R, C), of register tokens that the encoder may have.
        positions: positions that the file's model computes: of (rows, columns) and channels, as
            (1, rows, columns, channels); for files without `pos_embed`.
        new: regular expression of the encoder's keys that this format never has, because detection
            or training adds them; they keep their initial values.
        settings: words of `ViT` that hold for the format but are not seen in a file:
            "norm_eps", "act_layer" (a class; None: it may be any), "num_heads" (None: likewise),
            "window_size", "window_block_indexes", "positions_resize"; "rope", arguments of `Rope`;
            and "other_windows", words of those blocks' groups that are no plain windows.
        unfolded: LayerScale and the linear maps in front of it, as in the file, by the keys of
            `ViT`; `encoder` has them multiplied. For an encoder that has LayerScale too.
        notes: what conversion did to tensors beyond their names, a line each.
        doubt: why the file may be of a model that computes something else, where no tensor shows
            it; a format's `configure` clears it if a config.json says whose the file is.
        around: what another implementation's detector has around the encoder, which is left out.
        format: word of the format; set by `read`.
        path: of the file; set by `read`.
        tensors, bytes, dtypes: of the whole file, before conversion; set by `read`.
    """

    encoder: State
    detector: State = field(default_factory=dict)
    dropped: dict[str, tuple[str, int]] = field(default_factory=dict)
    prefix: int = 0
    grid: tuple[int, int] | None = None
    registers: tuple[str, Tensor] | None = None
    positions: Callable[[tuple[int, int], int], Tensor] | None = None
    new: str = r"^mask_token$"
    settings: dict = field(default_factory=dict)
    unfolded: State = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    doubt: str = ""
    around: tuple[str, ...] = ()
    format: str = ""
    path: Path = Path()
    tensors: int = 0
    bytes: int = 0
    dtypes: tuple[str, ...] = ()

    def drop(self, key: str, tensor: Tensor, why: str) -> None:
        """Account for a key of the file that is left out."""
        self.dropped[key] = (why, tensor.numel())

    def unknown_parts(self) -> State:
        """Tensors around the encoder that are of no detector of detectron2 or of this suite: only a
        detector with these keys loads them, and nothing is written with them."""
        return {k: v for k, v in self.detector.items() if not re.search(DETECTOR_PARTS, k)}


def square_grid(patches: int) -> tuple[int, int] | None:
    """Rows and columns of so many patches, if they are a square."""
    side = math.isqrt(max(patches, 0))
    return (side, side) if side and side**2 == patches else None


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite, as the least and the greatest one show."""
    return not tensor.numel() or all(bool(x.isfinite()) for x in tensor.aminmax())


# What detection adds to a pre-trained classifier: relative positions, residual modules of a
# propagation strategy, SAM's neck; and what training may add to any encoder.
NEW_IN_DETECTION = r"\.rel_pos_[hw]$|\.residual\.|^neck\.|^registers$|^mask_token$"


class Format:
    """How the files of one implementation become `Contents`: tables of regular expressions, and
    `finish` for what tables cannot say.

    Class attributes:
        title: whose files these are, in words.
        mark: a file has this format if one of its keys matches ...
        without: ... and none matches this.
        drop: reason by pattern of keys that are no part of the encoder.
        rename: (pattern, replacement), each applied in turn to the keys that are left.
        registers: of those keys, that of register tokens, which an encoder may have as well.
        fuse: names, between dots, of tensors that become one along their first axis, in this order;
            its name is "qkv". Applied after `rename`.
        needs: keys of the encoder that each file of this format has. One without them is of another
            model, which may compute what it does not show (rotary positions).
        new, settings: as of `Contents`.
    """

    title: str
    mark: str
    without: str = r"(?!)"
    drop: dict[str, str] = {}
    registers: str = r"(?!)"  # nothing
    rename: tuple[tuple[str, str], ...] = ()
    fuse: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    new: str = NEW_IN_DETECTION
    settings: dict = {"norm_eps": 1e-6}

    def recognises(self, state: State) -> bool:
        """Whether a file with these tensors, by its keys, has this format."""
        return any(re.search(self.mark, k) for k in state) and not any(
            re.search(self.without, k) for k in state
        )

    def convert(self, state: State) -> Contents:
        """Tensors by the file's keys, as `Contents`; `state` is left as it is.

        Raises:
            WeightsError: what this format holds cannot be said in `ViT`'s words.
        """
        contents = Contents({}, new=self.new, settings=dict(self.settings))
        for key, tensor in state.items():
            why = next((why for what, why in self.drop.items() if re.search(what, key)), None)
            if why:
                contents.drop(key, tensor, why)
                if re.search(self.registers, key) and tensor.ndim in (2, 3) and tensor.numel():
                    contents.registers = key, tensor.reshape(1, -1, tensor.shape[-1])
                continue
            for pattern, replacement in self.rename:
                key = re.sub(pattern, replacement, key)
            if key in contents.encoder:
                raise WeightsError(f"has two tensors for {key}")
            contents.encoder[key] = tensor
        if self.fuse:
            contents.encoder = _fused(contents.encoder, self.fuse)
        self.finish(contents)
        for key in self.needs:
            if key not in contents.encoder:
                raise WeightsError(
                    f"has no {group(key)}: {key}, without which it is of another model than "
                    f"{self.title}"
                )
        return contents

    def configure(self, contents: Contents, config: dict) -> None:
        """Add to the settings what a config.json beside the weights says; by default, nothing.

        Raises:
            WeightsError: it says what `ViT` cannot.
        """

    def finish(self, contents: Contents) -> None:
        """Change `contents` in place, by what a format has beyond renamed keys.

        Raises:
            WeightsError: as of `convert`.
        """


def _fused(state: State, names: tuple[str, ...]) -> State:
    parts: dict[str, State] = {}
    for key, tensor in state.items():
        name = next((n for n in names if f".{n}." in key), "")
        parts.setdefault(key.replace(f".{name}.", ".qkv.") if name else key, {})[name] = tensor
    fused = {}
    for key, found in parts.items():
        if "" in found:
            fused[key] = found[""]
            continue
        if missing := [n for n in names if n not in found]:
            raise WeightsError(f"has {key.replace('qkv', next(iter(found)))} but no {missing[0]}")
        shapes = [tuple(found[n].shape) for n in names]
        if len({shape[1:] for shape in shapes}) > 1 or () in shapes:
            raise WeightsError(f"{key} is made of {shapes}, which do not fit each other")
        fused[key] = torch.cat([found[n] for n in names])
    return fused
