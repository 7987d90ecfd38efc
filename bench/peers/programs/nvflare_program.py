"""Runs in NVFLARE's environment: a whole job, a process for each site, on a model that nobody trains.

It is started as `nvflare_program.py MEGABYTES CLIENTS ROUNDS POLL_SECONDS DIRECTORY`.
"""

# mypy: disable-error-code="import-not-found"
# NVFLARE is in an environment of its own.

import sys
from pathlib import Path

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.client.config import ExchangeFormat
from nvflare.recipe import SimEnv
from nvflare_model import Bare  # beside this file


def main() -> None:
    megabytes, clients, rounds = map(int, sys.argv[1:4])
    poll_seconds, directory = float(sys.argv[4]), sys.argv[5]
    recipe = FedAvgRecipe(
        name="bench",
        model=Bare(megabytes),
        min_clients=clients,
        num_rounds=rounds,
        train_script=str(Path(__file__).with_name("nvflare_site.py")),
        server_expected_format=ExchangeFormat.PYTORCH,  # measured: faster than NumPy
    )
    recipe.add_server_config({"server": {"task_request_interval": poll_seconds}})
    recipe.execute(SimEnv(num_clients=clients, num_threads=clients, workspace_root=directory))


if __name__ == "__main__":
    main()
