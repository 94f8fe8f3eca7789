"""Exports torchvision's networks at full size by both of PyTorch's exporters, and says which are read, and how far their outputs
are from onnxruntime's, of the largest; or which nodes are refused. The weights are random: nothing is fetched. Arguments: names of
networks, all of one of a kind without.

`cargo build --release -p relprop-cli` comes first.
"""

import collections
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torchvision

RELPROP = Path(__file__).resolve().parents[2] / "target/release/relprop"
NAMES = [
    "alexnet", "vgg11_bn", "resnet18", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "googlenet", "inception_v3", "squeezenet1_1",
    "mobilenet_v2", "mnasnet0_5", "regnet_x_400mf", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf", "shufflenet_v2_x0_5",
    "convnext_tiny", "vit_b_16", "swin_t",
]


def network(name):
    torch.manual_seed(0)
    settings = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    net = getattr(torchvision.models, name)(weights=None, **settings)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # The mean of all that it sees.
    with torch.no_grad():
        net.train()(torch.randn(4, 3, 224, 224))
    return net.eval()


def export(net, x, path, dynamo):
    batch = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if dynamo else {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), path, dynamo=dynamo, external_data=False, verbose=False, **batch)


def look_at(path, x):
    np.save(path.with_suffix(".npy"), x.numpy())
    command = [RELPROP, "explain", path, "--input", path.with_suffix(".npy"), "--rule", "epsilon-plus", "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        first, *nodes = done.stderr.splitlines()
        operators = collections.Counter(line.split()[0] for line in nodes)
        return "refused: " + (", ".join(f"{count} {name}" for name, count in operators.items()) or first)
    ours = np.array([sample["output"] for sample in json.loads(done.stdout)["samples"]])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    theirs = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    return f"outputs {np.abs(ours - theirs).max() / np.abs(theirs).max():.1e}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or NAMES:
            net, x = network(name), torch.randn(2, 3, 224, 224)
            for dynamo in (True, False):
                path = Path(folder) / f"{name}.onnx"
                export(net, x, path, dynamo)
                print(f"{name:<20} {'dynamo' if dynamo else 'torchscript':<12} {look_at(path, x)}", flush=True)
                path.unlink()
