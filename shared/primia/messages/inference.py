"""Encrypted inference: what the three services say to each other, and to a data node's users.

    model owner -> crypto provider   PUT /plans/{plan}, GET /plans/{plan}/mask
    data node   -> model owner       GET /inference/models, …/plan, …/opening
    data node   -> crypto provider   POST /deals, GET /deals/{deal}, …/half, …/received
    data node   -> model owner       POST /inference/sessions, PUT …/{session}/offline,
                                     PUT …/{session}/steps/{n}
    model owner -> crypto provider   GET /deals/{deal}, …/half, …/received

A plan is known to the crypto provider under an identifier that the model owner draws for each
model version and result. It is not the plan's digest: two versions of one architecture may have
the same plan, and their weights must not be hidden by the same mask (E - E' would be W - W').
Halves, openings and steps travel as bytes (primia.mpc), never inside these messages.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, ConfigDict, Field, StringConstraints

from primia.messages.common import Base64Url, Digest, Id, Label, Message, ModelCard, Name

MAX_BATCH = 64
MAX_STOCK = 64
MAX_PLAN_BYTES = 1 << 20
MAX_SERVED = 1000
OCTETS = "application/octet-stream"
# The header of a forwarded step: the secret that the session host gave to the session's row.
SESSION_TOKEN_HEADER = "X-Primia-Session"  # noqa: S105 - the header's name, not a token

Result = Literal["scores", "label"]
# fss: the crypto provider deals beforehand. securenn: it takes part online (the baseline).
FixedProtocol = Literal["fss", "securenn"]
# auto: whichever is expected to be faster over the network as it is.
Protocol = Literal["fss", "securenn", "auto"]
# exact: comparisons over all that the ring holds. calibrated: over windows that the owner's images
# showed to suffice: less than half the material, a little less exact.
Accuracy = Literal["exact", "calibrated"]
Batch = Annotated[int, Field(ge=1, le=MAX_BATCH)]
Reason = Annotated[str, StringConstraints(max_length=2000)]


# -- model owner and crypto provider -----------------------------------------------------------


class PlanOffer(Message):
    """PUT /plans/{plan}. ``plan``: the canonical JSON of primia.mpc.plan, as text.

    ``stock``: how many deals of ``batch`` images the crypto provider keeps ahead of time; it deals
    other batches on demand.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"plan": '{"activation_bits":10, …}', "digest": 32 * "5a", "stock": 2, "batch": 1}
            ]
        }
    )

    plan: Annotated[str, StringConstraints(min_length=2, max_length=MAX_PLAN_BYTES)]
    digest: Digest
    stock: int = Field(default=0, ge=0, le=MAX_STOCK)
    batch: Batch = 1


class PlanStatus(Message):
    """What the crypto provider holds for a plan."""

    plan: Id
    digest: Digest
    owner: Name
    stock: int = Field(ge=0, le=MAX_STOCK)
    batch: Batch
    ready: int = Field(ge=0, description="deals in stock")
    dealing: int = Field(ge=0, description="deals being made")
    active: bool = True


class MaskSeed(Message):
    """The seed of the weight mask A, for the owner of the weights alone."""

    seed: Base64Url = Field(repr=False)


# -- either party and crypto provider ----------------------------------------------------------

DealState = Literal["dealing", "reserved", "spent", "failed"]


class DealRequest(Message):
    """POST /deals. ``digest`` must be the digest of the plan that the node has verified.

    ``ahead``: no image waits for it. Such deals have a quota of their own, and stand back.
    """

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"plan": 16 * "c3", "digest": 32 * "5a", "batch": 4}]}
    )

    plan: Id
    digest: Digest
    batch: Batch = 1
    ahead: bool = False


class Deal(Message):
    """One deal as one of its two parties sees it. ``bytes`` and the digests (of the two parts of a
    half, primia.mpc.material) are of that party's half, once it is ``reserved``; ``reason`` says
    why it failed or was spent."""

    id: Id
    plan: Id
    digest: Digest
    batch: Batch
    owner: Name
    node: Name
    party: Literal[0, 1]
    state: DealState
    bytes: int | None = Field(default=None, ge=0)
    own_sha256: Digest | None = None
    common_sha256: Digest | None = None
    expires: AwareDatetime | None = None
    reason: Reason = ""


# -- model owner: what is served ---------------------------------------------------------------


class Agreement(Message):
    """Of the compiled plan with the float model, on calibration images that calibrated nothing."""

    images: int = Field(ge=1)
    same_labels: float = Field(ge=0, le=1, description="share of the images")
    largest_difference: float = Field(ge=0, description="of a logit")


ServingState = Literal["queued", "compiling", "serving", "failed", "withdrawn"]


class ServeRequest(Message):
    """POST /models/{name}/versions/{version}/serve"""

    results: tuple[Result, ...] = Field(default=("scores", "label"), min_length=1, max_length=2)
    accuracies: tuple[Accuracy, ...] = Field(default=("exact",), min_length=1, max_length=2)
    stock: int = Field(default=1, ge=0, le=MAX_STOCK)
    batch: Batch = 1


class Serving(Message):
    """A model version compiled for one kind of result, as its owner's users see it."""

    plan: Id
    model: Name
    version: int = Field(ge=1)
    result: Result
    accuracy: Accuracy = "exact"
    agreement: Agreement | None = None
    state: ServingState
    stock: int = Field(ge=0, le=MAX_STOCK)
    batch: Batch
    digest: Digest | None = None
    reason: Reason = ""


class Servings(Message):
    servings: tuple[Serving, ...] = Field(max_length=MAX_SERVED)


class ServedPlan(Message):
    """What a data node needs to fetch and check the plan and the opening E = W - A."""

    plan: Id
    result: Result
    accuracy: Accuracy = "exact"
    agreement: Agreement | None = None
    digest: Digest
    opening_bytes: int = Field(ge=0)
    opening_sha256: Digest
    batch: Batch = Field(description="the batch of the deals kept in stock")
    largest_batch: int = Field(
        default=MAX_BATCH, ge=0, le=MAX_BATCH, description="that the owner has memory for"
    )


class ServedModel(Message):
    card: ModelCard
    plans: tuple[ServedPlan, ...] = Field(min_length=1, max_length=4)


class ServedModels(Message):
    """GET /inference/models: public data of what is served, newest version first."""

    models: tuple[ServedModel, ...] = Field(max_length=MAX_SERVED)


# -- model owner: sessions ---------------------------------------------------------------------

SessionState = Literal["keeping", "kept", "preparing", "ready", "done", "failed"]


class SessionRequest(Message):
    """POST /inference/sessions. ``ahead``: have the model owner fetch its half and keep it, until
    the session is asked for once more without this."""

    plan: Id
    digest: Digest
    deal: Id
    batch: Batch = 1
    ahead: bool = False


class Session(Message):
    """``keeping``: the model owner's half is being fetched ahead, ``kept``: it lies there until it
    ``expires``. ``offline``: the message that does not depend on the image has come ahead.
    ``done``: the last step was answered (a repeated last step still gets its answer until the
    session expires). ``failed``: it is gone with its deal; ``reason`` says why."""

    id: Id
    plan: Id
    deal: Id
    batch: Batch
    state: SessionState
    offline: bool = False
    expires: AwareDatetime | None = None
    reason: Reason = ""


# -- data node and its users -------------------------------------------------------------------

InferenceState = Literal["queued", "running", "done", "failed", "cancelled"]


class InferenceRequest(Message):
    """POST /inference with registered images; an upload carries the same fields as a form."""

    model: Name
    version: int | None = Field(
        default=None, ge=1, le=2**31 - 1, description="default: the newest served"
    )
    result: Result = "label"
    protocol: Protocol = "fss"
    accuracy: Accuracy = "exact"
    dataset: Name
    images: tuple[Annotated[str, StringConstraints(min_length=1, max_length=512)], ...] = Field(
        min_length=1, max_length=MAX_BATCH
    )


class Cost(Message):
    """Seconds and bytes (both directions) by part. material: the deal and this node's half;
    offline: the session and the message that does not depend on the image; online: the steps.
    securenn has no deal: material is the plan alone, bytes are those of both streams."""

    material_seconds: float = Field(default=0, ge=0)
    offline_seconds: float = Field(default=0, ge=0)
    online_seconds: float = Field(default=0, ge=0)
    material_bytes: int = Field(default=0, ge=0)
    offline_bytes: int = Field(default=0, ge=0)
    online_bytes: int = Field(default=0, ge=0)


class InferenceStatus(Message):
    """GET /inference/{id}"""

    id: Id
    model: Name
    version: int | None = Field(default=None, ge=1)
    result: Result
    protocol: FixedProtocol = "fss"
    accuracy: Accuracy = "exact"
    agreement: Agreement | None = None
    chosen: str = Field(default="", max_length=1000, description="why, where protocol was auto")
    images: tuple[str, ...] = Field(max_length=MAX_BATCH)
    state: InferenceState
    phase: str = Field(default="", max_length=32)
    step: int = Field(default=0, ge=0)
    steps: int = Field(default=0, ge=0)
    attempts: int = Field(default=0, ge=0)
    cost: Cost = Cost()
    reason: Reason = ""
    created: AwareDatetime
    finished: AwareDatetime | None = None


class InferenceList(Message):
    inferences: tuple[InferenceStatus, ...]


class KeptDeals(Message):
    """Of one plan. ``ready``: both halves and the offline message lie where they are needed;
    ``own``: this node's half alone; ``coming``: under way."""

    model: Name
    version: int = Field(ge=1)
    result: Result
    accuracy: Accuracy = "exact"
    batch: Batch
    ready: int = Field(ge=0)
    own: int = Field(ge=0)
    coming: int = Field(ge=0)


class KeptList(Message):
    """GET /inference/kept"""

    kept: tuple[KeptDeals, ...]


class Prediction(Message):
    """Of one image: ``scores`` are the logits in the order of the model's classes; with
    ``result: label`` this node never learns them."""

    image: str
    label: Label
    scores: dict[Label, float] | None = None


class InferenceResult(Message):
    """GET /inference/{id}/result"""

    id: Id
    model: Name
    version: int = Field(ge=1)
    predictions: tuple[Prediction, ...] = Field(max_length=MAX_BATCH)
