"""What several formats have that `ViT` has not."""

import re

import torch
from torch import Tensor

from ..contents import Contents, State, WeightsError


def unbiased_stem(contents: Contents) -> None:
    """Zeros for the bias of the patch embedding, which CLIP's, PE's and SAM 3's have not."""
    kernel = contents.encoder.get("patch_embed.proj.weight")
    if kernel is not None and "patch_embed.proj.bias" not in contents.encoder:
        contents.encoder["patch_embed.proj.bias"] = kernel.new_zeros(kernel.shape[:1])
        contents.notes.append("the bias of the patch embedding is zero: the file has none")


def join_biases(contents: Contents) -> None:
    """The bias of q, k and v from those of q and v, "blocks.0.attn.q_bias" (BEiT, EVA-01), where k
    has none: zeros.

    Raises:
        WeightsError: a block has one of the two alone, or a bias of q, k and v beside them, or they
            have other shapes.
    """
    state = contents.encoder
    for key in [k for k in state if re.search(r"\.attn\.[qv]_bias$", k)]:
        attention = key[: -len("q_bias")]
        if key not in state:
            continue  # of v, joined to q's
        q, v = (state.pop(f"{attention}{name}_bias", None) for name in "qv")
        if q is None or v is None or f"{attention}qkv.bias" in state:
            raise WeightsError(f"has {key}, but biases of q and v of one block go together, alone")
        if q.ndim != 1 or q.shape != v.shape:
            raise WeightsError(f"{attention}q_bias {tuple(q.shape)}, v_bias {tuple(v.shape)}")
        state[f"{attention}qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    if any(key.endswith(".attn.k_bias") for key in state):
        raise WeightsError("has biases of q, k and v in three, which are not read")


def map_positions(contents: Contents) -> None:
    """SAM's absolute positions, (1, rows, columns, channels), as (1, rows * columns, channels).

    Raises:
        WeightsError: they are no map.
    """
    if "pos_embed" in contents.encoder:
        pos_1HWC = contents.encoder["pos_embed"]
        if pos_1HWC.ndim != 4:
            raise WeightsError(
                f"pos_embed is {tuple(pos_1HWC.shape)}, not (1, rows, columns, channels)"
            )
        contents.grid = tuple(pos_1HWC.shape[1:3])
        contents.encoder["pos_embed"] = pos_1HWC.flatten(1, 2)


def fold_layer_scale(contents: Contents) -> None:
    """LayerScale (arXiv:2103.17239), "blocks.0.ls1.gamma", into the linear map in front of it.

    Raises:
        WeightsError: a block has none though another has, or there is no such map, or it has other
            channels, or integers.
    """
    state = contents.encoder
    scales = [k for k in state if re.search(r"^blocks\.\d+\.ls[12]\.gamma$", k)]
    blocks = {k.split(".")[1] for k in state if re.match(r"blocks\.\d+\.", k)} if scales else ()
    for block in sorted(blocks, key=int):
        last = "mlp.w3" if f"blocks.{block}.mlp.w3.weight" in state else "mlp.fc2"
        for scale, linear in (("ls1.gamma", "attn.proj"), ("ls2.gamma", last)):
            key = f"blocks.{block}.{scale}"
            if key not in state:
                raise WeightsError(f"has {scales[0]} but no {key}")
            gamma = contents.unfolded[key] = state.pop(key)
            contents.drop(key, gamma, "LayerScale: multiplied into the linear map before it")
            for part in ("weight", "bias"):
                name = f"blocks.{block}.{linear}.{part}"
                if name not in state:
                    raise WeightsError(f"has {key} but no {name}")
                contents.unfolded[name] = state[name]
                state[name] = _scaled(name, state[name], key, gamma)


def _scaled(key: str, tensor: Tensor, gamma_key: str, gamma: Tensor) -> Tensor:
    """The tensor with its first axis scaled. Not in half precision: LayerScale is small."""
    for name, values in ((key, tensor), (gamma_key, gamma)):
        if not values.is_floating_point():
            raise WeightsError(f"{name} is {values.dtype}, no floating-point number")
    if tensor.shape[:1] != gamma.shape:
        raise WeightsError(f"{gamma_key} {tuple(gamma.shape)} for {key} {tuple(tensor.shape)}")
    exact = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.to(exact) * gamma.to(exact).reshape(-1, *[1] * (tensor.ndim - 1))


def gated(contents: Contents) -> None:
    """timm's names of a gated MLP, and its two maps to the gate in one."""
    state = contents.encoder
    for key in [k for k in state if re.search(r"\.mlp\.(fc1|fc1_x|fc2)\.", k)]:
        block = key.partition(".mlp.")[0]
        out_of = state.get(f"{block}.mlp.fc2.weight", state.get(f"{block}.mlp.w3.weight"))
        into = state.get(f"{block}.mlp.fc1.weight")
        packed = into is not None and out_of is not None and into.shape[0] == 2 * out_of.shape[-1]
        if ".mlp.fc1." in key and (packed or f"{block}.mlp.w1.weight" in state):
            part = key.rpartition(".")[2]
            first, second = state[key].chunk(2)
            state[f"{block}.mlp.w1.{part}"], state[f"{block}.mlp.w2.{part}"] = first, second
    for key in [k for k in state if ".mlp.fc" in k]:
        if f"{key.partition('.mlp.')[0]}.mlp.w1.weight" in state:
            tensor = state.pop(key)
            if ".mlp.fc1." not in key:
                state[key.replace(".fc1_x.", ".w2.").replace(".fc2.", ".w3.")] = tensor


def is_dinov3(state: State) -> bool:
    """Its own keys, or timm's: of models without absolute positions only DINOv3 has a class token
    and registers (and LingBot-Vision, which computes the same)."""
    tokens = "storage_tokens" in state or {"cls_token", "reg_token"} <= state.keys()
    return tokens and "pos_embed" not in state and "blocks.0.attn.qkv.weight" in state


def is_eva02(state: State) -> bool:
    """Its own keys, or timm's: gated MLPs, and k without a bias."""
    biased = {"blocks.0.attn.q_bias", "blocks.0.attn.q_proj.bias"} & state.keys()
    return bool(biased) and "pos_embed" in state and _is_gated(state)


def is_pe(state: State) -> bool:
    """CLIP's tower with another pooling or none, in its own keys or timm's (whose stem has no bias,
    as this suite's encoders have)."""
    front = "visual." if any(key.startswith("visual.") for key in state) else ""
    if any(key.startswith(f"{front}transformer.resblocks.") for key in state):
        pooled = f"{front}attn_pool.probe" in state
        bare = not any(key.startswith(f"{front}ln_post.") for key in state)
        return f"{front}conv1.weight" in state and (pooled or bare)
    tower = {"norm_pre.weight", "pos_embed", "blocks.0.attn.qkv.weight"} <= state.keys()
    tower &= "patch_embed.proj.bias" not in state
    normed = {"norm.weight", "fc_norm.weight"} & state.keys()  # the latter by CLIP's, averaged
    return tower and ("attn_pool.latent" in state or not normed)


def _is_gated(state: State) -> bool:
    first = "blocks.0.mlp."
    if any(first + name in state for name in ("w1.weight", "w12.weight", "fc1_g.weight")):
        return True
    into, out_of = (state.get(f"{first}{name}.weight") for name in ("fc1", "fc2"))
    if into is None or out_of is None or into.ndim != 2 or out_of.ndim != 2:
        return False
    return into.shape[0] == 2 * out_of.shape[1]
