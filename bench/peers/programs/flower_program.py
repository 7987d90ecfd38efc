"""Runs in Flower's environment: one node of its gRPC mode, on a model that nobody trains.

    flower_program.py server ADDRESS MEGABYTES CLIENTS ROUNDS RESULT
    flower_program.py client ADDRESS

The server writes RESULT: the seconds of each round, and the first element of the last average.
"""

# mypy: disable-error-code="import-not-found, misc"
# Flower is in an environment of its own, so here its classes have no types.

import json
import sys
import time
from pathlib import Path
from typing import Any

import flwr
import numpy as np
from flwr.server.strategy import FedAvg

_PARAMETERS = 4
_MESSAGE_BYTES = (1 << 31) - 1  # the most that a message may have


class _Client(flwr.client.NumPyClient):
    """Sends back what it was sent."""

    def fit(self, parameters: Any, config: Any) -> Any:  # noqa: ARG002 - Flower's own signature
        return parameters, 1, {}


class _Timed(FedAvg):
    """Flower's averaging, which notes what a round took: from its configuration to its average."""

    seconds: list[float]
    first: float

    def configure_fit(self, **arguments: Any) -> Any:
        self.begun = time.perf_counter()
        return super().configure_fit(**arguments)

    def aggregate_fit(self, *arguments: Any) -> Any:
        average, metrics = super().aggregate_fit(*arguments)
        self.seconds.append(time.perf_counter() - self.begun)
        if average is None:
            sys.exit("a round of Flower's ended without an average")
        self.first = float(flwr.common.parameters_to_ndarrays(average)[0][0])
        return average, metrics


def serve(address: str, megabytes: int, clients: int, rounds: int) -> dict[str, Any]:
    elements = megabytes * 10**6 // 4 // _PARAMETERS
    block = np.random.default_rng(0).standard_normal(elements, np.float32)
    block[0] = 1
    strategy = _Timed(
        fraction_evaluate=0,
        min_fit_clients=clients,
        min_available_clients=clients,
        accept_failures=False,
        initial_parameters=flwr.common.ndarrays_to_parameters([block] * _PARAMETERS),
    )
    strategy.seconds = []
    flwr.server.start_server(
        server_address=address,
        config=flwr.server.ServerConfig(num_rounds=rounds),
        strategy=strategy,
        grpc_max_message_length=_MESSAGE_BYTES,
    )
    return {"seconds": strategy.seconds, "first": strategy.first}


def main() -> None:
    role, address, *rest = sys.argv[1:]
    if role == "client":
        flwr.client.start_client(
            server_address=address,
            client=_Client().to_client(),
            grpc_max_message_length=_MESSAGE_BYTES,
            insecure=True,
        )
        return
    *numbers, result = rest
    Path(result).write_text(json.dumps(serve(address, *map(int, numbers))), encoding="utf-8")


if __name__ == "__main__":
    main()
