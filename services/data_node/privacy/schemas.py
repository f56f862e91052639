"""What the node's own house reads of the ledger."""

from __future__ import annotations

from datetime import datetime

from pydantic import ConfigDict, Field

from primia.messages.common import Id, Message, Name


class RunCharge(Message):
    """What one run has cost by itself; no ε where it trained without noise."""

    run: Id
    rounds: int
    steps: int
    epsilon: float | None
    since: datetime


class Account(Message):
    """What one model owner has had of one data set: ``epsilon`` of all rounds with noise together,
    ``unprotected`` rounds without. ``limit`` is this site's; ``left``: what is left of it."""

    owner: Name
    dataset: Name
    dataset_id: Id
    epsilon: float
    delta: float
    limit: float | None
    left: float | None
    unprotected: int
    runs: tuple[RunCharge, ...]


class Ledger(Message):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "accounts": [
                        {
                            "owner": "model-owner",
                            "dataset": "chest-2024",
                            "dataset_id": "0f" * 16,
                            "epsilon": 1.31,
                            "delta": 1e-5,
                            "limit": 3.0,
                            "left": 1.69,
                            "unprotected": 0,
                            "runs": [
                                {
                                    "run": "1e" * 16,
                                    "rounds": 10,
                                    "steps": 460,
                                    "epsilon": 1.31,
                                    "since": "2026-05-04T08:10:00Z",
                                }
                            ],
                        }
                    ]
                }
            ]
        }
    )

    accounts: tuple[Account, ...] = Field(description="by owner and data set")
