"""A study's plan as text: a line per row, then what holds for all."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from rich.console import Console
from rich.progress import track
from tabulate import tabulate

from ..costs.devices import GPUS
from ..data import catalog
from ..jobs.runs import Row, of_own_set
from ..recipe import config, own_data
from ..scales import SCALES
from ..studies import Study
from . import budget, seeds
from .budget import Memory
from .plan import RESERVE, Estimate, Target, estimate, hours_choosing, hours_side_by_side, target
from .request import Request
from .seeds import Limits


def show(
    request: Request, device: str, gpus: int, console: Console, budget_words: str = ""
) -> None:
    """Print the plan of a study: a line per row, then what holds for all.

    Args:
        device, gpus: as of `target`.
        budget_words: a time of which it says what it buys; "": the scale's.

    Raises:
        UserError: it cannot be run as it is asked for, or as of `target`.
    """
    request.check_pretraining_words()
    study, rows, limits = request.study, request.rows, request.seeds
    scale, shares = SCALES[request.scale], request.shares
    bought = seeds.parse(seeds.AUTO, None, budget_words or scale.budget)
    whole = scale.images[study.dataset]
    # The set's known numbers: no data is needed.
    images = round(shares.train * whole[0]), round(shares.val * whole[1])
    if request.dataset or request.val:
        data = catalog.prepare(request.scale, request.dataset, request.val, study.dataset, shares)
        for line in of_own_set(rows, data):
            console.print(line, highlight=False)
        rows = [replace(row, cfg=own_data.fitted(row.cfg, data)) for row in rows]
        images = data.images
    count = limits if isinstance(limits, int) else limits.most
    count = count or study.seeds.get(request.scale, 1)
    where = target(rows, device, gpus or scale.gpus)
    counting = track(
        rows, "counting", console=console, transient=True, disable=not console.is_terminal
    )
    estimates = estimate(study, counting, where, images[1])
    console.print(f"{study.question}\nscale {request.scale}, for {where.devices} x {where.title}")
    console.print(_table(estimates, where), highlight=False)
    more = hours_choosing(rows, request.swept, estimates)
    for line in _notes(study, rows, images, count, where, estimates, more):
        console.print(line, highlight=False)
    if bought.budget:
        console.print(_bought(bought, estimates, sum(more)), highlight=False)
    if not isinstance(limits, int):
        first = max(seeds.first(rows, {}, limits).values())
        console.print(
            f"SEEDS=auto: that is with {count} seeds, the most there may be; verdicts are looked "
            f"at from {first} on",
            highlight=False,
        )
    words = {row.cfg.train.init_weights for row in rows}
    if recipes := ", ".join(sorted(filter(config.is_recipe, words))):
        console.print(f"Not counted: the pre-training that comes first ({recipes})")


def _bought(limits: Limits, estimates: Sequence[Estimate], spent: float) -> str:
    """What a budget buys of the trainings, after hours that choose."""
    hours = [e.hours for e in estimates if not e.same_training]
    words = f"BUDGET={limits.budget}"
    if any(map(math.isnan, hours)):
        return f"{words}: not all rows have hours"
    left = limits.hours - spent
    count = max(int(left // sum(hours)), 0)
    left -= count * sum(hours)
    rows = sum(total <= left for total in itertools.accumulate(hours))
    if not count:
        return f"{words} buys {rows} of the {len(hours)} trainings that one seed of each row is"
    more = f", and {rows} trainings more" if rows else ""
    return f"{words} buys {count} seeds of each row on one device{more}"


def _table(estimates: Sequence[Estimate], where: Target) -> str:
    rows = []
    for e in estimates:
        row = {"variant": e.variant, "params M": f"{e.params / 1e6:.1f}"}
        row["GMACs"] = f"{e.macs / 1e9:,.4g}"
        row["hours"] = "same" if e.same_training else _hours(e.hours)
        if _spreads(where):
            spread = "same" if e.same_training else _hours(e.spread_hours)
            row[f"hours / {where.devices}"] = spread
        row |= _memory("", e.memory, e.batch)
        if e.checkpointed:
            row |= _memory("*", e.checkpointed, e.checkpointed_batch)
            row["time*"] = f"{e.slowdown:.2f}x"
        rows.append(row)
        row["disk GB"] = f"{e.disk_bytes / 1e9:.2f}"
    columns = max(rows, key=len)
    cells = [[row.get(column, "") for column in columns] for row in rows]
    align = ("left", *["right"] * (len(columns) - 1))
    return tabulate(cells, list(columns), "simple", colalign=align, disable_numparse=True)


def _memory(mark: str, memory: Memory, batch: int) -> dict[str, str]:
    figures = {"GiB": memory.of(1), "+ each": memory.per_image}
    words = {f"{name}{mark}": f"{value / 2**30:.2f}" for name, value in figures.items()}
    return {**words, f"batch{mark}": str(batch or "none")}


def _spreads(where: Target) -> bool:
    """Whether one run could be spread over the devices."""
    return where.devices > 1 and not where.on_cpu


def _hours(hours: float) -> str:
    return "-" if math.isnan(hours) else f"{hours:,.1f}" if hours >= 1 else f"{hours:.3f}"


def _notes(
    study: Study,
    rows: Sequence[Row],
    images: tuple[int, int],
    seeds: int,
    where: Target,
    estimates: Sequence[Estimate],
    more: Sequence[float],
) -> Iterable[str]:
    """What holds for all rows: sums, where the figures are from, what is not in them."""
    trained, n = [e for e in estimates if not e.same_training], where.devices
    hours = [*more, *[e.hours for e in trained] * seeds]
    spread = seeds * sum(e.spread_hours for e in trained)
    if more:
        spread *= sum(hours) / (seeds * sum(e.hours for e in trained))
    if not any(map(math.isnan, hours)):
        parts = [f"study: {len(hours)} trainings, {budget.duration(sum(hours))} on one device"]
        if n > 1:
            side_by_side = budget.duration(hours_side_by_side(hours, n))
            parts.append(f"{side_by_side} on {n}, side by side, one each (JOBS={n})")
        if _spreads(where) and not math.isnan(spread):
            in_turn = budget.duration(spread)
            parts.append(f"{in_turn} one after the other, each on all {n} (GPUS={n} JOBS=1)")
        yield "; ".join(parts)
    if more:
        yield f"sweep: {len(more)} of them choose; a row's best is taken to last as the row does"
    runs = seeds + len(more) // len(trained)
    yield f"disk: {runs * sum(e.disk_bytes for e in estimates) / 1e9:.1f} GB"
    if kept := max(budget.features_bytes(row.cfg, *images) for row in rows):
        yield (
            f"features: {kept / 1e9:.1f} GB for an encoder, computed once for all runs behind it, "
            "which is not in the hours"
        )
    lengths = {}
    for row in rows:
        seen = row.cfg.train.max_iter * row.cfg.dataloader.train.total_batch_size
        lengths[f"{seen / images[0]:.1f}"] = None
    yield f"epochs of {images[0]:,} images: {', '.join(lengths)}"
    if _spreads(where):
        yield (
            f"hours / {n}: one run on {n} (GPUS={n}), which share the passes of a step; the time "
            "that adding up their gradients takes is not in it"
        )
        if any(math.isnan(e.spread_hours) and not math.isnan(e.hours) for e in estimates):
            yield (
                f"- of hours / {n}: a step has fewer passes than {n}; a lower "
                "dataloader.train.micro_batch_size makes more"
            )
    if same := [f"{e.variant} ({e.same_training})" for e in estimates if e.same_training]:
        yield f"same: trained by another row: {', '.join(same)}"
    if any(math.isnan(e.hours) for e in estimates):
        yield "- of hours: not measured, a pass does not fit"
    yield "GiB: with one image per pass; + each: of each further image"
    yield (
        "batch: the largest dataloader.train.micro_batch_size that fits "
        f"{where.memory_bytes / 2**30:.0f} GiB with {RESERVE[study.dataset]} GiB to spare"
    )
    if any(e.checkpointed for e in estimates):
        yield "*: with model.backbone.use_act_checkpoint=true"
    yield from _sources(where, estimates)
    yield "not in the hours: evaluation, reading images; docs/plan.md has measured errors"


def _sources(where: Target, estimates: Sequence[Estimate]) -> Iterable[str]:
    trained = [e for e in estimates if not e.same_training]
    if where.gpu:
        yield (
            "time: one image per pass at the rate of detectron2's released ViT models on an A100 "
            "(its Swin and MViTv2 come out within 8 %): 0.92 to 1.11 of 20 published times, all of "
            "1024 px"
        )
        if where.gpu.tflops != GPUS["a100-40gb"].tflops:
            yield (
                f"products on {where.gpu.title}: scaled by its {where.gpu.tflops:g} bfloat16 "
                f"TFLOPS to the A100's 312 ({where.gpu.source}); nothing was measured on it"
            )
    elif any(e.measured for e in trained):
        yield "time: real iterations of each row on this machine, just now, one run alone"
    if where.on_cpu and not all(e.measured for e in trained):
        yield "time: from this CPU's rate of large products just now"
    if where.on_cpu:
        yield "GiB are a GPU's: a process on a CPU takes 0.8 GiB, and 1.3 to 2.2 times those"
