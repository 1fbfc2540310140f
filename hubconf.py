"""Entry points of torch.hub.

encoder = torch.hub.load(REPOSITORY, "videossl_encoder", "run, file or URL")   # trained
encoder = torch.hub.load(REPOSITORY, "slow_r50", stage="res4")                  # untrained, by name
features = encoder(video)                                                       # (N, T, 3, H, W) uint8 RGB -> (N, C)
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch.hub takes every callable of this file for an entry point
    from collections.abc import Callable
    from pathlib import Path

    from videossl.export.video_encoder import VideoEncoder

dependencies = ["torch", "torchvision", "pytorchvideo", "safetensors", "fsspec", "numpy", "rich"]


def videossl_encoder(
    source: "str | Path", *, stage: str | None = None, sha256: str | None = None
) -> "VideoEncoder":
    """A trained encoder of a run's folder, a checkpoint, an exported .safetensors file or a URL: `videossl.load_encoder`."""
    from videossl import load_encoder

    return load_encoder(source, stage=stage, sha256=sha256)


def _untrained(name: str) -> "Callable[..., VideoEncoder]":
    def build(
        *,
        stage: str = "res5",
        seed: int = 0,
        keep_time: bool = True,
        max_stride: int | None = None,
    ) -> "VideoEncoder":
        from videossl.export.video_encoder import ClipForm, VideoEncoder
        from videossl.models.encoder_file import untrained_encoder

        spec = {
            "name": name,
            "deepest_stage": stage,
            "keep_time": keep_time,
            "max_stride": max_stride,
        }
        encoder = untrained_encoder({"spec": spec, "track_stage": None}, seed)
        return VideoEncoder(encoder, ClipForm(), stage=stage).eval()

    build.__name__ = name
    build.__doc__ = f"An untrained {name} up to `stage`, its weights of `seed`; see videossl.models.encoder.EncoderSpec."
    return build


tiny = _untrained("tiny")
small = _untrained("small")
slow_r50 = _untrained("slow_r50")
x3d_s = _untrained("x3d_s")
csn_r101 = _untrained("csn_r101")
r3d_18 = _untrained("r3d_18")
r2plus1d_18 = _untrained("r2plus1d_18")
s3d = _untrained("s3d")
