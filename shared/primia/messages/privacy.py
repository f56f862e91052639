"""What a run asks of its sites beside training: statistics, and privacy of its result."""

from __future__ import annotations

from pydantic import Field

from primia.learning.accounting import DpSgd
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


class PrivacySettings(Message):
    """Differential privacy of the run's result; each site's own limits stand above it."""

    dp_sgd: DpSgd | None = Field(
        default=None, description="noise in each site's training: private towards everybody"
    )
