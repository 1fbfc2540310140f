"""A page on which a clicked pixel shows where it looks: features go into the file, the browser weighs them itself.

Features are kept in 16 bits with a scale per cell. Where they would be larger than a page should be, they are first turned
so that few channels hold most of their products (the eigenvectors of their second moment), and the others are dropped; the
page says what share is left.
"""

import base64
import html
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from videossl.drawing import as_array
from videossl.eval.attention_picture import Reading
from videossl.eval.frames import FrameSource
from videossl.eval.page_template import asset, jpeg_uri, render_page
from videossl.eval.protocol import Protocol
from videossl.whole_file import write_text

FEATURE_BYTES = 24 * 2**20  # chosen: a third more in base64, and a click is answered at once
_LARGEST = 2**15 - 1
_IMAGE_HEIGHT = 240  # pixels


class PackedFeatures(NamedTuple):
    """`values[n, cell]` times `scales[n, cell]` are features; `kept` is their share of the sum of squares."""

    values: NDArray[np.int16]  # (N, h w, D)
    scales: NDArray[np.float32]  # (N, h w)
    kept: float


def pack_features(features: Tensor, *, max_bytes: int = FEATURE_BYTES) -> PackedFeatures:
    """Frames (N, D, h, w) in at most `max_bytes`, one channel at least, such that products of cells are kept."""
    cells = features.flatten(2).transpose(1, 2).float().cpu()  # (N, h w, D)
    num_channels = max(1, max_bytes // (2 * cells.shape[0] * cells.shape[1]))
    kept = 1.0
    if num_channels < cells.shape[2]:
        flat = cells.flatten(0, 1).double()
        strengths, axes = torch.linalg.eigh(flat.T @ flat)  # ascending
        kept = float(strengths[-num_channels:].sum() / strengths.sum())
        cells = (cells.double() @ axes[:, -num_channels:]).float()
    scales = cells.abs().amax(2).clamp_min(1e-12) / _LARGEST
    values = (cells / scales[:, :, None]).round().to(torch.int16)
    return PackedFeatures(values.numpy(), scales.numpy(), kept)


def write_attention_page(
    path: Path,
    source: FrameSource,
    reading: Reading,
    protocol: Protocol,
    *,
    title: str,
    cell: tuple[int, int],
    max_bytes: int = FEATURE_BYTES,
) -> None:
    """Writes the page. It opens with `cell` (row, column) looking; `max_bytes` bounds the features in it."""
    indices = sorted(reading.keys)
    features = torch.stack([reading.query, *(reading.keys[index] for index in indices)])
    packed = pack_features(features, max_bytes=max_bytes)
    height, width = reading.query.shape[1:]
    data = {
        "height": height,
        "width": width,
        "cell": list(cell),
        "read": [indices.index(index) for index in reading.read_indices],
        "features": [_text(values.astype("<i2")) for values in packed.values],  # the query's first
        "scales": [_text(scales.astype("<f4")) for scales in packed.scales],
        "temperature": protocol.temperature,
        "radius": protocol.radius,
        "distanceSigma": protocol.distance_sigma,
        "isCircle": protocol.window == "circle",
        "topK": protocol.top_k,
        "isPerFrame": protocol.top_k_of == "frame",
        "renormalize": protocol.renormalize,
        "numUnmasked": int(protocol.first_unmasked and protocol.keep_first),
    }
    shortened = f" The features here hold {100 * packed.kept:.1f} % of the energy of all channels."
    body = [
        f"<h1>{html.escape(title)}</h1>",
        '<p class="muted">Click into the frame, or move with the arrow keys: the frames that it reads show where '
        f"that cell looks, red to yellow.{shortened if packed.kept < 1 else ''}</p>",
        _figure("query", source, reading.query_index, f"frame {reading.query_index}"),
        '<div class="read">',
        *(_figure("key", source, index, f"frame {index}") for index in indices),
        "</div>",
        f'<script type="application/json" id="data">{json.dumps(data)}</script>',  # numbers and base64
    ]
    page = render_page(
        title=title,
        body="\n".join(body),
        scripts=[asset("attention.js")],
        styles=[asset("page.css"), asset("attention.css")],
    )
    write_text(path, page)


def _figure(kind: str, source: FrameSource, index: int, caption: str) -> str:
    height, width = source.native_size
    size = (_IMAGE_HEIGHT, max(1, round(width * _IMAGE_HEIGHT / height)))
    image = Image.fromarray(as_array(source.read([index], size)[0].cpu()))
    focus = ' tabindex="0" role="application" aria-label="choose a cell"' if kind == "query" else ""
    return (
        f'<figure class="{kind}"><div class="frame"{focus}><img src="{jpeg_uri(image)}" alt="{caption}">'
        f"<canvas></canvas></div><figcaption>{caption}<b></b></figcaption></figure>"
    )


def _text(array: NDArray[np.generic]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
