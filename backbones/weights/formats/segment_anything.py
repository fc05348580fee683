"""segment-anything's `sam_vit_*`."""

from ..contents import FORMATS, Contents, Format, WeightsError


@FORMATS.register("sam")
class SegmentAnything(Format):
    """`segment_anything.modeling.Sam`, and its `ImageEncoderViT` alone (arXiv:2304.02643)."""

    title = "segment-anything sam_vit_*"
    mark = r"^(image_encoder\.)?blocks\.\d+\.mlp\.lin1\."
    drop = {
        r"^prompt_encoder\.": "SAM's prompt encoder",
        r"^mask_decoder\.": "SAM's mask decoder",
        r"^pixel_(mean|std)$": "pixel mean and std: those of the config are used",
    }
    rename = ((r"^image_encoder\.", ""), (r"\.mlp\.lin([12])\.", r".mlp.fc\1."))
    new = Contents.new  # relative positions and the neck are all there

    def finish(self, contents: Contents) -> None:
        if "pos_embed" in contents.encoder:
            pos_1HWC = contents.encoder["pos_embed"]
            if pos_1HWC.ndim != 4:
                raise WeightsError(
                    f"pos_embed is {tuple(pos_1HWC.shape)}, not (1, rows, columns, channels)"
                )
            contents.grid = tuple(pos_1HWC.shape[1:3])
            contents.encoder["pos_embed"] = pos_1HWC.flatten(1, 2)
