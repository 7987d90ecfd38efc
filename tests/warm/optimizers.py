"""What a process's first optimizer imports: 800 modules of PyTorch's compiler, for more than a second.

Whoever imports this has them, and so has every training process that is forked off it.
"""

import torch

torch.optim.SGD([torch.zeros(1)])
