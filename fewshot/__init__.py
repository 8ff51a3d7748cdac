"""fewshot: one-shot and few-shot learning benchmarks on audited episodes, every figure verifiable.

The names below are the public surface; a test holds it. They are imported where they are first used, so that
`fewshot --help` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewshot.data.catalogue import load_dataset as load_dataset
    from fewshot.data.image_folder import load_image_folder as load_image_folder
    from fewshot.data.image_set import ImageSet as ImageSet
    from fewshot.data.split import ClassPool as ClassPool
    from fewshot.data.split import Split as Split
    from fewshot.data.splits import split_by_fraction as split_by_fraction
    from fewshot.data.splits import split_by_lists as split_by_lists
    from fewshot.episodes.augment import Augment as Augment
    from fewshot.episodes.batch import KShotBatch as KShotBatch
    from fewshot.episodes.batch import StreamBatch as StreamBatch
    from fewshot.episodes.batch import Support as Support
    from fewshot.episodes.image_lists import read_image_lists as read_image_lists
    from fewshot.episodes.image_lists import write_image_lists as write_image_lists
    from fewshot.episodes.protocol import KShot as KShot
    from fewshot.episodes.protocol import Stream as Stream
    from fewshot.episodes.sampler import EpisodeSampler as EpisodeSampler
    from fewshot.errors import FewshotError as FewshotError
    from fewshot.harness.audit.given import audit_episodes as audit_episodes
    from fewshot.harness.checkpoint import load_learner as load_learner
    from fewshot.harness.checkpoint import save_learner as save_learner
    from fewshot.harness.config import TrainSettings as TrainSettings
    from fewshot.harness.evaluate import Evaluation as Evaluation
    from fewshot.harness.evaluate import evaluate as evaluate
    from fewshot.harness.train import calibrate as calibrate
    from fewshot.harness.train import train as train
    from fewshot.learners.backbones import ConvBackbone as ConvBackbone
    from fewshot.learners.backbones import register_backbone as register_backbone
    from fewshot.learners.base import Learner as Learner
    from fewshot.learners.check import check_learner as check_learner
    from fewshot.learners.registry import build_learner as build_learner
    from fewshot.learners.registry import register_learner as register_learner

_HOMES = {
    "Augment": "episodes.augment",
    "ClassPool": "data.split",
    "ConvBackbone": "learners.backbones",
    "EpisodeSampler": "episodes.sampler",
    "Evaluation": "harness.evaluate",
    "FewshotError": "errors",
    "ImageSet": "data.image_set",
    "KShot": "episodes.protocol",
    "KShotBatch": "episodes.batch",
    "Learner": "learners.base",
    "Split": "data.split",
    "Stream": "episodes.protocol",
    "StreamBatch": "episodes.batch",
    "Support": "episodes.batch",
    "TrainSettings": "harness.config",
    "audit_episodes": "harness.audit.given",
    "build_learner": "learners.registry",
    "calibrate": "harness.train",
    "check_learner": "learners.check",
    "evaluate": "harness.evaluate",
    "load_dataset": "data.catalogue",
    "load_image_folder": "data.image_folder",
    "load_learner": "harness.checkpoint",
    "read_image_lists": "episodes.image_lists",
    "register_backbone": "learners.backbones",
    "register_learner": "learners.registry",
    "save_learner": "harness.checkpoint",
    "split_by_fraction": "data.splits",
    "split_by_lists": "data.splits",
    "train": "harness.train",
    "write_image_lists": "episodes.image_lists",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fewshot' has no attribute {name!r}")
    value = getattr(import_module(f"fewshot.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
