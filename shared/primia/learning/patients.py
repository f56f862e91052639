"""Which patient a file shows, read from its name.

Images of one patient resemble one another, so they stay together: at one site, and on one side of
a training/validation split.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from primia.errors import InvalidInput

# The names of the published paediatric radiographs: person7_virus_12.jpeg, IM-0115-0001.jpeg,
# NORMAL2-IM-0383-0001.jpeg.
KNOWN = (r"(person\d+)_", r"((?:NORMAL2-)?IM-\d+)-")
MAX_PATTERN_LENGTH = 200
MAX_PATIENT_LENGTH = 128


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A user's pattern: its first group is the patient. Raises InvalidInput."""
    if len(pattern) > MAX_PATTERN_LENGTH:
        raise InvalidInput(f"The patient pattern has more than {MAX_PATTERN_LENGTH} characters.")
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidInput(f"The patient pattern is no regular expression: {error}.") from None
    if compiled.groups < 1:
        raise InvalidInput(
            "The patient pattern has no group.",
            hint="Put the part of the name that is the patient into parentheses: (P[0-9]+)_.",
        )
    return compiled


def patient_of(path: str, pattern: re.Pattern[str] | None = None) -> str:
    """The patient of a relative POSIX path.

    The first group of the user's pattern, searched in the path; without one, of the known names;
    where nothing is found, the path without its suffix: every image a patient of its own.
    """
    pure = PurePosixPath(path)
    match = pattern.search(path) if pattern else _known(pure.name)
    if match and match.group(1):
        return match.group(1)[:MAX_PATIENT_LENGTH]
    return str(pure.with_suffix(""))[-MAX_PATIENT_LENGTH:]


def _known(name: str) -> re.Match[str] | None:
    matches = (re.match(known, name) for known in KNOWN)
    return next((match for match in matches if match), None)
