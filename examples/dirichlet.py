"""Deals rows out to owners that are as unlike as shares drawn from a Dirichlet distribution make them.

For each label, the owners' shares of its rows are one draw from Dirichlet(concentration) (Yurochkin et al. 2019,
arXiv 1905.12022, section 4). At 0.5 some owners have hardly any rows of some labels, and some have several times as
many rows as others.
"""

import numpy as np

CONCENTRATION = 0.5


def deal(labels, owners, fewest, seed):
    """The rows of each owner, in mixed order, as arrays of indices into `labels`; each row has one owner.

    Draws again until each owner has at least `fewest` rows and none has half of all: the aggregator would
    cap its weight.
    """
    random = np.random.default_rng(seed)
    while True:
        parts = [
            _split(random, np.flatnonzero(labels == label), owners) for label in np.unique(labels)
        ]
        dealt = [random.permutation(np.concatenate(rows)) for rows in zip(*parts, strict=True)]
        sizes = [len(rows) for rows in dealt]
        if min(sizes) >= fewest and max(sizes) < len(labels) / 2:
            return dealt


def _split(random, rows, owners):
    shares = random.dirichlet([CONCENTRATION] * owners)
    return np.split(random.permutation(rows), (np.cumsum(shares)[:-1] * len(rows)).astype(int))
