"""What the benchmarks' figures rest on: the link's times, a figure's verdict, folded weights."""

from __future__ import annotations

import importlib
import json
import pkgutil
import time

import numpy as np
import pytest
import torch

import benchmarks
from benchmarks import inference, inference_parts, inference_plots
from benchmarks import kernels as kernel_speeds
from benchmarks.bed.breakdown import step_names
from benchmarks.bed.link import _Switch
from benchmarks.bed.report import Figure, choose
from benchmarks.inference_plots import _computed, _systems
from benchmarks.inference_sweep import Counted, crypten_counted
from benchmarks.peers.crypten import folded
from primia.mpc.material import PARTS, part_size
from tests.support.inference import Builder, resnet18

MODULES = [
    module.name
    for module in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")
    # These run in the environment of the system that they measure; __main__ runs at once.
    if not module.name.endswith(("crypten_party", "__main__")) and "flower_app" not in module.name
]


@pytest.mark.parametrize("name", MODULES)
def test_every_benchmark_can_be_imported(name: str):
    importlib.import_module(name)


def test_a_packet_waits_for_its_line_and_arrives_a_delay_later():
    switch = _Switch([10, 11, 12])
    switch.delay, switch.rate, switch.slow = 0.1, 1000.0, frozenset({0, 1})
    now = time.monotonic()
    first, second = switch._arrival(0, 1, 500), switch._arrival(0, 1, 500)
    assert first - now == pytest.approx(0.6, abs=0.05)
    assert second - first == pytest.approx(0.5)
    assert switch._arrival(1, 0, 500) - now == pytest.approx(0.6, abs=0.05)  # its own line
    assert switch._arrival(0, 2, 500) - now == pytest.approx(0, abs=0.05)  # not slowed


def test_an_unlimited_line_only_delays():
    switch = _Switch([10, 11])
    switch.delay, switch.slow = 0.2, frozenset({0, 1})
    now = time.monotonic()
    arrivals = [switch._arrival(0, 1, 10**6) - now for _ in range(3)]
    assert arrivals == pytest.approx([0.2] * 3, abs=0.05)


def test_a_figure_is_the_median_held_against_its_limits():
    def figure(*values: float, **limits: float) -> Figure:
        return Figure("g", "n", "s", "c", list(values), **limits)

    assert figure(3, 1, 2).value == 2
    assert figure(3, 1, 2).met is None
    assert figure(at_most=1).met is None  # not measured
    assert figure(1, 2, 9, at_most=2).met is True
    assert figure(1, 3, 9, at_most=2).met is False
    assert figure(10, at_least=9).met is True
    assert figure(8, at_least=9).met is False


def test_groups_are_chosen_in_their_own_order_and_unknown_ones_named():
    assert choose([], ("a", "b")) == ("a", "b")
    assert choose(["b", "a"], ("a", "b", "c")) == ("a", "b")
    with pytest.raises(SystemExit, match="nothing"):
        choose(["nothing"], ("a",))


def test_folding_batchnorm_keeps_the_layer():
    generator = torch.Generator().manual_seed(1)
    conv = torch.nn.Conv2d(2, 3, 3, bias=False)
    norm = torch.nn.BatchNorm2d(3).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data.uniform_(0.5, 2, generator=generator)
    state = {"conv1.weight": conv.weight.detach().numpy()}
    state |= {f"bn1.{k}": v.detach().numpy() for k, v in norm.state_dict().items() if v.ndim}
    found = folded(state)
    x = torch.linspace(-1, 1, 2 * 5 * 5).reshape(1, 2, 5, 5)
    with torch.no_grad():
        wanted = norm(conv(x)).numpy()
        weight, bias = (torch.from_numpy(found[f"conv1.{k}"]) for k in ("weight", "bias"))
        got = torch.nn.functional.conv2d(x, weight, bias).numpy()
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_row_that_is_too_slow_is_computed_from_what_was_counted():
    counted = Counted(seconds=38.0, rounds=273, bytes=4e9)
    assert counted.over(0, 0) == 38
    assert counted.over(100, 0) == pytest.approx(38 + 27.3)
    assert counted.over(0, 100) == pytest.approx(38 + 320)
    assert "computed" in counted.told()
    measured = [[10, 0, 53.0, 273, 4e9], [0, 0, 38.0, 273, 4e9]]
    assert crypten_counted(measured) == counted
    assert crypten_counted(measured[:1]) is None


def test_the_plots_tell_computed_rows_from_measured_ones():
    series = {"sweep_computed": [["CrypTen", 200.0, 0.0, 93.0], ["CrypTen", 0.0, 10.0, 3240.0]]}
    measured = [[0.0, 38.0]]
    assert _computed(series, "CrypTen", measured, rate=False) == [[0.0, 38.0], [200.0, 93.0]]
    assert _computed(series, "CrypTen", [], rate=True) == [[10.0, 3240.0]]
    assert _computed(series, "SecureNN", measured, rate=False) == []


def test_the_plots_have_one_figure_a_place():
    """The sweep's, where the line without delay was measured on loopback as well."""
    figures = [
        {"group": "loopback", "name": "online, exact", "value": 0.5},
        {"group": "delay", "name": "online, 10 ms one way", "value": 1.0},
        {"group": "delay", "name": "online, 100 Mbit/s", "value": 3.0},
    ]
    series = {"sweep": [[0.0, 0.0, 0.7], [25.0, 0.0, 1.5]], "securenn": [[0.0, 0.0, 6.0]]}
    delays, rates = _systems({"figures": figures, "series": series})
    assert delays["fss"] == [[0, 0.7], [10, 1.0], [25.0, 1.5]]
    assert rates["fss"] == [[100, 3.0]]
    assert delays["SecureNN"] == [[0.0, 6.0]]


def test_plots_are_drawn_of_whatever_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(inference_plots, "RESULTS", tmp_path)
    rows = [[28, 0.1, 0.3, 10**6], [64, 0.2, 0.5, 10**7]]
    document = {"figures": [], "series": {"sides_lenet": rows, "sweep": [[0, 0, 1], [25, 0, 2]]}}
    file = tmp_path / "inference.json"
    file.write_text(json.dumps(document))
    drawn = inference_plots.draw(file)
    assert {path.name for path in drawn} == {"inference-delay.png", "inference-sides.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_a_step_is_named_by_all_layers_that_it_computes():
    found = step_names(resnet18(64))
    assert found[:4] == ["layer0 + layer2 1 of 2", "layer2 2 of 2", "layer3", "layer4 + layer6"]
    # Two linear layers side by side, and their sum.
    assert "layer21 + layer22 + layer23 + layer25" in found
    assert found[-1] == "layer63 + layer65 + result"


@pytest.mark.parametrize("classes", [2, 5])
def test_a_label_has_its_tournament_among_the_steps(classes):
    b = Builder((1, 8, 8))
    b.head(b.relu(b.conv(0, 4)), classes)
    plan = b.plan(10, "label")
    found = step_names(plan)
    assert len(found) == plan.requests
    assert [name.split(" + ")[-1] for name in found] == [
        *[gate.layer for gate in plan.gates()],
        "result",
    ]
    assert found[1].endswith(" + label")
    assert found[-1] == "result"


def test_every_group_of_the_inference_benchmark_has_its_code():
    assert list(inference.GROUPS) == list(inference._RUN)


@pytest.mark.parametrize("gpu", [False, True])
def test_a_kernel_is_measured_where_the_machine_has_it(monkeypatch, gpu):
    monkeypatch.setattr(kernel_speeds.kernels, "supported", lambda name: gpu or name != "gpu")
    names = [name for name, _ in kernel_speeds.rows()]
    assert names[:2] == ["numpy", "native"]
    assert ("gpu" in names) == gpu


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stock_is_dealt_and_thrown_away(tmp_path, monkeypatch, workers):
    made = []
    write = inference_parts.write_parts

    def counted(plan, batch, mask, folder):
        write(plan, batch, mask, folder)
        made.append(sum(file.stat().st_size for file in folder.iterdir()))

    monkeypatch.setattr(inference_parts, "write_parts", counted)
    plan = inference_parts.resnet18(32, "scores")
    assert inference_parts.stock(plan, 1, workers, tmp_path) > 0
    assert made == [sum(part_size(plan, 1, part) for part in PARTS)] * (2 * workers + 1)
    assert list(tmp_path.iterdir()) == []
