"""MAE is transformers' `ViTMAEForPreTraining` with the same weights and noise, and honest."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from backbones import ViT, build_encoder
from backbones.norms import TokenBatchNorm
from backbones.pretraining import blocks
from backbones.pretraining.mae import MaskedAutoencoder
from backbones.weights import load_encoder

TINY = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, pretrain_img_size=32)
DECODER = dict(decoder_dim=16, decoder_depth=1, decoder_heads=2)


def tiny(**words) -> MaskedAutoencoder:
    torch.manual_seed(0)
    words = TINY | dict(propagation="global", count=2) | words
    return MaskedAutoencoder(ViT(**words), **DECODER)


def batch(count: int = 2, side: int = 32) -> list[dict]:
    torch.manual_seed(1)
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8)
    return [dict(image=image) for image in images]


def theirs(norm_pixels: bool, **sizes) -> ViTMAEForPreTraining:
    """With random numbers wherever it begins with zeros or ones, positions among them."""
    torch.manual_seed(0)
    config = ViTMAEConfig(norm_pix_loss=norm_pixels, layer_norm_eps=1e-6, **sizes)
    net = ViTMAEForPreTraining(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return net


def pairs(net: ViTMAEForPreTraining) -> dict[str, torch.Tensor]:
    """Its parameters by our names; q, k and v in one."""
    names = {
        "embeddings.patch_embeddings.projection": "encoder.patch_embed.proj",
        "embeddings.position_embeddings": "encoder.pos_embed",
        "embeddings.cls_token": "cls_token",
        "layernorm.": "norm.",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.o_proj": "attn.proj",
        "decoder.decoder_layers": "decoder.blocks",
        "decoder.decoder_": "decoder.",
        "layers.": "encoder.blocks.",
    }
    found, parts = {}, {}
    for name, parameter in net.named_parameters():
        name = name.removeprefix("vit.")
        for old, new in names.items():
            name = new + name.removeprefix(old) if name.startswith(old) else name
            if not old.endswith(".") and old.startswith(("layernorm_", "attention.")):
                name = name.replace(old, new)
        for letter in "qkv":
            if f"attention.{letter}_proj" in name:
                key = name.replace(f"attention.{letter}_proj", "attn.qkv")
                parts.setdefault(key, {})[letter] = parameter
                break
        else:
            found[name] = [parameter]
    return found | {key: [part[letter] for letter in "qkv"] for key, part in parts.items()}


@pytest.mark.parametrize(
    ("size", "decoder", "side", "patch"),
    [
        (dict(hidden_size=32, num_attention_heads=2), (16, 1, 2), 32, 8),
        (dict(hidden_size=768, num_attention_heads=12), (512, 1, 16), 64, 16),
    ],
    ids=["tiny", "as wide as vit-b"],
)
@pytest.mark.parametrize("norm_pixels", [True, False])
def test_loss_and_gradients_are_those_of_transformers(size, decoder, side, patch, norm_pixels):
    dim, depth = size["hidden_size"], 2
    net = theirs(
        norm_pixels,
        **size,
        image_size=side,
        patch_size=patch,
        num_hidden_layers=depth,
        intermediate_size=4 * dim,
        decoder_hidden_size=decoder[0],
        decoder_num_hidden_layers=decoder[1],
        decoder_num_attention_heads=decoder[2],
        decoder_intermediate_size=4 * decoder[0],
    )
    encoder = build_encoder(
        "vit-b",
        img_size=side,
        pretrain_img_size=side,
        patch_size=patch,
        embed_dim=dim,
        num_heads=size["num_attention_heads"],
        depth=depth,
        propagation="global",
        count=depth,
    )
    ours = MaskedAutoencoder(encoder, *decoder, norm_pixels=norm_pixels)
    weights = pairs(net)
    positions = weights.pop("decoder.pos_embed")[0]
    ours.load_state_dict({name: torch.cat(list(parts)) for name, parts in weights.items()})
    ours.decoder.pos_embed.copy_(positions.detach()[0, 1:])
    with torch.no_grad():
        positions[:, 0] = 0  # as sines and cosines have it

    torch.manual_seed(2)
    image, noise = torch.randn(3, 3, side, side), torch.rand(3, (side // patch) ** 2)
    expected = net.train()(pixel_values=image, noise=noise).loss
    expected.backward()
    loss = ours.train().losses(image, noise).mean()
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in ours.named_parameters():
        gradients = [part.grad for part in weights[name]]
        if name == "encoder.pos_embed":  # learned here, fixed there
            assert gradients == [None]
            continue
        gradient = torch.cat(gradients)
        error = (parameter.grad - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert error < 3e-6, name


def test_decoder_positions_are_the_originals():
    """Those of transformers, without the cls token's zeros."""
    config = ViTMAEConfig(image_size=32, patch_size=8, decoder_hidden_size=16)
    net = ViTMAEForPreTraining(config)
    net.decoder.initialize_weights(16)
    expected = net.decoder.decoder_pos_embed[0, 1:]
    torch.testing.assert_close(tiny().decoder.pos_embed, expected)


def test_weights_begin_as_the_originals():
    model = tiny()
    for linear in (model.encoder.blocks[0].attn.qkv, model.decoder.pred, model.decoder.embed):
        bound = (6 / sum(linear.weight.shape)) ** 0.5
        assert 0.9 * bound < linear.weight.abs().max() <= bound
        assert not linear.bias.any()
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.4)
    assert model.decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.5)


@pytest.mark.parametrize("stem", ["patchify", "patchify_norm", "conv"])
def test_what_the_encoder_reads_does_not_depend_on_hidden_pixels(stem):
    model = tiny(stem=stem).eval()
    noise = torch.rand(1, 16)
    image = model.pixels.of(batch(1))
    visible, hidden = model._draw(image, noise)
    other = model._with_hidden(image, hidden, torch.randn(1, hidden.shape[1], 192))
    assert not torch.equal(image, other)
    with torch.no_grad():
        predicted = [model._predict(x, visible, hidden) for x in (image, other)]
        losses = [model.losses(x, noise) for x in (image, other)]
    torch.testing.assert_close(*predicted, rtol=0, atol=0)
    assert losses[0] != losses[1]


def test_visible_patches_alone_are_embedded_as_in_the_whole_image():
    for words in (dict(stem="patchify"), dict(stem="patchify_norm"), dict(pre_norm=True)):
        encoder = tiny(**words).encoder.eval()
        image, kept = torch.randn(2, 3, 32, 32), torch.tensor([[5, 0, 15], [1, 2, 3]])
        expected = blocks.of_each(encoder.tokens(image).flatten(1, 2), kept)
        torch.testing.assert_close(blocks.patch_tokens(encoder, image, kept), expected)


def test_blocks_on_sequences_compute_what_blocks_compute():
    words = dict(drop_path_rate=0.0, act_layer=torch.nn.ReLU6)
    model = tiny(**words).encoder.train()
    x = torch.randn(2, 1, 7, 32, requires_grad=True)
    found = {}
    for name in ("block", "sequence", "whole"):
        model.zero_grad()
        x.grad = None
        if name == "block":
            y = model.blocks[1](model.blocks[0](x))[:, 0]
        else:
            y = blocks.run_blocks(model.blocks, x[:, 0], whole=name == "whole")
        y.square().sum().backward()
        gradients = [p.grad.clone() for p in model.blocks.parameters()]
        found[name] = [y.detach(), x.grad.clone(), *gradients]
    for name in ("sequence", "whole"):
        torch.testing.assert_close(found[name], found["block"], rtol=1e-4, atol=1e-5)


def test_batch_norm_counts_a_forward_pass_once():
    """Also where it is computed again, or again and again, in the backward pass."""
    found = []
    for name in ("block", "sequence", "whole"):
        encoder = tiny(norm_layer=TokenBatchNorm).encoder.train()
        x = torch.randn(2, 1, 7, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
        if name == "block":
            y = encoder.blocks[1](encoder.blocks[0](x))[:, 0]
        else:
            y = blocks.run_blocks(encoder.blocks, x[:, 0], whole=name == "whole")
        y.square().sum().backward()
        statistics = dict(encoder.blocks.named_buffers())
        assert statistics["1.norm2.running_mean"].any()
        found.append(statistics | {n: p.grad for n, p in encoder.blocks.named_parameters()})
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-4)


def test_the_last_block_gives_wanted_tokens_only():
    encoder, x = tiny().encoder.eval(), torch.randn(2, 7, 32)
    expected = blocks.run_blocks(encoder.blocks, x)[:, 4:]
    torch.testing.assert_close(blocks.run_blocks(encoder.blocks, x, wanted=3), expected)


@pytest.mark.parametrize(
    "words",
    [
        dict(pretrain_use_cls_token=False),
        dict(registers=2),
        dict(positions="none"),
        dict(positions="sincos2d"),
        dict(use_act_checkpoint=True),
        dict(stem="conv", pretrain_use_cls_token=False),
    ],
    ids=str,
)
def test_every_weight_learns(words):
    model = tiny(**words).train()
    losses = model(batch())
    assert set(losses) == {"loss_pixels"}
    losses["loss_pixels"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
        assert parameter.grad is None or parameter.grad.any() or "norm" in name, name
    assert (model.cls_token is None) == (not model.encoder.pretrain_use_cls_token)


def test_hidden_patches_are_drawn_anew_and_by_torchs_generator():
    model, images = tiny().eval(), batch()
    torch.manual_seed(4)
    one, two = model(images)["loss_pixels"], model(images)["loss_pixels"]
    torch.manual_seed(4)
    each = model.validate(images)["loss_pixels"]
    assert each.shape == (2,)
    assert each.mean() == one != two


def test_a_reconstruction_shows_what_was_hidden_and_what_came_out():
    model = tiny().eval()
    image = torch.stack([item["image"] for item in batch()]).float()
    noise = torch.linspace(0, 1, 16).expand(2, -1)  # the first quarter, a row of patches, is seen
    shown, filled, hidden = model.reconstruct(image, noise)
    expected = torch.ones(2, 4, 4, dtype=torch.bool)
    expected[:, 0] = False
    assert torch.equal(hidden, expected)
    torch.testing.assert_close(shown[:, :, :8], image[:, :, :8], atol=1e-3, rtol=0)
    torch.testing.assert_close(filled[:, :, :8], image[:, :, :8], atol=1e-3, rtol=0)
    mean = model.pixels.mean.expand(2, -1, 24, 32)
    torch.testing.assert_close(shown[:, :, 8:], mean, atol=1e-3, rtol=0)
    # A prediction of zeros is each patch's own mean.
    model.decoder.pred.weight.data.zero_()
    filled = model.reconstruct(image, noise).filled
    patch = image[0, :, 8:16, :8]
    expected = model.pixels.back(model.pixels(patch).mean().expand(3, 8, 8)).clamp(0, 255)
    torch.testing.assert_close(filled[0, :, 8:16, :8], expected, atol=1e-2, rtol=0)


def test_it_learns():
    model = tiny().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = torch.linspace(0, 255, 32).to(torch.uint8)
    images = [dict(image=rows.view(1, -1, 1).expand(3, 32, 32)) for _ in range(4)]
    torch.manual_seed(0)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(model(images)["loss_pixels"])
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


def test_an_encoder_goes_on_into_detection(tmp_path):
    model = tiny()
    torch.save({"model": copy.deepcopy(model.encoder.state_dict())}, tmp_path / "encoder.pth")
    other = ViT(**TINY, propagation="global", count=1, window_size=2)
    load_encoder(other, tmp_path / "encoder.pth", show=lambda account: None)
    torch.testing.assert_close(
        other.blocks[1].mlp.fc1.weight, model.encoder.blocks[1].mlp.fc1.weight
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (dict(count=1), "window, global does not fit pre-training: propagation='global'"),
        (dict(propagation="conv"), "window [+] residual"),
        (dict(use_rel_pos=True), "use_rel_pos=False"),
        (dict(out_chans=8), "out_chans=None"),
        (dict(mask_ratio=0.25, window_size=2), "mask_ratio=0"),
    ],
    ids=str,
)
def test_other_encoders_are_refused(words, message):
    with pytest.raises(ValueError, match=message) as error:
        tiny(**words)
    assert "\n" not in str(error.value)


def test_sizes_that_do_not_fit_are_refused():
    encoder = tiny().encoder
    for ratio in (0.0, 0.99):
        with pytest.raises(ValueError, match=f"mask_ratio={ratio}"):
            MaskedAutoencoder(encoder, **DECODER, mask_ratio=ratio)
    with pytest.raises(ValueError, match="decoder_depth=0"):
        MaskedAutoencoder(encoder, decoder_depth=0)
    with pytest.raises(ValueError, match="decoder_heads=3"):
        MaskedAutoencoder(encoder, decoder_dim=16, decoder_heads=3)
    with pytest.raises(ValueError, match="img_size=32"):
        tiny()(batch(side=40))


def test_what_a_step_costs_can_be_counted_without_computing():
    """As a run does it: nothing is computed, and what is made again is no multiply-accumulate."""
    counted = []
    for train in (False, True):
        with torch.device("meta"):
            model = tiny().train()
            images = [dict(image=torch.zeros(3, 32, 32, dtype=torch.uint8))]
            with FlopCounterMode(display=False) as counter:
                loss = model(images)["loss_pixels"]
                if train:
                    loss.backward()
        counted.append(counter.get_total_flops())
    assert 2.8 < counted[1] / counted[0] <= 3.1
