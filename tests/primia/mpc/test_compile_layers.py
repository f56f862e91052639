"""What the compiler refuses, by the module's path and with the reason."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from primia.errors import InvalidInput, UnsupportedModel
from primia.mpc.compile import compile_model
from primia.mpc.compile_trace import trace
from primia.mpc.fold import fold


class Around(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
        self.middle = nn.ModuleDict({"odd": layer})
        self.pool, self.flat = nn.AdaptiveMaxPool2d(1), nn.Flatten()

    def forward(self, x):
        return self.flat(self.middle["odd"](self.head(x)))


UNKNOWN = "not one the protocol has"
REFUSED = [
    (nn.Sigmoid(), "Sigmoid", UNKNOWN),
    (nn.Softmax(1), "Softmax", UNKNOWN),
    (nn.GELU(), "GELU", UNKNOWN),
    (nn.ReLU6(), "ReLU6", UNKNOWN),
    (nn.LeakyReLU(), "LeakyReLU", UNKNOWN),
    (nn.Tanh(), "Tanh", UNKNOWN),
    (nn.LayerNorm([4, 8, 8]), "LayerNorm", UNKNOWN),
    (nn.GroupNorm(2, 4), "GroupNorm", UNKNOWN),
    (nn.InstanceNorm2d(4), "InstanceNorm2d", UNKNOWN),
    (nn.ConvTranspose2d(4, 4, 2), "ConvTranspose2d", UNKNOWN),
    (nn.AdaptiveMaxPool2d(1), "AdaptiveMaxPool2d", UNKNOWN),
    (nn.Upsample(scale_factor=2), "Upsample", UNKNOWN),
    (nn.Conv2d(4, 4, 3, dilation=2), "Conv2d", r"dilation \(2, 2\) is not 1"),
    (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "Conv2d", "padding_mode is 'reflect'"),
    (nn.Conv2d(4, 4, 2, padding="same"), "Conv2d", "even kernel"),
    (nn.MaxPool2d(2, ceil_mode=True), "MaxPool2d", "ceil_mode"),
    (nn.MaxPool2d(2, dilation=2), "MaxPool2d", "dilation is not 1"),
    (nn.AvgPool2d(2, ceil_mode=True), "AvgPool2d", "ceil_mode"),
    (nn.AvgPool2d(2, padding=1, count_include_pad=False), "AvgPool2d", "count_include_pad"),
    (nn.AdaptiveAvgPool2d(3), "AdaptiveAvgPool2d", r"\(3, 3\) does not divide its input \(8, 8\)"),
    (nn.BatchNorm2d(4), "BatchNorm", "must follow a convolution"),
    (nn.BatchNorm2d(4, track_running_stats=False), "BatchNorm2d", "no running statistics"),
    (nn.Flatten(start_dim=2), "Flatten", "only flattening to a vector"),
]


@pytest.mark.parametrize(("layer", "kind", "reason"), REFUSED, ids=lambda part: str(part)[:28])
def test_a_layer_that_the_protocol_lacks_is_named_with_its_path(layer, kind, reason):
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        fold(trace(Around(layer).eval(), (1, 8, 8)))
    assert f"Layer 'middle.odd' ({kind})" in caught.value.detail
    assert "Supported: Conv2d" in caught.value.hint
    assert caught.value.extra == {"layer": "middle.odd", "kind": kind}
    assert caught.value.status == 422


class Called(nn.Module):
    """A function on the features of a small network."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.fc, self.function = nn.Conv2d(1, 2, 1), nn.Linear(32, 2), function

    def forward(self, x):
        return self.fc(torch.flatten(self.function(torch.relu(self.conv(x))), 1))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x * 0.5, "mul"),
        (lambda x: x - 1.0, "sub"),
        (lambda x: x + 1.0, "add"),
        (lambda x: torch.add(x, x, alpha=2), "add"),
        (lambda x: torch.cat([x, x], 2)[:, :, :4], "cat"),
        (torch.sigmoid, "sigmoid"),
        (lambda x: x.mean(1, keepdim=True).repeat(1, 2, 1, 1), "mean"),
        (lambda x: x.reshape(-1, 4, 2, 4), "reshape"),
        (lambda x: x.permute(0, 1, 3, 2), "permute"),
        (functional.dropout, "dropout"),
        (lambda x: functional.max_pool2d(x, 2, 1, 1, ceil_mode=True)[:, :, :4, :4], "max_pool2d"),
        (lambda x: functional.interpolate(x, scale_factor=1), "interpolate"),
    ],
)
def test_a_function_that_the_protocol_lacks_is_named(function, name):
    with pytest.raises(UnsupportedModel, match=rf"Layer '{name}[_0-9d]*' \({name}"):
        trace(Called(function).eval(), (1, 4, 4))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + x,
        lambda x: x.add(x),
        lambda x: functional.max_pool2d(x, 3, stride=1, padding=1),
        lambda x: functional.dropout(x, 0.5, False),
        lambda x: functional.relu(x, inplace=True),
        lambda x: functional.avg_pool2d(x, (1, 1)),
        lambda x: x.reshape(x.shape[0], -1),
        lambda x: x.contiguous(),
    ],
)
def test_the_functional_forms_of_known_layers_are_taken(function):
    model = compile_model(Called(function).eval(), (1, 4, 4))
    assert model.plan.classes == 2


def test_a_function_is_named_with_the_module_that_calls_it():
    module = nn.Sequential(Called(torch.sigmoid), nn.ReLU()).eval()
    with pytest.raises(UnsupportedModel, match=r"Layer '0\.sigmoid' \(sigmoid\)"):
        trace(module, (1, 4, 4))


def test_a_module_in_training_mode_is_refused_by_name():
    module = Called(nn.Identity()).eval()
    module.fc.train()
    with pytest.raises(InvalidInput, match="'fc' is in training mode"):
        compile_model(module, (1, 4, 4))


def test_a_hook_is_refused():
    module = Called(nn.Identity()).eval()
    module.conv.register_forward_hook(lambda part, given, result: result * 2)
    with pytest.raises(UnsupportedModel, match=r"'conv' \(Conv2d\).*hook"):
        compile_model(module, (1, 4, 4))


class Scaled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_subclass_of_a_known_layer_is_not_taken_for_it():
    module = Called(nn.Identity())
    module.conv = Scaled(1, 2, 1)
    with pytest.raises(
        UnsupportedModel, match=r"'conv.weight' \(parameter\).*outside of a torch.nn layer"
    ):
        compile_model(module.eval(), (1, 4, 4))


class Aliased(nn.Module):
    """The sum reads a value that an in-place ReLU changed after it was made."""

    def __init__(self):
        super().__init__()
        self.conv, self.other, self.fc = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), nn.Linear(32, 2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.conv(x)
        return self.fc(torch.flatten(torch.relu(self.relu(y) + y + self.other(x)), 1))


def test_an_in_place_change_of_a_value_that_is_read_again_is_noticed():
    torch.manual_seed(0)
    with pytest.raises(UnsupportedModel, match="something else than its traced layers"):
        compile_model(Aliased().eval(), (1, 4, 4))


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Twofold(nn.Module):
    def forward(self, x, y):
        return x + y


class Pairs(Called):
    def forward(self, x):
        y = super().forward(x)
        return y, y


def test_control_flow_on_values_is_refused():
    with pytest.raises(UnsupportedModel, match="Branching cannot be traced"):
        trace(Branching().eval(), (1, 4, 4))


def test_a_second_input_or_result_is_refused():
    with pytest.raises(UnsupportedModel, match="Twofold"):
        trace(Twofold().eval(), (1, 4, 4))
    with pytest.raises(UnsupportedModel, match="its last layer's tensor alone"):
        trace(Pairs(nn.Identity()).eval(), (1, 4, 4))


def test_a_shape_that_the_model_does_not_take_is_refused():
    with pytest.raises(UnsupportedModel, match=r"does not run on an input of shape \(3, 4, 4\)"):
        trace(Called(nn.Identity()).eval(), (3, 4, 4))


def test_scores_must_be_a_vector():
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()).eval()
    with pytest.raises(UnsupportedModel, match=r"scores \(classes,\) expected"):
        trace(module, (1, 4, 4))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_without_their_value(value):
    module = Called(nn.Identity()).eval()
    with torch.no_grad():
        module.conv.weight[1, 0, 0, 0] = value
    with pytest.raises(UnsupportedModel, match=r"'conv' \(Conv2d\).*weight holds a value"):
        trace(module, (1, 4, 4))


def test_two_linear_layers_need_a_relu_between_them():
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(), nn.Linear(8, 2)).eval()
    with pytest.raises(UnsupportedModel, match=r"'3' \(Linear\).*without a ReLU between"):
        compile_model(module, (1, 4, 4))
