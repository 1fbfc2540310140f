"""What several tasks make of clips: patches and crops that move, clips without the camera's motion, cells of color."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from numpy.typing import NDArray
from torch import Tensor

from videossl.color import denormalize_lab, lab_to_rgb, normalize_lab, rgb_to_lab
from videossl.rng import RowRandom, fold
from videossl.types import Predictions, metric_sum, metric_sum_by_class


def cut_frames(clips: Tensor, offsets: Tensor, size: int) -> Tensor:
    """(N, 3, T, size, size): of each frame the square whose top left corner is `offsets` (N, T, 2), row and column."""
    span = torch.arange(size, device=clips.device)
    rows, columns = (offsets[..., axis, None] + span for axis in (0, 1))  # (N, T, size)
    clip = torch.arange(len(clips), device=clips.device)[:, None, None, None]
    frame = torch.arange(clips.shape[2], device=clips.device)[None, :, None, None]
    cut = clips.movedim(1, -1)[clip, frame, rows[..., None], columns[:, :, None]]
    return cut.movedim(-1, 1)  # from (N, T, size, size, 3)


def split_channels(clips: Tensor, channel: Tensor) -> Tensor:
    """Grey clips that show one of red, green and blue, the same shape: `channel` (N, T) in [0, 3) for each frame.

    Channel splitting (Lee et al., ICCV 2017, section 4.1): frames of two channels cannot be compared by their colour.
    """
    rgb = _rgb(clips)
    index = channel[:, None, :, None, None].expand(-1, 1, -1, *clips.shape[3:])
    grey = rgb.gather(1, index)  # (N, 1, T, H, W)
    lightness = normalize_lab(rgb_to_lab(grey.expand_as(rgb), dim=1), dim=1)[:, :1]
    return torch.cat([lightness, torch.zeros_like(clips[:, 1:])], 1)


def show_apart(clips: Tensor, rng: RowRandom, *, size: int, shift: int, is_split: bool) -> Tensor:
    """The clips of a window (B, K, 3, T, H, W), each cut at an offset of its own, (B K, 3, T, size, size).

    Offsets are up to `shift` pixels, the same for a clip's frames; if `is_split`, each clip shows one colour channel.
    """
    count, num_frames = clips.shape[1], clips.shape[3]
    views = clips.flatten(0, 1)
    if shift:
        offsets = rng.integers(count, 1, 2, high=2 * shift + 1).expand(-1, -1, num_frames, -1)
        views = cut_frames(views, offsets.flatten(0, 1), size)
    if is_split:
        channel = rng.integers(count, 1, high=3).expand(-1, -1, num_frames)
        views = split_channels(views, channel.flatten(0, 1))
    return views


def without_green_magenta(clips: Tensor) -> Tensor:
    """Clips whose colours are projected along the axis from green to magenta, the same shape.

    Lenses shift green against magenta towards the edge of a picture, so that colour fringes tell where a patch was
    (Doersch et al., ICCV 2015, section 3.1); two frames that differ along that axis alone become one. In sRGB, as there.
    """
    red, green, blue = _rgb(clips).unbind(1)
    part = (2 * green - red - blue) / 6  # along (-1, 2, -1), whose square is 6
    projected = torch.stack([red + part, green - 2 * part, blue + part], 1)
    return normalize_lab(rgb_to_lab(projected, dim=1), dim=1)


def reorder_frames(clips: Tensor, order: Tensor) -> Tensor:
    """The frames of each clip whose indices are `order` (N, T), in that order."""
    index = order[:, None, :, None, None].expand(-1, clips.shape[1], -1, *clips.shape[3:])
    return clips.gather(2, index)


def warp_frames(
    clips: Tensor, *, centre: Tensor, scale: Tensor, angle: Tensor, size: int
) -> Tensor:
    """(N, 3, T, size, size): of each clip the square around `centre` (N, 2), all its frames alike.

    `centre` is a row and a column in pixels from the top left corner, `scale` (N,) how many pixels of the clip one of the
    result covers, `angle` (N,) radians that the square is turned by, clockwise. Two samples a side for each pixel: no
    aliasing up to a scale of 2. Beyond its edge a clip goes on as it ends.
    """
    span = (torch.arange(2 * size, device=clips.device) + 0.5) / 2 - size / 2
    down, right = torch.meshgrid(span, span, indexing="ij")  # pixels of the result, from its centre
    turn, scale = angle[:, None, None], scale[:, None, None]
    row = centre[:, 0, None, None] + scale * (turn.cos() * down + turn.sin() * right)
    column = centre[:, 1, None, None] + scale * (turn.cos() * right - turn.sin() * down)
    place = torch.stack([2 * column / clips.shape[4] - 1, 2 * row / clips.shape[3] - 1], -1)
    frames = clips.flatten(1, 2)  # (N, 3 T, H, W)
    sampled = F.grid_sample(frames, place, padding_mode="border", align_corners=False)
    return F.avg_pool2d(sampled, 2).unflatten(1, clips.shape[1:3])


def thumbnails(clips: Tensor, side: int = 8) -> Tensor:
    """(N, side, side): the lightness of each clip's middle frame, area-sampled; what rules without a network look at."""
    return F.adaptive_avg_pool2d(clips[:, 0, clips.shape[2] // 2], side)


def mean_pictures(clips: Tensor, side: int = 8) -> Tensor:
    """(N, 3 side^2): each clip's mean over time, area-sampled; the nearest of them is often of the same video."""
    return F.adaptive_avg_pool3d(clips, (1, side, side)).flatten(1)


def change(clips: Tensor) -> Tensor:
    """(N,) the mean |difference| of neighbouring frames, lightness alone."""
    lightness = clips[:, 0]
    return (lightness[:, 1:] - lightness[:, :-1]).abs().mean(dim=(1, 2, 3))


def _rgb(clips: Tensor) -> Tensor:
    """sRGB in [0, 1] of normalised Lab, the same shape."""
    return lab_to_rgb(denormalize_lab(clips, dim=1), dim=1)


MAX_CORNERS = 200
MIN_CORNERS = 12  # below which no homography is believed; chosen
MIN_INLIERS = 0.5  # share of the corners tracked that must follow it; chosen
RANSAC_PIXELS = 1.0

Homographies = NDArray[np.float64]  # (T, 3, 3)


def require_opencv() -> Any:
    """The module cv2; raises ValueError that says how to get it."""
    try:
        import cv2
    except ImportError as error:
        raise ValueError(
            "stabilising needs OpenCV: pip install 'videossl[stabilization]', or set stabilize=false"
        ) from error
    return cv2


def camera_motion(frames: NDArray[np.uint8]) -> Homographies | None:
    """The homography from the centre frame to each frame of a grey clip (T, H, W); None where one cannot be believed.

    Points (x, y) of the centre frame, T // 2, go to where the camera's motion has taken them.
    """
    cv2 = require_opencv()
    centre = len(frames) // 2
    side = min(frames.shape[1:])
    corners = cv2.goodFeaturesToTrack(
        frames[centre], MAX_CORNERS, qualityLevel=0.01, minDistance=max(3, side // 24)
    )
    if corners is None or len(corners) < MIN_CORNERS:
        return None
    motion = np.tile(np.eye(3), (len(frames), 1, 1))
    # Outwards from the centre, each time from where the corners were seen last.
    for direction in (1, -1):
        found, alive = corners.copy(), np.ones(len(corners), dtype=bool)
        previous = frames[centre]
        for index in range(centre + direction, -1 if direction < 0 else len(frames), direction):
            found, status, _ = cv2.calcOpticalFlowPyrLK(previous, frames[index], found, None)
            alive &= status[:, 0] == 1
            if alive.sum() < MIN_CORNERS:
                return None
            fitted, inliers = cv2.findHomography(
                corners[alive], found[alive], cv2.RANSAC, RANSAC_PIXELS
            )
            if fitted is None or inliers.mean() < MIN_INLIERS:
                return None
            motion[index] = fitted
            previous = frames[index]
    return motion


def covers(motion: Homographies, side: int, margin: int) -> bool:
    """Whether every frame of `side` pixels shows all of what the centre frame shows inside `margin`."""
    low, high = margin, side - 1 - margin
    corners = np.array([[low, low, 1], [low, high, 1], [high, low, 1], [high, high, 1]], float)
    taken = motion @ corners.T  # (T, 3, 4)
    if (taken[:, 2] <= 0).any():  # behind the camera
        return False
    points = taken[:, :2] / taken[:, 2:]
    return bool((points >= 0).all() and (points <= side - 1).all())


def stabilize(clips: Tensor, margin: int) -> tuple[Tensor, Tensor]:
    """Clips (N, 3, T, S, S) of normalised Lab over their centre frames, without `margin` pixels on each side, and (N,) bool
    whether that was possible; those where it was not are cut alone.

    Waits for the device: corners are tracked on the CPU. T must be odd: the centre frame alone is not resampled, and only in
    the very middle does it look the same from both ends.
    """
    num_clips, _, num_frames, side, _ = clips.shape
    if num_frames % 2 == 0:
        raise ValueError(f"num_frames must be odd to be stabilised, got {num_frames}")
    lightness = clips[:, 0].float()
    low, high = lightness.amin((1, 2, 3), keepdim=True), lightness.amax((1, 2, 3), keepdim=True)
    grey = (255 * (lightness - low) / (high - low).clamp_min(1e-3)).to(torch.uint8).cpu().numpy()
    motions = [camera_motion(clip) for clip in grey]
    stable = [motion is not None and covers(motion, side, margin) for motion in motions]
    identity = np.tile(np.eye(3), (num_frames, 1, 1))
    chosen = [
        m if m is not None and ok else identity for m, ok in zip(motions, stable, strict=True)
    ]
    homographies = torch.from_numpy(np.stack(chosen)).to(clips.device, torch.float32)
    inside = torch.arange(margin, side - margin, device=clips.device, dtype=torch.float32)
    y, x = torch.meshgrid(inside, inside, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], -1)  # (s, s, 3)
    taken = torch.einsum("ntij,yxj->ntyxi", homographies, points)
    grid = 2 * taken[..., :2] / taken[..., 2:] / (side - 1) - 1
    frames = clips.transpose(1, 2).flatten(0, 1).float()
    warped = F.grid_sample(frames, grid.flatten(0, 1), align_corners=True, padding_mode="border")
    warped = warped.unflatten(0, (num_clips, num_frames)).transpose(1, 2).to(clips.dtype)
    return warped, torch.tensor(stable, device=clips.device)


KMEANS_SAMPLES = 50_000  # Vondrick et al., section 3.3


def fit_classes(samples: Tensor, num_classes: int, chooser: np.random.Generator) -> Tensor:
    """(classes, V) centroids of k-means on samples (N, V), seeded by `chooser`."""
    from scipy.cluster.vq import kmeans2  # scipy.cluster takes half a second to load

    centroids, _ = kmeans2(
        samples.double().cpu().numpy(), num_classes, minit="++", rng=chooser, missing="warn"
    )
    return torch.from_numpy(centroids)


def some_samples(cells: Tensor, seed: int) -> tuple[Tensor, np.random.Generator]:
    """At most KMEANS_SAMPLES rows of cells (N, V), drawn by the seed, and the generator that drew them."""
    chooser = np.random.default_rng(fold(seed, "colour classes") % 2**32)
    drawn = chooser.choice(
        cells.double().cpu().numpy(), min(KMEANS_SAMPLES, len(cells)), replace=False
    )
    return torch.from_numpy(drawn), chooser


def classify(colours: Tensor, centroids: Tensor) -> Tensor:
    """(B, V, T, h, w) colours to the index of the nearest of each row's centroids (B, classes, V): (B, T, h, w)."""
    flat = rearrange(colours.float(), "b v t h w -> b (t h w) v")
    nearest = torch.cdist(flat, centroids).argmin(-1)
    return nearest.view(colours.shape[0], *colours.shape[2:])


def one_hot(classes: Tensor, num_classes: int) -> Tensor:
    """(B, T, h, w) classes to (B, T, classes, h, w) float: what is copied of them."""
    numbers = torch.arange(num_classes, device=classes.device)
    return (classes[:, :, None] == numbers[:, None, None]).float()


def copied_loss(shares: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of copied class shares (B, classes, h, w) at the true classes (B, h, w)."""
    # nll_loss over maps has no backward for permuted strides.
    return F.nll_loss((shares + 1e-6).log().contiguous(), classes)


class CellTruth(NamedTuple):
    """What the cells of a target frame are: `classes` (B, h, w) in a row's table, `same_cell` that of the frame before at
    the same place, `moved` whether something changed there, `table` (B,) whose classes they are of `num_tables`."""

    classes: Tensor
    same_cell: Tensor
    moved: Tensor
    table: Tensor
    num_classes: int
    num_tables: int = 1

    def labels(self, classes: Tensor) -> Tensor:
        """Each of the tables' classes as a class of its own."""
        return classes + self.num_classes * self.table[:, None, None]


def cell_metrics(predicted: Tensor, truth: CellTruth) -> dict[str, Tensor]:
    """Accuracy beside the most frequent class (`chance`) and a copy of the same cell, and the same on moving cells alone."""
    right = (predicted == truth.classes).float()
    copied = (truth.same_cell == truth.classes).float()
    moved = truth.moved.float()
    label = truth.labels(truth.classes)
    num_labels = truth.num_classes * truth.num_tables
    # The share of the batch's most frequent class: no guess made before looking can score more.
    counts = torch.zeros(num_labels, device=label.device)
    shares = counts.index_add_(0, label.flatten(), torch.ones_like(right).flatten())
    majority = shares.view(truth.num_tables, -1).amax(1).sum() / label.numel()
    return {
        "accuracy": metric_sum(right),
        "chance": metric_sum(majority.expand_as(right)),
        "shortcut_baseline": metric_sum(copied),
        "balanced_accuracy": metric_sum_by_class(right, label, num_labels),
        "balanced_identity_accuracy": metric_sum_by_class(copied, label, num_labels),
        "moving_accuracy": metric_sum(right, moved),
        "moving_identity_accuracy": metric_sum(copied, moved),
    }


def cell_answers(copied: Tensor, truth: CellTruth, numbers: Mapping[str, Tensor]) -> Predictions:
    """Each cell is a question: `copied` (B, classes, h, w) scores the classes of the row's table."""
    rows = torch.arange(len(copied), device=copied.device)
    shape = (len(copied), truth.num_tables, *copied.shape[1:])
    scores = copied.new_full(shape, -torch.inf)
    scores[rows, truth.table] = copied
    height, width = copied.shape[2:]
    return Predictions(
        rearrange(scores, "b t k h w -> (b h w) (t k)"),
        truth.labels(truth.classes).flatten(),
        repeat(rows, "b -> (b h w)", h=height, w=width),
        baselines={"same cell": truth.labels(truth.same_cell).flatten()},
        numbers={name: value.flatten() for name, value in numbers.items()},
        subsets={"moving": truth.moved.flatten()},
    )
