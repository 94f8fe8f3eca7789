"""Train a network of the MNIST example and save it as safetensors.

Without --validate, the network is trained on all training data, saved, and
measured once on the two test sets. With --validate, part of the training data
is held back and reported, nothing is saved, and the test sets are not used.
The settings were chosen this way.
"""

import argparse
import gzip
import hashlib
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import render

SEED = 20240607
MNIST_TRAIN = 8000
MNIST_VALIDATE = 1000


def mlp():
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 320),
        nn.ReLU(),
        nn.Linear(320, 120),
        nn.ReLU(),
        nn.Linear(120, 40),
        nn.ReLU(),
        nn.Linear(40, 10),
        nn.Softmax(dim=-1),
    )


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 12, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(24, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1568, 10),
        nn.Softmax(dim=-1),
    )


NETWORKS = {"mlp": mlp, "cnn": cnn}


class Net(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.net = NETWORKS[network]()

    def logits(self, x):
        return self.net[:-1](x)

    def save(self, network, path):
        if network == "mlp":
            # A bare state dict, as in most files. The example has the architecture.
            save_file({k: v.contiguous() for k, v in self.state_dict().items()}, path)
        else:
            # A whole model: the file contains the architecture.
            architecture = {"architecture": "\n".join(map(repr, self.net)), "input": "1 28 28"}
            save_file({k: v.contiguous() for k, v in self.net.state_dict().items()}, path, architecture)


def read_idx(path):
    data = gzip.decompress(Path(path).read_bytes())
    dims = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(dims)).reshape(dims)


def read_mnist(folder, part):
    images = read_idx(Path(folder) / "t10k-images-idx3-ubyte.gz")[part]
    labels = read_idx(Path(folder) / "t10k-labels-idx1-ubyte.gz")[part]
    return to_tensors(images, labels)


def to_tensors(images, labels):
    x = torch.from_numpy(images.astype(np.float32) / 255.0)[:, None]
    return x, torch.from_numpy(labels.astype(np.int64))


def validation_family(family):
    # Use a different byte from the one that selects the held-out families.
    return hashlib.sha256(family.encode()).digest()[1] < 0x30


def blur_kernel(sigma, size):
    r = torch.arange(size, dtype=torch.float32) - size // 2
    k = torch.exp(-(r**2) / (2 * sigma**2))
    k = k / k.sum()
    return (k[:, None] * k[None, :])[None, None]


SMOOTH_FIELD = blur_kernel(4.0, 9)
SOFTEN = blur_kernel(0.8, 3)


def augment(x, gen, args):
    """Return a random plausible variation of every digit in the batch."""
    n = len(x)

    def uniform(lo, hi):
        return lo + (hi - lo) * torch.rand(n, generator=gen)

    # Stroke weight: mix with the grown or the shrunken image. Use less of the
    # shrunken one, because it would erase thin strokes.
    weight = uniform(-0.4, 0.6)[:, None, None, None]
    grown = F.max_pool2d(x, 3, 1, 1)
    shrunk = -F.max_pool2d(-x, 3, 1, 1)
    x = torch.where(weight > 0, x + weight * (grown - x), x - weight * (shrunk - x))
    soft = uniform(-0.5, 1.0).clamp(min=0)[:, None, None, None]
    x = x + soft * (F.conv2d(x, SOFTEN, padding=1) - x)

    angle = uniform(-1, 1) * args.rotate * np.pi / 180
    shear = uniform(-1, 1) * args.shear
    sx = 1 + uniform(-1, 1) * args.scale
    sy = 1 + uniform(-1, 1) * args.scale
    c, s = torch.cos(angle), torch.sin(angle)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = c / sx
    theta[:, 0, 1] = (c * shear - s) / sx
    theta[:, 1, 0] = s / sy
    theta[:, 1, 1] = (s * shear + c) / sy
    # The grid runs from -1 to 1, so one pixel is 2 / 28.
    theta[:, 0, 2] = uniform(-1, 1) * args.shift * 2 / 28
    theta[:, 1, 2] = uniform(-1, 1) * args.shift * 2 / 28
    grid = F.affine_grid(theta, (n, 1, 28, 28), align_corners=False)

    # Elastic distortion: a smooth random field of shifts. A field at half the
    # size is smooth enough and four times cheaper.
    field = torch.rand(2 * n, 1, 14, 14, generator=gen) * 2 - 1
    field = F.conv2d(field, SMOOTH_FIELD, padding=4)
    field = F.interpolate(field, size=(28, 28), mode="bilinear", align_corners=False)
    field = field.reshape(n, 2, 28, 28).permute(0, 2, 3, 1)
    strength = uniform(0, 1)[:, None, None, None] * args.elastic * 2 / 28
    x = F.grid_sample(x, grid + strength * field, mode="bilinear", align_corners=False)

    gain = uniform(0.85, 1.15)[:, None, None, None]
    return (x * gain).clamp(0, 1)


def accuracy(model, x, y):
    with torch.no_grad():
        right = int((model.logits(x).argmax(dim=1) == y).sum())
    return f"{100 * right / len(y):.2f} % ({right} of {len(y)})"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", required=True, help="folder with the MNIST t10k files")
    parser.add_argument("--fonts", default=render.SYSTEM_FONTS, help="folder with the fonts")
    parser.add_argument("--model", choices=NETWORKS, default="mlp")
    parser.add_argument("--out", type=Path, help="default: MODEL.safetensors in the folder above")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--decay", type=float, default=0.2)
    parser.add_argument("--rotate", type=float, default=12.0, help="degrees")
    parser.add_argument("--shear", type=float, default=0.2)
    parser.add_argument("--scale", type=float, default=0.12)
    parser.add_argument("--shift", type=float, default=1.5, help="pixels")
    parser.add_argument("--elastic", type=float, default=12.0, help="strength of the field")
    args = parser.parse_args()
    out = args.out or render.HERE.parent / f"{args.model}.safetensors"

    # With one thread, sums are always computed in the same order.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    gen = torch.Generator().manual_seed(SEED)

    mx, my = read_mnist(args.mnist, slice(0, MNIST_TRAIN))
    images, labels, families = render.render_role("train", args.fonts)
    tx, ty = to_tensors(images, labels)
    sets = []
    if args.validate:
        held = torch.tensor([validation_family(f) for f in families])
        cut = MNIST_TRAIN - MNIST_VALIDATE
        sets = [("MNIST, validation", mx[cut:], my[cut:]), ("fonts, validation", tx[held], ty[held])]
        mx, my, tx, ty = mx[:cut], my[:cut], tx[~held], ty[~held]
    print(f"training on {len(mx)} MNIST and {len(tx)} typeface digits", flush=True)

    model = Net(args.model)
    # As usual, biases have no weight decay.
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": args.decay},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=args.lr, total_steps=args.steps, pct_start=0.1, cycle_momentum=False
    )
    start = time.time()
    for step in range(1, args.steps + 1):
        i = torch.randint(len(mx), (160,), generator=gen)
        j = torch.randint(len(tx), (96,), generator=gen)
        x = augment(torch.cat([mx[i], tx[j]]), gen, args)
        loss = F.cross_entropy(model.logits(x), torch.cat([my[i], ty[j]]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 1000 == 0:
            print(f"step {step}, loss {loss.item():.4f}, {time.time() - start:.0f} s", flush=True)

    model.eval()
    if not args.validate:
        model.save(args.model, out)
        images, labels, _ = render.render_role("held-out", args.fonts)
        sets = [
            ("MNIST, last 2,000", *read_mnist(args.mnist, slice(MNIST_TRAIN, 10000))),
            ("fonts, held out", *to_tensors(images, labels)),
        ]
    for name, x, y in sets:
        print(f"{name}: {accuracy(model, x, y)}")


if __name__ == "__main__":
    main()
