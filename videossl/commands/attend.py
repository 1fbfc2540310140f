"""`videossl attend`: where a pixel of a frame looks when labels are propagated, as a picture or a page to click on."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from videossl.commands.protocol_arguments import add_protocol_arguments, add_stage_and_device
from videossl.errors import UserError
from videossl.eval.presets import parse_overrides, preset

if TYPE_CHECKING:  # torch is not waited for before it is needed
    from videossl.drawing import Rgb
    from videossl.eval.frames import FrameSource

EXAMPLE = """examples:
  videossl attend --checkpoint runs/mine --davis /data/DAVIS --sequence bear --frame 5 --pixel 300,200 \\
      --out bear.png --html bear.html
  videossl attend --checkpoint runs/mine --video mine.mp4 --frame 12 --pixel 120,64 --out mine.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `videossl attend`."""
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="run folder or checkpoint file")
    add("--davis", type=Path, metavar="ROOT", help="root of a DAVIS tree; needs --sequence")
    add("--split", default="val", help="list that names the sequence (default: val)")
    add("--sequence", metavar="NAME", help="sequence of the DAVIS tree")
    add("--video", type=Path, metavar="FILE", help="look into this video instead")
    add("--frame", type=int, required=True, metavar="INDEX", help="frame that looks, from 1 on")
    add("--pixel", type=_pixel, required=True, metavar="X,Y", help="its pixel, in native size")
    add_protocol_arguments(parser)
    add_stage_and_device(parser)
    add("--out", type=Path, required=True, metavar="FILE.png", help="picture to write")
    add("--html", type=Path, metavar="FILE.html", help="also a page on which any pixel can look")
    parser.epilog = EXAMPLE


def run(args: argparse.Namespace) -> int:
    """Encodes up to the frame, weighs, draws."""
    from videossl.distributed import choose_device
    from videossl.engine.checkpoint import restore_encoder
    from videossl.eval.attention_page import write_attention_page
    from videossl.eval.attention_picture import (
        cell_of_pixel,
        draw_attention,
        gather_reading,
        reading_weights,
    )
    from videossl.eval.features import EncoderFeatures, sequence_features
    from videossl.eval.output_folder import check_writable_file

    protocol = preset(args.preset, parse_overrides(args.overrides))
    name, source = _source(args)
    if source.num_frames < 2:
        raise UserError(f"{name} has one frame: there is no earlier one to look at")
    if not 1 <= args.frame < source.num_frames:
        raise UserError(f"--frame must be 1 to {source.num_frames - 1} in {name}, got {args.frame}")
    cell_of_pixel(args.pixel, source.native_size, (1, 1))  # refused before anything is encoded
    for option, path in (("--out", args.out), ("--html", args.html)):
        if path is not None:
            check_writable_file(path, option=option)
    extractor = EncoderFeatures(
        restore_encoder(args.checkpoint), stage=args.stage, device=choose_device(args.device)
    )
    features = sequence_features(source, extractor, protocol)
    reading = gather_reading(features, args.frame, protocol)
    height, width = reading.query.shape[1:]
    cell = cell_of_pixel(args.pixel, source.native_size, (height, width))
    weights = reading_weights(reading, cell, protocol)
    _write_picture(args.out, draw_attention(source, args.frame, args.pixel, weights))
    print(f"written to {args.out}")
    if args.html is not None:
        title = f"{name}, frame {args.frame}"
        write_attention_page(args.html, source, reading, protocol, title=title, cell=cell)
        print(f"written to {args.html}")
    return 0


def _pixel(text: str) -> tuple[int, int]:
    try:
        x, y = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be X,Y such as 120,64, got {text!r}") from None
    return x, y


def _source(args: argparse.Namespace) -> "tuple[str, FrameSource]":
    from videossl.decode.backends import open_video
    from videossl.eval.davis import read_tree
    from videossl.eval.frames import ImageFrames, VideoFrames

    if (args.davis is None) == (args.video is None):
        raise UserError("give either --davis ROOT with --sequence NAME or --video FILE")
    if args.video is not None:
        return args.video.name, VideoFrames(open_video(str(args.video)))
    if args.sequence is None:
        raise UserError("--davis needs --sequence NAME")
    (sequence,) = read_tree(args.davis, split=args.split, only=[args.sequence])
    return sequence.name, ImageFrames(sequence.frame_paths)


def _write_picture(path: Path, picture: "Rgb") -> None:
    from videossl.drawing import write_png

    try:
        write_png(path, picture)
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error.strerror}") from None
