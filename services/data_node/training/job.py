"""A work item in the hands of one worker, and how its answer is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.orm import Session

from primia.chassis.context import Context
from primia.chassis.leases import Held
from primia.errors import UnexpectedMessage
from primia.messages.common import Message
from services.data_node.training import store
from services.data_node.training.stopping import Interrupted, RunEnded
from services.data_node.training.tables import Run, WorkRow


@dataclass(frozen=True)
class Job:
    """An item in work, under its lease."""

    ctx: Context
    item_id: str
    held: Held

    def run(self, run: str) -> Run:
        """The run, which must be active here."""
        with self.ctx.db.reading() as session:
            row = session.get(Run, run)
        if row is None or row.state != "active":
            state = row.state if row else "not known"
            raise UnexpectedMessage(f"This site does not take part in the run: it is {state} here.")
        return row

    def answer(
        self, path: str, message: Message | None, change: Callable[[Session], object] | None = None
    ) -> None:
        """Store the answer and what changes with it, if the item is still open and ours."""
        with self.ctx.db.session() as session:
            row = session.get(WorkRow, self.item_id, with_for_update=True)
            if row is None or row.state != "open" or self.held.lost.is_set():
                raise Interrupted
            if change is not None:
                change(session)
            body = None if message is None else message.model_dump_json()
            store.set_answer(row, path, body, self.ctx.clock.now())


def still_active(session: Session, run: str) -> Run:
    row = store.find_run(session, run, lock=True)
    if row.state != "active":
        raise RunEnded("The run has ended at this site.")
    return row
