"""A model owner, for its own users: models, training runs, what is served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from primia.chassis.identity import Identity
from primia.client.connection import Connection, wait_for
from primia.errors import Unavailable
from primia.learning.layout import write_state
from primia.messages.inference import ServeRequest, Servings
from primia.messages.registry import (
    ModelList,
    ModelReport,
    NewModel,
    NewNode,
    NodeList,
    NodeReport,
    VersionReport,
)
from primia.messages.rounds import RunRequest
from primia.messages.runs import RunDocument, RunPage, RunReport, RunSummary
from primia.messages.studies import (
    MoreTrials,
    StudyList,
    StudyReport,
    StudyRequest,
    StudySummary,
)

_PREPARE_SECONDS = 300.0
_UPLOAD_SECONDS = 600.0


class ModelOwner(Connection):
    def __init__(self, identity: Identity, name: str, url: str) -> None:
        super().__init__(identity, name, url)

    def models(self) -> ModelList:
        return self.http.get("/models", ModelList)

    def model(self, name: str) -> ModelReport:
        return self.http.get(f"/models/{name}", ModelReport)

    def create_model(self, model: NewModel) -> VersionReport:
        return self.http.parse(self.http.post("/models", model), VersionReport)

    def version(self, model: str, version: int) -> VersionReport:
        return self.http.get(f"/models/{model}/versions/{version}", VersionReport)

    def wait_version(self, model: str, version: int) -> VersionReport:
        """Once it is ready; raises Unavailable with the reason if it failed."""
        found = wait_for(
            lambda: self.version(model, version),
            lambda report: report.state != "preparing",
            _PREPARE_SECONDS,
            f"Preparing {model} version {version}",
        )
        if found.state == "failed":
            raise Unavailable(f"{model} version {version} could not be prepared: {found.reason}")
        return found

    def weights(self, model: str, version: int, target: Path) -> None:
        """Download the weights (safetensors)."""
        report = self.version(model, version)
        path = f"/models/{model}/versions/{version}/weights"
        self.http.download(path, target, report.bytes or 0)

    def upload(self, model: str, data: bytes, parent: int | None = None) -> VersionReport:
        """A new version with these weights (safetensors); it is checked in the background."""
        params = {} if parent is None else {"parent": parent}
        path = f"/models/{model}/versions"
        answer = self.http.request(
            "POST", path, content=data, params=params, timeout=_UPLOAD_SECONDS
        )
        return self.http.parse(answer, VersionReport)

    def import_weights(self, model: str, file: Path) -> VersionReport:
        """A new version with weights under torchvision's names (.pth, safetensors); the last layer
        keeps the model's own unless it has as many classes. Needs torch."""
        from primia.learning.models import spec_layout  # torch takes seconds to load
        from primia.learning.pretrained import adapt, read_file

        spec = self.model(model).spec
        data = write_state(adapt(read_file(file), spec), spec_layout(spec))
        return self.upload(model, data, parent=1)

    def calibrate(self, model: str, version: int, data: bytes) -> None:
        """Images for measuring the version's values (``learning.calibration.pack``)."""
        path = f"/models/{model}/versions/{version}/calibration"
        self.http.request("PUT", path, content=data, timeout=_UPLOAD_SECONDS)

    def nodes(self) -> NodeList:
        return self.http.get("/nodes", NodeList)

    def enrol_node(self, node: NewNode) -> NodeReport:
        """Under the key that its operator has handed over; the same again changes nothing."""
        return self.http.parse(self.http.post("/nodes", node), NodeReport)

    def remove_node(self, name: str) -> None:
        """Its requests are refused from now on; not while it takes part in a run."""
        self.http.delete(f"/nodes/{name}")

    def start_run(self, request: RunRequest) -> RunSummary:
        return self.http.parse(self.http.post("/rounds", request), RunSummary)

    def runs(self) -> RunPage:
        return self.http.get("/rounds", RunPage)

    def run(self, run: str) -> RunReport:
        return self.http.get(f"/rounds/{run}", RunReport)

    def report(self, run: str) -> RunDocument:
        return self.http.get(f"/rounds/{run}/report", RunDocument)

    def report_page(self, run: str) -> str:
        """HTML, complete in itself."""
        return self.http.request("GET", f"/rounds/{run}/report.html").text

    def cancel_run(self, run: str) -> None:
        self.http.delete(f"/rounds/{run}")

    def run_events(self, run: str) -> Iterator[tuple[str, dict[str, Any]]]:
        return self.events(f"/rounds/{run}/events")

    def start_study(self, request: StudyRequest) -> StudySummary:
        return self.http.parse(self.http.post("/studies", request), StudySummary)

    def studies(self) -> StudyList:
        return self.http.get("/studies", StudyList)

    def study(self, study: str) -> StudyReport:
        return self.http.get(f"/studies/{study}", StudyReport)

    def extend_study(self, study: str, trials: int) -> StudySummary:
        answer = self.http.post(f"/studies/{study}/trials", MoreTrials(trials=trials))
        return self.http.parse(answer, StudySummary)

    def cancel_study(self, study: str) -> None:
        self.http.delete(f"/studies/{study}")

    def study_plot(self, study: str, kind: str) -> bytes:
        """PNG: ``history`` or ``importance``"""
        return self.http.request("GET", f"/studies/{study}/plots/{kind}.png").content

    def serve(self, model: str, version: int, request: ServeRequest) -> Servings:
        answer = self.http.post(f"/models/{model}/versions/{version}/serve", request)
        return self.http.parse(answer, Servings)

    def servings(self, model: str, version: int) -> Servings:
        return self.http.get(f"/models/{model}/versions/{version}/serve", Servings)

    def wait_served(self, model: str, version: int) -> Servings:
        """Once every kind of result is served; raises Unavailable with the reason if one failed."""
        found = wait_for(
            lambda: self.servings(model, version),
            lambda s: all(each.state in ("serving", "failed") for each in s.servings),
            _PREPARE_SECONDS,
            f"Compiling {model} version {version}",
        )
        for each in found.servings:
            if each.state == "failed":
                raise Unavailable(f"{model} cannot be served encrypted: {each.reason}")
        return found
