"""The convolutional network of `backbones.py` with weights of its own for every episode of a batch.

Weights are a tuple of tensors, each with the batch first: of each block the kernel (batch, 3, 3, in, out) and
the batch norm's scale and shift (batch, out), then the head (batch, way, feature) and its bias (batch, way).

What is fast, measured with 16 episodes and Conv4-64 on one CPU core (`benchmarks/speed/maml_step.py`): all
episodes go through each layer together, in channels-last order, by two kernels of our own that are
differentiable twice, `convolve` and `batch_norm_relu`. A loop over episodes with torch's operations takes
twice as long, for its backward of the backward and its pooling above all. Grouped convolutions were little
better than the loop, and so were matrix products of unfolded images; `torch.func.vmap` was no faster, and
the meta-gradient that it takes through batch norm was wrong by 0.4 % (torch 2.15). On a GPU the two
operations fall back to torch's grouped ones, still all episodes together; that is not measured yet.
"""

from torch import Tensor, nn

from fewshot.kernels.convolve import convolve
from fewshot.kernels.normalise import batch_norm_relu
from fewshot.learners.backbones import ConvBackbone, Downsample

Weights = tuple[Tensor, ...]


def same_weights(backbone: ConvBackbone, head: nn.Linear, batch: int) -> Weights:
    """The modules' own weights for each of `batch` episodes: expanded, so that sharing them can be seen."""
    packed = (
        weight.permute(2, 3, 1, 0).contiguous() if weight.ndim == 4 else weight
        for weight in (*backbone.parameters(), *head.parameters())
    )
    return tuple(weight.expand(batch, *weight.shape) for weight in packed)


def logits(weights: Weights, images: Tensor, downsample: Downsample) -> Tensor:
    """(batch, set, image, channel, row, column) -> (batch, set, image, way); a set is normalised together."""
    batch, sets, count = images.shape[:3]
    maps = images.flatten(0, 2)
    *blocks, head, bias = weights
    for kernel, scale, shift in zip(blocks[::3], blocks[1::3], blocks[2::3], strict=True):
        maps = batch_norm_relu(
            convolve(maps, kernel, stride=2 if downsample == "stride" else 1),
            scale.repeat_interleave(sets, dim=0),
            shift.repeat_interleave(sets, dim=0),
            pool=downsample == "pool",
            groups=batch * sets,
        )
    features = maps.reshape(batch, sets * count, -1)
    return (features @ head.mT + bias.unsqueeze(1)).reshape(batch, sets, count, -1)


def map_sizes(backbone: ConvBackbone, downsample: Downsample) -> tuple[int, int]:
    """Numbers per image: those kept for the backward pass, and those that pass through it at its widest."""
    rows, columns = backbone.image_shape[1:]
    sizes = []
    for width in (weight.shape[0] for weight in backbone.parameters() if weight.ndim == 4):
        if downsample == "stride":
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
        convolved = width * rows * columns
        if downsample == "pool":
            rows, columns = rows // 2, columns // 2
        sizes.append(convolved + width * rows * columns)
    return sum(sizes), max(sizes)
