"""segment-anything's `sam_vit_*`."""

from ..contents import FORMATS, Contents, Format
from .shared import map_positions


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
        map_positions(contents)
