"""torchvision's `vit_*`."""

from ..contents import FORMATS, Contents, Format, WeightsError


@FORMATS.register("torchvision")
class Torchvision(Format):
    """`torchvision.models.VisionTransformer`, weights IMAGENET1K_*."""

    title = "torchvision vit_*"
    mark = r"^encoder\.layers\.encoder_layer_0\.self_attention\."
    drop = {
        r"^class_token$": "cls token",
        r"^encoder\.ln\.": "norm behind the last block",
        r"^heads\.": "classifier's head",
    }
    rename = (
        (r"^conv_proj\.", "patch_embed.proj."),
        (r"^encoder\.pos_embedding$", "pos_embed"),
        (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.self_attention\.in_proj_", ".attn.qkv."),
        (r"\.self_attention\.out_proj\.", ".attn.proj."),
        (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
        (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
    )

    needs = ("pos_embed",)

    def finish(self, contents: Contents) -> None:
        contents.prefix = 1
        if stem := [k for k in contents.encoder if k.startswith("patch_embed.proj.conv_bn_relu_")]:
            raise WeightsError(f"has {stem[0]}: a conv stem (conv_stem_configs) is not read")
