"""The effective receptive field is what can be calculated, and ends where a strategy does."""

import numpy as np
import pandas as pd
import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.layers import ShapeSpec
from torch import nn

from analysis import receptive_field
from analysis.receptive_field import ReceptiveField
from backbones import LayerNorm2d, build_encoder
from experiments.errors import UserError
from experiments.recipe import config
from tests.analysis.conftest import runs_of


class Convolution(nn.Module):
    """An encoder whose receptive field is known: one convolution, and what is put behind it."""

    def __init__(self, kernel: torch.Tensor, stride: int, behind: nn.Module):
        super().__init__()
        self.kernel, self.stride, self.behind = kernel, stride, behind

    def forward(self, x):
        out = nn.functional.conv2d(x, self.kernel, stride=self.stride)
        return {"first": x, "last": self.behind(out)}

    def output_shape(self):
        return {"first": ShapeSpec(stride=1), "last": ShapeSpec(stride=self.stride)}


@pytest.fixture(scope="module")
def kernel() -> torch.Tensor:
    """256 channels of 3 x 8 x 8 pixels: the further down and right, the larger."""
    torch.manual_seed(0)
    ramp = torch.arange(1.0, 9)
    return torch.randn(256, 3, 8, 8) * ramp[:, None] * ramp


def test_of_a_convolution_it_is_the_kernel(kernel):
    torch.manual_seed(1)
    images = torch.randn(200, 3, 32, 40)
    field = receptive_field.compute(Convolution(kernel, 8, nn.Identity()), images)
    # 4 x 5 tokens: no plain ViT, so the token is the one in the centre, row 2, column 2.
    expected = np.zeros((32, 40))
    # The mean of |sum of c random signs times weights| tends to their root of the sum of squares.
    expected[16:24, 16:24] = kernel.square().sum(0).sqrt().sum(0)
    expected /= expected.sum()
    assert (field.share > 0).tolist() == (expected > 0).tolist()
    assert field.share.sum() == pytest.approx(1)
    assert np.abs(field.share - expected).max() < 0.1 * expected.max()
    assert np.isnan(field.outside)
    assert field.by_distance.sum() == pytest.approx(1)
    assert field.by_distance[6:].sum() == 0  # the centre of the furthest pixel is 4.9 away
    assert field.radius(1.0) == pytest.approx(5)


def test_a_norm_at_the_end_hides_nothing(kernel):
    torch.manual_seed(1)
    images = torch.randn(64, 3, 32, 32)
    bare = receptive_field.compute(Convolution(kernel, 8, nn.Identity()), images)
    normed = Convolution(kernel, 8, LayerNorm2d(256))
    assert np.abs(receptive_field.compute(normed, images).share - bare.share).max() < 2e-3
    # The usual sum of channels is that of the norm's bias.
    x = images.clone().requires_grad_()
    plain = torch.autograd.grad(normed(x)["last"][:, :, 2, 2].sum(), x)[0].abs().sum()
    x = images.clone().requires_grad_()
    signs = torch.randint(0, 2, (64, 256)) * 2.0 - 1
    ours = torch.autograd.grad((normed(x)["last"][:, :, 2, 2] * signs).sum(), x)[0].abs().sum()
    assert plain < 1e-3 * ours


def test_the_radius_of_known_shares():
    field = ReceptiveField(
        np.full((2, 2), 0.25), np.array([0.25, 0.5, 0.0, 0.25]), np.zeros(4), np.array(1.0)
    )
    assert field.radius(0.25) == pytest.approx(1)
    assert field.radius(0.5) == pytest.approx(1.5)
    assert field.radius(0.75) == pytest.approx(2)
    assert field.radius(0.9) == pytest.approx(3.6)


@pytest.mark.parametrize("stem", ["patchify", "conv"])
@pytest.mark.parametrize("propagation", ["none", "global", "conv", "shifted"])
def test_strategies_reach_outside_the_window(propagation, stem):
    torch.manual_seed(0)
    encoder = build_encoder("vit-mini", propagation=propagation, stem=stem).eval()
    for parameter in encoder.parameters():  # zero-initialised norms would hide the conv blocks
        nn.init.normal_(parameter, std=0.2)
    field = receptive_field.compute(encoder, torch.randn(16, 3, 152, 112))
    # Of 19 x 14 tokens of 8 px, row 9, column 7 is in the window of rows 8..11, columns 4..7. The
    # stem's convolutions see 7 px more above and to the left.
    more = 7 if stem == "conv" else 0
    assert field.window.tolist() == [64 - more, 32 - more, 96, 64]
    assert float(field.window_side) == 32
    top, left, bottom, right = field.window.astype(int)
    assert (field.share[top:bottom, left:right] > 0).all()  # 16 images: every token of the window
    assert field.share.sum() == pytest.approx(1)
    if propagation == "none":
        assert field.outside == 0
    else:
        assert 0.001 < field.outside < 1
    if propagation == "global":
        assert (field.share > 0).all()
    assert 0 < field.radius(0.5) < field.radius(0.9)


def test_images_count_alike_and_results_repeat():
    """Of squared pixels: a brighter image has larger gradients."""

    class Squares(Convolution):
        def forward(self, x):
            return super().forward(x.square())

    torch.manual_seed(0)
    encoder = Squares(torch.randn(1, 3, 8, 8), 8, nn.Identity())
    images = torch.rand(2, 3, 16, 16) * torch.tensor([1.0, 100])[:, None, None, None]
    both, *alone = (receptive_field.compute(encoder, i) for i in (images, images[:1], images[1:]))
    assert [field.share.sum() for field in alone] == pytest.approx([1, 1])
    assert np.allclose(both.share, (alone[0].share + alone[1].share) / 2)
    assert not np.allclose(both.share, alone[1].share, rtol=0.1)
    assert np.array_equal(receptive_field.compute(encoder, images).share, both.share)


def test_the_token_of_one_image_is_in_the_middle_of_its_window():
    torch.manual_seed(0)
    encoder = build_encoder("vit-mini", stem="patchify").eval()
    field = receptive_field.compute(encoder, torch.randn(1, 3, 128, 128))
    assert [place // 8 for place in divmod(int(field.share.argmax()), 128)] == [10, 10]


def test_what_was_computed_is_kept_until_the_weights_change(trained_run, monkeypatch):
    first = receptive_field.of_run(trained_run, images=2)
    assert (trained_run / "receptive_field.npz").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(receptive_field, "encoder_and_images", None)
        again = receptive_field.of_run(trained_run, images=2)
    assert np.array_equal(first.share, again.share)
    assert (first.outside, first.radius(0.5)) == (again.outside, again.radius(0.5))

    state = torch.load(trained_run / "model_final.pth", weights_only=True)
    for tensor in state["model"].values():
        if tensor.is_floating_point():
            tensor *= 1.5
    torch.save(state, trained_run / "model_final.pth")
    assert not np.array_equal(receptive_field.of_run(trained_run, images=2).share, first.share)


def test_what_is_missing_is_said_in_a_line(trained_run, small_set):
    cfg = config.load(trained_run / "config.yaml")
    for dataset, message in (
        (small_set["val"].replace("val.json", "no.json"), r"cannot read .*no\.json: No such file"),
        (small_set["val"] + "s", r"cannot read the image .*/vals/0\.bmp: No such file"),
    ):
        cfg.dataloader.test.dataset = dataset
        LazyConfig.save(cfg, str(trained_run / "config.yaml"))
        with pytest.raises(UserError, match=message):
            receptive_field.of_run(trained_run)
    cfg.model.backbone.update(propagation="conv", count=3)
    cfg.dataloader.test.dataset = small_set["val"]
    LazyConfig.save(cfg, str(trained_run / "config.yaml"))
    with pytest.raises(UserError, match="residual"):  # weights of another encoder
        receptive_field.of_run(trained_run)
    (trained_run / "config.yaml").unlink()
    with pytest.raises(UserError, match="no config at"):
        receptive_field.of_run(trained_run)
    (trained_run / "model_final.pth").unlink()
    with pytest.raises(UserError, match=r"no checkpoint at .*model_final\.pth") as caught:
        receptive_field.of_run(trained_run)
    assert "\n" not in str(caught.value)


def test_picture(trained_run, tmp_path):
    written = receptive_field.picture(runs_of(trained_run, trained_run), tmp_path / "field")
    assert [path.name for path in written] == ["field.png", "field.svg", "field.csv"]
    table = pd.read_csv(written[2])
    assert table["variant"].tolist() == ["a", "b"]
    field = receptive_field.of_run(trained_run)
    assert table["outside_window"].tolist() == pytest.approx([field.outside] * 2)
    assert table["radius_90_px"].tolist() == pytest.approx([field.radius(0.9)] * 2)
    svg = written[1].read_text()
    assert f"{100 * field.outside:.1f} % outside its window" in svg
    assert svg.count('class="tip"') == 2
    assert receptive_field.picture(runs_of(), tmp_path / "nothing") == []
    assert not list(tmp_path.glob("nothing*"))


def test_a_large_image_is_shown_by_means_of_its_pixels():
    share = np.random.default_rng(0).random((300, 200)).astype(np.float32)
    shown = receptive_field._shown(share)
    assert shown.shape == (100, 67)  # squares of 3, those of the last column of 3 x 2 pixels
    assert shown[7, 5] == pytest.approx(share[21:24, 15:18].mean())
    assert shown[7, 66] == pytest.approx(share[21:24, 198:200].mean())
    assert np.array_equal(receptive_field._shown(share[:128, :100]), share[:128, :100])
