"""Exports small networks to ONNX by the tools that people use, and writes what has to come out of them.

Each network has a twin that zennit can explain, with the same weights; `golden-images/generate.py` draws it and has the rules.
The outputs are onnxruntime's. `keras_models.py` has to be run before, in an environment of its own.
"""

import importlib.util
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from safetensors.torch import save_file
from skl2onnx import to_onnx
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("golden", HERE.parent / "golden-images" / "generate.py")
golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(golden)
Concat, Residual, conv, norm, head, basic = golden.Concat, golden.Residual, golden.conv, golden.norm, golden.head, golden.basic

RULES = ["epsilon", "zplus", "epsilon-plus-flat"]


class Wrapped(nn.Module):
    """A network in other words than its twin's."""

    def __init__(self, net, forward):
        super().__init__()
        self.net, self.words = net, forward

    def forward(self, x):
        return self.words(self.net, x)


def lenet(net, x):
    """Functions instead of modules, and a log-softmax."""
    x = F.avg_pool2d(torch.tanh(net[0](x)), 2)
    x = F.avg_pool2d(torch.tanh(net[3](x)), 2)
    return F.log_softmax(net[7](x.view(x.size(0), -1)), dim=1)


def means(net, x):
    """The mean over space by hand."""
    return net[-1](net[:-3](x).mean((2, 3)))


def dense(net, x):
    """As torchvision's DenseNet: each layer takes all features so far, as a list."""
    features = [net[1](net[0](x))]
    for block in net[2:5]:
        features.append(block[1](torch.cat(features, 1)))
    return net[5:](torch.cat(features, 1))


def growing(inputs, outputs):
    return Concat(nn.Sequential(), nn.Sequential(conv(inputs, outputs, 3, padding=1, bias=False), norm(outputs), nn.ReLU()))


class Mish(nn.SiLU):
    """zennit knows no Mish; whatever is an activation passes relevance on."""

    def forward(self, x):
        return F.mish(x)


def prelu(slopes):
    layer = nn.PReLU(slopes)
    nn.init.uniform_(layer.weight, -0.5, 0.5)
    return layer


MEAN, STD = torch.tensor([0.5, -0.25]), torch.tensor([0.75, 1.5])


class Normalized(nn.Module):
    """The inputs are normalized first; the twin's first convolution has that in its weights."""

    def __init__(self, net):
        super().__init__()
        self.register_buffer("mean", MEAN[None, :, None, None])
        self.register_buffer("std", STD[None, :, None, None])
        self.first = nn.Conv2d(2, net[0].out_channels, net[0].kernel_size)
        with torch.no_grad():
            self.first.weight.copy_(net[0].weight * self.std)
            self.first.bias.copy_(net[0].bias + (net[0].weight * self.mean).sum((1, 2, 3)))
        self.net = net[2:]

    def forward(self, x):
        return self.net(self.first((x - self.mean) / self.std).clamp(0.0, 1.5))


# What is not among the networks of golden-images: name: (shape of a sample, twin, the words it is exported in).
NETWORKS = {
    "mlp": ((6,), lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 4)), None),
    "lenet": ((1, 12, 12), lambda: nn.Sequential(
        conv(1, 4, 3), nn.Tanh(), nn.AvgPool2d(2), conv(4, 6, 2), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 5)), lenet),
    "means": ((2, 6, 6), lambda: nn.Sequential(conv(2, 5, 3), nn.ReLU(), *head(5)), means),
    "densenet": ((2, 6, 6), lambda: nn.Sequential(
        conv(2, 4, 3, padding=1), nn.ReLU(), growing(4, 3), growing(7, 3), growing(10, 3), conv(13, 6, 1), nn.ReLU(), *head(6)), dense),
    "activations": ((5,), lambda: nn.Sequential(
        nn.Linear(5, 6), nn.LeakyReLU(0.2), nn.Linear(6, 6), nn.ELU(0.7), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6),
        nn.GELU(approximate="tanh"), nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, 6), nn.Softplus(), nn.Linear(6, 6), nn.Hardtanh(-0.5, 2.0),
        nn.Linear(6, 6), nn.ReLU6(), nn.Identity(), nn.Dropout(), nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 4)),
        lambda net, x: F.softmax(net(x), dim=1)),
    "activations-more": ((5,), lambda: nn.Sequential(
        nn.Linear(5, 6), nn.SELU(), nn.Linear(6, 6), nn.CELU(0.7), nn.Linear(6, 6), Mish(), nn.Linear(6, 6), nn.Softsign(),
        nn.Linear(6, 6), nn.Hardsigmoid(), nn.Linear(6, 6), nn.Hardswish(), nn.Linear(6, 6), nn.PReLU(), nn.Linear(6, 4)), None),
    "prelu": ((2, 6, 6), lambda: nn.Sequential(
        conv(2, 4, 3), prelu(4), conv(4, 5, 3), prelu(1), nn.Flatten(), nn.Linear(20, 6), prelu(6), nn.Linear(6, 4)), None),
    "split-branches": ((2, 6, 6), lambda: nn.Sequential(
        conv(2, 4, 3, padding=1), nn.ReLU(),
        Concat(
            nn.Sequential(conv(4, 2, 1), nn.ReLU()),
            nn.Sequential(conv(4, 3, 1), nn.ReLU(), Concat(
                nn.Sequential(conv(3, 2, (1, 3), padding=(0, 1)), nn.ReLU()),
                nn.Sequential(conv(3, 2, (3, 1), padding=(1, 0)), nn.ReLU(), Concat(nn.Sequential(), conv(2, 2, 1))))),
            nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(4, 2, 1), nn.ReLU())),
        conv(10, 5, 3), nn.ReLU(), *head(5)), None),
    "pads": ((2, 7, 7), lambda: nn.Sequential(
        conv(2, 3, 1), nn.ReLU(), nn.ZeroPad2d((1, 0, 2, 1)), conv(3, 4, 3, stride=2), nn.ReLU(),
        conv(4, 4, 3, padding=1, groups=4), nn.ReLU(),
        nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Unflatten(1, (2, 2, 2)), conv(2, 3, 1), nn.ReLU(), *head(3)), None),
    "averages": ((2, 11, 11), lambda: nn.Sequential(
        conv(2, 4, 3), nn.ReLU(), nn.AvgPool2d(3, stride=2, padding=1), conv(4, 5, 2), nn.ReLU(),
        nn.AvgPool2d(2, ceil_mode=True, padding=1, count_include_pad=False), nn.Flatten(), nn.Linear(45, 4)), None),
    "normalized": ((2, 7, 7), lambda: nn.Sequential(conv(2, 5, 3), nn.Hardtanh(0, 1.5), conv(5, 4, 3), nn.ReLU(), *head(4)), Normalized),
}
# Those of golden-images, as they are.
NETWORKS |= {
    name: (*golden.NETWORKS[name], None)
    for name in ["vgg", "resnet-basic", "resnet-bottleneck", "inception", "upsample", "transposed", "sequence", "grouped", "dilated",
                  "nested-branches"]
}

class Gated(nn.Module):
    """Channels times a factor that depends on the input, as in squeeze-and-excitation."""

    def __init__(self):
        super().__init__()
        self.conv, self.gate, self.head = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1), nn.Linear(2, 3)

    def forward(self, x):
        x = self.conv(x).relu()
        return self.head((x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()).mean((2, 3)))


# What is not read: name of the file: (shape of a sample, network).
REFUSED = {
    "refused-attention": ((3, 4), lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 4, batch_first=True), nn.Flatten(), nn.Linear(12, 2))),
    "refused-gate": ((1, 5, 5), Gated),
}

# name of the file: network, exporter, settings.
EXPORTS = {f"{name}-{how}": (name, how, {}) for name in NETWORKS for how in ["torchscript", "dynamo"]}
EXPORTS |= {
    "mlp-opset9": ("mlp", "torchscript", {"opset_version": 9}),
    "resnet-basic-opset9": ("resnet-basic", "torchscript", {"opset_version": 9}),
    "upsample-opset9": ("upsample", "torchscript", {"opset_version": 9}),
    "lenet-opset11": ("lenet", "torchscript", {"opset_version": 11}),
    "upsample-opset11": ("upsample", "torchscript", {"opset_version": 11}),
    "means-opset13": ("means", "torchscript", {"opset_version": 13}),
    "activations-opset13": ("activations", "torchscript", {"opset_version": 13}),
    "activations-more-opset13": ("activations-more", "torchscript", {"opset_version": 13}),
    "activations-opset20": ("activations", "dynamo", {"opset_version": 20}),
    **{f"{name}-newest": (name, "dynamo", {"newest": True}) for name in ["densenet", "activations-more", "pads", "upsample"]},
    "resnet-basic-unfolded": ("resnet-basic", "torchscript", {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}),
    "mlp-fixed-batch": ("mlp", "torchscript", {"fixed": 2}),
    "vgg-external": ("vgg", "dynamo", {"external_data": True}),
}


def export(module, x, path, how, settings):
    settings = dict(settings)
    fixed, newest = settings.pop("fixed", None), settings.pop("newest", False)
    if fixed:
        settings["input_names"] = ["x"]
    elif how == "dynamo":
        settings["dynamic_shapes"] = {"x": {0: torch.export.Dim("batch")}} if not isinstance(module, nn.Sequential) else ({0: torch.export.Dim("batch")},)
    else:
        settings |= {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
    settings.setdefault("external_data", False) if how == "dynamo" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x[:fixed],), path, dynamo=how == "dynamo", verbose=False, **settings)
    # The exporter notes where in whose files each node comes from.
    model = onnx.load(path, load_external_data=False)
    if newest:  # than the exporter knows
        model = onnx.version_converter.convert_version(model, onnx.defs.onnx_opset_version())
    for part in [model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.save(model, path)


def run(path, x, output=None):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    fed = session.get_inputs()[0].name
    found = session.run([output] if output else None, {fed: x.numpy()})
    return torch.from_numpy(np.asarray(found[0]))


def operators(path):
    model = onnx.load(path, load_external_data=False)
    names = sorted({f"{node.domain}.{node.op_type}".strip(".") for node in model.graph.node})
    return f"{model.opset_import[0].version:>3}  {' '.join(names)}"


def write(name, x, outputs, relevances, about):
    tensors = {"input": x.flatten(1), "outputs": outputs.reshape(len(x), -1)}
    tensors |= {rule: relevance.double() for rule, relevance in relevances.items()}
    save_file({key: value.detach().contiguous() for key, value in tensors.items()}, HERE / f"{name}.safetensors", about)


def torch_models():
    drawn = {}
    for name, (shape, build, words) in NETWORKS.items():
        golden.NETWORKS[name] = (shape, build)
        net, x, goldens = golden.draw(name)
        drawn[name] = (net.float(), x.float(), {rule: goldens[rule] for rule in RULES})
    for name, (network, how, settings) in EXPORTS.items():
        net, x, goldens = drawn[network]
        words = NETWORKS[network][2]
        module = net if words is None else words(net) if isinstance(words, type) else Wrapped(net, words)
        path = HERE / f"{name}.onnx"
        try:
            export(module.eval(), x, path, how, settings)
        except Exception as error:  # an exporter's failure is reported, the others go on
            print(f"{name:<32} FAILED {str(error)[:1500]}")
            continue
        outputs = run(path, x)
        assert (module(x) - outputs).abs().max() < 1e-5, name
        # The softmax and the log-softmax are explained by their logits; both are compared as probabilities.
        if network == "lenet":
            outputs = outputs.exp()
        write(name, x, outputs, goldens, {"exporter": f"torch.onnx.export, {how}"})
        print(f"{name:<32} {operators(path)}")


def refused_models():
    for name, (shape, build) in REFUSED.items():
        torch.manual_seed(0)
        path = HERE / f"{name}.onnx"
        export(build().eval(), torch.randn(2, *shape), path, "torchscript", {"opset_version": 20})
        print(f"{name:<32} {operators(path)}")


def dense_twin(weights, biases, activation):
    layers = []
    for weight, bias in zip(weights, biases):
        layers += [nn.Linear(weight.shape[0], weight.shape[1]), activation()]
        with torch.no_grad():
            layers[-2].weight.copy_(torch.tensor(weight.T))
            layers[-2].bias.copy_(torch.tensor(bias))
    return nn.Sequential(*layers[:-1])


def explained(twin, x):
    """zennit's relevances of the first outputs, in f64."""
    twin, x = twin.double(), x.double()
    golden.TARGETS = min(3, twin(x).shape[1])
    return {rule: golden.relevances(golden.twin(twin), x, golden.RULES[rule]()) for rule in RULES}


def sklearn_models():
    random = np.random.default_rng(0)
    data = random.normal(size=(200, 6)).astype(np.float32)
    score = data[:, 0] + data[:, 1] * data[:, 2]
    classes = np.digitize(score, [-0.5, 0.5])
    settings = dict(hidden_layer_sizes=(9, 7), random_state=0, max_iter=150)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier = MLPClassifier(**settings).fit(data, classes)
        binary = MLPClassifier(**settings).fit(data, score > 0)
        models = {
            "sklearn-classifier": (classifier, {}, nn.ReLU),
            "sklearn-classifier-nozipmap": (classifier, {"zipmap": False}, nn.ReLU),
            "sklearn-binary": (binary, {"zipmap": False}, None),
            "sklearn-binary-opset9": (binary, {"zipmap": True}, None),
            "sklearn-binary-opset13": (binary, {"zipmap": False}, None),
            "sklearn-binary-opset17": (binary, {"zipmap": True}, None),
            # Several labels that do not exclude one another.
            "sklearn-labels": (MLPClassifier(**settings).fit(data, np.stack([score > 0, data[:, 3] > 0], 1).astype(int)), {"zipmap": False}, None),
            "sklearn-regressor": (MLPRegressor(activation="tanh", **settings).fit(data, score), None, nn.Tanh),
            "sklearn-regressor2": (MLPRegressor(**settings).fit(data, np.stack([score, data[:, 3]], 1)), None, nn.ReLU),
            "sklearn-pipeline": (make_pipeline(StandardScaler(), classifier).fit(data, classes), {"zipmap": False}, None),
        }
    x = torch.tensor(random.normal(size=(2, 6)), dtype=torch.float32)
    for name, (model, options, activation) in models.items():
        path = HERE / f"{name}.onnx"
        options = {id(model): options} if options else None
        opset = int(name.split("opset")[1]) if "opset" in name else None
        path.write_bytes(to_onnx(model, data[:1], options=options, target_opset=opset).SerializeToString())
        last = model.steps[-1][1] if hasattr(model, "steps") else model
        classifies = isinstance(last, MLPClassifier)
        zipped = options and next(iter(options.values())).get("zipmap", True)
        if classifies and (zipped or name == "sklearn-classifier"):
            session = onnxruntime.InferenceSession(path)
            maps = session.run(["output_probability"], {session.get_inputs()[0].name: x.numpy()})[0]
            outputs = torch.tensor([list(each.values()) for each in maps])
        else:
            outputs = run(path, x, "probabilities" if classifies else None)
        wanted = model.predict_proba(x.numpy()) if classifies else model.predict(x.numpy())
        if name == "sklearn-labels":  # those of the labels alone
            wanted = np.concatenate([1 - wanted, wanted], 1)
        assert np.abs(outputs.numpy().reshape(len(x), -1) - wanted.reshape(len(x), -1)).max() < 1e-5, name
        relevances = explained(dense_twin(last.coefs_, last.intercepts_, activation), x) if activation else {}
        write(name, x, outputs, relevances, {"exporter": "skl2onnx"})
        print(f"{name:<32} {operators(path)}")


def keras_twins():
    """Of the networks in `keras_models.py`, by the names and places of their weights."""

    def set_to(module, *arrays):
        names = ["weight", "bias", "running_mean", "running_var"]
        with torch.no_grad():
            for name, array in zip(names, arrays):
                if array.ndim == 4:
                    array = array.transpose(3, 2, 0, 1)
                elif array.ndim == 2:
                    array = array.T
                getattr(module, name).copy_(torch.tensor(array))
        return module

    def flat_dense(array, channels, height, width):
        """A dense layer behind channels-last values."""
        return array.reshape(height, width, channels, -1).transpose(2, 0, 1, 3).reshape(channels * height * width, -1)

    def mlp(w):
        return nn.Sequential(set_to(nn.Linear(6, 8), w[0], w[1]), nn.ReLU(), set_to(nn.Linear(8, 4), w[2], w[3]))

    def cnn(w):
        return nn.Sequential(
            set_to(nn.Conv2d(3, 5, 2), w[0], w[1]), nn.ReLU(), nn.MaxPool2d(2), nn.ZeroPad2d((0, 1, 0, 1)),
            set_to(nn.Conv2d(5, 6, 2, stride=2), w[2], w[3]), nn.ReLU(), nn.Flatten(),
            set_to(nn.Linear(54, 8), flat_dense(w[4], 6, 3, 3), w[5]), nn.ReLU(), set_to(nn.Linear(8, 4), w[6], w[7]))

    def resnet(w):
        def block(first):
            made = [conv(5, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5, eps=1e-3)]
            return [set_to(made[0], w[first]), set_to(made[1], *w[first + 1:first + 5])]

        stem = [set_to(conv(2, 5, 3, bias=False), w[0]), set_to(nn.BatchNorm2d(5, eps=1e-3), *w[1:5]), nn.ReLU()]
        main = nn.Sequential(*block(5), nn.ReLU(), *block(10))
        return nn.Sequential(
            *stem, nn.ZeroPad2d((1, 1, 0, 1)), nn.MaxPool2d(3, 2), Residual(main, nn.Sequential()), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            set_to(nn.Linear(5, 4), w[15], w[16]))

    return {"keras-mlp": mlp, "keras-cnn": cnn, "keras-resnet": resnet}


def keras_models():
    for name, build in keras_twins().items():
        stored = np.load(HERE / f"{name}.npz")
        weights, x = [stored[f"arr_{at}"] for at in range(len(stored.files) - 1)], torch.tensor(stored["x"])
        twin = build(weights).eval()
        turned = x.permute(0, 3, 1, 2) if x.ndim == 4 else x
        for path in sorted(HERE.glob(f"{name}-*.onnx")):
            outputs = run(path, x)
            known = twin.float()(turned)
            known = known if name == "keras-resnet" else F.softmax(known, dim=1)
            assert (known - outputs).abs().max() < 1e-5, name
            relevances = explained(twin, turned)
            if x.ndim == 4:
                relevances = {
                    rule: r.reshape(*r.shape[:2], *turned.shape[1:]).permute(0, 1, 3, 4, 2).flatten(2) for rule, r in relevances.items()
                }
            write(path.stem, x, outputs, relevances, {"exporter": path.stem.removeprefix(f"{name}-")})
            print(f"{path.stem:<32} {operators(path)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    parts = {"torch": torch_models, "refused": refused_models, "sklearn": sklearn_models, "keras": keras_models}
    for part in sys.argv[1:] or parts:
        parts[part]()
