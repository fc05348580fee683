"""Weights in and out: files of other implementations, loaded exactly and accounted for.

    from backbones import ViT, build_encoder
    from backbones.weights import encoder_words, load_encoder, read

    load_encoder(build_encoder("vit-b"), "mae_pretrain_vit_base.pth")   # prints what it did
    encoder = ViT(**encoder_words(read("sam_vit_b_01ec64.pth")))        # as in the file

docs/weights.md lists the formats. Nothing that a file holds is executed.
"""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from . import formats as _formats  # noqa: F401  (registers its entries)
from .account import Account
from .contents import FORMATS, Contents, Format, WeightsError
from .files import no_numbers, read_config, read_state
from .fit import encoder_of, fit_detector, fit_encoder
from .words import encoder_words

__all__ = [
    "FORMATS",
    "Account",
    "Contents",
    "Format",
    "WeightsError",
    "encoder_of",
    "encoder_words",
    "load_detector",
    "load_encoder",
    "read",
]


def read(path: str | Path) -> Contents:
    """What a file of weights holds, in the keys of `ViT` and of detectron2's detectors.

    Tensors of a .pth or .safetensors file stay in the file until they are used (memory-mapped).

    Raises:
        WeightsError: the file cannot be read safely, no format recognises its keys, or it is of a
            model that computes another function than the encoders here.
        OSError: there is no such file.
    """
    state, config = read_state(Path(path)), read_config(Path(path))
    known = [(word, entry()) for word, entry in FORMATS]
    found = [(word, form) for word, form in known if form.recognises(state)]
    if len(found) != 1:
        keys = ", ".join(sorted(state)[:3])
        which = " and ".join(word for word, _ in found) or "none of " + ", ".join(
            word for word, _ in known
        )
        raise WeightsError(f"{path} has keys {keys}, ...: its format is {which}")
    word, form = found[0]
    try:
        contents = form.convert(state)
        form.configure(contents, config)
        if contents.doubt:
            raise WeightsError(contents.doubt)
        for key, tensor in (contents.encoder | contents.detector).items():
            if tensor.is_complex():
                raise WeightsError(no_numbers(key, tensor))
    except WeightsError as error:
        raise WeightsError(f"{path} ({word}): {error}") from error
    contents.path, contents.format = Path(path), word
    encoder_words(contents)  # raises for shapes of no ViT
    contents.tensors = len(state)
    contents.bytes = sum(t.numel() * t.element_size() for t in state.values())
    contents.dtypes = tuple(sorted({str(t.dtype).removeprefix("torch.") for t in state.values()}))
    return contents


def load_encoder(
    encoder: nn.Module,
    path: str | Path,
    strict: bool = True,
    show: Callable[[Account], None] = print,
) -> Account:
    """Load the encoder of any file of a known format, resizing positions and patches.

    Args:
        encoder: `ViT`, or detectron2's SwinTransformer or MViT; changed in place, or not at all.
        path: file, or folder of transformers' `save_pretrained`.
        strict: refuse a file that lacks a tensor which its format promises, or has one which the
            encoder has no place for. Shapes that do not fit are refused in any case.
        show: is given the account.

    Raises:
        WeightsError: as of `read`; what does not fit; a weight that is no floating-point number, or
            is NaN or infinite.
        OSError: there is no such file.
    """
    state, account = fit_encoder(encoder, read(path), strict)
    return _load(encoder, state, account, show)


def load_detector(
    model: nn.Module,
    path: str | Path,
    strict: bool = True,
    show: Callable[[Account], None] = print,
) -> Account:
    """Load a whole detector, of detectron2 or of this suite; as of `load_encoder`.

    Args:
        model: detectron2 detector; changed in place, or not at all.
    """
    state, account = fit_detector(model, read(path), strict)
    return _load(model, state, account, show)


def _load(
    module: nn.Module, state: dict, account: Account, show: Callable[[Account], None]
) -> Account:
    module.load_state_dict(state, strict=False)
    show(account)
    return account
