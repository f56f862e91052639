import pytest

from primia.errors import InvalidInput
from primia.learning.patients import compile_pattern, patient_of


@pytest.mark.parametrize(
    ("path", "patient"),
    [
        ("viral/person7_virus_12.jpeg", "person7"),
        ("bacterial/person1000_bacteria_2931.jpeg", "person1000"),
        ("normal/IM-0115-0001.jpeg", "IM-0115"),
        ("normal/IM-0620-0001-0002.jpeg", "IM-0620"),
        ("normal/NORMAL2-IM-0383-0001.jpeg", "NORMAL2-IM-0383"),
        ("normal/scan_12.png", "normal/scan_12"),
        ("a.b/x.y.png", "a.b/x.y"),
    ],
)
def test_known_names_and_others(path: str, patient: str) -> None:
    assert patient_of(path) == patient


def test_a_users_pattern_is_searched_in_the_path() -> None:
    pattern = compile_pattern(r"/(P\d+)/")
    assert patient_of("normal/P12/front.png", pattern) == "P12"
    assert patient_of("normal/front.png", pattern) == "normal/front"


@pytest.mark.parametrize("pattern", ["(", "P[0-9]+", "(" + "a" * 300 + ")"])
def test_a_pattern_that_cannot_name_a_patient_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidInput, match="pattern"):
        compile_pattern(pattern)
