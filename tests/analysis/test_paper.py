"""The published figures agree with each other, so that a wrong digit is found."""

import re

import numpy as np
import pandas as pd
import pytest

from analysis import paper
from backbones import SIZES
from experiments import ROOT
from experiments.errors import UserError

RATE = 64  # images per iteration in all released configs
IMAGES = {"COCO": 118_000, "LVIS": 100_000}  # an epoch, as the released configs count
CONFIG_OF = {"ViT": "vitdet", "Swin": "swin", "MViTv2": "mvitv2"}
# Rows of different tables with one setting; T3 has no mask AP.
SAME_SETTING = [
    "T1:3L T2a:1 T2c:3 T2d:2 T3:2 T4:3L",  # ViT-L, 4 global blocks, evenly
    "T1:3B T8a:1 T8c:3 T8d:2 T4:3B",  # the same of ViT-B
    "T2a:0 T2b:0 T2c:0 T2d:0 T3:0",  # ViT-L, no propagation
    "T8a:0 T8b:0 T8c:0 T8d:0",
    "T2a:2 T2b:2",  # 4 conv blocks: basic for ViT-L ...
    "T2b:3 T3:1",
    "T8a:2 T8b:3",  # ... and bottleneck for ViT-B
    "T2d:3 T3:3",  # 24 global blocks
]


def table(name):
    results = paper.load("results")
    return results[results["table"] == name]


def near(value, digits=1):
    """Equal in print."""
    return pytest.approx(value, abs=0.5 * 10**-digits + 1e-9)


@pytest.mark.parametrize("name", ["T1", *(f"T{i}{j}" for i in "28" for j in "abcd"), "T3", "T4"])
@pytest.mark.parametrize("kind", ["box", "mask"])
def test_printed_differences(name, kind):
    rows = table(name)
    for _, of_model in rows.groupby("model"):
        delta = of_model[f"ap_{kind}_delta"]
        base = of_model[of_model["row"].str.startswith("0")].iloc[0]
        assert np.isnan(base[f"ap_{kind}_delta"])
        expected = (of_model[f"ap_{kind}"] - base[f"ap_{kind}"]).drop(base.name).dropna()
        assert (kind == "mask" and name == "T3") or len(expected) >= 3
        assert delta.dropna().round(1).tolist() == expected.round(1).tolist()


@pytest.mark.parametrize("rows", SAME_SETTING)
def test_tables_agree_on_a_setting(rows):
    found = paper.published().loc[rows.split()]
    assert found["model"].nunique() == 1
    propagation = found[found["table"].str.contains("T2|T3|T8")]  # whose differences are to none
    for kind in ("box", "mask"):
        assert found[f"ap_{kind}"].dropna().nunique() == 1
        assert propagation[f"ap_{kind}_delta"].dropna().nunique() <= 1
    assert found["ap_box"].notna().all()


def test_tables_5_and_9_agree():
    same = ["group", "model", "pretrain", "detector"]
    both = table("T5").merge(table("T9"), on=same, suffixes=("_5", "_9"))
    assert len(both) == len(table("T5")) == 16
    assert both["ap_box_5"].tolist() == both["ap_box_9"].tolist()
    assert both["ap_mask_5"].tolist() == both["ap_mask_9"].tolist()


def test_costs_of_table_9():
    """Pre-training changes no cost, and the cascade costs every backbone the same."""
    rows = table("T9")
    costs = ["params_m", "flops_t", "test_time_ms"]
    assert rows[costs].notna().all(axis=None)
    assert (rows.groupby(["model", "detector"])[costs].nunique() == 1).all(axis=None)
    keyed = rows.set_index(["model", "pretrain", "detector"])
    added = keyed.xs("Cascade Mask R-CNN", level=2)[costs] - keyed.xs("Mask R-CNN", level=2)[costs]
    assert len(added) == 11
    assert added["params_m"].between(30, 31).all()
    assert added["flops_t"].round(1).between(0.2, 0.3).all()
    assert added["test_time_ms"].between(14, 17).all()


def test_ratios_of_table_3():
    """Absolute figures that others printed for the ratios, and the caption's 49 GB."""
    rows = table("T3")
    base = rows.iloc[0]
    assert base[["params_ratio", "train_mem_ratio", "test_time_ratio"]].tolist() == [1, 1, 1]
    for _, row in rows.iloc[1:].iterrows():
        pattern = r"params (\d+)M, mem ([\d.]+)G, time (\d+)ms"
        params, memory, time = map(float, re.search(pattern, row["note"]).groups())
        assert base["params_m"] * row["params_ratio"] == near(params, 0)
        assert base["train_mem_gb"] * row["train_mem_ratio"] == near(memory)
        assert base["test_time_ms"] * row["test_time_ratio"] == near(time, 0)
    memory = base["train_mem_gb"] * rows.iloc[3]["train_mem_ratio"]
    assert memory == near(rows.iloc[3]["train_mem_gb"], 0)


def test_prose_agrees_with_the_tables():
    at, prose = paper.published(), paper.load("prose").set_index("key")["value"]
    assert prose["quarter_deconv_pyramid"] == at.at["T1:text", "ap_box"]
    for size, tables in (("b", ("T5:5m", "T1:3B")), ("l", ("T5:6m", "T1:3L"))):
        for kind in ("box", "mask"):
            gain = at.at[tables[0], f"ap_{kind}"] - at.at[tables[1], f"ap_{kind}"]
            assert gain == pytest.approx(prose[f"relative_positions_vit_{size}_{kind}"])
    assert prose["relative_positions_vit_l_box"] == near(prose["relative_positions"], 0)
    assert prose["mvitv2_l_sup"] == at.at["T9:6m", "ap_box"]
    assert prose["swin_b_1k_cascade"] == at.at["T9:0c", "ap_box"]
    conv = at.loc["T3:1", ["train_mem_ratio", "test_time_ratio"]]
    assert 100 * (conv.max() - 1) == pytest.approx(prose["conv_overhead"])
    # Sec. 4.2 and 4.3: ViT-H over MViTv2-H; over the LVIS challenge's baseline.
    assert at.at["T5:7m", "ap_box"] - at.at["T5:4m", "ap_box"] == pytest.approx(2.6)
    assert at.at["T7:5", "ap_mask"] - at.at["T7:2", "ap_mask"] == pytest.approx(5.0)
    assert at.at["T6:9m", "ap_box"] == 61.3  # the abstract's
    # Meta's blog: ViT-L over ViT-B on LVIS with supervised pre-training.
    assert at.at["T10:0L", "ap_mask"] - at.at["T10:0B", "ap_mask"] == pytest.approx(1.1)


def test_released_models_against_the_tables():
    models = paper.load("released_models")
    tables = pd.concat([table("T9").assign(dataset="COCO"), table("T10").assign(dataset="LVIS")])
    same = ["dataset", "detector", "model", "pretrain"]
    both = models.assign(
        model=models["name"].str.removeprefix("ViTDet, "),
        pretrain=models["pretrain"].str.removeprefix("IN"),
    ).merge(
        tables.assign(pretrain=tables["pretrain"].str.removeprefix("IN-")),
        on=same,
        how="left",
        suffixes=("", "_printed"),
    )
    assert len(both) == 22
    assert both["ap_box_printed"].notna().sum() == 11 + 2  # of LVIS, ViT-B and L with Mask R-CNN
    for kind in ("box", "mask"):
        pd.testing.assert_series_equal(
            both[f"paper_ap_{kind}"], both[f"ap_{kind}_printed"], check_names=False
        )
        difference = both[f"ap_{kind}"] - both[f"ap_{kind}_printed"]
        assert np.allclose(both[f"diff_{kind}"], difference, equal_nan=True)
        assert difference.abs().max() < 0.35
    prose = paper.load("prose").set_index("key")["value"]
    huge = models[models["config"] == "LVIS/mask_rcnn_vitdet_h_100ep.py"].iloc[0]
    assert huge["ap_mask"] == pytest.approx(prose["lvis_vit_h_mask"], abs=0.11)


def test_released_models_have_their_configs():
    models, configs = paper.load("released_models"), paper.load("released_configs")
    assert models["config"].is_unique
    assert models["model_id"].is_unique
    both = models.merge(configs, on=["dataset", "detector", "config"])
    assert len(both) == len(models) == len(configs)
    for _, model in models.iterrows():
        stem = model["config"].removesuffix(".py").split("/")[1]
        assert stem.startswith(model["detector"].replace(" ", "_").replace("-", "").lower())
        assert stem.endswith(f"_{model['epochs']}ep")
        assert f"{model['dataset']}/{stem.rsplit('_', 1)[0]}/" in model["checkpoint"]
        assert str(model["model_id"]) in model["checkpoint"]


def configs_of(model):
    """The released COCO configs of a backbone, e.g. "ViT-B"."""
    family, size = model.split("-")
    configs = paper.load("released_configs").query("dataset == 'COCO'")
    return configs[configs["config"].str.contains(f"_{CONFIG_OF[family]}_{size.lower()}_")]


def test_recipes_against_the_released_configs():
    """What Table 11 says, and where its remark says that a config differs, and how."""
    recipes = paper.load("recipes").dropna(subset="released_config")
    assert len(recipes) == 8
    names = {"lr": "lr", "dp": "drop_path"}
    for _, recipe in recipes.iterrows():
        expected = recipe[["lr", "weight_decay", "drop_path", "layerwise_lr_decay"]].astype(float)
        differs = dict(re.findall(r"(lr|dp) ([\de.-]+)", recipe["released_config"]))
        assert bool(differs) == ("DIFFER" in recipe["released_config"])
        for name, value in differs.items():
            assert expected[names[name]] != float(value)
            expected[names[name]] = float(value)
        configs = configs_of(recipe["model"])
        assert len(configs) == (2 if recipe["model"].startswith("ViT") else 1)
        for _, config in configs.iterrows():
            pd.testing.assert_series_equal(
                config[expected.index].astype(float), expected, check_names=False
            )
            assert f"_{recipe['epochs']}ep" in config["config"]
            stated = dict(re.findall(r"(lr|dp) ([\de.-]+)", str(config["note"])))
            for name in stated:  # the config's own note says what Table 11 has
                assert float(stated[name]) == recipe[names[name]]
            assert stated.keys() == differs.keys()


def test_schedules_of_the_released_configs():
    for _, config in paper.load("released_configs").iterrows():
        epochs = int(re.search(r"(\d+)ep", config["config"])[1])
        iterations = epochs * IMAGES[config["dataset"]] / RATE
        steps = (8 / 9, 26 / 27)
        if "3x schedule" in str(config["note"]):
            iterations, steps = 270_000 * 16 / RATE, (7 / 9, 25 / 27)
        assert config["max_iter"] == int(iterations)
        for column, step in zip(("lr_milestone_1", "lr_milestone_2"), steps, strict=True):
            assert config[column] == pytest.approx(step * iterations, abs=1)
        kept = "warm-up keeps its fraction" in str(config["note"])
        warmup = 250 * (config["max_iter"] / 184_375 if kept else 1)
        assert config["warmup_iters"] == pytest.approx(warmup, abs=0.01)
        assert (config["batch"], config["image_size"]) == (RATE, 1024)


def test_settings_agree_with_the_configs():
    settings = paper.load("settings").set_index("key")["value"]
    base = paper.load("released_configs").iloc[0]
    for number in (base["max_iter"], base["lr_milestone_1"], base["lr_milestone_2"]):
        assert str(number) in settings["lr_decay_steps"] + settings["epoch_to_iter"]
    assert f"{base['warmup_iters']:.0f} iterations" in settings["warmup"]
    assert f"{base['batch']} images" in settings["batch"]
    for dataset, images in IMAGES.items():
        said = f"{dataset} 100 ep = {100 * images // RATE} it ({images} im/ep)"
        assert said in settings["epoch_to_iter"]
    evenly = settings["propagation_default"]
    for size, blocks in re.findall(r"([BLH]) ([\d,]+)", evenly):
        notes = configs_of(f"ViT-{size}")["note"]
        assert notes.str.contains(f"global blocks {blocks}(?:;|$)").all()


def test_lvis_recipe_agrees_with_the_configs():
    """App. A.2 on LVIS, and one recipe for both detectors of a ViT."""
    settings = paper.load("settings").set_index("key")["value"]
    pattern = r"lr ([\de-]+)/([\de-]+) \(L/H\), wd ([\d.]+), dp ([\d.]+)"
    large, huge, decay, drop = map(float, re.search(pattern, settings["lvis_paper"]).groups())
    configs = paper.load("released_configs").query("dataset == 'LVIS'")
    for size, lr in (("b", large), ("l", large), ("h", huge)):
        found = configs[configs["config"].str.endswith(f"_vitdet_{size}_100ep.py")]
        assert len(found) == 2
        assert found["lr"].tolist() == [lr, lr]
        assert found["weight_decay"].tolist() == [decay, decay]
        assert found["drop_path"].tolist() == 2 * [0.1 if size == "b" else drop]
        of_coco = configs_of(f"ViT-{size.upper()}")["layerwise_lr_decay"]
        assert found["layerwise_lr_decay"].tolist() == of_coco.tolist()


def test_figure_3_is_table_9():
    points = paper.figure(3)
    assert len(points) == 11
    huge = points[points["model"] == "ViT-H"].iloc[0]
    assert huge[["ap_box", "params", "macs", "test_ms"]].tolist() == [56.7, 662e6, 3.4e12, 189]
    assert set(points["dataset"]) == {"coco"}
    assert points[paper.POINT].drop(columns="ap_mask_rare").notna().all(axis=None)


def test_figure_4_has_the_printed_points_only():
    points = paper.figure(4).set_index("model")
    assert points["ap_mask"].to_dict() == {"ViT-B": 38.1, "ViT-L": 43.5, "ViT-H": 45.9}
    assert points["ap_mask_rare"].to_dict() == {"ViT-B": 29.1, "ViT-L": 35.3, "ViT-H": 37.9}
    assert points["params"].tolist() == [111e6, 331e6, 662e6]
    assert paper.figure(5).columns.tolist() == paper.POINT
    assert paper.figure(5).empty


def test_released_models_as_points():
    points = paper.released("lvis")
    assert points.columns.tolist() == paper.POINT
    assert len(points) == 11
    assert points[["ap_box", "params", "macs", "test_ms"]].notna().all(axis=None)
    huge = points[(points["model"] == "ViT-H") & (points["detector"] == "Mask R-CNN")].iloc[0]
    assert huge[["pretrain", "ap_mask", "test_ms"]].tolist() == ["1K, MAE", 46.0, 186]


TEXT = (
    "table row group model pretrain detector strategy test_mode source confirmed_by verified note "
    "released_config dataset config name checkpoint act_checkpoint key fact relation unit scope "
    "setting size encoder"
)


@pytest.mark.parametrize("kind", paper.KINDS)
def test_every_kind_loads_as_numbers_and_says_where_it_is_from(kind):
    frame = paper.load(kind)
    text = set(TEXT.split()) | ({"value"} if kind == "settings" else set())
    for column in frame.columns:
        assert (column in text) != pd.api.types.is_numeric_dtype(frame[column]), column
    assert frame[["source", "verified"]].notna().all(axis=None)
    if "n_sources" in frame:
        ids = frame["confirmed_by"].str.replace(r"\([^)]*\)", "", regex=True).str.split(";")
        assert ids.map(lambda found: len(set(found))).tolist() == frame["n_sources"].tolist()


def test_absent_cells():
    assert np.isnan(paper.published().at["T3:1", "ap_mask"])
    assert paper.published().at["T2a:0", "strategy"] == "none"
    decay = paper.load("recipes").set_index("model")["layerwise_lr_decay"]
    assert np.isnan(decay["Swin-B"])
    assert decay["ViT-H"] == 0.9


def test_unknown_names_are_told():
    with pytest.raises(UserError, match="did you mean 'recipes'"):
        paper.load("recipe")
    with pytest.raises(UserError, match="3, 4 and 5"):
        paper.figure(6)
    with pytest.raises(UserError, match="known are coco, lvis"):
        paper.released("mini")


@pytest.fixture
def original():
    """The collection that these files were carried in from, cells as text."""
    folder = ROOT.parent / "shared" / "paper"
    if not folder.is_dir():
        pytest.skip(f"the collection of published figures is not in {folder}")
    return lambda name: pd.read_csv(folder / f"{name}.csv", dtype=str)


def carried(kind):
    return pd.read_csv(paper.RECIPES.with_name(f"{kind}.csv"), dtype=str)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("results", "results_all"),
        ("recipes", "table11_hyperparams_coco"),
        ("released_models", "modelzoo_detectron2_vitdet"),
        ("settings", "settings_common"),
        ("reproductions", "reproductions_unofficial"),
    ],
)
def test_nothing_was_lost_on_the_way(original, kind, name):
    pd.testing.assert_frame_equal(carried(kind), original(name))


def test_nothing_was_lost_where_cells_were_split(original):
    configs, ours = original("detectron2_configs"), carried("released_configs")
    steps = configs["lr_milestones"].str.split("/", expand=True)
    assert (ours[["lr_milestone_1", "lr_milestone_2"]].values == steps.values).all()
    assert (ours["warmup_iters"] == configs["warmup_iters"].str.split().str[0]).all()
    for note, before in zip(ours["note"], configs["note"], strict=True):
        assert pd.isna(before) or str(note).startswith(before)
    same = configs.columns.drop(["lr_milestones", "warmup_iters", "note"])
    pd.testing.assert_frame_equal(ours[same], configs[same])

    # Cells of prose held up to two numbers; signs and relations are columns or words now.
    facts = original("text_facts")
    numbers = [float(n) for cell in facts["value"] for n in re.findall(r"[\d.]+", cell)]
    assert paper.load("prose")["value"].tolist() == numbers
    assert set(carried("prose")["source"]) == set(facts["source"])


def test_figures_are_those_collected(original):
    before = original("figure3_tradeoffs")
    points = paper.figure(3)
    assert (points[["model", "pretrain"]].values == before[["model", "pretrain"]].values).all()
    for ours, theirs, unit in (
        ("ap_box", "ap_box", 1),
        ("params", "params_m", 1e6),
        ("macs", "flops_t", 1e12),
        ("test_ms", "test_time_ms", 1),
    ):
        assert np.allclose(points[ours], before[theirs].astype(float) * unit)
    before = original("figures_4_5_partial").dropna(subset="value")
    lvis = before[before["figure"] == "F4"]
    assert paper.figure(4)["model"].tolist() == lvis["model"].tolist()
    assert paper.figure(4)["ap_mask"].tolist() == lvis["value"].astype(float).tolist()
    (gain,) = before.loc[before["figure"] == "F5", "value"]
    prose = paper.load("prose").set_index("key")["value"]
    assert prose["retinanet_vit_h_gain"] == float(gain)


# ---- Encoders of today -------------------------------------------------------------------------


def test_todays_models_say_where_they_are_from():
    models = paper.load("todays_models")
    assert models["name"].is_unique
    assert models["checkpoint"].dropna().is_unique
    assert (
        models["source"].str.fullmatch(r"[\w-]+/[\w-]+ (?:[\w-]+/)*README\.md @[0-9a-f]{7}").all()
    )
    assert set(models["dataset"]) == {"COCO", "LVIS"}
    assert set(models["encoder"].dropna()) <= SIZES.keys()
    assert models["ap_box"].between(40, 70).all()
    mask = models["ap_mask"].dropna()
    assert (mask < models["ap_box"][mask.index]).all()
    released = models["checkpoint"].dropna().str.removesuffix(".pth")
    assert (released == models["name"][released.index]).all()
    # A longer training and a larger encoder are better; so are larger images.
    rows = models.set_index("name")["ap_box"]
    for less, more in (
        ("eva02_B_coco_bsl", "eva02_L_coco_bsl"),
        ("eva02_B_coco_bsl", "eva02_B_coco_sys"),
        ("eva02_L_coco_bsl", "eva02_L_coco_sys"),
        ("mask_rcnn_PEcore_G_coco75ep", "mask_rcnn_PEspatial_G_coco36ep"),
        ("dino_vitdet_base_4scale_12ep", "dino_vitdet_base_4scale_50ep"),
        ("dino_vitdet_large_4scale_12ep", "dino_vitdet_large_4scale_50ep"),
    ):
        assert rows[less] < rows[more]


def test_known_are_the_papers_and_todays():
    assert list(paper.known().index[: len(paper.published())]) == list(paper.published().index)
    assert paper.known().index.is_unique
    row = paper.known().loc["today:eva02_B_coco_bsl"]
    assert (row["ap_box"], row["ap_mask"], row["encoder"]) == (55.5, 47.1, "eva02-b")


def test_todays_encoders_are_named_sizes():
    printed = paper.load("todays_encoders")
    assert set(printed["size"]) == {s for s in SIZES if "vit-" not in s and "spatial" not in s}
