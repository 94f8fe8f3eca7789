"""Writes the weights of a small network in every format that is read: what PyTorch saves in its two formats, in several number
types and orders, and NumPy's arrays. `weights.safetensors` has the same in f64, and an input with its output."""

import io
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
