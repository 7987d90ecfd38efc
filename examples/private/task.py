"""Is a tumour benign? Logistic regression, trained with differential privacy for each patient.

The measurements are scaled by the largest value that the documentation of the data set prints for each, which is
public. To standardise them by this clinic's own patients would tell of them without noise.
"""

import numpy as np
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

import cairn

BATCHES = 4  # of an epoch: each patient is drawn for one with a probability of 1/4
# Radius, texture, perimeter, area, smoothness, compactness, concavity, concave points, symmetry, fractal dimension:
# their means, their standard errors, and their worst values.
LARGEST = np.array(
    [
        *(28.11, 39.28, 188.5, 2501.0, 0.163, 0.345, 0.427, 0.201, 0.304, 0.097),
        *(2.873, 4.885, 21.98, 542.2, 0.031, 0.135, 0.396, 0.053, 0.079, 0.030),
        *(36.04, 49.54, 251.2, 4254.0, 0.223, 1.058, 1.252, 0.291, 0.664, 0.208),
    ],
    np.float32,
)


def model():
    return nn.Linear(30, 2)


def scaled(measurements):
    return torch.from_numpy(2 * np.sqrt(measurements / LARGEST) - 1)


def data(site):
    with np.load(site.data) as file:
        train = TensorDataset(scaled(file["train_x"]), torch.from_numpy(file["train_y"]))
        test = scaled(file["test_x"]), torch.from_numpy(file["test_y"])
    return cairn.Data(train=train, examples=len(train), test=test, test_examples=len(test[1]))


def train(model, data, round):
    epochs = int(round.settings["epochs"])
    optimizer = optim.SGD(model.parameters(), lr=round.settings["lr"])
    loader = DataLoader(data.train, batch_size=-(-len(data.train) // BATCHES), shuffle=True)
    model, optimizer, loader = cairn.private(model, optimizer, loader, epochs=epochs)
    loop(model, optimizer, loader, epochs, round.device)


def loop(model, optimizer, loader, epochs, device="cpu"):
    for _ in range(epochs):
        for inputs, labels in loader:
            optimizer.zero_grad()
            scores = model(inputs.to(device))
            nn.functional.cross_entropy(scores, labels.to(device)).backward()
            optimizer.step()


def evaluate(model, data, round):
    """For `cairn try` and compare.py: an owner that trains privately takes part in no evaluation."""
    inputs, labels = (part.to(round.device) for part in data.test)
    return {"accuracy": (model(inputs).argmax(1) == labels).float().mean().item()}


task = cairn.Task(model=model, data=data, train=train, evaluate=evaluate)
