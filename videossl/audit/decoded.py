"""What decoded clips hold beside the video: frames shown twice at one end, black bars at the rim."""

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

from videossl.audit.findings import LEAK_ERRORS, Check
from videossl.catalog.cuts_and_bars import find_bars
from videossl.data.dataset import RawClips
from videossl.types import ClipSpec

MAX_BARRED_SHARE = 0.02  # of videos; dark scenes of few frames can look like bars
LEAST_DIFFERENCE = (
    1e-3  # of the shares of repeated frames in the two halves of clips (shortcuts: 0.1 %)
)
LUMA = (0.299, 0.587, 0.114)


class DecodedClips:
    """Looks at raw batches; `border` is the share of the side that augmentation cuts off anyway."""

    def __init__(self, border: float) -> None:
        self._border = border
        self._repeats: dict[ClipSpec, list[np.ndarray]] = defaultdict(list)
        self._barred: dict[ClipSpec, list[np.ndarray]] = defaultdict(list)

    def look(self, raw: RawClips) -> None:
        """Takes one decoded batch."""
        for spec, frames in raw.frames.items():
            same = (frames[:, :, 1:] == frames[:, :, :-1]).flatten(3).all(-1)  # (B, K, T - 1)
            self._repeats[spec].append(same.flatten(0, 1).cpu().numpy())
            self._barred[spec].append(_is_barred(frames, self._border))

    def checks(self, spec: ClipSpec) -> list[Check]:
        """Of the clips that a task with this spec is shown."""
        return [
            repeat_check(np.concatenate(self._repeats[spec])),
            _bar_check(np.concatenate(self._barred[spec])),
        ]


def repeat_check(repeats: np.ndarray) -> Check:
    """Whether frames are repeated more in one half of clips: (clips, T - 1) whether a frame is the one before again.

    Slow footage repeats frames anywhere; what fills a clip up repeats them at one end, which shows the direction of time.
    """
    name, half = "repeated frames", repeats.shape[1] // 2
    if half == 0:
        return Check("sampling", name, True, "clips are too short to be filled up")
    shares = repeats.mean(0)
    ahead = repeats[:, -half:].mean(1) - repeats[:, :half].mean(1)
    difference, error = float(ahead.mean()), float(ahead.std() / np.sqrt(len(ahead)))
    is_clean = abs(difference) < max(LEAST_DIFFERENCE, LEAK_ERRORS * error)
    end = "end" if difference > 0 else "beginning"
    numbers = {f"pair {pair}": float(share) for pair, share in enumerate(shares)}
    if is_clean:
        says = f"frames are repeated alike in both halves of clips ({shares.mean():.1%} of them)"
    else:
        most = shares[-1] if difference > 0 else shares[0]
        says = f"clips are padded at the {end}: the frame there is repeated in {most:.0%} of clips"
    return Check("sampling", name, is_clean, says, numbers)


def _is_barred(frames: Tensor, border: float) -> np.ndarray:
    """(B,) bool: whether black bars are inside what is left when the border is cut off (B, K, T, 3, S, S) uint8 frames."""
    edge = int(np.ceil(border * frames.shape[-1]))
    inner = frames[..., edge : frames.shape[-2] - edge, edge : frames.shape[-1] - edge]
    weights = torch.tensor(LUMA, device=frames.device)[:, None, None]
    luma = (inner.float() * weights).sum(3).round().to(torch.uint8).flatten(1, 2)
    brightest, darkest = luma.amax(1).cpu().numpy(), luma.amin(1).cpu().numpy()
    return np.array(
        [any(find_bars(most, least)) for most, least in zip(brightest, darkest, strict=True)]
    )


def _bar_check(barred: np.ndarray) -> Check:
    share = float(barred.mean())
    says = f"black bars are inside the crop ({share:.0%} of {len(barred)} samples)"
    return Check("sampling", "black bars", share <= MAX_BARRED_SHARE, says, {"share": share})
