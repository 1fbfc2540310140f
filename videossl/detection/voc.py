"""Images and boxes of a folder in the layout of PASCAL VOC (Everingham et al., IJCV 2010), as detectors want them.

VOC2007/  JPEGImages/000001.jpg   Annotations/000001.xml   ImageSets/Main/trainval.txt
"""

import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from videossl.errors import UserError
from videossl.leftovers import is_system_leftover
from videossl.picture_files import UNREADABLE, is_picture, opened_picture
from videossl.text_files import read_names

MAX_XML_BYTES = 2**20
PARTS = ("JPEGImages", "Annotations", "ImageSets/Main")
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Annotation:
    """The objects of one image: `boxes` (B, 4) x0 y0 x1 y1 in pixels, `labels` (B,) names, `difficult` (B,) bool."""

    boxes: Tensor
    labels: tuple[str, ...]
    difficult: Tensor


class VocImages(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """`images[i]` is (3, H, W) float32 RGB in [0, 1] and {boxes, labels, iscrowd, image_id}.

    `labels` count from 1 in the order of `classes` (0 is the background), `iscrowd` marks what VOC calls difficult: it is
    neither asked for nor counted against. Without `classes` they are all that the split names, sorted.

    Raises UserError for a folder of another layout, and for an image or an annotation that is missing or broken.
    """

    def __init__(self, folder: Path, split: str, classes: Sequence[str] | None = None) -> None:
        self.folder = voc_folder(folder)
        self.names = _names_of(self.folder, split)
        self._annotations = [read_annotation(self._xml(name)) for name in self.names]
        pictures = filter(is_picture, (self.folder / "JPEGImages").iterdir())
        self._picture_of = {path.stem: path for path in pictures}
        missing = [n for n in self.names if not self._jpeg(n).is_file()]
        if missing:
            raise UserError(
                f"{self._jpeg(missing[0])} is not there, with {len(missing)} of {len(self.names)} images of {split}: "
                "complete JPEGImages, or take the names out of the list"
            )
        named = {label for annotation in self._annotations for label in annotation.labels}
        self.classes = tuple(sorted(named)) if classes is None else tuple(classes)
        if unknown := named - set(self.classes):
            raise UserError(
                f"{split} names the class {min(unknown)!r}, which the other split does not: {', '.join(self.classes)}"
            )
        if not named:
            raise UserError(
                f"not one object is annotated in the {len(self.names)} images of {split}"
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        annotation = self._annotations[index]
        path = self._jpeg(self.names[index])
        try:
            with opened_picture(path) as image:
                pixels = np.asarray(image.convert("RGB"))
        except UNREADABLE as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        labels = [self.classes.index(label) + 1 for label in annotation.labels]
        target = {
            "boxes": annotation.boxes,
            "labels": torch.tensor(labels, dtype=torch.int64),
            "iscrowd": annotation.difficult.long(),
            "image_id": torch.tensor(index),
        }
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255, target

    def _xml(self, name: str) -> Path:
        return self.folder / "Annotations" / f"{name}.xml"

    def _jpeg(self, name: str) -> Path:
        return self._picture_of.get(name, self.folder / "JPEGImages" / f"{name}.jpg")


def voc_folder(folder: Path) -> Path:
    """The folder with JPEGImages, Annotations and ImageSets/Main: itself, or the one such folder in it."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    inside = [path for path in inside if not is_system_leftover(path.name)]
    found = [
        path
        for path in (folder, *inside, *(folder / "VOCdevkit").glob("*"))
        if all((path / part).is_dir() for part in PARTS)
    ]
    if len(found) != 1:
        what = "holds several: name one of them" if found else f"needs {', '.join(PARTS)}"
        raise UserError(f"{folder} is not one folder in the layout of PASCAL VOC: it {what}")
    return found[0]


def _names_of(folder: Path, split: str) -> list[str]:
    """The image names of a list. Raises UserError for an unknown one, an empty one and names that lead elsewhere."""
    lists = folder / "ImageSets" / "Main"
    path = lists / f"{split}.txt"
    if not _NAME.fullmatch(split) or not path.is_file():
        there = [path.stem for path in lists.glob("*.txt") if not is_system_leftover(path.name)]
        known = sorted(name for name in there if "_" not in name)
        raise UserError(f"there is no split {split!r} in {lists}; there are {', '.join(known)}")
    names = [line.split()[0] for line in read_names(path)]
    for name in names:
        if not _NAME.fullmatch(name) or name.startswith("."):
            raise UserError(f"{path} names {name!r}, which is no image name")
    if not names:
        raise UserError(f"{path} names no image")
    return names


def read_annotation(path: Path) -> Annotation:
    """The objects of one XML file. Raises UserError naming the file and what is wrong in it."""
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            raise ValueError("it is larger than any annotation")
        # As text: in other encodings what is refused would not be seen.
        text = path.read_bytes().decode("utf-8-sig")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise ValueError("it declares a document type or entities")
        objects = ElementTree.fromstring(text).findall("object")
        boxes = [_box(one) for one in objects]
        labels = tuple(_text(one, "name") for one in objects)
        difficult = [(one.findtext("difficult") or "0").strip() == "1" for one in objects]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path} is no annotation of PASCAL VOC: {error}") from error
    return Annotation(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels,
        torch.tensor(difficult, dtype=torch.bool),
    )


def _box(element: ElementTree.Element) -> list[float]:
    """VOC counts pixels from 1 and takes both ends in: [xmin - 1, xmax) as detectors do."""
    box = element.find("bndbox")
    if box is None:
        raise ValueError("an object has no bndbox")
    x0, y0, x1, y1 = (float(_text(box, key)) for key in ("xmin", "ymin", "xmax", "ymax"))
    if not (x0 - 1 < x1 < math.inf and y0 - 1 < y1 < math.inf and min(x0, y0) > -math.inf):
        raise ValueError(f"the box {x0:g} {y0:g} {x1:g} {y1:g} is empty or endless")
    return [x0 - 1, y0 - 1, x1, y1]


def _text(element: ElementTree.Element, key: str) -> str:
    found = (element.findtext(key) or "").strip()
    if not found:
        raise ValueError(f"an object has no {key}")
    return found
