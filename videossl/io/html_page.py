"""A page in one file: title, style, script and body put into the frame that all pages share."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from PIL import Image

_JPEG_QUALITY = 82


def render_page(*, title: str, body: str, scripts: Sequence[str], styles: Sequence[str]) -> str:
    """The page as ASCII text. The title is escaped here, the body by its makers; scripts and styles are texts."""
    text = Template(asset("page.html")).substitute(
        title=html.escape(title),
        style="\n".join(styles),
        script="\n".join(scripts),
        body=body,
    )
    # Names of files may hold what no encoding can write.
    return text.encode("ascii", "xmlcharrefreplace").decode()


def data_uri(data: bytes, kind: str) -> str:
    """Bytes as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def jpeg_uri(picture: Image.Image) -> str:
    """An RGB picture as an address that holds it."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return data_uri(buffer.getvalue(), "image/jpeg")


def definitions(values: Mapping[str, Any]) -> str:
    """A `<dl>` of all values that are given, those of nested mappings under dotted names."""
    items = _flat(values, "")
    rows = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in items)
    return f"<dl>{rows}</dl>"


def asset(name: str, package: str = "videossl.io") -> str:
    """The text of a file that lies beside the code of a package."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def _flat(values: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    items: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            items += _flat(value, f"{prefix}{key}.")
        elif value is not None or prefix:
            items.append((f"{prefix}{key}", "none" if value is None else str(value)))
    return items
