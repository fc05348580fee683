"""Linear layers of maps: torch's own function, whichever library computes it."""

import pytest
import torch
from torch import nn

from backbones.kernels import Linear


def gradients(layer: nn.Linear, x: torch.Tensor, autocast: bool) -> list[torch.Tensor]:
    """Output, and gradients of input, weight and bias as far as they have one."""
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = layer(x)
    generator = torch.Generator().manual_seed(1)
    out.backward(torch.randn(out.shape, generator=generator).to(out.dtype))
    return [out, x.grad, *(p.grad for p in layer.parameters() if p.requires_grad)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "autocast"])
def test_gradients_err_no_more_than_torchs_layer(kind, trained, bias):
    torch.manual_seed(0)
    x, ours = torch.randn(2, 9, 7, 24), Linear(24, 40, bias=bias)
    theirs = nn.Linear(24, 40, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    exact = nn.Linear(24, 40, bias=bias).double()
    exact.load_state_dict(ours.state_dict())
    layers = [ours, theirs, exact]
    if kind == "bfloat16":
        x = x.bfloat16()
        layers = [ours.bfloat16(), theirs.bfloat16(), exact.bfloat16().double()]
    for layer in layers:
        layer.weight.requires_grad_(trained)
    found, peers = (gradients(layer, x, kind == "autocast") for layer in layers[:2])
    for a, b, c in zip(found, peers, gradients(exact, x.double(), False), strict=True):
        assert a.dtype == b.dtype
        error, allowed = (a.double() - c).norm(), (b.double() - c).norm()
        assert error <= 1.2 * allowed + 1e-6 * c.norm()


def test_second_derivatives_of_a_map_in_bfloat16():
    layer, x = Linear(4, 4).bfloat16(), torch.randn(1, 2, 2, 4).bfloat16().requires_grad_()
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    grad.sum().backward()
    with torch.no_grad():
        expected = 2 * layer.weight.T @ layer.weight.sum(1)
    torch.testing.assert_close(x.grad[0, 0, 0], expected, atol=0.05, rtol=0.05)
