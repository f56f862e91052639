"""The case study: what each way of training is worth on real radiographs of children.

python -m benchmarks.case_study --data FOLDER [--rounds 10] [--seeds 0] [--gpu] ...
Sites share no patient; every training starts from the same weights and has the same settings:
pooled, each site alone, federated plain and secure, and secure with differential privacy. Prints
tables, writes benchmarks/results/case_study.json and PNG plots. What has been trained is kept in
benchmarks/results/case_study/ and not trained again with the same settings.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args

from benchmarks.bed import trained
from benchmarks.bed.report import RESULTS, Report, end_on_signal
from primia.cli.simulate import document, epsilons, plan_of, tables
from primia.evaluation.plots import diagonal, matrix
from primia.learning import synthetic
from primia.learning.spec import ModelSpec
from primia.simulation import sites as places
from primia.simulation.comparing import Comparison, Outcome, Pair, Progress, Trial, pair, trials
from primia.simulation.modes import Mode

# Descending to nothing makes the last models differ least by what rounding makes of training.
SCHEDULE = (
    "training.schedule.kind=cosine",
    "training.schedule.warm_up=0.1",
    "training.schedule.final=0.001",
)
GPU = {"image_size": 224, "rounds": 40}
DRAWN = {"image_size": 32, "rounds": 2, "images": 240}
PLAIN, SECURE = "federated, plain", "federated, secure"


def main() -> None:
    given = arguments()
    end_on_signal()
    report = Report("case_study", "benchmarks.case_study")
    with tempfile.TemporaryDirectory(prefix="primia-bench-") as folder:
        data = given.data or drawn(Path(folder), report)
        setting, groups = study(given, data)
        outcomes: list[Outcome] = []
        pairs: list[Pair] = []
        for seed, todo in groups.items():
            found = {each.name: each for each in kept(report, setting, todo, seed, len(groups))}
            outcomes += found.values()
            pairs += compared(found, setting, seed, len(groups))
    comparison = Comparison(tuple(outcomes), tuple(pairs))
    report.keep("configuration", {k: str(v) for k, v in vars(given).items()})
    report.keep("comparison", document(comparison))
    report.console.print(tables(comparison))
    plot(comparison, report)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="class folders, or train/ and test/ with such")
    parser.add_argument("--architecture", default="resnet18")
    parser.add_argument("--image-size", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--images", type=int, default=0, help="about so many; 0: all")
    parser.add_argument("--modes", default=",".join(("pooled", "local", "plain", "secure")))
    parser.add_argument("--epsilon", default="8,2", help="secure with differential privacy, too")
    parser.add_argument("--seeds", default="0", help="of weights and batches; the sites stay")
    parser.add_argument("--set", action="append", default=[], metavar="training.PATH=VALUE")
    parser.add_argument("--gpu", action="store_true", help=f"the settings for a GPU: {GPU}")
    given = parser.parse_args()
    given.modes = [each for each in given.modes.split(",") if each]
    wrong = sorted(set(given.modes) - set(get_args(Mode)))
    if wrong:
        parser.error(f"there is no mode {wrong[0]!r}: {', '.join(get_args(Mode))}")
    vars(given).update(GPU if given.gpu else {})
    vars(given).update(DRAWN if given.data is None else {})
    return given


def drawn(folder: Path, report: Report) -> Path:
    report.say("No --data: a small study of images that this program draws; it says nothing.")
    synthetic.draw_dataset(folder, DRAWN["images"], 40, 0, 64)
    return folder


def study(given: argparse.Namespace, data: Path) -> tuple[places.Setting, dict[int, list[Trial]]]:
    """The sites, and the trainings of each seed."""
    root = data / "train" if (data / "train").is_dir() else data
    classes = places.listed(root).classes
    groups, setting = {}, None
    for seed in (int(each) for each in given.seeds.split(",")):
        plan = plan_of(given.rounds, given.image_size, seed, [*SCHEDULE, *given.set])
        spec = ModelSpec.parse(
            {
                "architecture": given.architecture,
                "classes": classes,
                "image_size": given.image_size,
                "seed": seed,
            }
        )
        if setting is None:
            wanted = places.Wanted(3, given.images, plan.training.validation_fraction)
            setting = places.load(data, spec, wanted)
        modes = [mode for mode in get_args(Mode) if mode in given.modes]
        seeded = places.Setting(spec, setting.sites, setting.test)
        groups[seed] = trials(seeded, plan, modes, epsilons(given.epsilon))
    assert setting is not None
    return setting, groups


def kept(
    report: Report, setting: places.Setting, todo: list[Trial], seed: int, seeds: int
) -> Iterator[Outcome]:
    for trial in todo:
        report.say(f"{trial.name}, seed {seed}")
        found = trained.outcome(RESULTS / "case_study", setting, trial, told(report))
        yield named(found, trial.name, seed, seeds)


def told(report: Report) -> Progress:
    return lambda _name, done, of: report.say(f"  round {done} of {of}")


def named(found: Outcome, name: str, seed: int, seeds: int) -> Outcome:
    shown = name if seeds == 1 else f"{name} [{seed}]"
    return Outcome(shown, found.images, found.seconds, found.figures, found.predicted)


def compared(
    found: Mapping[str, Outcome], setting: places.Setting, seed: int, seeds: int
) -> list[Pair]:
    """Plain against secure; secure against all others."""
    suffix = "" if seeds == 1 else f" [{seed}]"
    secure = found.get(SECURE + suffix)
    if secure is None:
        return []
    others = [each for name, each in found.items() if each is not secure]
    others.sort(key=lambda each: not each.name.startswith(PLAIN))
    return [pair(each, secure, setting.test.labels) for each in others]


def plot(comparison: Comparison, report: Report) -> None:
    for label in [each.label for each in comparison.outcomes[0].figures.classes]:
        lines = {
            outcome.name: next(c.roc for c in outcome.figures.classes if c.label == label)
            for outcome in comparison.outcomes
        }
        write(f"roc-{label}", diagonal(lines, "1 - specificity", "sensitivity"), report)
    for outcome in comparison.outcomes:
        labels = [each.label for each in outcome.figures.classes]
        cells = [list(map(float, row)) for row in outcome.figures.confusion]
        picture = matrix(cells, labels, labels, "true class", "predicted class", "{:.0f}")
        write(f"confusion-{trained.slug(outcome.name)}", picture, report)


def write(name: str, picture: bytes, report: Report) -> None:
    path = RESULTS / f"case-study-{name}.png"
    path.write_bytes(picture)
    report.say(f"Written to {path}")


if __name__ == "__main__":
    main()
