"""What fuzzing found: the outcome of every file in every stage, and tables of it."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

HANG_SECONDS = 10.0
KINDS_OF_HARM = {
    "it hangs the decoder": "hang",
    "it crashes the decoder": "crash",
    "it needs more than": "memory",
}


@dataclass
class Findings:
    """What became of each file in each stage, and what should not have happened."""

    outcomes: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    broken_stages: list[str] = field(default_factory=list)  # the process itself died or raised
    seconds: list[tuple[float, str, str]] = field(default_factory=list)  # how long, stage, file
    harm: list[tuple[str, str, str, str]] = field(default_factory=list)  # kind, stage, file, reason
    unreported: list[tuple[str, str]] = field(default_factory=list)  # stage, file
    reasons: Counter[str] = field(default_factory=Counter)

    def note(self, stage: str, name: str, outcome: str, reason: str = "", kind: str = "") -> None:
        """Files the outcome; one that is neither good nor has a reason is unreported."""
        self.outcomes[stage][name] = outcome
        self.reasons[reason] += bool(reason)
        kind = kind or next((k for text, k in KINDS_OF_HARM.items() if reason.startswith(text)), "")
        if kind in KINDS_OF_HARM.values():
            self.harm.append((kind, stage, name, reason))
        if outcome == "unreported" or (outcome in ("broken", "replaced") and not reason):
            self.unreported.append((stage, name))

    @property
    def hangs(self) -> list[tuple[str, str, str]]:
        """(stage, file, how long) of what took longer than HANG_SECONDS."""
        ended = [(stage, name, reason) for kind, stage, name, reason in self.harm if kind == "hang"]
        slow = [(s, name, f"{took:.1f} s") for took, s, name in self.seconds if took > HANG_SECONDS]
        return ended + slow

    @property
    def is_clean(self) -> bool:
        """Whether nothing crashed the main process, hung or went unreported."""
        return not (self.broken_stages or self.hangs or self.unreported)


def table(found: Findings, kinds: Sequence[str]) -> list[str]:
    """Kinds of mutation by what became of them in each stage, and what should not have happened."""
    columns = [
        (stage, outcome)
        for stage, possible in {
            "scan": ("ok", "broken"),
            "deep": ("ok", "broken"),
            "loader": ("ok", "replaced", "skipped"),
            "changed": ("ok", "replaced", "skipped"),
            "pack": ("ok", "broken", "skipped"),
        }.items()
        if stage in found.outcomes
        for outcome in possible
    ]
    counts = Counter(
        (name.split("-")[1].split(".")[0], stage, outcome)
        for stage, outcomes in found.outcomes.items()
        for name, outcome in outcomes.items()
    )
    heads = [("mutation", ""), *columns]
    rows = [[head[level] for head in heads] for level in (0, 1)]
    rows += [[kind, *(str(counts[kind, *column]) for column in columns)] for kind in kinds]
    totals = [str(sum(counts[kind, *column] for kind in kinds)) for column in columns]
    rows.append(["all", *totals])
    widths = [max(len(row[at]) for row in rows) for at in range(len(heads))]
    return ["  ".join(f"{c:>{w}}" for c, w in zip(row, widths, strict=True)) for row in rows]


def verdict(found: Findings) -> list[str]:
    """The counts that must be 0, those that may not be, and every file behind them."""
    survived = [h for h in found.harm if h[0] != "hang"]
    lines = [
        f"crashes of the main process, or exceptions that reach the user: {len(found.broken_stages)}",
        *(f"  {text}" for text in found.broken_stages),
        f"hangs over {HANG_SECONDS:.0f} s: {len(found.hangs)}",
        *(f"  {stage}: {name}: {text}" for stage, name, text in found.hangs),
        f"files without a reason: {len(found.unreported)}",
        *(f"  {stage}: {name}" for stage, name in found.unreported),
        f"worker processes lost, and survived: {len(survived)}",
        *(f"  {stage}: {name}: {reason}" for _, stage, name, reason in survived),
        "slowest: " + ", ".join(f"{s:.1f} s {name} ({at})" for s, at, name in _slowest(found)),
        "commonest reasons:",
    ]
    return lines + [f"  {count:5d}  {reason}" for reason, count in found.reasons.most_common(25)]


def _slowest(found: Findings) -> list[tuple[float, str, str]]:
    return sorted(found.seconds, reverse=True)[:5]
