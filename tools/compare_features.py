"""What each way to take per-frame features out of a 3D CNN does to tracking: one table over real sequences.

    python tools/compare_features.py --checkpoint RUN --davis DAVIS --split val -o features
    python tools/compare_features.py --untrained r3d_18 --davis DAVIS --split val -o strides

With a checkpoint: taps at each stage and joined, and for the deepest stage how its windows lie. With an untrained encoder
that has temporal strides: strides kept, cut, and cut with kernels dilated. Preset `videossl` but for what the row names;
J&F is the official mean over objects. A row that is there already is not made again, if it is of the same encoder, tree,
sequences, settings and versions.
"""

import argparse
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from videossl.engine.checkpoint import restore_encoder
from videossl.eval.davis import read_tree
from videossl.eval.digests import file_digest, tree_digest
from videossl.eval.features import EncoderFeatures
from videossl.eval.footage import davis_footage
from videossl.eval.output_folder import clear_folder
from videossl.eval.presets import preset
from videossl.eval.scoring import global_scores, score_results, versions
from videossl.eval.tracking import Row, track_row, worker_pool
from videossl.models.encoder import Encoder, EncoderSpec
from videossl.models.encoder_sources import find_checkpoint
from videossl.whole_file import write_json
from videossl.workers import num_cores

Variant = tuple[str, str, dict[str, str]]  # name, stage, overrides of the preset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--checkpoint", type=Path, metavar="RUN")
    given.add_argument("--untrained", metavar="NAME", help="an encoder with temporal strides")
    parser.add_argument("--davis", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--sequences", type=lambda text: text.split(","), metavar="A,B")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    sequences = read_tree(args.davis, split=args.split, only=args.sequences, need_masks=True)
    footages = [davis_footage(sequence) for sequence in sequences]
    shared = {
        "checkpoint": args.checkpoint and file_digest(find_checkpoint(args.checkpoint)),
        "untrained": args.untrained,
        "split": args.split,
        "sequences": [sequence.name for sequence in sequences],
        "tree": tree_digest(sequences),
        "versions": versions(),
    }
    print("| features | J&F | J | F | s per frame |")
    print("|---|---|---|---|---|")
    with worker_pool(num_cores()) as pool:
        for name, stage, overrides in variants(args):
            folder = args.out / name.replace(" ", "_").replace(",", "")
            done = folder / "result.json"
            depends_on = {**shared, "stage": stage, "protocol": overrides}
            if not is_made_of(done, depends_on):
                clear_folder(folder, marker=done.name, owned=["*"])
                write_json(done, {})  # a row that is stopped is made again, not refused
                make = partial(extractor, args.checkpoint, args.untrained, stage)
                row = Row(name, preset("videossl", overrides), make)
                record = track_row(row, footages, folder, pool=pool)
                scores = score_results(folder, sequences, num_workers=num_cores())
                seconds = record.get("seconds_per_frame")
                found = {"seconds": seconds, "global": global_scores(scores)}
                write_json(done, {"depends_on": depends_on, **found})
            found = json.loads(done.read_text())
            values = [100 * found["global"][key] for key in ("J&F-Mean", "J-Mean", "F-Mean")]
            print(f"| {name} | " + " | ".join(f"{v:.1f}" for v in values), end=" | ")
            print(f"{found['seconds']:.2f} |", flush=True)


def is_made_of(path: Path, depends_on: Mapping[str, object]) -> bool:
    """Whether the row's record is there, whole, and of exactly this."""
    if not path.is_file():
        return False
    found: object = json.loads(path.read_text()).get("depends_on")
    return found == json.loads(json.dumps(depends_on))


def variants(args: argparse.Namespace) -> list[Variant]:
    """The rows of the table."""
    if args.untrained is not None:
        return [
            ("res3, strides kept", "res3", {"time": "trained"}),
            ("res3, strides cut", "res3", {"time": "dense"}),
            ("res3, strides cut, kernels dilated", "res3", {"time": "dilated"}),
        ]
    stages = list(restore_encoder(args.checkpoint).stages)
    rows: list[Variant] = [(stage, stage, {}) for stage in stages if stage != "res5"]
    deepest = rows[-1][1]
    if len(rows) > 1:
        joined = f"{rows[-2][1]}+{deepest}"
        rows.append((joined, joined, {}))
    rows += [
        (f"{deepest}, windows without overlap", deepest, {"window_step": "8"}),
        (f"{deepest}, windows of 16", deepest, {"window_frames": "16"}),
        (f"{deepest}, causal", deepest, {"clip": "causal"}),
        (f"{deepest}, static", deepest, {"clip": "static"}),
    ]
    return rows


def extractor(checkpoint: Path | None, untrained: str | None, stage: str) -> EncoderFeatures:
    """The features of one row; untrained encoders are those of seed 0."""
    if checkpoint is not None:
        return EncoderFeatures(restore_encoder(checkpoint), stage=stage)
    assert untrained is not None
    torch.manual_seed(0)
    return EncoderFeatures(Encoder(EncoderSpec(untrained, stage, keep_time=False)), stage=stage)


if __name__ == "__main__":
    main()
