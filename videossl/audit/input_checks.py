"""Checks of what a task is given: its labels, where clips lie in their files, what they hold, the split, hidden colours.

Each function returns a `Check` that says in words what is as it should be or is not. Nothing is fitted here.
"""

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from videossl.audit.match_baselines import copies_colors
from videossl.audit.shortcut_baselines import LEAK_ERRORS, Check
from videossl.audit.subject import Subject
from videossl.catalog.cuts_and_bars import find_bars
from videossl.catalog.near_duplicates import near_pairs
from videossl.data.dataset import ClipDataset, RawClips, video_times
from videossl.data.manifest import Manifest
from videossl.data.sampling import plan_clip_times
from videossl.decode.index import usable_seconds
from videossl.decode.reader import indices_shown_at
from videossl.io.progress import track
from videossl.pretext.task import PretextTask
from videossl.rng import generator
from videossl.types import ClipBatch, ClipSpec, Views

NUM_PERMUTATIONS = 2000
LEAST_BITS = 1e-3  # below, a dependence is too weak to learn from
MAX_P = 1e-3  # of a permutation test; several places of several tasks are tested
IMAGINED_RANKS = 2  # among which the rows of a batch would be shared out
MAX_SHARE = 0.01  # of clips that may lie where they should not
EDGE = 1e-6  # seconds: times are rounded
MAX_BARRED_SHARE = 0.02  # of videos; dark scenes of few frames can look like bars
# Of the shares of repeated frames in the two halves of clips (shortcuts: 0.1 %).
LEAST_DIFFERENCE = 1e-3
LUMA = (0.299, 0.587, 0.114)


def label_checks(
    labels: np.ndarray, positions: np.ndarray, *, batch_size: int, seed: int = 0
) -> list[Check]:
    """P0: counts how often each label (Q,) occurs, and tests whether labels are tied to where their question stands.

    `positions` (Q,) are the dataset's positions of the videos. A label must be a fact of the video or a draw.
    """
    counts = Counter(labels.tolist())
    occur = "labels occur " + ", ".join(f"{label}: {counts[label]}" for label in sorted(counts))
    checks = [Check("P0", "label counts", len(counts) > 1, occur, {"labels": len(counts)})]
    rows = positions % batch_size
    places = {
        "parity of the video's index": positions % 2,
        "row in the batch": rows,
        "batch": positions // batch_size % 2,
        f"rank, of {IMAGINED_RANKS}": rows * IMAGINED_RANKS // batch_size,
    }
    random = np.random.default_rng(seed)
    for name, place in places.items():
        if len(np.unique(place)) < 2:
            continue
        bits, p = dependence(labels, place, positions, random)
        is_clean = p > MAX_P or bits < LEAST_BITS
        tied = "is not tied to" if is_clean else "is tied to"
        says = f"the label {tied} the {name}: {bits:.4f} bits above shuffled labels (p = {p:.4f})"
        checks.append(Check("P0", f"label and {name}", is_clean, says, {"bits": bits, "p": p}))
    return checks


def dependence(
    labels: np.ndarray, place: np.ndarray, videos: np.ndarray, random: np.random.Generator
) -> tuple[float, float]:
    """(bits, p): mutual information less its mean under permutations, and how rarely a permutation has as much.

    Estimated from finitely many questions it is never 0, but then shuffling does not lower it. Whole videos change places:
    several questions about one stand at one place together, and their labels are no independent draws.
    """
    _, label = np.unique(labels, return_inverse=True)
    distinct, first, video = np.unique(videos, return_index=True, return_inverse=True)
    place_of_video = np.unique(place[first], return_inverse=True)[1]
    table = np.zeros((len(distinct), label.max() + 1))
    np.add.at(table, (video, label), 1)
    indicator = np.eye(place_of_video.max() + 1)[place_of_video]  # (videos, places)
    observed = mutual_information(indicator.T @ table)
    orders = (random.permutation(len(distinct)) for _ in range(NUM_PERMUTATIONS))
    shuffled = np.array([mutual_information(indicator[order].T @ table) for order in orders])
    p = (1 + int((shuffled >= observed - 1e-12).sum())) / (1 + NUM_PERMUTATIONS)
    return float(observed - shuffled.mean()), p


def mutual_information(counts: np.ndarray) -> float:
    """The mutual information in bits of a (places, labels) table of counts."""
    joint = counts / counts.sum()
    expected = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log2(joint[seen] / expected[seen])).sum())


ON_KEY, ACROSS_CUT = "clips start on a key frame", "windows cross a cut"
UNKNOWN_BECAUSE = {
    ON_KEY: "files are all key frames",
    ACROSS_CUT: "no deep scan: whether cuts are in them",
}
Placement = dict[str, bool | None]  # whether clips of one video lie as is said; None: not known


def placements(data: ClipDataset, num_positions: int) -> dict[ClipSpec, list[Placement]]:
    """Where in their files the clips of a dataset's first positions lie, planned as for decoding; nothing is decoded."""
    found: dict[ClipSpec, list[Placement]] = {spec: [] for spec in data.specs}
    for position in track(range(num_positions), description="planning clips"):
        entry = data.manifest[data.row_at(position)]
        index = entry.index()
        video = video_times(entry, index)
        random = generator(data.seed, "clip", position, 0)
        times = plan_clip_times(video, data.specs, data.rules, random)
        _, usable_end = usable_seconds(video.begin, video.end, video.fps)
        pts = torch.from_numpy(index.pts_seconds)
        is_coded_alone = 2 * int(index.is_key.sum()) > len(pts)
        for spec, planned in times.items():
            shown = indices_shown_at(pts, planned.flatten().tolist(), video.end).numpy()
            shown = shown.reshape(planned.shape)
            first, last = float(planned.min()), float(planned.max())
            is_cut = any(first < cut <= last for cut in video.cuts)
            placement: Placement = {
                "clips start at the first frame of the file": bool(shown.ravel()[0] == 0),
                "clips hold the first frame of the file": bool((shown == 0).any()),
                ON_KEY: None if is_coded_alone else bool(index.is_key[shown[:, 0]].any()),
                "clips reach into the last second of the file": last > usable_end + EDGE,
                ACROSS_CUT: is_cut if entry.is_deep else None,
            }
            found[spec].append(placement)
    return found


def placement_checks(placed: list[Placement]) -> list[Check]:
    """Tests what share of clips holds marks of codecs or editors because of where it lies."""
    checks = []
    for danger in placed[0]:
        facts = [fact for placement in placed if (fact := placement[danger]) is not None]
        if not facts:
            says = f"not known: {UNKNOWN_BECAUSE[danger]}"
            checks.append(Check("sampling", danger, True, says))
            continue
        share = float(np.mean(facts))
        says = f"{danger} ({share:.0%} of {len(facts)})"
        checks.append(Check("sampling", danger, share <= MAX_SHARE, says, {"share": share}))
    return checks


class DecodedClips:
    """Looks in raw batches for frames shown twice at one end and for black bars.

    `border` is the share of the side that augmentation cuts off anyway.
    """

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
        """Says what was found in the clips that a task with this spec is shown."""
        barred = np.concatenate(self._barred[spec])
        share = float(barred.mean())
        says = f"black bars are inside the crop ({share:.0%} of {len(barred)} samples)"
        bars = Check("sampling", "black bars", share <= MAX_BARRED_SHARE, says, {"share": share})
        return [_repeat_check(np.concatenate(self._repeats[spec])), bars]


def _repeat_check(repeats: np.ndarray) -> Check:
    """Tells whether frames are repeated more in one half of clips: (clips, T - 1) whether a frame is the one before again.

    Slow footage repeats frames anywhere; what fills a clip up repeats them at one end, which shows the direction of time.
    """
    name, half = "repeated frames", repeats.shape[1] // 2
    if half == 0:
        return Check("sampling", name, True, "clips are too short to be filled up")
    shares = repeats.mean(0)
    ahead = repeats[:, -half:].mean(1) - repeats[:, :half].mean(1)
    difference, error = float(ahead.mean()), float(ahead.std() / np.sqrt(len(ahead)))
    is_clean = abs(difference) < max(LEAST_DIFFERENCE, LEAK_ERRORS * error)
    end, most = ("end", shares[-1]) if difference > 0 else ("beginning", shares[0])
    if is_clean:
        says = f"frames are repeated alike in both halves of clips ({shares.mean():.1%} of them)"
    else:
        says = f"clips are padded at the {end}: the frame there is repeated in {most:.0%} of clips"
    numbers = {f"pair {pair}": float(share) for pair, share in enumerate(shares)}
    return Check("sampling", name, is_clean, says, numbers)


def _is_barred(frames: Tensor, border: float) -> np.ndarray:
    """(B,) bool: whether black bars are inside what is left when the border is cut off (B, K, T, 3, S, S) uint8 frames."""
    edge = int(np.ceil(border * frames.shape[-1]))
    inner = frames[..., edge : frames.shape[-2] - edge, edge : frames.shape[-1] - edge]
    weights = torch.tensor(LUMA, device=frames.device)[:, None, None]
    luma = (inner.float() * weights).sum(3).round().to(torch.uint8).flatten(1, 2)
    extremes = zip(luma.amax(1).cpu().numpy(), luma.amin(1).cpu().numpy(), strict=True)
    return np.array([any(find_bars(brightest, darkest)) for brightest, darkest in extremes])


def split_checks(manifest: Manifest, train: np.ndarray, heldout: np.ndarray) -> list[Check]:
    """P8: tests whether a source group, or a near-duplicate that a deep scan has hashed, is on both sides of the split."""
    groups = np.asarray(manifest.strings("group"))
    shared = sorted(set(groups[train]) & set(groups[heldout]))
    says = f"{len(set(groups[heldout]))} source groups are held out, {len(shared)} of them trained on too"
    disjoint = Check("P8", "groups", not shared, says, {"shared": len(shared)})
    return [disjoint, _copies(manifest, train, heldout)]


def _copies(manifest: Manifest, train: np.ndarray, heldout: np.ndarray) -> Check:
    every = np.concatenate([train, heldout]).tolist()
    hashes = {row: h for row in every if (h := manifest[row].phash) is not None}
    name = "near-duplicates"
    if not hashes:
        return Check("P8", name, True, "near-duplicates are not known: scan with --deep")
    is_held = np.isin(list(hashes), heldout)
    values, index = np.unique(np.array(list(hashes.values()), np.uint64), return_inverse=True)
    sides = [set(is_held[index == value].tolist()) for value in range(len(values))]
    pairs = {tuple(sorted(pair)) for pair in near_pairs(values)}
    across = [(a, b) for a, b in pairs if any(x != y for x in sides[a] for y in sides[b])]
    across += [(v, v) for v, both in enumerate(sides) if len(both) == 2]
    says = f"{len(across)} pairs of near-duplicates stand on both sides of the split, of {len(hashes)} videos"
    return Check("P8", name, not across, says, {"pairs": len(across)})


def hides_colors(views: Views) -> bool:
    """Tells whether these are views of a task that hides colours from the encoder."""
    return copies_colors(views) or "grey" in views.inputs


@torch.no_grad()
def hidden_color_check(subject: Subject, task: PretextTask, batch: ClipBatch) -> Check:
    """Tells whether colours that a task hides reach the encoder: they are changed, and nothing it sees or returns may.

    A channel counts as hidden in a video if the target frame, the last of the view `frames` or `grey`, shows nothing of it.
    It must then be hidden in every frame: through kernels in time a coloured reference reaches the target's features.
    """
    name = "hidden colours"
    subject.model.eval()

    def encoded(clips: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the encoder sees of clips, (B, 3, T, H, W), and the target's features."""
        shown = replace(batch, clips={**batch.clips, task.clip_spec: clips})
        views = task.make_views(shown, subject.feed.rows("audit colours", 0, len(batch)))
        inputs = views.inputs["grey" if "grey" in views.inputs else "frames"]
        return inputs, subject.model.encoder(inputs)[task.stage].data[:, :, -1]

    clips = batch.clips[task.clip_spec]
    inputs, features = encoded(clips)
    hidden = inputs[:, :, -1].flatten(2).abs().amax(2) == 0  # (B, 3)
    if not bool(hidden.any(1).all()):
        share = float((~hidden.any(1)).float().mean())
        says = f"colour leaks: the target shows all its channels in {share:.0%} of the videos"
        return Check("colour", name, False, says, {"open": share})
    random = generator(subject.config.seed, "audit colours")
    noise = torch.randn(clips.shape, generator=random).to(clips)
    other_inputs, other_features = encoded(clips + noise * hidden[:, None, :, None, None, None])
    changes = (inputs - other_inputs).abs().amax((0, 1, 3, 4)) > 0  # (T,)
    frames = changes.nonzero().flatten().tolist()
    numbers: dict[str, float] = {"frames shown": len(frames)}
    if not frames and torch.equal(features, other_features):
        says = "hidden colours reach neither the inputs nor the features"
        return Check("colour", name, True, says, numbers)
    ways = []
    if frames:
        ways.append(f"the encoder's input frames {', '.join(map(str, frames))}")
    if not torch.equal(features, other_features) and not changes[-1]:
        ways.append("the encoder's kernels in time, into the features of the target")
    return Check("colour", name, False, f"colour leaks through {' and '.join(ways)}", numbers)
