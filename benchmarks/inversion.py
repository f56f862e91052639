"""Gradient inversion: what images an owner gets back from updates, sums and private updates.

python -m benchmarks.inversion [--data FOLDER] [--images 24] [--iterations 400] [--architecture …]
The updates are made by the code that sites run. Prints a table, writes
benchmarks/results/inversion-ARCHITECTURE.json and a PNG of originals and reconstructions.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.bed.attacks import Attacked, Owner, cases, unit
from benchmarks.bed.report import Report, end_on_signal
from primia.cli import output
from primia.cli.simulate import epsilons
from primia.evaluation.attacks.inversion import Search
from primia.evaluation.plots import pictures
from primia.learning import synthetic
from primia.learning.spec import WITHOUT_NORM, ModelSpec
from primia.simulation import features
from primia.simulation import sites as places
from primia.simulation.invertible import invertible
from primia.simulation.likeness import frechet_distance, likeness

ARCHITECTURES = ("invertible", "lenet", "small_cnn", "resnet18")
DRAWN_IMAGES, DRAWN_PATIENTS = 120, 60  # a class
FEATURE_EPOCHS = 10
SHOWN_IMAGES = 8


def main() -> None:
    given = arguments()
    end_on_signal()
    torch.set_num_threads(given.threads)
    report = Report(f"inversion-{given.architecture}", "benchmarks.inversion")
    report.keep("configuration", {k: str(v) for k, v in vars(given).items()})
    with tempfile.TemporaryDirectory(prefix="primia-bench-") as folder:
        data = given.data or drawn(Path(folder), report)
        setting = load(data, given)
    measure = Measured(report, kind(given, setting))
    owner = Owner(setting.spec, setting.test, given.start)
    search = Search(given.iterations, given.restarts, seed=given.seed)
    for case in cases(given.batch, epsilons(given.epsilon)):
        started = time.perf_counter()
        found = owner.attack(case, setting, given.images, search)
        measure.add(case.name, found)
        report.say(f"{case.name}: {time.perf_counter() - started:.0f} s")
    baselines(measure, owner, owner.guessed(setting, given.images, given.batch))
    measure.show()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="class folders, or train/ and test/ with such")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="invertible")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=24, help="attacked, in every row")
    parser.add_argument("--batch", type=int, default=8, help="images of a site in a step")
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--restarts", type=int, default=1)
    parser.add_argument("--epsilon", default="8,2", help="of one step with differential privacy")
    parser.add_argument(
        "--start", choices=("grey", "mean"), default="grey", help="mean: of its own"
    )
    parser.add_argument("--inception", type=Path, help="torchvision's weights, for the distance")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="small tensors gain nothing by more")
    given = parser.parse_args()
    if given.batch < 2 or given.batch % 2:
        parser.error("--batch is an even number")
    if given.images < 1 or given.images % (3 * given.batch):
        parser.error(f"--images is a multiple of three sites' batches, {3 * given.batch}")
    return given


def drawn(folder: Path, report: Report) -> Path:
    report.say("No --data: images that this program draws itself.")
    synthetic.draw_dataset(folder, DRAWN_IMAGES, DRAWN_PATIENTS, 0, 64)
    return folder


def load(data: Path, given: argparse.Namespace) -> places.Setting:
    """Three sites, and as ``test`` the owner's own images, of other patients."""
    classes = places.listed(data / "train" if (data / "train").is_dir() else data).classes
    spec = model(classes, given)
    setting = places.load(data, spec, places.Wanted(3, 6 * given.images, 0.0))
    fewest = min(len(site.training) for site in setting.sites)
    if fewest < given.images // 3:
        raise SystemExit(f"A site has {fewest} images: --images is at most {3 * fewest}.")
    return setting


def model(classes: tuple[str, ...], given: argparse.Namespace) -> ModelSpec:
    """With GroupNorm where there are norms, as differential privacy needs it: every row attacks the
    same network."""
    if given.architecture == "invertible":
        return invertible(classes, given.image_size, seed=given.seed)
    return ModelSpec.parse(
        {
            "architecture": given.architecture,
            "classes": classes,
            "image_size": given.image_size,
            "norm": "batch" if given.architecture in WITHOUT_NORM else "group",
            "seed": given.seed,
        }
    )


def kind(given: argparse.Namespace, setting: places.Setting) -> features.Features:
    if given.inception:
        return features.inception(given.inception)
    return features.trained(setting.test, setting.spec, FEATURE_EPOCHS)


class Measured:
    """The rows of the table, and of the picture."""

    def __init__(self, report: Report, kind: features.Features) -> None:
        self.report, self.kind = report, kind
        self.rows: list[dict[str, Any]] = []
        self.pictures: dict[str, list[np.ndarray]] = {}
        self.true: Tensor | None = None
        report.keep("features", kind.name)

    def add(self, name: str, found: Attacked) -> None:
        alike = likeness(found.true, found.found)
        row = {
            "case": name,
            "images": len(found.true),
            "mse": float(np.mean(alike.mse)),
            "psnr": float(np.mean(alike.psnr)),
            "ssim": float(np.mean(alike.ssim)),
            "best_ssim": float(np.max(alike.ssim)),
            "frechet": frechet_distance(found.true, found.found, self.kind.module),
            "labels": found.labels,
            "distance": found.distance,
            "each": asdict(alike),
        }
        self.rows.append(row)
        if self.true is None:
            self.true = found.true
            self.pictures["original"] = thumbnails(found.true)
        self.pictures[name] = thumbnails(found.found)
        self.report.keep("cases", self.rows)

    def show(self) -> None:
        columns = ("case", "MSE", "PSNR, dB", "SSIM", "best SSIM", "Fréchet", "classes told")
        lines = [
            (
                row["case"], f"{row['mse']:.5f}", f"{row['psnr']:.1f}", f"{row['ssim']:.3f}",
                f"{row['best_ssim']:.3f}", f"{row['frechet']:.3g}",
                "" if row["labels"] is None else f"{row['labels']:.0%}",
            )
            for row in self.rows
        ]  # fmt: skip
        title = f"{self.rows[0]['images']} images a row; Fréchet distance: {self.kind.name}"
        self.report.console.print(output.rows(title, columns, lines))
        path = self.report.path.with_suffix(".png")
        path.write_bytes(pictures(self.pictures))
        self.report.say(f"Written to {self.report.path} and {path}")


def baselines(measure: Measured, owner: Owner, guessed: float) -> None:
    """What somebody has who saw no gradient; ``guessed``: the share of the classes of a batch."""
    assert measure.true is not None
    true, own = measure.true, unit(owner.own)
    noise = torch.empty_like(true).uniform_(generator=torch.Generator().manual_seed(0))
    found = {
        "nothing seen: mean of own images": owner.mean.expand(len(true), -1, -1, -1),
        "nothing seen: other images": own[np.arange(len(true)) * len(own) // len(true)],
        "nothing seen: noise": noise,
    }
    for name, images in found.items():
        measure.add(name, Attacked(true, images, guessed))


def thumbnails(images: Tensor) -> list[np.ndarray]:
    return [image.mean(dim=0).numpy() for image in images[:SHOWN_IMAGES]]


if __name__ == "__main__":
    main()
