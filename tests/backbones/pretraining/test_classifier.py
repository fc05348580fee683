"""The classifier is torchvision's and timm's with the same weights, and trains as it says."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from backbones import ViT, build_encoder
from backbones.pretraining import blocks
from backbones.pretraining.classifier import Classifier
from backbones.weights import load_encoder

TINY = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, pretrain_img_size=32)


def tiny(words: dict | None = None, **own) -> Classifier:
    torch.manual_seed(0)
    words = TINY | dict(propagation="global", count=2) | (words or {})
    model = Classifier(ViT(**words), **(dict(num_classes=5) | own))
    nn.init.normal_(model.head.weight)
    return model


def batch(count: int = 4) -> list[dict]:
    torch.manual_seed(1)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    return [dict(image=image, label=i % 5) for i, image in enumerate(images)]


def torchvisions() -> nn.Module:
    """ViT-B/16 of two blocks."""
    return torchvision.models.VisionTransformer(32, 16, 2, 12, 768, 3072, num_classes=7)


def timms(pool: str) -> nn.Module:
    words = dict(num_classes=7, depth=2, img_size=32, global_pool=pool)
    return timm.create_model("vit_base_patch16_224", **words)


@pytest.mark.parametrize(
    ("build", "pool", "names"),
    [
        (torchvisions, "cls", ("class_token", "encoder.ln", "heads.head")),
        (lambda: timms("token"), "cls", ("cls_token", "norm", "head")),
        (lambda: timms("avg"), "mean", ("cls_token", "fc_norm", "head")),
    ],
    ids=["torchvision", "timm", "timm, mean"],
)
def test_logits_are_those_of_other_libraries(build, pool, names, tmp_path):
    torch.manual_seed(0)
    net = build().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    state = net.state_dict()
    torch.save(state, tmp_path / "net.pth")
    words = dict(img_size=32, pretrain_img_size=32, depth=2, propagation="global", count=2)
    model = Classifier(build_encoder("vit-b", **words), 7, pool).eval()
    load_encoder(model.encoder, tmp_path / "net.pth", show=lambda account: None)
    # The file's loader leaves the cls token's entry of the positions as it is in the file.
    cls, norm, head = names
    model.cls_token.data.copy_(state[cls])
    for module, name in ((model.norm, norm), (model.head, head)):
        module.weight.data.copy_(state[f"{name}.weight"])
        module.bias.data.copy_(state[f"{name}.bias"])
    images = batch(3)
    with torch.no_grad():
        ours, theirs = model(images), net(model.pixels.of(images))
    assert ours.shape == (3, 7)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_mean_leaves_out_cls_token_and_registers():
    model = tiny(dict(registers=3), pool="mean").eval()
    x = torch.randn(2, 16, 32)
    found = blocks.encode(model.encoder, model.cls_token, x)
    assert found.shape == (2, 17, 32)
    image = torch.randn(2, 3, 32, 32)
    tokens = blocks.encode(
        model.encoder, model.cls_token, blocks.patch_tokens(model.encoder, image)
    )
    expected = model.head(model.norm(tokens[:, 1:].mean(1)))
    torch.testing.assert_close(model.logits(image), expected)


def test_registers_are_read():
    model = tiny(dict(registers=3)).eval()
    image = torch.randn(2, 3, 32, 32)
    before = model.logits(image)
    nn.init.normal_(model.encoder.registers)
    assert not torch.allclose(model.logits(image), before, atol=1e-4)


def test_a_random_half_of_the_tokens_is_read_in_training_only(monkeypatch):
    model = tiny(mask_ratio=0.5)
    read, draws = [], []
    encode = blocks.encode

    def spy(encoder, cls, x):
        read.append(x.shape[1])
        return encode(encoder, cls, x)

    def draw(*args):
        draws.append(blocks_draw(*args))
        return draws[-1]

    blocks_draw = blocks.draw
    monkeypatch.setattr(blocks, "encode", spy)
    monkeypatch.setattr(blocks, "draw", draw)
    model.train()(batch())
    model.train()(batch())
    model.eval()(batch())
    model.validate(batch())
    assert read == [8, 8, 16, 16]
    first, hidden = draws[0]
    assert len({tuple(sorted(kept.tolist())) for kept in first}) == 4  # of each image its own
    for kept, left_out in zip(first, hidden, strict=True):
        assert sorted([*kept.tolist(), *left_out.tolist()]) == list(range(16))


@pytest.mark.parametrize("stem", ["patchify", "conv"])
def test_all_tokens_in_another_order_are_the_same_to_it(stem):
    model = tiny(dict(stem=stem)).eval()
    image = torch.randn(2, 3, 32, 32)
    order = torch.stack([torch.randperm(16) for _ in image])
    expected = model.logits(image)
    torch.testing.assert_close(model.logits(image, order), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.logits(image, order[:, :8]), expected, atol=1e-3)


def test_loss_is_cross_entropy():
    model, images = tiny(label_smoothing=0.1), batch()
    logits = model.eval()(images)
    label = torch.tensor([0, 1, 2, 3])
    found = model.validate(images)
    torch.testing.assert_close(
        found["loss_cls"], nn.functional.cross_entropy(logits, label, reduction="none")
    )
    assert torch.equal(found["accuracy"], (logits.argmax(1) == label).float())
    expected = nn.functional.cross_entropy(logits, label, label_smoothing=0.1)
    losses = model.train()(images)
    assert set(losses) == {"loss_cls"}
    torch.testing.assert_close(losses["loss_cls"], expected)


@pytest.mark.parametrize("mixes", [dict(mixup=0.8), dict(cutmix=1.0), dict(mixup=0.8, cutmix=1.0)])
def test_mixing_changes_images_and_labels_together(mixes, monkeypatch):
    model = tiny(**mixes).train()
    plain, seen = model.pixels.of(batch()), []
    monkeypatch.setattr(
        model, "logits", lambda image, kept: seen.append(image) or torch.zeros(4, 5)
    )
    label = []
    cross_entropy = nn.functional.cross_entropy

    def spy(logits, target, **words):
        label.append(target)
        return cross_entropy(logits, target, **words)

    monkeypatch.setattr("backbones.pretraining.classifier.F.cross_entropy", spy)
    images = batch()
    torch.manual_seed(0)
    for _ in range(6):
        model(images)
    assert all(not torch.equal(image, plain) for image in seen)
    for image, target in zip(seen, label, strict=True):
        torch.testing.assert_close(target.sum(1), torch.ones(4))
        # Images are mixed with their neighbour: pixels of cut ones are of one of the two.
        both = ((image != plain) & (image != plain.roll(1, 0))).any()
        assert both == ("mixup" in mixes and "cutmix" not in mixes) or len(mixes) == 2
    if len(mixes) == 2:
        kinds = {bool(((x != plain) & (x != plain.roll(1, 0))).any()) for x in seen}
        assert kinds == {True, False}


@pytest.mark.parametrize(
    "words", [{}, dict(pretrain_use_cls_token=False), dict(stem="conv")], ids=str
)
def test_every_weight_learns(words):
    model = tiny(words, pool="mean", mask_ratio=0.5).train()
    model(batch())["loss_cls"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    assert (model.cls_token is None) == ("pretrain_use_cls_token" in words)


def test_it_learns_by_half_of_the_tokens():
    model = tiny(pool="mean", mask_ratio=0.5).train()
    nn.init.zeros_(model.head.weight)
    images = batch(5)
    for item in images:
        item["image"] = item["image"] // 4 + item["label"] * 40
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(images)["loss_cls"].backward()
        optimizer.step()
    assert model.eval().validate(images)["accuracy"].all()


@pytest.mark.parametrize(
    ("words", "own", "message"),
    [
        (dict(pretrain_use_cls_token=False), {}, "pool='cls' does not fit"),
        ({}, dict(pool="max"), "pool='max' is unknown"),
        ({}, dict(mask_ratio=1.0), "mask_ratio=1.0"),
        ({}, dict(mask_ratio=0.99), "leaves out all"),
        ({}, dict(num_classes=0), "num_classes=0"),
        ({}, dict(mixup=-1), "mixup=-1"),
        (dict(count=1), {}, "does not fit pre-training"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(words, own, message):
    with pytest.raises(ValueError, match=message) as error:
        tiny(words, **own)
    assert "\n" not in str(error.value)
