"""Pictures as parts of an HTML page: SVG as elements of it, in its colors."""

import base64
import io
import re
from pathlib import Path
from xml.etree import ElementTree

from markupsafe import Markup
from PIL import Image

# Colors of the plots' style, as those of the page.
_COLORS = {
    "#000000": "currentColor",
    "#262626": "currentColor",
    "#595959": "var(--muted)",
    "#cccccc": "var(--line)",
    "#e6e6e6": "var(--line)",
    "#ffffff": "var(--page)",
}
_RASTER = 400_000  # bytes: above, an SVG goes into the page as a picture of pixels
_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"


def inline(files: dict[str, Path], label: str, unique: str) -> Markup:
    """A picture as part of the page."""
    text = files["svg"].read_text()
    width = re.search(r'<svg\b[^>]*\bwidth="([\d.]+)pt"', text)[1]
    style = f"--width: {float(width) * 4 / 3:.0f}px"
    if "<image" not in text and len(text) <= _RASTER:
        return _svg_element(text, label, style, unique)
    webp = io.BytesIO()
    with Image.open(files["png"]) as image:
        image.convert("RGB").save(webp, "webp", quality=75)
    data = base64.b64encode(webp.getvalue()).decode()
    return Markup('<img alt="{}" style="{}" src="data:image/webp;base64,{}">').format(
        label, style, data
    )


def _svg_element(text: str, label: str, style: str, unique: str) -> Markup:
    """An SVG file of `style.save` as an element of the page.

    Args:
        unique: put in front of its ids, which the page has from every plot.
    """
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    used = set(re.findall(r"""(?:url\(|href=")#([^)"]+)""", text))
    for element in root.iter():
        attributes = element.attrib
        name = attributes.pop("id", None)
        if name in used:
            attributes["id"] = f"{unique}-{name}"
        if _HREF in attributes:
            attributes["href"] = f"#{unique}-{attributes.pop(_HREF)[1:]}"
        for key, value in attributes.items():
            value = value.replace("url(#", f"url(#{unique}-")
            if key == "style":
                for color, variable in _COLORS.items():
                    value = value.replace(color, variable)
            elif key in ("d", "x", "y"):
                value = re.sub(r"(\.\d\d)\d+", r"\1", value)
            attributes[key] = value
        for part in ("text", "tail"):
            if not (getattr(element, part) or "").strip():
                setattr(element, part, None)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "group", "aria-label": label, "style": style}
    return Markup(ElementTree.tostring(root, encoding="unicode"))
