import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primia.errors import InvalidInput
from primia.learning.manifest import (
    DatasetManifest,
    Entry,
    MalformedManifest,
    partition,
    sample,
    split,
)


def _manifest(patients: list[tuple[str, int]]) -> DatasetManifest:
    """One patient after another: (label, number of images)."""
    entries = [
        Entry(f"{label}/p{number}_{image}.png", label, f"p{number}", f"{number:032x}{image:032x}")
        for number, (label, images) in enumerate(patients)
        for image in range(images)
    ]
    return DatasetManifest.of(entries)


LARGE = _manifest([("abc"[number % 3], 1 + number % 4) for number in range(120)])


def _patients(manifest: DatasetManifest) -> set[str]:
    return {entry.patient for entry in manifest.entries}


def test_counts_labels_and_order() -> None:
    manifest = _manifest([("b", 2), ("a", 1)])
    assert manifest.classes == ("a", "b")
    assert manifest.counts == {"a": 1, "b": 2}
    assert manifest.patients == 2
    assert len(manifest) == 3
    assert manifest.labels().tolist() == [0, 1, 1]
    assert manifest.labels(("b", "x", "a")).tolist() == [2, 0, 0]


def test_a_label_that_the_model_does_not_know_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"classes b\..*classes are: a, x"):
        _manifest([("b", 2), ("a", 1)]).labels(("a", "x"))


def test_json_and_digest() -> None:
    again = DatasetManifest.parse(LARGE.to_json())
    assert again == LARGE
    assert again.digest == LARGE.digest
    shuffled = DatasetManifest.of(reversed(LARGE.entries))
    assert shuffled.digest == LARGE.digest
    first = LARGE.entries[0]
    for change in ("path", "patient", "sha256"):
        values = {name: getattr(first, name) for name in ("path", "label", "patient", "sha256")}
        changed = Entry(**{**values, change: "other"})
        assert DatasetManifest.of([changed, *LARGE.entries[1:]]).digest != LARGE.digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"version":2,"classes":[],"entries":[]}',
        '{"version":1,"classes":["a"],"entries":[],"more":1}',
        '{"version":1,"classes":["a"],"entries":[{"path":"x"}]}',
        '{"version":1,"classes":["a"],"entries":[{"path":1,"label":"a","patient":"","sha256":""}]}',
        '{"version":1,"classes":["a"],"entries":[{"path":"","label":"b","patient":"","sha256":""}]}',
        '{"version":1,"classes":7,"entries":[]}',
    ],
)
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(MalformedManifest):
        DatasetManifest.parse(text)


def test_a_split_keeps_patients_whole_and_classes_in_proportion() -> None:
    training, validation = split(LARGE, 0.2, seed=1)
    assert not _patients(training) & _patients(validation)
    assert len(training) + len(validation) == len(LARGE)
    for label, images in LARGE.counts.items():
        assert abs(validation.counts[label] - 0.2 * images) <= 2
    assert validation.classes == LARGE.classes
    assert split(LARGE, 0.2, seed=1) == (training, validation)
    assert split(LARGE, 0.2, seed=2)[1] != validation


def test_a_split_of_nothing_and_of_single_patients() -> None:
    training, validation = split(LARGE, 0, seed=1)
    assert (len(training), len(validation)) == (len(LARGE), 0)
    training, validation = split(_manifest([("a", 5), ("b", 1), ("b", 1)]), 0.5, seed=0)
    assert validation.counts == {"a": 0, "b": 1}
    with pytest.raises(InvalidInput):
        split(LARGE, 1.0, seed=0)


def _mixed(patients: list[list[str]]) -> DatasetManifest:
    """One patient after another: the labels of its images."""
    entries = [
        Entry(f"p{number}_{image}.png", label, f"p{number}", f"{number:032x}{image:032x}")
        for number, labels in enumerate(patients)
        for image, label in enumerate(labels)
    ]
    return DatasetManifest.of(entries)


@pytest.mark.parametrize("seed", range(6))
def test_a_patient_with_the_last_images_of_a_class_is_trained_on(seed: int) -> None:
    manifest = _mixed([["a"] * 3, ["a"] * 3, ["a"] * 3, ["a", "a", "b"], ["a"] * 3])
    training, validation = split(manifest, 0.3, seed)
    assert training.counts["b"] == 1
    assert validation.counts["a"] > 0


@given(
    st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), min_size=1, max_size=12),
    st.floats(0.01, 0.9),
    st.integers(0, 2**53),
)
@settings(max_examples=200, deadline=None)
def test_every_class_keeps_images_to_train_on(
    patients: list[list[str]], share: float, seed: int
) -> None:
    manifest = _mixed(patients)
    training, validation = split(manifest, share, seed)
    assert not _patients(training) & _patients(validation)
    assert len(training) + len(validation) == len(manifest)
    assert all(training.counts.values())


def test_a_partition_that_leaves_a_site_without_a_class_is_refused() -> None:
    """Patients of ``a`` alone, two of which show ``b`` too."""
    manifest = _mixed([["a", "a", "b"], ["a", "a", "b"], *[["a"]] * 4])
    with pytest.raises(InvalidInput, match="Class 'b' has too few"):
        partition(manifest, 3, 0)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 6)), min_size=1, max_size=60),
    st.integers(1, 4),
    st.integers(0, 2**53),
)
@settings(max_examples=60, deadline=None)
def test_a_partition_is_disjoint_complete_and_even(
    patients: list[tuple[str, int]], sites: int, seed: int
) -> None:
    manifest = _manifest(patients)
    held = {label: [count for name, count in patients if name == label] for label in "abc"}
    if any(0 < len(counts) < sites for counts in held.values()):
        with pytest.raises(InvalidInput, match="too few"):
            partition(manifest, sites, seed)
        return
    parts = partition(manifest, sites, seed)
    assert sum(len(_patients(part)) for part in parts) == len(patients)
    assert set().union(*(_patients(part) for part in parts)) == _patients(manifest)
    for label in manifest.classes:
        share = [part.counts[label] for part in parts]
        assert max(share) - min(share) <= max(held[label])
        assert min(share) > 0


def test_a_partition_follows_the_seed() -> None:
    assert partition(LARGE, 3, 4) == partition(LARGE, 3, 4)
    assert partition(LARGE, 3, 4) != partition(LARGE, 3, 5)
    with pytest.raises(InvalidInput):
        partition(LARGE, 0, 1)


def test_a_sample_has_whole_patients_and_about_the_asked_size() -> None:
    few = sample(LARGE, 90, seed=3)
    assert abs(len(few) - 90) <= 6
    for patient in _patients(few):
        of = [entry for entry in LARGE.entries if entry.patient == patient]
        assert all(entry in few.entries for entry in of)
    shares = [few.counts[label] / LARGE.counts[label] for label in "abc"]
    assert max(shares) - min(shares) < 0.1
    assert sample(LARGE, 10_000, seed=3) is LARGE
    assert sample(LARGE, 90, seed=3) == few


def test_choices_are_frozen() -> None:
    """A change of the rule would move patients between the sites of a running federation."""
    parts = [*partition(LARGE, 3, 0), sample(LARGE, 90, 0), *split(LARGE, 0.2, 0)]
    assert [len(part) for part in parts] == [103, 99, 98, 91, 238, 62]
    names = json.dumps([sorted(_patients(part)) for part in parts])
    assert hashlib.sha256(names.encode()).hexdigest()[:16] == "fe493a1ae6bc5646"
