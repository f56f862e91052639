"""A data node, for its own institution's users: data sets, approvals, encrypted inference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from primia.chassis.identity import Identity
from primia.client.connection import Connection, wait_for
from primia.errors import InvalidInput
from primia.messages.inference import (
    Accuracy,
    InferenceList,
    InferenceResult,
    InferenceStatus,
    KeptList,
    Protocol,
    Result,
)
from primia.messages.programs import ProgramList, ProgramReport

_VALIDATE_SECONDS = 600.0


class DataNode(Connection):
    def __init__(self, identity: Identity, name: str, url: str) -> None:
        super().__init__(identity, name, url)

    def add_dataset(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """``name`` and ``path`` (a folder of class folders) or ``csv``; for segmentation
        ``path`` (a folder of images and masks) and ``task``; see POST /datasets."""
        answer = self.http.request("POST", "/datasets", content=_json(request), headers=_JSON)
        return dict(answer.json())

    def datasets(self) -> dict[str, Any]:
        return self.read("/datasets")

    def dataset(self, name: str) -> dict[str, Any]:
        return self.read(f"/datasets/{name}")

    def dataset_problems(self, name: str) -> dict[str, Any]:
        return self.read(f"/datasets/{name}/problems")

    def wait_dataset(self, name: str) -> dict[str, Any]:
        """Once every file has been looked at: ``ready`` or ``rejected``."""
        return wait_for(
            lambda: self.dataset(name),
            lambda found: found["state"] in ("ready", "rejected"),
            _VALIDATE_SECONDS,
            f"Validating {name}",
        )

    def remove_dataset(self, name: str) -> None:
        self.http.delete(f"/datasets/{name}")

    def runs(self, state: str | None = None) -> dict[str, Any]:
        """Newest first; of this state alone: ``pending`` ones are to be decided on."""
        params = {} if state is None else {"state": state}
        return dict(self.http.request("GET", "/runs", params=params).json())

    def run(self, run: str) -> dict[str, Any]:
        return self.read(f"/runs/{run}")

    def approve(self, run: str, dataset: str) -> None:
        body = _json({"dataset": dataset})
        self.http.request("POST", f"/runs/{run}/approve", content=body, headers=_JSON)

    def refuse(self, run: str, reason: str) -> None:
        body = _json({"reason": reason})
        self.http.request("POST", f"/runs/{run}/refuse", content=body, headers=_JSON)

    def withdraw(self, run: str, reason: str) -> None:
        """Leave a run that this site takes part in; what it has contributed stays in the sums."""
        body = _json({"reason": reason})
        self.http.request("POST", f"/runs/{run}/withdraw", content=body, headers=_JSON)

    def run_events(self, run: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """state, trained, round, evaluation and error, until the run ends here."""
        return self.events(f"/runs/{run}/events")

    def programs(self) -> ProgramList:
        return self.http.get("/programs", ProgramList)

    def program(self, digest: str) -> ProgramReport:
        """A program that a run has come with, described."""
        return self.http.get(f"/programs/{digest}", ProgramReport)

    def approve_program(self, digest: str) -> ProgramReport:
        """Let runs with this program, and no other, train here."""
        answer = self.http.request("POST", f"/programs/{digest}/approve")
        return self.http.parse(answer, ProgramReport)

    def revoke_program(self, digest: str) -> None:
        self.http.delete(f"/programs/{digest}")

    def privacy(self) -> dict[str, Any]:
        """The ledger: what training has cost, by owner and data set."""
        return self.read("/privacy")

    def infer(
        self,
        images: Sequence[Path],
        model: str,
        version: int | None = None,
        result: Result = "label",
        protocol: Protocol = "fss",
        accuracy: Accuracy = "exact",
    ) -> InferenceStatus:
        """Ask for an encrypted classification of image files; returns at once."""
        fields: dict[str, str] = {"model": model, "result": result}
        fields |= {"protocol": protocol, "accuracy": accuracy}
        if version is not None:
            fields["version"] = str(version)
        files = [("images", (path.name, _image(path))) for path in images]
        # httpx builds the multipart body; it is then sent as one piece.
        made = httpx.Request("POST", "http://node/", data=fields, files=files)
        headers = {"Content-Type": made.headers["Content-Type"]}
        answer = self.http.request("POST", "/inference", content=made.read(), headers=headers)
        return self.http.parse(answer, InferenceStatus)

    def kept(self) -> KeptList:
        """What is kept ahead of images, plan by plan."""
        return self.http.get("/inference/kept", KeptList)

    def inferences(self) -> InferenceList:
        return self.http.get("/inference", InferenceList)

    def inference(self, job: str) -> InferenceStatus:
        return self.http.get(f"/inference/{job}", InferenceStatus)

    def inference_events(self, job: str) -> Iterator[tuple[str, dict[str, Any]]]:
        return self.events(f"/inference/{job}/events")

    def wait_inference(self, job: str, seconds: float = 600) -> InferenceStatus:
        return wait_for(
            lambda: self.inference(job),
            lambda status: status.state in ("done", "failed", "cancelled"),
            seconds,
            "The inference",
        )

    def result(self, job: str) -> InferenceResult:
        return self.http.get(f"/inference/{job}/result", InferenceResult)


_JSON = {"Content-Type": "application/json"}


def _json(value: Mapping[str, Any]) -> bytes:
    return httpx.Request("POST", "http://node/", json=dict(value)).content


def _image(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read ({error.strerror}).") from error
