"""What is fuzzed: every parser of bytes that another party sends, and the step endpoint.

A target takes any bytes. It returns, or raises what the project declares for wrong input
(``PrimiaError`` below status 500); anything else is a finding, and so is memory beyond the bound.
"""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from starlette.testclient import TestClient

from primia.aggregation.envelopes import Envelope, Holding
from primia.aggregation.terms import RoundId
from primia.aggregation.wire import Header, Kind, frame, parse_frame
from primia.codec import Reader, Writer
from primia.errors import MalformedMessage, PrimiaError
from primia.learning.calibration import pack, unpack
from primia.learning.images import decode
from primia.learning.layout import Layout, read_metadata, read_state, write_state
from primia.learning.programs.document import Program
from primia.learning.programs.network import Network
from primia.learning.programs.shapes import classes, cost
from primia.messages.inference import SESSION_TOKEN_HEADER, Deal, PlanOffer, ServedModels
from primia.messages.programs import ProgramDescription
from primia.messages.rounds import WORK_ITEM, Confirmation, Envelopes, Shares, TrainReport
from primia.mpc.compiled import CompiledModel
from primia.mpc.material import Half, Manifest
from primia.mpc.opening import parse_opening
from primia.mpc.plan import Plan
from primia.mpc.securenn.assistant import Assistant
from primia.mpc.securenn.driver import carry
from primia.mpc.securenn.prepared import PreparedModel
from primia.mpc.securenn.roles import Client, Owner
from primia.mpc.securenn.wire import ASSISTANT, CLIENT, OWNER
from primia.prg import Seed
from primia.sharing import Share
from services.model_owner.inference.host import SessionHost
from services.model_owner.inference.listener import create_listener
from tests.fuzz.routes import assistance_stream, owner_stream, public_step, start
from tests.fuzz.session import (
    ID,
    IMAGE,
    Said,
    change_a_step,
    check,
    fresh_session,
    path,
    plan,
    streamed,
    transcript,
)
from tests.support.inference import DEAL, weights_for
from tests.support.programs import own_program

Run = Callable[[bytes], object]

# Beside 64 bytes for each byte of input: for objects of the interpreter, tables, the test client.
MEMORY_BYTES = 24 << 20
MEMORY_FACTOR = 64
_NONSENSE = (bytes(64), b"\x01" + bytes(63), bytes([0xFF]) * 64)


@dataclass(frozen=True)
class Target:
    """``seeds``: sound inputs, of which fuzzers make unsound ones."""

    run: Run
    seeds: tuple[bytes, ...]
    prepare: Callable[[], object] = tuple  # once and not measured: services that are started


def _half(party: int) -> Run:
    return lambda data: Half.open(data, plan(), 1, party, DEAL)


def _number(number: int) -> bytes:
    return number.to_bytes(2, "little", signed=True)


def step_endpoint(data: bytes) -> None:
    """At the session host's listener."""
    ended: list[bool] = []
    host = SessionHost(4, 60, lambda _id, finished, _reason: ended.append(finished))
    headers = {SESSION_TOKEN_HEADER: host.open(ID, fresh_session().owner)}
    client = TestClient(create_listener(host, 1 << 16), raise_server_exceptions=True)

    def put(number: int, body: bytes) -> tuple[int, bytes]:
        answer = client.put(f"/sessions/{ID}/{path(number)}", content=body, headers=headers)
        return answer.status_code, answer.content

    change_a_step(data, put, ended)


def client_step(data: bytes) -> None:
    """Two bytes choose the answer that party 1 is given instead of the sound one."""
    number = int.from_bytes(data[:2], "little") % plan().requests
    session = fresh_session()
    session.prepare()
    request: bytes | None = session.client.first(IMAGE)
    for at in range(number):
        assert request is not None
        request = session.client.step(session.owner.step(at, request))
    session.client.step(data[2:])


def _role(number: int) -> Run:
    """A role of SecureNN whose two peers talk nonsense."""

    def run(data: bytes) -> None:
        half = len(data) // 2
        peers = [peer for peer in (OWNER, CLIENT, ASSISTANT) if peer != number]
        links = dict(zip(peers, (Said(data[:half]), Said(data[half:])), strict=True))
        mask, weights = Seed(bytes(16)), weights_for(plan(), 100)
        if number == OWNER:
            owner = Owner(PreparedModel(plan(), weights), 1, mask)
            carry(owner.prepare(), links)
            carry(owner.run(), links)
        elif number == CLIENT:
            client = Client(plan(), 1)
            carry(client.prepare(), links)
            carry(client.run(IMAGE), links)
        else:
            assistant = Assistant(plan(), 1, mask)
            carry(assistant.prepare(), links)
            carry(assistant.run(), links)

    return run


def reader(data: bytes) -> None:
    """The first byte says how the rest is read."""
    if not data:
        return
    source = Reader(data[1:])
    reads: tuple[Callable[[], object], ...] = (
        source.u8, source.u16, source.u32, source.u64,
        lambda: source.blob(1 << 10), lambda: source.text(1 << 10), lambda: source.raw(7),
        lambda: source.array("<u4", (3, 2)),
    )  # fmt: skip
    while True:
        reads[data[0] % len(reads)]()


def json_of(model: type) -> Run:
    def parse(data: bytes) -> None:
        try:
            model.model_validate_json(data)
        except ValidationError as error:
            raise MalformedMessage("declared") from error

    return parse


def work_item(data: bytes) -> None:
    try:
        WORK_ITEM.validate_json(data)
    except ValidationError as error:
        raise MalformedMessage("declared") from error


_ROUND = RoundId(bytes(16), 1)
_LAYOUT = Layout.of([("weight", (2, 3), "parameters"), ("mean", (3,), "buffers")])


def _update(kind: Kind) -> Target:
    header = Header(kind, _ROUND, 5)
    vector = np.arange(5, dtype=kind.dtype)
    sound = b"".join(bytes(piece) for piece in frame(header, vector))
    return Target(lambda data: parse_frame(data, header), (sound,))


def _compiled() -> bytes:
    return CompiledModel(plan(), weights_for(plan(), 100)).to_bytes()


def _text(document: object) -> bytes:
    return json.dumps(document).encode()


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(buffer, "PNG")
    return buffer.getvalue()


def _radiograph() -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    found = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    found.PatientID, found.PhotometricInterpretation = "4711", "MONOCHROME2"
    found.Rows = found.Columns = 16
    found.SamplesPerPixel, found.PixelRepresentation = 1, 0
    found.BitsAllocated, found.BitsStored, found.HighBit = 16, 12, 11
    found.PixelData = np.arange(256, dtype="<u2").tobytes()
    buffer = io.BytesIO()
    found.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def image(data: bytes) -> None:
    decode(data, 16, 1)


def program(data: bytes) -> None:
    """Parsed, followed and described, as a site does before anybody has approved it."""
    ProgramDescription.of(Program.parse(data))


def network(data: bytes) -> None:
    """A program whose sizes fit runs, and gives what was followed; torch computes no values."""
    try:
        found = Program.model_validate_json(data)
    except ValidationError as error:
        raise MalformedMessage("declared") from error
    cost(found)
    scores = classes(found)
    with torch.device("meta"):
        built = Network(found)
        check(built(torch.empty(2, *found.input)).shape == (2, scores), "other sizes")


@cache
def targets() -> MappingProxyType[str, Target]:
    session = fresh_session()
    messages = [(number, request) for number, request, _ in transcript()]
    answers = [answer for _, _, answer in transcript()[1:]]
    state = write_state(np.arange(9, dtype=np.float32), _LAYOUT)
    share = Share(1, 5)
    envelope = Envelope((bytes(32), bytes(32)), bytes(96))
    pixels = np.zeros((1, 1, 16, 16), np.uint8)
    return MappingProxyType(
        {
            "step_endpoint": Target(
                step_endpoint, tuple(_number(n + 1) + body for n, body in messages)
            ),
            "client_step": Target(
                client_step, tuple(_number(n) + body for n, body in enumerate(answers))
            ),
            "public_step": Target(
                public_step, tuple(_number(n + 1) + body for n, body in messages), start
            ),
            "owner_stream": Target(owner_stream, (streamed()[CLIENT, OWNER],), start),
            "assistance_stream": Target(assistance_stream, (streamed()[CLIENT, ASSISTANT],), start),
            "securenn_owner": Target(_role(OWNER), _NONSENSE),
            "securenn_client": Target(_role(CLIENT), _NONSENSE),
            "securenn_assistant": Target(_role(ASSISTANT), _NONSENSE),
            "half_0": Target(_half(0), (session.deal.half(0),)),
            "half_1": Target(_half(1), (session.deal.half(1),)),
            "manifest": Target(Manifest.parse, (session.deal.manifest.to_json(),)),
            "plan": Target(Plan.parse, (plan().to_json(),)),
            "opening": Target(lambda data: parse_opening(plan(), data), (session.opening,)),
            "compiled": Target(CompiledModel.from_bytes, (_compiled(),)),
            "codec": Target(
                reader,
                (b"\x04" + Writer().blob(b"abc").take(), b"\x05" + Writer().text("a").take()),
            ),
            "masked_update": _update(Kind.MASKED),
            "plain_update": _update(Kind.PLAIN),
            "envelope": Target(Envelope.parse, (envelope.to_bytes(),)),
            "holding": Target(Holding.from_bytes, (Holding(share, share).to_bytes(),)),
            "share": Target(Share.from_bytes, (share.to_bytes(),)),
            "state": Target(lambda data: read_state(data, _LAYOUT), (state,)),
            "state_metadata": Target(read_metadata, (state,)),
            "image": Target(image, (_picture(), _radiograph())),
            "calibration": Target(lambda data: unpack(data, (1, 16, 16)), (pack(pixels),)),
            "program": Target(program, (own_program()[0].text.encode(),)),
            "program_network": Target(network, (own_program()[0].text.encode(),)),
            "work_item": Target(work_item, (_text({"kind": "train", "run": "0" * 32}),)),
            "report": Target(json_of(TrainReport), (_text({"samples": 3, "loss": 0.5}),)),
            "envelopes": Target(json_of(Envelopes), (_text({"envelopes": {"a": "AA"}}),)),
            "confirmation": Target(json_of(Confirmation), (_text({"survivors": ["a"]}),)),
            "shares": Target(json_of(Shares), (_text({"shares": {"a": "AA"}}),)),
            "served_models": Target(json_of(ServedModels), (_text({"models": []}),)),
            "deal": Target(json_of(Deal), (_text({"id": "0" * 32}),)),
            "plan_offer": Target(json_of(PlanOffer), (_text({"plan": "{}", "stock": 1}),)),
        }
    )


def attempt(target: Target, data: bytes) -> None:
    """Run it; raises whatever is a finding."""
    target.prepare()
    tracemalloc.start()
    try:
        target.run(data)
    except PrimiaError as error:
        if error.status >= 500 and not isinstance(error, MalformedMessage):
            raise
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    bound = MEMORY_BYTES + MEMORY_FACTOR * len(data)
    check(peak <= bound, f"{peak} bytes of memory for {len(data)} of input")
