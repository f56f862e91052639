"""One round of secure aggregation among simulated sites: every message of the protocol is made and
checked, none crosses a network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from primia.aggregation import client, server
from primia.aggregation.quantise import exponents
from primia.aggregation.terms import Groups, RoundId, default_threshold
from primia.chassis.identity import Identity
from primia.errors import MalformedMessage
from primia.learning.layout import Vector
from primia.prg import Seed, fresh_bytes


def secure_mean(
    changes: Mapping[str, Vector], samples: Mapping[str, int], groups: Groups
) -> Vector:
    """The mean of the changes weighted by samples, float32 (groups.size,), within the quantisation
    step; all sites stay to the end."""
    names = sorted(changes)
    identities = {name: Identity.fresh(name) for name in names}
    round_id = RoundId(fresh_bytes(16), 1)

    def verify(node: str, message: bytes, signature: bytes) -> bool:
        try:
            identities[node].principal("data_node").verify(message, signature)
        except (KeyError, MalformedMessage):
            return False
        return True

    states, advertisements = {}, {}
    for name in names:
        states[name], advertisements[name] = client.advertise(
            Seed.fresh(),
            round_id=round_id,
            node=name,
            threshold=max(2, default_threshold(len(names))),
            samples=samples[name],
            groups=groups,
            exponents=exponents(changes[name], groups),
            sign=identities[name].sign,
        )
    sealed = {}
    for name in names:
        states[name], sealed[name] = client.share(states[name], advertisements, verify)
    total = np.zeros(groups.size, np.uint32)
    summing = server.RunningSum(groups.size, total)
    for name in names:
        inbox = server.inbox(sealed, name)
        states[name], masked = client.mask(states[name], inbox, changes[name])
        summing.add(masked)
    signatures, reveals = {}, {}
    for name in names:
        states[name], signatures[name] = client.confirm(states[name], names, identities[name].sign)
    for name in names:
        states[name], reveals[name] = client.reveal(states[name], names, signatures, verify)
    roster = server.Roster.of(advertisements, verify)
    outcome = server.Outcome.of(roster, names, names)
    opened = server.unmask(total, roster, sealed, outcome, reveals)
    return np.asarray(server.mean(opened, roster, outcome), np.float32)
