"""``deploy/try-containers``: the whole grid in containers of this machine, tried and taken away.

Needs podman, the images of ``deploy/build-images`` and the environment of ``make setup``. Each
member is a pod of its own with its own volume: broker, API and worker, hardened as in the cluster
(another user than root, read-only root file system, no capabilities). Prints each thing it has
seen to work; ends with status 1 and the logs of what did not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from deploy import try_work
from primia.chassis.identity import Identity, PrincipalBook, Role
from primia.client import DataNode, ModelOwner
from primia.errors import PrimiaError
from primia.prg import fresh_bytes

NETWORK = "primia-try"
USER = 10001
OPERATOR = "operator"
READY_SECONDS = 180.0
# The broker that the images carry, on the pod's loopback; its password comes by the environment.
BROKER = (
    "import os, pathlib\n"
    "from primia.grid.broker import server_command\n"
    "home = pathlib.Path('/var/lib/primia/broker')\n"
    "home.mkdir(mode=0o700, exist_ok=True)\n"
    "command = server_command(home, 6379, os.environ['BROKER_PASSWORD'])\n"
    "os.execv(command[0], command)\n"
)


@dataclass(frozen=True)
class Member:
    name: str
    service: str
    port: int  # on this machine's loopback
    password: str

    @property
    def pod(self) -> str:
        return f"{NETWORK}-{self.name}"

    @property
    def role(self) -> Role:
        roles: dict[str, Role] = {
            "model-owner": "model_owner",
            "data-node": "data_node",
            "crypto-provider": "crypto_provider",
        }
        return roles[self.service]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def members(first_port: int) -> list[Member]:
    kinds = [("model-owner", "model-owner"), ("crypto-provider", "crypto-provider")]
    kinds += [(f"hospital-{letter}", "data-node") for letter in "abc"]
    return [
        Member(name, service, first_port + index, fresh_bytes(16).hex())
        for index, (name, service) in enumerate(kinds)
    ]


def podman(*arguments: str, quiet: bool = False) -> str:
    command = shutil.which("podman")
    if command is None:
        raise RuntimeError("podman was not found: install it")
    done = subprocess.run([command, *arguments], capture_output=True, text=True, check=False)
    if done.returncode and not quiet:
        raise RuntimeError(f"podman {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout + done.stderr


def enrol(home: Path, grid: list[Member]) -> Identity:
    """Keys of everybody, and everybody's public key in everybody's directory."""
    operator = Identity.fresh(OPERATOR)
    principals = [operator.principal("user")]
    for member in grid:
        identity = Identity.fresh(member.name)
        identity.save(home / member.name / "identity" / "identity.pem")
        principals.append(identity.principal(member.role))
    for member in grid:
        book = PrincipalBook(home / member.name / "principals")
        for principal in principals:
            if principal.name != member.name:
                book.add(principal)
    return operator


def hand_over(home: Path) -> None:
    """What lies here belongs to the user of the containers."""
    for path in (home, *home.rglob("*")):
        os.chown(path, USER, USER)


def environment(member: Member) -> dict[str, str]:
    values = {
        "PRIMIA_NAME": member.name,
        "PRIMIA_IDENTITY_FILE": "/etc/primia/identity/identity.pem",
        "PRIMIA_PRINCIPALS_DIR": "/etc/primia/principals",
        # The pods' network does not leave this machine.
        "PRIMIA_ALLOW_PLAIN_HTTP": "true",
        "PRIMIA_EMBEDDED_BEAT": "true",
        "BROKER_URL": f"redis://:{member.password}@127.0.0.1:6379/0",
        "BROKER_PASSWORD": member.password,
    }
    if member.service != "crypto-provider":
        values["PRIMIA_DEALER_URL"] = f"http://{NETWORK}-crypto-provider:8000"
    if member.service == "data-node":
        values["PRIMIA_OWNER_URL"] = f"http://{NETWORK}-model-owner:8000"
        values |= {"PRIMIA_DATA_ROOTS": '["/data"]', "PRIMIA_APPROVAL": "auto"}
    return values


def run(member: Member, home: Path, part: str, *arguments: str, wait: bool = False) -> None:
    """One container of the member's pod; with ``wait`` until it has ended well."""
    private = home / member.name
    entry = ["--entrypoint", '["python", "-c"]'] if part == "broker" else []
    settings = [f"--env={name}={value}" for name, value in environment(member).items()]
    podman(
        "run",
        *(["--rm"] if wait else ["--detach"]),
        *("--pod", member.pod, "--name", f"{member.pod}-{part}", "--pull=never"),
        *("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges"),
        *("--volume", f"{member.pod}:/var/lib/primia"),
        *("--volume", f"{private / 'identity'}:/etc/primia/identity:ro"),
        *("--volume", f"{private / 'principals'}:/etc/primia/principals:ro"),
        *("--volume", f"{private / 'images'}:/data:ro"),
        *settings,
        *entry,
        f"localhost/primia-{member.service}",
        *arguments,
    )


def start(member: Member, home: Path) -> None:
    podman("volume", "create", member.pod)
    published = f"127.0.0.1:{member.port}:8000"
    podman("pod", "create", "--name", member.pod, "--network", NETWORK, "--publish", published)
    run(member, home, "broker", BROKER)
    run(member, home, "migrate", "migrate", wait=True)
    run(member, home, "api", "api")
    run(member, home, "worker", "worker")


def wait_until(what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {READY_SECONDS:.0f} s")
        time.sleep(0.5)
    print(f"ok  {what}")


def ready(member: Member) -> bool:
    try:
        return httpx.get(f"{member.url}/health/ready", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def check(grid: list[Member], operator: Identity) -> None:
    for member in grid:
        wait_until(f"{member.name} is ready", lambda member=member: ready(member))  # type: ignore[misc]
        status = httpx.get(f"{member.url}/openapi.json", timeout=10).status_code
        if status != 401:
            raise RuntimeError(f"{member.name} answered {status} to a stranger, not 401")
        answer = _get(member, operator, "/openapi.json")
        print(f"ok  {member.name} refuses a stranger and shows {len(answer['paths'])} paths")
    owner = grid[0]
    hospitals = {member.name for member in grid if member.service == "data-node"}

    def seen() -> bool:
        nodes = _get(owner, operator, "/nodes")["nodes"]
        return {node["name"] for node in nodes if node["last_seen"]} == hospitals

    wait_until(f"{len(hospitals)} data nodes have asked the model owner for work", seen)
    for member in grid:
        for part in ("broker", "api", "worker"):
            _check_hardened(f"{member.pod}-{part}")
    print("ok  no container runs as root or can write its root file system")


def work(grid: list[Member], operator: Identity, home: Path) -> None:
    owner = ModelOwner(operator, grid[0].name, grid[0].url)
    hospitals = [member for member in grid if member.service == "data-node"]
    nodes = [DataNode(operator, member.name, member.url) for member in hospitals]
    image = next((home / hospitals[0].name / "images").rglob("*.jp*g"))
    try:
        done = try_work.do(owner, nodes, image)
    except PrimiaError as error:
        raise RuntimeError(f"the work was not done: {error}") from error
    print(f"ok  {done.training}\nok  {done.inference}")


def _get(member: Member, operator: Identity, path: str) -> dict[str, list[dict[str, object]]]:
    token = operator.token(member.name)
    headers = {"Authorization": f"Bearer {token}"}
    answer = httpx.get(f"{member.url}{path}", headers=headers, timeout=30)
    if answer.status_code != 200:
        raise RuntimeError(f"{member.name} answered {answer.status_code} to {path}: {answer.text}")
    document: dict[str, list[dict[str, object]]] = answer.json()
    return document


def _check_hardened(container: str) -> None:
    tried = "import os; print(os.getuid()); open('/opt/primia/written', 'w')"
    told = podman("exec", container, "python", "-c", tried, quiet=True)
    if told.splitlines()[0] != str(USER) or "Read-only file system" not in told:
        raise RuntimeError(f"{container} is not hardened: {told}")


def clean(grid: list[Member]) -> None:
    for member in grid:
        podman("pod", "rm", "--force", "--time=20", member.pod, quiet=True)
        podman("volume", "rm", "--force", member.pod, quiet=True)
    podman("network", "rm", "--force", NETWORK, quiet=True)


def show_logs(grid: list[Member]) -> None:
    for member in grid:
        for part in ("broker", "api", "worker"):
            print(f"--- {member.name} {part}", file=sys.stderr)
            log = podman("logs", "--tail=20", f"{member.pod}-{part}", quiet=True)
            print(log, file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the grid in containers and check it.")
    parser.add_argument("--port", type=int, default=18000, help="the first of five local ports")
    parser.add_argument("--work", action="store_true", help="also train and classify (minutes)")
    parser.add_argument("--keep", action="store_true", help="leave it running")
    options = parser.parse_args()
    grid = members(options.port)
    try:
        clean(grid)  # what an earlier trial has left
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    home = Path(tempfile.mkdtemp(prefix="primia-try-"))
    operator = enrol(home, grid)
    folders = [home / member.name / "images" for member in grid]
    for folder in folders:
        folder.mkdir()
    if options.work:
        try_work.draw_images(folders[-3:])
    hand_over(home)
    try:
        podman("network", "create", NETWORK)
        for member in grid:
            start(member, home)
        check(grid, operator)
        if options.work:
            work(grid, operator, home)
    except RuntimeError as error:
        print(f"failed: {error}", file=sys.stderr)
        show_logs(grid)
        return 1
    finally:
        if not options.keep:
            clean(grid)
            shutil.rmtree(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
