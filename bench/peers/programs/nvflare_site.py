"""Runs in NVFLARE's environment, at each site: sends back what it was sent."""

# mypy: disable-error-code="import-not-found"
# NVFLARE is in an environment of its own.

import nvflare.client as flare
from nvflare.app_common.abstract.fl_model import FLModel


def main() -> None:
    flare.init()
    while flare.is_running():
        model = flare.receive()
        flare.send(FLModel(params=model.params, meta={"NUM_STEPS_CURRENT_ROUND": 1}))


if __name__ == "__main__":
    main()
