"""Following a run or an inference with a progress bar."""

from __future__ import annotations

import time

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from primia.client import DataNode, ModelOwner
from primia.errors import PeerUnavailable
from primia.messages.inference import InferenceStatus
from primia.messages.runs import ENDED, RunReport

_POLL_SECONDS = 0.5
# A watched service may be restarted; give it a while before giving up.
_PATIENCE_SECONDS = 60.0
# The steps of a secure round, in their order; the bar advances a part of a round with each.
_STAGES = ("asked", "trained", "shared", "uploaded", "absorbed", "confirmed", "revealed")


def bars(quiet: bool = False) -> Progress:
    return Progress(
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        disable=quiet,
    )


def watch_run(
    owner: ModelOwner, run: str, quiet: bool = False, title: str = "Federated training"
) -> RunReport:
    """Poll a run until it ends; its last report."""
    with bars(quiet) as progress:
        task = progress.add_task(title, total=1.0, state="")
        last_answer = time.monotonic()
        while True:
            try:
                report = owner.run(run)
            except PeerUnavailable:
                if time.monotonic() - last_answer > _PATIENCE_SECONDS:
                    raise
                time.sleep(_POLL_SECONDS)
                continue
            last_answer = time.monotonic()
            progress.update(task, completed=share_done(report), state=_state(report))
            if report.state in ENDED:
                return report
            time.sleep(_POLL_SECONDS)


def share_done(report: RunReport) -> float:
    """Rounds done over all rounds, counting the stages of the present one; a run that only
    evaluates has none to count."""
    if report.state == "finished":
        return 1.0
    if not report.rounds:
        return 0.0
    part = 0.0
    if report.reports and report.reports[-1].ended is None:
        sites = [site for site in report.reports[-1].sites if site.dropped is None]
        if sites:
            part = sum(_STAGES.index(site.stage) for site in sites) / len(sites) / len(_STAGES)
    return min(1.0, (report.rounds_done + part) / report.rounds)


def _state(report: RunReport) -> str:
    if report.state != "running" or not report.reports:
        return report.state
    current = report.reports[-1]
    done = [each for each in report.reports if each.result and each.result.accuracy is not None]
    reached = f" · accuracy {done[-1].result.accuracy:.2f}" if done and done[-1].result else ""
    return f"round {current.number} of {report.rounds}: {current.phase}{reached}"


def watch_inference(
    node: DataNode, job: str, quiet: bool = False, title: str = "Encrypted inference"
) -> InferenceStatus:
    """Poll an inference until it ends; its last status."""
    with bars(quiet) as progress:
        task = progress.add_task(title, total=1.0, state="")
        while True:
            status = node.inference(job)
            done = status.step / status.steps if status.steps else 0.0
            steps = f" {status.step}/{status.steps}" if status.steps else ""
            completed = 1.0 if status.state == "done" else done
            progress.update(
                task, completed=completed, state=f"{status.phase or status.state}{steps}"
            )
            if status.state in ("done", "failed", "cancelled"):
                return status
            time.sleep(_POLL_SECONDS / 5)
