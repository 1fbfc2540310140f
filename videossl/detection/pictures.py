"""What detectors found, drawn on a few test images beside the true boxes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

from videossl.detection.voc import VocImages
from videossl.drawing import Strip, as_array, contact_sheet, write_png

MIN_SCORE = 0.5
HEIGHT = 240  # pixels


def draw_boxes(
    path: Path, images: VocImages, found: Mapping[str, Sequence[Mapping[str, Tensor]]]
) -> None:
    """A row of pictures for each of the first images: true boxes in green, then what each detector is sure of."""
    strips = []
    for index in range(len(next(iter(found.values())))):
        image, target = images[index]
        picture = (255 * image).round().to(torch.uint8)
        names = [images.classes[label - 1] for label in target["labels"].tolist()]
        pictures = [_drawn(picture, target["boxes"], names, "lime")]
        for detections in found.values():
            one = detections[index]
            sure = one["scores"] >= MIN_SCORE
            labels = one["labels"][sure].tolist()
            scores = one["scores"][sure].tolist()
            said = [
                f"{images.classes[label - 1]} {score:.2f}"
                for label, score in zip(labels, scores, strict=True)
            ]
            pictures.append(_drawn(picture, one["boxes"][sure], said, "red"))
        title = f"{images.names[index]}: true, {', '.join(found)} (scores of {MIN_SCORE} or more)"
        strips.append(Strip(title, [as_array(one) for one in pictures]))
    write_png(path, contact_sheet(strips, height=HEIGHT))


def _drawn(picture: Tensor, boxes: Tensor, names: Sequence[str], colour: str) -> Tensor:
    if not len(boxes):
        return picture
    drawn: Tensor = draw_bounding_boxes(picture, boxes, list(names), colors=colour, width=2)
    return drawn
