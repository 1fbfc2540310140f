"""An encoder's frames as the pyramid that torchvision's detectors read (Lin et al., CVPR 2017)."""

from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from videossl.color import normalize_lab, rgb_to_lab
from videossl.models.encoder import Encoder
from videossl.models.frame_encoder import cut_frame_encoder

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
