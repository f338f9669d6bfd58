"""FLARE's side of the clients: the script that its executor runs.

client.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import nvflare.client as flare
import torch
from exercise import Exercise


def main() -> None:
    exercise = Exercise(Path(sys.argv[1]))
    flare.init()
    client = int(flare.get_site_name().removeprefix("site-")) - 1
    while flare.is_running():
        received = flare.receive()
        weights = {name: torch.as_tensor(array) for name, array in received.params.items()}
        trained, num_examples = exercise.train(weights, received.current_round + 1, client)
        # FLARE weighs by the steps of a client, for which the rows stand: its batches are alike.
        meta = {"NUM_STEPS_CURRENT_ROUND": num_examples}
        flare.send(flare.FLModel(params=trained, meta=meta))


if __name__ == "__main__":
    main()
