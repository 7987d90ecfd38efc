"""The command line of the benchmark."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.failure import BenchFailed
from cairn.runtime.supervisor import interruptible

_INTERRUPTED = 130  # as a shell says it
_Command = Callable[[argparse.Namespace], None]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    command: _Command = options.command
    try:
        with interruptible():
            command(options)
    except BenchFailed as failed:
        sys.exit(f"bench: {failed}")
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure Cairn beside the limit of this machine, and beside its peers.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = _command(commands, "round", _round, "rounds of a model that nobody trains, and the limit")
    one.add_argument(
        "--megabytes", type=_positive, default=100, help="of 10^6 bytes; by default 100"
    )
    one.add_argument("--owners", type=_cohort, default=2, help="by default 2")
    one.add_argument("--rounds", type=_positive, default=3, help="that are timed; by default 3")
    one.add_argument("--weighting", choices=["equal", "examples"], default="equal")
    one.add_argument("--directory", type=Path, help="an empty one, to keep the run's files in")
    tiny = _command(commands, "tiny", _tiny, "the tutorial: its cold start, and seconds a round")
    growth = _command(commands, "growth", _growth, "the aggregator's memory as owners are added")
    growth.add_argument("--megabytes", type=_positive, default=100)
    growth.add_argument("--owners", type=_cohort, nargs="+", default=[2, 4, 8, 16])
    rules = _command(commands, "rules", _rules, "every aggregation rule beside the mean, alone")
    rules.add_argument("--megabytes", type=_positive, default=100)
    rules.add_argument("--owners", type=_cohort, default=8)
    faults = _command(commands, "faults", _faults, "what each fault costs, into bench/README.md")
    rounds = _command(
        commands, "rule-rounds", _rule_rounds, "whole rounds of every rule beside the mean's"
    )
    rounds.add_argument("--megabytes", type=_positive, default=100)
    rounds.add_argument("--owners", type=_krum_cohort, default=8)
    for each in (one, tiny, growth, rules, rounds, faults):
        each.add_argument("--json", action="store_true", help="print one JSON object")
    _command(commands, "all", _all, "all of the above, into the table of bench/README.md")
    peers = _command(commands, "peers", _peers, "the same work by Flower and NVFLARE, beside ours")
    peers.add_argument("--megabytes", type=_positive, default=100)
    peers.add_argument("--owners", type=_cohort, nargs="+", default=[2, 8])
    peers.add_argument("--rounds", type=_positive, default=3, help="that are timed, of each run")
    peers.add_argument("--json", action="store_true", help="print JSON, and leave the README alone")
    _command(commands, "peer-rules", _peer_rules, "what Flower's rules give, into tests/golden")
    return parser


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    command: _Command,
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=f"Measures {text}.")
    parser.set_defaults(command=command)
    return parser


def _positive(text: str) -> int:
    return _at_least(1, text)


def _cohort(text: str) -> int:
    return _at_least(2, text)


def _krum_cohort(text: str) -> int:
    """As many as the rule that needs the most."""
    return _at_least(3, text)


def _at_least(least: int, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number from {least} on")
    return int(text)


def _round(options: argparse.Namespace) -> None:
    from bench.round import measure_round
    from bench.work import Work

    work = Work(options.megabytes, options.owners, options.rounds, options.weighting)
    _print(measure_round(work, options.directory), as_json=options.json)


def _tiny(options: argparse.Namespace) -> None:
    from bench.tiny import measure_tiny

    _print(measure_tiny(), as_json=options.json)


def _growth(options: argparse.Namespace) -> None:
    from bench.growth import measure_growth

    _print(measure_growth(options.megabytes, options.owners), as_json=options.json)


def _rules(options: argparse.Namespace) -> None:
    from bench.rules import measure_rules

    _print(measure_rules(options.megabytes, options.owners), as_json=options.json)


def _rule_rounds(options: argparse.Namespace) -> None:
    from bench.rule_rounds import measure_rule_rounds, write_rule_rounds

    measured = measure_rule_rounds(options.megabytes, options.owners)
    if options.json:
        print(json.dumps(measured))
    else:
        write_rule_rounds(measured)


def _faults(options: argparse.Namespace) -> None:
    from bench.faults import measure_faults, write_faults

    measured = measure_faults()
    if options.json:
        print(json.dumps(measured))
    else:
        write_faults(measured)


def _all(_: argparse.Namespace) -> None:
    from bench.suite import measure_all

    measure_all()


def _peers(options: argparse.Namespace) -> None:
    from bench.peers.comparison import compare, write_comparison

    compared = [compare(options.megabytes, owners, options.rounds) for owners in options.owners]
    if options.json:
        print(json.dumps(compared))
    else:
        write_comparison(compared)


def _peer_rules(_: argparse.Namespace) -> None:
    from bench.peers.rules import record_flower

    print(record_flower())


def _print(figures: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures))
        return
    width = max(map(len, figures))
    for key, value in figures.items():
        print(f"{key:<{width}}  {value}")
