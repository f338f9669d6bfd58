"""What the choices of the section `federated` must agree on. Each check raises a Disagreement that names the fields."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trainer.sections.disagreement import Disagreement, counted
from trainer.sections.privacy import AdaptiveClip
from trainer.sections.strategy import Bulyan, Krum, Mean, Median, ServerSgd, TrimmedMean, min_updates

if TYPE_CHECKING:
    from trainer.sections.clients import Clients
    from trainer.sections.federated import Federated

RARE = 1e-6
"""A chance that no job is likely to meet."""
_PLAIN = "`strategy=fedavg`, `strategy=fedprox` or `strategy=fedbn`"
"""Strategies whose updates are summed as they are."""


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
        _check_server_data,
    ):
        check(federated)


def _check_draw(federated: Federated) -> None:
    clients = federated.clients
    if clients.per_round is not None and clients.per_round > clients.total:
        raise Disagreement(
            f"`clients.per_round` is {clients.per_round}, and the job has {counted(clients.total, 'client')}: lower it, or raise "
            f"{_of_total(clients)}."
        )
    if twice := sorted({name for name in clients.nodes if clients.nodes.count(name) > 1}):
        raise Disagreement(f"`clients.nodes` names '{twice[0]}' more than once: a node is one client.")
    if clients.nodes and len(clients.nodes) < clients.num:
        raise Disagreement(
            f"`clients.nodes` names {counted(len(clients.nodes), 'node')}, and the job needs {clients.num}: name more, or lower `clients.num`."
        )
    if clients.draw_labels and federated.privacy:
        raise Disagreement(
            "Central differential privacy draws each client by itself: leave `clients.draw_labels` empty, or switch `privacy` off."
        )
    if len(clients.draw_labels) > clients.num_drawn:
        raise Disagreement(
            f"`clients.draw_labels` names {counted(len(clients.draw_labels), 'label')}, and {_drawn(clients.num_drawn)}: draw at least one for each."
        )


def _of_total(clients: Clients) -> str:
    """The field that says how many clients there are."""
    return "`clients.num`" if clients.simulate is None else "`clients.simulate`"


def _drawn(num: int) -> str:
    return f"{counted(num, 'client')} {'is' if num == 1 else 'are'} drawn"


def _check_simulation(federated: Federated) -> None:
    clients = federated.clients
    if clients.simulate is None:
        if clients.processes is not None:
            raise Disagreement(
                "`clients.processes` is for a simulation, where a node trains many clients: leave it empty, or set `clients.simulate`."
            )
        return
    if clients.simulate < clients.num:
        raise Disagreement(
            f"`clients.simulate` is {clients.simulate}, and {counted(clients.num, 'node')} would share them: lower `clients.num`, or simulate more."
        )
    if clients.draw_labels:
        raise Disagreement(
            "Simulated clients have no nodes of their own to carry labels: leave `clients.draw_labels` empty."
        )
    if federated.strategy.name == "fedbuff":
        raise Disagreement(
            "A simulation trains round by round, and FedBuff does not wait for rounds: choose another `strategy`, or leave `clients.simulate` empty."
        )
    if federated.secure_aggregation:
        raise Disagreement(
            "A simulation has nobody to hide updates from: switch `secure_aggregation` off, or leave `clients.simulate` empty."
        )
    if federated.local_privacy:
        raise Disagreement(
            "DP-SGD protects a node's own rows, and simulated clients share one source: switch `local_privacy` off, or leave `clients.simulate` empty."
        )
    if federated.server_data:
        raise Disagreement(
            "A simulation measures each round's new weights on the test rows by itself: leave `server_data` empty."
        )
    if federated.stop and federated.stop.metric.startswith("test/"):
        raise Disagreement(
            f"Simulated clients do not measure test rows one by one: set `stop.metric` to `stop.metric={federated.stop.metric.replace('test/', 'server/')}`."
        )


def _check_fusion(federated: Federated) -> None:
    strategy = federated.strategy
    if strategy.name == "one_shot" and federated.rounds != 1:
        raise Disagreement(
            "One-shot fusion has one round: set `rounds` to 1, and `local_epochs` to the whole training."
        )
    if strategy.name in ("fusion", "one_shot") and strategy.weights:
        if len(strategy.weights) != federated.clients.total:
            raise Disagreement(
                f"`strategy.weights` has {counted(len(strategy.weights), 'weight')} for {counted(federated.clients.total, 'client')}: give one for each."
            )
        if not sum(strategy.weights):
            raise Disagreement("`strategy.weights` are all 0: give at least one client a weight.")
    if strategy.name in ("fusion", "one_shot") and federated.server_optimizer != ServerSgd(name="sgd"):
        raise Disagreement(
            "Weighted fusion is the sum of the clients' models as it is: set `server_optimizer` to `server_optimizer=sgd`, with the "
            "learning rate 1 and no momentum."
        )


def _check_robust(federated: Federated) -> None:
    aggregator, strategy, num = federated.aggregator, federated.strategy, federated.clients.num_drawn
    least = min_updates(aggregator)
    if isinstance(aggregator, Krum) and num < 2 * aggregator.attackers + 3:
        raise Disagreement(
            f"Krum with {counted(aggregator.attackers, 'attacker')} needs at least {2 * aggregator.attackers + 3} clients a round, "
            f"and {_drawn(num)}: draw more, or lower `aggregator.attackers`."
        )
    if isinstance(aggregator, Krum) and aggregator.select > num - aggregator.attackers:
        raise Disagreement(
            f"`aggregator.select` is {aggregator.select}: of {counted(num, 'client')} with {counted(aggregator.attackers, 'attacker')} at most "
            f"{num - aggregator.attackers} may be kept."
        )
    if isinstance(aggregator, TrimmedMean) and num < least:
        raise Disagreement(
            f"A trimmed mean that cuts off {aggregator.trim:.0%} needs at least {least} clients a round to cut "
            f"off one, and {_drawn(num)}: draw more, or raise `aggregator.trim`."
        )
    if isinstance(aggregator, Median) and num < least:
        raise Disagreement(
            f"The median of {counted(num, 'update')} is their mean, and protects from nobody: draw at least {least} "
            "clients a round, or set `aggregator` to `aggregator=mean`."
        )
    if isinstance(aggregator, Bulyan) and num < least:
        raise Disagreement(
            f"Bulyan with {counted(aggregator.attackers, 'attacker')} needs at least {least} clients a round, "
            f"and {_drawn(num)}: draw more, or lower `aggregator.attackers`."
        )
    if strategy.name in ("scaffold", "fednova", "qfedavg", "fusion", "one_shot") and not isinstance(aggregator, Mean):
        raise Disagreement(
            f"The strategy `strategy={strategy.name}` is defined for the mean of all updates: set `aggregator` to `aggregator=mean`, or "
            f"choose the strategy {_PLAIN}."
        )


def _check_privacy(federated: Federated) -> None:
    privacy, clients = federated.privacy, federated.clients
    if privacy is None:
        return
    if federated.strategy.name not in ("fedavg", "fedprox", "fedbn"):
        raise Disagreement(
            f"Central differential privacy needs updates that weigh the same: set `strategy` to {_PLAIN}."
        )
    if not isinstance(federated.aggregator, Mean):
        raise Disagreement(
            "Central differential privacy needs the plain sum of the updates: set `aggregator` to `aggregator=mean`."
        )
    if privacy.delta >= 1 / clients.total:
        raise Disagreement(
            f"`privacy.delta` is {privacy.delta:g}: with {counted(clients.total, 'client')} it must be below {1 / clients.total:g}, or it "
            "allows to give one of them away."
        )
    # What is left of delta must carry the accountant's bound.
    if federated.rounds * clients.chance_alone > privacy.delta / 2:
        field = "`clients.fraction`" if clients.per_round is None else "`clients.per_round`"
        raise Disagreement(
            f"With privacy each of the {clients.total} clients is drawn by itself, and with about {clients.num_drawn} a round one "
            f"would be alone in one of {counted(federated.rounds, 'round')} more often than delta / 2 = {privacy.delta / 2:g} allows: raise "
            f"{field} (drawing all clients is always allowed), or raise {_of_total(clients)}."
        )
    if isinstance(privacy.clip, AdaptiveClip) and clients.num_drawn <= 10 * privacy.noise_multiplier:
        raise Disagreement(
            f"The adaptive clip counts the short updates, and with {counted(clients.num_drawn, 'client')} a round the count gives "
            f"away more than `privacy.noise_multiplier` {privacy.noise_multiplier:g} allows: set the multiplier below "
            f"{clients.num_drawn / 10:g}, draw more than {10 * privacy.noise_multiplier:g} clients, or set `privacy.clip` to "
            "`privacy.clip=fixed`."
        )


def _check_variates(federated: Federated) -> None:
    if federated.strategy.name == "scaffold" and federated.encoding.name != "float32":
        raise Disagreement("SCAFFOLD's control variates travel as they are: set `encoding` to `encoding=float32`.")
    server = federated.server_optimizer
    if federated.strategy.name == "scaffold" and (not isinstance(server, ServerSgd) or server.momentum):
        raise Disagreement(
            "SCAFFOLD is defined for plain steps of the server, without a memory of its own: set `server_optimizer` to "
            "`server_optimizer=sgd`, with no momentum."
        )


def _check_local_privacy(federated: Federated) -> None:
    if federated.local_privacy is None:
        return
    if federated.strategy.name not in ("fedavg", "fedprox", "fedbn", "fedbuff", "fusion", "one_shot"):
        raise Disagreement(
            f"The strategy `strategy={federated.strategy.name}` sends more of the rows than DP-SGD's noise covers: set `strategy` to "
            "`strategy=fedavg`, `strategy=fedprox`, `strategy=fedbn`, `strategy=fedbuff` or `strategy=fusion`."
        )


def _check_secure(federated: Federated) -> None:
    """Masks cancel in a weighted sum, and in nothing else."""
    secure, clients = federated.secure_aggregation, federated.clients
    if secure is None:
        return
    if not isinstance(federated.aggregator, Mean):
        raise Disagreement(
            f"With secure aggregation nobody sees a single update, and `aggregator={federated.aggregator.name}` compares them one "
            "by one: set `aggregator` to `aggregator=mean`, or switch `secure_aggregation` off."
        )
    if federated.strategy.name == "qfedavg":
        raise Disagreement(
            "q-FedAvg weighs by the length of each single update, which secure aggregation hides: choose another `strategy`, "
            "or switch `secure_aggregation` off."
        )
    if federated.strategy.name == "fedbuff":
        raise Disagreement(
            "FedBuff sums updates as they come, and masks cancel only among clients that agreed on them beforehand: choose another "
            "`strategy`, or switch `secure_aggregation` off."
        )
    if clients.draw_labels:
        raise Disagreement(
            "Nodes gain and lose labels while a job runs, and a masked round must not begin with fewer than 3 clients: leave "
            "`clients.draw_labels` empty, or switch `secure_aggregation` off."
        )
    if federated.encoding.name != "float32":
        raise Disagreement(
            "Masked updates travel as whole numbers of 4 bytes, whatever the encoding: set `encoding` to "
            "`encoding=float32`, or switch `secure_aggregation` off."
        )
    if federated.privacy and isinstance(federated.privacy.clip, AdaptiveClip):
        raise Disagreement(
            "The adaptive clip counts short updates, which secure aggregation hides: set `privacy.clip` to `privacy.clip=fixed`, or "
            "switch `secure_aggregation` off."
        )
    if clients.num_drawn < 3:
        raise Disagreement(
            f"With {counted(clients.num_drawn, 'client')} a round, each could take its own update from the sum and see the other's: draw at "
            "least 3, or switch `secure_aggregation` off."
        )
    if federated.privacy and federated.rounds * _chance_of_fewer(clients, 3) > RARE:
        field = "clients.fraction" if clients.per_round is None else "clients.per_round"
        raise Disagreement(
            f"With privacy each of the {clients.total} clients is drawn by itself, and with about {clients.num_drawn} a round one of "
            f"{federated.rounds} rounds would have fewer than the 3 that masks need: raise `{field}` (drawing all clients is always "
            "allowed), raise `clients.num`, or switch `secure_aggregation` off."
        )


def _chance_of_fewer(clients: Clients, least: int) -> float:
    """The chance that a draw in which each client is in by itself has fewer than `least`; 0 where all are drawn."""
    q, n = clients.share_drawn, clients.total
    return sum(math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(least)) if q < 1 else 0.0


def _check_buffer(federated: Federated) -> None:
    strategy, clients = federated.strategy, federated.clients
    if strategy.name != "fedbuff":
        return
    if strategy.buffer > clients.num_drawn:
        raise Disagreement(
            f"`strategy.buffer` is {strategy.buffer}, and {counted(clients.num_drawn, 'client')} would train at a time: lower it, or draw more clients."
        )
    if clients.num_drawn < clients.num or clients.draw_labels:
        raise Disagreement(
            "With FedBuff all clients train all the time: set `clients.fraction` to 1, and leave `clients.per_round` and `clients.draw_labels` empty."
        )
    if not isinstance(federated.aggregator, Mean):
        raise Disagreement(
            "FedBuff weighs the mean of its buffer by age: set `aggregator` to `aggregator=mean`, or choose another `strategy`."
        )
    if federated.privacy:
        raise Disagreement(
            "Central differential privacy counts clients round by round, and FedBuff has none: choose another `strategy`, or "
            "switch `privacy` off."
        )
    if federated.encoding.name == "top_k":
        raise Disagreement(
            "`encoding=top_k` keeps what was not sent for the next round's update, and FedBuff may leave an update out: choose another `encoding`."
        )


def _check_server_data(federated: Federated) -> None:
    stop, clients = federated.stop, federated.clients
    if federated.server_data and federated.strategy.name == "fedbn":
        raise Disagreement(
            "FedBN keeps the normalisation layers at the clients, and the server has no whole model to measure: leave `server_data` "
            "empty, or choose another `strategy`."
        )
    measures = federated.server_data is not None or clients.simulate is not None
    if stop and stop.metric.startswith("server/") and not measures:
        raise Disagreement(
            f"`stop.metric` is {stop.metric}, and the server measures nothing: set `server_data`, or choose `stop.metric=test/loss`."
        )
