"""The battery of an audit: every shortcut baseline and check on every task of a config, before an accuracy is believed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from videossl.audit.codec_traces import (
    MAX_SECONDS,
    control_baselines,
    not_run,
    recoding_check,
    transcoded,
)
from videossl.audit.findings import Audit, TaskAudit
from videossl.audit.input_checks import (
    DecodedClips,
    hidden_color_check,
    hides_colors,
    placement_checks,
    placements,
    split_checks,
)
from videossl.audit.match_baselines import ColorBaselines, PairBaselines, copies_colors, pairs_clips
from videossl.audit.pretext_accuracy import HeldOutAnswers, accuracy_of, collect_answers
from videossl.audit.question_baselines import RAMP, QuestionBaselines
from videossl.audit.shortcut_baselines import Check, Judged, ShortcutBaseline, Verdict
from videossl.audit.subject import Seen, Side, Subject
from videossl.data.dataset import ClipDataset
from videossl.engine.multitask import MultiTask
from videossl.io.progress import track
from videossl.pretext.task import PretextTask
from videossl.stats import Interval
from videossl.types import Predictions

PLANNED_CLIPS = 1000  # of which only the places in their files are looked at


@dataclass(frozen=True)
class Options:
    """Says how much an audit looks at."""

    out: Path
    train_clips: int = 4  # of each video
    heldout_clips: int = 8
    control_videos: int = 80  # 0: no control set
    head_steps: int = 100  # of training heads on a random encoder; 0: none
    swap_files: bool = True  # code the held-out files anew


class NoBaselines:
    """Stands in where no baseline understands a task, so that the result says that nothing was tried."""

    def look(self, seen: Seen) -> None:
        """Takes nothing from the batch."""

    def chance(self) -> float:
        """Returns nan, as the chance is not known."""
        return float("nan")

    def baselines(self) -> list[ShortcutBaseline]:
        """Returns no baseline."""
        return []

    def checks(self) -> list[Check]:
        """Says that nothing could be tried."""
        says = "not audited: no probe knows what the task asks (PretextTask.shortcut_inputs)"
        return [Check("P2", "shortcut baselines", None, says)]


Baselines = QuestionBaselines | ColorBaselines | PairBaselines | NoBaselines


def baselines_for(task: PretextTask, seen: Seen, subject: Subject) -> Baselines:
    """The baselines that understand the views of a task."""
    if task.shortcut_inputs(seen.views) is not None:
        return QuestionBaselines(
            task.shortcut_inputs,
            batch_size=subject.config.data.videos_per_step,
            seed=subject.config.seed,
            asks_of_time=task.clip_spec.num_clips * task.clip_spec.num_frames > 1,
        )
    if copies_colors(seen.views):
        return ColorBaselines(subject.config.seed)
    if pairs_clips(seen.views):
        return PairBaselines(subject.config.seed)
    return NoBaselines()


def run_battery(subject: Subject, options: Options) -> Audit:
    """Runs all probes on all tasks of a config, and the model of a checkpoint beside them."""
    train, heldout = (np.asarray(data.rows) for data in (subject.train, subject.heldout))
    split = split_checks(subject.train.manifest, train, heldout)
    control = []
    if options.control_videos:
        control = control_baselines(
            options.out / "control", num_videos=options.control_videos, seed=subject.config.seed
        )
    placed = placements(subject.train, PLANNED_CLIPS)
    looked = look_at_clips(subject, options)
    model = _ask(subject, subject.model, subject.heldout, options) if subject.is_trained else None
    swaps = swap_files(subject, looked.baselines, model, options) if options.swap_files else {}
    heads = None
    if options.head_steps:
        random = subject.heads_on_random_encoder(options.head_steps)
        heads = _ask(subject, random, subject.heldout, options)
    tasks = []
    for name, task in track(list(subject.model.named_tasks()), description="fitting baselines"):
        found, spec = looked.baselines[name], task.clip_spec
        baselines, chance = found.baselines(), found.chance()
        # The task's own baselines choose among the candidates that a model is asked about.
        asked = model or heads
        if asked is not None:
            chance = asked.means[name]["chance"] if np.isnan(chance) else chance
            baselines += _own_baselines(asked, name, chance)
        if heads is not None:
            title = "trained head on a frozen random encoder"
            scored = _accuracy(heads, name, 0)
            baselines.append(_to_beat("P9", title, scored, chance, heads, name))
        checks = [*found.checks(), *looked.hidden.get(name, []), *swaps.get(name, [])]
        checks += [*placement_checks(placed[spec]), *looked.decoded.checks(spec)]
        accuracy = _accuracy(model, name, subject.config.seed) if model else None
        tasks.append(TaskAudit(name, chance, baselines, checks, accuracy))
    return Audit(control, split, tasks)


@dataclass(frozen=True)
class Looked:
    """Holds what the clips of both sides have shown, by task."""

    baselines: dict[str, Baselines]
    hidden: dict[str, list[Check]]  # of tasks that hide colours
    decoded: DecodedClips


def look_at_clips(subject: Subject, options: Options) -> Looked:
    """Shows the clips of both sides in all forms to every task's baselines; each video is decoded once for all."""
    looked = Looked({}, {}, DecodedClips(subject.config.augment.border))
    tasks = dict(subject.model.named_tasks())
    sides: list[tuple[Side, ClipDataset, int]] = [
        ("train", subject.train, options.train_clips),
        ("heldout", subject.heldout, options.heldout_clips),
    ]
    for side, data, clips in sides:
        count = _num_batches(subject, data, clips)
        for index, raw in enumerate(subject.batches(data, count, why=f"looking at {side} clips")):
            looked.decoded.look(raw)
            for form, batch in subject.forms(side, raw, index):
                for name, seen in subject.seen(side, batch, form, index).items():
                    if name not in looked.baselines:
                        looked.baselines[name] = baselines_for(tasks[name], seen, subject)
                        if hides_colors(seen.views):
                            check = hidden_color_check(subject, tasks[name], batch)
                            looked.hidden[name] = [check]
                    looked.baselines[name].look(seen)
    return looked


def _num_batches(subject: Subject, data: ClipDataset, clips_per_video: int) -> int:
    """The number of batches that show each video so often."""
    return -(-clips_per_video * len(data) // subject.config.data.videos_per_step)


def _ask(subject: Subject, model: MultiTask, data: ClipDataset, options: Options) -> HeldOutAnswers:
    """The answers of a model on the same clips that baselines are judged on."""
    return collect_answers(
        subject.config,
        model,
        data,
        out=options.out,
        clips_per_video=options.heldout_clips,
        device=subject.world.device,
    )


def _accuracy(asked: HeldOutAnswers, name: str, seed: int) -> Interval:
    """One task's accuracy; without an interval where the task gives nothing but metric_sums."""
    if name in asked.answers:
        return accuracy_of(asked.answers[name], seed=seed)
    return Interval(asked.means[name]["accuracy"], np.nan, np.nan)


def swap_files(
    subject: Subject,
    baselines: Mapping[str, Baselines],
    model: HeldOutAnswers | None,
    options: Options,
) -> dict[str, list[Check]]:
    """P7 of each task: what the probe of quality and the model lose on held-out files coded anew."""
    found: dict[str, list[Check]] = {name: [] for name in baselines}
    if model is None and not any(isinstance(b, QuestionBaselines) for b in baselines.values()):
        return found
    count = _num_batches(subject, subject.heldout, options.heldout_clips)
    with TemporaryDirectory(dir=options.out) as folder:
        datasets, rows = transcoded(subject.heldout, Path(folder))
        if not rows:
            nothing = not_run(f"every held-out video is longer than {MAX_SECONDS:g} s")
            return {name: [nothing] for name in baselines}
        for variant, data in datasets.items():
            for index, raw in enumerate(subject.batches(data, count, why=variant)):
                batch = subject.feed.clips(raw, None)
                for name, seen in subject.seen("heldout", batch, variant, index).items():
                    baselines[name].look(seen)
            for name, one in baselines.items():
                if isinstance(one, QuestionBaselines) and (both := one.before_and_after(variant)):
                    who, seed = f"the probe of {RAMP.name}", subject.config.seed
                    check = recoding_check(who, variant, *both, coded=rows, seed=seed)
                    found[name].append(check)
            if model is None:
                continue
            others = _ask(subject, subject.model, data, options)
            for name, answers in model.answers.items():
                both = _judged(answers), _judged(others.answers[name])
                found[name].append(recoding_check("the run's model", variant, *both, coded=rows))
    return found


def _judged(answers: Predictions) -> Judged:
    right = (answers.scores.argmax(1) == answers.labels).numpy()
    weights = None if answers.weights is None else answers.weights.numpy()
    return Judged(right, weights, answers.videos.numpy())


def _own_baselines(asked: HeldOutAnswers, name: str, chance: float) -> list[ShortcutBaseline]:
    """The accuracies of the baselines without a network that the task itself sets beside its answers."""
    if name not in asked.answers:
        return []
    answers, found = asked.answers[name], []
    for own, said in answers.baselines.items():
        title, accuracy = f"the task's own baseline: {own}", accuracy_of(answers, said)
        found.append(_to_beat("P4", title, accuracy, chance, asked, name))
    return found


def _to_beat(
    probe: str, title: str, accuracy: Interval, chance: float, asked: HeldOutAnswers, name: str
) -> ShortcutBaseline:
    """A score for the model to beat, however far it gets."""
    count = len(asked.answers[name].labels) if name in asked.answers else 0
    verdict: Verdict = "baseline to beat" if accuracy.low > chance else "at chance"
    return ShortcutBaseline(probe, title, accuracy, chance, verdict, count, asked.num_videos)
