"""docs/cost.md: its tables, formulas and figures are those of the code."""

import re

import pytest
from detectron2.config import LazyConfig

from analysis import formula_tables, formulas
from analysis.formula_tables import PAPER_SIZES
from analysis.formulas import Amount, total
from backbones import SIZES
from experiments.costs import detector_cost as cost
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "cost.md").read_text()
SHOWN = dict(
    re.findall(r"<!-- analysis\.formula_tables\.(\w+) -->\n(.*?)\n<!-- end -->", PAGE, re.S)
)
PROSE = " ".join(PAGE.split())


@pytest.mark.parametrize("name", ["encoder_table", "propagation_table", "per_head_table"])
def test_tables_are_the_functions(name):
    assert SHOWN[name] == formula_tables.markdown(getattr(formula_tables, name)())


def evaluate(text: str, **letters: float) -> float:
    """A formula as the page writes it: a space multiplies, as does a dot."""
    text = text.replace("²", "**2").replace("·", "*")
    return eval(re.sub(r"(?<=[\w)])\s+(?=[\w(])", "*", text), {}, letters)


@pytest.mark.parametrize("name", PAPER_SIZES)
def test_formulas_are_those_of_the_code(name):
    section = PAGE.split("## Formulas")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:2] == "| "][1:]
    E, M, T, C, grid = SIZES[name]["embed_dim"], SIZES[name]["num_heads"], 4096, 256, (64, 64)
    for P, h in ((4900, 14), (T, 64)):
        letters = dict(E=E, M=M, D=SIZES[name]["depth"], T=T, P=P, N=h * h, h=h, w=h, C=C)
        expected = {
            "patch embedding": formulas.patch_embedding(E, 16, T),
            "absolute positions": formulas.absolute_positions(E, 14**2 + 1),
            "block: two norms": formulas.norm(E) * 2,
            "block: q, k, v and projection": formulas.attention_linear(E, P),
            "block: products q k and attention v": formulas.attention_products(E, P, (h, h)),
            "block: relative positions": formulas.relative_positions(E, M, P, (h, h), (h, h)),
            "block: MLP": formulas.mlp(E, T),
            "block: SwiGLU of 4 E channels": formulas.swiglu(E, T, 4 * E),
            "block: LayerScale": Amount(2 * E),
            "block: norms of q and k": formulas.norm(E // M) * 2,
            **{
                f"{kind} conv block": formulas.residual_conv_block(kind, E, T)
                for kind in ("naive", "basic", "bottleneck")
            },
            **{
                f"simple pyramid, {level}": formulas.simple_pyramid(E, grid, C, [scale])
                for level, scale in (("p2", 4.0), ("p3", 2.0), ("p4", 1.0), ("p5", 0.5))
            },
            "RPN, two convs, three anchors, p2 to p6": formulas.rpn(T * 341 // 16, C),
            "box head, 80 classes": formulas.box_head(),
            "mask head, 80 classes": formulas.mask_head(),
        }
        found = {part: (evaluate(a, **letters), evaluate(b, **letters)) for part, a, b in rows}
        assert found == {part: (v.params, v.macs) for part, v in expected.items()}
    closed = re.search(r"neck, has (.*?) parameters, ([\d, and]+) for B", PROSE)
    assert evaluate(closed[1], **letters) == formulas.sam_params(E, letters["D"])
    assert f"{formulas.sam_params(E, letters['D']):,}" in closed[2]


def test_figures_beside_the_papers():
    for cascade, text in (
        (False, "B {:.2f}, L {:.2f}, H {:.2f} T with Mask R-CNN"),
        (True, "{:.2f}, {:.2f}, {:.2f} T with Cascade"),
    ):
        words = dict(use_rel_pos=True, cascade=cascade)
        parts = [formulas.mask_rcnn(**SIZES[name], **words) for name in PAPER_SIZES]
        assert text.format(*(total(p.values()).macs / 1e12 for p in parts)) in PROSE


def test_figures_of_mvitv2_l():
    path = ROOT / "configs" / "coco" / "mask_rcnn_mvitv2_l.py"
    counted = cost.detector_cost(LazyConfig.load(str(path)).model).detector
    single, three = formulas.box_head(), formulas.box_head(class_agnostic=True) * 3
    cascade = Amount(three.params - single.params, three.macs - single.macs)
    wider = Amount()
    for d, tokens in ((144, 256**2), (288, 128**2), (576, 64**2)):
        weights = 10 * d**2 + 256 * d
        wider += Amount(weights, weights * tokens)
    assert f"{wider.params / 1e6:.1f} M and {wider.macs / 1e12:.3f} T more" in PROSE
    ours = Amount(counted.params, counted.macs)
    for amount in (ours, ours + cascade, ours + wider, ours + wider + cascade):
        assert f"{amount.params / 1e6:.1f} M and {amount.macs / 1e12:.2f} T" in PROSE
