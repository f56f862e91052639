"""The three roles of SecureNN in one process: what each hears, in bytes and in rounds."""

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from primia.mpc.securenn.assistant import Assistant
from primia.mpc.securenn.prepared import PreparedModel
from primia.mpc.securenn.ring64 import LinearMap64
from primia.mpc.securenn.roles import Client, Owner
from primia.mpc.securenn.wire import Begin, Receive, Send
from primia.prg import Seed


@dataclass
class Pipe:
    """One direction between two roles. ``log``: every message, as it went."""

    waiting: deque = field(default_factory=deque)
    log: list = field(default_factory=list)
    size: int = 0

    def put(self, data, clock):
        raw = np.ascontiguousarray(data).tobytes()
        self.log.append(np.array(data))
        self.size += len(raw)
        self.waiting.append((memoryview(raw), clock))

    def available(self):
        return sum(len(data) for data, _ in self.waiting)

    def take(self, size):
        """``size`` bytes, and the latest clock of the messages they came in."""
        parts, latest = [], 0
        while size:
            data, clock = self.waiting.popleft()
            latest = max(latest, clock)
            parts.append(data[:size])
            if len(data) > size:
                self.waiting.appendleft((data[size:], clock))
            size -= len(parts[-1])
        return memoryview(b"".join(parts)), latest


class Grid:
    """Runs talks side by side. ``clocks``: one-way delays until each role's present state, were
    all computing free (a message's clock is its sender's plus one). ``begun``: bytes that P1 had
    sent to P0 when each nonlinear step began."""

    def __init__(self):
        self.pipes = {(a, b): Pipe() for a in range(3) for b in range(3) if a != b}
        self.clocks = [0, 0, 0]
        self.begun = []

    @property
    def bytes(self):
        return {pair: pipe.size for pair, pipe in self.pipes.items()}

    def run(self, talks):
        """``talks``: role -> generator. Returns role -> result."""
        results, steps = {}, {}
        for role in talks:
            self._advance(role, talks, None, steps, results)
        while steps:
            ready = [role for role in steps if self._ready(role, steps[role])]
            assert ready, f"all wait: {steps}"
            for role in ready:
                step = steps.pop(role)
                data, clock = self.pipes[step.peer, role].take(step.size)
                self.clocks[role] = max(self.clocks[role], clock)
                self._advance(role, talks, data, steps, results)
        assert all(not pipe.waiting for pipe in self.pipes.values()), "all that is sent is read"
        return results

    def _ready(self, role, step):
        return self.pipes[step.peer, role].available() >= step.size

    def _advance(self, role, talks, answer, steps, results):
        try:
            step = talks[role].send(answer)
            while not isinstance(step, Receive):
                if isinstance(step, Begin) and role == 1:
                    self.begun.append(self.pipes[1, 0].size)
                if isinstance(step, Send):
                    self.pipes[role, step.peer].put(step.data, self.clocks[role] + 1)
                step = talks[role].send(memoryview(b""))
            steps[role] = step
        except StopIteration as end:
            results[role] = end.value


class Session:
    """A whole session: ``prepared`` and ``online`` are the bytes by pair, ``rounds`` from the image
    to the result."""

    def __init__(self, plan, weights, batch=1, mask=None, opening=None, linear_map=LinearMap64):
        mask = mask or Seed.fresh()
        self.model = PreparedModel(plan, weights, linear_map)
        self.owner = Owner(self.model, batch, mask)
        self.client = Client(plan, batch, opening, linear_map)
        self.assistant = Assistant(plan, batch, mask, linear_map)
        self.grid = Grid()

    def run(self, images):
        grid = self.grid
        roles = {0: self.owner, 1: self.client, 2: self.assistant}
        grid.run({number: role.prepare() for number, role in roles.items()})
        self.prepared = dict(grid.bytes)
        grid.clocks = [0, 0, 0]
        talks = {0: self.owner.run(), 1: self.client.run(images), 2: self.assistant.run()}
        result = grid.run(talks)[1]
        self.rounds = grid.clocks[1]
        self.online = {pair: size - self.prepared[pair] for pair, size in grid.bytes.items()}
        return result
