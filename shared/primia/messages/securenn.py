"""SecureNN's sessions: what the services say before their streams are open.

    data node   -> crypto provider   POST /assistances
    data node   -> model owner       POST /inference/streams
    model owner -> crypto provider   GET /assistances/{id}
    both        -> crypto provider   PUT and GET /assistances/{id}/stream
    data node   -> model owner       PUT and GET /inference/streams/{id}/stream

The streams themselves carry bytes (primia.mpc.securenn). A session lives in the memory of the
processes that serve it, and ends with its streams.
"""

from __future__ import annotations

from primia.messages.common import Digest, Id, Message, Name
from primia.messages.inference import Batch


class AssistanceRequest(Message):
    """POST /assistances: the crypto provider is to take part in one session of a plan."""

    plan: Id
    digest: Digest
    batch: Batch = 1


class Assistance(Message):
    """Streams of the plan's owner and of the node that asked are awaited."""

    id: Id
    plan: Id
    digest: Digest
    batch: Batch
    owner: Name
    node: Name


class StreamRequest(Message):
    """POST /inference/streams: ``assistance`` is the crypto provider's part of the session."""

    plan: Id
    digest: Digest
    assistance: Id
    batch: Batch = 1


class StreamSession(Message):
    id: Id
    plan: Id
    assistance: Id
    batch: Batch
