"""What an audit finds: one guard, held against one thing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """guard: what ought to be so. subject: what it was held against: a log, a learner, episodes, a record.

    seen: what was seen, in words; remedy: what to do about it, where the guard does not hold.
    chance: where figures decide, how often honest ones would look as bad or worse; None where facts do.
    """

    guard: str
    subject: str
    holds: bool
    seen: str
    remedy: str
    chance: float | None = None

    def __str__(self) -> str:
        told = f"{self.guard}: {self.subject}: {self.seen}"
        return f"holds  {told}" if self.holds else f"FAILS  {told}; {self.remedy}"
