"""The model card: what stands beside every exported file. It says what is known, from where, and what is not known."""

import html
import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from videossl.data.manifest import read_manifest
from videossl.errors import UserError
from videossl.export.loading import Loaded, file_sha256, public_url
from videossl.export.programs import Difference, Program
from videossl.export.video_encoder import VideoEncoder
from videossl.io.input_files import json_lines
from videossl.models.encoder import count_parameters
from videossl.models.encoder_sources import checkpoints
from videossl.version import __version__

# Identifiers that model hubs know; any other text is named as such.
HUB_LICENCES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "mpl-2.0"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
)
NO_LICENCE = (
    "No licence was stated. The weights may not be passed on until whoever made them states one, here and in the "
    "`license` field above, that also fits the videos that they were trained on."
)
# What can be measured with this library, by the kind that facts give it.
_KINDS = {
    "val": "the pretext tasks on held-out videos (`videossl pretext-eval`)",
    "probe": "classification and retrieval on labelled videos (`videossl probe`)",
    "track": "mask propagation (`videossl track`)",
    "track-points": "points and joints (`videossl track-points`)",
}


def model_card(
    file: Path,
    kind: str,
    encoder: VideoEncoder,
    facts: Mapping[str, Any],
    *,
    program: Program | None = None,
    difference: Difference | None = None,
) -> str:
    """Markdown with the YAML front matter of model hubs. `kind` is the format of `file`.

    Raises UserError for facts that no version of this library has written.
    """
    measured, licence = facts.get("measured") or [], facts.get("licence")
    try:
        of_facts = [
            _data_section(facts),
            _recipe_section(facts),
            _numbers_section(measured),
            _limits_section(measured),
        ]
        versions = _versions_section(facts)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, IndexError) as error:
        raise UserError(
            f"the facts in the encoder's file are not such as are written there: {error!r}"
        ) from error
    sections = [
        _front_matter(encoder, licence),
        f"# {text(file.name)}\n",
        _what_it_is(kind, encoder, program, difference),
        f"## Load\n\n{_code('python', loading_lines(file, kind))}",
        *of_facts,
        f"## Licence\n\n{NO_LICENCE if licence is None else text(licence)}\n",
        versions,
    ]
    return "\n".join(sections)


def loading_lines(file: Path, kind: str) -> str:
    """Three lines that give features of `video`, for whoever has the file."""
    name = json.dumps(file.name)
    if kind == "safetensors":
        lines = ["import videossl", f"encoder = videossl.load_encoder({name})"]
        lines += ["features = encoder(video)  # (N, T, 3, H, W) uint8 RGB of any size -> (N, C)"]
    elif kind == "torch.export":
        lines = ["import torch", f"program = torch.export.load({name}).module()"]
        lines += ["features = program(video)  # a uint8 tensor"]
    elif kind == "onnx":
        lines = ["import onnxruntime", f"session = onnxruntime.InferenceSession({name})"]
        lines += ['(features,) = session.run(None, {"video": video})  # a uint8 array']
    else:
        lines = ["import torch", f"weights = torch.load({name}, weights_only=True)"]
        lines += [
            f"model.load_state_dict(weights, strict=False)  # a {kind} model; it keeps its own head"
        ]
    return "\n".join(lines)


def text(value: object) -> str:
    """Any text as Markdown that shows it and nothing else: no markup, no HTML, no list, no link, on one line."""
    one_line = " ".join(str(value).split())
    shown = re.sub(r"([\\`*_\[\]{}()#!|~$])", r"\\\1", html.escape(one_line, quote=False))
    shown = re.sub(r"^([-+=])", r"\\\1", shown)  # of a list, or of a line that makes a heading
    shown = re.sub(r"^(\d+)\.", r"\1\\.", shown)
    # Bare addresses become links on model hubs.
    shown = re.sub(r"(www)\.", r"\1\\.", shown, flags=re.IGNORECASE)
    return shown.replace("://", r":\/\/").replace("@", r"\@")


def _front_matter(encoder: VideoEncoder, licence: str | None) -> str:
    fields: dict[str, Any] = {"license": "unknown"}
    if licence is not None and licence.lower() in HUB_LICENCES:
        fields = {"license": licence.lower()}
    elif licence is not None:
        fields = {"license": "other", "license_name": " ".join(licence.split())}
    tags = ["videossl", "video", "self-supervised-learning", encoder.encoder.spec.name]
    fields |= {"library_name": "videossl", "tags": tags}
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, width=math.inf)}---\n"


def _what_it_is(
    kind: str, encoder: VideoEncoder, program: Program | None, difference: Difference | None
) -> str:
    spec, clip = encoder.encoder.spec, encoder.clip
    shown = f"short side {clip.resize} pixels, centre {clip.crop_size} x {clip.crop_size}"
    lines = [
        f"A video encoder of videossl, as {kind}: RGB video in, features out.\n",
        f"- Encoder: {spec.name} up to {spec.deepest_stage}, {count_parameters(encoder.encoder):,} parameters"
        f"{', its 2D form: each frame alone' if spec.frame_wise else ''}"
        f"{', without normalisation' if spec.normalization == 'none' else ''}",
        f"- Strides: {'1 along time everywhere' if spec.keep_time else 'along time as published'}; "
        f"{'along space as published' if spec.max_stride is None else f'{spec.max_stride} pixels at most'}",
        f"- Feature: mean of stage {encoder.stage}, {encoder.num_channels} numbers",
        f"- Made for {clip.num_frames} frames {clip.seconds_between_frames:.4g} s apart, {shown}",
    ]
    if kind in ("pytorchvideo", "torchvision") and spec.colours == "lab":
        lines.append(
            "- These weights read normalised Lab, not RGB: give the model `videossl.color.encoder_input(frames)`"
        )
    elif spec.colours != "lab":
        lines.append(
            f"- The weights read RGB normalised as by {spec.colours.removeprefix('rgb_')}, and are given that"
        )
    if program is not None:
        frames = "any number of" if program.has_free_frames else str(clip.num_frames)
        what = f"maps of stage {encoder.stage}" if program.maps else "features"
        size = (
            "any size"
            if program.size is None
            else f"{program.size[0]} x {program.size[1]} pixels (height x width)"
        )
        lines.append(
            f"- Input `video`: (N, T, 3, H, W) uint8 RGB, any N, {frames} frames, {size}; output: {what}"
        )
    if difference is not None:
        lines.append(f"- Checked when it was written: {difference}")
    return "\n".join(lines) + "\n"


def _data_section(facts: Mapping[str, Any]) -> str:
    data = facts.get("data")
    if facts.get("kind") == "weights":
        said = f"Not known: the weights come from the file {text(facts['file'])} (SHA-256 {text(facts['sha256'])})."
    elif not data:
        said = "Not known: the file does not say what the encoder was trained on."
    elif data.get("videos") is None:
        said = f"Manifest {text(data['manifest'])}. How many videos it lists is not known: it could not be read."
    else:
        said = (
            f"Manifest {text(data['manifest'])} as of {text(data['as_of'])}: {data['videos']:,} videos that decode, of "
            f"{data['sources']:,} sources, {data['hours']:.3g} hours. A part of the sources was held out, see the recipe."
        )
    return f"## Data\n\n{said}\n"


def _recipe_section(facts: Mapping[str, Any]) -> str:
    config = facts.get("config")
    if not config:
        return "## Recipe\n\nNot known.\n"
    steps = text(f"{facts['step']} of {config['train']['steps']} steps, seed {config['seed']}")
    tasks = ", ".join(text(name) for name in config["tasks"])
    return f"## Recipe\n\nTasks: {tasks}. {steps}.\n\n{_code('yaml', yaml.safe_dump(config, sort_keys=False))}"


def _numbers_section(measured: Iterable[Mapping[str, Any]]) -> str:
    parts = [
        f"{text(found['what'])}\n({text(found['source'])}, {text(found['date'])}):\n\n{_table(found['rows'])}"
        for found in measured
    ]
    return "## Measured\n\n" + ("\n".join(parts) or "Nothing is known to have been measured.\n")


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [f"| | {' | '.join(map(text, names))} |", "|---" * (len(names) + 1) + "|"]
    lines += [
        f"| {text(row)} | {' | '.join(_number(values.get(name)) for name in names)} |"
        for row, values in rows.items()
    ]
    return "\n".join(lines) + "\n"


def _number(value: Any) -> str:
    if isinstance(value, list):
        return f"{value[0]:.4g} ({value[1]:.4g} to {value[2]:.4g})"
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _limits_section(measured: Iterable[Mapping[str, Any]]) -> str:
    found = {one["kind"] for one in measured}
    lacking = [f"- {what}" for kind, what in _KINDS.items() if kind not in found]
    lacking += [
        "- other kinds of video than those above, and other frame rates, sizes and lengths",
        "- what the encoder makes of people: whether it serves or harms some groups of them more than others",
    ]
    return "## Limits\n\nNot measured, as far as this file knows:\n\n" + "\n".join(lacking) + "\n"


def _versions_section(facts: Mapping[str, Any]) -> str:
    lines = [f"Exported by videossl {__version__} with torch {torch.__version__}."]
    if environment := facts.get("environment"):
        trained = f"videossl {environment.get('videossl')} (revision {environment.get('revision')})"
        lines.append(
            f"Trained by {text(trained)} with torch {text(environment.get('packages', {}).get('torch'))}."
        )
    if facts.get("checkpoint"):
        lines.append(
            f"Checkpoint {text(facts['checkpoint'])}, SHA-256 {text(facts['checkpoint_sha256'])}."
        )
    return "## Versions\n\n" + "\n".join(lines) + "\n"


def _code(language: str, content: str) -> str:
    """A block whose fence is longer than any in the content."""
    longest = max((len(run) for run in re.findall("`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{content.rstrip()}\n{fence}\n"


log = logging.getLogger("videossl")

# Settings that name places on the machine of the run: the last part of each is published, the way there is not.
_PLACES = (
    ("out",),
    ("encoder", "init"),
    ("data", "manifest"),
    ("monitor", "knn", "manifest"),
    ("monitor", "tracking", "davis"),
)
# What a run measures, by its key in the lines of metrics.jsonl.
_MEASURED = {
    "val": "pretext tasks on videos held out from training",
    "knn": "nearest neighbours on labelled videos, while training",
    "tracking": "mask propagation on the first frames of sequences, while training",
}


MOST_DEPTH = 32  # of facts; chosen: far above any config, far below what JSON and YAML writers bear


def facts_of(loaded: Loaded) -> dict[str, Any]:
    """Those of a run's checkpoint; those that an exported file or imported weights carry already are handed on.

    Raises UserError for a file's facts that no version of this library has written.
    """
    if "facts" in loaded.contents:
        facts = dict(loaded.contents["facts"])
        _check(facts)
        return facts
    config, step = loaded.contents.get("config") or None, loaded.contents.get("step")
    run = _run_folder(loaded.path)
    return {
        "kind": "run",
        "checkpoint": loaded.path.name,
        "checkpoint_sha256": file_sha256(loaded.path),
        "step": step,
        "config": None if config is None else _published(config),
        "data": None if config is None else _data(config),
        "environment": _json(run / "env.json") if run else None,
        "measured": _measured(run / "metrics.jsonl", step) if run and step is not None else [],
    }


def _check(facts: Mapping[str, Any]) -> None:
    measured, licence = facts.get("measured") or [], facts.get("licence")
    if not isinstance(measured, list) or not all(isinstance(one, dict) for one in measured):
        raise UserError("the facts in the encoder's file are none: 'measured' is no list of tables")
    if not isinstance(licence, str | None):
        raise UserError("the facts in the encoder's file are none: 'licence' is no text")
    level: list[Any] = [facts]
    for _ in range(MOST_DEPTH):
        lists = [value for value in level if isinstance(value, list)]
        level = [v for value in level if isinstance(value, dict) for v in value.values()]
        level += [v for value in lists for v in value]
    if level:
        raise UserError(
            f"the facts in the encoder's file are none: nested more than {MOST_DEPTH} deep"
        )


def date_of(path: Path) -> str:
    """The day a file was last changed, in UTC."""
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%d")


def _run_folder(checkpoint: Path) -> Path | None:
    folder = checkpoint.absolute().parent
    is_runs = folder.name == "checkpoints" and checkpoint in [
        *checkpoints(checkpoint.parent),
        checkpoint.parent / "best.pt",
    ]
    return folder.parent if is_runs and (folder.parent / "config.yaml").is_file() else None


def _published(config: Mapping[str, Any]) -> dict[str, Any]:
    copy: dict[str, Any] = _without_secrets(json.loads(json.dumps(config)))
    for *sections, key in _PLACES:
        section: Any = copy
        for name in sections:
            section = section.get(name) or {}
        if section.get(key) is not None:
            section[key] = Path(section[key]).name
    return copy


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_secrets(inner) for inner in value]
    return public_url(value) if isinstance(value, str) else value


def _data(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest as it is today, if it is still where the run had it."""
    place = config["data"]["manifest"]
    if place is None:
        return None
    path = Path(place)
    found: dict[str, Any] = {"manifest": Path(public_url(place)).name, "videos": None}
    try:
        manifest = read_manifest(path)
        sound = [entry for entry in manifest if entry.is_ok]
    except UserError as error:
        log.info("the card cannot say how much data there was: %s", error)
        return found
    return {
        **found,
        "videos": len(sound),
        "sources": len({entry.group for entry in sound}),
        "hours": sum(entry.duration_seconds for entry in sound) / 3600,
        "as_of": date_of(path),
    }


def _measured(path: Path, step: int) -> list[dict[str, Any]]:
    """The last line of each kind that was measured of these weights or of earlier ones, with its step."""
    last: dict[str, dict[str, Any]] = {}
    for record in _json_lines(path):
        for name, what in _MEASURED.items():
            if name in record and record["step"] <= step:
                rows = record[name] if name == "val" else {name: record[name]}
                last[name] = {"kind": name, "what": f"{what}, step {record['step']}", "rows": rows}
    origin = {"source": path.name, "date": date_of(path) if last else None}
    return [{**found, **origin} for found in last.values()]


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for record in json_lines(path):
        if isinstance(record.get("step"), int):
            yield record


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        log.info("%s cannot be read: %s", path, error)
        return None


MOST_NUMBERS = 16  # of a row; chosen: a table that can be read


def read_results(paths: Sequence[Path], digests: Sequence[str]) -> list[dict[str, Any]]:
    """What each result measured, as `facts["measured"]` has it.

    `digests` are the SHA-256 of this encoder's files. Raises UserError for a file that is no result, and for one that says
    that it is of a checkpoint of another digest.
    """
    return [_read(path, digests) for path in paths]


def _read(path: Path, digests: Sequence[str]) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--results {path} cannot be read: {error}") from error
    rows = record.get("rows") if isinstance(record, dict) else None
    if not isinstance(rows, dict) or not rows:
        raise UserError(
            f"--results {path} holds no rows: give a result.json of `videossl probe`, `track` or `track-points`"
        )
    digest = record.get("checkpoint_sha256")
    if digest is not None and digest not in digests:
        raise UserError(
            f"--results {path} is of another checkpoint ({record.get('checkpoint')}, SHA-256 {digest})"
        )
    numbers = {str(name): _numbers(row) for name, row in rows.items()}
    kind = "probe" if "protocol" in record else str(record.get("command", "")).split(" ")[-1]
    return {
        "kind": kind,
        "what": _what(record, is_proved=digest is not None),
        "rows": {name: found for name, found in numbers.items() if found},
        "source": path.name,
        "date": date_of(path),
    }


def _what(record: Mapping[str, Any], *, is_proved: bool) -> str:
    names = {"davis": "DAVIS tree", "youtube_vos": "YouTube-VOS tree", "manifest": "manifest"}
    names |= {"badja": "BADJA", "jhmdb": "JHMDB", "tapvid": "TAP-Vid", "video": "video"}
    on = [
        f"{text} {Path(public_url(str(record[key]))).name}"
        for key, text in names.items()
        if record.get(key)
    ]
    command = "videossl probe" if "protocol" in record else record.get("command", "a result")
    more = [
        f"{key} {record[key]}" for key in ("protocol", "split", "preset") if _is_word(record, key)
    ]
    text = ", ".join([str(command), *on, *more])
    if is_proved:
        return text
    checkpoint = record.get("checkpoint")
    named = (
        "no checkpoint"
        if checkpoint is None
        else f"the checkpoint {Path(public_url(str(checkpoint))).name}"
    )
    return f"{text}; the file names {named} and carries no digest of it"


def _is_word(record: Mapping[str, Any], key: str) -> bool:
    return isinstance(record.get(key), str)


def _numbers(row: Any) -> dict[str, Any]:
    """The row's own numbers, and [estimate, low, high] of those with an interval; a tracking row's are under `global`."""
    if not isinstance(row, Mapping):
        return {}
    found = row["global"] if isinstance(row.get("global"), Mapping) else row
    kept = {
        str(key): value for key, value in found.items() if _is_number(value) or _is_triple(value)
    }
    return dict(list(kept.items())[:MOST_NUMBERS])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_triple(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))
