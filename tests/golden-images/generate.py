"""Writes the golden relevances of convolutional networks, and PyTorch's outputs of every kind of layer.

The relevances are zennit's, in f64; 0.5.1 and 1.0.0 give the same. Normalizations are merged by the script, because the network
that zennit 0.5.1's canonizers leave is another one (docs/numerics.md). The script checks that the outputs stay the same, and that
zennit's own canonizer comes to the same relevances.
"""

import copy
import itertools
import json
import random
import struct
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn
from zennit import layer as zennit_layer
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import LayerMapComposite, SpecialFirstLayerMapComposite, layer_map_base
from zennit.rules import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from zennit.types import Convolution

HERE = Path(__file__).resolve().parent
SAMPLES, TARGETS = 2, 3
LOW, HIGH = -3.0, 3.0
# zennit adds this to the number of inputs; below rounding it is nothing.
NO_STABILIZER = 1e-100
# A draw is taken where f32 has its relevances to so much of the largest: no total is too near to zero.
STABLE = 2e-5


def all_settings(module):
    """PyTorch does not print the last two of an average pooling."""
    settings = f"kernel_size={module.kernel_size}, stride={module.stride}, padding={module.padding}"
    return f"{settings}, ceil_mode={module.ceil_mode}, count_include_pad={module.count_include_pad}"


nn.AvgPool1d.extra_repr = nn.AvgPool2d.extra_repr = all_settings


class Residual(nn.Sequential):
    """The sum of its children, the branches."""

    def forward(self, x):
        return sum(branch(x) for branch in self)


class Concat(nn.Sequential):
    """The outputs of its children one after another."""

    def forward(self, x):
        return torch.cat([branch(x) for branch in self], 1)


class Summed(nn.Module):
    """A residual block with the sum as a module, which zennit needs to see."""

    def __init__(self, branches):
        super().__init__()
        self.branches, self.sum = nn.ModuleList(branches), zennit_layer.Sum()

    def forward(self, x):
        return self.sum(torch.stack([branch(x) for branch in self.branches], dim=-1))


def norm(channels):
    module = nn.BatchNorm2d(channels)
    nn.init.uniform_(module.weight, 0.5, 1.5)
    nn.init.normal_(module.bias, std=0.2)
    nn.init.normal_(module.running_mean, std=0.3)
    nn.init.uniform_(module.running_var, 0.5, 2.0)
    return module


def conv(*arguments, **settings):
    return nn.Conv2d(*arguments, **settings)


def basic(inputs, outputs, stride=1):
    main = nn.Sequential(
        conv(inputs, outputs, 3, stride=stride, padding=1, bias=False), norm(outputs), nn.ReLU(),
        conv(outputs, outputs, 3, padding=1, bias=False), norm(outputs),
    )
    same = stride == 1 and inputs == outputs
    short = nn.Sequential() if same else nn.Sequential(conv(inputs, outputs, 1, stride=stride, bias=False), norm(outputs))
    return [Residual(main, short), nn.ReLU()]


def bottleneck(inputs, inner, outputs, stride=1):
    main = nn.Sequential(
        conv(inputs, inner, 1, bias=False), norm(inner), nn.ReLU(),
        conv(inner, inner, 3, stride=stride, padding=1, bias=False), norm(inner), nn.ReLU(),
        conv(inner, outputs, 1, bias=False), norm(outputs),
    )
    same = stride == 1 and inputs == outputs
    short = nn.Sequential() if same else nn.Sequential(conv(inputs, outputs, 1, stride=stride, bias=False), norm(outputs))
    return [Residual(main, short), nn.ReLU()]


def head(inputs, outputs=4):
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, outputs)]


NETWORKS = {
    "vgg": ((2, 8, 8), lambda: nn.Sequential(
        conv(2, 5, 3, padding=1), nn.ReLU(), conv(5, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Sequential(conv(5, 7, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(), nn.Linear(28, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 4))),
    "vgg-wide": ((3, 12, 12), lambda: nn.Sequential(
        conv(3, 16, 3, padding=1), nn.ReLU(), conv(16, 18, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), *head(18))),
    "resnet-basic": ((2, 8, 8), lambda: nn.Sequential(
        conv(2, 6, 3, padding=1, bias=False), norm(6), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1),
        *basic(6, 6), *basic(6, 8, 2), *head(8))),
    "resnet-bottleneck": ((2, 9, 9), lambda: nn.Sequential(
        conv(2, 6, 5, stride=2, padding=2, bias=False), norm(6), nn.ReLU(),
        nn.Sequential(*bottleneck(6, 3, 8), *bottleneck(8, 4, 8)), *bottleneck(8, 4, 10, 2), *head(10))),
    "dilated": ((1, 10, 10), lambda: nn.Sequential(
        conv(1, 4, 3, padding=2, dilation=2), nn.ReLU(), conv(4, 5, 3, dilation=2), nn.ReLU(), *head(5))),
    "grouped": ((4, 7, 7), lambda: nn.Sequential(
        conv(4, 8, 3, groups=2, padding=1), nn.ReLU(), conv(8, 8, 3, groups=8), nn.ReLU(), conv(8, 6, 1), nn.ReLU(), *head(6))),
    "transposed": ((5, 3, 3), lambda: nn.Sequential(
        nn.ConvTranspose2d(5, 4, 3, stride=2, padding=1, output_padding=1), nn.ReLU(),
        nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1), nn.ReLU(), *head(2))),
    "sequence": ((3, 20), lambda: nn.Sequential(
        nn.Conv1d(3, 6, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(6, 5, 3, stride=2), nn.ReLU(),
        nn.AvgPool1d(2), nn.Flatten(), nn.Linear(10, 4))),
    "averages": ((2, 11, 11), lambda: nn.Sequential(
        conv(2, 4, 3), nn.ReLU(), nn.AvgPool2d(3, stride=2, padding=1), conv(4, 5, 2), nn.ReLU(),
        nn.AvgPool2d(2, ceil_mode=True, padding=1, count_include_pad=False), nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(),
        nn.Linear(20, 4))),
    "inception": ((2, 6, 6), lambda: nn.Sequential(
        conv(2, 4, 3, padding=1), nn.ReLU(),
        Concat(nn.Sequential(conv(4, 3, 1), nn.ReLU()), nn.Sequential(conv(4, 3, 3, padding=1), nn.ReLU()), nn.Sequential()),
        conv(10, 5, 3), nn.ReLU(), *head(5))),
    "upsample": ((2, 4, 4), lambda: nn.Sequential(
        conv(2, 4, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2), conv(4, 3, 3), nn.ReLU(), *head(3))),
    "nested-branches": ((2, 6, 6), lambda: nn.Sequential(
        conv(2, 3, 1), nn.ReLU(),
        Residual(nn.Sequential(Residual(nn.Sequential(conv(3, 3, 3, padding=1), nn.ReLU()), nn.Sequential()), nn.ReLU()),
                 nn.Sequential(conv(3, 3, 1))), nn.ReLU(), *head(3))),
}


def everywhere(rule):
    return lambda: LayerMapComposite(layer_map=layer_map_base() + [(Convolution, rule()), (nn.Linear, rule())])


def first_and(first, convolutions, dense=lambda: Epsilon()):
    layer_map = layer_map_base() + [(Convolution, convolutions()), (nn.Linear, dense())]
    return lambda: SpecialFirstLayerMapComposite(layer_map=layer_map, first_map=[(Convolution, first()), (nn.Linear, first())])


def preset(convolutions):
    return lambda: LayerMapComposite(layer_map=layer_map_base() + [(Convolution, convolutions()), (nn.Linear, Epsilon())])


def flat():
    return Flat(stabilizer=NO_STABILIZER)


def box():
    return ZBox(low=LOW, high=HIGH)


RULES = {
    "epsilon": everywhere(Epsilon),
    "gamma": everywhere(lambda: Gamma(gamma=0.25)),
    "zplus": everywhere(ZPlus),
    "alpha2-beta1": everywhere(lambda: AlphaBeta(alpha=2.0, beta=1.0)),
    "first-flat": first_and(flat, Epsilon),
    "first-wsquare": first_and(lambda: WSquare(zero_params="bias"), Epsilon),
    "first-zbox": first_and(box, Epsilon),
    "epsilon-plus": preset(ZPlus),
    "epsilon-plus-flat": first_and(flat, ZPlus),
    "epsilon-alpha2-beta1": preset(lambda: AlphaBeta(alpha=2.0, beta=1.0)),
    "epsilon-alpha2-beta1-flat": first_and(flat, lambda: AlphaBeta(alpha=2.0, beta=1.0)),
    "epsilon-gamma-box": first_and(box, lambda: Gamma(gamma=0.25)),
}


def twin(module, merge=True):
    """The network as zennit has to see it, with normalizations merged."""
    if isinstance(module, Residual):
        return Summed([twin(branch, merge) for branch in module])
    if isinstance(module, (nn.Sequential, Concat)):
        children = [twin(child, merge) for child in module]
        merged = []
        for child in children:
            if merge and isinstance(child, nn.BatchNorm2d):
                merged[-1] = absorb(merged[-1], child)
            else:
                merged.append(child)
        return type(module)(*merged)
    return module


def absorb(before, after):
    scale = after.weight / (after.running_var + after.eps).sqrt()
    made = nn.Conv2d(
        before.in_channels, before.out_channels, before.kernel_size, before.stride, before.padding, before.dilation, before.groups
    ).to(before.weight.dtype)
    with torch.no_grad():
        made.weight.copy_(before.weight * scale[:, None, None, None])
        bias = 0.0 if before.bias is None else before.bias
        made.bias.copy_((bias - after.running_mean) * scale + after.bias)
    return made


def relevances(net, x, composite):
    """Of the first outputs, each with its own value to begin with: samples x targets x inputs."""
    found = []
    with Gradient(net, composite) as attributor:
        for target in range(TARGETS):
            def begin(output, target=target):
                only = torch.zeros_like(output)
                only[:, target] = output[:, target]
                return only

            found.append(attributor(x.clone(), begin)[1].detach().flatten(1))
    return torch.stack(found, 1)


def off(found, golden):
    return ((found.double() - golden).abs().max() / golden.abs().max()).item()


def draw(name):
    """A network with inputs at which f32 is good enough."""
    shape, build = NETWORKS[name]
    for seed in itertools.count(1):
        torch.manual_seed(seed)
        net = build().eval()
        for module in net.modules():
            if getattr(module, "bias", None) is not None and not isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.bias, std=0.2)
        x = torch.randn(SAMPLES, *shape).clamp(LOW, HIGH)
        x[0] = x[0].abs()
        with torch.no_grad():
            outputs = net(x)
        outputs = outputs.shape[1]
        if outputs < TARGETS:
            # A narrow head has as many targets as the others.
            net[-1] = nn.Linear(net[-1].in_features, 4)
        single = {rule: relevances(twin(net), x, make()) for rule, make in RULES.items()}
        net, x = net.double(), x.double()
        goldens = {rule: relevances(twin(net), x, make()) for rule, make in RULES.items()}
        if all(off(single[rule], goldens[rule]) < STABLE for rule in RULES):
            return net, x, goldens


def checked(net, x):
    """The script's own merging is right, and zennit's comes to the same."""
    # A copy: after zennit 1.0.0 has merged a network's normalizations its state dict has the merged weights.
    net = copy.deepcopy(net)
    assert (twin(net)(x) - net(x)).abs().max() < 1e-12
    if version("zennit").startswith("0."):
        # Its merged network has the normalizations' eps twice.
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
    ours = relevances(twin(net), x, RULES["epsilon-plus"]())
    theirs = preset(ZPlus)()
    theirs.canonizers = [SequentialMergeBatchNorm()]
    assert off(relevances(twin(net, merge=False), x, theirs), ours) < 1e-10


def write(path, tensors, metadata=None):
    """A safetensors file with its metadata in order, so that a second run gives the same bytes."""
    raw = save({key: value.detach().contiguous() for key, value in tensors.items()})
    (length,) = struct.unpack("<Q", raw[:8])
    header = ({"__metadata__": metadata} if metadata else {}) | json.loads(raw[8 : 8 + length])
    header = json.dumps(header, separators=(",", ":")).encode()
    # The data has to begin at a multiple of 8 bytes.
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])


def networks():
    # The build suffix (CPU or CUDA) is not a version.
    generator = f"torch {version('torch').split('+')[0]}, zennit {version('zennit')}"
    for name, (shape, _) in NETWORKS.items():
        net, x, goldens = draw(name)
        checked(net, x)
        tensors = {f"model.{key}": value for key, value in net.state_dict().items()}
        tensors |= {"golden.input": x.flatten(1), "golden.output": net(x)}
        tensors |= {f"golden.{rule}": golden for rule, golden in goldens.items()}
        metadata = {"architecture": repr(net), "generator": generator, "input": " ".join(map(str, shape))}
        write(HERE / f"{name}.safetensors", tensors, metadata)
        print(name, sum(value.numel() for value in tensors.values()))


def layers():
    """Layers with settings drawn from a grid, where PyTorch takes them, and the shapes that they are tried at."""
    pick = random.Random(0)
    odd = [5, 6, 7, 9]
    kinds = ["Conv2d"] * 60 + ["Conv1d"] * 30 + ["ConvTranspose2d"] * 50 + ["MaxPool2d"] * 30 + ["MaxPool1d"] * 15
    kinds += ["AvgPool2d"] * 30 + ["AvgPool1d"] * 15 + ["AdaptiveAvgPool2d"] * 12 + ["AdaptiveAvgPool1d"] * 6
    kinds += ["BatchNorm2d"] * 3 + ["BatchNorm1d"] * 3 + ["Upsample"] * 4
    for kind in kinds:
        while True:
            channels = pick.choice([2, 4])
            plane = [pick.choice(odd)] if kind.endswith("1d") else [pick.choice(odd), pick.choice(odd)]
            each = lambda low, high: tuple(pick.randint(low, high) for _ in plane)
            settings = {}
            if "Conv" in kind:
                settings = dict(stride=each(1, 3), padding=each(0, 2), dilation=each(1, 2), groups=pick.choice([1, 1, 2]), bias=pick.choice([True, False]))
                if kind == "ConvTranspose2d":
                    settings["output_padding"] = tuple(pick.randint(0, max(s, d) - 1) for s, d in zip(settings["stride"], settings["dilation"]))
                make = lambda: getattr(nn, kind)(channels, pick.choice([2, 6]), each(1, 5), **settings)
            elif kind.startswith("Max"):
                kernel, stride = pick.randint(1, 4), pick.randint(1, 3)
                make = lambda: getattr(nn, kind)(kernel, stride, pick.randint(0, kernel // 2), pick.randint(1, 2), ceil_mode=pick.choice([True, False]))
            elif kind.startswith("Avg"):
                kernel, stride = pick.randint(1, 4), pick.randint(1, 3)
                make = lambda: getattr(nn, kind)(kernel, stride, pick.randint(0, kernel // 2), ceil_mode=pick.choice([True, False]), count_include_pad=pick.choice([True, False]))
            elif kind.startswith("Adaptive"):
                make = lambda: getattr(nn, kind)(each(1, 5) if len(plane) == 2 else pick.randint(1, 5))
            elif kind == "BatchNorm2d":
                make = lambda: norm(channels)
            elif kind == "BatchNorm1d":
                make = lambda: nn.BatchNorm1d(channels)
            else:
                make = lambda: nn.Upsample(scale_factor=pick.randint(1, 3))
            try:
                layer = make().double().eval()
                x = torch.randn(channels, *plane, dtype=torch.float64)
                with torch.no_grad():
                    y = layer(x[None])[0]
            except RuntimeError:
                continue
            if y.numel():
                break
        yield layer, x, y


def grid():
    torch.manual_seed(0)
    tensors, lines = {}, []
    for number, (layer, x, y) in enumerate(layers()):
        tensors |= {f"{number}.model.0.{key}": value for key, value in layer.state_dict().items()}
        tensors |= {f"{number}.input": x.flatten(), f"{number}.output": y.flatten()}
        lines.append(f"{' '.join(map(str, x.shape))} | {' '.join(map(str, y.shape))} | {layer!r}")
    write(HERE / "grid.safetensors", tensors)
    (HERE / "grid.txt").write_text("\n".join(lines) + "\n")
    print("grid", len(lines))


if __name__ == "__main__":
    torch.set_num_threads(1)
    grid()
    networks()
