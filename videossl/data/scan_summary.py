"""What a scan found, counted for people and for scripts."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from videossl.data.listing import FoundFiles
from videossl.data.manifest import LEFT_OUT, VideoEntry


@dataclass
class ScanSummary:
    """Counts of what a scan found, row by row."""

    num_ok: int = 0
    num_broken: int = 0
    num_left_out: int = 0
    num_variable: int = 0
    seconds: float = 0.0
    num_cuts: int = 0
    num_with_bars: int = 0
    groups: set[str] = field(default_factory=set)
    labels: set[str] = field(default_factory=set)
    codecs: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def counted(self, entries: Iterator[VideoEntry]) -> Iterator[VideoEntry]:
        """Passes the rows on and counts them."""
        for entry in entries:
            self._count(entry)
            yield entry

    def lines(self, found: FoundFiles, *, num_near: int | None = None) -> list[str]:
        """For people: counts, hours, codecs and the commonest reasons of failure."""
        hours = self.seconds / 3600
        left_out = f" {self.num_left_out} left out," if self.num_left_out else ""
        lines = [
            f"{self.num_ok} videos ok ({hours:.2f} h, {len(self.groups)} sources, {self.num_variable} of variable "
            f"rate), {self.num_broken} broken,{left_out} {found.num_others} other files passed over"
        ]
        if found.passed_over:
            lines.append(f"passed over: {found.other_endings}")
        if self.labels:
            lines.append(f"labels: {len(self.labels)}")
        if self.codecs:
            codecs = self.codecs.most_common()
            lines.append("codecs: " + ", ".join(f"{codec} {count}" for codec, count in codecs))
        if num_near is not None:
            lines.append(
                f"decoded: {self.num_cuts} cuts, {self.num_with_bars} videos with black bars, {num_near} with a "
                "near-duplicate (those share a source, so no split parts them)"
            )
        lines += [f"broken, {n} times: {reason}" for reason, n in self.reasons.most_common(5)]
        lines += [f"could not read {folder}" for folder in found.unreadable]
        return lines + found.notes

    def record(self, found: FoundFiles, *, num_near: int | None = None) -> dict[str, object]:
        """The same for scripts, every reason of failure included; what only --deep knows is null without it."""
        is_deep = num_near is not None
        return {
            "ok": self.num_ok,
            "broken": self.num_broken,
            "left_out": self.num_left_out,
            "variable_rate": self.num_variable,
            "other_files": found.num_others,
            "passed_over": dict(found.passed_over.most_common()),
            "seconds": self.seconds,
            "sources": len(self.groups),
            "labels": len(self.labels),
            "codecs": dict(self.codecs.most_common()),
            "cuts": self.num_cuts if is_deep else None,
            "with_black_bars": self.num_with_bars if is_deep else None,
            "near_duplicates": num_near,
            "reasons": dict(self.reasons.most_common()),
            "unreadable_folders": [str(folder) for folder in found.unreadable],
            "notes": list(found.notes),
        }

    def _count(self, entry: VideoEntry) -> None:
        if entry.status == LEFT_OUT:
            self.num_left_out += 1
            return
        if not entry.is_ok:
            self.num_broken += 1
            self.reasons[entry.reason] += 1
            return
        self.num_ok += 1
        self.seconds += entry.duration_seconds
        self.num_variable += not entry.is_constant_rate
        self.num_cuts += len(entry.cuts)
        self.num_with_bars += any(entry.bars)
        self.groups.add(entry.group)
        self.labels.update([entry.label] if entry.label else [])
        self.codecs[entry.codec] += 1
