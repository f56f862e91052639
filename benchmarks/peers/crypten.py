"""CrypTen 0.4.1 (Knott et al., NeurIPS 2021) as shipped: two parties over gloo, on our hosts."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bed.link import Network
from benchmarks.peers import environment
from benchmarks.peers.environment import PeerMissing

PACKAGES = ("crypten==0.4.1", "omegaconf==2.3.0", "antlr4-python3-runtime==4.9.3")
PORT = 29_541


@dataclass(frozen=True)
class Measured:
    """``seconds`` of each inference at the slower party; bytes sent by one party."""

    seconds: tuple[float, ...]
    prepare_seconds: float
    rounds: int
    bytes: int
    peak_bytes: int
    logits: NDArray[np.float64]


def save(folder: Path, state: dict[str, NDArray[Any]], image: NDArray[np.float32]) -> None:
    """``state``: torchvision's names; ``image``: float32 (N, C, H, W), normalised."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "model.npz", **state)  # type: ignore[arg-type]
    np.savez(folder / "folded.npz", **folded(state))  # type: ignore[arg-type]
    np.save(folder / "image.npy", image)


def folded(state: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """BatchNorm in the convolution before it: what a user tunes by hand."""
    found: dict[str, NDArray[Any]] = {}
    for name, value in state.items():
        if name.startswith("fc."):
            found[name] = value
        elif value.ndim == 4:
            layer = name.removesuffix(".weight")
            norm = _norm_of(layer)
            scale = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + 1e-5)
            found[name] = value * scale[:, None, None, None]
            found[f"{layer}.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return found


def _norm_of(layer: str) -> str:
    if layer.endswith("downsample.0"):
        return layer[:-1] + "1"
    return layer.replace("conv", "bn")


def run(
    folder: Path,
    network: Network | None,
    *,
    repeats: int,
    warm: int,
    hosts: tuple[str, str],
    limit: float,
    tuned: bool = False,
) -> Measured:
    """Raises PeerMissing with the reason (not installed, ended, over ``limit`` seconds)."""
    python = environment.python("crypten", PACKAGES, ours_behind=True, dependencies=False)
    script = Path(__file__).with_name("crypten_party.py")
    address = network.address(hosts[0]) if network else "127.0.0.1"
    command = [str(python), "-P", str(script), "--folder", str(folder)]
    command += ["--repeats", str(repeats), "--warm", str(warm), *(["--folded"] if tuned else [])]
    parties = []
    for rank, host in enumerate(hosts):
        values = {
            "WORLD_SIZE": "2",
            "RANK": str(rank),
            "RENDEZVOUS": f"tcp://{address}:{PORT}",
            "DISTRIBUTED_BACKEND": "gloo",
            "GLOO_SOCKET_IFNAME": "line" if network else "lo",
        }
        parties.append(
            subprocess.Popen(
                [*(network.command(host) if network else []), *command],
                env={**os.environ, **values},
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return _measured([_answer(party, parties, limit) for party in parties])


def _answer(
    party: subprocess.Popen[str], parties: list[subprocess.Popen[str]], limit: float
) -> dict[str, Any]:
    try:
        out, errors = party.communicate(timeout=limit)
    except subprocess.TimeoutExpired as error:
        for each in parties:
            each.kill()
        raise PeerMissing(f"not done within {limit:.0f} s") from error
    for line in out.splitlines():
        if line.startswith("RESULT "):
            found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
            return found
    for each in parties:
        each.kill()
    last = (errors.strip().splitlines() or ["it ended without a word"])[-1]
    raise PeerMissing(last[:200])


def _measured(answers: list[dict[str, Any]]) -> Measured:
    turns = zip(*(answer["seconds"] for answer in answers), strict=True)
    return Measured(
        seconds=tuple(max(turn) for turn in turns),
        prepare_seconds=max(answer["prepare_seconds"] for answer in answers),
        rounds=max(answer["rounds"] for answer in answers),
        bytes=max(answer["bytes"] for answer in answers),
        peak_bytes=max(answer["peak_bytes"] for answer in answers),
        logits=np.array(answers[1]["logits"]),
    )
