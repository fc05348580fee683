"""Effective receptive field: which pixels the tokens of a trained encoder's last map depend on.

As in arXiv:1701.04128, section 3: the absolute gradient of a token with respect to the input image,
summed over colors, each image's scaled to a sum of 1, mean over validation images. Two choices are
this suite's own.

- What is derived is the sum of the token's channels, each with a random sign, where their plain sum
  is usual. A LayerNorm at an encoder's end, as in Swin, MViTv2 and SAM's neck, holds that plain sum
  almost constant, whatever the image; with random signs no channel's gradient is lost.
- The tokens are those of the window in the map's centre, another in each image, evenly spread. Of a
  single token its place in the window would decide how far it sees: at a border one convolution
  shows it the next window, in the middle it is at the border of a shifted window. In an encoder
  that is no plain ViT, a square of a quarter of the map's side takes the window's place.
"""

import math
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.colors import LogNorm
from torch import Tensor, nn

from backbones import Encoder
from experiments.evaluation.kept import kept

from . import style
from .results import Results
from .style import plt
from .trained_encoders import IMAGES, digest, encoder_and_images, folders

_VERSION = 1  # of the file; raise it when what is computed changes
_DECADES = 4  # of the color scale
_SHOWN = 128  # squares along a picture's side; of larger images each is the mean of some pixels


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """Of one trained encoder."""

    share: np.ndarray  # (H, W) of the gradient, by pixel of the padded image; sums to 1
    by_distance: np.ndarray  # (R,) of the gradient, d to d + 1 pixels from the token's centre
    # Top, left, bottom, right in pixels, the last two excluded, of what the tokens of the window
    # in the centre see of the image before any attention: the window, and what a stem of
    # overlapping convolutions sees around it. NaN without windows.
    window: np.ndarray
    window_side: np.ndarray  # () pixels; NaN without windows

    @property
    def outside(self) -> float:
        """Share of the gradient outside of `window`; NaN without windows."""
        if np.isnan(self.window).any():
            return math.nan
        top, left, bottom, right = self.window.astype(int)
        outside = self.share.copy()
        outside[top:bottom, left:right] = 0
        return float(outside.sum())

    def radius(self, part: float) -> float:
        """Pixels around the token's centre that hold this part (0..1) of the gradient."""
        within = np.cumsum(self.by_distance)
        bin_ = int(np.searchsorted(within, part * within[-1]))
        before = within[bin_ - 1] if bin_ else 0.0
        return float(bin_ + (part * within[-1] - before) / self.by_distance[bin_])


def of_run(folder: str | Path, images: int = IMAGES) -> ReceptiveField:
    """Of the finished run in `folder`, on its own validation images, kept there.

    Raises:
        UserError: its weights, its config or its images are not there or do not fit.
    """
    folder = Path(folder)
    return ReceptiveField(
        **kept(
            folder / "receptive_field.npz",
            f"{_VERSION} {digest(folder, images)}",
            lambda: asdict(compute(*encoder_and_images(folder, images))),
        )
    )


def compute(encoder: nn.Module, images_BCHW: Tensor) -> ReceptiveField:
    """See the module's text.

    Args:
        encoder: detectron2 backbone whose last map is looked at.
        images_BCHW: as the encoder gets them.
    """
    signs = torch.Generator().manual_seed(0)

    def gradient(image_1CHW: Tensor, tokens_CN) -> np.ndarray:
        """Of tokens (of which `tokens_CN` makes channels first), absolute, summed over colors."""
        image_1CHW = image_1CHW.clone().requires_grad_()
        found_CN = tokens_CN(image_1CHW)
        sign_CN = torch.randint(0, 2, found_CN.shape, generator=signs).to(found_CN) * 2 - 1
        (grad_1CHW,) = torch.autograd.grad((found_CN * sign_CN).sum(), image_1CHW)
        return grad_1CHW[0].abs().sum(0).double().cpu().numpy()

    def last_map(image_1CHW: Tensor) -> Tensor:
        return list(encoder(image_1CHW).values())[-1][0]

    with torch.no_grad():
        rows, columns = last_map(images_BCHW[:1]).shape[1:]
    stride = list(encoder.output_shape().values())[-1].stride
    size = encoder.spec.window_size if isinstance(encoder, Encoder) else -(-rows // 4)
    top, left = rows // 2 // size * size, columns // 2 // size * size
    high, wide = min(size, rows - top), min(size, columns - left)

    H, W = images_BCHW.shape[2:]
    y_H1, x_1W = np.arange(H)[:, None] + 0.5, np.arange(W)[None, :] + 0.5
    share, by_distance = np.zeros((H, W)), np.zeros(math.ceil(math.hypot(H, W)))
    side = math.isqrt(len(images_BCHW))
    for i, image_CHW in enumerate(images_BCHW):
        row, column = divmod(i % side**2, side)
        row = top + (2 * row + 1) * high // (2 * side)
        column = left + (2 * column + 1) * wide // (2 * side)
        field = gradient(image_CHW[None], lambda x, r=row, c=column: last_map(x)[:, r, c])
        field /= field.sum() * len(images_BCHW)
        apart = np.hypot(y_H1 - (row + 0.5) * stride, x_1W - (column + 0.5) * stride)
        share += field
        by_distance += np.bincount(apart.astype(int).ravel(), field.ravel(), len(by_distance))

    window, window_side = np.full(4, math.nan), math.nan
    if isinstance(encoder, Encoder):
        own = (0, slice(top, top + size), slice(left, left + size))
        seen = sum(
            gradient(image_CHW[None], lambda x: encoder.patch_embed(x)[own])
            for image_CHW in images_BCHW
        )
        ys, xs = np.nonzero(seen.any(1))[0], np.nonzero(seen.any(0))[0]
        window = np.array([ys[0], xs[0], ys[-1] + 1, xs[-1] + 1], float)
        window_side = float(size * stride)
    return ReceptiveField(share.astype(np.float32), by_distance, window, np.array(window_side))


def picture(results: Results, path: Path) -> list[Path]:
    """The effective receptive field of each variant, mean over its seeds, side by side.

    Args:
        path: without suffix; .png, .svg, and .csv with the numbers of each run are written.

    Returns:
        The files written; none if no run has finished.

    Raises:
        UserError: as of `of_run`.
    """
    found: dict[str, list[ReceptiveField]] = {}
    rows = []
    for variant, seed, folder in folders(results):
        field = of_run(folder)
        found.setdefault(variant, []).append(field)
        rows.append(
            dict(
                variant=variant,
                seed=seed,
                outside_window=field.outside,
                radius_50_px=field.radius(0.5),
                radius_90_px=field.radius(0.9),
            )
        )
    if not rows:
        return []
    style.use()
    columns = min(4, len(found))
    lines = math.ceil(len(found) / columns)
    width = max(5.5, 3.1 * columns + 1.3)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(width, 3.4 * lines + 0.7),
        squeeze=False,
        layout="compressed",
    )
    table = pd.DataFrame(rows)
    shown = {v: _shown(np.mean([f.share for f in fields], 0)) for v, fields in found.items()}
    most = max(share.max() for share in shown.values())
    colors = plt.get_cmap("magma_r").with_extremes(bad="white")
    norm = LogNorm(most / 10**_DECADES, most)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (variant, fields) in zip(axes.flat, found.items(), strict=False):
        axis.set_axis_on()
        H, W = fields[0].share.shape
        image = axis.imshow(shown[variant], colors, norm, interpolation="none", extent=(0, W, H, 0))
        axis.grid(False)
        axis.set(xticks=(0, W), yticks=(0, H), xlabel="pixels")
        side = float(fields[0].window_side)
        if not math.isnan(side):
            axis.vlines(np.arange(side, W, side), 0, H, color="0.5", linewidth=0.5)
            axis.hlines(np.arange(side, H, side), 0, W, color="0.5", linewidth=0.5)
        mean = table[table["variant"] == variant].mean(numeric_only=True)
        numbers = "50 % within {radius_50_px:.0f} px, 90 % within {radius_90_px:.0f} px"
        if not math.isnan(mean["outside_window"]):
            numbers = f"{100 * mean['outside_window']:.1f} % outside its window\n{numbers}"
        numbers = numbers.format(**mean)
        axis.set_title(f"{variant}\n{numbers}", fontsize=10)
        style.tip(axis, f"{variant}\n{numbers}")
    label = "share of the gradient in a pixel"
    figure.colorbar(image, ax=axes, shrink=1 / lines, extend="min", label=label)
    counts = " to ".join(map(str, sorted({f(map(len, found.values())) for f in (min, max)})))
    title = (
        f"{results.manifest['study']}: effective receptive field of the tokens of the central "
        f"window, mean over seeds ({counts}); white: no gradient"
    )
    figure.suptitle(textwrap.fill(title, int(9.5 * width)), fontsize=13)
    return style.save(figure, path, table)


def _shown(share_HW: np.ndarray) -> np.ndarray:
    """At most `_SHOWN` squares along a side, the mean of their pixels."""
    step = -(-max(share_HW.shape) // _SHOWN)
    share_1HW = torch.from_numpy(share_HW)[None]
    return nn.functional.avg_pool2d(share_1HW, step, ceil_mode=True)[0].numpy()
