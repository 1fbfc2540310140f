"""The model card: what stands beside every exported file. It says what is known, from where, and what is not known."""

import html
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from videossl.errors import UserError
from videossl.export.programs import Difference, Program
from videossl.export.video_encoder import VideoEncoder
from videossl.models.encoder import count_parameters
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
    "heldout": "the pretext tasks on held-out videos (`videossl pretext-eval`)",
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
