"""One party of ResNet-18 in CrypTen, in CrypTen's own environment: see benchmarks.peers.crypten.

Started as a file, since CrypTen's package brings a package ``benchmarks`` of its own. Provider and
precision are CrypTen's defaults (a trusted first party makes the triples, 16 fraction bits); the
model is its layers, encrypted from party 0, then in evaluation mode, which freezes the inverse
deviations of BatchNorm; the image is party 1's. Prints one line of JSON.
"""

import argparse
import json
import os
import resource
import sys
import time
import types
import warnings

warnings.filterwarnings("ignore")


def stub_exporter():
    """What crypten.nn imports for ``from_pytorch`` alone and newer versions of torch have lost."""
    import torch

    class Anything(types.ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *_args, **_options: lambda function: function  # as a decorator is

    for name in (
        "onnx",
        "onnx.numpy_helper",
        "torch.onnx.symbolic_helper",
        "torch.onnx.utils",
        "torch.onnx._internal",
        "torch.onnx._internal.registration",
    ):
        sys.modules[name] = Anything(name)
    exporter = types.ModuleType("torch.onnx")
    for name in ("symbolic_helper", "utils", "_internal"):
        setattr(exporter, name, sys.modules[f"torch.onnx.{name}"])
    exporter.OperatorExportTypes = types.SimpleNamespace(ONNX=0)
    sys.modules["torch.onnx"] = exporter
    torch.onnx = exporter


def resnet18(classes, folded):
    """In CrypTen's layers; ``folded``: BatchNorm is in the convolutions already."""
    from crypten import nn

    def conv(inside, outside, kernel, stride, padding):
        return nn.Conv2d(inside, outside, kernel, stride=stride, padding=padding, bias=folded)

    class Same(nn.Module):
        def forward(self, x):
            return x

    def norm(channels):
        return Same() if folded else nn.BatchNorm2d(channels)

    class Block(nn.Module):
        def __init__(self, inside, outside, stride):
            super().__init__()
            self.conv1, self.bn1 = conv(inside, outside, 3, stride, 1), norm(outside)
            self.conv2, self.bn2 = conv(outside, outside, 3, 1, 1), norm(outside)
            self.relu = nn.ReLU()
            self.short = stride == 1
            if not self.short:
                self.down, self.down_bn = conv(inside, outside, 1, stride, 0), norm(outside)

        def forward(self, x):
            y = self.relu(self.bn1(self.conv1(x)))
            y = self.bn2(self.conv2(y))
            return self.relu(y + (x if self.short else self.down_bn(self.down(x))))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = conv(3, 64, 7, 2, 3), norm(64)
            self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)
            width = 64
            for stage, wider in enumerate((64, 128, 256, 512)):
                for block in range(2):
                    stride = 2 if stage and not block else 1
                    setattr(self, f"layer{stage + 1}_{block}", Block(width, wider, stride))
                    width = wider
            self.average, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(512, classes)

        def forward(self, x):
            x = self.pool(self.relu(self.bn1(self.conv1(x))))
            for stage in range(4):
                for block in range(2):
                    x = getattr(self, f"layer{stage + 1}_{block}")(x)
            x = self.average(x)
            return self.fc(x.reshape(x.size(0), 512))

    return Net()


def load(model, arrays):
    """torchvision's names to the names above."""
    import torch

    for key in arrays.files:
        name = key.replace("downsample.0", "down").replace("downsample.1", "down_bn")
        parts = name.split(".")
        if parts[0].startswith("layer"):
            parts = [f"{parts[0]}_{parts[1]}", *parts[2:]]
        module = model
        for part in parts[:-1]:
            module = getattr(module, part)
        value = torch.from_numpy(arrays[key].copy())
        if parts[-1].startswith("running"):
            module.set_buffer(parts[-1], value)
        else:
            module.set_parameter(parts[-1], torch.nn.Parameter(value))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--folded", action="store_true")
    parser.add_argument("--warm", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    import numpy as np
    import torch

    stub_exporter()
    import crypten
    from crypten import communicator

    if given.threads:
        torch.set_num_threads(given.threads)
    crypten.init()
    crypten.cfg.communicator.verbose = True  # counts rounds and bytes
    rank = int(os.environ["RANK"])
    name = "folded.npz" if given.folded else "model.npz"
    arrays = np.load(f"{given.folder}/{name}")
    image = torch.from_numpy(np.load(f"{given.folder}/image.npy"))
    started = time.perf_counter()
    model = resnet18(len(arrays["fc.bias"]), given.folded)
    load(model, arrays)
    model.encrypt(src=0)
    model.eval()
    prepared = time.perf_counter() - started
    seconds, logits, before = [], None, {}
    with crypten.no_grad():
        for turn in range(given.warm + given.repeats):
            communicator.get().barrier()
            crypten.reset_communication_stats()
            started = time.perf_counter()
            x = crypten.cryptensor(image, src=1)
            logits = model(x).get_plain_text(dst=1)
            communicator.get().barrier()
            if turn >= given.warm:
                seconds.append(time.perf_counter() - started)
            before = communicator.get().get_communication_stats()
    answer = {
        "rank": rank,
        "prepare_seconds": prepared,
        "seconds": seconds,
        "rounds": before["rounds"],
        "bytes": before["bytes"],
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
        "logits": logits.flatten().tolist() if rank == 1 else [],
    }
    print("RESULT " + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
