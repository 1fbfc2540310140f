"""How videos are packed: what the command line sets, checked, without a library to wait for."""

from dataclasses import dataclass

from videossl.errors import UserError


@dataclass(frozen=True)
class PackSettings:
    """How videos are written. Raises UserError for what makes no sense."""

    short_side: int = 256  # pixels; smaller videos keep their size
    fps: float | None = None  # None: each video's own average rate
    gop: int = 32  # frames from key frame to key frame
    crf: int = 23  # x264's quality: less is better and larger
    min_shot_seconds: float = 1.0  # shorter shots are dropped
    videos_per_shard: int = 256

    def __post_init__(self) -> None:
        if self.short_side < 16 or self.short_side % 2:
            raise UserError(f"--short-side must be an even number >= 16, got {self.short_side}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise UserError(f"--fps must be above 0 and at most 1000, got {self.fps:g}")
        if not 1 <= self.gop <= 1000:
            raise UserError(f"--gop must be from 1 to 1000, got {self.gop}")
        if not 0 <= self.crf <= 51:
            raise UserError(f"--crf must be from 0 (lossless) to 51, got {self.crf}")
        if self.min_shot_seconds < 0:
            raise UserError(f"--min-shot must be at least 0 s, got {self.min_shot_seconds:g}")
        if self.videos_per_shard < 1:
            raise UserError(f"--videos-per-shard must be at least 1, got {self.videos_per_shard}")
