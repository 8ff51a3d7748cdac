"""The reference of a suite's keys, from the models that read them: a table in the manner of Markdown.

A row says what a key may be and what it is if it is left out, and the first sentence of the docstring beneath
it in `fewshot.harness.config`; a row in bold is a table of the file, and says the same of its model.
"""

import re
from collections.abc import Iterator
from typing import Any

from fewshot.harness.config import (
    AugmentSettings,
    CurriculumSettings,
    DataSettings,
    KShotSettings,
    LearnerSettings,
    Measured,
    Settings,
    StreamSettings,
    Suite,
    TrainSettings,
    TrialSettings,
)

HEAD = "| key | value | default | meaning |"
TABLES: tuple[tuple[str, type[Settings]], ...] = (
    ("a suite", Suite),
    ("`[data]`, `[train_data]`", DataSettings),
    ("`[[test]]`", Measured),
    ('with `protocol = "kshot"`', KShotSettings),
    ('with `protocol = "stream"`', StreamSettings),
    ("`[[learner]]`", LearnerSettings),
    ("`[train]`, `[learner.train]`", TrainSettings),
    ("`[learner.train.augment]`", AugmentSettings),
    ("`[learner.train.curriculum]`", CurriculumSettings),
    ("`[learner.train.trials]`", TrialSettings),
)
"""The tables of a suite as they are headed here, and what reads them."""
UNLISTED = {(Suite, "name"), (KShotSettings, "protocol"), (StreamSettings, "protocol")}
"""Fields without a row: a suite's name is its file's, and a protocol heads its table."""
_KINDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}
_LIMITS = {"exclusiveMinimum": ">", "minimum": "≥", "maximum": "≤"}  # not that of 64 bits, which is exclusive


def suite_keys() -> str:
    """The whole table, with a line end after each row."""
    return "".join(f"{line}\n" for line in (HEAD, "|---|---|---|---|", *_rows()))


def _rows() -> Iterator[str]:
    for title, model in TABLES:
        yield f"| **{title}** | | | {_first_sentence(model.__doc__)} |"
        kinds = model.model_json_schema()["properties"]
        for name, field in model.model_fields.items():
            if (model, name) not in UNLISTED:
                default = "required" if field.is_required() else _as_toml(field.default)
                meaning = _first_sentence(field.description)
                yield f"| `{name}` | {_kind(kinds[name])} | {default} | {meaning} |"


def _first_sentence(text: str | None) -> str:
    """In one line, without its full stop."""
    return re.split(r"\.(?:\s+(?=[A-Z`])|$)", " ".join((text or "").split()), maxsplit=1)[0]


def _kind(schema: dict[str, Any]) -> str:
    """What a value may be, from its JSON schema."""
    if choices := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return " or ".join(map(_as_toml, choices))
    if "anyOf" in schema:
        return " or ".join(_kind(part) for part in schema["anyOf"] if part != {"type": "null"})
    if schema.get("type") == "array":
        items = [_kind(item) for item in schema.get("prefixItems", ())] or [_kind(schema["items"]), "…"]
        return f"[{', '.join(items)}]"
    limits = [f"{sign} {schema[name]:g}" for name, sign in _LIMITS.items() if name in schema]
    return " ".join([_KINDS.get(schema.get("type", ""), "table"), ", ".join(limits)]).rstrip()


def _as_toml(value: Any) -> str:
    """A value as a suite would give it; nothing for None."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"'
        case Settings():
            return _as_toml(value.model_dump(exclude_unset=True))
        case dict():
            inside = ", ".join(f"{key} = {_as_toml(item)}" for key, item in value.items())
            return f"{{ {inside} }}" if inside else "{}"
        case tuple() | list():
            return f"[{', '.join(map(_as_toml, value))}]"
    return f"{value}"
