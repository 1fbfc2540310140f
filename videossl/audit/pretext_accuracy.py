"""Measures a model's accuracy on its pretext tasks, on videos it never trained on, beside chance and the tasks' baselines.

A run's held-out videos are asked clip by clip; the answers of all batches give accuracies with intervals over videos, then
a table and a picture for each task.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from videossl.config import Config, validate
from videossl.data.dataset import ClipDataset
from videossl.data.manifest import Manifest, read_manifest
from videossl.distributed import World
from videossl.engine.build import autocast, build_model
from videossl.engine.checkpoint import load_checkpoint
from videossl.engine.feed import Feed, Quarantine
from videossl.engine.metrics import MetricSums
from videossl.engine.multitask import MultiTask
from videossl.engine.split import split_of_run
from videossl.errors import UserError
from videossl.io.drawing import as_array
from videossl.io.progress import track
from videossl.models.encoder_sources import find_checkpoint
from videossl.stats import (
    ENOUGH_VIDEOS,
    UNKNOWN,
    Floats,
    Interval,
    bootstrap,
    bootstrap_over_videos,
    too_few,
)
from videossl.types import Predictions

MAX_CONFUSION = 32  # answers up to which a confusion matrix can be read
MAX_WRITTEN_CONFUSION = 12  # and up to which its shares can be written into its cells

log = logging.getLogger("videossl")


@dataclass(frozen=True)
class Run:
    """A trained run: its config, its model in evaluation mode, and the step it has reached."""

    config: Config
    model: MultiTask
    step: int
    folder: Path  # which remembers what it held out


@dataclass(frozen=True)
class HeldOutAnswers:
    """The answers of a model on held-out videos, by task.

    `answers` join all batches, their `videos` naming manifest rows; `means` are the tasks' own metric_sums; `pictures` are
    drawn of the first batch.
    """

    answers: dict[str, Predictions]
    means: dict[str, dict[str, float]]
    pictures: dict[str, Tensor]
    num_videos: int


def load_run(path: str | Path) -> Run:
    """The run of a folder or checkpoint file; raises UserError if there is none, or it is of another version."""
    found = find_checkpoint(path)
    state = load_checkpoint(found)
    config = validate(Config, state["config"])
    model = build_model(config)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise UserError(
            f"checkpoint {path} does not fit its own config: {str(error).splitlines()[0]} (another version's?)"
        ) from error
    return Run(config, model.eval(), int(state["step"]), found.parent.parent)


def unseen_videos(run: Run, manifest_path: Path | None) -> tuple[Manifest, np.ndarray]:
    """A manifest and its rows that the run has not trained on: neither the video nor another of its source group.

    Without a path it is the run's own manifest, and the rows are what the run held out. Raises UserError if none is left.
    """
    data, seed = run.config.data, run.config.seed
    own = read_manifest(Path(str(data.manifest)))
    split = split_of_run(own, data.val_fraction, seed, run=run.folder, may_change=True)
    if manifest_path is None or manifest_path == Path(str(data.manifest)):
        if not len(split.heldout):
            raise UserError(
                f"the run held no video of {data.manifest} out: name another --manifest, or train with "
                "data.val_fraction above 0"
            )
        return own, split.heldout
    other = read_manifest(manifest_path)
    for _, task in run.model.named_tasks():
        task.forget_videos()  # they are rows of the run's own manifest
    groups = set(np.asarray(own.strings("group"))[split.train])
    videos = {str(own[row].source) for row in split.train.tolist()}
    of_row = enumerate(other.strings("group"))
    seen = np.array([g in groups or str(other[row].source) in videos for row, g in of_row], bool)
    if seen.all():
        raise UserError(f"the run has trained on every video of {manifest_path}, or on its source")
    if seen.any():
        left_out = "%d of %d videos left out: the run trained on them or their source"
        log.info(left_out, seen.sum(), len(seen))
    return other, np.flatnonzero(~seen)


@torch.no_grad()
def collect_answers(
    config: Config,
    model: MultiTask,
    data: ClipDataset,
    *,
    out: Path,
    clips_per_video: int,
    device: torch.device,
) -> HeldOutAnswers:
    """Asks each video `clips_per_video` times, each time about another clip, and keeps what the tasks answer.

    Clips are those of evaluation: the centre crop, no jitter. Videos that fail go to `out`/quarantine.jsonl.
    """
    world = World(rank=0, size=1, local_rank=0, device=device)
    feed = Feed(config, world, Quarantine(out, rank=0, max_bad_fraction=1.0))
    model.to(device).eval()
    count, size = clips_per_video * len(data), config.data.videos_per_step
    steps = -(-count // size)
    metric_sums, pictures = MetricSums(), {}
    parts: dict[str, list[Predictions]] = {}
    with contextlib.closing(feed.batches(data, 0, steps)) as batches:
        for step, raw in enumerate(track(batches, description="asking", total=steps)):
            feed.quarantine.record(raw.failures, step=0)
            rng = feed.rows("heldout views", step, len(raw.video_ids))
            with autocast(config, device):
                views = model.make_views(feed.clips(raw, None), rng)
                features = model.encode(views)
                results = {}
                for name, task in model.named_tasks():
                    targets = views[name].targets
                    results[name] = task(features[name], targets)
                    answers = task.predictions(features[name], targets)
                    if answers is not None:
                        # Past the last position of the last round the batch is filled up again.
                        asked = min(size, count - step * size)
                        parts.setdefault(name, []).append(_first(answers, asked, raw.video_ids))
                if step == 0:
                    pictures = model.draw(views)
            metric_sums.add(results)
    joined = {name: _join(of_task) for name, of_task in parts.items()}
    return HeldOutAnswers(joined, metric_sums.values(), pictures, len(data))


def _first(answers: Predictions, num_videos: int, video_ids: Tensor) -> Predictions:
    """The answers on the first videos of a batch, with the manifest's rows as videos, on the CPU."""
    if answers.chance is not None:
        answers = _found_or_not(answers)
    keep = answers.videos < num_videos
    ones = torch.ones_like(keep, dtype=torch.float32)
    by_name = {
        name: {key: value[keep].cpu() for key, value in getattr(answers, name).items()}
        for name in ("baselines", "numbers", "subsets")
    }
    return Predictions(
        answers.scores[keep].float().cpu(),
        answers.labels[keep].cpu(),
        video_ids.cpu()[answers.videos[keep].cpu()],
        (ones if answers.weights is None else answers.weights)[keep].float().cpu(),
        **by_name,
        chance=None if answers.chance is None else answers.chance[keep].cpu(),
    )


def _found_or_not(answers: Predictions) -> Predictions:
    """Candidates of a batch as two answers, not found and found: their scores would fill the memory, and say no more."""
    found = (answers.scores.argmax(1) == answers.labels).long()
    baselines = {name: (said == answers.labels).long() for name, said in answers.baselines.items()}
    scores = torch.nn.functional.one_hot(found, 2).float()
    labels = torch.ones_like(answers.labels)
    return dataclasses.replace(answers, scores=scores, labels=labels, baselines=baselines)


def _join(parts: list[Predictions]) -> Predictions:
    def joined(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        if isinstance(values[0], dict):
            return {key: torch.cat([value[key] for value in values]) for key in values[0]}
        return None if values[0] is None else torch.cat(values)

    return Predictions(
        **{field.name: joined(field.name) for field in dataclasses.fields(Predictions)}
    )


def accuracy_of(answers: Predictions, said: Tensor | None = None, *, seed: int = 0) -> Interval:
    """The weighted accuracy of a model's answers, or of those in `said` (Q,), with its interval over videos."""
    said = answers.scores.argmax(1) if said is None else said
    assert answers.weights is not None
    right, weights = (said == answers.labels).numpy(), answers.weights.numpy()
    return bootstrap_over_videos(right, weights, answers.videos.numpy(), seed=seed)


def judge(answers: Predictions, *, seed: int = 0) -> dict[str, Any]:
    """All that can be said of a task's answers: plain types, intervals as [estimate, low, high].

    `accuracy`, `balanced_accuracy` (mean recall of the answers that occur), `auc` (two answers; Mann-Whitney), `majority`
    (the best constant answer), `baselines` (the accuracy of each baseline of the task, and the model's less that, paired),
    `numbers` (means), `confusion` (rows: right answer, columns: said), and `subsets`, each judged in the same way. Where
    answers are a batch's candidates and no classes, `chance` stands for what only classes have.
    """
    judged = _judge_rows(answers, np.ones(len(answers.labels), dtype=bool), seed)
    judged["subsets"] = {
        name: _judge_rows(answers, rows.numpy(), seed) for name, rows in answers.subsets.items()
    }
    return judged


def _judge_rows(answers: Predictions, rows: np.ndarray, seed: int) -> dict[str, Any]:
    assert answers.weights is not None
    weights = answers.weights.numpy().astype(np.float64)[rows]
    scores, labels = answers.scores.numpy()[rows], answers.labels.numpy()[rows]
    videos = answers.videos.numpy()[rows]
    said = scores.argmax(1) if len(scores) else labels
    right = (said == labels).astype(np.float64)

    def mean(values: np.ndarray) -> list[float]:
        return list(bootstrap_over_videos(values, weights, videos, seed=seed))

    judged: dict[str, Any] = {
        "num_questions": int((weights > 0).sum()),
        "num_videos": len(np.unique(videos[weights > 0])),
        "accuracy": mean(right),
    }
    has_classes = answers.chance is None
    if answers.chance is not None:
        judged["chance"] = mean(answers.chance.numpy()[rows])[0]
    else:
        judged["balanced_accuracy"] = _balanced(right, labels, weights, videos, seed)
        judged["majority"] = majority(labels, weights)
    if has_classes and scores.shape[1] == 2:
        ahead = scores[:, 1] - scores[:, 0]
        area = bootstrap(lambda w: auc(ahead, labels, w), weights, videos, seed=seed)
        judged["auc"] = list(area)
    judged["baselines"] = {}
    for name, answer in answers.baselines.items():
        own = (answer.numpy()[rows] == labels).astype(np.float64)
        judged["baselines"][name] = {
            "accuracy": mean(own),
            "model_minus_baseline": mean(right - own),
        }
        if has_classes:
            balanced = _balanced(own, labels, weights, videos, seed)
            judged["baselines"][name]["balanced_accuracy"] = balanced
    judged["numbers"] = {name: mean(v.numpy()[rows]) for name, v in answers.numbers.items()}
    if has_classes and scores.shape[1] <= MAX_CONFUSION:
        judged["confusion"] = confusion(labels, said, weights, scores.shape[1]).tolist()
    return judged


def confusion(labels: np.ndarray, said: np.ndarray, weights: Floats, num_answers: int) -> Floats:
    """(A, A) weights of right answers (rows) and answers given (columns)."""
    flat = np.bincount(labels * num_answers + said, weights, minlength=num_answers**2)
    return flat.astype(np.float64).reshape(num_answers, num_answers)


def majority(labels: np.ndarray, weights: Floats) -> float:
    """The accuracy of the best constant answer; nan where nothing is asked."""
    total = weights.sum()
    return float(np.bincount(labels, weights).max() / total) if total > 0 else float("nan")


def auc(scores: np.ndarray, labels: np.ndarray, weights: Floats) -> float:
    """The chance that a question of label 1 scores above one of label 0, half for ties, rows weighted; nan without both."""
    order = np.argsort(scores, kind="stable")
    scores, labels, weights = scores[order], labels[order], weights[order]
    positive, negative = weights * (labels == 1), weights * (labels == 0)
    if not positive.sum() > 0 or not negative.sum() > 0:
        return float("nan")
    tie = np.unique(scores, return_inverse=True)[1]
    negative_of_tie = np.bincount(tie, negative)
    below = np.cumsum(negative_of_tie) - negative_of_tie
    wins = positive * (below[tie] + negative_of_tie[tie] / 2)
    return float(wins.sum() / (positive.sum() * negative.sum()))


def _balanced(
    right: Floats, labels: np.ndarray, weights: Floats, videos: np.ndarray, seed: int
) -> list[float]:
    """Mean recall with its interval; only each video's sums per class are resampled, which is cheap."""
    if not weights.sum() > 0:
        return list(UNKNOWN)
    names, index = np.unique(videos, return_inverse=True)
    shape = (len(names), int(labels.max()) + 1)
    cell = index * shape[1] + labels
    hits = np.bincount(cell, right * weights, minlength=shape[0] * shape[1]).reshape(shape)
    counts = np.bincount(cell, weights, minlength=shape[0] * shape[1]).reshape(shape)

    def mean_recall(video_weights: Floats) -> float:
        seen = (summed := video_weights @ counts) > 0
        return float(((video_weights @ hits)[seen] / summed[seen]).mean())

    return list(bootstrap(mean_recall, np.ones(len(names)), np.arange(len(names)), seed=seed))


Rows = list[tuple[str, str, Interval]]  # what, of which questions, how much


def rows_of(task: Mapping[str, Any]) -> Rows:
    """Every figure of a task that has an interval, the model's before its baselines'."""
    if "accuracy" not in task:
        return []
    rows: Rows = []
    for part, judged in {"all": task, **task.get("subsets", {})}.items():
        if not judged["num_questions"]:
            continue
        for key, what in (
            ("accuracy", "accuracy"),
            ("balanced_accuracy", "balanced accuracy"),
            ("auc", "AUC"),
        ):
            if key in judged:
                rows.append((what, part, Interval(*judged[key])))
        key, guess = ("chance",) * 2 if "chance" in judged else ("majority", "best constant answer")
        rows.append((guess, part, Interval(*[judged[key]] * 3)))
        for name, own in judged["baselines"].items():
            rows.append((f"baseline: {name}", part, Interval(*own["accuracy"])))
            if "balanced_accuracy" in own:
                balanced = Interval(*own["balanced_accuracy"])
                rows.append((f"baseline: {name}, balanced", part, balanced))
            rows.append((f"model less {name}", part, Interval(*own["model_minus_baseline"])))
        rows += [(name, part, Interval(*value)) for name, value in judged["numbers"].items()]
    return rows


def format_table(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """A table for a terminal and for Markdown, with notes; tasks without intervals have one line for each of their means."""
    lines = ["| task | measure | questions | estimate | 95 % interval |", "|---|---|---|---|---|"]
    for name, task in tasks.items():
        rows = rows_of(task)
        for what, part, (estimate, low, high) in rows:
            bounds = "" if low == high == estimate else f"{low:.3f} to {high:.3f}"
            lines.append(f"| {name} | {what} | {part} | {estimate:.3f} | {bounds} |")
        if not rows:
            means = task["means"].items()
            lines += [f"| {name} | {what} | all | {value:.3f} | |" for what, value in means]
    few = {name: too_few(task.get("num_videos", ENOUGH_VIDEOS)) for name, task in tasks.items()}
    notes = [f"{name}: {text}." for name, text in few.items() if text]
    if any("chance" in task for task in tasks.values()):
        notes.append("Chance: one of the candidates in the batch, on average.")
    return "\n".join([*lines, *([""] if notes else []), *notes])


def draw_task(path: Path, name: str, task: Mapping[str, Any]) -> None:
    """Draws bars of every share with its interval, and the confusion matrix where it can be read."""
    shares = [row for row in rows_of(task) if not row[0].startswith("model less")]
    shares = [row for row in shares if 0 <= row[2].estimate <= 1]
    matrix = np.array(task["confusion"]) if "confusion" in task else None
    columns = 1 if matrix is None else 2
    figure = Figure(figsize=(6.5 * columns, 1.2 + 0.32 * max(len(shares), 9)))
    axes = figure.subplots(1, columns, squeeze=False)
    bars = axes[0][0]
    places = np.arange(len(shares))
    values = np.array([interval.estimate for *_, interval in shares])
    errors = np.abs(np.array([[i.low, i.high] for *_, i in shares]).T - values)
    colors = [_color(what) for what, *_ in shares]
    bars.barh(places, values, xerr=errors, color=colors, height=0.7, ecolor="0.3", capsize=2)
    bars.set_yticks(places, [f"{what} ({part})" for what, part, _ in shares], fontsize=8)
    bars.invert_yaxis()
    bars.set_xlim(0, 1)
    bars.grid(axis="x", alpha=0.3)
    title = f"{name}: {task['num_questions']} questions on {task['num_videos']} videos"
    bars.set_title(title, fontsize=10)
    if matrix is not None:
        _draw_confusion(axes[0][1], matrix)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _color(what: str) -> str:
    if what.startswith("baseline") or what in ("best constant answer", "chance"):
        return "0.65"
    return "tab:blue" if what in ("accuracy", "balanced accuracy", "AUC") else "tab:cyan"


def _draw_confusion(axes: Any, matrix: np.ndarray) -> None:
    """Draws each row's shares: what is said where this is right."""
    totals = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros_like(matrix), where=totals > 0)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("said")
    axes.set_ylabel("right")
    axes.set_title("what is said where this is right, share of each row", fontsize=10)
    if len(matrix) > MAX_WRITTEN_CONFUSION:
        return
    axes.set_xticks(range(len(matrix)))
    axes.set_yticks(range(len(matrix)))
    for (row, column), share in np.ndenumerate(shares):
        color = "white" if share > 0.6 else "black"
        text = f"{share:.2f}"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)


def write_pictures(folder: Path, pictures: Mapping[str, Tensor]) -> None:
    """Writes what the tasks saw and answered, a PNG each: `task/name` becomes task_name.png."""
    for title, image in pictures.items():
        path = folder / f"{title.replace('/', '_').replace(' ', '_')}.png"
        Image.fromarray(as_array(image.cpu())).save(path)
