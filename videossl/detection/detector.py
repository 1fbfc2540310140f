"""Faster R-CNN on an encoder's frames: trained on a VOC folder, judged by average precision.

The transfer question of Doersch et al., ICCV 2015, section 4.3 (VOC detection, pretrained against random), with the detector
of Ren et al., NeurIPS 2015 as torchvision builds it, and all of its layers trained.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign
from torchvision.transforms.v2 import functional as TF

from videossl.detection.frame_backbone import FrameBackbone
from videossl.detection.voc import VocImages
from videossl.engine.checkpoint import load_newest, save_checkpoint
from videossl.engine.optim import lr_at
from videossl.models.encoder import Encoder
from videossl.progress import track
from videossl.rng import fold, generator

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
