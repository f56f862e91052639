"""From torch.export to a program: the same function, or a refusal that names the operator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from primia.errors import InvalidInput
from primia.learning.layout import write_state
from primia.learning.models import flatten, state_layout
from primia.learning.programs.exported import program_of
from primia.learning.programs.file import read_program, save_program
from primia.learning.programs.network import Network
from primia.learning.programs.reader import UnsupportedOperator
from tests.support.programs import Own, export


@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_network_gives_the_same_program_from_either_mode(batch_norm):
    module = Own(batch_norm=batch_norm)
    found = [program_of(export(module.train(mode))) for mode in (True, False)]
    (program, vector), (same, _) = found
    assert program == same
    network = Network(program)
    assert [n for n, _ in network.named_parameters()] == [n for n, _ in module.named_parameters()]
    np.testing.assert_array_equal(vector, flatten(module))


def test_one_step_of_training_moves_it_as_it_moves_the_users_own(tmp_path: Path):
    module = Own(batch_norm=True).train()
    module.drop.p = 0.0
    path = tmp_path / "own.program"
    save_program(export(module), path)
    program, vector = read_program(path)
    network = Network(program).train()
    network.load_state_dict(module.state_dict())
    images = torch.linspace(-1, 1, 6 * 256).reshape(6, 1, 16, 16).sin()
    for each in (module, network):
        optimiser = torch.optim.SGD(each.parameters(), lr=0.1)
        nn.functional.cross_entropy(each(images), torch.tensor([0, 1] * 3)).backward()
        optimiser.step()
    assert np.abs(flatten(module) - vector).max() > 1e-3
    np.testing.assert_allclose(flatten(network), flatten(module), atol=1e-6)


class Layers(nn.Module):
    """``first`` is the user's own forward; the head follows."""

    def __init__(self, first) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.rnn = nn.LSTM(14, 14)
        self.still = nn.BatchNorm2d(4, track_running_stats=False)
        self.first = first

    def forward(self, images):
        return self.head(self.first(self, self.conv(images)).mean((2, 3)))


@pytest.mark.parametrize(
    ("first", "named"),
    [
        (lambda m, x: x * m.scale, "mul: it works on 'scale'"),
        (lambda m, x: torch.fft.rfft(x).abs(), "fft_rfft: a program has no such operator"),
        (lambda m, x: x - x.mean(0, keepdim=True), "mean: it mixes the images of a batch"),
        (lambda m, x: x + x.flip(0), "flip: a program has no such operator"),
        (lambda m, x: x + torch.ones(14), "ones: a program has no such operator"),
        (lambda m, x: torch.nn.functional.conv2d(x, m.conv.weight.expand(4, 4, 3, 3)), "expand"),
        (lambda m, x: m.still(x), "batch_norm in still: it keeps no running statistics"),
        (lambda m, x: torch.add(x, x, alpha=2), "add: its alpha is not 1"),
        (lambda m, x: x.clamp(min=0.5), "clamp: a program has no such operator"),
        (lambda m, x: nn.functional.pad(x, (1, 1, 0, 0), mode="circular"), "only zeros are taken"),
    ],
)  # fmt: skip
def test_what_a_program_cannot_say_is_refused_by_operator(first, named):
    with pytest.raises(UnsupportedOperator) as caught:
        program_of(export(Layers(first)))
    assert named in str(caught.value)


def test_parts_in_different_modes_are_refused():
    module = Own(batch_norm=True).train()
    module.norm.eval()
    with pytest.raises(UnsupportedOperator, match="others in evaluation mode"):
        program_of(export(module))


def test_a_fixed_batch_is_refused_with_the_way_out():
    exported = torch.export.export(Own(), (torch.zeros(2, 1, 16, 16),))
    with pytest.raises(UnsupportedOperator, match="for any batch"):
        program_of(exported)


def test_work_in_place_on_what_is_used_again_is_found_by_comparing():
    def first(_module, maps):
        flat = maps.flatten(1)
        flat.mul_(3)  # maps as well
        return maps

    with pytest.raises(UnsupportedOperator, match="other scores than the model"):
        program_of(export(Layers(first)))


def test_a_file_without_a_program_or_with_other_tensors_is_refused(tmp_path: Path):
    network = Network(program_of(export(Own()))[0])
    path = tmp_path / "own.program"
    path.write_bytes(write_state(flatten(network), state_layout(network)))
    with pytest.raises(InvalidInput, match="holds no program"):
        read_program(path)
    other = nn.Linear(2, 2)
    text = program_of(export(Own()))[0].text
    path.write_bytes(write_state(flatten(other), state_layout(other), {"program": text}))
    with pytest.raises(InvalidInput, match="is missing"):
        read_program(path)
    with pytest.raises(InvalidInput, match="no file"):
        read_program(tmp_path / "missing")
