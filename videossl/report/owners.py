"""Which run a result is of: by the checkpoint's digest, else by its path. None is shown as of a run that it is not of."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from videossl.errors import UserError
from videossl.models.encoder_sources import SHIPPED
from videossl.report.results import Result, Tracking
from videossl.report.run_record import RunRecord

log = logging.getLogger("videossl")

EXPORTED = ".safetensors"  # an encoder's own file may lie anywhere, and says nothing of its run


def own_results(run: RunRecord, runs: Sequence[RunRecord]) -> list[Result]:
    """The results found below one of the runs, without those that are of another run, which are said once."""
    kept = []
    for result in run.results:
        if other := _other_run(result, run, runs):
            path = result.folder / "result.json"
            log.warning(
                "%s is left out: it lies in the run %s but is of %s", path, run.folder, other
            )
        else:
            kept.append(result)
    return kept


def owner_of(result: Result, runs: Sequence[RunRecord]) -> tuple[RunRecord, Result]:
    """The run that a result from elsewhere is of, and the result, marked with its checkpoint where that is not certain.

    One of an encoder that can be no run's is shown beside the first run, under its own name.
    Raises UserError if it is of none of the runs, or if its run cannot be told and there are several.
    """
    named = result.record.checkpoint
    for run in runs:
        if _is_of_checkpoint(result, run) or run.folder.resolve() in _runs_named(result):
            return run, result
    if encoder := _named_encoder(result):
        return runs[0], replace(result, encoder=encoder)
    if named is not None and (_runs_named(result) or not named.endswith(EXPORTED)):
        raise UserError(
            f"{result.folder} is of {named}, which is none of the runs: give that run too"
        )
    if len(runs) > 1:
        raise UserError(
            f"{result.folder} is of {named or 'a checkpoint that it does not name'}, and of which run that is cannot be "
            "told: report it with its run alone"
        )
    return runs[0], replace(result, mark=Path(named).name if named else "checkpoint not named")


def _named_encoder(result: Result) -> str:
    """The shipped encoder that a result is of, or the features that were given for it; else empty."""
    record = result.record
    if record.checkpoint in SHIPPED:
        return str(record.checkpoint)
    if isinstance(record, Tracking) and record.checkpoint is None and record.features is not None:
        return record.main_row or record.features
    return ""


def _other_run(result: Result, run: RunRecord, runs: Sequence[RunRecord]) -> Path | None:
    named = _runs_named(result)
    if run.folder.resolve() in named or _is_of_checkpoint(result, run):
        return None
    proved = [one.folder for one in runs if _is_of_checkpoint(result, one)]
    return next(iter(proved + named), None)


def _is_of_checkpoint(result: Result, run: RunRecord) -> bool:
    digest = result.record.checkpoint_sha256
    paths = sorted(run.folder.glob("checkpoints/*.pt")) if digest else []
    return any(_sha256(path.resolve()) == digest for path in paths)


@cache
def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        log.warning("%s cannot be read, so that no result is known by it: %s", path, error.strerror)
        return ""


def _runs_named(result: Result) -> list[Path]:
    """The folders of runs that the checkpoint's path leads into, from the working folder and from all above the result."""
    named = result.record.checkpoint
    folder = result.folder.resolve()
    bases = [Path.cwd(), folder, *folder.parents] if named else []
    found = [run for base in bases if (run := _run_of(base / str(named)))]
    return list(dict.fromkeys(found))


def _run_of(checkpoint: Path) -> Path | None:
    """The run that a checkpoint lies in; it may be one that the run has dropped since."""
    try:
        path = checkpoint.resolve()
        is_there = path.exists() or (path.parent.name == "checkpoints" and path.parent.is_dir())
    except (OSError, ValueError):  # a name that can be none of a file
        return None
    inside = (path, *path.parents) if is_there else ()
    return next((above for above in inside if _is_run(above)), None)


def _is_run(folder: Path) -> bool:
    """A config.yaml alone may be one to train with, in a folder of the user's."""
    has_run = (folder / "checkpoints").is_dir() or (folder / "env.json").is_file()
    return has_run and (folder / "config.yaml").is_file()
