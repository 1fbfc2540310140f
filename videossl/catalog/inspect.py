"""What only decoding tells of a video: damage, motion, cuts, black bars and a hash to find its copies by.

Every frame is decoded once and looked at in a small grey picture. No decoder here raises anything for flipped bits: it
conceals them and says so in its log and in a flag of the frame, and that is what counts as damage.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np

from videossl.catalog.cuts_and_bars import BarFinder, CutFinder, FilterChain, full_luma_of, luma_of
from videossl.catalog.near_duplicates import QUARTERS, SignatureList, spectra, video_hash
from videossl.data.entry import VideoEntry
from videossl.decode.container import as_decode_error, logged_errors, open_container, video_stream
from videossl.decode.index import NUM_MOTION_BINS, VideoIndex, read_index
from videossl.decode.shown_frames import decode_packets, max_clock_gap
from videossl.decode.source import VideoSource, as_source
from videossl.errors import VideoDecodeError

LONG_SIDE = 96  # pixels of the small pictures; chosen: a cut, a hash and motion need no more
BATCH = 128  # small pictures worked on at once: numpy's own cost is spread over them
PACKETS_AROUND_A_JOIN = 3  # a decoder is as many behind; chosen
NUM_BAR_PICTURES = 32  # of the full size, evenly over the file


@dataclass(frozen=True)
class Inspection:
    """What the pictures of one video show. Lengths are pixels as shown, after rotation."""

    num_frames: int  # decoded
    # Packets at which the decoder complained, gave up or marked a frame as corrupt, and frames that never came out.
    decode_errors: int
    # Mean absolute luma difference of neighbouring frames, of 255, over LONG_SIDE pixels; cuts left out.
    motion_score: float
    motion: tuple[float, ...]  # the same in each of NUM_MOTION_BINS equal parts of the file
    bars: tuple[int, int, int, int]  # top, bottom, left, right
    cuts: tuple[float, ...]  # seconds of the first frame of each new shot
    phash: int | None

    @property
    def damage(self) -> str:
        """Why the file is broken, in a line; empty where it is sound."""
        if not self.decode_errors:
            return ""
        return f"damaged: {self.decode_errors} decoder errors in {self.num_frames} frames"


def inspect_video(
    source: str | Path | VideoSource,
    index: VideoIndex | None = None,
    *,
    signatures: SignatureList | None = None,
) -> Inspection:
    """Decodes every frame of a video on one thread and measures it; `index` saves reading the packets again.

    `signatures` takes the frames that it wants.

    Raises VideoDecodeError for a file that `read_index` refuses, in which no frame decodes or frames change their size.
    """
    source = as_source(source)
    index = read_index(source) if index is None else index
    measures = _Measures(index)
    with as_decode_error(source, "pyav"), open_container(source) as container:
        stream = video_stream(container, source)
        decoded = DecodedFrames(container, stream, by_decoding=index.by_decoding)
        shrink = Shrinker(stream, source)
        small: list[np.ndarray] = []
        for number, frame in enumerate(decoded):
            small.append(shrink(frame))
            measures.note(number, frame)
            if signatures is not None and signatures.wants(measures.seconds[-1]):
                upright = index.info.orientation.upright(small[-1], rows=0)
                signatures.add(measures.seconds[-1], upright)
            if len(small) == BATCH:
                measures.add(np.stack(small))
                small.clear()
        if small:
            measures.add(np.stack(small))
    if not measures.seconds:
        raise VideoDecodeError(str(source), "pyav", "not one of its frames can be decoded")
    missing = max(0, index.info.num_frames - len(measures.seconds))
    return measures.result(max(decoded.errors, missing))


def deepened(entry: VideoEntry, found: Inspection) -> VideoEntry:
    """The row of a sound video with what its pictures show."""
    return replace(
        entry,
        is_deep=True,
        motion=found.motion,
        motion_score=found.motion_score,
        bars=found.bars,
        cuts=found.cuts,
        phash=found.phash,
    )


def frame_seconds(index: VideoIndex, number: int, frame: "av.VideoFrame") -> float:
    """The time of the frame that is decoded as number `number` of its video."""
    if index.times_by_order or frame.pts is None:
        ticks = int(index.pts[min(number, index.info.num_frames - 1)])
    else:
        ticks = frame.pts
    return ticks * float(index.time_base)


class DecodedFrames(Iterator["av.VideoFrame"]):
    """The frames of a stream, and the number of packets that had something wrong."""

    def __init__(
        self,
        container: "av.container.InputContainer",
        stream: "av.VideoStream",
        *,
        by_decoding: bool,
    ) -> None:
        """`by_decoding`: the packets do not tell which frames are shown (`videossl.decode.index.VideoIndex`)."""
        self._complaints = Complaints(max_clock_gap(container, stream), begins_amid=by_decoding)
        self._frames = self._decode(container, stream)

    @property
    def errors(self) -> int:
        """How many packets so far were damaged."""
        return self._complaints.num_damaged()

    def __next__(self) -> "av.VideoFrame":
        return next(self._frames)

    def _decode(
        self, container: "av.container.InputContainer", stream: "av.VideoStream"
    ) -> Iterator["av.VideoFrame"]:
        # Warnings are of odd but sound files: none of 302 such says more, all of 53 with 20 flipped bits do.
        with logged_errors() as said:
            for packet, frames, error in decode_packets(container.demux(stream)):
                # Packets are marked too, wherever the counters of a broadcast stream start anew: that is no damage.
                is_marked = error is not None or any(frame.is_corrupt for frame in frames)
                self._complaints.note(
                    packet, has_said=bool(said), is_marked=is_marked, has_frames=bool(frames)
                )
                said.clear()
                yield from frames


class Complaints:
    """Which packets a decoder complained of, without those of which it must, though the file is sound.

    It must where the stream begins between two key frames, until it has found its feet: what comes first refers to frames
    that are not there. It must of packets that are hidden, and where one recording ends and the next begins.
    """

    def __init__(self, max_gap: float, *, begins_amid: bool) -> None:
        """`max_gap`: ticks by which the clock may go on from one packet to the next. `begins_amid`: so it is known to; else
        the packets tell."""
        self._has_shown = False  # whether a frame has come out
        self._max_gap = max_gap
        self._number = 0
        self._bad: list[int] = []
        self._joins: list[range] = []
        self._last_dts: int | None = None
        self._first_pts: int | None = None
        self._latest: int | None = None  # time shown so far, of this recording
        # The last key packet: its number, its time, and the latest time before it.
        self._key: tuple[int, int, int | None] | None = None
        self._num_keys = 0
        self._begins_amid = begins_amid

    def note(
        self, packet: "av.Packet | None", *, has_said: bool, is_marked: bool, has_frames: bool
    ) -> None:
        """Takes the next packet, or the end of a container that breaks off; what the log says of it, and what else."""
        self._number += 1
        is_hidden = packet is not None and bool(packet.size) and packet.is_discard
        if packet is not None and packet.size:
            self._follow(packet)
        is_excused = self._begins_amid and (
            not self._has_shown or (self._num_keys < 2 and not is_marked)
        )
        if (has_said or is_marked) and not is_hidden and not is_excused:
            self._bad.append(self._number)
        self._has_shown |= has_frames

    def num_damaged(self) -> int:
        """How many packets had something wrong, those at a join left out."""
        return sum(
            not any(
                join[0] - PACKETS_AROUND_A_JOIN <= bad <= join[-1] + PACKETS_AROUND_A_JOIN
                for join in self._joins
            )
            for bad in self._bad
        )

    def _follow(self, packet: "av.Packet") -> None:
        if self._number == 1:
            self._first_pts = packet.pts
            self._begins_amid |= not packet.is_keyframe
        elif self._num_keys < 2 and self._first_pts is not None:
            # A frame shown before the first key frame; a copied one may have lost its time.
            self._begins_amid |= packet.pts is None or packet.pts < self._first_pts
        self._num_keys += packet.is_keyframe
        if packet.dts is not None:
            step = 0 if self._last_dts is None else packet.dts - self._last_dts
            if not 0 <= step <= self._max_gap:
                self._join(self._number)
            self._last_dts = packet.dts
        if packet.pts is not None and not packet.is_discard:
            self._follow_pts(packet.pts, is_key=packet.is_keyframe)

    def _follow_pts(self, pts: int, *, is_key: bool) -> None:
        """Finds where times go back over a key frame; what leads it may lack what it refers to."""
        if is_key:
            self._key = self._number, pts, self._latest
        if self._key is not None:
            number, key_pts, before = self._key
            if before is not None and pts < before:
                self._key = number, key_pts, None
                self._join(number)
                self._latest = pts
            is_leading = pts < key_pts and bool(self._joins)
            if is_leading and self._joins[-1].start == number:
                self._joins[-1] = range(number, self._number + 1)
        self._latest = pts if self._latest is None else max(self._latest, pts)

    def _join(self, number: int) -> None:
        self._joins.append(range(number, self._number + 1))
        self._latest = None


class Shrinker:
    """Makes (h, w) uint8 luma pictures of at most LONG_SIDE pixels a side, of full range."""

    def __init__(self, stream: "av.VideoStream", source: VideoSource) -> None:
        self._stream, self._source = stream, source
        self._chain: FilterChain | None = None

    def __call__(self, frame: "av.VideoFrame") -> np.ndarray:
        if self._chain is None:
            width, height = small_size(frame.width, frame.height)
            filters = [f"scale={width}:{height}:flags=area", "format=gray"]
            self._chain = FilterChain(frame, self._stream.time_base, filters)
        try:
            return luma_of(self._chain(frame)).copy()
        except ValueError as error:
            raise VideoDecodeError(str(self._source), "pyav", str(error)) from None


def small_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of the small picture of a frame."""
    scale = min(1.0, LONG_SIDE / max(width, height))
    return max(8, round(width * scale)), max(8, round(height * scale))


class _Measures:
    """Gathers what is measured of each frame, in memory that hardly grows with the file."""

    def __init__(self, index: VideoIndex) -> None:
        self._index = index
        self._cuts, self._bars = CutFinder(), BarFinder()
        self._quarters = np.zeros((QUARTERS, 8, 8))
        self._counts = np.zeros(QUARTERS)
        self.seconds: list[float] = []
        self._num_bar_pictures = 0

    def note(self, number: int, frame: "av.VideoFrame") -> None:
        """Takes the time of a frame, and now and then its picture."""
        info = self._index.info
        seconds = frame_seconds(self._index, number, frame)
        self.seconds.append(seconds)
        if self._bars.has_none:
            return
        share = (seconds - info.begin_seconds) / max(info.duration_seconds, 1e-9)
        if share * NUM_BAR_PICTURES >= self._num_bar_pictures:
            self._num_bar_pictures += 1
            self._bars.add(full_luma_of(frame))

    def add(self, pictures: np.ndarray) -> None:
        """Takes the (n, h, w) small pictures of the frames last noted."""
        self._cuts.add(pictures)
        quarters = self._bins(np.array(self.seconds[-len(pictures) :]), QUARTERS)
        upright = self._index.info.orientation.upright(pictures, rows=1)
        np.add.at(self._quarters, quarters, spectra(upright))
        self._counts += np.bincount(quarters, minlength=QUARTERS)

    def result(self, decode_errors: int) -> Inspection:
        """All of it, once every frame has been taken."""
        differences, found = self._cuts.finish()
        seconds = np.array(self.seconds)
        joins = [join for join in self._index.joins if join < len(seconds)]
        cuts = np.union1d(found, np.array(joins, dtype=np.int64))
        moves = np.ones(len(seconds), dtype=bool)
        moves[0] = False  # there is none before it
        moves[cuts] = False
        return Inspection(
            num_frames=len(seconds),
            decode_errors=decode_errors,
            motion_score=float(differences[moves].mean()) if moves.any() else 0.0,
            motion=self._profile(seconds[moves], differences[moves]),
            bars=self._shown_bars(),
            cuts=tuple(float(seconds[cut]) for cut in cuts),
            phash=video_hash(_filled(self._quarters, self._counts)),
        )

    def _shown_bars(self) -> tuple[int, int, int, int]:
        """The bars of the picture as shown, in square pixels."""
        info = self._index.info
        height, width = info.upright_stored_shape
        rows, columns = info.height / height, info.width / width
        top, bottom, left, right = self._bars.find(info.orientation)
        return (
            round(top * rows),
            round(bottom * rows),
            round(left * columns),
            round(right * columns),
        )

    def _profile(self, seconds: np.ndarray, differences: np.ndarray) -> tuple[float, ...]:
        bins = self._bins(seconds, NUM_MOTION_BINS)
        sums = np.bincount(bins, weights=differences, minlength=NUM_MOTION_BINS)
        counts = np.bincount(bins, minlength=NUM_MOTION_BINS)
        return tuple(_filled(sums, counts).tolist())

    def _bins(self, seconds: np.ndarray, num_bins: int) -> np.ndarray:
        info = self._index.info
        share = (seconds - info.begin_seconds) / max(info.duration_seconds, 1e-9)
        return (share * num_bins).astype(int).clip(0, num_bins - 1)


def _filled(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Means of bins; one without a member takes those of the nearest that has some, all are 0 where none has."""
    taken = np.flatnonzero(counts)
    if len(taken) == 0:
        return np.zeros_like(sums)
    nearest = taken[np.abs(np.arange(len(counts))[:, None] - taken).argmin(axis=1)]
    return sums[nearest] / counts[nearest].reshape(-1, *[1] * (sums.ndim - 1))
