"""What a run asks of its sites beside training: statistics, and privacy of its result."""

from __future__ import annotations

from pydantic import Field

from primia.learning.accounting import Delta, DpSgd, Release, epsilon
from primia.messages.common import Message


class StatisticsSettings(Message):
    """Statistics of all sites' training images (learning.statistics), summed securely before the
    first round, also in a run whose updates are not."""

    normalise: bool = Field(
        default=False,
        description="normalise by the measured mean and deviation of each channel, in training and "
        "whenever the trained model is used",
    )
    class_weights: bool = Field(
        default=False, description="let each class weigh the same in the loss"
    )

    @property
    def wanted(self) -> bool:
        return self.normalise or self.class_weights


class CentralPrivacy(Message):
    """Noise inside the masked sum: private towards the owner and whoever gets the model, each site
    as a whole (aggregation.central). All sites weigh the same. It covers the opened sums alone, not
    sample counts; a site tells no scores and gives no statistics beside it."""

    clip_norm: float = Field(gt=0, le=1e6, description="largest L2 norm of a site's update")
    noise_multiplier: float = Field(
        ge=0.05, le=100, description="deviation of the sum's noise, in one site's largest part"
    )
    delta: Delta = Field(default=1e-5, description="for which the run's ε is stated")

    def epsilon(self, rounds: int) -> float:
        """Of so many opened rounds, towards an owner that no site helps."""
        return epsilon([Release(self.noise_multiplier, 1.0, rounds)], self.delta)


class PrivacySettings(Message):
    """Differential privacy of the run's result; each site's own limits stand above it."""

    dp_sgd: DpSgd | None = Field(
        default=None, description="noise in each site's training: private towards everybody"
    )
    central: CentralPrivacy | None = Field(
        default=None, description="noise in the masked sum: each site's part of it is hidden"
    )
