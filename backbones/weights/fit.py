"""Contents of a file into a module, every tensor accounted for."""

import re

import torch
from torch import Tensor, nn

from ..activations import TanhGELU
from ..encoder import Encoder
from ..rope import Rope
from ..unseen import KEY as UNSEEN
from . import resize
from .account import Account, group, sizes
from .contents import Contents, State, WeightsError, is_finite
from .own import own_encoder
from .words import encoder_words, known_heads

_AROUND = "neck and heads of a detector"
# The word of `ViT` that decides whether it has a group.
_DECIDED_BY = {
    "absolute positions": "use_abs_pos",
    "LayerScale": "layer_scale",
    "norms of q and k": "qk_norm",
    "MLPs": "mlp",
    "relative positions": "use_rel_pos",
    "norm before the blocks": "pre_norm",
    "residual modules": "propagation",
    "SAM's neck": "out_chans",
    "registers": "registers",
    "statistics of batch norms": "block_norm",
}


def encoder_of(detector: nn.Module) -> tuple[str, nn.Module]:
    """Name and module of a detector's encoder: under a pyramid's `net` or `bottom_up`, or the
    backbone itself."""
    for name in ("net", "bottom_up"):
        if hasattr(detector.backbone, name):
            return f"backbone.{name}", getattr(detector.backbone, name)
    return "backbone", detector.backbone


def fit_encoder(encoder: nn.Module, contents: Contents, strict: bool) -> tuple[State, Account]:
    """What to load into an encoder (which may be on the meta device), and the account of it.

    Residual modules are new for a file without any: who trains an encoder that has them wants them.

    Raises:
        WeightsError: see `load_encoder`.
    """
    account = Account(_title(contents))
    account.dropped = {k: (_AROUND, v.numel()) for k, v in contents.detector.items()}
    new = contents.new
    if not any(".residual." in key for key in contents.encoder):
        new += r"|\.residual\."
    return _fit(encoder, encoder, "", contents.encoder, contents, account, strict, new)


def fit_detector(model: nn.Module, contents: Contents, strict: bool) -> tuple[State, Account]:
    """The same for a whole detector.

    Raises:
        WeightsError: see `load_detector`.
    """
    if not contents.detector:
        raise WeightsError(
            f"{contents.path} holds an encoder only ({contents.format}), no detector: training "
            "starts from it as train.init_weights"
        )
    name, encoder = encoder_of(model)
    if isinstance(encoder, Encoder) and (windows := _other_windows(encoder, contents)):
        raise WeightsError(
            f"{_title(contents)} does not fit: {windows} (the encoder's window_size, count and "
            "placement decide)"
        )
    state = {f"{name}.{k}": v for k, v in contents.encoder.items()} | contents.detector
    account = Account(_title(contents))
    return _fit(model, encoder, f"{name}.", state, contents, account, strict, contents.new)


def fit_own(contents: Contents) -> tuple[Account, str]:
    """What loading does with a file and the encoder that it is of: the account of it, including the
    parts of a detector around it, and why loading refuses it; "" where it does not.

    Raises:
        WeightsError: loading refuses it even if not strict.
    """
    account, refusal = Account(_title(contents)), ""
    encoder = own_encoder(contents)
    if encoder is None:
        account.dropped = dict(contents.dropped)
        account.unexpected = sizes(contents.encoder.items())
        refusal = f"{_title(contents)}: its encoder is no ViT, Swin, MViTv2 or ConvNeXt"
    else:
        try:
            _, account = fit_encoder(encoder, contents, strict=True)
        except WeightsError as error:
            _, account = fit_encoder(encoder, contents, strict=False)
            refusal = str(error)
    if refusal and contents.format == "detectron2" and not account.missing:
        # A run's, with parts of the user's own.
        account.notes.append(f"only an encoder that has {_some([*account.unexpected])} loads it")
        refusal = ""
    unknown = contents.unknown_parts()
    for key, tensor in contents.detector.items():
        account.dropped.pop(key, None)
        (account.unexpected if key in unknown else account.loaded)[key] = tensor.numel()
    if unknown:
        parts = ", ".join(dict.fromkeys(group(key) for key in unknown))
        account.notes.append(f"only a detector that has {parts} loads that")
    return account, refusal


def _title(contents: Contents) -> str:
    return f"{contents.path} ({contents.format})"


def _fit(
    module: nn.Module,
    encoder: nn.Module,
    prefix: str,
    state: State,
    contents: Contents,
    account: Account,
    strict: bool,
    new_keys: str,
) -> tuple[State, Account]:
    _check_turn(encoder, contents)
    own = {k: v for k, v in module.state_dict().items() if k != prefix + UNSEEN}
    account.dropped |= contents.dropped
    state = dict(state)
    _unfold(state, own, prefix, contents, account)
    for key in [k for k in state if k.endswith(".attn.qkv.bias")]:
        if key in own:
            state[key] = _with_biases(state[key], own[key])
        elif f"{key.removesuffix('bias')}weight" in own and not state[key].any():
            size = state.pop(key).numel()
            account.dropped[key] = ("biases of zeros: this encoder has none", size)
    positions = f"{prefix}pos_embed"
    if contents.positions and positions in own and positions not in state:
        computed = contents.positions(
            resize.own_grid(own[positions], encoder), own[positions].shape[2]
        )
        state[positions] = computed.flatten(1, 2).to(torch.float32)
        account.notes.append("absolute positions are computed, as this format does")
    _fit_registers(state, own, encoder, prefix, contents, account)
    if f"{prefix}mask_token" in state.keys() - own.keys():
        size = state.pop(f"{prefix}mask_token").numel()
        account.dropped[f"{prefix}mask_token"] = ("mask token: this encoder has none", size)
    if not hasattr(encoder, "neck"):
        for key in [k for k in state if k.startswith(f"{prefix}neck.")]:
            account.dropped[key] = ("SAM's neck: this encoder has none", state.pop(key).numel())

    new = re.compile(new_keys)
    absent = {k: v for k, v in own.items() if k not in state}
    account.new = sizes((k, v) for k, v in absent.items() if new.search(k.removeprefix(prefix)))
    account.missing = sizes((k, v) for k, v in absent.items() if k not in account.new)
    account.unexpected = sizes((k, v) for k, v in state.items() if k not in own)

    fitted, misfits = {}, []
    for key in (k for k in own if k in state):
        tensor = _checked(key, state[key], own[key], contents)
        how = ""
        moved = key == positions and (contents.prefix > 1 or resize.is_other_grid(contents))
        if moved or tensor.shape != own[key].shape:
            tensor, how = resize.to_shape(key, tensor, own[key].shape, encoder, contents)
        if tensor is None or tensor.shape != own[key].shape:
            misfits.append(f"{key} {resize.by(state[key].shape)} for {resize.by(own[key].shape)}")
            continue
        fitted[key] = tensor
        if how:
            account.resized[key] = (how, tensor.numel())
        else:
            account.loaded[key] = tensor.numel()
    wrong = [
        f"{word} {group(next(iter(keys)))}: {_some(list(keys))}"
        for word, keys in (("no", account.missing), ("unused", account.unexpected))
        if keys and strict
    ]
    if misfits:
        wrong.append(f"other shapes: {_some(sorted(misfits))}")
    if wrong:
        raise WeightsError(
            f"{_title(contents)} does not fit: {'; '.join(wrong)}"
            f"{_decided_by(encoder, account)}.{_shown(contents)}"
        )
    account.notes += _casts(own, state) + contents.notes + _differences(encoder, contents)
    return fitted, account


def _check_turn(encoder: nn.Module, contents: Contents) -> None:
    """
    Raises:
        WeightsError: the file's encoder has rotary positions, and this one none or others, which no
            tensor shows.
    """
    theirs = contents.settings.get("rope")
    if theirs is None:
        return
    wanted = Rope(**dict(length=1) | theirs)
    own = encoder.blocks[0].attn.rope if isinstance(encoder, Encoder) else None
    kinds = [(r.unit, r.base, r.axes, r.pairs) for r in (own, wanted) if r is not None]
    elsewhere = "coordinates" in theirs and own and own.coordinates != wanted.coordinates
    if own is None or kinds[0] != kinds[1] or elsewhere:
        words = ",".join(f"{k}={v}" for k, v in theirs.items() if k != "length")
        raise WeightsError(
            f"{_title(contents)} does not fit: its encoder has rotary positions: "
            f"positions='rope({words})', or 'learned+rope({words})', has them"
        )
    if wanted.unit == "token" and own.length != wanted.length:
        raise WeightsError(
            f"{_title(contents)} does not fit: its rotary positions are of {wanted.length} tokens "
            f"along a side, here of {own.length}: length={wanted.length} in positions, or "
            f"pretrain_img_size={wanted.length * encoder.patch_embed.patch_size}, says so"
        )


def _other_windows(encoder: Encoder, contents: Contents) -> str:
    """Which blocks of the file's model have windows, where that is known and others have here: no
    tensor shows it, unless there are relative positions."""
    theirs = contents.settings.get("window_block_indexes")
    if theirs is None:
        return ""
    size = contents.settings.get("window_size", 14)
    wanted = ["window" if i in theirs else "global" for i in range(len(encoder.blocks))]
    words = [block.attn.partition.word for block in encoder.blocks]
    if others := contents.settings.get("other_windows"):
        if not set(others) <= set(words):
            return f"its blocks have a {others[0]}; here none has"
        words = ["global" if word == "global" else "window" for word in words]
    same = wanted == words
    if same and (not theirs or size == encoder.spec.window_size):
        return ""
    return f"its blocks {theirs} have windows of {size} tokens, the others none; here it is not so"


def _unfold(state: State, own: State, prefix: str, contents: Contents, account: Account) -> None:
    """LayerScale as in the file, where the encoder has it too."""
    if not any(f"{prefix}{key}" in own for key in contents.unfolded if ".ls" in key):
        return
    state |= {f"{prefix}{key}": tensor for key, tensor in contents.unfolded.items()}
    for key in contents.unfolded:
        account.dropped.pop(key, None)


def _with_biases(bias: Tensor, own: Tensor) -> Tensor:
    """Biases of q and v as those of q, k and v, whose middle is zero, and the other way round."""
    if bias.ndim == own.ndim == 1 and 2 * own.numel() == 3 * bias.numel():
        q, v = bias.chunk(2)
        return torch.cat([q, torch.zeros_like(q), v])
    if bias.ndim == own.ndim == 1 and 3 * own.numel() == 2 * bias.numel():
        q, k, v = bias.chunk(3)
        return bias if bool((k != 0).any()) else torch.cat([q, v])
    return bias


def _fit_registers(
    state: State,
    own: State,
    encoder: nn.Module,
    prefix: str,
    contents: Contents,
    account: Account,
) -> None:
    """Those of another implementation's file, where the encoder has as many. It puts them behind
    CLIP's norm in front of the blocks, and so cannot have those of such a file."""
    key = f"{prefix}registers"
    if not contents.registers or key not in own or hasattr(encoder, "norm_pre"):
        return
    theirs, registers_1RC = contents.registers
    if registers_1RC.shape == own[key].shape:
        state[key] = registers_1RC
        del account.dropped[theirs]
    else:
        there, here = registers_1RC.shape[1], own[key].shape[1]
        account.notes.append(f"registers: {there} in the file, {here} here: left out")


def _decided_by(encoder: nn.Module, account: Account) -> str:
    """The words of a ViT that decide whether it has the groups which only one side has."""
    there = {group(key) for key in (*account.loaded, *account.resized)}
    apart = dict.fromkeys(group(key) for key in (*account.missing, *account.unexpected))
    words = [_DECIDED_BY[name] for name in apart if name in _DECIDED_BY and name not in there]
    if not words or not isinstance(encoder, Encoder):
        return ""
    return f" (the encoder's {', '.join(words)} decides)"


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:2]) + (f" and {len(keys) - 2} more" if len(keys) > 2 else "")


def _shown(contents: Contents) -> str:
    """The sizes of the encoder in the file, for the one who asked for another."""
    words = encoder_words(contents)
    usual = dict(
        use_rel_pos=False, residual_block_indexes=[], stem="patchify", qkv_bias=True, pre_norm=False
    )
    sizes = ("embed_dim", "depth", "patch_size", *usual)
    shown = " ".join(f"{k}={words[k]}" for k in sizes if words.get(k, usual.get(k)) != usual.get(k))
    return f" Its encoder has {shown}" if shown else ""


def _checked(key: str, tensor: Tensor, own: Tensor, contents: Contents) -> Tensor:
    """The tensor in the module's precision."""
    if tensor.is_floating_point() != own.is_floating_point() or tensor.is_complex():
        raise WeightsError(f"{contents.path}: {key} is {tensor.dtype}, not {own.dtype}")
    tensor = tensor.to(own.dtype)  # may overflow
    if own.is_floating_point() and not is_finite(tensor):
        bad = int((~torch.isfinite(tensor)).sum())
        raise WeightsError(f"{contents.path}: {key} has {bad} values that are NaN or infinite")
    return tensor


def _casts(own: State, state: State) -> list[str]:
    """Precisions in the file that are not the module's."""
    pairs = [(state[k].dtype, v.dtype) for k, v in own.items() if k in state]
    return [
        f"cast: {pairs.count((old, new))} tensors from {old} to {new}".replace("torch.", "")
        for old, new in dict.fromkeys(pairs)
        if old != new
    ]


def _activation(module: nn.Module) -> type:
    tanh = isinstance(module, nn.GELU) and module.approximate == "tanh"
    return TanhGELU if tanh else type(module)


def _differences(encoder: nn.Module, contents: Contents) -> list[str]:
    """What the file's model computes otherwise though every tensor fits, and what is not known."""
    if not isinstance(encoder, Encoder) or not encoder_words(contents):
        return []
    block = encoder.blocks[0]
    own = dict(
        positions_resize=encoder.positions_resize,
        norm_eps=getattr(block.norm1, "eps", None),
        act_layer=_activation(block.mlp.act) if hasattr(block.mlp, "act") else None,
        num_heads=block.attn.num_heads,
    )
    if own["act_layer"] is None:  # a gated MLP
        del own["act_layer"]
    theirs = dict(act_layer=nn.GELU) | contents.settings | {"num_heads": known_heads(contents)}

    def name(value) -> str:
        return getattr(value, "__name__", str(value))

    notes = [f"differs: {windows}"] if (windows := _other_windows(encoder, contents)) else []
    if block.attn.rope is not None and "rope" not in contents.settings:
        notes.append("not in the file: rotary positions, which this encoder has")
    return notes + [
        f"not in the file: {word}, {name(own[word])} here"
        if theirs[word] is None
        else f"differs: {word} is {name(own[word])} here, {name(theirs[word])} in models of this "
        "format"
        for word in own
        if own[word] != theirs.get(word, own[word])
    ]
