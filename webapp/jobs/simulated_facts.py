"""What the row of a simulated round says of its virtual clients: written at the door, read by pages and the API."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ConfigDict

from trainer.federated.facts import RoundFacts
from trainer.simulation.messages import SimulatedClient, SimulatedRound


class ClientFacts(SimulatedClient):
    """One virtual client of a round. A loss that diverged is kept: JSON columns take NaN as text."""

    model_config = ConfigDict(ser_json_inf_nan="strings")


class SimulatedFacts(RoundFacts):
    """`Round.facts` of a simulation."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    num_clients: int
    num_examples: int
    """Of all of the round's clients, as `seconds_training`, which is the sum over them."""
    seconds_training: float
    clients: list[ClientFacts]
    """The first ones by index: `trainer.simulation.messages.MOST_CLIENTS_TOLD`."""
    label_counts: list[dict[str, int]] | None = None
    """With an attempt's first round: training rows of each class of the job's first clients, by index."""


def facts_of(said: SimulatedRound, label_counts: list[dict[str, int]] | None = None) -> dict[str, Any]:
    """Return `Round.facts` for a round that its node told of. Raises pydantic's ValidationError where the aggregation's facts are none."""
    facts = SimulatedFacts.model_validate(
        said.facts
        | {
            "num_clients": said.num_clients,
            "num_examples": said.num_examples,
            "seconds_training": said.seconds_training,
            "clients": [client.model_dump() for client in said.clients],
            "label_counts": label_counts,
        }
    )
    found: dict[str, Any] = json.loads(facts.model_dump_json(exclude_none=True))
    return found
