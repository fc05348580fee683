"""Image files as RGB pixels, or one line that says which file cannot be read and why."""

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import UserError

# What turns an image upright, by EXIF's "Orientation" (EXIF 2.3, 4.6.4 A).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read(path: str) -> np.ndarray:
    """The pixels of an image file, uint8 (H, W, 3), RGB, upright.

    8-bit images are equal to the bit to `detectron2.data.detection_utils.read_image(path, "RGB")`,
    transparency is ignored. 16-bit greyscale gives its high byte: that function clips it to white.

    Raises:
        UserError: missing, no image, cut off, a decompression bomb (twice PIL's limit of pixels or
            more), or of 32 bits per channel.
    """
    return np.asarray(load(path))


def load(path: str) -> Image.Image:
    """As `read`, in PIL's memory: mode RGB."""
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            method = _UPRIGHT.get(_orientation(image))
            image = _rgb(image)
    except Exception as error:  # on broken files PIL's decoders raise whatever they stumble over
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "empty, or of no known image format"
        raise UserError(
            f"cannot read the image {path}: {reason.splitlines()[0]}; "
            "replace the file, or take it out of the annotations"
        ) from error
    return image if method is None else image.transpose(method)


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # broken EXIF data; the pixels may be whole
        return None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("32 bits per channel, whose range nothing says: convert it to 8 bits")
    image.load()
    image.info.pop("transparency", None)  # ignored; PIL warns of it
    return image if image.mode == "RGB" else image.convert("RGB")
