"""Windows and shifted windows against their definition and torchvision's Swin."""

import pytest
import torch
from torchvision.models.swin_transformer import shifted_window_attention

from backbones import Partition, ShiftedWindows, Windows
from backbones.attention import ATTENTION, Attention
from backbones.partition import pad_tokens


@pytest.mark.parametrize(
    "partition", [Partition(), Windows(5), ShiftedWindows(5), ShiftedWindows(4)]
)
@pytest.mark.parametrize("size", [(5, 5), (10, 15), (12, 7), (3, 20)])
def test_join_undoes_split(partition, size):
    padded = partition.padded_size(*size)
    x = torch.randn(2, *padded, 3)
    groups = partition.split(x)
    assert groups.shape[1:3] == partition.group_size(*padded)
    assert torch.equal(partition.join(groups, *padded), x)


def test_windows_are_the_squares_of_the_map():
    x = torch.arange(2 * 8 * 12).reshape(2, 8, 12, 1)
    groups = Windows(4).split(x)
    assert torch.equal(groups[0], x[0, :4, :4])
    assert torch.equal(groups[2], x[0, :4, 8:])
    assert torch.equal(groups[6], x[1, :4, :4])


@pytest.mark.parametrize(
    "partition", [Partition(), Windows(5), ShiftedWindows(5), ShiftedWindows(4)]
)
@pytest.mark.parametrize("size", [(5, 5), (12, 7)])
def test_index_is_what_split_does(partition, size):
    """Token numbers, -1 for padding; None where nothing moves."""
    index = partition.index(*size, "cpu")
    tokens = torch.arange(size[0] * size[1])
    if index is None:
        assert partition.is_global
        return
    assert torch.equal(index[index >= 0].sort().values, tokens)
    padded = pad_tokens(tokens.reshape(1, *size, 1), partition.padded_size(*size), tokens[-1:] - 99)
    expected = partition.split(padded).flatten(1)
    assert torch.equal(index.clamp(min=0) * (index >= 0), expected * (expected >= 0))
    assert torch.equal(index < 0, expected < 0)


class Rolled(Windows):
    """Says `split` alone."""

    def split(self, x_BHWC):
        return super().split(x_BHWC.roll((1, 2), (1, 2)))


class Halves(Partition):
    """Of the map, without windows."""

    def padded_size(self, H, W):
        return H + H % 2, W

    def split(self, x_BHWC):
        return x_BHWC.unflatten(1, (2, -1)).flatten(0, 1)


@pytest.mark.parametrize("partition", [Rolled(5), Halves()])
@pytest.mark.parametrize("size", [(5, 5), (12, 7)])
def test_the_rest_follows_from_split(partition, size):
    test_join_undoes_split(partition, size)
    test_index_is_what_split_does(partition, size)
    assert not partition.is_global
    padded = partition.padded_size(*size)
    assert partition.join(partition.split(torch.ones(0, *padded, 3)), *padded).shape[0] == 0


def test_a_mask_of_ones_own_is_refused_and_not_ignored():
    with pytest.raises(TypeError, match="Own overrides mask, which follows from labels"):
        type("Own", (Partition,), {"mask": lambda *_: None})


def test_a_partition_says_whether_it_is_global():
    class Labelled(Partition):
        def labels(self, H, W, device):
            return torch.zeros(1, H * W, dtype=torch.long, device=device)

    class Named(Partition):
        word = "whole map"

    found = [x.is_global for x in (Partition(), Windows(4), ShiftedWindows(4), Labelled(), Named())]
    assert found == [True, False, False, False, True]


@pytest.mark.parametrize("kernel", ATTENTION)
@pytest.mark.parametrize("size", [(8, 8), (12, 20), (8, 4), (10, 13)])
def test_shifted_windows_are_swins(size, kernel):
    """Same attention as torchvision's, which shifts, pads and masks in its own way."""
    torch.manual_seed(0)
    dim, heads, window = 16, 2, 4
    attention = Attention(dim, heads, ShiftedWindows(window), (8, 8), attention=kernel)
    x = torch.randn(2, *size, dim)
    theirs = shifted_window_attention(
        x,
        attention.qkv.weight,
        attention.proj.weight,
        torch.zeros(1, heads, window**2, window**2),
        [window, window],
        heads,
        shift_size=[window // 2, window // 2],
        qkv_bias=attention.qkv.bias,
        proj_bias=attention.proj.bias,
    )
    torch.testing.assert_close(attention(x), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kernel", ATTENTION)
def test_relative_positions_and_mask_together(kernel):
    """A masked token has no influence, whatever its relative position says."""
    torch.manual_seed(0)
    attention = Attention(
        8,
        2,
        ShiftedWindows(4),
        (8, 8),
        use_rel_pos=True,
        rel_pos_zero_init=False,
        attention=kernel,
    ).double()
    x = torch.randn(1, 8, 8, 8, dtype=torch.double, requires_grad=True)
    attention(x)[0, 0, 0].sum().backward()
    seen = x.grad[0].abs().sum(-1) > 0
    assert seen[:2, :2].all()
    assert seen.sum() == 4
