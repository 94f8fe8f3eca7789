"""Draws small networks with a rule for each layer and writes them with their relevances, for `cargo test random`.

    python tests/random_networks.py FOLDER [--count 500] [--seed 0]

The relevances are computed from the formulas of the rules, with every layer as a matrix and in 80 bits where the processor has
them. Where zennit has the rules of a network, its relevances have to be the same. A draw is taken where double precision is
enough for its relevances, so that a difference means something. Install what `golden/requirements.txt` lists.
"""

import argparse
import copy
import importlib.util
import math
import random
import re
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn
from zennit import layer as zennit_layer
from zennit import rules as zennit
from zennit.attribution import Gradient
from zennit.composites import NameMapComposite

spec = importlib.util.spec_from_file_location("golden", Path(__file__).resolve().parent / "golden-images" / "generate.py")
golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(golden)
Residual, Concat = golden.Residual, golden.Concat

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
EXACT = np.longdouble
SAMPLES, TARGETS, UNITS = 2, 3, 150
# Of the largest relevance: what a draw may lose in double precision, and what zennit's may be off by.
STABLE, AGREE = 1e-11, 1e-9
ACTIVATIONS = [
    nn.ReLU, nn.ReLU, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardtanh, nn.ReLU6,
    nn.Hardswish, nn.Mish, nn.Softsign, nn.CELU, nn.SELU, nn.Hardsigmoid,
]  # fmt: skip
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
POOLINGS = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
LEARNED = (nn.Linear, *CONVOLUTIONS, nn.ConvTranspose2d)
STILL = (nn.Flatten, nn.Dropout, nn.Identity)


# ---------------------------------------------------------------- networks


def convolution(pick, shape, channels=None, stride=None):
    """Any; with `channels` and `stride` one that leaves the plane as it is, up to the stride."""
    rank, inputs = len(shape) - 1, shape[0]
    kind = nn.Conv1d if rank == 1 else nn.Conv2d
    each = lambda *choices: tuple(pick.choice(choices) for _ in range(rank))
    if channels:
        if pick.random() < 0.3:
            return kind(inputs, channels, 1, stride=stride, bias=pick.random() < 0.7)
        return kind(inputs, channels, 3, stride=stride, padding=1, bias=pick.random() < 0.7)
    groups = pick.choice([g for g in (1, 1, 1, 2, inputs) if inputs % g == 0])
    settings = {"stride": each(1, 1, 2), "dilation": each(1, 1, 2), "groups": groups, "bias": pick.random() < 0.7}
    if rank == 2 and pick.random() < 0.2:
        return nn.ConvTranspose2d(inputs, groups * pick.randint(1, 3), each(1, 2, 3), padding=each(0, 0, 1), **settings)
    return kind(inputs, groups * pick.randint(1, 4), each(1, 2, 3, 4), padding=each(0, 1, 1, 2), **settings)


def pooling(pick, shape):
    rank, kernel = len(shape) - 1, pick.randint(2, 3)
    settings = {"stride": pick.randint(1, 3), "padding": pick.randint(0, 1), "ceil_mode": pick.random() < 0.3}
    match pick.randint(0, 4):
        case 0 | 1:
            return (nn.MaxPool1d if rank == 1 else nn.MaxPool2d)(kernel, dilation=pick.choice([1, 1, 2]), **settings)
        case 2 | 3:
            return (nn.AvgPool1d if rank == 1 else nn.AvgPool2d)(kernel, count_include_pad=pick.random() < 0.5, **settings)
        case _:
            return (nn.AdaptiveAvgPool1d if rank == 1 else nn.AdaptiveAvgPool2d)(pick.randint(1, 3))


def norm(pick, shape):
    return (nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d)(shape[0], eps=pick.choice([1e-5, 1e-3, 0.1]))


def branch(pick, shape, channels, stride, depth):
    """Layers to `channels`, over a plane that is `stride` times smaller."""
    if len(shape) == 1:
        linear = lambda inputs, outputs: nn.Linear(inputs, outputs, bias=pick.random() < 0.7)
    else:
        linear = lambda inputs, outputs: convolution(pick, (inputs, *shape[1:]), outputs, 1)
    modules, inner = [], shape
    if pick.random() < 0.3:  # Before the linear layer, as in a network of pre-activations.
        modules += [norm(pick, shape), pick.choice(ACTIVATIONS)()][: pick.randint(1, 2)]
    if pick.random() < 0.5:
        middle = pick.randint(1, 5)
        inner = (middle, *shape[1:])
        modules += [linear(shape[0], middle), *[norm(pick, inner)] * (pick.random() < 0.4), pick.choice(ACTIVATIONS)()]
        if depth < 2 and pick.random() < 0.4:
            modules += [joined(pick, inner, depth + 1, same=True)]
    modules += [linear(inner[0], channels) if len(shape) == 1 else convolution(pick, inner, channels, stride)]
    modules += [norm(pick, (channels, *shape[1:]))] * (pick.random() < 0.4)
    return nn.Sequential(*modules, *[pick.choice(ACTIVATIONS)()] * (pick.random() < 0.3))


def joined(pick, shape, depth=0, same=False):
    """A sum or a row of branches."""
    stride = 2 if len(shape) > 1 and not same and pick.random() < 0.2 else 1
    if not same and pick.random() < 0.4:
        branches = [branch(pick, shape, pick.randint(1, 3), stride, depth) for _ in range(pick.randint(1, 3))]
        return Concat(*branches, *[nn.Sequential()] * (stride == 1 and pick.random() < 0.4))
    channels = shape[0] if same or pick.random() < 0.7 else pick.randint(1, 5)
    branches = [branch(pick, shape, channels, stride, depth) for _ in range(pick.randint(1, 2))]
    if stride == 1 and channels == shape[0]:
        branches.insert(pick.randint(0, len(branches)), nn.Sequential())
    return Residual(*branches)


def layer(pick, shape):
    chance = pick.random()
    if chance < 0.3:
        return nn.Linear(shape[0], pick.randint(1, 12), bias=pick.random() < 0.7) if len(shape) == 1 else convolution(pick, shape)
    if chance < 0.55:
        return pick.choice(ACTIVATIONS)()
    if chance < 0.7:
        return norm(pick, shape)
    if chance < 0.82:
        return joined(pick, shape)
    if len(shape) > 1 and chance < 0.95:
        return pooling(pick, shape) if chance < 0.92 else nn.Upsample(scale_factor=2)
    return pick.choice([nn.Dropout, nn.Identity])()


def output_shape(module, shape):
    with torch.no_grad():
        return tuple(module(torch.zeros(2, *shape)).shape[1:])


def network(pick):
    """A network and the shape of its inputs."""
    plane = pick.choice([(), (), (9,), (5, 6), (6, 6), (7, 5), (3, 3)])
    # Convolutions between 16 channels and more are made in another way.
    channels = 16 if plane == (3, 3) else pick.randint(1, 3) if plane else pick.randint(2, 8)
    shape = first = (channels, *plane)
    modules = [nn.Conv2d(16, 16, 3, padding=1)] if channels == 16 else []
    for _ in range(pick.randint(2, 8)):
        try:
            made = layer(pick, shape).eval()
            after = output_shape(made, shape)
        except (RuntimeError, ValueError):
            continue
        # The largest of a window in the padding is -inf.
        if 0 < math.prod(after) <= UNITS and made(torch.zeros(2, *shape)).isfinite().all():
            modules, shape = [*modules, made], after
    if len(shape) > 1:
        modules.append(nn.Flatten())
        if pick.random() < 0.2:
            modules += [nn.BatchNorm1d(math.prod(shape))]
    modules += [nn.Linear(math.prod(shape), pick.randint(TARGETS, TARGETS + 1), bias=pick.random() < 0.7)]
    # Part of it one level deeper, as PyTorch's users nest their modules.
    if len(modules) > 3 and pick.random() < 0.3:
        modules = [*modules[:1], nn.Sequential(*modules[1:3]), *modules[3:]]
    net = nn.Sequential(*modules).eval()
    for module in net.modules():
        if isinstance(module, NORMS):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.3, 2.0)
        if isinstance(module, LEARNED):
            fan_in = module.weight[:, 0].numel() if isinstance(module, nn.ConvTranspose2d) else module.weight[0].numel()
            nn.init.normal_(module.weight, std=1.5 / math.sqrt(fan_in))
            if pick.random() < 0.2:  # Pruned: a weight of 0 is a connection all the same.
                module.weight.data *= torch.rand_like(module.weight) < 0.6
        if getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias, std=0.3)
    return net, first


# ---------------------------------------------------------------- the same as layers one after another, norms merged


@dataclass
class Node:
    name: str
    module: nn.Module
    shape: tuple
    branches: list = field(default_factory=list)
    rule: tuple | None = None
    as_matrix: tuple | None = None


def nodes_of(module, path, shape):
    """The layers within a module, and the shape of its outputs."""
    join = lambda name: f"{path}.{name}" if path else name
    if isinstance(module, Residual | Concat):
        chains = [nodes_of(child, join(name), shape)[0] for name, child in module.named_children()]
        return [Node(path, module, shape, chains)], output_shape(module, shape)
    if not isinstance(module, nn.Sequential):
        return [Node(path, module, shape)], output_shape(module, shape)
    nodes = []
    for name, child in module.named_children():
        inner, shape = nodes_of(child, join(name), shape)
        nodes += inner
    return nodes, shape


def scale_and_shift(module):
    scale = module.weight / (module.running_var + module.eps).sqrt()
    return scale.detach(), (module.bias - module.running_mean * scale).detach()


def merged(nodes):
    """Norms merged into the linear layer before, else after them; the others stay."""
    done = []
    for node in nodes:
        node.branches = [merged(chain) for chain in node.branches]
        before = next((other for other in reversed(done) if not isinstance(other.module, STILL)), None)
        if isinstance(node.module, NORMS) and before and into_before(before, node):
            continue
        if before and isinstance(before.module, NORMS) and into_after(before, node):
            done.remove(before)
        done.append(node)
    return done


def by_group(values, module):
    """A value for each channel along the second axis of the weights, which has the channels of the row's group."""
    weight, groups = module.weight.data, getattr(module, "groups", 1)
    rows = values.view(groups, 1, -1).expand(-1, len(weight) // groups, -1)
    return rows.reshape(len(weight), -1, *[1] * (weight.dim() - 2))


def into_before(before, norm):
    (scale, shift), module = scale_and_shift(norm.module), before.module
    if isinstance(module, NORMS) and module.num_features == len(scale):
        own, own_shift = scale_and_shift(module)
        module.weight.data, module.bias.data = own * scale, own_shift * scale + shift
        module.running_mean, module.running_var, module.eps = torch.zeros_like(own), torch.ones_like(own), 0.0
        return True
    outputs = module.out_features if isinstance(module, nn.Linear) else getattr(module, "out_channels", None)
    if not isinstance(module, LEARNED) or outputs != len(scale):
        return False
    if isinstance(module, nn.ConvTranspose2d):
        module.weight.data *= by_group(scale, module)
    else:
        module.weight.data *= scale.view(-1, *[1] * (module.weight.dim() - 1))
    module.bias = nn.Parameter((0 if module.bias is None else module.bias.data) * scale + shift)
    return True


def into_after(norm, after):
    (scale, shift), module = scale_and_shift(norm.module), after.module
    inputs = module.in_features if isinstance(module, nn.Linear) else getattr(module, "in_channels", None)
    fits = isinstance(module, nn.Linear) or (isinstance(module, CONVOLUTIONS) and not any(module.padding))
    if not fits or inputs != len(scale):
        return False
    added = (module.weight.data * by_group(shift, module)).flatten(1).sum(1)
    module.bias = nn.Parameter(added + (0 if module.bias is None else module.bias.data))
    module.weight.data *= by_group(scale, module)
    return True


def every(nodes):
    for node in nodes:
        yield node
        for chain in node.branches:
            yield from every(chain)


# ---------------------------------------------------------------- rules: (kind, numbers..., bias mode) as the files have them

WITH_BIAS = ("absorb", "ignore", "distribute")
EPSILONS = [1e-6, 1e-6, 1e-4, 0.1]


def draw_rule(pick, node, ours):
    """A rule for a layer; one that zennit has unless `ours`."""
    mode = pick.choice(WITH_BIAS if ours else WITH_BIAS[:2])
    epsilon = pick.choice(EPSILONS)
    choices = [
        ("epsilon", epsilon, mode),
        ("gamma", pick.choice([0.25, 1.0, 10.0]), epsilon, mode),
        ("zplus", epsilon, mode),
        ("alpha-beta", pick.choice([1.0, 2.0, 3.0]), epsilon, mode),
        ("wsquare", epsilon, mode),
        ("zbox", 0.0, 0.0, epsilon),
        ("flat",),
        ("norm",),
    ]
    if ours:
        choices += [
            ("lrp0", mode),
            ("rms", pick.choice([0.01, 0.25]), mode),
            ("gamma-plain", pick.choice([0.25, 1.0]), epsilon, mode),
            ("relative", pick.choice(WITH_BIAS[1:])),
        ]
    if output_shape(node.module, node.shape) == node.shape:
        choices.append(("pass",))
    return pick.choice(choices)


def give_rules(pick, nodes):
    """Rules for all layers, the lines of the file, and whether zennit has all of them."""
    ours = pick.random() < 0.5
    lines, first = [], True
    for node in every(nodes):
        learned = isinstance(node.module, LEARNED)
        if learned:
            node.rule = draw_rule(pick, node, ours)
        elif isinstance(node.module, (*NORMS, *POOLINGS, Residual)):
            shared_otherwise = ours and not isinstance(node.module, Residual) and pick.random() < 0.2
            node.rule = draw_rule(pick, node, ours) if shared_otherwise else ("norm",)
        if node.rule and (learned or node.rule != ("norm",)):
            # "first" is the rule's place in the network, the name else.
            lines.append(["first" if learned and first and pick.random() < 0.5 else node.name, node])
        first &= not learned
    return lines, not ours


def positive(v):
    return np.maximum(v, 0)


def negative(v):
    return np.minimum(v, 0)


def over(numerators, bias, mode, epsilon, connected):
    """Numerators over their stabilized total; `bias` is the rule's part of it."""
    total = numerators.sum(1)
    if mode != "ignore":
        total = total + bias
    if mode == "distribute":
        numerators = numerators + connected * (bias / np.maximum(connected.sum(1), 1))[:, None]
    if epsilon is None or isinstance(epsilon, tuple):
        epsilon = 0 if epsilon is None else epsilon[0] * np.sqrt((total**2).mean())
    divisor = total + np.where(total >= 0, epsilon, -epsilon)
    return np.where(divisor[:, None] != 0, numerators / np.where(divisor == 0, 1, divisor)[:, None], 0)


def shares(rule, z, w, b, connected):
    """The share matrix, outputs x inputs, of y = w z + b."""
    kind, *numbers = rule
    mode = numbers.pop() if numbers and isinstance(numbers[-1], str) else "absorb"
    fans, y = connected.sum(1), w @ z + b
    zp, zn = positive(z), negative(z)
    match kind:
        case "lrp0":
            return over(z * w, b, mode, None, connected)
        case "epsilon":
            return over(z * w, b, mode, numbers[0], connected)
        case "norm":
            return over(z * w, b, "absorb", 1e-6, connected)
        case "rms":
            return over(z * w, b, mode, (numbers[0],), connected)
        case "gamma":
            g, epsilon = numbers
            up, down = w + g * positive(w), w + g * negative(w)
            above = over(zp * up + zn * down, b + g * positive(b), mode, epsilon, connected)
            below = over(zp * down + zn * up, b + g * negative(b), mode, epsilon, connected)
            return np.where(y[:, None] > 0, above, np.where(y[:, None] < 0, below, 0))
        case "gamma-plain":
            g, epsilon = numbers
            return over(z * (w + g * positive(w)), b + g * positive(b), mode, epsilon, connected)
        case "zplus" | "alpha-beta":
            alpha, epsilon = numbers if kind == "alpha-beta" else (1.0, *numbers)
            fors = over(zp * positive(w) + zn * negative(w), positive(b), mode, epsilon, connected)
            againsts = over(zp * negative(w) + zn * positive(w), negative(b), mode, epsilon, connected)
            return alpha * fors - (alpha - 1) * againsts
        case "wsquare":
            return over(w * w, b * b, mode, numbers[0], connected)
        case "zbox":
            low, high, epsilon = numbers
            return over(z * w - low * positive(w) - high * negative(w), 0 * b, "ignore", epsilon, connected)
        case "flat":
            return connected / np.maximum(fans, 1)[:, None]
        case "relative":
            spread = connected * (b / np.maximum(fans, 1))[:, None] if mode == "distribute" else 0
            return (z * w + spread) / np.maximum(fans, 1)[:, None]
        case "pass":
            return np.eye(len(z), dtype=z.dtype)
    raise ValueError(rule)


def filled(module, weight=None):
    """A layer without its bias; all of its weights are `weight`, where that is given."""
    module = copy.deepcopy(module)
    for name, values in module.named_parameters():
        if name == "bias" or weight is not None:
            values.data.fill_(0 if name == "bias" else weight)
    return module


def matrix(node):
    """A linear layer as a matrix, its bias, and which inputs each output has."""
    if node.as_matrix is None:
        with torch.no_grad():
            if isinstance(node.module, NORMS):
                each = math.prod(node.shape[1:])
                scale, shift = (values.repeat_interleave(each) for values in scale_and_shift(node.module))
                node.as_matrix = scale.diag().numpy(), shift.numpy(), np.eye(len(scale))
            else:
                units = torch.eye(math.prod(node.shape)).view(-1, *node.shape)
                w, ones = (filled(node.module, weight)(units).flatten(1).T for weight in (None, 1))
                node.as_matrix = w.numpy(), node.module(0 * units[:1]).flatten().numpy(), (ones > 0).double().numpy()
    return node.as_matrix


def step(node, z):
    """A layer's values, and how relevance comes back through it."""
    if isinstance(node.module, Residual | Concat):
        values, backs = zip(*(explain(chain, z) for chain in node.branches))
        ends = np.cumsum([len(value) for value in values])[:-1]
        parts = np.concatenate(values)
        if isinstance(node.module, Concat):
            return parts, lambda r: sum(back(part) for back, part in zip(backs, np.split(r, ends, axis=1)))
        summed = np.tile(np.eye(len(values[0]), dtype=z.dtype), len(values))
        a = shares(node.rule, parts, summed, 0 * values[0], summed)
        return sum(values), lambda r: sum(back(part) for back, part in zip(backs, np.split(r @ a, ends, axis=1)))
    if node.rule:
        w, b, connected = (values.astype(z.dtype) for values in matrix(node))
        a = shares(node.rule, z, w, b, connected)
        return w @ z + b, lambda r: r @ a
    if isinstance(node.module, nn.Upsample):
        w = matrix(node)[0].astype(z.dtype)
        return w @ z, lambda r: r @ w
    values = torch.from_numpy(z.astype(np.float64)).view(1, *node.shape)
    if isinstance(node.module, nn.MaxPool1d | nn.MaxPool2d):
        largest = copy.deepcopy(node.module)
        largest.return_indices = True
        at = largest(values)[1]
        plane = math.prod(node.shape[1:])
        at = (at + plane * torch.arange(len(at[0])).view(-1, *[1] * (at.dim() - 2))).flatten().numpy()
        route = np.zeros((len(at), len(z)), z.dtype)
        route[np.arange(len(at)), at] = 1
        return z[at], lambda r: r @ route
    if isinstance(node.module, STILL):
        return z, lambda r: r
    with torch.no_grad():
        return node.module(values).flatten().numpy().astype(z.dtype), lambda r: r


def explain(nodes, z):
    backs = []
    for node in nodes:
        z, back = step(node, z)
        backs.append(back)

    def back(r):
        for each in reversed(backs):
            r = each(r)
        return r

    return z, back


def by_formulas(nodes, x, kind):
    """Outputs and relevances of all samples: samples x targets x inputs."""
    outputs, relevances = [], []
    for sample in x.flatten(1).numpy():
        y, back = explain(nodes, sample.astype(kind))
        outputs.append(y)
        relevances.append(back(np.diag(y)[:TARGETS]))
    return np.stack(outputs), np.stack(relevances)


def fit_boxes(nodes, x):
    """The box of a ZBox is one that a layer's inputs are in."""
    for sample in x.flatten(1).numpy():
        seen = {}

        def walk(nodes, z):
            for node in nodes:
                seen[id(node)] = z
                for chain in node.branches:
                    walk(chain, z)
                z = step(node, z)[0]

        walk(nodes, sample)
        for node in every(nodes):
            if node.rule and node.rule[0] == "zbox":
                z, (kind, low, high, epsilon) = seen[id(node)], node.rule
                node.rule = (kind, min(low, math.floor(2 * z.min()) / 2), max(high, math.ceil(2 * z.max()) / 2), epsilon)


# ---------------------------------------------------------------- zennit


class Twin(nn.Module):
    """The layers with their sums as modules, as zennit needs them."""

    def __init__(self, nodes):
        super().__init__()
        self.nodes, self.list, self.rules = nodes, nn.ModuleList(), []
        for node in every(nodes):
            module = zennit_layer.Sum() if isinstance(node.module, Residual) else node.module
            node.place = len(self.list)
            self.list.append(nn.Identity() if isinstance(module, Concat) else module)
            rule = zennit_rule(node.rule) if node.rule else None
            if isinstance(module, tuple(ACTIVATIONS)):
                rule = zennit.Pass()
            if rule:
                self.rules.append(([f"list.{node.place}"], rule))

    def run(self, nodes, x):
        for node in nodes:
            values = [self.run(chain, x) for chain in node.branches]
            if isinstance(node.module, Residual):
                x = torch.stack(values, -1)
            elif values:
                x = torch.cat(values, 1)
            x = self.list[node.place](x)
        return x

    def forward(self, x):
        return self.run(self.nodes, x)


def zennit_rule(rule):
    kind, *numbers = rule
    zero = "bias" if numbers and numbers.pop() == "ignore" else None
    match kind:
        case "epsilon":
            return zennit.Epsilon(epsilon=numbers[0], zero_params=zero)
        case "gamma":
            return zennit.Gamma(gamma=numbers[0], stabilizer=numbers[1], zero_params=zero)
        case "zplus":
            return zennit.ZPlus(stabilizer=numbers[0], zero_params=zero)
        case "alpha-beta":
            return zennit.AlphaBeta(alpha=numbers[0], beta=numbers[0] - 1, stabilizer=numbers[1], zero_params=zero)
        case "wsquare":
            return zennit.WSquare(stabilizer=numbers[0], zero_params=zero)
        case "zbox":
            return zennit.ZBox(low=rule[1], high=rule[2], stabilizer=rule[3])
        case "flat":
            return zennit.Flat(stabilizer=golden.NO_STABILIZER)
        case "norm":
            return zennit.Norm()
        case "pass":
            return zennit.Pass()
    raise ValueError(rule)


def by_zennit(nodes, x):
    twin = Twin(nodes).eval()
    found = []
    with Gradient(twin, NameMapComposite(name_map=twin.rules)) as attributor:
        for target in range(TARGETS):
            begin = lambda output: output.detach() * (torch.arange(output.shape[1]) == target)
            found.append(attributor(x.clone(), begin)[1].detach().flatten(1))
    return torch.stack(found, 1).numpy()


# ---------------------------------------------------------------- files


def off(found, exact):
    return float(np.abs(found - exact).max() / max(np.abs(exact).max(), 1e-300))


def draw(seed):
    """The first network of a seed at which double precision is enough: what its file holds, and what zennit's is off by."""
    for attempt in range(1000):
        pick = random.Random(f"{seed} {attempt}")
        torch.manual_seed(1000 * seed + attempt)
        net, shape = network(pick)
        x = torch.randn(SAMPLES, *shape).clamp(-3, 3) * (torch.rand(SAMPLES, *shape) < 0.9)
        x[0] = x[0].abs()
        nodes = merged(nodes_of(copy.deepcopy(net), "", shape)[0])
        places, zennit_has_all = give_rules(pick, nodes)
        fit_boxes(nodes, x)
        outputs, exact = by_formulas(nodes, x, EXACT)
        # Zeros alone compare nothing.
        if np.abs(exact).max() < 1e-3 or off(by_formulas(nodes, x, np.float64)[1], exact) > STABLE:
            continue
        assert off(net(x).detach().numpy(), outputs) < 1e-12, seed
        lines = [" ".join(map(str, (place, *node.rule))) for place, node in places]
        tensors = {f"model.{name}": value for name, value in net.state_dict().items()}
        numbers = {"input": x.flatten(1).numpy(), "output": outputs, "relevance": exact}
        tensors |= {f"golden.{name}": torch.from_numpy(value.astype(np.float64)) for name, value in numbers.items()}
        metadata = {"architecture": repr(net), "input": " ".join(map(str, shape)), "rules": "\n".join(lines)}
        return tensors, metadata, off(by_zennit(nodes, x), exact) if zennit_has_all else None
    raise SystemExit(f"no network of seed {seed} is stable")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=500, help="how many networks")
    parser.add_argument("--seed", type=int, default=0, help="the first one's")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    kinds, checked = Counter(), []
    for seed in range(options.seed, options.seed + options.count):
        tensors, metadata, difference = draw(seed)
        golden.write(options.folder / f"{seed:05}.safetensors", tensors, metadata)
        kinds.update(line.split()[1] for line in metadata["rules"].splitlines())
        kinds.update(re.findall(r"\w+(?=\()", metadata["architecture"]))
        if difference is not None:
            checked.append((difference, seed))
            if not difference < AGREE:
                print(f"{seed}: zennit's relevances differ by {difference:.1e} of the largest")
    print(", ".join(f"{kind} {count}" for kind, count in kinds.most_common()))
    print(f"zennit {version('zennit')} has the rules of {len(checked)} networks; it differs by {max(checked)[0]:.1e} at most")


if __name__ == "__main__":
    main()
