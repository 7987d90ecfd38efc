"""Makes the frozen network: trained on 600 upright digits of scikit-learn's, without its head.

    python pretrain.py MODEL.safetensors

`pretrained.safetensors` beside this file was made so. Its head is left out: for other digits a new one
is trained.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn, optim

PUBLIC = 600
EPOCHS = 60


def main(path):
    torch.manual_seed(1)
    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images[:PUBLIC] / 16, dtype=torch.float32)
    targets = torch.tensor(labels[:PUBLIC])
    layers = {"first": nn.Linear(64, 64), "second": nn.Linear(64, 32), "head": nn.Linear(32, 10)}
    network = nn.ModuleDict(layers)
    opt = optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(EPOCHS):
        for batch in torch.randperm(PUBLIC).split(32):
            opt.zero_grad()
            hidden = network["second"](network["first"](inputs[batch]).relu()).relu()
            nn.functional.cross_entropy(network["head"](hidden), targets[batch]).backward()
            opt.step()
    state = network.state_dict()
    save_file({name: value for name, value in state.items() if not name.startswith("head.")}, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL.safetensors")
    main(parser.parse_args().model)
