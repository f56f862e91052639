"""What noise costs in ε: Rényi differential privacy of the sampled Gaussian mechanism.

One step of DP-SGD (Abadi et al., CCS 2016) takes each image into the batch independently with
probability q, clips its gradient to norm C and adds normal noise of deviation σ C to the sum. Its
Rényi divergence at an integer order α is ln(A) / (α - 1) with

    A = Σ_k binomial(α, k) (1 - q)^(α - k) q^k exp((k² - k) / (2 σ²))

(Mironov, Talwar and Zhang, 2019, section 3.3). Divergences of steps and runs add up, and

    ε = min over α of  rdp(α) + ln((α - 1) / α) - (ln δ + ln α) / (α - 1)

(Canonne, Kamath and Steinke, 2020, proposition 12). Neighbouring data sets differ by one image.
Integer orders alone give at most a little more than Opacus' accountant where ε is small (the tests
compare), and never less.
Nothing here imports torch: the ledger is kept by web processes too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from primia.errors import InvalidInput
from primia.learning.config import TrainingConfig
from primia.learning.spec import Checked, ModelSpec

ORDERS: NDArray[np.int64] = np.concatenate(
    [np.arange(2, 65), np.array([80, 96, 128, 160, 192, 256, 384, 512, 1024])]
)
LARGEST_MULTIPLIER = 1000.0
Delta = Annotated[float, Field(gt=0, lt=0.1)]


class DpSgd(Checked):
    """Differentially private training at each site (learning.private): by a noise multiplier, or by
    the ε that the planned rounds are to cost each site."""

    clip_norm: Annotated[float, Field(gt=0, le=1e4)] = Field(
        default=1.0, description="largest L2 norm of one image's gradient"
    )
    noise_multiplier: Annotated[float, Field(ge=0.05, le=LARGEST_MULTIPLIER)] | None = Field(
        default=None, description="deviation of the noise, in clip norms"
    )
    epsilon: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        default=None, description="of the planned rounds, instead of a noise multiplier"
    )
    delta: Delta = Field(default=1e-5, description="for which epsilon is meant")

    @model_validator(mode="after")
    def _one_measure(self) -> Self:
        if (self.noise_multiplier is None) == (self.epsilon is None):
            raise ValueError("give either a noise multiplier or an epsilon")
        return self


def without_account(config: TrainingConfig) -> list[str]:
    """The settings that DP-SGD has no account of, where they are not at their defaults."""
    wrong = {
        "algorithm": config.algorithm != "fedavg",
        "mixup": config.mixup > 0,
        "proximal": config.proximal > 0,
        "clip_norm": config.clip_norm is not None,
        "local_stopping": config.local_stopping is not None,
        "precision": config.precision != "float32",
    }
    return [name for name, is_wrong in wrong.items() if is_wrong]


def check_settings(config: TrainingConfig) -> None:
    """Raises InvalidInput for what DP-SGD has no account of."""
    wrong = without_account(config)
    if wrong:
        raise InvalidInput(
            f"Differentially private training goes without {', '.join(wrong)}.",
            hint="Leave them at their defaults.",
        )


def check_norm(spec: ModelSpec) -> None:
    """Raises InvalidInput for a model with BatchNorm, which mixes the images of a batch, and for
    one that is trained by the sites' own code."""
    if spec.layout is not None:
        raise InvalidInput(
            "The sites train this model by code of their own: privacy has no account of that."
        )
    if spec.mixes_images:
        raise InvalidInput(
            f"{spec.architecture} with BatchNorm cannot be trained privately: it mixes the images "
            "of a batch, and its statistics are no updates that could be clipped.",
            hint="Register the model with norm 'group', or a program without BatchNorm.",
        )


class BatchTooLarge(InvalidInput):
    code = "batch-too-large"
    title = "A batch is larger than the site's training images"


class BudgetTooSmall(InvalidInput):
    code = "budget-too-small"
    title = "The ε asked for is too small for the run's steps"


class Release(NamedTuple):
    """``steps`` of the mechanism with noise multiplier σ and sampling rate q."""

    noise_multiplier: float
    sample_rate: float
    steps: int


def divergence(release: Release) -> NDArray[np.float64]:
    """Of all its steps, at each of ORDERS."""
    sigma, q, steps = release
    if q >= 1:
        return steps * ORDERS / (2 * sigma**2)
    return steps * np.array([_log_moment(int(order), q, sigma) for order in ORDERS]) / (ORDERS - 1)


def _log_moment(order: int, q: float, sigma: float) -> float:
    from scipy.special import gammaln, logsumexp  # services that count no ε need no SciPy

    k = np.arange(order + 1)
    binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    terms = binomial + k * math.log(q) + (order - k) * math.log1p(-q)
    return float(logsumexp(terms + (k * k - k) / (2 * sigma**2)))


def epsilon(releases: Iterable[Release], delta: float) -> float:
    """Of all of them together; 0 for none."""
    found = [divergence(release) for release in releases if release.steps]
    if not found:
        return 0.0
    total = np.sum(found, axis=0)  # (orders,)
    each = total + np.log1p(-1 / ORDERS) - (math.log(delta) + np.log(ORDERS)) / (ORDERS - 1)
    return max(0.0, float(each.min()))


def multiplier_for(target: float, delta: float, sample_rate: float, steps: int) -> float:
    """The least noise multiplier, within 0.1 %, with which so many steps cost at most ``target``.

    Raises BudgetTooSmall where no multiplier up to LARGEST_MULTIPLIER does.
    """
    low, high = 0.05, LARGEST_MULTIPLIER
    if epsilon([Release(high, sample_rate, steps)], delta) > target:
        raise BudgetTooSmall(
            f"An ε of {target:g} is too small for {steps} steps at a sampling rate of "
            f"{sample_rate:.3g}.",
            hint="Allow a larger ε, train for fewer steps, or use smaller batches.",
        )
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        if epsilon([Release(middle, sample_rate, steps)], delta) > target:
            low = middle
        else:
            high = middle
    return high


def sampling_limit(images: int, batch_size: int) -> int:
    """Of 2^32: with how many each image is in a batch, by itself. Raises BatchTooLarge."""
    if batch_size > images:
        raise BatchTooLarge(
            f"A batch of {batch_size} is larger than this site's {images} training images.",
            hint="Use smaller batches.",
        )
    return round(batch_size / images * 2**32)


def steps_a_round(images: int, config: TrainingConfig) -> int:
    """Batches of a round; an epoch has as many as its images fill."""
    if config.passes is None:
        return config.batches or 1
    return config.passes * math.ceil(images / config.batch_size)


def release_of_round(images: int, config: TrainingConfig, dp: DpSgd, planned: int) -> Release:
    """What one round costs a site with so many training images, with the noise that the settings
    say or that brings the ``planned`` rounds to their ε.

    Raises BatchTooLarge or BudgetTooSmall.
    """
    rate = sampling_limit(images, config.batch_size) / 2**32
    steps = steps_a_round(images, config)
    sigma = dp.noise_multiplier
    if sigma is None:
        assert dp.epsilon is not None  # one of the two is given
        sigma = multiplier_for(dp.epsilon, dp.delta, rate, steps * planned)
    return Release(sigma, rate, steps)
