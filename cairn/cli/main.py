"""The command `cairn`: everything that is not a node. Imports a command's code when it is called."""

import importlib
from typing import ClassVar

import click


class _Lazy(click.Group):
    """A group whose commands are found in other modules when they are needed."""

    # Where each command is, and what it does in a line.
    table: ClassVar[dict[str, tuple[str, str]]] = {
        "demo": ("demo:demo", "Run an example: every node a process of its own, on this machine."),
        "doctor": (
            "doctor:doctor",
            "Check a node's file, certificates, clock, disk, ports and peers, and name each cure.",
        ),
        "health": ("health:health", "Ask whether a node is up."),
        "identity": ("identity:identity", "Say in words whose certificate a file is."),
        "init": ("identity:init", "Make the files of a whole federation."),
        "ledger": (
            "verify:ledger",
            "Print what a node's ledger recorded, for example what left an owner's site.",
        ),
        "request": (
            "identity:request",
            "Make an owner's key and a request for a certificate, on the owner's machine.",
        ),
        "reset": (
            "reset:reset",
            "Forgive the failures of an owner's task, after which it declines every job.",
        ),
        "sign": ("identity:sign", "Sign a request with the federation's authority."),
        "try": (
            "try_task:try_task",
            "Run a task once, offline, and show what would leave the site.",
        ),
        "verify": ("verify:verify", "Check a run, a release statement or a ledger offline."),
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return sorted(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.table[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(f"cairn.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(sorted((name, line) for name, (_, line) in self.table.items()))


@click.group(cls=_Lazy)
@click.version_option(package_name="cairn")
def main() -> None:
    """Federated averaging in which the model owner never sees one owner's update.

    The nodes have commands of their own: aggregator-node, owner-node and coordinator.
    """
