"""What `videossl track` says of YouTube-VOS videos: scores per row where masks are known, and by category group."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

from videossl.commands.tracking_output import answers_of
from videossl.eval.scoring import ObjectScore, write_tables
from videossl.eval.youtube_scoring import (
    check_categories,
    group_scores,
    read_unseen_categories,
    score_youtube_sequence,
)
from videossl.eval.youtube_vos import YoutubeVosSequence, read_youtube_vos

SET_NAME = "youtube-vos"

log = logging.getLogger("videossl")


def read_videos(
    root: Path, only: Sequence[str] | None, unseen: Path | None
) -> list[YoutubeVosSequence]:
    """The videos, after it was checked that a list of unseen categories, if there is one, tells their objects apart."""
    videos = read_youtube_vos(root, only)
    if unseen is not None:
        check_categories(videos, read_unseen_categories(unseen))
    return videos


def score_videos(
    out: Path,
    videos: Sequence[YoutubeVosSequence],
    row_names: Iterable[str],
    *,
    pool: Executor | None,
) -> dict[str, list[ObjectScore]]:
    """Scores per row, and their tables; none if a video has no masks to score against (the valid and test splits)."""
    bare = [video.name for video in videos if not video.is_annotated]
    if bare:
        shown = ", ".join(bare[:5]) + (", ..." if len(bare) > 5 else "")
        log.info("not scored: no masks but the first of each object in %s", shown)
        return {}
    scores = {}
    for name in row_names:
        score = partial(score_youtube_sequence, out / name)
        answers = answers_of(score, videos, f"score {name}", pool)
        scores[name] = [score for answer in answers for score in answer]
        write_tables(out / name, SET_NAME, scores[name])
    return scores


def category_groups(
    scores: Mapping[str, Sequence[ObjectScore]], videos: Sequence[YoutubeVosSequence], unseen: Path
) -> dict[str, dict[str, float]]:
    """J and F of seen and unseen categories per row, printed and returned."""
    categories = read_unseen_categories(unseen)
    groups = {name: group_scores(row, videos, categories) for name, row in scores.items()}
    for name, values in groups.items():
        cells = (f"{column} {100 * value:.1f}" for column, value in values.items())
        print(f"{name}: {'  '.join(cells)}")
    return groups
