"""Compares relprop with zennit on image networks at full size, each in its own process.

The architectures are torchvision's. Both sides have the same random weights, and batch norms with
statistics from random images. The two processes take turns, so that noise on the machine affects
both.
"""

import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import OrderedDict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

LOW, HIGH = -3.0, 3.0
NETWORKS = ("vgg16", "resnet18", "resnet50", "efficientnet_v2_s")
RULES = ("epsilon-plus-flat", "epsilon-gamma-box")
# The required speedup over zennit, and the largest allowed fraction of its memory.
BARS = {
    "epsilon-plus-flat": {"vgg16": 3, "resnet18": 3.5, "resnet50": 4, "efficientnet_v2_s": 4},
    "epsilon-gamma-box": {"vgg16": 4.5, "resnet18": 4.5, "resnet50": 4.5, "efficientnet_v2_s": 4},
}
MEMORY = {"vgg16": 0.55, "resnet18": 0.4, "resnet50": 0.5, "efficientnet_v2_s": 0.5}


class Shortcut(nn.Module):
    """A block whose input is added to its output, as zennit's layers add it."""

    def __init__(self, block):
        super().__init__()
        from zennit.layer import Sum

        self.block, self.sum = block, Sum()

    def forward(self, x):
        return self.sum(torch.stack([x, self.block(x)], dim=-1))


def without_gates(net):
    """EfficientNet as plain modules, without squeeze-and-excitation, whose gates are products."""

    def plain(module):
        kept = [
            (name, plain(child) if list(child.children()) else child)
            for name, child in module.named_children()
            if not isinstance(child, torchvision.ops.SqueezeExcitation)
        ]
        return nn.Sequential(OrderedDict(kept))

    def block(module):
        if not hasattr(module, "block"):
            return plain(module)
        inner = plain(module.block)
        return Shortcut(inner) if module.use_res_connect else nn.Sequential(OrderedDict(block=inner))

    stages = []
    for name, stage in net.features.named_children():
        if hasattr(stage[0], "block"):
            stage = nn.Sequential(*map(block, stage))
        else:
            stage = plain(stage)
        stages.append((name, stage))
    parts = OrderedDict(features=nn.Sequential(OrderedDict(stages)), avgpool=net.avgpool)
    parts |= OrderedDict(flatten=nn.Flatten(), classifier=net.classifier)
    return nn.Sequential(parts)


def network(name):
    torch.manual_seed(0)
    net = getattr(torchvision.models, name)(weights=None)
    if name.startswith("efficientnet"):
        net = without_gates(net)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.1)
        norm.momentum = None  # Average over everything seen.
    if norms:
        with torch.no_grad():
            net.train()(images(4, seed=7))
    for norm in norms:
        if version("zennit").startswith("0."):
            norm.eps = 0.0  # zennit 0.x would apply the eps twice after merging.
    return net.eval()


def images(count, seed=1):
    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(seed)).clamp(
        LOW, HIGH
    )


class Residual(nn.Module):
    """Only for its name: the sum of two branches, which have no names of their own."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def __repr__(self):
        return f"Residual((): Sequential((block): {self.block!r}) (): Sequential())"


def with_residuals(module):
    if isinstance(module, Shortcut):
        return Residual(module.block)
    if not isinstance(module, nn.Sequential):
        return module
    return nn.Sequential(
        OrderedDict((name, with_residuals(child)) for name, child in module.named_children())
    )


def architecture(net):
    """The network in PyTorch's words, including what `forward` does between the modules."""
    if isinstance(net, torchvision.models.VGG):
        parts = OrderedDict(net.named_children())
        parts = OrderedDict(
            features=parts["features"],
            avgpool=parts["avgpool"],
            flatten=nn.Flatten(),
            classifier=parts["classifier"],
        )
        return repr(nn.Sequential(parts))

    if isinstance(net, nn.Sequential):
        return repr(with_residuals(net))

    def block(module):
        names = ["conv1", "bn1", "relu", "conv2", "bn2"]
        if hasattr(module, "conv3"):
            names += ["relu", "conv3", "bn3"]
        main = " ".join(f"({name}): {getattr(module, name)!r}" for name in names)
        short = f"(downsample): {module.downsample!r}" if module.downsample else ""
        branches = f"(): Sequential({main}) (): Sequential({short})"
        return f"Sequential((): Residual({branches}) (relu2): ReLU())"

    parts = []
    for name, module in net.named_children():
        if name.startswith("layer"):
            inner = " ".join(f"({index}): {block(each)}" for index, each in enumerate(module))
            parts.append(f"({name}): Sequential({inner})")
        elif name == "fc":
            parts.append(f"(flatten): Flatten() (fc): {module!r}")
        else:
            parts.append(f"({name}): {module!r}")
    return f"Sequential({' '.join(parts)})"


# ------------------------------------ the processes, which answer `run N`, `write PATH`, `memory`


def one_hot_relevance(output):
    values, at = output.max(1, keepdim=True)
    return torch.zeros_like(output).scatter_(1, at, values)


def serve(name, rule, count, threads):
    """Runs zennit's side."""
    from zennit.attribution import Gradient
    from zennit.composites import EpsilonGammaBox, EpsilonPlusFlat
    from zennit.torchvision import ResNetCanonizer, VGGCanonizer

    torch.set_num_threads(threads)
    net, x = network(name), images(count)
    canonizers = [VGGCanonizer() if name.startswith("vgg") else ResNetCanonizer()]
    if rule == "epsilon-plus-flat":
        composite = EpsilonPlusFlat(canonizers=canonizers)
    else:
        composite = EpsilonGammaBox(low=LOW, high=HIGH, canonizers=canonizers)
    with Gradient(net, composite) as attributor:  # Install the hooks once, as a server would.
        for line in sys.stdin:
            command, _, argument = line.strip().partition(" ")
            if command == "run":
                start = time.perf_counter()
                for _ in range(int(argument)):
                    attributor(x.clone(), one_hot_relevance)
                answer = time.perf_counter() - start
            elif command == "write":
                output, relevance = attributor(x.clone(), one_hot_relevance)
                both = torch.cat([output.detach(), relevance.detach().flatten(1)], 1)
                both.numpy().astype(np.float32).tofile(argument)
                answer = "written"
            else:
                answer = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(answer, flush=True)


class Process:
    def __init__(self, arguments, threads):
        environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(
            list(map(str, arguments)), text=True, env=environment, **pipes
        )

    def ask(self, command):
        print(command, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline().strip()
        if not answer:
            raise SystemExit(f"{self.process.args[0]} exited at command: {command}")
        return answer

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def difference(ours, theirs):
    """The largest difference in any sample, relative to the sample's largest value."""
    return ((ours - theirs).abs() / theirs.abs().amax(1, keepdim=True)).max().item()


def write(net, path):
    """Writes the network as torch.onnx exports it, or its weights with its architecture."""
    if path.suffix == ".onnx":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                net,
                (images(1),),
                path,
                dynamo=True,
                external_data=False,
                verbose=False,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    else:
        save_file(net.state_dict(), path, {"architecture": architecture(net), "input": "3 224 224"})


def compare(program, model, rule, count, options):
    threads, folder, name = options.threads, model.parent, model.stem
    samples = folder / f"images-{count}.safetensors"
    mode = "batch" if count > 1 else "single"
    sides = {
        "relprop": Process([program, model, samples, "predicted", "optimal", mode, rule], threads),
        "zennit": Process([sys.executable, __file__, name, rule, count, threads], threads),
    }
    outputs, relevances = {}, {}
    for side, process in sides.items():
        process.ask(f"write {folder / side}")
        written = torch.from_numpy(
            np.fromfile(folder / side, np.float32).reshape(count, -1).astype(np.float64)
        )
        outputs[side], relevances[side] = written[:, :1000], written[:, 1000:]
    if model.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        expected = torch.from_numpy(
            session.run(None, {session.get_inputs()[0].name: images(count).numpy()})[0]
        ).double()
        off = difference(outputs["relprop"], expected)
        print(
            f"outputs of {model.name}: differ from onnxruntime's by {off:.1e} of the largest",
            flush=True,
        )
        assert off < 1e-5
    worst = difference(relevances["relprop"], relevances["zennit"])
    taken = {side: [] for side in sides}
    shuffle = random.Random(0)
    for _ in range(options.rounds):
        for side in shuffle.sample(list(sides), len(sides)):
            time.sleep(0.05)
            taken[side].append(float(sides[side].ask("run 1")) * 1e3)
    ms = {side: statistics.median(values) for side, values in taken.items()}
    mb = {side: int(process.ask("memory")) / 1e6 for side, process in sides.items()}
    for process in sides.values():
        process.close()
    return {
        "relprop_ms": ms["relprop"],
        "relprop_mb": mb["relprop"],
        "peers": {"zennit": {"ms": ms["zennit"], "mb": mb["zennit"]}},
        "max_rel_diff": worst,
    }


def run(program, options):
    """Measures every network, rule and number of images, and prints a table on the way."""
    results = {}
    print(
        "\n| network, rule, images | relprop ms | zennit ms | speedup (bar) "
        "| relprop MB | zennit MB | relprop / zennit memory (bar) | difference |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for count in (1, 4):
            save_file({"samples": images(count).flatten(1)}, folder / f"images-{count}.safetensors")
        for name in options.networks or NETWORKS:
            model = folder / f"{name}{'.onnx' if options.onnx else '.safetensors'}"
            net = network(name)
            write(net, model)
            del net
            for rule in RULES:
                for count in (1, 4):
                    found = compare(program, model, rule, count, options)
                    results[f"{name}/{rule}/{count}"] = found
                    zennit = found["peers"]["zennit"]
                    print(
                        f"| {name}/{rule}/{count} | {found['relprop_ms']:.0f} | {zennit['ms']:.0f} "
                        f"| {zennit['ms'] / found['relprop_ms']:.2f}x ({BARS[rule][name]}x) "
                        f"| {found['relprop_mb']:.0f} | {zennit['mb']:.0f} "
                        f"| {found['relprop_mb'] / zennit['mb']:.0%} ({MEMORY[name]:.0%}) "
                        f"| {found['max_rel_diff']:.1e} |",
                        flush=True,
                    )
            model.unlink()
    return results


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
