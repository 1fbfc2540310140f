"""The battery: every cheat on every task of a config, before any accuracy is believed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np

from videossl.audit.asked import Asked
from videossl.audit.colours import Colours, copies_colours
from videossl.audit.control import control_rows
from videossl.audit.decoded import DecodedClips
from videossl.audit.findings import Cheat, Check, TaskAudit, Verdict
from videossl.audit.heldout_answers import HeldOutAnswers, collect_answers
from videossl.audit.hidden import hidden_colour_check, hides_colours
from videossl.audit.instances import Instances, pairs_clips
from videossl.audit.judgement import judge
from videossl.audit.planned import placement_checks, placements
from videossl.audit.random_encoder import with_trained_heads
from videossl.audit.split import split_checks
from videossl.audit.subject import Seen, Side, Subject
from videossl.audit.swap import Judged, not_run, swap_check
from videossl.audit.transcode import MAX_SECONDS, transcoded
from videossl.data.dataset import ClipDataset
from videossl.engine.multitask import MultiTask
from videossl.io.progress import track
from videossl.pretext.task import PretextTask
from videossl.stats import Interval
from videossl.types import Answers

PLANNED_CLIPS = 1000  # of which only the places in their files are looked at
SIDES: tuple[Side, ...] = ("train", "heldout")


@dataclass(frozen=True)
class Options:
    """How much is looked at: clips of each training and each held-out video, and the control set's videos."""

    out: Path
    train_clips: int = 4
    heldout_clips: int = 8
    control_videos: int = 80  # of the reversible set; 0: none
    head_steps: int = 100  # of training heads on a random encoder; 0: none
    swap_files: bool = True  # code the held-out files anew


@dataclass(frozen=True)
class Audit:
    """What was found on the control set, on the split, and on each task."""

    control: Sequence[Cheat]
    checks: Sequence[Check]
    tasks: Sequence[TaskAudit]

    @property
    def leaks(self) -> list[str]:
        """Everything that is not as it should be, in words."""
        control = [
            f"control set: {c.probe} {c.name}"
            for c in self.control
            if c.verdict == "leaks" and not c.is_demonstration
        ]
        general = control + [c.says for c in self.checks if c.is_clean is False]
        return general + [f"{task.task}: {leak}" for task in self.tasks for leak in task.leaks]

    @property
    def unknown(self) -> list[str]:
        """What could not be looked at, in words: of it neither leaks nor their absence are known."""
        general = [c.says for c in self.checks if c.is_clean is None]
        return general + [
            f"{task.task}: {check.says}"
            for task in self.tasks
            for check in task.checks
            if check.is_clean is None
        ]


class Examiner(Protocol):
    """Gathers what one task shows, batch by batch, and tries cheats on it."""

    def look(self, seen: Seen) -> None: ...

    def chance(self) -> float: ...

    def cheats(self) -> list[Cheat]: ...

    def checks(self) -> list[Check]: ...


class Unknown:
    """For a task of which no probe knows what it asks."""

    def look(self, seen: Seen) -> None:
        """Takes nothing."""

    def chance(self) -> float:
        """Not known."""
        return float("nan")

    def cheats(self) -> list[Cheat]:
        """None."""
        return []

    def checks(self) -> list[Check]:
        """That nothing could be tried."""
        says = "not audited: no probe knows what the task asks (PretextTask.questions)"
        return [Check("P2", "cheats", None, says)]


def examiner(task: PretextTask, seen: Seen, subject: Subject) -> Examiner:
    """The one that understands the views of a task."""
    if task.questions(seen.views) is not None:
        return Asked(
            task.questions,
            batch_size=subject.config.data.videos_per_step,
            seed=subject.config.seed,
            asks_of_time=task.clip_spec.num_clips * task.clip_spec.num_frames > 1,
        )
    if copies_colours(seen.views):
        return Colours(subject.config.seed)
    if pairs_clips(seen.views):
        return Instances(subject.config.seed)
    return Unknown()


def run_battery(subject: Subject, options: Options) -> Audit:
    """All probes on all tasks."""
    split = split_checks(
        subject.train.manifest, np.asarray(subject.train.rows), np.asarray(subject.heldout.rows)
    )
    control = (
        control_rows(
            options.out / "control", num_videos=options.control_videos, seed=subject.config.seed
        )
        if options.control_videos
        else []
    )
    placed = placements(subject.train, PLANNED_CLIPS)
    looked = look_at_clips(subject, options)
    model = (
        ask_model(subject, subject.model, subject.heldout, options) if subject.is_trained else None
    )
    swaps = swap_files(subject, looked.examiners, model, options) if options.swap_files else {}
    heads = train_heads(subject, options) if options.head_steps else None
    tasks = []
    for name, task in track(list(subject.model.named_tasks()), description="fitting cheats"):
        found, spec = looked.examiners[name], task.clip_spec
        cheats, chance = found.cheats(), found.chance()
        # What rules are set beside the model's answers is asked with the model's candidates.
        asked = model or heads
        if asked is not None:
            chance = asked.means[name]["chance"] if np.isnan(chance) else chance
            cheats += rival_findings(asked, name, chance)
        if heads is not None:
            cheats.append(head_finding(heads, name, chance))
        checks = [*found.checks(), *looked.hidden.get(name, []), *swaps.get(name, [])]
        checks += [*placement_checks(placed[spec]), *looked.decoded.checks(spec)]
        accuracy = accuracies(model, subject.config.seed).get(name) if model else None
        tasks.append(TaskAudit(name, chance, cheats, checks, accuracy))
    return Audit(control, split, tasks)


@dataclass(frozen=True)
class Looked:
    """What the clips of both sides have shown."""

    examiners: dict[str, Examiner]
    hidden: dict[str, list[Check]]  # of tasks that hide colours
    decoded: DecodedClips


def look_at_clips(subject: Subject, options: Options) -> Looked:
    """Shows every examiner the clips of both sides in all forms; each video is decoded once for all."""
    looked = Looked({}, {}, DecodedClips(subject.config.augment.border))
    tasks = dict(subject.model.named_tasks())
    for side, clips in zip(SIDES, (options.train_clips, options.heldout_clips), strict=True):
        count = num_batches(subject, side, clips)
        for index, raw in enumerate(subject.batches(side, count, why=f"looking at {side} clips")):
            looked.decoded.look(raw)
            for form, batch in subject.forms(side, raw, index):
                for name, seen in subject.seen(side, batch, form, index).items():
                    if name not in looked.examiners:
                        looked.examiners[name] = examiner(tasks[name], seen, subject)
                        if hides_colours(seen.views):
                            check = hidden_colour_check(subject, tasks[name], batch)
                            looked.hidden[name] = [check]
                    looked.examiners[name].look(seen)
    return looked


def num_batches(subject: Subject, side: Side, clips_per_video: int) -> int:
    """Batches that show each video of a side so often."""
    return -(-clips_per_video * len(subject.data(side)) // subject.config.data.videos_per_step)


def ask_model(
    subject: Subject, model: MultiTask, data: ClipDataset, options: Options
) -> HeldOutAnswers:
    """What a model answers on the same clips that cheats are judged on."""
    return collect_answers(
        subject.config,
        model,
        data,
        out=options.out,
        clips_per_video=options.heldout_clips,
        device=subject.world.device,
    )


def accuracies(collected: HeldOutAnswers, seed: int) -> dict[str, Interval]:
    """By task; without an interval where a task gives nothing but tallies."""
    found = {
        name: Interval(means["accuracy"], np.nan, np.nan) for name, means in collected.means.items()
    }
    for name, answers in collected.answers.items():
        found[name] = Interval(*judge(answers, seed=seed)["accuracy"])
    return found


def swap_files(
    subject: Subject,
    examiners: dict[str, Examiner],
    model: HeldOutAnswers | None,
    options: Options,
) -> dict[str, list[Check]]:
    """P7, of each task: what the probe of quality and the model lose on held-out files coded anew."""
    found: dict[str, list[Check]] = {name: [] for name in examiners}
    count = num_batches(subject, "heldout", options.heldout_clips)
    with TemporaryDirectory(dir=options.out) as folder:
        datasets, rows = transcoded(subject.heldout, Path(folder))
        if not rows:
            nothing = not_run(f"every held-out video is longer than {MAX_SECONDS:g} s")
            return {name: [nothing] for name in examiners}
        for variant, data in datasets.items():
            for index, raw in enumerate(subject.batches_of(data, count, why=variant)):
                batch = subject.feed.clips(raw, None)
                for name, seen in subject.seen("heldout", batch, variant, index).items():
                    examiners[name].look(seen)
            for name, one in examiners.items():
                if isinstance(one, Asked) and (check := one.swap_check(variant, rows)):
                    found[name].append(check)
            if model is None:
                continue
            others = ask_model(subject, subject.model, data, options)
            for name, answers in model.answers.items():
                before, after = judged(answers), judged(others.answers[name])
                found[name].append(
                    swap_check("the run's model", variant, before, after, coded=rows)
                )
    return found


def judged(answers: Answers) -> Judged:
    """Which answers are right."""
    right = (answers.scores.argmax(1) == answers.labels).numpy()
    weights = None if answers.weights is None else answers.weights.numpy()
    return Judged(right, weights, answers.videos.numpy())


def train_heads(subject: Subject, options: Options) -> HeldOutAnswers:
    """What heads answer that have been trained on a frozen random encoder."""
    model = with_trained_heads(subject, options.head_steps)
    return ask_model(subject, model, subject.heldout, options)


def head_finding(heads: HeldOutAnswers, name: str, chance: float) -> Cheat:
    """P9: a baseline, however far it gets."""
    interval = accuracies(heads, 0)[name]
    title = "trained head on a frozen random encoder"
    return _baseline("P9", title, interval, chance, heads, name)


def rival_findings(asked: HeldOutAnswers, name: str, chance: float) -> list[Cheat]:
    """What the rules score that the task itself sets beside its answers."""
    if name not in asked.answers:
        return []
    rivals = judge(asked.answers[name])["rivals"]
    return [
        _baseline(
            "P4", f"the task's own rule: {rule}", Interval(*judged["accuracy"]), chance, asked, name
        )
        for rule, judged in rivals.items()
    ]


def _baseline(
    probe: str, title: str, interval: Interval, chance: float, heads: HeldOutAnswers, name: str
) -> Cheat:
    count = len(heads.answers[name].labels) if name in heads.answers else 0
    verdict: Verdict = "baseline to beat" if interval.low > chance else "at chance"
    return Cheat(probe, title, interval, chance, verdict, count, heads.num_videos)
