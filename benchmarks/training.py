"""What a round of federated training costs beside the training, and other systems' rounds.

python -m benchmarks.training [--rounds 12] [--model resnet18] [--only GROUP ...]
Prints a table and writes benchmarks/results/training.json. Groups: see --help.

Model owner and data nodes are their own processes (API, worker, broker, database), over HTTP on one
machine. Training is one batch of two 32-pixel images by gradient descent; a round runs from
its opening to that of the next, with training and all waiting.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from benchmarks import simulated_nodes
from benchmarks.bed import groups, rounds
from benchmarks.bed.report import Figure, Report, end_on_signal
from benchmarks.bed.rounds import Trial
from benchmarks.bed.services import Bed, bed
from benchmarks.peers import flower, nvflare
from benchmarks.peers.environment import PeerMissing
from primia.grid.layout import NODES, OWNER
from primia.messages.rounds import Timeouts

MEMBERS = (OWNER, *NODES)
GROUPS = {
    "plain": "a round without secure aggregation",
    "secure": "a round with it",
    "lost": "one of three nodes lost in mid-round",
    "nodes": "eight nodes: what the owner holds then",
    "flower": "Flower 1.41, deployed: a node adds one to every value",
    "nvflare": "NVFlare 2.9, in POC mode: the same",
    "simulated": "3 to 50 nodes in one process, secure",
}
_PLAIN_SECONDS, _SECURE_SECONDS, _RATIO = 1.5, 2.5, 1.7
_OWNER_GB, _NODE_GB, _BYTES = 1.0, 0.7, 1.02
_LOST_SECONDS = 10.0
_MANY = 8
_PEER_ROUNDS, _PEER_SECONDS = 4, 300.0


def main() -> None:
    given = _arguments()
    end_on_signal()
    report = Report("training", "benchmarks.training")
    with tempfile.TemporaryDirectory(prefix="primia-bench-", dir=given.folder) as folder:
        bench = Bench(given, report, Path(folder))
        with bench.open:
            groups.run(
                given.only,
                GROUPS,
                lambda group: _RUN[group](bench),
                report.say,
                lambda group, reason: bench.figure(group, "not measured", "", [], note=reason),
            )
    report.table()


def _arguments() -> argparse.Namespace:
    parser = groups.parser(__doc__, GROUPS)
    parser.add_argument("--rounds", type=int, default=12, help="the first is not counted")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--values", type=int, default=11_200_000, help="of the simulated nodes")
    return parser.parse_args()


@dataclass
class Bench:
    given: argparse.Namespace
    report: Report
    folder: Path

    def __post_init__(self) -> None:
        self.open = contextlib.ExitStack()

    @cached_property
    def bed(self) -> Bed:
        """Services whose workers have loaded what they need."""
        with contextlib.ExitStack() as stack:  # what is no use is ended before it is tried again
            found = stack.enter_context(bed(self.folder / "grid", MEMBERS))
            rounds.prepare(found, NODES)
            rounds.create(found, "warm", "resnet18")
            rounds.wait(found, rounds.start(found, "warm", NODES, 1, secure=True))
            self.open.enter_context(stack.pop_all())
        return found

    @cached_property
    def values(self) -> int:
        return rounds.create(self.bed, "timed", self.given.model)

    @cached_property
    def training_alone(self) -> float:
        """Bytes that a step of training takes in a process of its own at a node."""
        return float(self.bed.run(NODES[0], "benchmarks.bed.step", self.given.model))

    def figure(
        self, group: str, name: str, unit: str, values: list[float], **more: object
    ) -> Figure:
        options = (f"--rounds={self.given.rounds}", f"--model={self.given.model}")
        command = self.report.command("--only", group, *options)
        return self.report.add(Figure(group, name, unit, command, values, **more))  # type: ignore[arg-type]


def _round(bench: Bench, secure: bool) -> Trial:
    group = "secure" if secure else "plain"
    found, model = bench.bed, 4 * bench.values
    found.forget_peaks()
    idle = found.resident()
    busy = found.processor_seconds()
    run = rounds.start(found, "timed", NODES, bench.given.rounds, secure=secure)
    trial = rounds.wait(found, run)
    peaks, spent = found.peaks(), found.processor_seconds()
    most = _SECURE_SECONDS if secure else _PLAIN_SECONDS
    note = f"of which {trial.training:.2f} s of training at each site"
    bench.figure(group, "a round", "s", trial.seconds, at_most=most, note=note)
    for direction in ("up", "down"):
        share = trial.bytes(direction) / model
        name = f"bytes of a node, {direction}, in models of {model / 1e6:.1f} MB"
        bench.figure(group, name, "", [share], at_most=_BYTES)
    owner = peaks[OWNER] / 1e9
    bench.figure(group, "peak memory of the owner", "GB", [owner], at_most=_OWNER_GB)
    node = max(peaks[name] for name in NODES) / 1e9
    alone = bench.training_alone / 1e9
    note = f"less {alone:.2f} GB: the same training in a process of its own, torch included"
    name = "peak memory of a node beside training"
    bench.figure(group, name, "GB", [node - alone], at_most=_NODE_GB, note=note)
    note = "API and worker, torch and the training included"
    bench.figure(group, "peak memory of a node with training", "GB", [node], note=note)
    for name, role in ((OWNER, "the owner"), (NODES[0], "a node")):
        note = f"that holds {idle[name] / 1e9:.2f} GB before the run"
        more = (peaks[name] - idle[name]) / 1e9
        bench.figure(group, f"more than {role} holds when idle", "GB", [more], note=note)
    for name in (OWNER, NODES[0]):
        seconds = (spent[name] - busy[name]) / bench.given.rounds
        bench.figure(group, f"processor time of {name} a round", "s", [seconds])
    return trial


def _plain(bench: Bench) -> None:
    _round(bench, secure=False)


def _secure(bench: Bench) -> None:
    trial = _round(bench, secure=True)
    plain = bench.report.find("plain", "a round")
    if plain:
        ratio = float(np.median(trial.seconds)) / plain
        bench.figure("secure", "times a plain round", "", [ratio], at_most=_RATIO)


def _lost(bench: Bench) -> None:
    """A node is killed after it has dealt its shares; the others' mean must come out."""
    found, victim = bench.bed, NODES[-1]
    assert bench.values  # the model is there
    short = Timeouts(train=_LOST_SECONDS, exchange=_LOST_SECONDS)
    run = rounds.start(found, "timed", NODES, 1, secure=True, timeouts=short)
    rounds.wait_stage(found, run, victim, ("trained", "shared"))
    found.kill(victim, "api", "worker")
    try:
        trial = rounds.wait(found, run)
        sites = trial.report.reports[0].sites
        gone = [site.node for site in sites if site.dropped]
        whole = trial.report.reports[0]
        assert whole.ended is not None
        seconds = (whole.ended - whole.started).total_seconds()
        note = f"timeout {_LOST_SECONDS:g} s; lost: {', '.join(gone) or 'nobody, it was too late'}"
        bench.figure("lost", "the round", "s", [seconds], note=note)
        left = tuple(name for name in NODES if name not in gone)
        again = rounds.wait(found, rounds.start(found, "timed", left, 1, secure=False))
        mine, theirs = (rounds.weights(found, one, bench.folder) for one in (trial, again))
        apart = max(float(np.abs(mine[name] - theirs[name]).max()) for name in mine)
        note = "to a plain round of the nodes that remain"
        bench.figure("lost", "largest difference of a weight", "", [apart], at_most=1e-6, note=note)
        found.owner().weights("timed", 1, bench.folder / "first.safetensors")
        first = load_file(bench.folder / "first.safetensors")
        moved = max(float(np.abs(mine[name] - first[name]).max()) for name in mine)
        bench.figure("lost", "largest change of a weight in the round", "", [moved])
    finally:
        for part in ("api", "worker"):
            found.start(victim, part)
        found.wait_ready(victim)


def _nodes(bench: Bench) -> None:
    """More nodes, each its own processes, in a grid of their own."""
    names = tuple(f"site-{number + 1}" for number in range(_MANY))
    with bed(bench.folder / "many", (OWNER, *names)) as found:
        rounds.prepare(found, names)
        values = rounds.create(found, "timed", bench.given.model)
        found.forget_peaks()
        trial = rounds.wait(found, rounds.start(found, "timed", names, 2, secure=True))
        owner = found.peaks()[OWNER] / 1e9
    few = bench.report.find("secure", "peak memory of the owner")
    note = f"with 3 nodes {few:.2f} GB" if few else ""
    name = f"peak memory of the owner with {_MANY} nodes"
    bench.figure("nodes", name, "GB", [owner], at_most=_OWNER_GB, note=note)
    for direction in ("up", "down"):
        share = trial.bytes(direction) / (4 * values)
        name = f"bytes of a node, {direction}, in models"
        bench.figure("nodes", name, "", [share], at_most=_BYTES)


def _flower(bench: Bench) -> None:
    _peer(bench, "flower", flower.rounds)


def _nvflare(bench: Bench) -> None:
    _peer(bench, "nvflare", nvflare.rounds)


def _peer(bench: Bench, group: str, run: Callable[[Path, int, int, float], list[float]]) -> None:
    try:
        seconds = run(bench.folder / group, bench.values, _PEER_ROUNDS, _PEER_SECONDS)
    except (PeerMissing, OSError, subprocess.SubprocessError) as error:
        bench.figure(group, "not measured", "", [], note=str(error)[:200])
        return
    bench.figure(group, "a round of federated averaging", "s", seconds)
    for ours in ("plain", "secure"):
        mine = bench.report.find(ours, "a round")
        if mine:
            bench.figure(group, f"times ours, {ours}", "", [float(np.median(seconds)) / mine])


def _simulated(bench: Bench) -> None:
    for nodes in (3, 10, 25, 50):
        cost = simulated_nodes.measure(nodes, bench.given.values)
        where = f"{nodes} nodes"
        bench.figure("simulated", f"{where}: a node", "s", [cost.node_seconds])
        bench.figure("simulated", f"{where}: the owner", "s", [cost.owner_seconds])
        bench.figure("simulated", f"{where}: bytes a node, up", "MB", [cost.node_up / 1e6])
        beside = cost.node_down / 1e6
        note = "beside the model"
        bench.figure("simulated", f"{where}: bytes a node, down", "MB", [beside], note=note)


_RUN: Mapping[str, Callable[[Bench], None]] = {
    "plain": _plain,
    "secure": _secure,
    "lost": _lost,
    "nodes": _nodes,
    "flower": _flower,
    "nvflare": _nvflare,
    "simulated": _simulated,
}


if __name__ == "__main__":
    main()
