"""What a job would do, in words, before it is sent."""

from __future__ import annotations

from trainer.sections.disagreement import counted
from trainer.sections.federated import Federated
from trainer.sources import SourceSchema, count_parameters
from trainer.spec import JobSpec
from webapp.core.templatetags.ui import size
from webapp.jobs.form_words import algorithm_of
from webapp.jobs.rounds import num_quorum


def shortage(spec: JobSpec, num_online: int) -> str:
    """What the job would wait for; empty where enough nodes are online."""
    if num_online >= spec.num_nodes:
        return ""
    online = "none is" if not num_online else "1 is" if num_online == 1 else f"{num_online:,} are"
    return f"It would wait: it needs {counted(spec.num_nodes, 'node')} at once, and {online} online."


def summary(spec: JobSpec, source: SourceSchema | None, num_online: int) -> list[tuple[str, str]]:
    """What the job would do, in words: (subject, sentence)."""
    rows: list[tuple[str, str]] = []
    if source is not None:
        train = source.num_rows - round(source.num_rows * spec.data.test_fraction)
        rows.append(("Data", f"{train:,} rows to train on, {source.num_rows - train:,} to test on"))
    if spec.federated:
        rows += _rounds(spec, spec.federated)
        if source is not None and not spec.is_simulated:
            rows.append(("Traffic", traffic(spec, spec.federated, source)))
    else:
        rows.append(("Ranks", f"{spec.num_nodes * spec.slots_per_node:,} on {counted(spec.num_nodes, 'node')}"))
        rows.append(("Rows a step", f"{spec.training.batch_size * spec.num_nodes * spec.slots_per_node:,}"))
    each = " each" if spec.num_nodes > 1 else ""
    needed = f"{spec.num_nodes:,} needed, {counted(spec.slots_per_node, 'slot')}{each}"
    rows.append(("Nodes", f"{needed}; {num_online:,} online now"))
    return rows


def _rounds(spec: JobSpec, federated: Federated) -> list[tuple[str, str]]:
    clients, drawn = federated.clients, federated.clients.num_drawn
    often = "" if federated.evaluate_every == 1 else f", evaluated every {federated.evaluate_every:,}"
    # With privacy each client is in or out by itself, so that only their mean number is known.
    about = "about " if federated.privacy and drawn < clients.total else ""
    return [
        ("Algorithm", algorithm_of(federated)),
        ("Rounds", f"{federated.rounds:,} × {counted(federated.local_epochs, 'local epoch')}{often}"),
        *_participants(spec, federated, about),
        *(
            [("Evaluation", f"The server measures new weights on '{federated.server_data}'")]
            if federated.server_data
            else []
        ),
    ]


def _participants(spec: JobSpec, federated: Federated, about: str) -> list[tuple[str, str]]:
    clients, drawn = federated.clients, federated.clients.num_drawn
    if spec.is_simulated:
        processes = spec.num_nodes * spec.slots_per_node
        on = f"{counted(spec.num_nodes, 'node')}, {processes:,} process{'es' if processes > 1 else ''}"
        return [("Clients", f"{counted(clients.total, 'virtual client')} on {on}; {about}{drawn:,} a round")]
    part = f"{clients.total:,}" if drawn == clients.total else f"{about}{drawn:,} of {clients.total:,} a round"
    least = num_quorum(spec, drawn)
    if federated.strategy.name == "fedbuff":
        make = f"{counted(federated.strategy.buffer, 'update')} make{'s' if federated.strategy.buffer == 1 else ''} a round"
        return [
            ("Clients", part),
            ("Buffer", f"{make}; at its deadline {least:,} {'is' if least == 1 else 'are'} enough"),
        ]
    return [("Clients", part), ("Quorum", f"{about}{least:,} of {drawn:,} must return")]


def traffic(spec: JobSpec, federated: Federated, source: SourceSchema) -> str:
    """What a client on another machine fetches and sends in a round, file headers aside."""
    num = count_parameters(spec.model, source)
    encoding = federated.encoding
    bytes_each = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0}
    sent = num * (8 * encoding.fraction if encoding.name == "top_k" else bytes_each[encoding.name])
    # SCAFFOLD's control variates are as large as the weights, both ways.
    times = 2 if federated.strategy.name == "scaffold" else 1
    return f"{size(4 * num * times)} down and {size(sent * times)} up, for each client and round"
