"""Runs in NVFLARE's environment: the model, four float32 parameters of one size."""

import torch
from torch import nn

_PARAMETERS = 4


class Bare(nn.Module):
    """A model that computes nothing."""

    def __init__(self, megabytes: int) -> None:
        super().__init__()
        self.megabytes = megabytes
        elements = megabytes * 10**6 // 4 // _PARAMETERS
        self.parts = nn.ParameterList(torch.rand(elements) for _ in range(_PARAMETERS))
