"""The Python SDK: the REST interfaces of a model owner and of a data node, for their users.

    from primia.client import ModelOwner, DataNode
    owner = ModelOwner(Identity.load(key, "alice"), "model-owner", "https://models.example.org")
    run = owner.start_run(RunRequest(model="chest", nodes=("a", "b"), rounds=3))
    for event in owner.run_events(run.id): ...

Every call raises ``primia.errors.PeerRefused`` with the service's problem document, or
``PeerUnavailable``.
"""

from primia.client.node import DataNode
from primia.client.owner import ModelOwner

__all__ = ["DataNode", "ModelOwner"]
