"""Every kernel computes the reference: outputs and gradients, in every setting it can meet."""

import copy
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from backbones import Rope, ShiftedWindows, ViT, Windows, build_encoder, kernels
from backbones.attention import Attention
from backbones.kernels import cpu_attention, linear_layers
from backbones.partition import Partition

SMALL = dict(img_size=256, embed_dim=48, depth=4, num_heads=4, window_size=5)
STRATEGIES = ["none", "global", "conv", "shifted"]
# Square; not square; a map of 11 x 19 tokens, no multiple of the window of 5; sides that are no
# multiple of the patch; one token.
IMAGES = [(256, 256), (160, 320), (176, 304), (250, 199), (16, 16)]


def normal_weights(net: torch.nn.Module) -> torch.nn.Module:
    """No parameter at zero, where a wrong gradient could hide."""
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net


def twins(**words) -> tuple[ViT, ViT]:
    torch.manual_seed(0)
    fused = normal_weights(ViT(**{**SMALL, **words}))
    reference = ViT(**{**SMALL, **words}, attention="reference")
    reference.load_state_dict(fused.state_dict(), strict=True)
    return fused, reference


def outputs_and_gradients(net, image) -> dict[str, torch.Tensor]:
    image = image.clone().requires_grad_()
    out = net(image)
    out = out["last_feat"] if isinstance(out, dict) else out
    torch.manual_seed(1)
    (out * torch.randn_like(out)).sum().backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    net.zero_grad()
    return {"output": out.detach(), "image": image.grad, **gradients}


def assert_same(found: dict, expected: dict, tolerance: float):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= tolerance * value.abs().max(), name


@pytest.mark.parametrize("size", IMAGES)
@pytest.mark.parametrize("rel_pos", [False, True])
@pytest.mark.parametrize("propagation", STRATEGIES)
def test_fused_is_the_reference(propagation, rel_pos, size):
    fused, reference = twins(propagation=propagation, use_rel_pos=rel_pos)
    image = torch.randn(2, 3, *size)
    assert_same(outputs_and_gradients(fused, image), outputs_and_gradients(reference, image), 1e-5)


def test_a_large_map_is_torchs_kernels():
    """32 x 34 tokens without relative positions, in global blocks."""
    fused, reference = twins(img_size=512)
    image = torch.randn(2, 3, 512, 544)
    assert_same(outputs_and_gradients(fused, image), outputs_and_gradients(reference, image), 1e-5)
    with torch.no_grad():
        assert fused(image[:0])["last_feat"].shape == (0, 48, 32, 34)


@pytest.mark.parametrize("window", [1, 2, 7, 16, 40])
@pytest.mark.parametrize("propagation", ["none", "shifted"])
def test_every_window_size(propagation, window):
    if propagation == "shifted" and window == 1:
        pytest.skip("windows of one token cannot be shifted")
    fused, reference = twins(propagation=propagation, window_size=window, use_rel_pos=True)
    image = torch.randn(1, 3, 176, 304)
    assert_same(outputs_and_gradients(fused, image), outputs_and_gradients(reference, image), 1e-5)


@pytest.mark.parametrize("propagation", ["global", "shifted"])
@pytest.mark.parametrize("chunk", [1, 10_000, 100_000, 2**40])
def test_how_the_work_is_cut_changes_nothing(chunk, propagation, monkeypatch):
    """From a row of queries at a time to everything at once, padding and masks among it."""
    monkeypatch.setattr(cpu_attention, "_CHUNK_BYTES", chunk)
    monkeypatch.setattr(cpu_attention, "_ALL_CHUNKS_BYTES", chunk)
    monkeypatch.setattr(linear_layers, "_HIDDEN_BYTES", chunk)
    fused, reference = twins(propagation=propagation, use_rel_pos=True)
    image = torch.randn(3, 3, 176, 304)
    assert_same(outputs_and_gradients(fused, image), outputs_and_gradients(reference, image), 1e-5)
    with torch.no_grad():
        found, expected = fused(image)["last_feat"], reference(image)["last_feat"]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


class Scattered(Partition):
    """A user's: tokens in an order of their own, padding among them."""

    def padded_size(self, H, W):
        return H + 1, W + 2

    def split(self, x_BHWC):
        order = torch.randperm(x_BHWC.shape[1] * x_BHWC.shape[2], generator=self.generator())
        return x_BHWC.flatten(1, 2)[:, order].view_as(x_BHWC)

    def join(self, x_GhwC, H, W):
        order = torch.randperm(H * W, generator=self.generator())
        return x_GhwC.flatten(1, 2)[:, order.argsort()].view_as(x_GhwC)

    def generator(self):
        return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("kernel", ["_chunked", "_folded"])
def test_a_partition_of_ones_own(kernel):
    torch.manual_seed(0)
    attention = normal_weights(Attention(16, 2, Scattered(), (9, 9), use_rel_pos=True))
    x = torch.randn(2, 6, 7, 16)
    turning = Attention(16, 2, Scattered(), (9, 9), rope=Rope(4), attention="reference")
    expected = outputs_and_gradients(normal_weights(turning), x)
    turning.attention = "fused"
    assert_same(outputs_and_gradients(turning, x), expected, 1e-5)
    results = []
    for name in (kernel, "_reference"):
        attention.forward = partial(getattr(attention, name), partition=attention.partition)
        results.append(outputs_and_gradients(attention, x))
    assert_same(*results, 1e-5)


def test_frozen_parameters_and_no_images():
    fused, reference = twins(propagation="shifted", use_rel_pos=True)
    for net in (fused, reference):
        for name, parameter in net.named_parameters():
            parameter.requires_grad_("rel_pos" not in name and "qkv" not in name)
    image = torch.randn(1, 3, 176, 304)
    results = []
    for net in (fused, reference):
        net(image)["last_feat"].square().sum().backward()
        results.append({n: p.grad for n, p in net.named_parameters() if p.requires_grad})
        assert all(p.grad is None for p in net.parameters() if not p.requires_grad)
        assert net(image[:0])["last_feat"].shape == (0, 48, 11, 19)
        with torch.no_grad():
            assert net(image[:0])["last_feat"].shape == (0, 48, 11, 19)
    assert_same(*results, 1e-5)


def test_a_model_in_bfloat16():
    """Without autocast."""
    fused, reference = twins(propagation="global", use_rel_pos=True)
    image = torch.randn(1, 3, 176, 304)
    exact = reference(image)["last_feat"]
    rough = fused.bfloat16()(image.bfloat16())["last_feat"]
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).norm() <= 0.05 * exact.norm()


def test_derivatives_by_torch_func():
    """First ones are right; what the kernel has not (forward mode, second) is refused."""
    fused, reference = twins(propagation="none", depth=1, use_rel_pos=True)
    image = torch.randn(1, 3, 96, 96)

    def loss(net):
        return lambda x: net(x)["last_feat"].square().mean()

    found, expected = (torch.func.grad(loss(net))(image) for net in (fused, reference))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.func.jvp(loss(fused), (image,), (image,))
    leaf = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(fused)(leaf), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("images", [1, 2])
def test_a_gradient_in_any_memory_layout(images):
    qkv = torch.randn(images, 6, 24, requires_grad=True)
    out = kernels.chunked_attention(qkv, None, None, None, None, 2, 2, 3)
    grad = torch.randn(8, images, 6).permute(1, 2, 0)
    found, expected = (
        torch.autograd.grad(out, qkv, g, retain_graph=True)[0] for g in (grad, grad.contiguous())
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_the_operators_keep_torchs_rules(size):
    """`opcheck`: schema, fake tensors, and no hidden aliasing."""
    torch.manual_seed(0)
    partition = ShiftedWindows(3)
    H, W = size[0] // 16, size[1] // 16
    h, w = partition.size, partition.size
    qkv, pad = torch.randn(2, H * W, 24), torch.randn(24)
    padded = partition.padded_size(H, W)
    others = (
        pad if padded != (H, W) else None,
        partition.index(H, W, "cpu"),
        torch.randn(2 * (2 * h - 1), 4),
        partition.mask(*padded, "cpu"),
        2,
        h,
        w,
    )
    torch.library.opcheck(cpu_attention._forward, (qkv, *others))
    torch.library.opcheck(cpu_attention._backward, (torch.randn(2, H * W, 8), qkv, *others))


@pytest.mark.parametrize("partition", [Partition(), Windows(3), ShiftedWindows(4)])
def test_gradients_are_derivatives(partition):
    """In float64, against finite differences: padding, mask and relative positions at once."""
    torch.manual_seed(0)
    attention = Attention(4, 2, partition, (5, 7), use_rel_pos=True)
    attention = normal_weights(attention).double()
    x = torch.randn(2, 5, 7, 4, dtype=torch.double, requires_grad=True)
    names, parameters = zip(*attention.named_parameters(), strict=True)

    def function(x, *parameters):
        return torch.func.functional_call(
            attention, dict(zip(names, parameters, strict=True)), (x,)
        )

    assert torch.autograd.gradcheck(function, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
@pytest.mark.parametrize("rel_pos", [False, True])
@pytest.mark.parametrize("partition", [Partition(), Windows(14), ShiftedWindows(7)])
def test_the_kernel_for_gpus_is_the_reference(partition, rel_pos, size):
    """`folded` is what runs on a GPU; here the same lines run on a CPU."""
    torch.manual_seed(0)
    words = dict(use_rel_pos=rel_pos, rel_pos_zero_init=False)
    attention = normal_weights(Attention(32, 2, partition, (20, 20), **words))
    x = torch.randn(2, size[0] // 4, size[1] // 4, 32)
    results = []
    for kernel in (attention._folded, attention._reference):
        attention.forward = partial(kernel, partition=attention.partition)
        results.append(outputs_and_gradients(attention, x))
    assert_same(*results, 1e-5)


@pytest.mark.parametrize("propagation", STRATEGIES)
@pytest.mark.parametrize("kernel", ["_chunked", "_folded"])
def test_bfloat16_errs_no_more_than_the_reference(kernel, propagation, monkeypatch):
    """Both against the reference in float64: root mean square over the output and gradients."""
    if kernel == "_folded":
        monkeypatch.setattr(Attention, "_chunked", Attention._folded)
    fused, reference = twins(propagation=propagation, use_rel_pos=True)
    image = torch.randn(1, 3, 256, 256)
    errors = {}
    exact = outputs_and_gradients(copy.deepcopy(reference).double(), image.double())
    for name, net in (("fused", fused), ("reference", reference)):
        with torch.autocast("cpu", torch.bfloat16):
            rough = outputs_and_gradients(net, image)
        errors[name] = {
            key: ((rough[key] - value).norm() / value.norm()).item() for key, value in exact.items()
        }
    # Equal but for the luck of rounding, of which one output averages away more than gradients do.
    assert errors["fused"]["output"] <= 1.01 * errors["reference"]["output"]
    mean = {name: sum(e.values()) / len(e) for name, e in errors.items()}
    assert mean["fused"] <= 1.1 * mean["reference"]


def test_dropped_paths_are_the_same_ones():
    fused, reference = twins(propagation="global", use_rel_pos=True, drop_path_rate=0.5)
    image = torch.randn(4, 3, 96, 96)
    results = []
    for net in (fused, reference):
        torch.manual_seed(3)
        results.append(outputs_and_gradients(net.train(), image))
    assert_same(*results, 1e-5)


@pytest.mark.parametrize("propagation", STRATEGIES)
def test_activation_checkpointing(propagation):
    """By the encoder's own switch, and around the encoder from outside."""
    words = dict(propagation=propagation, use_rel_pos=True, drop_path_rate=0.3)
    plain, _ = twins(**words)
    saving = ViT(**SMALL, **words, use_act_checkpoint=True)
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 176, 304)
    results = []
    for net in (plain, saving, _Checkpointed(plain)):
        torch.manual_seed(3)
        found = outputs_and_gradients(net.train(), image)
        results.append({name.removeprefix("net."): value for name, value in found.items()})
    assert_same(results[1], results[0], 1e-6)
    assert_same(results[2], results[0], 1e-6)


class _Checkpointed(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=False)


# What torch.compile and torch.export see is the same for "conv" as for "none", plus a conv.
# torch 2.8 on a CPU computes gradients of its attention in another layout than it told autograd.
_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
_OLD = pytest.mark.xfail(_VERSION < (2, 15), reason="torch's own attention, compiled")


@pytest.mark.parametrize("kernel", ["_chunked", pytest.param("_folded", marks=_OLD)])
@pytest.mark.parametrize("propagation", ["global", "shifted"])
def test_compiles_without_a_graph_break(propagation, kernel, monkeypatch):
    """Forward and backward; `fullgraph` raises at a break. aot_eager: without inductor's C++."""
    if kernel == "_folded":
        monkeypatch.setattr(Attention, "_chunked", Attention._folded)
    torch._dynamo.reset()
    net, _ = twins(propagation=propagation, use_rel_pos=True, depth=2)
    image = torch.randn(1, 3, 176, 304)
    expected = outputs_and_gradients(net, image)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    found = outputs_and_gradients(compiled, image)
    found = {name.removeprefix("_orig_mod."): value for name, value in found.items()}
    assert_same(found, expected, 1e-5)


@pytest.mark.parametrize("propagation", STRATEGIES)
def test_exports(propagation):
    net, reference = twins(propagation=propagation, use_rel_pos=True)
    net.eval(), reference.eval()
    image = torch.randn(1, 3, 250, 199)
    program = torch.export.export(net, (image,))
    found, expected = program.module()(image)["last_feat"], reference(image)["last_feat"]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def largest_allocation(net, image) -> int:
    """Bytes of the largest tensor that comes into being in a forward and backward pass."""
    with torch.profiler.profile(profile_memory=True) as profile:
        net(image)["last_feat"].sum().backward()
    return max(event.cpu_memory_usage for event in profile.events() if not event.cpu_children)


def test_no_tensor_of_all_scores(monkeypatch):
    """64 x 64 tokens, one head: the scores would be 64 MiB; weights and maps are less than 4."""
    monkeypatch.setattr(cpu_attention, "_ALL_CHUNKS_BYTES", 2**20)
    words = dict(depth=1, num_heads=1, embed_dim=32, propagation="global", count=1)
    scores = 4096**2 * 4
    allocated = {}
    for attention in ("fused", "reference"):
        net = ViT(img_size=1024, use_rel_pos=True, attention=attention, **words)
        image = torch.randn(1, 3, 1024, 1024)
        allocated[attention] = largest_allocation(net, image)
    assert allocated["reference"] >= scores
    assert allocated["fused"] <= scores // 8


@pytest.mark.slow
@pytest.mark.parametrize("propagation", ["global", "shifted"])
def test_vit_b_at_1024_pixels(propagation):
    """The published size: last map and gradients within 1e-4 of their scale, in float32."""
    torch.manual_seed(0)
    words = dict(use_rel_pos=True, rel_pos_zero_init=False, propagation=propagation)
    fused = build_encoder("vit-b", **words)
    reference = build_encoder("vit-b", **words, attention="reference")
    reference.load_state_dict(fused.state_dict())
    image = torch.randn(1, 3, 1024, 1024)
    assert_same(outputs_and_gradients(fused, image), outputs_and_gradients(reference, image), 1e-4)
