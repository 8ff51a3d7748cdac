"""torchvision's residual networks (He et al. 2016) as backbones, with published or with one's own weights.

Published are those trained on ImageNet (torchvision's IMAGENET1K_V1). They have seen a thousand classes with
far more images than any few-shot training set, miniImageNet's test classes among them: what is measured with
them on such classes is no few-shot result, and the backbone's name in tables says that they were there.
Nothing is downloaded here; where they are missing, the error says how they are had.

Networks take three channels; a single one is shown three times. Images come normalised by their own set's
mean and deviation, not by ImageNet's.
"""

import hashlib
import pickle
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fewshot.errors import AbsentError, LearnerError
from fewshot.learners.feature_cache import cached_features, weights_digest
from fewshot.learners.image_network import ImageNetwork

Architecture = Literal["resnet18", "resnet50"]
PUBLISHED = "published"
"""In place of a file: the weights that torchvision publishes."""


class TorchvisionResNet(ImageNetwork):
    """A ResNet without its classifier: 512 (ResNet-18) or 2048 features (ResNet-50).

    weights: PUBLISHED, or a file of a state dict (.safetensors, or as `torch.save` writes it); None: as
        initialised. frozen: whether they, and the statistics of their batch norms, stay what they are.
    Raises LearnerError where weights are missing, damaged or another network's, and where frozen ones would
    be random.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        architecture: Architecture,
        weights: str | None = None,
        frozen: bool = False,
    ) -> None:
        from torchvision.models import resnet  # slow to import, and only needed here

        super().__init__()
        if image_shape[0] not in (1, 3):
            raise LearnerError(
                f"{architecture} takes images of 1 or 3 channels; these have {image_shape[0]}: choose "
                'backbone = { name = "conv" }'
            )
        if frozen and weights is None:
            raise LearnerError(
                f'a frozen {architecture} without weights would stay random: give weights = "{PUBLISHED}" or '
                "a file, or leave frozen out"
            )
        network = getattr(resnet, architecture)(weights=None)
        self.output_shape = (int(network.fc.in_features),)
        self.smallest_window = 1
        network.fc = nn.Identity()
        self.network: nn.Module = network
        if weights is not None:
            path = published_weights(architecture) if weights == PUBLISHED else Path(weights).expanduser()
            _load(self.network, path, architecture)
        self.register_load_state_dict_post_hook(_after_loading)  # type: ignore[no-untyped-call]
        self.to(memory_format=torch.channels_last)
        origin = {None: "", PUBLISHED: " ImageNet"}.get(weights, " pretrained")
        self.name = f"ResNet-{architecture.removeprefix('resnet')}{origin}"
        if frozen:
            self.freeze()

    def freeze(self) -> None:
        super().freeze()
        self._digest = weights_digest(self.network)

    def maps(self, images: Tensor) -> Tensor:
        """Frozen, on a CPU, each image is embedded once and then looked up (`feature_cache.py`)."""
        if not self.frozen or images.is_cuda:
            return self._features(images)
        with torch.no_grad():
            return cached_features(self._features, images.detach(), self._digest)

    def _features(self, images: Tensor) -> Tensor:
        images = images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        features: Tensor = self.network(images)
        return features


def _after_loading(network: nn.Module, _: object) -> None:
    """What is frozen from now on are the weights that were loaded."""
    assert isinstance(network, TorchvisionResNet)
    if network.frozen:
        network._digest = weights_digest(network.network)


def published_weights(architecture: Architecture) -> Path:
    """The file of published weights in torch's cache, its digest checked; LearnerError for none."""
    from torchvision.models import resnet

    published = {
        "resnet18": resnet.ResNet18_Weights.IMAGENET1K_V1,
        "resnet50": resnet.ResNet50_Weights.IMAGENET1K_V1,
    }
    address: str = published[architecture].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / address.rpartition("/")[2]
    if not path.is_file():
        raise AbsentError(
            f"the published weights of {architecture} are not on this machine, and nothing is downloaded "
            f"unasked: download {address} (BSD-3-Clause) to {path}, or give a file of your own as weights"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(path.stem.rpartition("-")[2]):
        raise LearnerError(f"{path} is damaged: its SHA-256 is {digest}; delete it and download it again")
    return path


def _load(network: nn.Module, path: Path, architecture: str) -> None:
    """Everything but a classifier, which the file may have and the network has not."""
    try:
        state: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, weights_only=True, map_location="cpu")
        )
        network.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc.")})
    except FileNotFoundError:
        raise AbsentError(
            f'no file of weights {path}: give one that is there, or weights = "{PUBLISHED}"'
        ) from None
    except (
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        AttributeError,
        SafetensorError,
        pickle.UnpicklingError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise LearnerError(
            f"{path} does not hold a state dict of torchvision's {architecture} ({reason})"
        ) from None
