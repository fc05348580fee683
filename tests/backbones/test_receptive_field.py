"""Information crosses windows exactly where a strategy says: shown by gradients on the tokens."""

import pytest
import torch

from backbones import ViT

WINDOW, SIDE = 4, 16  # tokens


def reach(at: tuple[int, int], **words) -> torch.Tensor:
    """Which input tokens the output token at (row, column) depends on: bool (SIDE, SIDE)."""
    torch.manual_seed(0)
    net = ViT(
        img_size=SIDE * 16,
        embed_dim=16,
        num_heads=2,
        window_size=WINDOW,
        use_abs_pos=False,
        **words,
    )
    for parameter in net.parameters():  # zero-initialised norms would hide the conv blocks
        torch.nn.init.normal_(parameter, std=0.3)
    net.double()
    image = torch.randn(1, 3, SIDE * 16, SIDE * 16, dtype=torch.double, requires_grad=True)
    net(image)["last_feat"][0, :, at[0], at[1]].sum().backward()
    per_token = image.grad[0].abs().sum(0).reshape(SIDE, 16, SIDE, 16).sum((1, 3))
    return per_token > 0


def rectangle(rows: tuple[int, int], columns: tuple[int, int]) -> torch.Tensor:
    """Tokens from the first (included) to the last (excluded) row and column."""
    expected = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    expected[rows[0] : rows[1], columns[0] : columns[1]] = True
    return expected


@pytest.mark.parametrize("depth", [1, 4])
def test_windows_alone_never_let_anything_across(depth):
    expected = rectangle((4, 8), (8, 12))
    assert torch.equal(reach((5, 9), depth=depth, propagation="none"), expected)


def test_a_global_block_reaches_all_tokens():
    words = dict(depth=2, propagation="global", count=1)
    assert reach((5, 9), **words, placement="first").all()
    assert reach((5, 9), **words, placement="last").all()


@pytest.mark.parametrize(("conv_block", "radius"), [("naive", 1), ("basic", 2), ("bottleneck", 1)])
def test_a_conv_block_reaches_the_windows_its_kernels_touch(conv_block, radius):
    words = dict(depth=1, propagation="conv", count=1, conv_block=conv_block)
    # An inner token reaches no further than its window: the convs' taps are all in it.
    assert torch.equal(reach((5, 9), **words), rectangle((4, 8), (8, 12))) == (radius == 1)
    # A token at the window's corner touches the three windows around that corner.
    assert torch.equal(reach((4, 8), **words), rectangle((0, 8), (4, 12)))


def test_shifted_windows_reach_half_a_window_further():
    words = dict(depth=2, propagation="shifted")
    # Block 1 attends in the window of rows 2..5, columns 6..9, whose tokens have seen, in block 0,
    # the windows of rows 0..7 and columns 4..11.
    assert torch.equal(reach((5, 9), **words), rectangle((0, 8), (4, 12)))


def test_shifted_windows_do_not_wrap_around():
    words = dict(depth=2, propagation="shifted")
    # The window of the first two rows holds the last two rows as well, masked.
    assert torch.equal(reach((0, 0), **words), rectangle((0, 4), (0, 4)))
    assert torch.equal(reach((15, 1), **words), rectangle((12, 16), (0, 4)))
