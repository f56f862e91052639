"""Weights from torchvision's files: read strictly, checked by their hash, adapted to the model."""

import hashlib
import pickle  # what a hostile file is made of
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from primia.errors import InvalidInput
from primia.learning.hashed import check_hash
from primia.learning.layout import InvalidState
from primia.learning.models import create_model, flatten, load_model, spec_layout
from primia.learning.pretrained import adapt, imagenet_url, read_file
from primia.learning.spec import ModelSpec
from primia.learning.vision import torchvision_models


def spec(architecture="resnet18", **changes):
    given = {"architecture": architecture, "classes": ["a", "b"], "channels": 3, "image_size": 32}
    return ModelSpec.parse({**given, **changes})


def theirs(architecture, classes=5):
    """torchvision's own module with weights of its own drawing."""
    torch.manual_seed(11)
    module = getattr(torchvision_models(), architecture)(weights=None, num_classes=classes)
    return module.eval()


@pytest.fixture(scope="module")
def resnet():
    return theirs("resnet18")


@pytest.fixture(scope="module")
def file(resnet, tmp_path_factory):
    """The file as torchvision publishes it: saved by torch, named by its hash."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(resnet.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.rename(path.with_name(f"resnet18-{digest[:8]}.pth"))


def test_the_same_classes_and_channels_give_the_same_scores(resnet, file):
    wanted = spec(classes=list("abcde"))
    module = load_model(wanted, adapt(read_file(file), wanted))
    images = torch.linspace(-2, 2, 3 * 1024).reshape(1, 3, 32, 32)
    assert torch.equal(module(images), resnet(images))


def test_a_grey_image_gives_what_the_same_grey_in_three_channels_gives(resnet, file):
    wanted = spec(classes=list("abcde"), channels=1)
    module = load_model(wanted, adapt(read_file(file), wanted))
    grey = torch.linspace(-2, 2, 1024).reshape(1, 1, 32, 32)
    colour = grey.repeat(1, 3, 1, 1)
    torch.testing.assert_close(module(grey), resnet(colour), atol=1e-5, rtol=1e-4)


def test_a_model_with_group_norm_takes_all_but_the_running_statistics(resnet, file):
    """As differentially private training has it, which begins well from trained weights."""
    wanted = spec(classes=list("abcde"), norm="group")
    module = load_model(wanted, adapt(read_file(file), wanted))
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in module.modules())
    given = resnet.state_dict()
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, given[name])
    with pytest.raises(InvalidState, match="'odd' is not part"):
        adapt({**given, "odd": torch.zeros(1)}, wanted)


def test_other_classes_keep_the_models_own_last_layer(file):
    wanted = spec(seed=9)
    vector = adapt(read_file(file), wanted)
    layout, first = spec_layout(wanted), flatten(create_model(wanted))
    for slot in layout.slots:
        same = np.array_equal(vector[slot.span], first[slot.span])
        if "conv" in slot.name or slot.name.startswith("fc."):  # norms are alike before training
            assert same == slot.name.startswith("fc.")


@pytest.mark.parametrize("architecture", ["densenet121", "resnet50"])
def test_other_architectures(architecture):
    wanted = spec(architecture)
    state = theirs(architecture, 2).state_dict()
    module = load_model(wanted, adapt(state, wanted))
    for name, tensor in module.state_dict().items():
        assert name.endswith("tracked") or torch.equal(tensor, state[name])


def test_the_older_names_of_densenet():
    state = theirs("densenet121", 2).state_dict()
    older = {
        name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): tensor
        for name, tensor in state.items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    wanted = spec("densenet121")
    np.testing.assert_array_equal(adapt(older, wanted), adapt(state, wanted))


def test_safetensors_are_taken_too(resnet, file, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(resnet.state_dict(), path)
    np.testing.assert_array_equal(adapt(read_file(path), spec()), adapt(read_file(file), spec()))


def test_what_does_not_fit_is_named(file):
    state = dict(read_file(file))
    with pytest.raises(InvalidState, match="not part of vgg16"):
        adapt(state, spec("vgg16"))
    with pytest.raises(InvalidState, match=r"'bn1\.bias' is missing"):
        adapt({name: t for name, t in state.items() if name != "bn1.bias"}, spec())
    with pytest.raises(InvalidState, match=r"'layer1\.0\.conv1\.weight' is \(2, 2\)"):
        adapt({**state, "layer1.0.conv1.weight": torch.ones(2, 2)}, spec())
    with pytest.raises(InvalidState, match="not finite"):
        adapt({**state, "bn1.bias": torch.full((64,), torch.nan)}, spec())
    group = {name: t for name, t in state.items() if "running" not in name}
    with pytest.raises(InvalidState, match="running"):  # weights with GroupNorm, model without
        adapt(group, spec())


def test_a_file_that_breaks_the_promise_of_its_name(file, tmp_path):
    other = tmp_path / file.name
    other.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(InvalidInput, match="hash"):
        read_file(other)
    unnamed = tmp_path / "plain.pth"
    unnamed.write_bytes(b"")
    check_hash(unnamed)


class Hostile:
    def __reduce__(self):
        return (print, ("code of the file's maker has run",))


def test_a_file_that_would_run_code_is_refused_unrun(tmp_path, capsys):
    plain = tmp_path / "hostile.pth"
    plain.write_bytes(pickle.dumps({"fc.weight": Hostile()}, protocol=2))
    zipped = tmp_path / "zipped.pth"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Hostile(), protocol=2))
        archive.writestr("archive/version", "3")
    for path in (plain, zipped):
        with pytest.raises(InvalidInput, match="not a file of weights alone"):
            read_file(path)
    assert "has run" not in capsys.readouterr().out


@pytest.mark.parametrize("value", [[1, 2], {}, {"a": 1}, {1: torch.ones(1)}])
def test_what_is_no_dictionary_of_tensors(tmp_path, value):
    path = tmp_path / "odd.pth"
    torch.save(value, path)
    with pytest.raises(InvalidInput, match=r"odd\.pth"):
        read_file(path)


def test_files_that_are_not_there_or_damaged(tmp_path):
    with pytest.raises(InvalidInput, match="no file"):
        read_file(tmp_path / "nothing.pth")
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InvalidInput, match="no safetensors"):
        read_file(tmp_path / "bad.safetensors")


def test_where_torchvision_keeps_its_weights():
    assert imagenet_url("resnet18").endswith("/resnet18-f37072fd.pth")
    with pytest.raises(InvalidInput, match="lenet"):
        imagenet_url("lenet")
