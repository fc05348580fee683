"""Reading files: every kind exactly; what is damaged or something else, in one line."""

import argparse
import json
import os
import pickle
import struct
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torchvision.models import VisionTransformer

from backbones import ViT
from backbones.weights import WeightsError, encoder_words, load_encoder, read
from backbones.weights.files import read_state

from .hostile import (
    KINDS,
    STATE,
    assert_same,
    legacy_torch,
    refusal,
    repacked,
    torch_archive,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["weights", "weights.pth", "weights.safetensors"])
def test_every_kind_is_read_exactly_whatever_its_name(kind, name, tmp_path):
    KINDS[kind](tmp_path / name, STATE)
    (tmp_path / name).chmod(0o444)
    assert_same(read_state(tmp_path / name), STATE)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_and_big_arrays(kind, tmp_path):
    state = {"w": torch.randn(400, 300)}
    if "pickle" not in kind:
        state["bfloat16"] = torch.randn(3).bfloat16()
    KINDS[kind](tmp_path / "weights", state)
    assert_same(read_state(tmp_path / "weights"), state)


def test_arrays_of_python_2(tmp_path):
    """Its strings are bytes: names, numpy's, and the data."""

    def text(data: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(data)) + data

    array = np.random.randn(20, 30).astype(np.float32)
    name = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
    kind = (
        b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNN"
        + 2 * b"J\xff\xff\xff\xff"
        + b"K\x00tb"
    )
    state = b"(K\x01(K\x14K\x1et" + kind + b"\x89" + text(array.tobytes()) + b"tb"
    program = b"\x80\x02}U\x05blobs}U\x01w" + name + state + b"ss."
    assert np.array_equal(pickle.loads(program, encoding="latin1")["blobs"]["w"], array)
    (tmp_path / "R-50.pkl").write_bytes(program)
    assert_same(read_state(tmp_path / "R-50.pkl"), {"w": torch.from_numpy(array)})


@pytest.mark.parametrize("write", [torch_archive, legacy_torch])
def test_a_training_checkpoint(write, tmp_path):
    """Of the model alone; with all that the scripts of MAE, DeiT, torchvision and detectron2 put
    beside it."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 4])
    args = argparse.Namespace(lr=0.1, betas=(0.9, 0.999), device=torch.device("cuda", 0))
    args.dtype, args.size = torch.float16, torch.Size([3, 4])
    content = dict(
        optimizer=optimizer.state_dict(),
        lr_scheduler=scheduler.state_dict(),
        scaler={"scale": 65536.0},
        args=args,
        epoch=3,
        path="surrogate \udc80",
        log="x" * 5000,
        model=model.state_dict(),
    )
    write(tmp_path / "checkpoint.pth", content)
    assert isinstance(scheduler.state_dict()["milestones"], Counter)
    assert_same(read_state(tmp_path / "checkpoint.pth"), model.state_dict())
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("write", [torch_archive, legacy_torch])
def test_parameters_become_tensors(write, tmp_path):
    write(tmp_path / "w.pth", {"w": torch.nn.Parameter(torch.ones(2)), "n": 3, "author": "a"})
    state = read_state(tmp_path / "w.pth")
    assert_same(state, {"w": torch.ones(2)})
    assert type(state["w"]) is torch.Tensor
    assert not state["w"].requires_grad


@pytest.mark.parametrize("write", [torch_archive, legacy_torch])
def test_tied_and_sliced_tensors(write, tmp_path):
    both = torch.randn(4, 6)
    state = {"w": both, "tied": both, "row": both[1], "column": both[:, 2]}
    write(tmp_path / "w.pth", {k: state[k] for k in ("w", "tied")})
    assert_same(read_state(tmp_path / "w.pth"), {k: state[k] for k in ("w", "tied")})
    write(tmp_path / "w.pth", {k: state[k] for k in ("row", "column")})
    assert_same(read_state(tmp_path / "w.pth"), {k: state[k] for k in ("row", "column")})


@pytest.mark.parametrize(
    "name",
    [
        *("model", "state_dict", "model_state", "model_state_dict", "teacher", "model_ema"),
        *("blobs", "target_encoder", "module", "weights"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_wrappers_are_taken_off(name, prefix, tmp_path):
    content = {"epoch": torch.tensor(3), name: {prefix + k: v for k, v in STATE.items()}}
    torch.save(content, tmp_path / "w.pth")
    assert_same(read_state(tmp_path / "w.pth"), STATE)


def test_prefixes_of_some_keys_stay(tmp_path):
    for keys in (("model.a", "module.b"), ("module.a", "module.")):
        state = {key: torch.ones(1) for key in keys}
        torch.save(state, tmp_path / "w.pth")
        assert_same(read_state(tmp_path / "w.pth"), state)


def anonymous() -> int:
    """Bytes of this process's memory that are no file's."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in x)
    return int(line.split()[1]) * 1024


def test_tensors_of_torch_and_safetensors_stay_in_the_file(tmp_path):
    """So do those of the optimizer."""
    big = {"w": torch.zeros(2**24)}
    torch.save({"model": big, "optimizer": {"m": torch.zeros(2**24)}}, tmp_path / "w.pth")
    safetensors.torch.save_file(big, tmp_path / "w.safetensors")
    del big
    for name in ("w.pth", "w.safetensors"):
        before = anonymous()
        state = read_state(tmp_path / name)
        assert state["w"].sum() == 0
        assert anonymous() - before < 2**23


def test_misaligned_tensors_are_copied(tmp_path):
    """Zips of other tools, and safetensors with a header of any length."""
    torch.save(STATE, tmp_path / "w.pth")
    data = repacked((tmp_path / "w.pth").read_bytes(), {"data.pk": b"x"})
    (tmp_path / "w.pth").write_bytes(data)
    state = read_state(tmp_path / "w.pth")
    assert_same(state, STATE)
    assert not any(tensor.data_ptr() % tensor.element_size() for tensor in state.values())
    header = json.dumps({"w": dict(dtype="F32", shape=[2, 2], data_offsets=[0, 16])}).encode()
    header += b" " * (1 - len(header) % 4)
    data = struct.pack("<Q", len(header)) + header + torch.arange(4.0).numpy().tobytes()
    (tmp_path / "w.safetensors").write_bytes(data)
    state = read_state(tmp_path / "w.safetensors")
    assert_same(state, {"w": torch.arange(4.0).view(2, 2)})
    assert state["w"].data_ptr() % 4 == 0


def folder(path: Path, form: str) -> Path:
    path.mkdir()
    if form == "one":
        safetensors.torch.save_file(
            {"module.a": torch.ones(1), "b": torch.ones(2)}, path / "model.safetensors"
        )
    elif form == "bin":
        torch.save({"module.a": torch.ones(1), "b": torch.ones(2)}, path / "pytorch_model.bin")
    else:
        safetensors.torch.save_file({"module.a": torch.ones(1)}, path / "1.safetensors")
        safetensors.torch.save_file({"b": torch.ones(2)}, path / "2.safetensors")
        shards = {"module.a": "1.safetensors", "b": "2.safetensors"}
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return path


@pytest.mark.parametrize("form", ["one", "bin", "shards"])
def test_folders_of_transformers(form, tmp_path):
    expected = {"module.a": torch.ones(1), "b": torch.ones(2)}
    assert_same(read_state(folder(tmp_path / "model", form)), expected)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            {"weight_map": {"b": "../2.safetensors"}},
            "names ../2.safetensors, which is no file beside",
        ),
        ({"weight_map": {"b": "/etc/passwd"}}, "names /etc/passwd, which is no file beside"),
        ({"weight_map": {"b": "3.safetensors"}}, "names 3.safetensors, which is no file beside"),
        ({"weight_map": {"c": "2.safetensors"}}, "its files lack c"),
        ({"weight_map": {"c": 2}}, "damaged"),
        ({"weight_map": [1]}, "damaged"),
        ([], "damaged"),
    ],
)
def test_a_wrong_index_of_shards(index, message, tmp_path):
    path = folder(tmp_path / "model", "shards")
    (path.parent / "2.safetensors").write_bytes((path / "2.safetensors").read_bytes())
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=message) as error:
        read_state(path)
    assert len(str(error.value).splitlines()) == 1


def test_an_index_of_a_million_brackets(tmp_path):
    path = folder(tmp_path / "model", "shards")
    (path / "model.safetensors.index.json").write_text("[" * 10**6)
    with pytest.raises(WeightsError, match="damaged or cut short"):
        read_state(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty: copy or download it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 374979\n",
            "it is a Git LFS pointer, not the weights: git lfs pull gets them",
        ),
        (b"<!DOCTYPE html>\n<html><title>404</title></html>", "it is a web page, not weights"),
        (b"\xef\xbb\xbf\n <?xml version='1.0'?><Error/>", "it is a web page, not weights"),
        (b'{"weight_map": {}}', "it is JSON, not weights: of an index of shards, name the folder"),
        (b"\x1f\x8b\x08\x00", "it is compressed or packed: unpack it first"),
        (b"x" * 257 + b"ustar  ", "it is compressed or packed: unpack it first"),
        (b"PK\5\6" + bytes(18), "it is a damaged or empty archive"),
        (b"PK\3\4", "it is damaged or cut short (BadZipFile: File is not a zip file)"),
        (b"\x89HDF\r\n", "it is an HDF5 file (Keras), which is not read"),
        (b"torch.save", "it is no file of weights: it begins with b'torch.sa'"),
        (b"\x80\x02", "it is cut short: copy or download it again"),
        (b"\x80\x02].", "it holds no dict of tensors"),
        (b"\x80\x02}.", "it holds no tensors by name, at its top level or as its model"),
        (b"\x10\0\0\0\0\0\0\0{", "it is damaged or cut short (SafetensorError"),
        (b"\x10\0\0\1\0\0\0\0{", "its header is too large for safetensors"),
    ],
)
def test_what_is_something_else(content, message, tmp_path):
    (tmp_path / "weights.pth").write_bytes(content)
    assert refusal(tmp_path / "weights.pth").startswith(message)


def test_what_is_no_file(tmp_path):
    for path in (tmp_path / "missing.pth", tmp_path / "missing" / "weights.pth"):
        with pytest.raises(FileNotFoundError):
            read_state(path)
    assert "without model.safetensors or pytorch_model.bin: name a file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert refusal(tmp_path / "fifo") == "it is no regular file"


@pytest.mark.filterwarnings("ignore")
def test_other_archives(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "clip.pt")
    message = refusal(tmp_path / "clip.pt")
    assert message.startswith(
        "it is a TorchScript program, not weights: where you trust it, torch.save("
    )
    command = message.partition("it, ")[2].partition(" makes")[0]
    names = dict(torch=torch, FILE=tmp_path / "clip.pt", OUT=tmp_path / "weights.pth")
    eval(command, names)  # what the message says to do helps
    assert read_state(tmp_path / "weights.pth").keys() == {"weight", "bias"}
    np.savez(tmp_path / "jax.npz", w=np.ones(2))
    assert (
        refusal(tmp_path / "jax.npz")
        == "it is a NumPy archive (.npz, as of JAX), which is not read"
    )
    with zipfile.ZipFile(tmp_path / "notes.zip", "w") as archive:
        archive.writestr("notes/a.txt", "a")
    assert refusal(tmp_path / "notes.zip") == "it is a zip archive, but none of torch.save"


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_short(kind, tmp_path):
    KINDS[kind](tmp_path / "weights", STATE)
    data = (tmp_path / "weights").read_bytes()
    step = max(1, len(data) // 40)
    for length in (*range(0, 100, 7), *range(100, len(data), step), len(data) - 1):
        (tmp_path / "weights").write_bytes(data[:length])
        assert refusal(tmp_path / "weights")


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.ones(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        (torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8), "_rebuild_qtensor"),
        (torch.ones(2, device="meta"), "_rebuild_meta_tensor_no_storage"),
        (torch.ones(2).to(torch.float8_e4m3fn), "torch._utils._rebuild_tensor_v3"),
    ],
)
def test_tensors_of_another_kind(tensor, kind, tmp_path):
    torch.save({"w": tensor}, tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth")
    assert "its pickle names torch." in message
    assert kind in message
    assert "save its tensors alone" in message


@pytest.mark.parametrize("kind", ["torch", "legacy", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_numbers(kind, dtype, tmp_path):
    if (kind, dtype) != ("safetensors", torch.complex128):  # which it cannot write
        KINDS[kind](tmp_path / "w", {"w": torch.ones(2, dtype=dtype)})
        expected = f"w is {dtype}, not dense floating-point or whole numbers"
        assert refusal(tmp_path / "w") == expected.replace("torch.", "")


@pytest.mark.parametrize("kind", ["torch", "pickle 4"])
def test_containers_that_are_not_known_are_named(kind, tmp_path):
    """Not "holds no tensors": which of them is the model is for the user to know."""
    parts = dict(generator={"w": torch.ones(2)}, critic={"w": torch.ones(3)}, epoch=3)
    if kind == "torch":
        torch.save(parts, tmp_path / "w")
    else:
        arrays = {k: {"w": v["w"].numpy()} if k != "epoch" else v for k, v in parts.items()}
        (tmp_path / "w").write_bytes(pickle.dumps(arrays, protocol=4))
    assert refusal(tmp_path / "w") == (
        "its tensors lie in generator, critic: save the one that is the model alone, as "
        "torch.save(checkpoint[NAME], OUT)"
    )


def test_safetensors_of_another_type(tmp_path):
    state = {"w": torch.ones(2).to(torch.float8_e4m3fn)}
    safetensors.torch.save_file(state, tmp_path / "w")
    expected = "w is float8_e4m3fn, not dense floating-point or whole numbers"
    assert refusal(tmp_path / "w") == expected


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a"]),
        np.array([None]),
        np.ones(2, complex),
        np.ones(2, ">f4"),
        np.ones(2, "f4,f4"),
    ],
)
def test_arrays_of_something_else(array, tmp_path):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": {"w": array}}))
    expected = "it has arrays of something else than numbers of this machine"
    assert refusal(tmp_path / "w.pkl") == expected


@pytest.mark.parametrize("key", ["two\nlines", "\x1b[31m", "x" * 1025])
@pytest.mark.parametrize("kind", ["torch", "pickle 4", "safetensors"])
def test_keys_that_are_no_names(key, kind, tmp_path):
    KINDS[kind](tmp_path / "w", {key: torch.ones(1)})
    assert "no name" in refusal(tmp_path / "w")


@pytest.fixture
def vit() -> dict[str, torch.Tensor]:
    sizes = dict(image_size=32, patch_size=16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32)
    return VisionTransformer(**sizes).state_dict()


_MLP = "encoder.layers.encoder_layer_0.mlp.0.weight"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "blocks.0.mlp.fc1.weight has 1 values that are NaN or infinite"),
        (float("inf"), "blocks.0.mlp.fc1.weight has 1 values that are NaN or infinite"),
        (-float("inf"), "blocks.0.mlp.fc1.weight has 1 values that are NaN or infinite"),
        (torch.int64, "blocks.0.mlp.fc1.weight is torch.int64, not torch.float32"),
        (None, ""),
    ],
)
def test_load_encoder_takes_finite_floating_point_numbers(kind, value, message, vit, tmp_path):
    if isinstance(value, torch.dtype):
        vit[_MLP] = vit[_MLP].to(value)
    elif value is not None:
        vit[_MLP].view(-1)[3] = value
    path = tmp_path / "vit_b_16.pth"
    KINDS[kind](path, vit)
    encoder = ViT(**encoder_words(read(path)))
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    if not message:
        load_encoder(encoder, path, show=str)
        assert torch.equal(encoder.blocks[0].mlp.fc1.weight, vit[_MLP])
        return
    with pytest.raises(WeightsError) as error:
        load_encoder(encoder, path)
    assert str(error.value) == f"{path}: {message}"
    assert_same(encoder.state_dict(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_other_precisions_become_the_encoders(kind, vit, tmp_path):
    vit = {k: v.half() for k, v in vit.items()}
    KINDS[kind](tmp_path / "w", vit)
    encoder = ViT(**encoder_words(read(tmp_path / "w")))
    load_encoder(encoder, tmp_path / "w", show=str)
    assert torch.equal(encoder.blocks[0].mlp.fc1.weight, vit[_MLP].float())
