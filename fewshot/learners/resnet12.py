"""The few-shot ResNet-12 (Oreshkin, Rodriguez and Lacoste 2018, TADAM; Lee et al. 2019, MetaOptNet).

Four stages, each halving the image: three 3x3 convolutions with batch norm beside a 1x1 convolution with
batch norm, their sum, and 2x2 max pooling; LeakyReLU of slope 0.1; then the mean over what is left of the
image. MetaOptNet's has widths 64-160-320-640 and 12.4 million weights, Meta-Baseline's (Chen et al. 2021)
64-128-256-512 and 8.0 million.

DropBlock (Ghiasi, Lin and Le 2018) may follow the last two stages, where features are squares of neighbours:

| name      | equation                                                                  | shape            |
|-----------|---------------------------------------------------------------------------|------------------|
| drop rate | rises evenly from 0 to the option's over the first DROP_PASSES of training | number           |
| seed rate | gamma = rate / block^2 * side^2 / (side - block + 1)^2 (equation 1)        | number           |
| seeds     | true with probability gamma, where a whole block fits                     | of the maps      |
| kept      | all but the block around each seed (algorithm 1)                          | of the maps      |
| maps      | those kept, times size / number kept, so that their scale stays           | of the maps      |
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.errors import LearnerError
from fewshot.learners.image_network import ImageNetwork
from fewshot.learners.options import check_fraction

SLOPE = 0.1
BLOCK = 5
"""Side of what DropBlock drops, as in MetaOptNet; smaller maps are dropped as a whole."""
DROP_PASSES = 40_000
"""Training passes over which the drop rate rises, as in MetaOptNet."""


def drop_block(maps: Tensor, rate: Tensor | float, block: int = BLOCK) -> Tensor:
    """Set squares of each map to zero, a fraction `rate` of its values or, as squares overlap, a little less.

    maps: (image, channel, row, column).
    """
    rows, columns = maps.shape[2:]
    block = min(block, rows, columns)
    inner = rows - block + 1, columns - block + 1
    seed_rate = rate / block**2 * (rows * columns) / (inner[0] * inner[1])
    seeds = torch.rand(*maps.shape[:2], *inner, device=maps.device) < seed_rate
    # A seed at the upper left corner of its block: each place looks back over the blocks that reach it.
    dropped = F.max_pool2d(F.pad(seeds.to(maps.dtype), [block - 1] * 4), block, stride=1)
    kept = 1 - dropped
    return maps * kept * (kept.numel() / kept.sum().clamp(min=1))


class ResidualStage(nn.Module):
    """One of the four. drop_rate: of DropBlock behind it, once training is DROP_PASSES old."""

    def __init__(self, channels: int, width: int, drop_rate: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((channels, width), (width, width), (width, width)):
            layers += [
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(SLOPE),
            ]
        self.path = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))
        self.drop_rate = drop_rate
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, SLOPE, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, maps: Tensor) -> Tensor:
        """(image, channel, row, column) -> (image, width, half of row, half of column)."""
        maps = F.max_pool2d(F.leaky_relu(self.path(maps) + self.shortcut(maps), SLOPE), 2)
        return drop_block(maps, self.rate()) if self.training and self.drop_rate else maps

    def rate(self) -> Tensor:
        """The drop rate of the present pass, by the passes that the batch norm counts."""
        norm = self.shortcut[1]
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.num_batches_tracked is not None
        return self.drop_rate * (norm.num_batches_tracked / DROP_PASSES).clamp(max=1)


class ResNet12(ImageNetwork):
    """The mean features of the last stage: widths[-1] of them, of an image of at least 16x16."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        widths: tuple[int, int, int, int] = (64, 160, 320, 640),
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_fraction(drop_rate=drop_rate)
        channels, height, width = image_shape
        if min(height, width) < 16:
            raise LearnerError(
                f"ResNet-12 halves an image four times and needs 16x16; got {height}x{width}: give larger "
                'images, or backbone = { name = "conv" } with fewer widths'
            )
        drop_rates = (0.0, 0.0, drop_rate, drop_rate)
        self.stages = nn.Sequential(
            *(
                ResidualStage(before, after, rate)
                for (before, after), rate in zip(pairwise((channels, *widths)), drop_rates, strict=True)
            )
        )
        self.to(memory_format=torch.channels_last)
        self.output_shape = (widths[-1],)
        self.smallest_window = 16
        self.name = "ResNet-12" + ("" if widths[-1] == 640 else f" {'-'.join(map(str, widths))}")

    def maps(self, images: Tensor) -> Tensor:
        maps: Tensor = self.stages(images.contiguous(memory_format=torch.channels_last))
        return maps.mean((2, 3))
