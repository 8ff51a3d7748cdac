"""What every backbone is: a network from images to flat features, for any leading dimensions."""

from abc import abstractmethod

import torch
from torch import Tensor, nn


class ImageNetwork(nn.Module):
    """(..., channel, height, width) -> (..., output_size); subclasses say how, for one leading dimension.

    Trained on a GPU, it computes in bfloat16 (weights, statistics and features stay float32); it answers in
    float32. name: as tables give it.
    """

    output_size: int
    name: str

    @abstractmethod
    def maps(self, images: Tensor) -> Tensor:
        """(image, channel, height, width) -> (image, ...), `output_size` values each."""

    def forward(self, images: Tensor) -> Tensor:
        """(..., channel, height, width) -> (..., output_size)."""
        leading = images.shape[:-3]
        with torch.autocast("cuda", torch.bfloat16, enabled=images.is_cuda and self.training):
            maps = self.maps(images.reshape(-1, *images.shape[-3:]))
        return maps.to(images.dtype).reshape(*leading, self.output_size)
