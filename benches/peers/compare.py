"""Compares relprop with zennit, captum and PyTorch: same networks, inputs and threads, in one run.

Every contestant uses the epsilon rule, except gradient x input, which is LRP-0; in a ReLU network
the two are the same up to epsilon. First the script compares all relevances with loops in float64.
Then the contestants take turns in short bursts, in an order that changes, so that noise on the
machine affects all of them. The script prints the medians.
"""

import argparse
import gzip
import json
import math
import os
import random
import statistics
import subprocess
import tempfile
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import images
import numpy as np
import torch
from captum.attr import LRP
from captum.attr._utils.lrp_rules import EpsilonRule
from safetensors.torch import save_file
from torch import nn
from torch.func import jacrev, vmap
from zennit.attribution import Gradient
from zennit.composites import LayerMapComposite
from zennit.rules import Epsilon, Pass

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples/mnist/digits-images-idx3-ubyte.gz"
EPS = 1e-6
# Single calls cycle through this many samples, so that no cache or branch predictor adapts to one.
IN_TURN = 16
# The largest accepted difference, relative to a sample's largest relevance. In f32, every tool
# loses digits where a total is close to 0.
AGREE = 5e-2

MLP = (784, 320, 120, 40, 10)

# Sizes, samples per batch (None: one at a time), all outputs (or the predicted one), order of
# accumulation.
WORKLOADS = {
    "one": (MLP, None, False, "optimal"),
    "all": (MLP, None, True, "optimal"),
    "batch-one": (MLP, 64, False, "optimal"),
    "batch-all": (MLP, 64, True, "optimal"),
    "wide": ((4096, 4096, 4096, 1000), 64, False, "optimal"),
    "bottleneck": ((784, 128, 32, 128, 784), None, True, "optimal"),
    "widening": ((12, 256, 256, 50), 64, True, "optimal"),
    "forward": (MLP, 64, True, "forward"),
}
# The required speedups over the faster of zennit and captum, and over the fastest of all, with
# digits that are mostly zero and without zeros.
BARS = {
    "one": (60, 10, 3.5),
    "all": (40, 5, 2.5),
    "batch-one": (8, 2, 1.5),
    "batch-all": (8, 2, 1.1),
    "wide": (2, 1.1, None),
    "bottleneck": (40, 4, 3),
    "widening": (25, 4, None),
    "forward": (None, 15, 5),
}


# ---------------------------------------------------------------- networks and inputs


def network(sizes, seed=0):
    """A network with random He weights and small random biases."""
    torch.manual_seed(seed)
    modules = []
    for n_in, n_out in zip(sizes, sizes[1:]):
        layer = nn.Linear(n_in, n_out)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(layer.bias, std=0.1)
        modules += [layer, nn.ReLU()]
    return nn.Sequential(*modules[:-1]).eval()


def digits(count):
    """Bundled digits in [0, 1], from many typefaces and all classes. Most pixels are 0."""
    raw = np.frombuffer(gzip.decompress(DIGITS.read_bytes()), np.uint8, offset=16).reshape(-1, 784)
    return torch.tensor(raw[np.arange(count) * 7 % len(raw)] / 255.0, dtype=torch.float32)


def samples(inputs, count, shifted):
    if inputs == 784:
        x = digits(count)
        return 2 * x - 1 if shifted else x
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------- the contestants
# Each maps x to relevances (samples, targets, inputs).


def stabilize(y, eps=EPS):
    return y + torch.where(y < 0, -eps, eps)


def one_hot_relevance(output):
    """The value of the predicted output at its index, and zeros elsewhere."""
    values, at = output.max(1, keepdim=True)
    return torch.zeros_like(output).scatter_(1, at, values)


def each_output(output):
    """For samples repeated once per output: the value of output k at index k of repetition k."""
    outputs = output.shape[1]
    return torch.eye(outputs).repeat(len(output) // outputs, 1) * output


def by_zennit(net, outputs, every):
    composite = LayerMapComposite([(nn.ReLU, Pass()), (nn.Linear, Epsilon(epsilon=EPS))])
    attributor = Gradient(net, composite)
    attributor.__enter__()  # Install the hooks once, as a server would.
    if not every:
        return lambda x: attributor(x.clone(), one_hot_relevance)[1][:, None]
    return lambda x: attributor(x.repeat_interleave(outputs, 0), each_output)[1].view(
        len(x), outputs, -1
    )


def by_captum(net, outputs, every):
    for layer in net:
        if isinstance(layer, nn.Linear):
            layer.rule = EpsilonRule(epsilon=EPS)
    lrp = LRP(net)
    if not every:
        return lambda x: lrp.attribute(x.clone(), target=net(x).argmax(1)).detach()[:, None]
    return (
        lambda x: lrp.attribute(
            x.repeat_interleave(outputs, 0), target=torch.arange(outputs).repeat(len(x))
        )
        .detach()
        .view(len(x), outputs, -1)
    )


def by_gradient(net, outputs, every):
    def one(x):
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(net(x).max(1).values.sum(), x)
        return (gradient * x.detach())[:, None]

    def single(x):
        return jacrev(net)(x[0])[None] * x[:, None]

    batched = vmap(jacrev(net))
    return (lambda x: single(x) if len(x) == 1 else batched(x) * x[:, None]) if every else one


def by_hand(net, outputs, every):
    """Hand-written LRP: a forward pass that keeps its values, then products back to the inputs."""
    layers = [(m.weight.detach(), m.bias.detach()) for m in net if isinstance(m, nn.Linear)]

    @torch.inference_mode()
    def explain(x):
        kept = []
        for index, (w, b) in enumerate(layers):
            y = torch.addmm(b, x, w.T)
            kept.append((x, y))
            x = y.relu() if index + 1 < len(layers) else y
        if not every:
            r = one_hot_relevance(y)
            for (z, y), (w, _) in zip(reversed(kept), reversed(layers)):
                r = ((r / stabilize(y)) @ w).mul_(z)
            return r[:, None]
        # The last layer's share matrix needs no product.
        (z, y), (w, _) = kept[-1], layers[-1]
        r = (y / stabilize(y))[:, :, None] * w * z[:, None]
        for (z, y), (w, _) in zip(kept[-2::-1], layers[-2::-1]):
            r = ((r / stabilize(y)[:, None]) @ w).mul_(z[:, None])
        return r

    return explain


def by_forward(net, outputs, every):
    """Multiplies share matrices from the left while the network runs."""
    layers = [(m.weight.detach(), m.bias.detach()) for m in net if isinstance(m, nn.Linear)]

    @torch.inference_mode()
    def explain(x):
        shares = None
        for index, (w, b) in enumerate(layers):
            y = torch.addmm(b, x, w.T)
            w = w.expand(len(x), *w.shape)
            if not every and index + 1 == len(layers):
                y, at = y.max(1, keepdim=True)
                w = w.take_along_dim(at[:, :, None], 1)
            a = (x[:, None] * w / stabilize(y)[:, :, None]).transpose(1, 2)
            shares = a if shares is None else shares @ a
            x = y.relu()
        return (shares * y[:, None]).transpose(1, 2)

    return explain


PEERS = {
    "zennit": by_zennit,
    "captum": by_captum,
    "gradient x input": by_gradient,
    "torch by hand": by_hand,
    "torch forward accumulation": by_forward,
}


def peers_of(name):
    """`forward` only compares forward accumulation, which would need blocks of 4 GB in `wide`."""
    if name == "forward":
        return ["torch forward accumulation"]
    return [peer for peer in PEERS if name != "wide" or peer != "torch forward accumulation"]


def reference(net, x, every, eps):
    """Evaluates the rule's formula in float64, one sample at a time."""
    relevances = []
    layers = [
        (m.weight.detach().double(), m.bias.detach().double())
        for m in net
        if isinstance(m, nn.Linear)
    ]
    for z in x.double():
        kept = []
        for index, (w, b) in enumerate(layers):
            y = w @ z + b
            kept.append((w, z, y))
            z = y.relu() if index + 1 < len(layers) else y
        r = torch.diag(y) if every else one_hot_relevance(y[None])
        for w, z, y in reversed(kept):
            r = (r / stabilize(y, eps)) @ w * z
        relevances.append(r)
    return torch.stack(relevances)


# ---------------------------------------------------------------- measuring


class Relprop:
    """relprop's side: a process that waits for commands."""

    def __init__(self, program, folder, net, x, workload, threads):
        sizes, batch, every, order = workload
        self.folder, self.shape = folder, (len(x), sizes[-1] if every else 1, sizes[0])
        save_file(
            net.state_dict(),
            folder / "model.safetensors",
            {"architecture": "\n".join(map(repr, net))},
        )
        save_file({"samples": x}, folder / "samples.safetensors")
        arguments = [
            folder / "model.safetensors",
            folder / "samples.safetensors",
            "all" if every else "predicted",
        ]
        arguments += [order, "batch" if batch else "single", "epsilon"]
        environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([program, *arguments], text=True, env=environment, **pipes)

    def ask(self, command):
        print(command, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline().strip()
        if not answer:
            raise SystemExit(f"relprop exited at command: {command}")
        return answer

    def relevances(self, outputs):
        self.ask(f"write {self.folder / 'relevances'}")
        values = np.fromfile(self.folder / "relevances", np.float32).reshape(self.shape[0], -1)
        return torch.from_numpy(values[:, outputs:].reshape(self.shape))

    def run(self, times):
        return float(self.ask(f"run {times}"))

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Peer:
    def __init__(self, explain, x, batch):
        self.explain = explain
        self.calls = [x] if batch else [sample[None] for sample in x]

    def relevances(self):
        return torch.cat([self.explain(x) for x in self.calls]).detach()

    def run(self, times):
        start = time.perf_counter()
        for index in range(times):
            self.explain(self.calls[index % len(self.calls)])
        return time.perf_counter() - start


def burst(contestant, times):
    # The previous contestant's threads may still spin while they wait for work.
    time.sleep(0.02)
    contestant.run(max(1, times // 10))
    return contestant.run(times)


def times_for(contestant, seconds):
    """The number of runs that take about this many seconds."""
    contestant.run(1)
    times = 1
    while (taken := contestant.run(times)) < seconds / 4 and times < 1 << 20:
        times *= 2
    return max(1, round(times * seconds / taken))


def difference(ours, exact):
    """The largest difference, relative to the sample's largest relevance."""
    largest = exact.abs().amax((1, 2), keepdim=True)
    return ((ours.double() - exact).abs() / largest).max().item()


def compare(program, name, shifted, options):
    workload = WORKLOADS[name]
    sizes, batch, every, _ = workload
    net, x = network(sizes), samples(sizes[0], batch or IN_TURN, shifted)
    few = slice(0, 4 if sizes[0] > 1000 else 16)
    exact = {eps: reference(net, x[few], every, eps) for eps in (0, EPS)}
    with tempfile.TemporaryDirectory() as folder:
        relprop = Relprop(program, Path(folder), net, x, workload, options.threads)
        worst = difference(relprop.relevances(sizes[-1])[few], exact[EPS])
        contestants = {"relprop": relprop}
        for peer in peers_of(name):
            # Each contestant gets its own network, because hooks stay installed.
            contestant = Peer(PEERS[peer](network(sizes), sizes[-1], every), x, batch)
            # The gradient has no epsilon.
            off = difference(
                contestant.relevances()[few], exact[0 if peer == "gradient x input" else EPS]
            )
            if not off < AGREE:
                raise SystemExit(f"{name}: {peer} differs from the rule by {off:.1e}")
            contestants[peer] = contestant
        if not worst < AGREE:
            raise SystemExit(f"{name}: relprop differs from the rule by {worst:.1e}")
        times = {
            key: times_for(contestant, options.burst) for key, contestant in contestants.items()
        }
        taken = {key: [] for key in contestants}
        shuffle = random.Random(0)
        for _ in range(options.rounds):
            for key in shuffle.sample(list(contestants), len(contestants)):
                per_call = burst(contestants[key], times[key]) / times[key]
                taken[key].append(per_call * 1e6 / (batch or 1))
        relprop.close()
    medians = {key: statistics.median(values) for key, values in taken.items()}
    return {"relprop_us": medians.pop("relprop"), "peers": medians, "max_rel_diff": worst}


def ratios(result):
    """The speedups over the faster of zennit and captum, and over the fastest of all."""
    ours, peers = result["relprop_us"], result["peers"]
    tools = [us for peer, us in peers.items() if peer in ("zennit", "captum")]
    return min(tools) / ours if tools else None, min(peers.values()) / ours


# ---------------------------------------------------------------- the report


def bars(shifted):
    """The required speedups over the faster of zennit and captum, and over the fastest of all."""
    return {
        name: (None, dense) if shifted else (tools, fastest)
        for name, (tools, fastest, dense) in BARS.items()
    }


def number(value):
    if value is None:
        return ""
    digits = max(0, 2 - math.floor(math.log10(value))) if value else 0
    return f"{value:,.{min(digits, 2)}f}"


def judged(ratio, bar):
    if ratio is None:
        return ""
    return f"{number(ratio)}x" + (
        "" if bar is None else f" (bar {bar}x{'' if ratio >= bar else ', missed'})"
    )


def row(cells):
    return "| " + " | ".join(cells) + " |"


def table(results, bars):
    """The rows of the table: us per sample, then the speedups and their required values."""
    yield row(
        [
            "us per sample",
            "relprop",
            *PEERS,
            "faster than zennit, captum",
            "faster than all",
            "error",
        ]
    )
    yield "|---" + "|---:" * (len(PEERS) + 4) + "|"
    for name, result in results.items():
        against = [
            judged(ratio, bar) for ratio, bar in zip(ratios(result), bars.get(name, (None, None)))
        ]
        times = [number(result["peers"].get(peer)) for peer in PEERS]
        yield row(
            [
                f"`{name}`",
                number(result["relprop_us"]),
                *times,
                *against,
                f"{result['max_rel_diff']:.0e}",
            ]
        )


def machine():
    """The processor, its vectors and its cores."""
    lines = [line.partition(":") for line in open("/proc/cpuinfo")]
    values = {key.strip(): value.strip() for key, _, value in lines}
    flags = values.get("flags", "").split()
    widths = {"avx512f": "AVX-512", "avx2": "AVX2"}
    vectors = next((name for flag, name in widths.items() if flag in flags), "no AVX2")
    cpu = values.get("model name", "unknown processor")
    model = f"family {values.get('cpu family', '?')} model {values.get('model', '?')}"
    return f"{cpu} ({model}, {vectors}), {os.cpu_count()} cores"


def versions():
    """The versions of the libraries that are installed."""
    for library in ("zennit", "captum", "torch", "torchvision", "numpy", "onnxruntime"):
        try:
            yield f"{library} {version(library)}"
        except PackageNotFoundError:
            continue


def build():
    command = [
        "cargo",
        "bench",
        "--no-run",
        "--bench",
        "peers",
        "--features",
        "onnx",
        "--message-format=json",
    ]
    lines = subprocess.run(
        command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()
    messages = [json.loads(line) for line in lines if line.startswith("{")]
    return next(
        m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "peers"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="take fewer and shorter rounds: under three minutes"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the results to this file"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=WORKLOADS,
        default=list(WORKLOADS),
        help="run only these workloads",
    )
    parser.add_argument(
        "--images",
        action="store_true",
        help="compare image networks at full size with zennit instead",
    )
    parser.add_argument(
        "--onnx",
        action="store_true",
        help="pass the image networks through ONNX; also compare outputs with onnxruntime",
    )
    parser.add_argument(
        "--networks", nargs="+", choices=images.NETWORKS, help="run only these image networks"
    )
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="threads of each side (default: all)"
    )
    options = parser.parse_args()
    options.rounds, options.burst = (7, 0.05) if options.quick else (21, 0.2)

    warnings.filterwarnings("ignore", message="Input Tensor 0 did not already require gradients")
    program = build()
    torch.set_num_threads(options.threads)
    print(f"{machine()}; {options.threads} threads; {', '.join(versions())}")
    if options.images:
        options.rounds = 3 if options.quick else 7
        written = images.run(program, options)
        if options.json:
            options.json.write_text(json.dumps(written, indent=2) + "\n")
        return
    digits_of = {"digits, most pixels 0": False, "the same shifted to [-1, 1], no zeros": True}
    written = {}
    for title, shifted in digits_of.items():
        chosen = [name for name in options.only if not shifted or WORKLOADS[name][0][0] == 784]
        results = {name: compare(program, name, shifted, options) for name in chosen}
        print(
            f"\n{title}; weights random (He)\n",
            *table(results, bars(shifted)),
            sep="\n",
            flush=True,
        )
        written |= {
            f"{name}/shifted" if shifted else name: result for name, result in results.items()
        }
    if options.json:
        options.json.write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
