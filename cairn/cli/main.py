"""The command `cairn`: everything that is not a node. Imports a command's code when it is called."""

import importlib
from typing import ClassVar

import click


class _Lazy(click.Group):
    """A group whose commands are found in other modules when they are needed."""

    places: ClassVar[dict[str, str]] = {
        "demo": "cairn.cli.demo:demo",
        "doctor": "cairn.cli.doctor:doctor",
        "health": "cairn.cli.health:health",
        "identity": "cairn.cli.identity:identity",
        "init": "cairn.cli.identity:init",
        "ledger": "cairn.cli.verify:ledger",
        "request": "cairn.cli.identity:request",
        "reset": "cairn.cli.reset:reset",
        "sign": "cairn.cli.identity:sign",
        "try": "cairn.cli.try_task:try_task",
        "verify": "cairn.cli.verify:verify",
    }
    summaries: ClassVar[dict[str, str]] = {
        "demo": "Run an example: every node a process of its own, on this machine.",
        "doctor": "Check a node's file, certificates, clock, disk, ports and peers, and name each cure.",
        "health": "Ask whether a node is up.",
        "identity": "Say in words whose certificate a file is.",
        "init": "Make the files of a whole federation.",
        "ledger": "Print what a node's ledger recorded, for example what left an owner's site.",
        "reset": "Forgive the failures of an owner's task, after which it declines every job.",
        "request": "Make an owner's key and a request for a certificate, on the owner's machine.",
        "sign": "Sign a request with the federation's authority.",
        "try": "Run a task once, offline, and show what would leave the site.",
        "verify": "Check a run, a release statement or a ledger offline.",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return sorted(self.places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in self.places:
            return None
        module, _, attribute = self.places[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(sorted(self.summaries.items()))


@click.group(cls=_Lazy)
@click.version_option(package_name="cairn")
def main() -> None:
    """Federated averaging in which the model owner never sees one owner's update.

    The nodes have commands of their own: aggregator-node, owner-node and coordinator.
    """
