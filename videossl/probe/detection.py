"""Faster R-CNN on an encoder's features of single frames, trained and scored on a folder in the layout of VOC."""

import math
import re
import xml.etree.ElementTree as ElementTree
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.transforms.v2 import functional as TF
from torchvision.utils import draw_bounding_boxes

from videossl.color import normalize_lab, rgb_to_lab
from videossl.engine.build import lr_at
from videossl.engine.checkpoint import load_newest, save_checkpoint
from videossl.errors import UserError
from videossl.io.drawing import Strip, as_array, contact_sheet, write_png
from videossl.io.input_files import is_system_leftover, read_names
from videossl.io.pictures import UNREADABLE, is_picture, opened_picture, rgb_of
from videossl.io.progress import track
from videossl.models.encoder import Encoder, cut_frame_encoder
from videossl.rng import fold, generator

CHANNELS = 128  # of the pyramid; chosen: half of torchvision's, for narrow encoders


class FrameBackbone(nn.Module):
    """(N, 3, H, W) RGB in [0, 1] to a pyramid of maps: one level for each stride of the encoder, and one coarser.

    Batch normalisation keeps the statistics that `calibrate` took: batches of a few images have none worth using.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = cut_frame_encoder(encoder)
        # Of several stages with one stride the deepest: a level of the pyramid is a stride.
        by_stride = {info.spatial_stride: name for name, info in encoder.stages.items()}
        self.levels = dict(sorted(by_stride.items()))
        channels = [encoder.stages[name].channels for name in self.levels.values()]
        self.out_channels = CHANNELS
        self.pyramid = FeaturePyramidNetwork(channels, CHANNELS, extra_blocks=LastLevelMaxPool())

    @property
    def num_levels(self) -> int:
        """With the coarser one."""
        return len(self.levels) + 1

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """See class."""
        stages = self.encoder(normalize_lab(rgb_to_lab(images))[:, :, None])
        maps = OrderedDict((name, stages[name].data[:, :, 0]) for name in self.levels.values())
        pyramid: OrderedDict[str, Tensor] = self.pyramid(maps)
        return pyramid

    def train(self, mode: bool = True) -> "FrameBackbone":
        """As modules do, but for the batch normalisation."""
        super().train(mode)
        for layer in self._norms():
            layer.eval()
        return self

    @torch.no_grad()
    def calibrate(self, images: Iterable[Tensor]) -> None:
        """Takes the mean and variance of every batch normalisation from these batches: for any row of a table alike."""
        norms = self._norms()
        momenta = [layer.momentum for layer in norms]
        for layer in norms:
            layer.reset_running_stats()
            layer.momentum = None  # the mean of all batches
            layer.train()
        for batch in images:
            self(batch)
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()

    def _norms(self) -> list[nn.modules.batchnorm._BatchNorm]:
        return [m for m in self.encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


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
                pixels = np.asarray(rgb_of(image))
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


CALIBRATION_IMAGES, CALIBRATION_BATCH = 64, 8
SAVE_EVERY = 200  # steps


@dataclass(frozen=True)
class DetectionRecipe:
    """How a detector is trained: SGD with momentum, a short warm-up and a cosine; the same for every row."""

    steps: int = 2000
    batch_size: int = 4  # images
    lr: float = 0.01
    weight_decay: float = 1e-4
    min_size: int = 480  # pixels of an image's short side
    seed: int = 0


def build_detector(encoder: Encoder, num_classes: int, recipe: DetectionRecipe) -> FasterRCNN:
    """Faster R-CNN for `num_classes` classes besides the background; fresh layers are those of the recipe's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(recipe.seed, "detector"))
        backbone = FrameBackbone(encoder)
        finest = next(iter(backbone.levels))
        sizes = tuple((finest * 8 * 2**level,) for level in range(backbone.num_levels))
        return FasterRCNN(
            backbone,
            num_classes=num_classes + 1,
            min_size=recipe.min_size,
            max_size=2 * recipe.min_size,
            image_mean=[0.0] * 3,  # the backbone has its own normalisation
            image_std=[1.0] * 3,
            rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
            box_roi_pool=MultiScaleRoIAlign(
                list(backbone.levels.values()), output_size=7, sampling_ratio=2
            ),
        )


def train_detector(
    encoder: Encoder,
    images: VocImages,
    recipe: DetectionRecipe,
    *,
    device: torch.device,
    folder: Path,
    why: str,
) -> FasterRCNN:
    """A detector on these images; a stopped training goes on from its last SAVE_EVERY steps, kept in `folder`."""
    detector = build_detector(encoder, len(images.classes), recipe).to(device)
    optimizer = torch.optim.SGD(
        detector.parameters(), lr=recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay
    )
    first = _resume(detector, optimizer, folder)
    if not first:
        _calibrate(detector, images, device)
    for step in track(range(first, recipe.steps), description=f"{why}: training steps"):
        _step(detector, optimizer, images, recipe, step=step, device=device)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == recipe.steps:
            state = {"model": detector.state_dict(), "optimizer": optimizer.state_dict()}
            save_checkpoint(folder, state, step=step + 1, keep=1)
    return detector.eval()


def _resume(detector: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> int:
    found = load_newest(folder)
    if found is None:
        return 0
    _, state = found
    detector.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _calibrate(detector: FasterRCNN, images: VocImages, device: torch.device) -> None:
    """Batches large enough that a variance is one between images too."""
    count = min(CALIBRATION_IMAGES, len(images))

    def batches() -> Iterator[Tensor]:
        for start in range(0, count, CALIBRATION_BATCH):
            chosen = range(start, min(start + CALIBRATION_BATCH, count))
            yield detector.transform([images[index][0].to(device) for index in chosen])[0].tensors

    detector.backbone.calibrate(batches())


def _step(
    detector: FasterRCNN,
    optimizer: torch.optim.Optimizer,
    images: VocImages,
    recipe: DetectionRecipe,
    *,
    step: int,
    device: torch.device,
) -> None:
    lr = lr_at(
        step,
        peak=recipe.lr,
        warmup_steps=min(100, recipe.steps // 10),
        total_steps=recipe.steps,
        final_share=0,
    )
    for group in optimizer.param_groups:
        group["lr"] = lr
    random = generator(recipe.seed, "detection", step)
    drawn = torch.randint(len(images), (recipe.batch_size,), generator=random).tolist()
    flips = (torch.rand(recipe.batch_size, generator=random) < 0.5).tolist()
    batch = [_for_training(*images[i], flip) for i, flip in zip(drawn, flips, strict=True)]
    inputs = [image.to(device) for image, _ in batch]
    targets = [{key: value.to(device) for key, value in target.items()} for _, target in batch]
    detector.train()
    with torch.random.fork_rng():
        torch.manual_seed(fold(recipe.seed, "detection sampling", step))  # of anchors and boxes
        loss = sum(detector(inputs, targets).values())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
    optimizer.step()


def _for_training(
    image: Tensor, target: dict[str, Tensor], flip: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Without the difficult ones, perhaps mirrored."""
    kept = target["iscrowd"] == 0
    boxes, labels = target["boxes"][kept], target["labels"][kept]
    if flip:
        width = image.shape[-1]
        image = TF.horizontal_flip(image)
        boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    return image, {"boxes": boxes, "labels": labels}


@torch.no_grad()
def detections(
    detector: FasterRCNN, images: VocImages, *, device: torch.device, why: str
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """(found, target) of each image, on the CPU."""
    for index in track(range(len(images)), description=f"{why}: test images"):
        image, target = images[index]
        (found,) = detector.eval()([image.to(device)])
        yield {key: value.cpu() for key, value in found.items()}, target


def average_precision(
    pairs: list[tuple[dict[str, Tensor], dict[str, Tensor]]], classes: tuple[str, ...]
) -> dict[str, Any]:
    """AP at IoU .50 and .75, the mean over .50 to .95, and the mean AP of each class, in [0, 1].

    COCO's rules by torchmetrics and pycocotools: precision over 101 recalls; difficult objects are crowds, so that no
    detection that lies in one counts against (VOC's own tool asks for an IoU, and forgives one each).
    """
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(class_metrics=True)
    metric.update([found for found, _ in pairs], [target for _, target in pairs])
    values = metric.compute()
    per_class = torch.atleast_1d(values["map_per_class"]).tolist()
    named = {
        classes[int(c) - 1]: ap
        for c, ap in zip(torch.atleast_1d(values["classes"]).tolist(), per_class, strict=True)
    }
    return {
        "AP50": float(values["map_50"]),
        "AP75": float(values["map_75"]),
        "AP": float(values["map"]),
        "AP_of_class": named,
        "num_images": len(pairs),
    }


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
