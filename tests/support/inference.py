"""Encrypted inference with all parties in one process, and its plaintext in plain integers."""

import io
from dataclasses import dataclass, field

import numpy as np

from primia.mpc.client import _ClientSide
from primia.mpc.dealer import deal
from primia.mpc.masks import GateStreams, image_mask
from primia.mpc.material import Half
from primia.mpc.opening import write_opening
from primia.mpc.operations import Convolution, Dense
from primia.mpc.party import Client, Owner, PreparedModel, PreparedOpening
from primia.mpc.plan import Add, Flatten, MaxPool, Narrow, Plan, Relu, SumPool
from primia.mpc.sinks import Sinks
from primia.mpc.walk import walk
from primia.mpc.weights import LayerWeights
from primia.prg import Seed, Stream
from primia.ring import LinearMap

DEAL = bytes(range(16))
SESSION = bytes(range(16, 32))


def seed(number):
    return Seed(number.to_bytes(16, "little"))


def words(number, shape, bits=32):
    return Stream(seed(number), "test").words(shape, bits)


def signed(number, shape, bits):
    """Integers from -2^(bits - 1) to 2^(bits - 1) - 1."""
    return words(number, shape, bits).astype(np.int64) - (1 << (bits - 1))


def weights_for(plan, number, bits=6):
    """Small weights and biases, so that values keep their headroom."""
    result = {}
    for i, (op, shape) in enumerate(plan.linear()):
        weight = signed(number + 2 * i, shape, bits).astype(np.int32)
        bias = signed(number + 2 * i + 1, shape[:1], 2 * bits).astype(np.int32)
        result[op.layer] = LayerWeights(weight, bias)
    return result


@dataclass
class Dealt:
    p0: bytes
    p1: bytes
    common: bytes
    manifest: object

    def half(self, party):
        return (self.p0, self.p1)[party] + self.common


def dealt(plan, batch, mask, root, linear_map=LinearMap):
    parts = [io.BytesIO() for _ in range(3)]
    manifest = deal(plan, batch, mask, DEAL, Sinks(*parts), root=root, linear_map=linear_map)
    return Dealt(*(part.getvalue() for part in parts), manifest)


@dataclass
class Session:
    """Both parties of a session on a deal; ``requests`` and ``responses`` are its transcript."""

    plan: Plan
    weights: dict
    batch: int = 1
    root: int = 1
    mask: int = 2
    linear_map: object = LinearMap
    requests: list = field(default_factory=list)
    responses: list = field(default_factory=list)

    def __post_init__(self):
        mask = seed(self.mask)
        self.deal = dealt(self.plan, self.batch, mask, seed(self.root), self.linear_map)
        self.opening = write_opening(self.plan, self.weights, mask)
        halves = [
            Half.open(self.deal.half(party), self.plan, self.batch, party, DEAL) for party in (0, 1)
        ]
        model = PreparedModel(self.plan, self.weights, self.linear_map)
        opening = PreparedOpening(self.plan, self.opening, self.linear_map)
        self.owner = Owner(model, halves[0], SESSION)
        self.client = Client(opening, halves[1], SESSION)

    def prepare(self):
        self.offline = self.client.offline()
        self.accepted = self.owner.offline(self.offline)

    def run(self, image):
        self.prepare()
        request = self.client.first(image)
        while request is not None:
            number = self.client.request_number
            self.requests.append(request)
            self.responses.append(self.owner.step(number, request))
            request = self.client.step(self.responses[-1])
        return self.client.result()

    def shares(self):
        """P1's share of what every rounding Narrow reads, in their order."""
        half = Half.open(self.deal.half(1), self.plan, self.batch, 1, DEAL)
        side = Listening(PreparedOpening(self.plan, self.opening), half)
        list(walk(self.plan, self.batch, side, image_mask(half.seed, self.batch, self._shape)))
        return side.heard

    def masks(self):
        """r of the first payload of every gate, by layer and the gate's number there; of more ways
        than two one for each value that is opened, (ways - 1, count)."""
        seeds = [seed(self.root).derive(party) for party in ("p0", "p1")]
        found = {}
        for i, gate in enumerate(self.plan.gates()):
            count = self.batch * gate.count
            halves = [
                np.stack([GateStreams(half, i).words("r", count, u) for u in range(gate.ways - 1)])
                for half in seeds
            ]
            number = sum(1 for layer, _ in found if layer == gate.layer)
            found[gate.layer, number] = halves[0] + halves[1]
        return found

    @property
    def _shape(self):
        return self.plan.input_shape


class Listening(_ClientSide):
    """P1's side of a walk, which keeps what it narrows."""

    def __init__(self, *args):
        super().__init__(*args)
        self.heard = []

    def narrow(self, x, low):
        self.heard.append(x)
        return super().narrow(x, low)


def plain(plan, weights, image, shares=None):
    """Scores (int64) of the plan in plain integers, the image given in fixed point (int64).

    With P1's shares of what is narrowed its rounding is reproduced as well; without, it rounds to
    the nearest.
    """
    values, heard = [image], iter(shares or ())
    for op, width in zip(plan.ops, plan.widths()[1:], strict=True):
        inputs = [values[source] for source in op.sources]
        x = inputs[0]
        if isinstance(op, Convolution | Dense):
            values.append(plain_linear(op, weights[op.layer], x))
        elif isinstance(op, Narrow):
            share = next(heard) if shares and op.low else None
            values.append(plain_narrow(x, op.low, width, share))
        elif isinstance(op, Relu):
            assert op.coarse == 0, "the plain comparison is exact"
            values.append(np.where(x >= 0, x, 0))
        elif isinstance(op, MaxPool):
            assert op.coarse == 0, "the plain maximum is exact"
            lowest = np.iinfo(np.int64).min
            largest = windows(x, op, lowest).max(axis=(-2, -1))
            values.append(np.maximum(largest, 0) if op.relu else largest)
        elif isinstance(op, SumPool):
            values.append(windows(x, op, 0).sum(axis=(-2, -1)))
        elif isinstance(op, Add):
            values.append((inputs[0] << op.left_shift) + (inputs[1] << op.right_shift))
        elif isinstance(op, Flatten):
            values.append(x.reshape(len(x), -1))
    assert all(np.abs(value).max() < 2**29 for value in values), "two bits of headroom"
    return values[-1]


def plain_narrow(y, low, width, share=None):
    """The sum of the two parties' shifted shares of y, as a signed number of ``width`` bits."""
    if share is None:
        return np.floor(y / 2**low + 0.5).astype(np.int64) if low else y
    theirs = np.asarray(share, dtype=np.int64)
    ours = (y - theirs) % (1 << 32)
    total = ((ours >> low) + 1 + (theirs >> low)) % (1 << width)
    return np.where(total >> (width - 1), total - (1 << width), total)


def plain_linear(op, given, x):
    weight, bias = given.weight.astype(np.int64), given.bias.astype(np.int64)
    if isinstance(op, Dense):
        return x @ weight.T + bias
    view = windows(x, op, 0)  # (N, C, H', W', kh, kw)
    outputs = []
    for w, (start, stop) in zip(
        np.split(weight, op.groups), group_ranges(x.shape[1], op.groups), strict=True
    ):
        outputs.append(np.einsum("nchwij,ocij->nohw", view[:, start:stop], w))
    return np.concatenate(outputs, axis=1) + bias.reshape(-1, 1, 1)


def group_ranges(channels, groups):
    size = channels // groups
    return [(i * size, (i + 1) * size) for i in range(groups)]


def windows(x, op, fill):
    (pad_h, pad_w), (step_h, step_w) = op.padding, op.stride
    padded = np.pad(x, ((0, 0), (0, 0), (pad_h, pad_h), (pad_w, pad_w)), constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(padded, op.kernel, axis=(2, 3))
    return view[:, :, ::step_h, ::step_w]


class Builder:
    """Writes a plan's operations; each method returns the number of its value."""

    def __init__(self, input_shape, weight_bits=4):
        self.ops = []
        self.shapes = [input_shape]
        self.weight_bits = weight_bits

    def _add(self, kind, *args):
        op = kind(f"layer{len(self.ops)}", *args)
        self.ops.append(op)
        self.shapes.append(op.shape(*(self.shapes[source] for source in op.sources)))
        return len(self.ops)

    def plan(self, activation_bits=8, result="scores"):
        return Plan(self.shapes[0], activation_bits, tuple(self.ops), result)

    def conv(self, x, channels, kernel=3, stride=1, padding=1, groups=1):
        pairs = [(kernel, kernel), (stride, stride), (padding, padding)]
        return self._add(Convolution, x, channels, *pairs, groups, self.weight_bits)

    def narrow(self, x, low, high=0):
        return self._add(Narrow, x, low, high) if low or high else x

    def relu(self, x, shift=None):
        return self._add(Relu, self.narrow(x, self.weight_bits if shift is None else shift))

    def max_pool(self, x, kernel=3, stride=2, padding=1, low=0):
        pairs = [(kernel, kernel), (stride, stride), (padding, padding)]
        return self._add(MaxPool, self.narrow(x, low), *pairs)

    def add(self, left, right, left_shift=0, right_shift=0):
        return self._add(Add, left, right, left_shift, right_shift)

    def sum_pool(self, x, kernel):
        return self._add(SumPool, x, kernel, (1, 1), (0, 0))

    def head(self, x, classes):
        """Global sum, flatten, dense."""
        x = self._add(Flatten, self.sum_pool(x, self.shapes[x][1:]))
        return self._add(Dense, x, classes, self.weight_bits)


def resnet18(size, classes=3, result="scores", bits=10, weight_bits=15):
    """The shape of ResNet-18, BatchNorm folded, ReLU behind the first pooling."""
    b = Builder((3, size, size), weight_bits)
    x = b.relu(b.max_pool(b.conv(0, 64, 7, 2, 3), low=weight_bits), 0)
    for stage, channels in enumerate((64, 128, 256, 512)):
        for block in range(2):
            stride = 2 if stage and not block else 1
            y = b.conv(b.relu(b.conv(x, channels, 3, stride)), channels)
            if stride == 2:
                y = b.add(y, b.conv(x, channels, 1, 2, 0))
            else:
                y = b.add(y, x, 0, weight_bits)
            x = b.relu(y)
    b.head(x, classes)
    return b.plan(bits, result)
