"""What the choices of the section `federated` must agree on. Each check raises ValueError with a sentence that names the fields."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.sections.privacy import AdaptiveClip
from trainer.sections.strategy import Bulyan, Krum, Mean, Median, ServerSgd, TrimmedMean, min_updates

if TYPE_CHECKING:
    from trainer.sections.federated import Federated


def check_parts(federated: Federated) -> None:
    """Check all that one section must agree on."""
    for check in (
        _check_draw,
        _check_simulation,
        _check_fusion,
        _check_robust,
        _check_privacy,
        _check_local_privacy,
        _check_secure,
        _check_buffer,
        _check_variates,
    ):
        check(federated)


def _check_draw(federated: Federated) -> None:
    clients = federated.clients
    if clients.per_round is not None and clients.per_round > clients.total:
        raise ValueError(
            f"clients.per_round is {clients.per_round}, and the job has {clients.total} clients: lower it, or raise clients.num."
        )
    if twice := sorted({name for name in clients.nodes if clients.nodes.count(name) > 1}):
        raise ValueError(f"clients.nodes names '{twice[0]}' more than once: a node is one client.")
    if clients.nodes and len(clients.nodes) < clients.num:
        raise ValueError(
            f"clients.nodes names {_nodes(len(clients.nodes))}, and the job needs {clients.num}: name more, or lower clients.num."
        )
    if clients.draw_labels and federated.privacy:
        raise ValueError(
            "Central differential privacy draws each client by itself: leave clients.draw_labels empty, or switch privacy off."
        )
    if len(clients.draw_labels) > clients.num_drawn:
        raise ValueError(
            f"clients.draw_labels names {len(clients.draw_labels)} labels, and {clients.num_drawn} clients are drawn: draw at least one for each."
        )


def _nodes(num: int) -> str:
    return "1 node" if num == 1 else f"{num:,} nodes"


def _check_simulation(federated: Federated) -> None:
    clients = federated.clients
    if clients.simulate is None:
        if clients.processes is not None:
            raise ValueError(
                "clients.processes is for a simulation, where a node trains many clients: leave it empty, or set clients.simulate."
            )
        return
    if clients.simulate < clients.num:
        raise ValueError(
            f"clients.simulate is {clients.simulate}, and {clients.num} nodes share them: lower clients.num, or simulate more."
        )
    if clients.draw_labels:
        raise ValueError(
            "Simulated clients have no nodes of their own to carry labels: leave clients.draw_labels empty."
        )
    if federated.strategy.name == "fedbuff":
        raise ValueError(
            "A simulation trains round by round, and FedBuff does not wait for rounds: choose another strategy, or leave clients.simulate empty."
        )
    if federated.secure_aggregation:
        raise ValueError(
            "A simulation has nobody to hide updates from: switch secure_aggregation off, or leave clients.simulate empty."
        )
    if federated.local_privacy:
        raise ValueError(
            "DP-SGD protects a node's own rows, and simulated clients share one source: switch local_privacy off, or leave clients.simulate empty."
        )
    if federated.server_data:
        raise ValueError(
            "A simulation measures each round's new weights on the test rows by itself: leave server_data empty."
        )
    if federated.stop and federated.stop.metric.startswith("test/"):
        raise ValueError(
            f"Simulated clients do not measure test rows one by one: set stop.metric to {federated.stop.metric.replace('test/', 'server/')}."
        )


def _check_fusion(federated: Federated) -> None:
    strategy = federated.strategy
    if strategy.name == "one_shot" and federated.rounds != 1:
        raise ValueError("One-shot fusion has one round: set rounds to 1, and local_epochs to the whole training.")
    if strategy.name in ("fusion", "one_shot") and strategy.weights:
        if len(strategy.weights) != federated.clients.total:
            raise ValueError(
                f"strategy.weights has {len(strategy.weights)} weights for {federated.clients.total} clients: give one for each."
            )
        if not sum(strategy.weights):
            raise ValueError("strategy.weights are all 0: give at least one client a weight.")
    if strategy.name in ("fusion", "one_shot") and federated.server_optimizer != ServerSgd(name="sgd"):
        raise ValueError(
            "Weighted fusion is the sum of the clients' models as it is: set server_optimizer to sgd, with the learning rate 1 and "
            "no momentum."
        )


def _check_robust(federated: Federated) -> None:
    aggregator, strategy, num = federated.aggregator, federated.strategy, federated.clients.num_drawn
    least = min_updates(aggregator)
    if isinstance(aggregator, Krum) and num < 2 * aggregator.attackers + 3:
        raise ValueError(
            f"Krum with {aggregator.attackers} attackers needs at least {2 * aggregator.attackers + 3} clients a round, "
            f"and {num} are drawn: draw more, or lower aggregator.attackers."
        )
    if isinstance(aggregator, Krum) and aggregator.select > num - aggregator.attackers:
        raise ValueError(
            f"aggregator.select is {aggregator.select}: of {num} clients with {aggregator.attackers} attackers at most "
            f"{num - aggregator.attackers} may be kept."
        )
    if isinstance(aggregator, TrimmedMean) and num < least:
        raise ValueError(
            f"A trimmed mean that cuts off {aggregator.trim:.0%} needs at least {least} clients a round to cut "
            f"off one, and {num} are drawn: draw more, or raise aggregator.trim."
        )
    if isinstance(aggregator, Median) and num < least:
        raise ValueError(
            f"The median of {num} updates is their mean, and protects from nobody: draw at least {least} "
            "clients a round, or set aggregator to mean."
        )
    if isinstance(aggregator, Bulyan) and num < least:
        raise ValueError(
            f"Bulyan with {aggregator.attackers} attackers needs at least {least} clients a round, "
            f"and {num} are drawn: draw more, or lower aggregator.attackers."
        )
    if strategy.name in ("scaffold", "fednova", "qfedavg", "fusion", "one_shot") and not isinstance(aggregator, Mean):
        raise ValueError(
            f"The strategy {strategy.name} is defined for the mean of all updates: set aggregator to mean, or choose the "
            "strategy fedavg, fedprox or fedbn."
        )


def _check_privacy(federated: Federated) -> None:
    privacy, clients = federated.privacy, federated.clients
    if privacy is None:
        return
    if federated.strategy.name not in ("fedavg", "fedprox", "fedbn"):
        raise ValueError(
            "Differential privacy needs updates that weigh the same: set strategy to fedavg, fedprox or fedbn."
        )
    if not isinstance(federated.aggregator, Mean):
        raise ValueError("Differential privacy needs the plain sum of the updates: set aggregator to mean.")
    if privacy.delta >= 1 / clients.total:
        raise ValueError(
            f"privacy.delta is {privacy.delta:g}: with {clients.total} clients it must be below {1 / clients.total:g}, or it "
            "allows to give one of them away."
        )
    # What is left of delta must carry the accountant's bound.
    if federated.rounds * clients.chance_alone > privacy.delta / 2:
        field = "clients.fraction" if clients.per_round is None else "clients.per_round"
        raise ValueError(
            f"With privacy each of the {clients.total} clients is drawn by itself, and with about {clients.num_drawn} a round one "
            f"would be alone in one of {federated.rounds} rounds more often than delta / 2 = {privacy.delta / 2:g} allows: raise "
            f"{field} (drawing all clients is always allowed), or raise clients.num."
        )
    if isinstance(privacy.clip, AdaptiveClip) and clients.num_drawn <= 10 * privacy.noise_multiplier:
        raise ValueError(
            f"The adaptive clip counts the short updates, and with {clients.num_drawn} clients a round the count gives away more "
            f"than privacy.noise_multiplier {privacy.noise_multiplier:g} allows: lower it, draw more than "
            f"{10 * privacy.noise_multiplier:g} clients, or set clip to fixed."
        )


def _check_variates(federated: Federated) -> None:
    if federated.strategy.name == "scaffold" and federated.encoding.name != "float32":
        raise ValueError("SCAFFOLD's control variates travel as they are: set encoding to float32.")
    server = federated.server_optimizer
    if federated.strategy.name == "scaffold" and (not isinstance(server, ServerSgd) or server.momentum):
        raise ValueError(
            "SCAFFOLD is defined for plain steps of the server, without a memory of its own: set server_optimizer to sgd, with no "
            "momentum."
        )


def _check_local_privacy(federated: Federated) -> None:
    if federated.local_privacy is None:
        return
    if federated.strategy.name not in ("fedavg", "fedprox", "fedbn", "fedbuff", "fusion", "one_shot"):
        raise ValueError(
            f"The strategy {federated.strategy.name} sends more of the rows than DP-SGD's noise covers: set strategy to fedavg, "
            "fedprox, fedbn, fedbuff or fusion."
        )


def _check_secure(federated: Federated) -> None:
    """Masks cancel in a weighted sum, and in nothing else."""
    secure, clients = federated.secure_aggregation, federated.clients
    if secure is None:
        return
    if not isinstance(federated.aggregator, Mean):
        raise ValueError(
            f"With secure aggregation nobody sees a single update, and the aggregator {federated.aggregator.name} compares them one "
            "by one: set aggregator to mean, or switch secure_aggregation off."
        )
    if federated.strategy.name == "qfedavg":
        raise ValueError(
            "q-FedAvg weighs by the length of each single update, which secure aggregation hides: choose another strategy, or "
            "switch secure_aggregation off."
        )
    if federated.strategy.name == "fedbuff":
        raise ValueError(
            "FedBuff sums updates as they come, and masks cancel only among clients that agreed on them beforehand: choose another "
            "strategy, or switch secure_aggregation off."
        )
    if federated.encoding.name != "float32":
        raise ValueError(
            "Masked updates travel as whole numbers of 4 bytes, whatever the encoding: set encoding to float32, or switch "
            "secure_aggregation off."
        )
    if federated.privacy and isinstance(federated.privacy.clip, AdaptiveClip):
        raise ValueError(
            "The adaptive clip counts short updates, which secure aggregation hides: set clip to fixed, or switch "
            "secure_aggregation off."
        )
    if clients.num_drawn < 3:
        raise ValueError(
            f"With {clients.num_drawn} clients a round, each could take its own update from the sum and see the other's: draw at "
            "least 3, or switch secure_aggregation off."
        )


def _check_buffer(federated: Federated) -> None:
    strategy, clients = federated.strategy, federated.clients
    if strategy.name != "fedbuff":
        return
    if strategy.buffer > clients.num_drawn:
        raise ValueError(
            f"strategy.buffer is {strategy.buffer}, and {clients.num_drawn} clients train at a time: lower it, or draw more clients."
        )
    if clients.num_drawn < clients.num or clients.draw_labels:
        raise ValueError(
            "With FedBuff all clients train all the time: set clients.fraction to 1, and leave clients.per_round and draw_labels empty."
        )
    if not isinstance(federated.aggregator, Mean):
        raise ValueError(
            "FedBuff weighs the mean of its buffer by age: set aggregator to mean, or choose another strategy."
        )
    if federated.privacy:
        raise ValueError(
            "Central differential privacy counts clients round by round, and FedBuff has none: choose another strategy, or switch "
            "privacy off."
        )
    if federated.encoding.name == "top_k":
        raise ValueError(
            "top_k keeps what was not sent for the next round's update, and FedBuff may leave an update out: choose another encoding."
        )
