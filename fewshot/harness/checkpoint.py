"""Checkpoints: a learner's weights in one small safetensors file that says what it is.

Matrices and kernels are stored as whole numbers of steps, one step width for each row; a recorded figure is
measured from the stored file, so what is printed is what anyone can load (design decision 7). Vectors
(biases, batch-norm statistics, calibrated scores) stay float32: they cost nothing and their range may not
fit. A file holds its facts as metadata and one tensor, the bytes of a safetensors file of all tensors,
compressed by Brotli: a twentieth less than with each matrix compressed by itself, for the names and places of
seventy tensors are longer than their vectors. Where a training asks for it, matrices are float16, of whose
ten bits of mantissa four are kept. Files of earlier versions hold the tensors one by one, as float16 or as
whole numbers, compressed or not, and are read as well. (A file in whole steps is 0.6 bytes a weight. Recorded
learners that were stored again so, and calibrated again, moved by up to 0.8 points over 1,000 test episodes,
LSTMs by up to 1.3. One in float16 is about a byte a weight; all ten bits would make it 1.8.)
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from fewshot.errors import LearnerError
from fewshot.harness.record import replace_file
from fewshot.learners.base import Learner
from fewshot.learners.image_network import image_network
from fewshot.learners.registry import build_learner, learner_class

REMEDY = "fetch it again, or delete it and train again"
STEP = ":step"
"""Of a rounded tensor's name and this is the name of its steps."""
PACKED = "safetensors:brotli"
"""Name of the one tensor of a file: a safetensors file of its tensors, bytes compressed by Brotli."""
PACKED_ALONE = ":brotli"
"""Of a rounded tensor's name and this is the name of its numbers where an earlier version compressed them."""
COARSENESS = 0.15
"""A step, in root mean squares of its row."""
MANTISSA_BITS = 4
"""Of a float16's ten: a weight is off by a thirty-second at most, one under 2 ** -14 by 2 ** -19."""
_CODEC = pa.Codec("brotli", compression_level=11)
_LENGTH = "unpacked_bytes"
_METADATA = ("learner", "version", "options", "image_shape", "way", "tensors_sha256", "metadata_sha256")


def save_learner(
    learner: Learner, path: Path, name: str, options: dict[str, Any], *, float16: bool = False, **facts: str
) -> str:
    """Write the checkpoint (to a temporary name, then renamed) and return its SHA-256 in hexadecimal.

    name and options are what `build_learner` needs to make the learner again; facts are kept with them.
    float16: whether matrices are kept as such, less than twice as large, in place of whole steps. What only
    training needs is left out. Weights that were read from the checkpoint that is there stay as they are in
    it: rounded twice, they would be others.
    """
    tensors: dict[str, Tensor] = {}
    earlier = _earlier(path)
    for key, value in learner.state_dict().items():
        if _only_for_training(learner, key):
            continue
        value = value.detach().cpu().contiguous()
        tensors |= _unchanged(key, value, earlier) or _stored(key, value, float16)
    whole = save(tensors)
    packed = {PACKED: torch.frombuffer(bytearray(_CODEC.compress(whole)), dtype=torch.uint8)}
    metadata = facts | {
        "learner": name,
        "version": str(type(learner).version),
        "options": json.dumps(options),
        "image_shape": json.dumps(learner.image_shape),
        "way": str(learner.way),
        _LENGTH: str(len(whole)),
        "tensors_sha256": _digest(packed),
    }
    content = save(packed, metadata=metadata | {"metadata_sha256": _metadata_digest(metadata)})
    replace_file(path, content)
    return hashlib.sha256(content).hexdigest()


def load_learner(
    path: Path | str, expect: str | None = None, options: Mapping[str, Any] | None = None
) -> Learner:
    """The learner of a checkpoint, in evaluation mode; what only training needs is fresh.

    expect: the learner id that the caller needs. options: in place of those it was trained with, for what
    concerns answering alone (how many inner steps MAML takes, say). LearnerError where the file holds
    another learner, is damaged, was written by another version of the method, or does not fit the options.
    """
    path = Path(path)
    metadata, tensors = _read(path)
    name = metadata["learner"]
    if expect is not None and expect != name:
        raise LearnerError(f"{path} holds {name!r}, not {expect!r}: choose the checkpoint of {expect!r}")
    version = learner_class(name).version
    if metadata["version"] != str(version):
        raise LearnerError(
            f"{path} was written by version {metadata['version']} of {name!r}, this is version {version}: "
            "train it again"
        )
    image_shape, trained = (json.loads(metadata[key]) for key in ("image_shape", "options"))
    learner = build_learner(name, tuple(image_shape), int(metadata["way"]), trained | dict(options or {}))
    try:
        learner.load_state_dict(_fresh_training_only(learner) | _restored(tensors, learner.state_dict()))
    except (RuntimeError, OSError) as error:
        raise LearnerError(f"{path} does not fit {name!r}: {' '.join(str(error).split())}") from None
    return learner.eval()


def begin_with_network(learner: Learner, path: Path) -> None:
    """Give a learner the network of images (`ImageNetwork`) of a checkpoint, statistics included.

    What either network has beyond the other's names is left out where it is the checkpoint's (a learner that
    normalises by the batch keeps no statistics). LearnerError where one of the two learners has no such
    network, or what the learner's has is not in the checkpoint's, in its shape.
    """
    source = load_learner(path)
    if source.image_shape != learner.image_shape:
        raise LearnerError(
            f"{path} was trained on images of (channel, height, width) {source.image_shape}, this trains on "
            f"{learner.image_shape}: begin with weights of the same image_size"
        )
    given = image_network(source).state_dict()
    network = image_network(learner)
    own = network.state_dict()
    if strange := [name for name in own if name not in given or own[name].shape != given[name].shape]:
        theirs = tuple(given[strange[0]].shape) if strange[0] in given else "none"
        raise LearnerError(
            f"the network of {path} is not that of {type(learner).__name__}: {strange[0]} has shape {theirs} "
            f"there, {tuple(own[strange[0]].shape)} here; give both the same widths and backbone"
        )
    network.load_state_dict({name: given[name] for name in own})


def checkpoint_facts(path: Path) -> dict[str, str]:
    """What a checkpoint says of itself, without loading the weights into a learner."""
    return _read(path)[0]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal, as records name it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _only_for_training(learner: Learner, key: str) -> bool:
    return key.partition(".")[0] in learner.training_only


def _fresh_training_only(learner: Learner) -> dict[str, Tensor]:
    """What a checkpoint leaves out, as it was built."""
    state = learner.state_dict()
    return {key: value for key, value in state.items() if _only_for_training(learner, key)}


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise LearnerError(
            f"no checkpoint {path}: train the learner first, or give the path of a .safetensors file"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (it is not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise LearnerError(f"{path} is damaged or no checkpoint ({reason}); {REMEDY}") from None
    if missing := [key for key in _METADATA if key not in metadata]:
        raise LearnerError(
            f"{path} is not a checkpoint of fewshot, or damaged: it has no {missing[0]!r}; {REMEDY}"
        )
    digests = {"tensors_sha256": _digest(tensors), "metadata_sha256": _metadata_digest(metadata)}
    for name, digest in digests.items():
        if metadata[name] != digest:
            raise LearnerError(f"{path} is damaged: it does not match its own {name}; {REMEDY}")
    return metadata, _unpacked(tensors[PACKED], metadata) if PACKED in tensors else tensors


def _unpacked(packed: Tensor, metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of a file, which are what was written: their digest agrees."""
    return load(_CODEC.decompress(packed.numpy().tobytes(), int(metadata[_LENGTH]), asbytes=True))


def _stored(key: str, value: Tensor, float16: bool) -> dict[str, Tensor]:
    """Matrices rounded to short float16, or to whole steps of rows, from -127 to 127; all else as it is."""
    if not value.is_floating_point() or value.dim() < 2 or not value.numel():
        return {key: value}
    if float16:
        return {key: _short_float16(value)}
    rows = value.float().flatten(1)
    steps = torch.maximum(
        COARSENESS * rows.square().mean(dim=1).sqrt(), rows.abs().amax(dim=1) / 127
    ).bfloat16()
    whole = (rows / steps.float().unsqueeze(1)).nan_to_num(0.0).round().clamp(-127, 127)
    return {key: whole.to(torch.int8).view_as(value), key + STEP: steps}


def _short_float16(value: Tensor) -> Tensor:
    """float16 whose last bits of mantissa are zeros, which compress to nothing.

    What would become infinite, or is no number, keeps them all.
    """
    whole = value.half()
    step = 1 << (10 - MANTISSA_BITS)
    # A float16's bits count its magnitude, whatever its sign: half a step more, cut down, is the nearest one,
    # of two the one further from zero.
    short = ((whole.view(torch.int16) + step // 2) & -step).view(torch.float16)
    return torch.where(whole.isfinite() & short.isfinite(), short, whole)


def _unpacked_alone(packed: Tensor, like: Tensor) -> Tensor:
    """The numbers of a matrix compressed by itself; OSError where they are not as many as `like` has."""
    numbers = _CODEC.decompress(packed.numpy().tobytes(), decompressed_size=like.numel())
    return torch.from_numpy(np.frombuffer(numbers, np.int8).copy()).view_as(like)


def _restored(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `_stored` was given, but for rounding. like: tensors of the shapes that are expected."""
    restored = {}
    for name, value in tensors.items():
        key = name.removesuffix(PACKED_ALONE)
        if name.endswith(STEP) or (key != name and key not in like):
            continue
        if key != name:
            value = _unpacked_alone(value, like[key])
        steps = tensors.get(key + STEP)
        if steps is not None:
            value = (value.float().flatten(1) * steps.float().unsqueeze(1)).view_as(value)
        restored[key] = value.float() if value.is_floating_point() else value
    return restored


def _earlier(path: Path) -> dict[str, Tensor]:
    """The stored tensors of a checkpoint, if there is one."""
    try:
        return _read(path)[1]
    except LearnerError:
        return {}


def _unchanged(key: str, value: Tensor, earlier: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How an earlier checkpoint stores this very value; empty where it has another."""
    stored = {name: earlier[name] for name in (key, key + PACKED_ALONE, key + STEP) if name in earlier}
    try:
        same = torch.equal(_restored(stored, {key: value})[key], value)
    except (KeyError, RuntimeError, OSError):
        return {}
    return stored if same else {}


def _metadata_digest(metadata: dict[str, str]) -> str:
    """SHA-256 over all but itself: a changed option would otherwise pass for the one trained with."""
    described = {key: value for key, value in metadata.items() if key != "metadata_sha256"}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
