"""Early stopping as arithmetic: measures come in one after another, until it is enough."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from primia.learning.config import Stopping


@dataclass(frozen=True, slots=True)
class Standing:
    """How it stands: the best measure so far, checks since then, and whether it is over."""

    best: float | None = None
    waited: int = 0
    stopped: bool = False

    def as_dict(self) -> dict[str, float | int | bool | None]:
        return asdict(self)

    def after(self, found: float, rule: Stopping) -> Standing:
        """The standing after one more check; a measure that is not finite is never better."""
        if self.stopped:
            return self
        if found == found and rule.better(found, self.best):
            return Standing(best=found)
        waited = self.waited + 1
        return replace(self, waited=waited, stopped=waited >= rule.patience)
