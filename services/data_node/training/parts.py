"""Which of a site's images a run trains on, validates on and tests on; without torch."""

from __future__ import annotations

from primia.learning.manifest import DatasetManifest, split
from primia.messages.rounds import Proposal

# The same images validate and test every run of a data set with the same fractions, whatever its
# seed.
_SPLIT_SEED = 0
_TEST_SPLIT_SEED = 1

Split = tuple[DatasetManifest, DatasetManifest, DatasetManifest]


def split_for(proposal: Proposal, manifest: DatasetManifest) -> Split:
    """(training, validation, test), disjoint by patient, with the model's classes in their order.
    The test images are set apart first: they are the same whatever share is validated on."""
    classes = proposal.model.classes
    if manifest.segments:  # their classes are numbers
        classes = tuple(str(number) for number in range(len(classes)))
    ordered = DatasetManifest.of(manifest.entries, classes)
    settings = proposal.training
    rest, test = split(ordered, settings.test_fraction, _TEST_SPLIT_SEED)
    training, validation = split(rest, settings.validation_fraction, _SPLIT_SEED)
    return training, validation, test
