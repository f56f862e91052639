"""The three services over real HTTP in one process, with tasks run in threads instead of Celery."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image

from primia.chassis import migrate
from primia.chassis.app import create_app
from primia.chassis.context import Context
from primia.chassis.service import Service
from primia.mpc.compiled import CompiledModel
from services.crypto_provider.main import create_service as crypto_provider
from services.data_node.main import create_service as data_node
from services.model_owner.inference import models
from services.model_owner.inference import store as owner_store
from services.model_owner.main import create_service as model_owner
from tests.support.contexts import Cast
from tests.support.servers import free_port, wait_until

OWNER, DEALER, NODE, OTHER = "model-owner", "crypto-provider", "node-a", "node-b"
CLASSES = ("normal", "viral")
SIZE = 16
_SWEEP_SECONDS = 0.2


def picture(seed: int, size: int = 40) -> bytes:
    """A PNG of grey noise with a bright bar."""
    pixels = np.random.default_rng(seed).integers(0, 120, (size, size))
    pixels[seed % size : seed % size + 6] += 120
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


class InlineJobs:
    """In place of ``ctx.jobs.enqueue``: the task runs in a thread with the worker's context."""

    def __init__(self, service: Service, worker: Context) -> None:
        self._service = service
        self._worker = worker
        self._pool = ThreadPoolExecutor(4)
        self.held: set[str] = set()  # names of tasks that are lost on the way
        self.ran: list[str] = []
        self.ended: list[str] = []

    def __call__(self, task: str, row_id: str, countdown: float = 0) -> None:
        if task not in self.held:
            self._pool.submit(self._run, task, row_id, min(countdown, 0.05))

    def _run(self, task: str, row_id: str, countdown: float) -> None:
        time.sleep(countdown)
        self.ran.append(task)
        with contextlib.suppress(BaseException):  # as Celery does: the row tells what happened
            self._service.tasks[task](self._worker, row_id)
        self.ended.append(task)

    def sweep(self) -> None:
        for _, sweep in self._service.sweeps.values():
            sweep(self._worker)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class Running:
    """One service: its API over HTTP, its worker's tasks in threads."""

    def __init__(self, service: Service, build: Any, port: int) -> None:
        self.service = dataclasses.replace(service, background=())
        self.ctx: Context = build()
        self.worker: Context = build()
        migrate.upgrade(self.ctx.db, service.migrations)
        self.jobs = InlineJobs(self.service, self.worker)
        for ctx in (self.ctx, self.worker):
            ctx.jobs.enqueue = self.jobs  # type: ignore[method-assign]
        self.service.worker_start(self.worker)
        config = uvicorn.Config(
            create_app(self.service, self.ctx), port=port, log_config=None, access_log=False
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started, what="the service's start")

    def close(self) -> None:
        self.worker.jobs.stop()
        self.jobs.close()
        self.service.worker_stop(self.worker)
        self._server.should_exit = True
        self._thread.join(10)
        self.worker.close()
        self.ctx.close()


class Network:
    """``model``: a small CNN, registered and served."""

    def __init__(
        self,
        cast: Cast,
        broker_url: str,
        node_settings: dict[str, Any] | None = None,
        **owner_settings: Any,
    ) -> None:
        self.cast = cast
        ports = {name: free_port() for name in (OWNER, DEALER, NODE, OTHER)}
        self.urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        peers = {"dealer_url": self.urls[DEALER]}
        node = {**peers, "owner_url": self.urls[OWNER], "data_roots": (cast.root / "images",)}
        own = {**node, **(node_settings or {})}
        settings = {OWNER: {**peers, **owner_settings}, DEALER: {}, NODE: own, OTHER: node}
        kinds = {OWNER: model_owner, DEALER: crypto_provider, NODE: data_node, OTHER: data_node}
        self.services: dict[str, Running] = {}
        for name, create in kinds.items():
            service = create()

            def build(name: str = name, service: Service = service) -> Context:
                return cast.context(
                    service.kind, name, service.settings, broker_url, **settings[name]
                )

            self.services[name] = Running(service, build, ports[name])
        self.http = httpx.Client(timeout=30)

    def __getitem__(self, name: str) -> Running:
        return self.services[name]

    def call(self, method: str, service: str, path: str, who: str = "alice", **options: Any):
        headers = {**self.cast.headers(who, service), **options.pop("headers", {})}
        return self.http.request(method, self.urls[service] + path, headers=headers, **options)

    def serve(self, name: str = "chest", stock: int = 0, batch: int = 1, results=("scores",)):
        """Register a small CNN and serve it; returns its servings."""
        self.register(name)
        return self.ask_serving(name, stock, batch, results)

    def register(self, name: str, **changes: Any) -> None:
        """A small CNN, or what the changes make of it, with the weights of its seed."""
        model = {
            "name": name, "architecture": "small_cnn", "classes": CLASSES, "channels": 1,
            "image_size": SIZE, "seed": 5, **changes,
        }  # fmt: skip
        assert self.call("POST", OWNER, "/models", json=model).status_code == 202
        path = f"/models/{name}/versions/1"
        wait_until(
            lambda: self.call("GET", OWNER, path).json()["state"] == "ready", what="the model"
        )

    def ask_serving(
        self, name: str = "chest", stock=0, batch=1, results=("scores",), **more: Any
    ) -> list[dict[str, Any]]:
        path = f"/models/{name}/versions/1/serve"
        wanted = {"results": results, "stock": stock, "batch": batch, **more}
        assert self.call("POST", OWNER, path, json=wanted).status_code == 202

        def settled() -> bool:
            found = self.call("GET", OWNER, path).json()["servings"]
            return all(each["state"] in ("serving", "failed") for each in found)

        wait_until(settled, 30, "compiling")
        return self.call("GET", OWNER, path).json()["servings"]

    def compiled(self, plan_id: str) -> CompiledModel:
        path = models.weights_path(self[OWNER].ctx.files, plan_id)
        return CompiledModel.from_bytes(path.read_bytes())

    def infer(self, *images: bytes, node: str = NODE, **fields: str):
        files = [("images", (f"image{i}.png", data)) for i, data in enumerate(images)]
        data = {"model": "chest", **fields}
        return self.call("POST", node, "/inference", data=data, files=files)

    def status(self, inference_id: str, node: str = NODE):
        return self.call("GET", node, f"/inference/{inference_id}").json()

    def ended(self, inference_id: str, node: str = NODE, seconds: float = 30):
        """Its status once it has ended; sweeps run meanwhile, as the beat would have them."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.status(inference_id, node)
            if status["state"] in ("done", "failed", "cancelled"):
                return status
            assert time.monotonic() < deadline, status
            time.sleep(_SWEEP_SECONDS)

    def classify(self, *images: bytes, **fields: str):
        answer = self.infer(*images, **fields)
        assert answer.status_code == 202, answer.text
        status = self.ended(answer.json()["id"])
        assert status["state"] == "done", status
        return status, self.call("GET", NODE, f"/inference/{status['id']}/result").json()

    def deals(self) -> dict[str, str]:
        """Deal -> state at the dealer."""
        from services.crypto_provider.material.store import DealRow

        with self[DEALER].ctx.db.reading() as session:
            return {row.id: row.state for row in session.query(DealRow).all()}

    def sessions(self) -> list[Any]:
        with self[OWNER].ctx.db.reading() as session:
            rows = session.query(owner_store.SessionRow)
            return list(rows.order_by(owner_store.SessionRow.created).all())

    def close(self) -> None:
        self.http.close()
        for name in (NODE, OTHER, OWNER, DEALER):
            self.services[name].close()


@contextlib.contextmanager
def network(cast: Cast, broker_url: str, **owner_settings: Any) -> Iterator[Network]:
    made = Network(cast, broker_url, **owner_settings)
    try:
        yield made
    finally:
        made.close()
