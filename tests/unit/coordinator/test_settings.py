"""The job's file."""

from pathlib import Path
from typing import get_args

import pytest

from cairn.config import ContentWord, OptimizerWord, RuleWord
from cairn.errors import UsageError
from cairn.protocol.aggregation import Aggregation
from cairn.protocol.words import CONTENTS, ENCODINGS, OPTIMIZERS, RULES
from coordinator.settings import JobSettings

EXAMPLES = Path(__file__).parents[3] / "examples"
JOB = """
name = "tumours"
task = "tumours"
model = "first.safetensors"
rounds = 3
owners = ["alice", "bob", "carol"]
[settings]
lr = 0.1
"""


def load(tmp_path: Path, text: str) -> JobSettings:
    path = tmp_path / "job.toml"
    path.write_text(text, encoding="utf-8")
    return JobSettings.load(path)


def test_a_jobs_model_is_found_beside_its_file(tmp_path: Path) -> None:
    assert load(tmp_path, JOB).model == tmp_path / "first.safetensors"


def test_the_usual_floor_is_three(tmp_path: Path) -> None:
    assert load(tmp_path, JOB).floor == 3


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("rounds = 3", "rounds = 0", "rounds = 0"),
        ("rounds = 3", "round = 3", "unknown key round; did you mean rounds"),
        ("rounds = 3", "", "the key rounds is missing"),
        ('"carol"]', '"bob"]', "each owner may stand there once"),
        ('"carol"]', "]", "floor = 3 is more than the 2 owners"),
        ("lr = 0.1", 'lr = "fast"', "settings.lr = 'fast'"),
        ('name = "tumours"', 'name = "Tumours!"', "name = 'Tumours!'"),
        ("[settings]", "floor = 1\n[settings]", "floor = 1"),
        ("[settings]", 'weighting = "size"\n[settings]', "weighting = 'size'"),
        ("[settings]", 'updates = "int4"\n[settings]', "updates = 'int4'"),
        ("[settings]", '[rule]\nname = "trim"\n[settings]', "rule.name = 'trim'"),
        ("[settings]", '[rule]\nname = "trimmed_mean"\n[settings]', "trimmed_mean needs trim"),
        ("[settings]", "[rule]\ntrim = 0.1\n[settings]", "the key rule.name is missing"),
        ("[settings]", "[optimizer]\nlr = 0.1\n[settings]", "the key optimizer.name is missing"),
        (
            "[settings]",
            'rule = "mean"\n[settings]',
            "rule is a table: write its keys below a line [rule]",
        ),
        (
            "[settings]",
            '[optimizer]\nname = "Adam"\n[settings]',
            "optimizer.name = 'Adam': must be 'none', 'sgd', 'adagrad', 'adam' or 'yogi'; did you mean adam?",
        ),
        (
            "[settings]",
            '[rule]\nname = "trimmed_mean"\ntrim = "much"\n[settings]',
            "rule.trim = 'much'",
        ),
        (
            "[settings]",
            '[rule]\nname = "multi_krum"\nbyzantine = 1\nselect = 3\n[settings]',
            "rule multi_krum: no round of 3 owners could ever be released, for it needs more owners for multi_krum",
        ),
        (
            '"carol"]',
            '"carol", "dave", "erin", "frank", "grace"]\nfraction = 0.42\nrule = { name = "trimmed_mean", trim = 0.4 }',
            "no round of a group of 3 owners could ever be released, for every number of its release would average over 1",
        ),
        ("[settings]", '[optimizer]\nname = "adam"\n[settings]', "optimizer adam needs lr"),
        ("[settings]", 'content = "gradients"\n[settings]', "gradients need an optimizer"),
        ("[settings]", "[settings", "not valid TOML"),
        ("[settings]", 'weighting = "examples"\n[settings]', "the key examples is missing"),
        (
            "[settings]",
            'weighting = "examples"\n[settings]',
            "default 1000, so that no update outweighs",
        ),
        ("[settings]", "fraction = 0\n[settings]", "fraction = 0"),
        ("[settings]", "fraction = 1.5\n[settings]", "fraction = 1.5"),
        (
            "[settings]",
            "fraction = 0.5\n[settings]",
            "fraction = 0.5 of 3 owners, with floor = 3, makes but one group: two groups need 6 owners. Leave",
        ),
        (
            '"carol"]',
            '"carol", "dave", "erin", "frank", "grace"]\nfraction = 0.5',
            "fraction = 0.5 of 7 owners, with floor = 3, makes but one group: write 0.42 or less",
        ),
        ("[settings]", "examples = [20, 10]\n[settings]", "the fewest come first, then the most"),
        ("[settings]", "examples = [0, 10]\n[settings]", "examples.0 = 0"),
        ("[settings]", "examples = [1, 2147483648]\n[settings]", "examples.1 = 2147483648"),
        ("[settings]", "examples = [10]\n[settings]", "examples.1"),
        ("[settings]", "examples = 10\n[settings]", "examples = 10"),
    ],
)
def test_a_mistake_in_a_job_is_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(UsageError) as mistake:
        load(tmp_path, JOB.replace(old, new))
    assert words in str(mistake.value)
    assert str(tmp_path / "job.toml") in str(mistake.value)


BEST = JOB.replace(
    "[settings]", 'evaluate = true\n[best]\nmetric = "f1"\nbetter = "higher"\n[settings]'
)


def test_a_job_that_names_a_metric_has_all_its_rounds_where_no_patience_is_given(
    tmp_path: Path,
) -> None:
    best = load(tmp_path, BEST).best
    assert best is not None
    assert (best.metric, best.better, best.patience, best.min_delta) == ("f1", "higher", None, 0)
    assert load(tmp_path, JOB).best is None


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "evaluate = true",
            "",
            "best: a release is judged by its own evaluation, and this job has none",
        ),
        ("evaluate = true", "evaluate = false", "write evaluate = true"),
        ("higher", "larger", "best.better = 'larger'"),
        ('better = "higher"', "", "the key best.better is missing"),
        ('metric = "f1"', "", "the key best.metric is missing"),
        ('metric = "f1"', 'metric = ""', "a metric's name has 1 to 64 bytes"),
        ("[settings]", "patience = 0\n[settings]", "best.patience = 0"),
        ("[settings]", "patience = 3\nmin_delta = -0.1\n[settings]", "best.min_delta = -0.1"),
        ("[settings]", "patience = 3\nmin_delta = inf\n[settings]", "best.min_delta = inf"),
        (
            "[settings]",
            "min_delta = 0.1\n[settings]",
            "best: min_delta is the gain that a job waits for",
        ),
        ("[settings]", "patient = 3\n[settings]", "did you mean patience?"),
        (
            '"carol"]',
            '"carol", "dave", "erin", "frank", "grace"]\nfraction = 0.42',
            "best: with fraction = 0.42 each release is evaluated by one of 2 groups",
        ),
    ],
)
def test_a_best_release_that_cannot_be_found_is_refused_in_words(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    with pytest.raises(UsageError) as mistake:
        load(tmp_path, BEST.replace(old, new))
    assert words in str(mistake.value)


PRIVATE = """[rule]
name = "private_mean"
norm = 1.0
noise = 1.0
epsilon = 3.0
delta = 1e-5
"""


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (JOB.replace("[settings]", f"evaluate = true\n{PRIVATE}[settings]"), "evaluate = true"),
        (BEST.replace("[settings]", f"{PRIVATE}[settings]"), "evaluate = true"),
        (
            BEST.replace("[settings]", f"{PRIVATE}[settings]").replace("evaluate = true", ""),
            "[best]",
        ),
    ],
)
def test_a_private_job_has_no_metrics_to_be_judged_by(tmp_path: Path, text: str, key: str) -> None:
    load(tmp_path, JOB.replace("[settings]", f"{PRIVATE}[settings]"))
    with pytest.raises(UsageError) as mistake:
        load(tmp_path, text)
    assert f"{key}: a job by the rule private_mean has no metrics" in str(mistake.value)
    assert "write evaluate" not in str(mistake.value)


def test_a_job_says_in_a_word_how_its_updates_travel(tmp_path: Path) -> None:
    words = get_args(JobSettings.model_fields["updates"].annotation)
    assert words == tuple(ENCODINGS)
    assert load(tmp_path, JOB).updates == "whole"
    smaller = JOB.replace("[settings]", 'updates = "int8_deltas"\n[settings]')
    assert load(tmp_path, smaller).updates == "int8_deltas"


def test_a_fraction_divides_the_owners_into_as_many_groups_as_its_floor_allows(
    tmp_path: Path,
) -> None:
    assert load(tmp_path, JOB).groups == 1
    seven = JOB.replace('"carol"]', '"carol", "dave", "erin", "frank", "grace"]\nfraction = SHARE')
    for share, floor, groups in (("1", 3, 1), ("0.42", 3, 2), ("0.1", 3, 2), ("0.1", 2, 3)):
        text = seven.replace("SHARE", share).replace("[settings]", f"floor = {floor}\n[settings]")
        assert load(tmp_path, text).groups == groups


def test_updates_that_count_by_their_examples_have_bounds(tmp_path: Path) -> None:
    weighted = JOB.replace("[settings]", 'weighting = "examples"\nexamples = [10, 500]\n[settings]')
    assert load(tmp_path, weighted).examples == (10, 500)


def test_updates_that_all_count_the_same_may_stand_for_any_number(tmp_path: Path) -> None:
    assert load(tmp_path, JOB).examples == (1, 2147483647)


@pytest.mark.parametrize(
    "example", sorted(EXAMPLES.glob("*/job.toml")), ids=lambda p: p.parent.name
)
def test_the_examples_jobs_are_ones_that_a_coordinator_takes(example: Path) -> None:
    assert JobSettings.load(example).rounds > 0


def test_a_job_names_its_rule_and_its_optimizer_with_their_numbers(tmp_path: Path) -> None:
    tables = """
    [rule]
    name = "trimmed_mean"
    trim = 0.2
    [optimizer]
    name = "adam"
    lr = 0.1
    """
    aggregation = load(tmp_path, JOB + tables).aggregation
    assert str(aggregation) == (
        "trimmed_mean (trim = 0.2), adam (beta1 = 0.9, beta2 = 0.99, epsilon = 0.001, lr = 0.1)"
    )
    assert load(tmp_path, JOB).aggregation == Aggregation()


def test_the_words_of_a_job_are_those_of_the_contract() -> None:
    assert [get_args(each) for each in (ContentWord, RuleWord, OptimizerWord)] == [
        tuple(each) for each in (CONTENTS, RULES, OPTIMIZERS)
    ]
