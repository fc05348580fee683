"""A step of pre-training, ViT-B on 224 px images: this suite's beside transformers'.

A step is forward pass, backward pass and AdamW. "MAE" is masked autoencoding with three quarters
of the patches hidden; "transformers" is its `ViTMAEForPreTraining` as it comes, with the same
optimizer, torch's fused AdamW, and once more with AdamW as torch has it by default. "classifier" is
supervised training on all tokens and on a random half of them (FLIP, arXiv:2212.00794). Each row is
a process of its own; the rows of a case take turns on the same images, and medians are shown with,
in brackets, the lowest and the highest. Memory is the peak of all that a process takes, weights and
averages of AdamW among it. float32 on a CPU, bfloat16 autocast on a GPU.
"""

import multiprocessing
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from tabulate import tabulate
from torch import Tensor, nn

from backbones import SIZES, build_encoder
from backbones.pretraining.classifier import Classifier
from backbones.pretraining.inputs import PIXEL_MEAN, PIXEL_STD, Pixels
from backbones.pretraining.mae import MaskedAutoencoder

from . import page
from .rows import Row
from .worker import Memory, limit_memory, seconds_of

SUITE = "pretraining"
_MODULES = ("transformers.models.vit_mae.modeling_vit_mae", "benchmarks.pretraining")


@dataclass(frozen=True)
class Case:
    """Rows that do the same, or what is compared; ratios are to the first."""

    name: str
    rows: tuple[str, ...]
    size: str = "vit-b"
    side: int = 224
    images: int = 32
    rounds: int = 3


CASES = (
    Case("MAE", ("transformers", "transformers, default AdamW", "ours")),
    Case("classifier", ("all tokens", "half of the tokens")),
)
ROWS = tuple(f"{case.name}: {row}" for case in CASES for row in case.rows)


def build(case: Case, row: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A network, and its loss of uint8 images (B, 3, H, W)."""
    torch.manual_seed(0)
    if row.startswith("transformers"):
        net = _transformers(case)
        pixels = Pixels(PIXEL_MEAN, PIXEL_STD)
        return net, lambda images: net(pixel_values=pixels.to(images.device)(images)).loss
    encoder = build_encoder(
        case.size,
        img_size=case.side,
        pretrain_img_size=case.side,
        positions="sincos2d",
        propagation="global",
        count=SIZES[case.size]["depth"],
    )
    if case.name == "MAE":
        net = MaskedAutoencoder(encoder)
    else:
        net = Classifier(encoder, 1000, mask_ratio=0.5 if row.startswith("half") else 0.0)

    def loss(images: Tensor) -> Tensor:
        batch = [dict(image=image, label=i) for i, image in enumerate(images)]
        return sum(net(batch).values())

    return net, loss


def _transformers(case: Case) -> nn.Module:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    size = SIZES[case.size]
    return ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=size["embed_dim"],
            num_hidden_layers=size["depth"],
            num_attention_heads=size["num_heads"],
            intermediate_size=4 * size["embed_dim"],
            image_size=case.side,
            norm_pix_loss=True,
        )
    )


def _step(net: nn.Module, loss: Callable, images: Tensor, optimizer: torch.optim.Optimizer) -> None:
    device = images.device.type
    optimizer.zero_grad()
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        value = loss(images)
    value.backward()
    optimizer.step()


def measure(case: Case, row: str, device: str, pipe: Connection) -> None:
    """Serves one row, as `worker.measure`: a step each time."""
    try:
        memory = Memory(device)
        net, loss = build(case, row)
        net.to(device).train()
        images = torch.randint(256, (case.images, 3, case.side, case.side), dtype=torch.uint8)
        learned = [p for p in net.parameters() if p.requires_grad]
        fused = None if "default" in row else True
        optimizer = torch.optim.AdamW(learned, 1.5e-4, (0.9, 0.95), weight_decay=0.05, fused=fused)
        step = partial(_step, net, loss, images.to(device), optimizer)
        pipe.send(sum(p.numel() * p.element_size() for p in net.parameters()) / 2**20)
        while pipe.recv() == "run":
            memory.reset()
            if device == "cpu":
                limit_memory()
            pipe.send((seconds_of(step, device, 1), memory.peak()))
    except (ValueError, RuntimeError, MemoryError, OSError) as error:
        pipe.send(str(error).splitlines()[0] or type(error).__name__)


def measured(case: Case, device: str, console: Console) -> list[dict]:
    """A line per row, what was measured in each round in it; a round that does not count first."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(list(_MODULES))
    rows = {name: Row(processes, measure, case, name, device) for name in case.rows}
    try:
        for row in rows.values():
            row.wait()
        for turn in range(case.rounds + 1):
            for name, row in rows.items():
                with console.status(f"round {turn} of {case.rounds}: {name}"):
                    sample = row.run()
                if sample and turn:
                    row.samples.append(sample)
    finally:
        for row in rows.values():
            row.stop()
    return [
        dict(row=name, samples=[] if row.error else row.samples, error=row.error)
        for name, row in rows.items()
    ]


def table(case: Case, lines: list[dict]) -> pd.DataFrame:
    """Medians, lowest and highest of each row, and ratios to the case's first row."""
    found = []
    for line in lines:
        seconds, memory = zip(*line["samples"], strict=True) if line["samples"] else ((), ())
        found.append(
            dict(case=case.name, row=line["row"], images=case.images, runs=len(seconds))
            | dict(
                seconds=statistics.median(seconds) if seconds else None,
                fastest=min(seconds, default=None),
                slowest=max(seconds, default=None),
                peak_mib=statistics.median(memory) if memory else None,
                error=line["error"],
            )
        )
    found = pd.DataFrame(found)
    found["speed"] = found.seconds.iloc[0] / found.seconds
    found["memory"] = found.peak_mib / found.peak_mib.iloc[0]
    return found


def shown(found: pd.DataFrame, style: str = "simple") -> str:
    """The table, as text."""

    def seconds(line) -> str:
        if not line.runs:
            return line.error
        return f"{line.seconds:.1f} ({line.fastest:.1f} .. {line.slowest:.1f}, {line.runs} steps)"

    def formatted(name: str, form: str) -> list[str]:
        return ["" if pd.isna(value) else form.format(value) for value in found[name]]

    columns = {
        "case": found.case,
        "row": found.row,
        "images": found.images,
        "seconds": [seconds(line) for line in found.itertuples()],
        "speed": formatted("speed", "{:.2f}x"),
        "peak MiB": formatted("peak_mib", "{:,.0f}"),
        "memory": formatted("memory", "{:.0%}"),
    }
    return tabulate(columns, headers="keys", tablefmt=style, showindex=False, disable_numparse=True)


def bench(to: Path, provenance: dict, console: Console, cases: tuple[Case, ...] = CASES) -> None:
    """Measure, print the table, and keep it as pretraining.csv and pretraining.md."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tables = []
    for number, case in enumerate(cases, start=1):
        console.print(f"[{number}/{len(cases)}] {case.name}, {case.images} images")
        tables.append(table(case, measured(case, device, console)))
        console.print(shown(tables[-1]))
    found = pd.concat(tables).assign(**provenance)
    text = [shown(found, "pipe"), "", *__doc__.splitlines()[2:]]
    written = page.write(to, SUITE, found, text, provenance)
    console.print(f"\nwritten: {'  '.join(map(str, written))}")
