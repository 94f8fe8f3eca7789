"""Writes the weights of a small network in every format that is read: what PyTorch saves in its two formats, in several number
types and orders, and NumPy's arrays. `weights.safetensors` has the same in f64, and an input with its output."""

import collections
import io
import itertools
import pickle
import types
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).resolve().parent

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
weights = net.state_dict()
x = torch.tensor([[1.0, -2.0, 0.5]])


def save(what, name, **settings):
    torch.save(what, HERE / name, **settings)


save(weights, "zip.pt")
save(weights, "legacy.pt", _use_new_zipfile_serialization=False)
for protocol in (3, 4, 5):
    save(weights, f"protocol{protocol}.pt", pickle_protocol=protocol)
save({"epoch": 3, "model": weights, "optimizer": torch.optim.Adam(net.parameters()).state_dict(), "lr": 0.1}, "checkpoint.pt")
for name, kind in {"f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64}.items():
    save({key: value.to(kind) for key, value in weights.items()}, f"{name}.pt")
    save({key: value.to(kind) for key, value in weights.items()}, f"{name}-legacy.pt", _use_new_zipfile_serialization=False)
# Samples: a tensor alone, and whole numbers beside one.
save(x, "tensor.pt")
save(x, "tensor-legacy.pt", _use_new_zipfile_serialization=False)
save(nn.Parameter(x), "tensor-parameter.pt")
save({"x": x, "labels": torch.tensor([1, -2]), "pixels": torch.tensor([0, 255], dtype=torch.uint8)}, "samples.pt")
# Views: of one storage all of them, some transposed.
whole = torch.cat([value.flatten() if value.ndim == 1 else value.t().flatten() for value in weights.values()])
views, at = {}, 0
for key, value in weights.items():
    part = whole[at:at + value.numel()]
    views[key] = part if value.ndim == 1 else part.view(value.shape[::-1]).t()
    at += value.numel()
assert all((views[key] == weights[key]).all() for key in weights)
save(views, "views.pt")
save(views, "views-legacy.pt", _use_new_zipfile_serialization=False)
save(nn.ParameterDict({key.replace(".", "_"): nn.Parameter(value) for key, value in weights.items()}).state_dict(), "parameters.pt")
save(list(net.parameters()), "list.pt")
save(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).state_dict(), "norm.pt")
save(net, "module.pt")
buffer = io.BytesIO()
torch.jit.save(torch.jit.trace(net, x), buffer)
with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(HERE / "script.pt", "w") as copied:
    for entry in archive.infolist():
        if not entry.filename.endswith(".debug_pkl"):  # Where in whose files each line comes from.
            copied.writestr(zipfile.ZipInfo(entry.filename), archive.read(entry))
# What a GPU would have saved: the device is a word in the file, of no use to a reader.
def on_a_gpu(content):
    return content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")


(HERE / "cuda-legacy.pt").write_bytes(on_a_gpu((HERE / "legacy.pt").read_bytes()))
with zipfile.ZipFile(HERE / "zip.pt") as archive, zipfile.ZipFile(HERE / "cuda.pt", "w") as copied:
    for entry in archive.infolist():
        copied.writestr(zipfile.ZipInfo(entry.filename), on_a_gpu(archive.read(entry)))

arrays = {key: value.numpy() for key, value in weights.items()}
np.savez(HERE / "weights.npz", **arrays)
np.savez_compressed(HERE / "compressed.npz", **{key: np.asfortranarray(value) for key, value in arrays.items()})
np.savez(HERE / "f16.npz", **{key: value.astype(np.float16) for key, value in arrays.items()})
np.save(HERE / "x.npy", x.numpy())

expected = {key: value.double() for key, value in weights.items()} | {"x": x.double(), "y": net(x).detach().double()}
save_file(expected, HERE / "weights.safetensors")


# Python 2 pickled an OrderedDict as OrderedDict([[key, value], ...]); Python 3 fills an empty one.
class Python2(pickle.Pickler):
    def reducer_override(self, value):
        if type(value) is collections.OrderedDict and value:
            return collections.OrderedDict, ([[key, item] for key, item in value.items()],)
        return NotImplemented


python2 = types.ModuleType("python2")
python2.__dict__.update(pickle.__dict__)
python2.Pickler = Python2
python2.dump = lambda value, file, protocol=2: Python2(file, protocol).dump(value)
ordered = collections.OrderedDict(weights)
save(ordered, "python2.pt", pickle_module=python2, pickle_protocol=2)
save(ordered, "python2-legacy.pt", pickle_module=python2, pickle_protocol=2, _use_new_zipfile_serialization=False)

# Tensors with attributes, and parameters with and without: what they are is said by other functions than for plain tensors.
tagged = {key: value.clone() for key, value in weights.items()}
for value in tagged.values():
    value.tag = 1
save(tagged, "attributes.pt")
tagged = {key: nn.Parameter(value) for key, value in weights.items()}
tagged["0.weight"].tag = 1
save(tagged, "parameters-tagged.pt")
by_class = collections.defaultdict(dict)
by_class["net"].update(weights)
save(by_class, "defaultdict.pt")


# Tensors that are left out, with others.
class Own(torch.Tensor):
    pass


import sys  # noqa: E402

sys.modules["tensors_of_mine"] = types.ModuleType("tensors_of_mine")
sys.modules["tensors_of_mine"].Own = Own
Own.__module__, Own.__qualname__ = "tensors_of_mine", "Own"
save({"0.weight": weights["0.weight"].to_sparse(), "0.bias": torch.quantize_per_tensor(weights["0.bias"], 0.1, 0, torch.qint8),
      "2.weight": weights["2.weight"].to("meta"), "2.bias": weights["2.bias"].as_subclass(Own)}, "left-out.pt")
save({"0.weight": weights["0.weight"].to_sparse(), **{key: weights[key] for key in ("0.bias", "2.weight", "2.bias")}}, "sparse.pt")
save({"0.weight": weights["0.weight"].to(torch.float8_e4m3fn), **{key: weights[key] for key in ("0.bias", "2.weight", "2.bias")}},
     "f8.pt")

# As Lightning writes them: the module within the one that trains it, the optimizer after a step, what was set.
optimizer = torch.optim.Adam(net.parameters())
net(x).sum().backward()
optimizer.step()
trained = net.state_dict()
save({"epoch": 3, "pytorch-lightning_version": "2.5.0", "state_dict": {f"net.{key}": value for key, value in trained.items()},
      "optimizer_states": [optimizer.state_dict()], "hyper_parameters": {"rate": 0.1, "scale": torch.ones(3)}}, "lightning.pt")
save({"model": {f"module.{key}": value for key, value in trained.items()}, "optimizer": optimizer.state_dict()}, "training.pt")
save({"model": trained, "ema": {key: value * 0.5 for key, value in trained.items()}}, "averages.pt")

# A CNN with a group in it, written by the lines in the documentation of `relprop::io`.
for pool in (nn.AvgPool1d, nn.AvgPool2d):  # PyTorch prints only some of their settings
    pool.extra_repr = lambda self: ", ".join(f"{name}={getattr(self, name)}" for name in self.__constants__)
torch.manual_seed(1)
net = nn.Sequential(
    nn.Sequential(nn.Conv2d(2, 3, 3, padding="same"), nn.BatchNorm2d(3, affine=False), nn.ReLU()),
    nn.AvgPool2d(2, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
    nn.Sequential(nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.Hardswish()), nn.AvgPool2d((2, 1), divisor_override=3)),
    nn.Flatten(), nn.Linear(8, 3), nn.Dropout(0.5)).eval()
net[0][1].running_mean.uniform_(-0.2, 0.2)
x = torch.randn(2, 2, 5, 6)
shape = " ".join(map(str, x.shape[1:]))
save_file(net.state_dict(), HERE / "cnn.safetensors", {"architecture": repr(net), "input": shape})
save_file({"x": x, "y": net(x).detach()}, HERE / "cnn-values.safetensors")

# Poolings of all small sizes: kind, size, kernel, stride, padding, dilation, ceil_mode, count_include_pad; then the outputs, or
# that PyTorch refuses.
lines = []
for size, kernel, stride, padding, ceil in itertools.product(range(1, 6), range(1, 5), range(1, 4), range(3), (0, 1)):
    x = torch.tensor([[(index * 7 % 11) - 5.0 for index in range(size)]])
    layers = [("max", dilation, 1, nn.MaxPool1d(kernel, stride, padding, dilation, ceil_mode=bool(ceil))) for dilation in (1, 2)]
    layers += [("avg", 1, count, nn.AvgPool1d(kernel, stride, padding, bool(ceil), bool(count))) for count in (0, 1)]
    for kind, dilation, count, layer in layers:
        try:
            values = layer(x)[0].tolist()
            outputs = " ".join(f"{value:.6g}" for value in values) if all(abs(v) < 1e9 for v in values) else "refused"
        except RuntimeError:
            outputs = "refused"
        lines.append(f"{kind} {size} {kernel} {stride} {padding} {dilation} {ceil} {count}: {outputs}\n")
(HERE / "poolings.txt").write_text("".join(lines))
