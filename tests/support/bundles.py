"""A small MONAI bundle: configuration files alone, its data found in ``dataset_dir``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHANNELS = (4, 8)


def _network(channels: tuple[int, ...]) -> dict[str, Any]:
    return {
        "_target_": "monai.networks.nets.Classifier",
        "in_shape": [1, 16, 16],
        "classes": 2,
        "channels": list(channels),
        "strides": [2, 2],
        "norm": "batch",
    }


def _config(channels: tuple[int, ...]) -> dict[str, Any]:
    transforms = [
        {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
        {"_target_": "ScaleIntensityd", "keys": "image"},
        {"_target_": "Resized", "keys": "image", "spatial_size": [16, 16]},
    ]
    found = "sorted(glob.glob(os.path.join(@dataset_dir, name, '*.png')))"
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "device": "$torch.device('cpu')",
        "dataset_dir": "/nowhere",
        "max_epochs": 1,
        "network_def": _network(channels),
        "network": "$@network_def.to(@device)",
        "optimizer": {
            "_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 0.05,
        },
        "labels": ["normal", "pneumonia"],
        "items": "$[{'image': file, 'label': number} for number, name in enumerate(@labels) "
        f"for file in {found}]",
        "train": {
            "dataset": {
                "_target_": "Dataset",
                "data": "@items",
                "transform": {"_target_": "Compose", "transforms": transforms},
            },
            "dataloader": {
                "_target_": "DataLoader", "dataset": "@train#dataset", "batch_size": 4,
                "num_workers": 0,
            },
            "trainer": {
                "_target_": "SupervisedTrainer",
                "max_epochs": "@max_epochs",
                "device": "@device",
                "train_data_loader": "@train#dataloader",
                "network": "@network",
                "optimizer": "@optimizer",
                "loss_function": {"_target_": "torch.nn.CrossEntropyLoss"},
            },
        },
        "initialize": [],
        "run": ["$@train#trainer.run()"],
    }  # fmt: skip


def _evaluation() -> dict[str, Any]:
    output = "$lambda each: (torch.stack([x['pred'] for x in each]), torch.as_tensor([int(x['label']) for x in each]))"  # noqa: E501
    return {
        "imports": ["$import glob", "$import os", "$import ignite"],
        "validate": {
            "evaluator": {
                "_target_": "SupervisedEvaluator",
                "device": "@device",
                "val_data_loader": "@train#dataloader",
                "network": "@network",
                "key_val_metric": {
                    "accuracy": {
                        "_target_": "ignite.metrics.Accuracy",
                        "output_transform": output,
                    }
                },
            }
        },
        "run": ["$@validate#evaluator.run()"],
    }


def write_bundle(
    folder: Path, *, evaluation: bool = True, channels: tuple[int, ...] = CHANNELS
) -> Path:
    configs = folder / "configs"
    configs.mkdir(parents=True)
    (configs / "metadata.json").write_text(json.dumps({"version": "0.1.0"}))
    (configs / "train.json").write_text(json.dumps(_config(channels)))
    if evaluation:
        (configs / "evaluate.json").write_text(json.dumps(_evaluation()))
    return folder
