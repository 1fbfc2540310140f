"""A page in one file: title, style, script and body put into the frame that all pages share."""

import base64
import html
import io
from collections.abc import Sequence
from importlib.resources import files
from string import Template

from PIL import Image

_JPEG_QUALITY = 82


def render_page(*, title: str, body: str, scripts: Sequence[str], styles: Sequence[str]) -> str:
    """The page as ASCII text. The title is escaped here, the body by its makers; scripts and styles are files here."""
    text = Template(_part("page.html")).substitute(
        title=html.escape(title),
        style="\n".join(_part(name) for name in styles),
        script="\n".join(_part(name) for name in scripts),
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


def _part(name: str) -> str:
    return files("videossl.eval").joinpath(name).read_text(encoding="utf-8")
