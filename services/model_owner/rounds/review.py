"""The rules of review: whether a run may begin, and with whom; labels must agree; no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.model_owner.rounds.domain import SiteState, Wait


@dataclass(frozen=True, slots=True)
class Answer:
    """A site in review; ``classes`` as its data set has them."""

    node: str
    state: SiteState
    classes: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Begin:
    silent: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fail:
    reason: str


def settle_review(
    answers: Sequence[Answer], model: str, classes: Sequence[str], needed: int, *, expired: bool
) -> Wait | Begin | Fail:
    """Whether a run may begin: labels agree, and enough nodes have accepted."""
    for answer in answers:
        difference = label_difference(answer.classes, classes)
        if answer.state == "accepted" and difference:
            return Fail(f"The labels of {answer.node} differ from those of {model}: {difference}.")
    accepted = [answer.node for answer in answers if answer.state == "accepted"]
    invited = [answer.node for answer in answers if answer.state == "invited"]
    if invited and not expired and len(accepted) + len(invited) >= needed:
        return Wait()
    if len(accepted) >= needed:
        return Begin(tuple(invited) if expired else ())
    return Fail(_too_few(answers, len(accepted), needed, expired=expired))


def _too_few(answers: Sequence[Answer], accepted: int, needed: int, *, expired: bool) -> str:
    refused = [f"{a.node} refused ({a.reason or 'no reason given'})" for a in answers
               if a.state == "refused"]  # fmt: skip
    silent = [f"{a.node} did not answer in time" for a in answers
              if a.state == "silent" or (expired and a.state == "invited")]  # fmt: skip
    details = "; ".join(refused + silent)
    return f"Of the {needed} nodes needed {accepted} accepted: {details}."


def label_difference(found: Sequence[str], wanted: Sequence[str]) -> str | None:
    """How a site's classes differ from the model's; their order is the site's own affair."""
    missing, unknown = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    parts = [f"it lacks {', '.join(missing)}"] if missing else []
    parts += [f"the model does not know {', '.join(unknown)}"] if unknown else []
    return " and ".join(parts) or None
