"""Prints where zennit's versions differ, and where its relevances are not those of the rules: docs/numerics.md explains the lines.

That they agree elsewhere is shown by `generate.py` and `../random_networks.py`, which compare zennit with loops.
"""

import copy
from importlib.metadata import version

import torch
from torch import nn
from torchvision.models import resnet18
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import EpsilonPlus, EpsilonPlusFlat, NameMapComposite
from zennit.layer import Sum
from zennit.rules import Epsilon, Norm
from zennit.torchvision import ResNetCanonizer

torch.set_default_dtype(torch.float64)
torch.manual_seed(1)
INPUTS = torch.rand(1, 4)


class Block(nn.Module):
    """y = head(x + inner(x)), without biases: all relevance has to come to x."""

    def __init__(self, add, module=None):
        super().__init__()
        self.inner, self.head, self.module, self.add = nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False), module, add

    def forward(self, x):
        return self.head(self.add(self.module, x, self.inner(x)))


class Two(nn.Module):
    def forward(self, a, b):
        return a + b


class Listed(nn.Module):
    def forward(self, values):
        return sum(values)


def stacked(module, *values):
    return module(torch.stack(values, -1))


BLOCKS = {
    "a + b": Block(lambda _, a, b: a + b),
    "zennit's Sum, made in forward": Block(lambda _, a, b: stacked(Sum(), a, b)),
    "zennit's Sum, a module of the block": Block(lambda module, a, b: stacked(module, a, b), Sum()),
    "a module of two inputs": Block(lambda module, a, b: module(a, b), Two()),
    "a module of two inputs, one by keyword": Block(lambda module, a, b: module(a, b=b), Two()),
    "a module of a list": Block(lambda module, a, b: module([a, b]), Listed()),
}


def explain(net, composite, x=INPUTS):
    with Gradient(net, composite) as attributor:
        return attributor(x.clone(), lambda output: output.detach())


def sums():
    print("A sum in a block without biases: the relevance of the inputs, divided by the output")
    for name, block in BLOCKS.items():
        block.load_state_dict(BLOCKS["a + b"].state_dict())
        composite = NameMapComposite([(["inner", "head"], Epsilon(1e-12)), (["module"], Norm(1e-12))])
        try:
            output, relevance = explain(block, composite)
            print(f"  {name:<40}{(relevance.sum() / output.sum()).item():.6f}")
        except (AttributeError, TypeError) as error:
            print(f"  {name:<40}{error}")


def norms():
    print("A batch norm with eps = 0.1 after a dense layer")
    net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3, eps=0.1)).eval()
    for values in net[1].parameters():
        nn.init.uniform_(values, 0.5, 1.5)
    nn.init.uniform_(net[1].running_var, 0.5, 1.5)
    weight, state, output = net[0].weight.detach().clone(), copy.deepcopy(net.state_dict()), net(INPUTS).detach()
    scale = (net[1].weight / (net[1].running_var + net[1].eps).sqrt()).detach()
    composite = EpsilonPlus(canonizers=[SequentialMergeBatchNorm()])
    with composite.context(net):
        error = (net[0].weight - scale[:, None] * weight).abs().max().item()
        print(f"  merged weights are off by             {error:.1e}")
        print(f"  the norm that stays multiplies by     {(net[1](INPUTS[:, :3]) / INPUTS[:, :3]).mean().item():.6f}")
        print(f"  outputs of the merged network, off by {(net(INPUTS) - output).abs().max().item():.1e}")
    explain(net, composite)
    print(f"  outputs afterwards, off by            {(net(INPUTS) - output).abs().max().item():.1e}")
    after = net.state_dict()
    changed = [name for name in after if name not in state or not torch.equal(after[name], state[name])]
    print(f"  changed in the state dict afterwards  {', '.join(changed) or 'nothing'}")
    output, relevance = explain(net[1:], EpsilonPlus(), INPUTS[:, :3])
    print(f"  not merged: relevance of inputs/outputs {(relevance / output)[0].tolist()}")


def resnet():
    print("A ResNet-18 of random weights, explained by EpsilonPlusFlat")
    net = resnet18(weights=None, num_classes=1).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    image = torch.randn(1, 3, 64, 64)
    for name, canonizers in {"merged": [ResNetCanonizer()], "as it is": []}.items():
        output, relevance = explain(net, EpsilonPlusFlat(canonizers=canonizers), image)
        off = ((output - net(image)) / net(image)).abs().item()
        print(f"  {name:<10}output off by {off:.1e}, relevance of the inputs over the output {(relevance.sum() / output).item():.3f}")


def unknown():
    print("Modules that EpsilonPlus has no rule for: the relevance of the inputs, divided by that of the outputs")
    for module in (nn.Mish(), nn.LayerNorm(4)):
        output, relevance = explain(nn.Sequential(module), EpsilonPlus())
        print(f"  {type(module).__name__:<38}{(relevance.abs().sum() / output.abs().sum()).item():.6f}")


if __name__ == "__main__":
    print(f"zennit {version('zennit')}, torch {version('torch').split('+')[0]}")
    sums()
    norms()
    resnet()
    unknown()
