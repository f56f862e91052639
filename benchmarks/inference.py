"""Encrypted inference through the real services, over slow networks, and CrypTen beside it.

python -m benchmarks.inference [--size 224] [--repeats 5] [--budget 2700] [--only GROUP ...]
Prints a table, writes benchmarks/results/inference.json and plots. Groups: see --help.

Every party is its own processes, over HTTP: crypto provider, model owner, data node. Each figure is
the median of the repetitions, after one inference to warm up. Delays and rates are real: network
namespaces joined by a link in userspace (benchmarks.bed.link), the same for every system. Nothing
is in stock, but in the group of that name: each image's material is dealt, downloaded and used up,
so that one job gives the time of everything and, by the data node's own report, the online part.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from benchmarks import inference_limit, inference_plots, inference_scaling, inference_sweep
from benchmarks.bed import groups, models
from benchmarks.bed.encrypted import Answer, infer, wait_kept
from benchmarks.bed.report import Report, end_on_signal
from benchmarks.bed.services import Bed
from benchmarks.bed.workbench import MEMBERS, MODEL, NODE, Bench
from benchmarks.inference_sweep import crypten_counted, network_name
from benchmarks.peers import crypten
from benchmarks.peers.environment import PeerMissing
from primia.grid.layout import DEALER, OWNER
from primia.learning.images import normalise
from primia.learning.spec import ModelSpec

PAIR = (OWNER, NODE)
GROUPS = {
    "loopback": "one image without added delay: seconds, requests, bytes, material, memory",
    "stocked": "the same where both parties keep the material of an image ahead, also delayed",
    "delay": "10 and 100 ms one way; 100 Mbit/s",
    "calibrated": "the same with calibrated accuracy",
    "securenn": "SecureNN at the same delays, and what FSS saves",
    "agreement": "labels and logits against the plain model",
    "breakdown": "one inference at --breakdown-delay one way, step by step",
    "batch": "1 to 64 images in one session",
    "sides": "images of 32 to 512 pixels a side by ResNet-18, of 28 to 256 by LeNet-5",
    "limit": "AES blocks, bytes and operations over what this machine does of each",
    "crypten": "CrypTen 0.4.1 as shipped on the same networks",
    "sweep": "0 to 200 ms, 10 Mbit/s to 10 Gbit/s: fss, SecureNN, CrypTen; for the plots",
}
# Seconds that CrypTen takes for an image of 224 x 224, preparation included, and what is left of
# them for smaller ones: whether a row fits into the budget must be known before.
_CRYPTEN_SECONDS = {(0, 0): 60.0, (10, 0): 60.0, (100, 0): 270.0, (0, 100): 480.0}
_DELAYS = ((10.0, 2.0), (100.0, 6.5))  # one way, ms; seconds at most


def main() -> None:
    given = _arguments()
    end_on_signal()
    report = Report("inference", "benchmarks.inference")
    with tempfile.TemporaryDirectory(prefix="primia-bench-", dir=given.folder) as folder:
        bench = Bench(given, report, Path(folder), tuple(GROUPS))
        with bench.open:
            groups.run(
                given.only,
                GROUPS,
                lambda group: _RUN[group](bench),
                report.say,
                lambda group, reason: bench.missing(group, "", reason),
            )
    report.table()
    for path in inference_plots.draw(report.path):
        report.say(f"drawn {path}")


def _arguments() -> argparse.Namespace:
    parser = groups.parser(__doc__, GROUPS)
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--budget", type=float, default=2700, help="seconds; what is longer is left"
    )
    parser.add_argument("--breakdown-delay", type=float, default=10, help="one way, ms")
    parser.add_argument(
        "--threads", type=int, default=1, help="of a party's arithmetic; the dealer takes all cores"
    )
    parser.add_argument("--images", type=int, default=40, help="for the agreement")
    parser.add_argument("--calibration", type=int, default=64, help="images to calibrate on")
    parser.add_argument("--train-seconds", type=float, default=60, help="for the agreement")
    parser.add_argument("--train-size", type=int, default=96)
    known = os.environ.get("PRIMIA_TEST_DATA")
    parser.add_argument("--data", type=Path, default=Path(known) if known else None)
    return parser.parse_args()


def _loopback(bench: Bench) -> None:
    found = bench.loopback
    found.forget_peaks()
    busy = found.processor_seconds()
    answers = bench.times(found)
    peaks = found.peaks()
    busy = {name: spent - busy[name] for name, spent in found.processor_seconds().items()}
    costs = [answer.cost for answer in answers]
    full = bench.given.size == 224

    def add(name: str, unit: str, values: list[float], most: float, note: str = "") -> None:
        at_most = most if full else None
        bench.figure("loopback", name, unit, values, at_most=at_most, note=note)

    online = [cost.online_seconds for cost in costs]
    add("online, exact", "s", online, 1.5, "by the data node's own report")
    jobs = [answer.job_seconds for answer in answers]
    add("everything together, nothing in stock", "s", jobs, 6, "from the request to its result")
    for part in ("material", "offline"):
        values = [getattr(cost, f"{part}_seconds") for cost in costs]
        bench.figure("loopback", f"of which {part}", "s", values)
    add("requests", "", [float(answer.requests) for answer in answers], 22)
    between = [(cost.online_bytes + cost.offline_bytes) / 1e6 for cost in costs]
    add("bytes between the parties online", "MB", [c.online_bytes / 1e6 for c in costs], 40)
    bench.figure("loopback", "the same with the offline message", "MB", between)
    add("material of the data node, exact", "GB", [c.material_bytes / 1e9 for c in costs], 0.75)
    halves = [half / 1e9 for half in found.owners_halves(len(costs))]
    add("material of the model owner, exact", "GB", halves, 0.75)
    parties = max(peaks[OWNER], peaks[NODE])
    add("peak memory of a party", "GB", [parties / 1e9], 2, "its API and worker")
    add("peak memory of the dealer", "GB", [peaks[DEALER] / 1e9], 1, "its API and worker")
    for name, spent in busy.items():
        bench.figure("loopback", f"processor time of {name}", "s", [spent / len(answers)])


def _stocked(bench: Bench) -> None:
    """Nobody asks the crypto provider for anything between an image and its result."""
    answers = _from_stock(bench, bench.stocked)
    full = bench.given.size == 224
    costs = [answer.cost for answer in answers]
    online = [cost.online_seconds for cost in costs]
    bench.figure("stocked", "online, exact", "s", online, at_most=1.5 if full else None)
    jobs = [answer.job_seconds for answer in answers]
    note = "from the request to its result"
    bench.figure("stocked", "everything together, material kept ahead", "s", jobs, note=note)
    for part in ("material", "offline"):
        values = [getattr(cost, f"{part}_seconds") for cost in costs]
        bench.figure("stocked", f"of which {part}", "s", values)
    moved = [(cost.material_bytes + cost.offline_bytes) / 1e6 for cost in costs]
    bench.figure("stocked", "bytes before the first request", "MB", moved, at_most=0)
    for delay, mbit in ((10.0, 0.0), (100.0, 0.0), (0.0, 100.0)):
        answers = _from_stock(bench, bench.stocked_apart, delay, mbit)
        name = network_name(delay, mbit)
        online = [answer.cost.online_seconds for answer in answers]
        bench.figure("stocked", f"online, {name}", "s", online)
        jobs = [answer.job_seconds for answer in answers]
        bench.figure("stocked", f"everything together, {name}", "s", jobs, note=note)


def _from_stock(bench: Bench, found: Bed, delay: float = 0, mbit: float = 0) -> list[Answer]:
    """Each image once its material lies at both parties; the line is slow for the image alone."""
    answers = []
    for turn in range(bench.given.repeats + 1):
        wait_kept(found.node(NODE), MODEL)
        if found.network is not None:
            found.network.set(delay, mbit, PAIR)
        try:
            file = bench.files[turn : turn + 1]
            answers.append(infer(found.node(NODE), file, MODEL, 2))
        finally:
            if found.network is not None:
                found.network.set(0, 0)
    return answers[1:]  # the first one warms up


def _delay(bench: Bench) -> None:
    for delay, most in _DELAYS:
        answers = _apart(bench, delay, 0)
        at_most = most if bench.given.size == 224 else None
        name = network_name(delay, 0)
        online = [answer.cost.online_seconds for answer in answers]
        bench.figure("delay", f"online, {name}", "s", online, at_most=at_most)
    online = [answer.cost.online_seconds for answer in _apart(bench, 0, 100)]
    bench.figure("delay", f"online, {network_name(0, 100)}", "s", online)


def _apart(
    bench: Bench,
    delay: float,
    mbit: float,
    repeats: int | None = None,
    *,
    warm: bool = True,
    **options: str,
) -> list[Answer]:
    """The lines to the dealer are as slow only where it takes part online. ``warm``: one more
    inference before those that count."""
    found = bench.apart
    online_dealer = options.get("protocol") == "securenn"
    bench.network.set(delay, mbit, MEMBERS if online_dealer else PAIR)
    try:
        if warm:
            infer(found.node(NODE), bench.files[:1], MODEL, 2, **options)
        return bench.times(found, repeats, **options)
    finally:
        bench.network.set(0, 0)


def _calibrated(bench: Bench) -> None:
    found = bench.loopback
    infer(found.node(NODE), bench.files[:1], MODEL, 2, accuracy="calibrated")
    answers = bench.times(found, accuracy="calibrated")
    costs = [answer.cost for answer in answers]
    most = 0.25 if bench.given.size == 224 else None
    material = {
        NODE: [cost.material_bytes / 1e9 for cost in costs],
        OWNER: [half / 1e9 for half in found.owners_halves(len(costs))],
    }
    for party, name in ((NODE, "data node"), (OWNER, "model owner")):
        title = f"material of the {name}"
        bench.figure("calibrated", title, "GB", material[party], at_most=most)
    bench.figure("calibrated", "online", "s", [cost.online_seconds for cost in costs])


def _securenn(bench: Bench) -> None:
    series = []
    for delay, mbit, least in ((0.0, 0.0, None), (10.0, 0.0, 70.0), (100.0, 0.0, 80.0)):
        repeats = min(3, bench.given.repeats) if delay < 100 else 1
        answers = _apart(bench, delay, mbit, repeats, protocol="securenn")
        online = [answer.cost.online_seconds for answer in answers]
        name = network_name(delay, mbit)
        bench.figure("securenn", f"online, {name}", "s", online)
        series.append([delay, mbit, float(np.median(online))])
        bench.report.keep("securenn", series)
        group = "delay" if delay else "loopback"
        label = f"online, {name}" if delay else "online, exact"
        ours = bench.report.find(group, label)
        if ours is not None:
            saved = 100 * (1 - ours / float(np.median(online)))
            title = f"FSS takes less, {name}"
            bench.figure("securenn", title, "%", [saved], at_least=least)


def _crypten(bench: Bench) -> None:
    folder = bench.folder / "crypten"
    data = bench.pictures.pixels(bench.spec, bench.pictures.files[:1])
    image = normalise(data.pixels, data.mean, data.std)
    crypten.save(folder, models.tensors(bench.module), image)
    plain = models.logits(bench.module, data)[0]
    scale = (bench.given.size / 224) ** 2
    series: list[list[float]] = []
    for (delay, mbit), seconds in _CRYPTEN_SECONDS.items():
        name = network_name(delay, mbit)
        needed = max(30.0, seconds * (scale if mbit else max(scale, delay / 120)))
        if needed > bench.left():
            reason = f"needs about {needed:.0f} s, the budget has {max(0, bench.left()):.0f} s left"
            _compute_crypten(bench, name, delay, mbit, series, reason)
            continue
        try:
            network = None
            if delay or mbit:
                network = bench.network
                network.set(delay, mbit)
            # Over a slow network minutes long: a first inference to warm up would tell nothing.
            warm = 0 if network else 1
            found = crypten.run(
                folder, network, repeats=1, warm=warm, hosts=PAIR, limit=3 * needed + 60
            )
        except PeerMissing as error:
            bench.missing("crypten", name, str(error))
            continue
        _report_crypten(bench, name, delay, mbit, found)
        if not series:
            difference = float(np.abs(found.logits - plain).max())
            bench.figure("crypten", "largest logit difference to the plain model", "", [difference])
            bench.figure("crypten", "rounds", "", [float(found.rounds)])
            bench.figure("crypten", "bytes of a party", "GB", [found.bytes / 1e9])
            bench.figure("crypten", "peak memory of a party", "GB", [found.peak_bytes / 1e9])
        series.append([delay, mbit, *found.seconds[-1:], found.rounds, found.bytes])
        bench.report.keep("crypten", series)


def _compute_crypten(
    bench: Bench, name: str, delay: float, mbit: float, series: list[list[float]], reason: str
) -> None:
    """What a row that is too slow to be waited for takes by its rounds and bytes."""
    counted = crypten_counted(series)
    if counted is None:
        bench.missing("crypten", name, reason)
        return
    seconds, note = counted.over(delay, mbit), f"{counted.told()}; measuring it {reason}"
    bench.figure("crypten", f"CrypTen as shipped, {name} (computed)", "s", [seconds], note=note)
    ours = bench.report.find("delay", f"online, {name}")
    if ours:
        ratio = [seconds / ours]
        bench.figure("crypten", f"times faster, {name} (computed)", "", ratio, note=note)


_FASTER = {(0, 0): 9, (10, 0): 17, (100, 0): 29, (0, 100): 40}


def _report_crypten(
    bench: Bench, name: str, delay: float, mbit: float, found: crypten.Measured
) -> None:
    seconds = list(found.seconds)
    note = f"after {found.prepare_seconds:.1f} s of encrypting the model"
    bench.figure("crypten", f"CrypTen as shipped, {name}", "s", seconds, note=note)
    slow = bool(delay or mbit)
    label = f"online, {name}" if slow else "online, exact"
    ours = bench.report.find("delay" if slow else "loopback", label)
    if ours:
        ratio = float(np.median(seconds)) / ours
        least = _FASTER[int(delay), int(mbit)] if bench.given.size == 224 else None
        bench.figure("crypten", f"times faster, {name}", "", [ratio], at_least=least)


def _agreement(bench: Bench) -> None:
    """A model trained for the purpose, so that its logits mean something."""
    pictures, given = bench.pictures, bench.given
    spec = ModelSpec(classes=pictures.classes, channels=3, image_size=given.size)
    module = models.trained(spec, pictures, given.train_size, given.train_seconds)
    found = bench.loopback
    bench.serve(found, "agreement", spec, module, calibrated=True)
    chosen = pictures.files[: given.images]
    plain = models.logits(module, pictures.pixels(spec, chosen))
    for accuracy in ("exact", "calibrated"):
        options = {"accuracy": accuracy}
        rows = [
            infer(
                found.node(NODE),
                [path for path, _ in chosen[at : at + 4]],
                "agreement",
                2,
                **options,
            ).scores
            for at in range(0, len(chosen), 4)
        ]
        scores = np.concatenate(rows)
        same = 100 * float(np.mean(scores.argmax(1) == plain.argmax(1)))
        note = f"{len(chosen)} {pictures.source}, trained for {given.train_seconds:.0f} s"
        more = (f"--images={given.images}",)
        bench.figure(
            "agreement", f"labels, {accuracy}", "%", [same], *more, at_least=99.5, note=note
        )
        largest = float(np.abs(scores - plain).max())
        name = f"largest logit difference, {accuracy}"
        bench.figure("agreement", name, "", [largest], *more, at_most=0.01)
    truth = np.array([label for _, label in chosen])
    right = 100 * float(np.mean(plain.argmax(1) == truth))
    bench.figure("agreement", "the plain model's accuracy", "%", [right])


def _breakdown(bench: Bench) -> None:
    """The line is the delay there and back; what remains of the wait is the model owner's work."""
    delay, found = float(bench.given.breakdown_delay), bench.apart
    bench.network.set(delay, 0, PAIR)
    try:
        said = found.run(NODE, "benchmarks.bed.breakdown", MODEL, str(bench.files[0]))
    finally:
        bench.network.set(0, 0)
    line = next(line for line in said.splitlines() if line.startswith("RESULT "))
    rows = [
        {
            "layer": step["layer"],
            "data node computes": step["node"],
            "model owner computes": max(0.0, step["answer"] - 2 * delay / 1000),
            "line": min(step["answer"], 2 * delay / 1000),
            "bytes": step["bytes"],
        }
        for step in json.loads(line.removeprefix("RESULT "))
    ]
    bench.report.keep("breakdown", rows)
    option = f"--breakdown-delay={delay:g}"
    for part in ("data node computes", "model owner computes", "line"):
        values = [sum(row[part] for row in rows)]
        note = f"{len(rows)} requests at {network_name(delay, 0)}"
        bench.figure("breakdown", part, "s", values, option, note=note)


def _sweep(bench: Bench) -> None:
    inference_sweep.sweep(bench, _apart)


_RUN: Mapping[str, Callable[[Bench], None]] = {
    "loopback": _loopback,
    "stocked": _stocked,
    "delay": _delay,
    "calibrated": _calibrated,
    "securenn": _securenn,
    "agreement": _agreement,
    "breakdown": _breakdown,
    "batch": inference_scaling.batches,
    "sides": inference_scaling.sides,
    "limit": inference_limit.limit,
    "crypten": _crypten,
    "sweep": _sweep,
}


if __name__ == "__main__":
    main()
