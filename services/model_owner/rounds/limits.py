"""How far the changes of a round may reach: what nodes check of their own (aggregation.bounds),
checked again of those that do not."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from pathlib import Path

from primia.aggregation.bounds import Bounds, Norms
from primia.aggregation.terms import Groups
from primia.aggregation.wire import chunks
from primia.chassis.context import Context
from primia.errors import NotFound
from services.model_owner.rounds import store
from services.model_owner.rounds.tables import Run

_KEY, _KEPT = "rounds.norms", 16
_Cache = OrderedDict[str, Norms]  # of weights, by their digest


def of_run(ctx: Context, run: Run) -> Bounds:
    """Of changes to the run's present weights, which are read once in a process."""
    known: _Cache = ctx.extras.setdefault(_KEY, OrderedDict())
    norms = known.get(run.weights_digest)
    if norms is None:
        groups = Groups(run.parameters, run.buffers)
        norms = known[run.weights_digest] = _norms(ctx.files.root / run.weights, groups)
        while len(known) > _KEPT:
            known.popitem(last=False)
    return norms.bounds(store.proposal_of(run).max_norm)


def prepare(ctx: Context, run_id: str) -> None:
    """Read what ``of_run`` needs before a transaction holds the run."""
    with contextlib.suppress(NotFound, FileNotFoundError):  # the answer is refused for that
        with ctx.db.reading() as session:
            run = store.find(session, run_id)
        if run.secure and run.state == "running":
            of_run(ctx, run)


def _norms(path: Path, groups: Groups) -> Norms:
    """Of a safetensors file that was written here: behind its header it is the vector."""
    found = Norms(groups)
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
        file.seek(8 + header)
        for _, values in chunks(file, groups.size, "<f4"):
            found.add(values)
    return found
