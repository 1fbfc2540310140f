"""What matters for tracking, one question at a time: trains, tracks, judges, draws. What is there is not made again.

    python tools/ablate_tracking.py tools/tracking_ablations.yaml --manifest videos.parquet --davis DAVIS -o ablations
    python tools/ablate_tracking.py ... --only objective stride --seeds 0     # a part of it

The plan names what all rows share in training (`shared`) and in tracking (`track`) and, by question, rows that differ from
the baseline: in training (`train`, `videos`: the share of the sources) or in tracking alone (`track`, `stage`, `untrained`),
which trains nothing.
Each row is judged by official J&F on the sequences of a split, against the baseline of the same seeds, with the interval
of a paired bootstrap over sequences. Out come scores/*.json, tables.md and one picture per question.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import yaml

from videossl.data.manifest import write_manifest
from videossl.data.table import read_manifest
from videossl.engine.checkpoint import restore_encoder
from videossl.eval.davis import DavisSequence, read_tree
from videossl.eval.features import EncoderFeatures
from videossl.eval.presets import preset
from videossl.eval.protocol import Protocol
from videossl.eval.tracking import worker_pool
from videossl.eval.tuning import Trial
from videossl.intervals import Interval, bootstrap_over_videos
from videossl.rng import fold
from videossl.whole_file import write_json
from videossl.workers import num_cores

matplotlib.use("Agg")
from matplotlib import pyplot as plt


@dataclass(frozen=True)
class Setting:
    """One row of one question: what it changes of the baseline."""

    name: str
    train: tuple[str, ...] = ()
    track: dict[str, str] = field(default_factory=dict)
    videos: float = 1.0
    stage: str | None = None
    seeds: tuple[int, ...] | None = None
    untrained: bool = False
    config: str | None = None

    @classmethod
    def of(cls, row: dict) -> "Setting":
        """From the plan; a key that is unknown is an error of Python's own."""
        track = as_settings(row.pop("track", {}))
        train = tuple(row.pop("train", ()))
        seeds = tuple(row.pop("seeds")) if "seeds" in row else None
        return cls(track=track, train=train, seeds=seeds, **row)


def as_settings(track: dict) -> dict[str, str]:
    """What a plan sets of a protocol, as text."""
    return {key: str(value).lower() for key, value in track.items()}


@dataclass(frozen=True)
class Plan:
    """What the file says, and where it is carried out."""

    config: str
    shared: tuple[str, ...]
    track: dict[str, str]
    seeds: tuple[int, ...]
    baseline: Setting
    questions: dict[str, list[Setting]]
    manifest: Path
    out: Path
    sequences: Sequence[DavisSequence]

    def config_of(self, row: Setting) -> str:
        """The row's own, where it names one."""
        return row.config or self.config

    def run_of(self, row: Setting, seed: int) -> Path:
        """The folder of the training that a row reads; rows that differ in tracking alone share it."""
        config = yaml.safe_load(Path(self.config_of(row)).read_text())  # not its name: it changes
        text = json.dumps([config, self.shared, row.train, row.videos])
        return self.out / "runs" / f"{hashlib.sha256(text.encode()).hexdigest()[:10]}_seed{seed}"

    def protocol_of(self, row: Setting) -> Protocol:
        """The preset with what all rows and this one set."""
        return preset("videossl", {**self.track, **row.track})

    def seeds_of(self, row: Setting) -> tuple[int, ...]:
        """Those of the row, where it names its own."""
        return self.seeds if row.seeds is None else tuple(s for s in row.seeds if s in self.seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--davis", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--only", nargs="+", metavar="QUESTION")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="(default: the plan's)")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    plan = read_plan(args)
    with worker_pool(num_cores()) as pool:
        for name in args.only or plan.questions:
            for row in [plan.baseline, *plan.questions[name]]:
                for seed in plan.seeds_of(row):
                    train(plan, row, seed)
                    track(plan, row, seed, pool)
    report(plan)


def read_plan(args: argparse.Namespace) -> Plan:
    """The plan of the file, for the seeds that are asked for."""
    text = yaml.safe_load(args.plan.read_text())
    return Plan(
        config=text["config"],
        shared=tuple(text.get("shared", ())),
        track=as_settings(text.get("track", {})),
        seeds=tuple(args.seeds or text["seeds"]),
        baseline=Setting.of(text["baseline"]),
        questions={name: [Setting.of(r) for r in rows] for name, rows in text["questions"].items()},
        manifest=args.manifest,
        out=args.out,
        sequences=read_tree(args.davis, split=args.split, need_masks=True),
    )


def train(plan: Plan, row: Setting, seed: int) -> None:
    """The run of a row; a finished one is left as it is, a stopped one goes on."""
    run = plan.run_of(row, seed)
    manifest = plan.manifest if row.videos == 1 else part_of(plan, row.videos)
    settings = [*plan.shared, *row.train, f"seed={seed}", f"data.manifest={manifest}", f"out={run}"]
    print(f"{row.name}, seed {seed}: {run.name}", flush=True)
    command = [sys.executable, "-m", "videossl", "train", "--config", plan.config_of(row)]
    log = run.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        ended = subprocess.run([*command, *settings], stdout=file, stderr=subprocess.STDOUT)
    if ended.returncode:
        sys.exit(f"{row.name}: training ended with {ended.returncode}, see {log}")


def part_of(plan: Plan, share: float) -> Path:
    """A manifest of that share of the sources, nested: a larger share holds all of a smaller one."""
    path = plan.out / f"videos_{share:g}.parquet"
    entries = read_manifest(plan.manifest)
    kept = [e for e in entries if fold(0, "share", e.group) / 2**63 < share]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_manifest(kept, path)
    return path


def score_path(plan: Plan, row: Setting, seed: int) -> Path:
    """Where the scores of a row are kept: by its run and by how it tracks."""
    text = json.dumps([plan.protocol_of(row).as_dict(), row.stage, row.untrained])
    name = f"{plan.run_of(row, seed).name}_{hashlib.sha256(text.encode()).hexdigest()[:10]}.json"
    return plan.out / "scores" / name


def track(plan: Plan, row: Setting, seed: int, pool: Executor) -> None:
    """Tracks all sequences, longest first, and keeps J and F of each."""
    path = score_path(plan, row, seed)
    if path.is_file():
        return
    order = sorted(plan.sequences, key=lambda sequence: -len(sequence.frame_names))
    protocol = plan.protocol_of(row)
    tracked = partial(track_sequence, protocol, row, plan.run_of(row, seed), seed)
    scored = pool.map(tracked, order)
    found = {s.name: scores for s, scores in zip(order, scored, strict=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"row": row.name, "seed": seed, "sequences": found})
    means = [(j + f) / 2 for j, f in found.values()]
    print(f"  J&F {100 * np.mean(means):.1f}", flush=True)


def track_sequence(
    protocol: Protocol, row: Setting, run: Path, seed: int, sequence: DavisSequence
) -> list[float]:
    """[J, F] of one sequence, as fractions: means over its frames and objects."""
    encoder = restore_encoder(run, untrained_seed=seed if row.untrained else None)
    extractor = EncoderFeatures(encoder, stage=row.stage)
    scores = Trial(protocol, extractor, extractor.stride)(sequence)
    return [float(np.mean([s.j.mean for s in scores])), float(np.mean([s.f.mean for s in scores]))]


def scores_of(plan: Plan, row: Setting) -> dict[int, np.ndarray]:
    """J&F in percent of each sequence, by seed, of what was made of a row."""
    found = {}
    for seed in plan.seeds_of(row):
        path = score_path(plan, row, seed)
        if path.is_file():
            by_name = json.loads(path.read_text())["sequences"]
            found[seed] = 100 * np.array([np.mean(by_name[s.name]) for s in plan.sequences])
    return found


@dataclass(frozen=True)
class Judged:
    """A row in numbers: J&F in percent of each seed, and what it gains on the baseline of the same seeds."""

    name: str
    by_seed: dict[int, float]
    gain: Interval | None  # None for the baseline itself
    won: int

    def line(self, num_sequences: int) -> str:
        """As a row of a table."""
        values = list(self.by_seed.values())
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        text = f"| {self.name} | {np.mean(values):.1f}{spread} | {len(values)} |"
        if self.gain is None:
            return f"{text} | |"
        estimate, low, high = self.gain
        return f"{text} {estimate:+.1f} [{low:+.1f}, {high:+.1f}] | {self.won} of {num_sequences} |"


def judge(plan: Plan, row: Setting) -> Judged | None:
    """None where nothing was made of the row."""
    found = scores_of(plan, row)
    if not found:
        return None
    by_seed = {seed: float(values.mean()) for seed, values in found.items()}
    if row == plan.baseline:
        return Judged(row.name, by_seed, None, 0)
    base = scores_of(plan, plan.baseline)
    shared = [seed for seed in found if seed in base]
    gains = np.mean([found[seed] - base[seed] for seed in shared], axis=0)
    names = np.array([sequence.name for sequence in plan.sequences])
    interval = bootstrap_over_videos(gains, np.ones(len(gains)), names, num_resamples=10_000)
    return Judged(row.name, by_seed, interval, int((gains > 0).sum()))


def report(plan: Plan) -> None:
    """Writes the tables and pictures of all that was made so far."""
    tables = []
    for name, rows in plan.questions.items():
        judged = [j for j in (judge(plan, row) for row in [plan.baseline, *rows]) if j is not None]
        if len(judged) < 2:
            continue
        tables += [f"## {name}", "", "| | J&F | seeds | against the first row | better on |"]
        tables += ["|---|---|---|---|---|", *(j.line(len(plan.sequences)) for j in judged), ""]
        draw(judged, plan.out / f"{name.replace(' ', '_')}.png")
    (plan.out / "tables.md").write_text("\n".join(tables))
    print("\n".join(tables))


def draw(judged: Sequence[Judged], path: Path) -> None:
    """One dot per seed, their mean, and the interval of the gain around it."""
    figure, axis = plt.subplots(figsize=(7, 0.9 + 0.42 * len(judged)))
    for place, row in enumerate(judged):
        values = np.array(list(row.by_seed.values()))
        mean = values.mean()
        if row.gain is not None:
            base = mean - row.gain.estimate
            axis.plot([base + row.gain.low, base + row.gain.high], [place] * 2, color="0.6")
        axis.scatter(values, np.full(len(values), place), s=14, color="C0", alpha=0.6)
        axis.scatter([mean], [place], s=46, color="C1" if row.gain is None else "C0", zorder=3)
    axis.axvline(np.mean(list(judged[0].by_seed.values())), color="C1", linewidth=1, linestyle=":")
    axis.set_yticks(range(len(judged)), [row.name for row in judged])
    axis.invert_yaxis()
    # Below the whole figure: names of rows leave the axis too narrow for it.
    figure.supxlabel(
        "J&F, %: seeds, their mean, 95 % interval of the gain on the first row", fontsize=9
    )
    axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
