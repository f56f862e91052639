"""``primia models import --imagenet``: fetched, checked, adapted, the model's next version."""

from __future__ import annotations

import hashlib
import io
import json
import re

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from primia.cli.downloads import cache_folder
from primia.cli.main import create_app
from primia.learning import pretrained
from primia.learning.vision import torchvision_models
from services.model_owner.main import create_service
from tests.support.contexts import Cast
from tests.support.encrypted import OWNER, Running
from tests.support.servers import free_port

# Among what the service in this process logs.
DOCUMENT = re.compile(r"^\{$.*?^\}$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def run(tmp_path, broker_url, monkeypatch):
    """run(*words): what the command prints, for alice of a model owner."""
    cast, service, port = Cast(tmp_path / "cast"), create_service(), free_port()
    url, home = f"http://127.0.0.1:{port}", cast.home("alice")
    profile = tmp_path / "profile.toml"
    profile.write_text(
        f'user = "alice"\nkey = "{home / "identity.pem"}"\n'
        f'[owner]\nname = "{OWNER}"\nurl = "{url}"\n'
    )
    monkeypatch.setenv("PRIMIA_PROFILE", str(profile))

    def build():
        dealer = {"dealer_url": "http://127.0.0.1:9"}
        return cast.context(service.kind, OWNER, service.settings, broker_url, **dealer)

    owner = Running(service, build, port)
    yield lambda *words: CliRunner().invoke(create_app(), ["models", *words])
    owner.close()


@pytest.fixture
def weights(site, monkeypatch):
    """Of 1000 classes, at the site, under a name with its hash, as torchvision keeps them."""
    torch.manual_seed(11)
    state = torchvision_models().resnet18(weights=None).state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    digest = hashlib.sha256(file.getvalue()).hexdigest()
    path = f"/models/resnet18-{digest[:8]}.pth"
    site.files[path] = file.getvalue()
    known = pretrained.imagenet_url("resnet18")
    assert known.startswith("https://download.pytorch.org/models/resnet18-")
    monkeypatch.setattr(pretrained, "imagenet_url", lambda name: site.address + path)
    return state


def test_weights_of_imagenet_become_the_next_version(run, site, weights, tmp_path):
    created = ("create", "chest", "--classes", "a,b", "--image-size", "32", "--channels", "1")
    done = run(*created)
    assert done.exit_code == 0, done.output
    for number in (2, 3):  # the second time from the cache
        done = run("import", "chest", "--imagenet", "--format", "json")
        assert done.exit_code == 0, done.output
        version = json.loads(DOCUMENT.search(done.stdout)[0])
        assert (version["version"], version["state"], version["parent"]) == (number, "ready", 1)
    assert len(site.asked) == 1
    target = tmp_path / "chest.safetensors"
    assert run("download", "chest", "2", str(target)).exit_code == 0
    found = load_file(target)
    assert torch.equal(found["layer4.1.conv2.weight"], weights["layer4.1.conv2.weight"])
    torch.testing.assert_close(found["conv1.weight"], weights["conv1.weight"].sum(1, keepdim=True))
    assert found["fc.weight"].shape == (2, 512)  # the model's own


def test_what_is_not_the_file_of_its_name_is_not_taken(run, site, weights):
    assert run("create", "chest", "--classes", "a,b", "--image-size", "32").exit_code == 0
    (path,) = site.files
    site.files[path] = site.files[path][:-1] + b"x"
    done = run("import", "chest", "--imagenet")
    assert done.exit_code == 1
    assert "is not the file that its name's hash promises" in " ".join(done.output.split())
    assert list(cache_folder().iterdir()) == []
    site.files.clear()
    done = run("import", "chest", "--imagenet")
    assert done.exit_code == 1
    assert "could not be fetched" in " ".join(done.output.split())


def test_a_model_without_such_weights_is_told_so(run):
    assert run("create", "small", "--classes", "a,b", "--architecture", "lenet").exit_code == 0
    for words, told in (
        (("import", "small", "--imagenet"), "no ImageNet weights for lenet"),
        (("import", "small"), "either a file or --imagenet"),
    ):
        done = run(*words)
        assert done.exit_code == 1
        assert told in " ".join(done.output.split())
