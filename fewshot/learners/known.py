"""What is known by name: what this package has, what is registered, and what a module of anybody's has.

In a suite, a checkpoint and another process a name is all there is. What was registered has to be registered
there too; "package.module:attribute" is found wherever the module can be imported.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fewshot.errors import AbsentError, LearnerError, unknown

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Known(Generic[Thing]):
    """Things of one kind by name.

    kind: what they are to somebody who names one; noun: what an attribute of a module must be, which `fits`
    tells; example: how such an attribute is named; things: those with a name of their own; reserved: names
    that are known without a thing.
    """

    kind: str
    noun: str
    example: str
    fits: Callable[[Any], bool]
    things: dict[str, Thing]
    reserved: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        """All but those in modules, sorted."""
        return tuple(sorted((*self.things, *self.reserved)))

    def register(self, name: str, thing: Thing) -> None:
        """Raises LearnerError where the name is taken or malformed; once more is harmless."""
        if not name.isidentifier():
            raise LearnerError(f"a {self.kind}'s name is letters, digits and underscores; got {name!r}")
        if name in self.reserved or self.things.setdefault(name, thing) is not thing:
            raise LearnerError(f"there is a {self.kind} {name!r} already: choose another name")

    def find(self, name: str) -> Thing:
        """What has this name, or is "package.module:attribute".

        Raises AbsentError, in one line, for a name that is neither, and for a module that does not import.
        """
        if name in self.things:
            return self.things[name]
        home, _, attribute = name.partition(":")
        if not all(part.isidentifier() for part in (*home.split("."), attribute)):
            raise AbsentError(
                f"{self._unknown(name)}; register your own first, or name a {self.noun} as {self.example}"
            )
        try:
            module = importlib.import_module(home)
        except Exception as error:  # a stranger's module may raise anything
            if isinstance(error, ModuleNotFoundError) and f"{home}.".startswith(f"{error.name}."):
                raise AbsentError(
                    f"{self._unknown(name)}; and {error}: go to where it lies, or install it"
                ) from None
            text = " ".join(str(error).split())
            raise AbsentError(f"module {home} does not import: {type(error).__name__}: {text}") from error
        found: Thing = getattr(module, attribute, None)  # type: ignore[assignment]
        if not self.fits(found):
            raise AbsentError(f"{self._unknown(name)}; and module {home} has no {self.noun} {attribute!r}")
        return found

    def _unknown(self, name: str) -> str:
        return unknown(self.kind, name, self.names())
