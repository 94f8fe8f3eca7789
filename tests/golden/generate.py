"""Writes the golden relevances, one safetensors file per network, next to this script.

Every stored relevance is computed twice: by zennit or PyTorch autograd (this is
what is stored), and by slow loops over single connections, with exactly rounded
sums and with no code in common. The script fails where the two disagree.

zennit 0.5.1 and 1.0.0 give the same numbers, bit for bit; a file's metadata says
which of them made it.
"""

import json
import math
import struct
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from captum.attr import LRP
from captum.attr._utils.lrp_rules import EpsilonRule
from safetensors.torch import load_file, save
from torch import nn
from zennit.composites import (
    EpsilonAlpha2Beta1,
    EpsilonPlus,
    LayerMapComposite,
    SpecialFirstLayerMapComposite,
)
from zennit.rules import AlphaBeta, Epsilon, Flat, Gamma, Norm, Pass, WSquare, ZBox, ZPlus

EPS = 1e-6
EPS_LARGE = 0.25
TOLERANCE = 1e-11
SAMPLES = 3
# Quotients by a total close to 0 magnify rounding, and a test on them would
# measure the order of summation. Such draws are thrown away.
SMALLEST_TOTAL = 1e-3
PIECEWISE_LINEAR = (nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout)
CURVED = (nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardtanh)

# name: (bias mode, eps); the Relative rule has no eps.
RULES = {
    "epsilon.absorb": ("absorb", EPS),
    "epsilon.ignore": ("ignore", EPS),
    "epsilon-large.absorb": ("absorb", EPS_LARGE),
    "epsilon-large.ignore": ("ignore", EPS_LARGE),
    "epsilon.distribute": ("distribute", EPS),
    "relative.ignore": ("ignore", None),
    "relative.distribute": ("distribute", None),
}
ZENNIT_RULES = [name for name, (mode, eps) in RULES.items() if eps and mode != "distribute"]

# The box of the inputs, wider than what is drawn.
LOW, HIGH = -2.5, 3.0
# zennit adds this to the number of inputs; below rounding it is nothing.
NO_STABILIZER = 1e-100

# Rules for every layer. GammaPlain is in zennit only where it is the same as Gamma; AbsLrp and Sign are not.
MORE_RULES = {
    "lrp0": None,
    "gamma": lambda: Gamma(gamma=0.25),
    "gamma-1": lambda: Gamma(gamma=1.0),
    "gamma-plain": None,
    "zplus": lambda: ZPlus(),
    "alpha2-beta1": lambda: AlphaBeta(alpha=2.0, beta=1.0),
    "alpha1-beta0": lambda: AlphaBeta(alpha=1.0, beta=0.0),
    "zbox": lambda: ZBox(low=LOW, high=HIGH),
    "wsquare": lambda: WSquare(zero_params="bias"),
    "wsquare.absorb": lambda: WSquare(),
    "flat": lambda: Flat(stabilizer=NO_STABILIZER),
    "norm": lambda: Norm(),
    "abs-lrp": None,
    "sign": None,
}


def first_and_others(first):
    """zennit's own adds 1e-6 to Flat's number of inputs, and has the box for a first convolution only."""
    layer_map = [(PIECEWISE_LINEAR + CURVED, Pass()), (nn.Linear, Epsilon(epsilon=EPS))]
    return SpecialFirstLayerMapComposite(layer_map=layer_map, first_map=[(nn.Linear, first)])


# Composites, and the formulas that they come to in a dense network, of the first layer and of the others.
PRESETS = {
    "epsilon-plus": (lambda: EpsilonPlus(), "norm", "norm"),
    "epsilon-plus-flat": (lambda: first_and_others(Flat(stabilizer=NO_STABILIZER)), "flat", "norm"),
    "epsilon-alpha2-beta1": (lambda: EpsilonAlpha2Beta1(), "norm", "norm"),
    "epsilon-alpha2-beta1-flat": (lambda: first_and_others(Flat(stabilizer=NO_STABILIZER)), "flat", "norm"),
    "epsilon-gamma-box": (lambda: first_and_others(ZBox(low=LOW, high=HIGH)), "zbox", "norm"),
}

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


# ---------------------------------------------------------------- networks


def linear(n_in, n_out, bias=True):
    return nn.Linear(n_in, n_out, bias=bias, dtype=torch.float64)


def stack(sizes, activations, bias=True):
    """Linear layers of the given sizes with the activations between them in turn."""
    modules = []
    for i, (n_in, n_out) in enumerate(zip(sizes, sizes[1:])):
        if i > 0:
            modules.append(activations[(i - 1) % len(activations)]())
        modules.append(linear(n_in, n_out, bias))
    return nn.Sequential(*modules)


def draw_weights(net, gain, bias):
    with torch.no_grad():
        for m in net:
            if isinstance(m, nn.Linear):
                bound = gain / math.sqrt(m.in_features)
                m.weight.uniform_(-bound, bound)
                if m.bias is not None:
                    m.bias.uniform_(-bias, bias)


def draw_input(width, scale):
    """One sample is positive, one has both signs, one is left to chance."""
    x = torch.empty(SAMPLES, width, dtype=torch.float64).uniform_(-scale, scale)
    x[0] = x[0].abs()
    x[1] = x[1].abs() * torch.tensor([(-1.0) ** (i + 1) for i in range(width)], dtype=torch.float64)
    return x


def random_net(build, gain=1.0, bias=0.5, scale=2.0, change_input=lambda x: x, ok=lambda net, x: True):
    """Draws until no total is near 0 and the network shows what it is there for."""

    def make(seed):
        for attempt in range(1000):
            torch.manual_seed(1000 * seed + attempt)
            net = build().eval()
            draw_weights(net, gain, bias)
            x = change_input(draw_input(net[0].in_features, scale))
            if smallest_total(net, x) >= SMALLEST_TOTAL and ok(net, x):
                return net, x
        raise RuntimeError("no draw fits")

    return make


def layer_inputs(net, x):
    values = []
    with torch.no_grad():
        for m in net:
            values.append(x)
            x = m(x)
    return values


def smallest_total(net, x):
    smallest = math.inf
    for m, z in zip(net, layer_inputs(net, x)):
        if isinstance(m, nn.Linear):
            ignored = z @ m.weight.detach().T
            # Where all inputs are 0, so are the shares, whatever the total.
            alive = (z != 0).any(dim=1)
            totals = [ignored[alive]]
            if m.bias is not None:
                totals.append(ignored + m.bias.detach())
            smallest = min([smallest] + [t.abs().min().item() for t in totals if t.numel()])
    return smallest


def reaches(kind, *regions):
    """Accepts a draw if the units before each module of a kind reach every region."""

    def ok(net, x):
        pairs = [(m, z) for m, z in zip(net, layer_inputs(net, x)) if isinstance(m, kind)]
        return bool(pairs) and all(bool(r(m, z).any()) for m, z in pairs for r in regions)

    return ok


def below_zero(m, z):
    return z < 0


def above_zero(m, z):
    return z > 0


def in_linear_part(m, z):
    return z * m.beta > m.threshold


def in_curved_part(m, z):
    return z * m.beta < m.threshold


def under_range(m, z):
    return z < m.min_val


def over_range(m, z):
    return z > m.max_val


def in_range(m, z):
    return (z > m.min_val) & (z < m.max_val)


def neither_dead_nor_blown_up(net, x):
    for m, z in zip(net, layer_inputs(net, x)):
        if isinstance(m, nn.ReLU):
            a = z.clamp(min=0)
            rms = a.square().mean(dim=1).sqrt()
            if (a > 0).double().mean(dim=1).min() < 0.25 or rms.min() < 0.1 or rms.max() > 10:
                return False
    return True


def scatter_zeros(x):
    """Zeros inside every sample, and one sample with a single input left."""
    x = x.clone()
    x[0, ::3] = 0
    x[1, 1::2] = 0
    x[2, :] = 0
    x[2, 4] = 1.25
    return x


def tiny_totals(seed):
    """First-layer totals of exactly 0 and of +-2^-20, less than eps in size.

    All numbers are sums of few powers of two, so each order of summation gives the
    same total. They tell sgn(0) = +1 from 0 and a signed stabilizer from an
    unsigned one. Sigmoid, since after ReLU a total of 0 carries no relevance.
    """
    torch.manual_seed(1000 * seed)
    net = nn.Sequential(linear(4, 6), nn.Sigmoid(), linear(6, 2)).eval()
    draw_weights(net, 1.0, 0.5)
    t = 2.0**-20
    weight = [
        [1, -1, 0.5, 1],  # 0 at the first sample
        [1, 1, -0.5, 0.5],  # 0 with its bias
        [1, -1, 0.5, 1 + t],  # -t
        [1, 1, -0.5, 0.5],  # -t with its bias
        [1, -1, 0.5, 1],  # 0 only if its bias is ignored
        [1, -1, 0.5, 1 - t],  # +t
    ]
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(weight, dtype=torch.float64))
        net[0].bias.copy_(torch.tensor([0, -0.5, 0, -0.5 - t, 0.75, 0], dtype=torch.float64))
    x = torch.tensor([[1, 1, 2, -1], [2, 1, 1, 0.5], [-1, -1, -2, 1]], dtype=torch.float64)
    total = layer_inputs(net, x)[1][0].tolist()
    assert total == [0, 0, -t, -t, 0.75, t]
    return net, x


def all_activations():
    return stack(
        [6, 9, 8, 10, 7, 9, 8, 10, 9, 7, 8, 10, 9, 8, 9, 7, 5],
        [
            nn.ReLU,
            lambda: nn.LeakyReLU(0.01),
            lambda: nn.LeakyReLU(0.2),
            lambda: nn.ELU(1.0),
            lambda: nn.ELU(0.5),
            lambda: nn.GELU(approximate="none"),
            lambda: nn.GELU(approximate="tanh"),
            nn.SiLU,
            nn.Sigmoid,
            nn.Tanh,
            nn.Softplus,
            lambda: nn.Softplus(beta=2, threshold=5),
            nn.Hardtanh,
            lambda: nn.Hardtanh(-0.5, 2),
            nn.Identity,
            nn.Dropout,
        ],
    )


RELU = [nn.ReLU]
BOTH_SIGNS = (below_zero, above_zero)
NETWORKS = {
    "01-relu-bias": random_net(lambda: stack([5, 8, 6, 4], RELU), ok=reaches(nn.ReLU, *BOTH_SIGNS)),
    "02-relu-no-bias": random_net(
        lambda: stack([5, 8, 6, 4], RELU, bias=False), ok=reaches(nn.ReLU, *BOTH_SIGNS)
    ),
    "03-relu-negative-inputs": random_net(
        lambda: stack([6, 9, 7, 2], RELU), change_input=lambda x: -x.abs()
    ),
    "04-leaky-relu": random_net(
        lambda: stack([4, 7, 6, 2], [lambda: nn.LeakyReLU(0.01), lambda: nn.LeakyReLU(0.2)]),
        ok=reaches(nn.LeakyReLU, *BOTH_SIGNS),
    ),
    "05-elu": random_net(
        lambda: stack([4, 7, 6, 2], [lambda: nn.ELU(1.0), lambda: nn.ELU(0.5)]),
        ok=reaches(nn.ELU, *BOTH_SIGNS),
    ),
    "06-gelu-none": random_net(
        lambda: stack([4, 7, 6, 2], [lambda: nn.GELU(approximate="none")]),
        gain=2.0,
        ok=reaches(nn.GELU, *BOTH_SIGNS),
    ),
    "07-gelu-tanh": random_net(
        lambda: stack([4, 7, 6, 2], [lambda: nn.GELU(approximate="tanh")]),
        gain=2.0,
        ok=reaches(nn.GELU, *BOTH_SIGNS),
    ),
    "08-silu": random_net(
        lambda: stack([4, 7, 6, 2], [nn.SiLU]), gain=2.0, ok=reaches(nn.SiLU, *BOTH_SIGNS)
    ),
    "09-sigmoid": random_net(
        lambda: stack([4, 7, 6, 2], [nn.Sigmoid]), gain=2.0, ok=reaches(nn.Sigmoid, *BOTH_SIGNS)
    ),
    "10-tanh": random_net(
        lambda: stack([4, 7, 6, 2], [nn.Tanh]), gain=2.0, ok=reaches(nn.Tanh, *BOTH_SIGNS)
    ),
    "11-softplus": random_net(
        lambda: stack([4, 7, 6, 2], [nn.Softplus]), gain=2.0, ok=reaches(nn.Softplus, *BOTH_SIGNS)
    ),
    "12-softplus-linear-part": random_net(
        lambda: stack([4, 7, 6, 2], [lambda: nn.Softplus(beta=2, threshold=5)]),
        gain=3.0,
        ok=reaches(nn.Softplus, in_linear_part, in_curved_part),
    ),
    "13-hardtanh": random_net(
        lambda: stack([4, 7, 6, 2], [nn.Hardtanh, lambda: nn.Hardtanh(-0.5, 2)]),
        gain=3.0,
        ok=reaches(nn.Hardtanh, under_range, in_range, over_range),
    ),
    "14-identity-dropout": random_net(
        lambda: stack([4, 7, 6, 2], [nn.Identity, nn.Dropout]),
        ok=reaches((nn.Identity, nn.Dropout), *BOTH_SIGNS),
    ),
    "15-all-activations": random_net(all_activations, gain=2.0),
    "16-width-1-1-1": random_net(lambda: stack([1, 1, 1], RELU), ok=reaches(nn.ReLU, *BOTH_SIGNS)),
    "17-width-5-1-3": random_net(lambda: stack([5, 1, 3], RELU), ok=reaches(nn.ReLU, *BOTH_SIGNS)),
    "18-deep-20": random_net(
        lambda: stack([12] * 20 + [4], RELU),
        # Keeps the mean square of the activations through ReLU layers.
        gain=math.sqrt(6),
        bias=0.2,
        ok=neither_dead_nor_blown_up,
    ),
    "19-single-linear": random_net(lambda: stack([6, 4], [])),
    "20-zero-input-bias": random_net(lambda: stack([5, 8, 6, 4], RELU), change_input=torch.zeros_like),
    "21-zero-input-no-bias": random_net(
        lambda: stack([5, 8, 6, 4], RELU, bias=False), change_input=torch.zeros_like
    ),
    "22-narrow-to-wide-3-40-25": random_net(lambda: stack([3, 40, 25], RELU)),
    "23-wide-to-narrow-40-25-2": random_net(lambda: stack([40, 25, 2], RELU)),
    "24-final-softmax": random_net(
        lambda: stack([5, 8, 6, 4], RELU).append(nn.Softmax(dim=-1)), ok=reaches(nn.ReLU, *BOTH_SIGNS)
    ),
    "25-inputs-some-zero": random_net(lambda: stack([7, 9, 4], RELU), change_input=scatter_zeros),
    "26-tiny-totals": tiny_totals,
}


# ------------------------------------------- stored values: zennit, autograd


def per_output(body, x, backward):
    """Stacks backward(input, output, relevance at the outputs) over the outputs: [N, K, D]."""
    rows = []
    for k in range(body(x).shape[1]):
        x_k = x.clone().requires_grad_(True)
        y = body(x_k)
        top = torch.zeros_like(y)
        top[:, k] = y.detach()[:, k]
        rows.append(backward(x_k, y, top, k).detach())
    return torch.stack(rows, dim=1).contiguous()


def by_zennit(body, x, mode, eps):
    rule = Epsilon(epsilon=eps, zero_params="bias" if mode == "ignore" else None)
    others = tuple({type(m) for m in body if not isinstance(m, nn.Linear)})
    layer_map = [(nn.Linear, rule)] + ([(others, Pass())] if others else [])
    with LayerMapComposite(layer_map).context(body) as hooked:
        return per_output(hooked, x, lambda x_k, y, top, k: torch.autograd.grad(y, x_k, top)[0])


def by_zennit_rule(body, x, rule):
    others = tuple({type(m) for m in body if not isinstance(m, nn.Linear)})
    layer_map = [(nn.Linear, rule)] + ([(others, Pass())] if others else [])
    with LayerMapComposite(layer_map).context(body) as hooked:
        return per_output(hooked, x, lambda x_k, y, top, k: torch.autograd.grad(y, x_k, top)[0])


def by_zennit_composite(body, x, composite):
    with composite.context(body) as hooked:
        return per_output(hooked, x, lambda x_k, y, top, k: torch.autograd.grad(y, x_k, top)[0])


def by_captum(body, x, eps):
    """captum puts the rule on the modules, and keeps it for one call."""
    rows = []
    for k in range(body(x).shape[1]):
        for m in body:
            if isinstance(m, nn.Linear):
                m.rule = EpsilonRule(eps)
        rows.append(LRP(body).attribute(x.clone().requires_grad_(True), target=k).detach())
    return torch.stack(rows, dim=1)


def by_vjp(body, x, mode, eps):
    """Reverse loop; the share of input i is the derivative by a factor put before its part."""
    inputs = layer_inputs(body, x)

    def backward(x_k, y, relevance, k):
        for m, z in reversed(list(zip(body, inputs))):
            if not isinstance(m, nn.Linear):
                continue
            n = z.shape[1]
            factor = torch.ones_like(z, requires_grad=True)
            total = (factor * z) @ m.weight.T
            # Each factor holds b_j / n, so the bias follows their mean.
            if mode == "distribute" and m.bias is not None:
                total = total + factor.mean(dim=1, keepdim=True) * m.bias
            if eps is None:
                scaled = relevance / n
            else:
                # The surrogate's own bias goes through a mean, which need not round to b_j.
                exact = z @ m.weight.T if mode == "ignore" else m(z)
                sign = 1.0 - 2.0 * (exact < 0).double()
                scaled = (relevance / (exact + eps * sign)).detach()
            relevance = torch.autograd.grad(total, factor, scaled)[0]
        return relevance

    return per_output(body, x, backward)


def by_gradient_x_input(body, x):
    def backward(x_k, y, top, k):
        return torch.autograd.grad(y[:, k].sum(), x_k)[0] * x_k

    return per_output(body, x, backward)


# ------------------------------------------------- the same by slow loops


def erf(v):
    return np.array([math.erf(t) for t in v])


def activate(m, v):
    """Activations from their definitions, without PyTorch."""
    if isinstance(m, nn.ReLU):
        return np.where(v > 0, v, 0.0)
    if isinstance(m, nn.LeakyReLU):
        return np.where(v > 0, v, m.negative_slope * v)
    if isinstance(m, nn.ELU):
        return np.where(v > 0, v, m.alpha * np.expm1(v))
    if isinstance(m, nn.GELU):
        if m.approximate == "tanh":
            return 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))
        return 0.5 * v * (1 + erf(v / math.sqrt(2)))
    if isinstance(m, nn.SiLU):
        return v / (1 + np.exp(-v))
    if isinstance(m, nn.Sigmoid):
        return 1 / (1 + np.exp(-v))
    if isinstance(m, nn.Tanh):
        return np.tanh(v)
    if isinstance(m, nn.Softplus):
        return np.where(v * m.beta > m.threshold, v, np.log1p(np.exp(v * m.beta)) / m.beta)
    if isinstance(m, nn.Hardtanh):
        return np.minimum(np.maximum(v, m.min_val), m.max_val)
    if isinstance(m, (nn.Identity, nn.Dropout)):
        return v
    raise TypeError(m)


class Dense:
    def __init__(self, m):
        self.w = m.weight.detach().numpy().tolist()
        self.b = m.bias.detach().numpy().tolist() if m.bias is not None else [0.0] * m.out_features

    def forward(self, z):
        return [
            math.fsum([z_i * w_ji for z_i, w_ji in zip(z, w_j)] + [b_j])
            for w_j, b_j in zip(self.w, self.b)
        ]

    def relevance(self, z, r, mode, eps):
        n = len(z)
        parts = [[] for _ in z]
        for w_j, b_j, r_j in zip(self.w, self.b, r):
            plain = [z_i * w_ji for z_i, w_ji in zip(z, w_j)]
            numerators = [p + b_j / n for p in plain] if mode == "distribute" else plain
            if eps is None:
                share = [q / n for q in numerators]
            else:
                total = math.fsum(plain if mode == "ignore" else plain + [b_j])
                stabilized = total + (eps if total >= 0 else -eps)
                # LRP-0: what a total of 0 would have got is lost.
                share = [q / stabilized if stabilized != 0 else 0.0 for q in numerators]
            for part, a in zip(parts, share):
                part.append(a * r_j)
        return [math.fsum(part) for part in parts]


def positive(v):
    return max(v, 0.0)


def negative(v):
    return min(v, 0.0)


def over(numerators, bias, eps=EPS):
    """Each over the stabilized sum of all and of the bias."""
    total = math.fsum(numerators + [bias])
    stabilized = total + (eps if total >= 0 else -eps)
    return [q / stabilized if stabilized != 0 else 0.0 for q in numerators]


def gamma(z, w, b, y, g):
    if y == 0:
        return [0.0] * len(z)
    first, second = (positive, negative) if y > 0 else (negative, positive)
    numerators = [positive(z_i) * (w_i + g * first(w_i)) + negative(z_i) * (w_i + g * second(w_i)) for z_i, w_i in zip(z, w)]
    return over(numerators, b + g * first(b))


def of_sign(z, w, b, same, other):
    return over([positive(z_i) * same(w_i) + negative(z_i) * other(w_i) for z_i, w_i in zip(z, w)], same(b))


def alpha_beta(z, w, b, alpha, beta):
    fors, againsts = of_sign(z, w, b, positive, negative), of_sign(z, w, b, negative, positive)
    return [alpha * p - beta * n for p, n in zip(fors, againsts)]


# The shares of one output: its inputs z, weights w, bias b and value y.
FORMULAS = {
    "lrp0": lambda z, w, b, y: over([z_i * w_i for z_i, w_i in zip(z, w)], b, 0.0),
    "gamma": lambda z, w, b, y: gamma(z, w, b, y, 0.25),
    "gamma-1": lambda z, w, b, y: gamma(z, w, b, y, 1.0),
    "gamma-plain": lambda z, w, b, y: over(
        [z_i * (w_i + 0.25 * positive(w_i)) for z_i, w_i in zip(z, w)], b + 0.25 * positive(b)
    ),
    "zplus": lambda z, w, b, y: of_sign(z, w, b, positive, negative),
    "alpha2-beta1": lambda z, w, b, y: alpha_beta(z, w, b, 2.0, 1.0),
    "alpha1-beta0": lambda z, w, b, y: alpha_beta(z, w, b, 1.0, 0.0),
    "zbox": lambda z, w, b, y: over(
        [z_i * w_i - LOW * positive(w_i) - HIGH * negative(w_i) for z_i, w_i in zip(z, w)], 0.0
    ),
    "wsquare": lambda z, w, b, y: over([w_i * w_i for w_i in w], 0.0),
    "wsquare.absorb": lambda z, w, b, y: over([w_i * w_i for w_i in w], b * b),
    "flat": lambda z, w, b, y: [1 / len(z)] * len(z),
    "norm": lambda z, w, b, y: over([z_i * w_i for z_i, w_i in zip(z, w)], b),
    "abs-lrp": lambda z, w, b, y: [z_i * w_i / (math.fsum(abs(a * c) for a, c in zip(z, w)) + EPS) for z_i, w_i in zip(z, w)],
    "sign": lambda z, w, b, y: [math.copysign(1, z_i + 0.0) * w_i / (y + (EPS if y >= 0 else -EPS)) for z_i, w_i in zip(z, w)],
}


def more_by_loops(body, x, first, others):
    """Relevances [N, K, D] with one formula for the first layer and one for the others."""
    layers = [Dense(m) if isinstance(m, nn.Linear) else m for m in body]
    relevances = []
    for sample in x.numpy():
        z, kept = sample.tolist(), []
        for layer in layers:
            if isinstance(layer, Dense):
                y = layer.forward(z)
                formula = FORMULAS[others if kept else first]
                kept.append([formula(z, w_j, b_j, y_j) for w_j, b_j, y_j in zip(layer.w, layer.b, y)])
                z = y
            else:
                z = np.asarray(activate(layer, np.array(z))).tolist()
        rows = []
        for k, f_k in enumerate(z):
            r = [f_k if j == k else 0.0 for j in range(len(z))]
            for shares in reversed(kept):
                r = [math.fsum(share[i] * r_j for share, r_j in zip(shares, r)) for i in range(len(shares[0]))]
            rows.append(r)
        relevances.append(rows)
    return np.array(relevances)


def by_loops(body, x, rules):
    """Outputs [N, K], and for each rule the relevances [N, K, D]."""
    layers = [Dense(m) if isinstance(m, nn.Linear) else m for m in body]
    outputs, relevances = [], defaultdict(list)
    for sample in x.numpy():
        z, inputs = sample.tolist(), []
        for layer in layers:
            inputs.append(z)
            if isinstance(layer, Dense):
                z = layer.forward(z)
            else:
                z = np.asarray(activate(layer, np.array(z))).tolist()
        outputs.append(z)
        for name, (mode, eps) in rules.items():
            rows = []
            for k, f_k in enumerate(z):
                r = [f_k if j == k else 0.0 for j in range(len(z))]
                for layer, z_l in reversed(list(zip(layers, inputs))):
                    if isinstance(layer, Dense):
                        r = layer.relevance(z_l, r, mode, eps)
                rows.append(r)
            relevances[name].append(rows)
    return np.array(outputs), {name: np.array(r) for name, r in relevances.items()}


# ------------------------------------------------------- checks and files


def disagreement(a, b):
    """Largest difference within one row of inputs, relative to the row's largest entry."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    difference = np.abs(a - b).max(axis=-1)
    size = np.abs(b).max(axis=-1)
    assert (difference[size == 0] == 0).all()
    return float((difference[size > 0] / size[size > 0]).max(initial=0.0))


def compute(net, x, worst):
    # A final softmax is left out: the logits are explained.
    body = net[:-1] if isinstance(net[-1], nn.Softmax) else net
    with torch.no_grad():
        output = body(x)
    golden = {"input": x, "output": output}

    rules = dict(RULES)
    if all(isinstance(m, (nn.Linear,) + PIECEWISE_LINEAR) for m in body):
        # In these networks gradient x input is LRP-0.
        rules["gradient_x_input"] = ("absorb", 0.0)
    loop_output, loops = by_loops(body, x, rules)

    def check(what, a, b):
        d = disagreement(a, b)
        assert d <= TOLERANCE, (what, d)
        worst[what] = max(worst[what], d)

    check("output", output.numpy(), loop_output)
    for name, (mode, eps) in RULES.items():
        vjp = by_vjp(body, x, mode, eps)
        check(f"{name}: autograd - loops", vjp.numpy(), loops[name])
        golden[name] = vjp
        if name in ZENNIT_RULES:
            golden[name] = by_zennit(body, x, mode, eps)
            check(f"{name}: zennit - loops", golden[name].numpy(), loops[name])
            check(f"{name}: zennit - autograd", golden[name].numpy(), vjp.numpy())
            # Other activations it does not know; other rules are not the published ones where there is a bias.
            if mode == "absorb" and all(isinstance(m, (nn.Linear, nn.ReLU)) for m in body):
                check(f"{name}: zennit - captum", golden[name].numpy(), by_captum(body, x, eps).numpy())
    for name, rule in MORE_RULES.items():
        golden[name] = torch.from_numpy(more_by_loops(body, x, name, name))
        if rule is not None:
            zennit = by_zennit_rule(body, x, rule())
            check(f"{name}: zennit - loops", zennit.numpy(), golden[name].numpy())
            golden[name] = zennit
    for name, (composite, first, others) in PRESETS.items():
        golden[name] = by_zennit_composite(body, x, composite())
        check(f"{name}: zennit - loops", golden[name].numpy(), more_by_loops(body, x, first, others))
    if "gradient_x_input" in rules:
        golden["gradient_x_input"] = by_gradient_x_input(body, x)
        check("gradient_x_input: autograd - loops", golden["gradient_x_input"].numpy(), loops["gradient_x_input"])
    return golden


def fix_metadata_order(raw):
    """The order of the header's keys is not promised by safetensors; sort them."""
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    meta = dict(sorted(header.pop("__metadata__").items()))
    by_offset = sorted(header.items(), key=lambda item: (item[1]["data_offsets"], item[0]))
    text = json.dumps({"__metadata__": meta, **dict(by_offset)}, separators=(",", ":")).encode()
    # The data has to begin at a multiple of 8 bytes.
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + raw[8 + length :]


def write(path, net, golden):
    tensors = {f"model.{name}": t.detach() for name, t in net.state_dict().items()}
    tensors |= {f"golden.{name}": t.detach() for name, t in golden.items()}
    # A relevance may come out as -0.0 by the order of operations; it means nothing.
    tensors = {name: (t + 0.0).contiguous() for name, t in tensors.items()}
    for name, t in tensors.items():
        assert t.dtype == torch.float64 and torch.isfinite(t).all(), name
        tiny = t[t != 0].abs()
        assert tiny.numel() == 0 or tiny.max() > 1e-100, name
    metadata = {
        "architecture": "\n".join(repr(m) for m in net),
        # The build suffix (CPU or CUDA) is not a version.
        "generator": f"torch {version('torch').split('+')[0]}, zennit {version('zennit')}",
    }
    path.write_bytes(fix_metadata_order(save(tensors, metadata=metadata)))
    again = load_file(path)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], t) for name, t in tensors.items())


def main():
    folder = Path(__file__).resolve().parent
    worst = defaultdict(float)
    size = 0
    for name, make in NETWORKS.items():
        net, x = make(int(name[:2]))
        golden = compute(net, x, worst)
        n, k, d = SAMPLES, golden["output"].shape[1], x.shape[1]
        assert x.shape == (n, d) and golden["output"].shape == (n, k)
        assert all(t.shape == (n, k, d) for g, t in golden.items() if g not in ("input", "output"))
        path = folder / f"{name}.safetensors"
        write(path, net, golden)
        size += path.stat().st_size
        print(f"{path.name:45} {path.stat().st_size:7} bytes, smallest total {smallest_total(net, x):.1e}")
    print(f"{'all':45} {size:7} bytes")
    print(f"\nworst disagreement, relative to the largest entry of its row (limit {TOLERANCE}):")
    for what, d in sorted(worst.items()):
        print(f"{what:45} {d:.1e}")


if __name__ == "__main__":
    main()
