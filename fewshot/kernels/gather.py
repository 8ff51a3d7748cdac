"""The images of episodes: looked up as uint8, turned, distorted, and normalised to float32.

What has to be moved is the cost. The kernel (`gather.c`) reads each image as uint8 and writes it once, as
float32, where it belongs; read as float32, four times as much, images would take longer to find than to
convert. Plain torch does the same in as many passes as there are operations, also on a GPU, where it never
waits for the device. The two agree bit for bit, except that distorted images agree to rounding.
"""

import threading

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.errors import EpisodeError
from fewshot.kernels.native import call, empty, library


def gather(
    images: Tensor,
    rows: Tensor,
    support: int,
    scale: Tensor,
    offset: Tensor,
    *,
    turns: Tensor | None = None,
    maps: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The images of support and query, (episode, support or query, channel, height, width) float32.

    images: (image, channel, height, width) uint8; rows: (episode, shown) int64, of which the first `support`
    are the support set; scale, offset: (channel,) float32, a pixel p becomes p * scale + offset;
    turns: (episode, shown) int64 quarter turns counter-clockwise, 0..3; maps: (episode, shown, 2, 3) float32,
    by which the turned images are distorted (see `warp`). All on one device.

    Raises EpisodeError for rows that the images do not have, and for turned images that are not square.
    """
    height, width = images.shape[2:]
    if turns is not None and height != width:
        raise EpisodeError(
            f"quarter turns need square images; these are {height}x{width}: use a pool without rotations"
        )
    if rows.device.type == "cpu" and rows.numel():  # a GPU checks by itself, and is not to be waited for
        least, most = rows.aminmax()
        if least < 0 or most >= len(images):
            raise EpisodeError(
                f"image rows {int(least)} to {int(most)} asked for; the set has {len(images)}: "
                "use the image set that the episodes were drawn from"
            )
    inputs = (rows, turns, maps, scale, offset)
    if not _suits(images, *inputs):
        return _plain_gather(images, rows, support, scale, offset, turns, maps)
    episodes, shown = rows.shape
    parts = [empty(episodes, part, *images.shape[1:]) for part in (support, shown - support)]
    held = [value if value is None else value.contiguous() for value in inputs]  # as long as the call lasts
    sizes = (episodes, shown, support)
    call(
        "gather", "gather_images", images, *images.shape[1:], *held[:3], *sizes, *held[3:], *parts, _threads()
    )
    return parts[0], parts[1]


def warp(images: Tensor, maps: Tensor) -> Tensor:
    """Distort each image, in one bilinear resampling; what comes in from outside is zero, the paper.

    images: (..., channel, height, width) float, not yet normalised; maps: (..., 2, 3) from output to input,
    in coordinates that span -1..1 over the image.
    """
    flat = images.flatten(0, -4)
    grid = F.affine_grid(maps.flatten(0, -3), list(flat.shape), align_corners=False)
    return F.grid_sample(flat, grid, padding_mode="zeros", align_corners=False).view_as(images)


def _plain_gather(
    images: Tensor,
    rows: Tensor,
    support: int,
    scale: Tensor,
    offset: Tensor,
    turns: Tensor | None,
    maps: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`gather` in plain torch: all support images first, so that both parts are contiguous."""
    episodes, shown = rows.shape

    def in_parts(values: Tensor) -> Tensor:
        return torch.cat((values[:, :support].flatten(0, 1), values[:, support:].flatten(0, 1)))

    found = images.index_select(0, in_parts(rows))
    if turns is not None:
        found = _turned(found, in_parts(turns))
    pixels = found.to(torch.float32)
    if maps is not None:
        pixels = warp(pixels, in_parts(maps))
    pixels = pixels.mul_(scale.view(-1, 1, 1)).add_(offset.view(-1, 1, 1))
    border = episodes * support
    return (
        pixels[:border].view(episodes, support, *images.shape[1:]),
        pixels[border:].view(episodes, shown - support, *images.shape[1:]),
    )


def _turned(images: Tensor, turns: Tensor) -> Tensor:
    """(image, channel, side, side), each turned by its own quarter turns, by a table of places."""
    side = images.shape[-1]
    places = torch.arange(side * side, device=images.device).view(side, side)
    table = torch.stack([places.rot90(turn) for turn in range(4)]).flatten(1)
    flat = images.flatten(2)
    return flat.gather(2, table[turns].unsqueeze(1).expand_as(flat)).view_as(images)


def _suits(images: Tensor, rows: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernel takes these, or plain torch has to: the one place that chooses.

    On the CPU, of the types and shapes that `gather` names, images side by side; others: turns, maps, scale,
    offset.
    """
    shapes = (rows.shape, (*rows.shape, 2, 3), images.shape[1:2], images.shape[1:2])
    types = (torch.int64, torch.float32, torch.float32, torch.float32)
    return (
        images.is_cpu
        and rows.is_cpu
        and images.dtype == torch.uint8
        and rows.dtype == torch.int64
        and images.is_contiguous()
        and all(
            value is None or (value.is_cpu and value.dtype == kind and value.shape == shape)
            for value, kind, shape in zip(others, types, shapes, strict=True)
        )
        and library("gather") is not None
    )


def _threads() -> int:
    """torch's; one where a background thread works ahead, beside the thread that computes."""
    return torch.get_num_threads() if threading.current_thread() is threading.main_thread() else 1
