"""The tutorial's last step: what the averaged model predicts on the data of both owners.

    python report.py MODEL.safetensors

Only a toy can do this: nobody in a federation has everybody's data.
"""

import argparse
from pathlib import Path

import task
import torch
from safetensors.torch import load_file

import cairn

HERE = Path(__file__).parent


def main(model_file):
    model = task.model()
    model.load_state_dict(load_file(model_file))
    parts = [task.data(cairn.Site(name, HERE / f"data/{name}.csv")) for name in ("bob", "alice")]
    inputs = torch.cat([part.train[0] for part in parts])
    targets = torch.cat([part.train[1] for part in parts])
    with torch.no_grad():
        predictions = model(inputs)
        loss = ((predictions - targets) ** 2).sum()
    print(f"predictions: {[round(value, 4) for value in predictions.flatten().tolist()]}")
    print(f"targets:     {targets.flatten().tolist()}")
    print(f"loss:        {loss.item():.3g}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL.safetensors")
    main(parser.parse_args().model)
