"""Learners by name: the ids of tables, suites and the command line.

A variant is a suffix after a colon ("mann:no_tie"): a label for tables, the class is that before it. Only
beside published figures may it say more ("maml:5shot": `fewshot.report.published.made_for`). A learner of
one's own is named "package.module:Class" (and may carry a variant too), or is registered.
"""

import dataclasses
import inspect
import typing
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, create_model

from fewshot.errors import LearnerError, unknown
from fewshot.learners.anil import Anil
from fewshot.learners.attention import Attention
from fewshot.learners.base import Learner
from fewshot.learners.baseline import Baseline
from fewshot.learners.baseline_pp import BaselinePp
from fewshot.learners.count_guesser import CountGuesser
from fewshot.learners.feedforward import Feedforward
from fewshot.learners.fomaml import Fomaml
from fewshot.learners.key_value import KeyValue
from fewshot.learners.known import Known
from fewshot.learners.logistic import Logistic
from fewshot.learners.lstm import Lstm
from fewshot.learners.maml import Maml
from fewshot.learners.mann import Mann
from fewshot.learners.mann_dnc import MannDnc
from fewshot.learners.mann_ntm import MannNtm
from fewshot.learners.mann_paper import MannPaper
from fewshot.learners.mann_sparse import MannSparse
from fewshot.learners.matching import Matching
from fewshot.learners.meta_baseline import MetaBaseline
from fewshot.learners.metasgd import MetaSgd
from fewshot.learners.nearest_feature import NearestFeature
from fewshot.learners.nearest_neighbour import NearestNeighbour
from fewshot.learners.prototypical import Prototypical
from fewshot.learners.relation import Relation
from fewshot.learners.reptile import Reptile
from fewshot.learners.ridge import Ridge
from fewshot.learners.siamese import Siamese
from fewshot.learners.simpleshot import SimpleShot

_LEARNERS = Known[type[Learner]](
    kind="learner",
    noun="Learner",
    example='"package.module:Class"',
    fits=lambda found: inspect.isclass(found) and issubclass(found, Learner),
    things={
        "anil": Anil,
        "attention": Attention,
        "baseline": Baseline,
        "baseline_pp": BaselinePp,
        "count_guesser": CountGuesser,
        "feedforward": Feedforward,
        "fomaml": Fomaml,
        "key_value": KeyValue,
        "logistic": Logistic,
        "lstm": Lstm,
        "maml": Maml,
        "mann": Mann,
        "mann_dnc": MannDnc,
        "mann_ntm": MannNtm,
        "mann_paper": MannPaper,
        "mann_sparse": MannSparse,
        "matching": Matching,
        "meta_baseline": MetaBaseline,
        "metasgd": MetaSgd,
        "nearest_feature": NearestFeature,
        "nearest_neighbour": NearestNeighbour,
        "prototypical": Prototypical,
        "relation": Relation,
        "reptile": Reptile,
        "ridge": Ridge,
        "siamese": Siamese,
        "simpleshot": SimpleShot,
    },
)


def learner_names() -> tuple[str, ...]:
    """The registered ids, sorted."""
    return _LEARNERS.names()


def register_learner(name: str, learner: type[Learner]) -> None:
    """Make a learner of one's own known by name. Raises LearnerError where the name is taken or malformed."""
    _LEARNERS.register(name, learner)


def learner_class(name: str) -> type[Learner]:
    """The class behind a registered id or "package.module:Class", each with or without ":variant".

    Raises LearnerError for a name that is neither, and for a module that fails while it is imported.
    """
    base, *rest = name.split(":")
    return _LEARNERS.find(base if base in _LEARNERS.things else ":".join([base, *rest[:1]]))


def options_of(learner: type[Learner], options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All options of a learner: its constructor's keywords, as given or else by default.

    Raises LearnerError, in one line, for an option that the learner has not, or a value that does not fit.
    """
    given = dict(options or {})
    model = _options_model(learner)
    for name in given:
        if name not in model.model_fields:
            raise LearnerError(unknown(f"option of {learner.__name__}", name, model.model_fields))
    try:
        validated = model(**given)
    except ValidationError as error:
        raise LearnerError(_refusal(learner, model, error)) from None
    return {name: getattr(validated, name) for name in model.model_fields}


def telling_options(learner: type[Learner], options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`options_of` without `added_options` at their defaults: what a result's key is made of."""
    bases = (base for base in learner.__mro__ if issubclass(base, Learner))
    added = frozenset[str]().union(*(base.added_options for base in bases))
    defaults = options_of(learner) if added else {}
    return {
        name: value
        for name, value in options_of(learner, options).items()
        if name not in added or value != defaults[name]
    }


def is_ours(learner: type[Learner]) -> bool:
    """Whether a learner is of this package, not of one's own."""
    return learner.__module__.startswith("fewshot.")


def build_learner(
    name: str,
    image_shape: tuple[int, int, int],
    way: int,
    options: Mapping[str, Any] | None = None,
) -> Learner:
    """A fresh learner; its weights come from torch's global random state, which the caller seeds.

    image_shape: (channel, height, width). Raises LearnerError for an unknown name, option or value, and for a
    learner of one's own that cannot be made.
    """
    learner = learner_class(name)
    if len(image_shape) != 3 or min(*image_shape, way) < 1:
        raise LearnerError(
            f"a learner is built for images of (channel, height, width) and for one class or more; got "
            f"{image_shape} and way {way}"
        )
    given = options_of(learner, options)
    try:
        return learner(image_shape, way, **given)
    except (AttributeError, TypeError) as error:
        if is_ours(learner):
            raise
        raise LearnerError(
            f"{learner.__name__}(image_shape, way) cannot be made ({error}): give it start, observe and "
            "predict, and have its __init__ take image_shape and way and begin with "
            "super().__init__(image_shape, way)"
        ) from error


def _as_written(hint: Any) -> Any:
    """The type of an option as files give it: TOML has no null, so the word "none" stands for it."""
    if type(None) not in typing.get_args(hint):
        return hint
    return Annotated[hint, BeforeValidator(lambda value: None if value == "none" else value)]


def _refusal(learner: type[Learner], model: type[BaseModel], error: ValidationError) -> str:
    """The first thing that is wrong with options, in one line; what has fields is a table in a file."""
    first = error.errors()[0]
    option, *inside = map(str, first["loc"])
    hint = model.model_fields[option].annotation
    kinds = [kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)]
    keys = [field.name for kind in kinds for field in dataclasses.fields(kind)]
    if first["type"] == "unexpected_keyword_argument":
        return unknown(f"key of option {option} of {learner.__name__}", inside[-1], keys)
    got = "" if first["type"] == "missing" else f", got {first['input']!r}"
    wrong = first["msg"]
    if first["type"] == "dataclass_type":
        value = f'"{first["input"]}"' if isinstance(first["input"], str) else "..."
        wrong = f"it is a table of {', '.join(keys)}, as {option} = {{ {keys[0]} = {value} }}"
    return f"option {'.'.join((option, *inside))} of {learner.__name__}: {wrong}{got}"


def _options_model(learner: type[Learner]) -> type[BaseModel]:
    fields: dict[str, Any] = {
        name: (_as_written(hint), default) for name, (hint, default) in _keywords(learner).items()
    }
    return create_model(
        f"{learner.__name__}Options",
        __config__=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False, protected_namespaces=()),
        **fields,
    )


def _keywords(learner: type[Learner]) -> dict[str, tuple[Any, Any]]:
    """The type and the default (... for none) of each keyword of a constructor, by name.

    Those that it passes on, `**shared: Unpack[SharedOptions]`, are as its base has them.
    """
    hints = typing.get_type_hints(learner.__init__)
    found: dict[str, tuple[Any, Any]] = {}
    for parameter in inspect.signature(learner.__init__).parameters.values():
        hint = hints.get(parameter.name, Any)
        if parameter.kind is parameter.KEYWORD_ONLY:
            found[parameter.name] = hint, ... if parameter.default is parameter.empty else parameter.default
        elif typing.get_origin(hint) is typing.Unpack:
            passed_on = typing.get_type_hints(*typing.get_args(hint))
            base = next(kind for kind in learner.__mro__[1:] if issubclass(kind, Learner))
            found |= {name: option for name, option in _keywords(base).items() if name in passed_on}
    return found
