"""The log of one process: a JSON object a line, however many threads and loggers write it."""

from __future__ import annotations

import json
import subprocess
import sys

CHATTER = """
import logging, threading
from primia.chassis.telemetry import configure_logging, get_logger
configure_logging("owner", "INFO")
ours, theirs = get_logger("ours"), logging.getLogger("theirs")
def talk(say):
    for number in range(300):
        say("word " * 40)
threads = [threading.Thread(target=talk, args=(say,)) for say in (ours.info, theirs.info) * 2]
[t.start() for t in threads]
[t.join() for t in threads]
"""


def test_lines_of_threads_and_of_both_kinds_of_loggers_do_not_mix():
    done = subprocess.run([sys.executable, "-c", CHATTER], capture_output=True, check=True)
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1200
    assert {json.loads(line)["service"] for line in lines} == {"owner"}
