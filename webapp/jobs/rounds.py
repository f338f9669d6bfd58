"""Opening a round: who takes part, and the messages to them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from django.db.models import Max
from django.utils import timezone

from trainer.federated.draw import draw_clients, group_by_label, label_shares
from trainer.federated.early_stop import is_evaluated
from trainer.federated.kept import keeps_something
from trainer.protocol import TrainRound
from trainer.sections.federated import Federated
from trainer.sections.strategy import min_updates
from trainer.spec import JobSpec
from webapp.blobs import services as blobs
from webapp.core.models import Transition
from webapp.fleet.models import Node
from webapp.fleet.services import send_to_node
from webapp.jobs import secure
from webapp.jobs.models import Assignment, Attempt, Participation, Round

LABEL_SHORTAGE = "label_shortage"
"""Where `Round.facts` keeps which labels too few clients carried when the round opened, as a sentence: it outlives the round's
end, which says in `state_reason` what came of it."""


def num_quorum(spec: JobSpec, num_drawn: int) -> int:
    """Updates that a round of `num_drawn` clients needs: the spec's share of them (under FedBuff, of the buffer), and as many as
    the aggregator works with."""
    federated = federated_of(spec)
    wanted = federated.strategy.buffer if federated.strategy.name == "fedbuff" else num_drawn
    least = max(min_updates(federated.aggregator), secure.least_clients(federated, num_drawn))
    return max(least, math.ceil(federated.clients.quorum * wanted))


def open_round(attempt: Attempt, spec: JobSpec, number: int, *, busy: Collection[int] = ()) -> Round:
    """Create round `number` with its participations and ask the clients to train, but those that are `busy` with an older one
    (FedBuff). Call it in a transaction.

    A client whose node is offline begins as LOST since its node is, and is asked when the node is back. Raises IntegrityError
    where another worker opened this round first.
    """
    now = timezone.now()
    labels = _labels_of(attempt, spec)
    drawn = draw_clients(spec, number, labels)
    shortage = _label_shortage(spec, labels)
    fields = secure.first_phase(attempt, spec, drawn, now)
    if shortage:
        fields["facts"] = fields.get("facts", {}) | {LABEL_SHORTAGE: shortage}
    round_ = Round.objects.create(
        attempt=attempt,
        number=number,
        state=Round.State.OPEN,
        weights_digest=attempt.weights_digest,
        weights_size_bytes=attempt.weights_size_bytes,
        memory_digest=attempt.memory_digest,
        num_quorum=num_quorum(spec, len(drawn)),
        opened_at=now,
        deadline_at=now + timedelta(seconds=federated_of(spec).round_deadline_seconds),
        **fields,
    )
    Transition.objects.create(
        thread=round_.thread,
        subject=f"round:{round_.pk}",
        new=round_.state,
        reason=f"Round {number} opened. {shortage}".rstrip(),
        at=now,
    )
    invite(round_, spec, [client for client in drawn if client not in busy], now)
    return round_


def _labels_of(attempt: Attempt, spec: JobSpec) -> dict[int, list[str]]:
    """The labels of each client's node, by client; nothing where the job does not draw by label."""
    if not federated_of(spec).clients.draw_labels:
        return {}
    return dict(attempt.assignments.values_list("index", "node__labels"))


def _label_shortage(spec: JobSpec, labels: dict[int, list[str]]) -> str:
    """Which labels fewer clients carry than a round is to draw; empty where none. Labels may change while a job runs."""
    clients = federated_of(spec).clients
    groups = group_by_label(labels, clients.draw_labels)
    short = [
        f"{len(groups[label]):,} of {share:,} with the label '{label}'"
        for label, share in label_shares(clients).items()
        if len(groups[label]) < share
    ]
    return f"Of its clients too few carry a label: it draws {' and '.join(short)}." if short else ""


def invite(round_: Round, spec: JobSpec, clients: Collection[int], now: datetime) -> None:
    """Ask `clients`, by their indices, to train in the round. Call it in a transaction that opened the round, or holds it open."""
    assignments = list(round_.attempt.assignments.select_related("node").filter(index__in=clients))
    participations = Participation.objects.bulk_create(_invite(round_, assignment, now) for assignment in assignments)
    for assignment in assignments:
        if assignment.boot_id != assignment.node.boot_id and assignment.node.state == Node.State.ONLINE:
            # The node restarted between two rounds. The slots go with the work: a stop must reach the boot that has it.
            Assignment.objects.filter(pk=assignment.pk).update(boot_id=assignment.node.boot_id)
    send_work([p for p in participations if p.state == Participation.State.ASKED], spec)


def hold_open(round_: Round) -> bool:
    """Keep an open round from closing until the transaction ends. False where it takes no more.

    A lost client stays lost when its round closes, so that its own state cannot tell the door that it is too late.
    """
    held = Round.objects.select_for_update().filter(pk=round_.pk, state=Round.State.OPEN)
    return held.first() is not None


def _invite(round_: Round, assignment: Assignment, now: datetime) -> Participation:
    node = assignment.node
    online = node.state == Node.State.ONLINE
    return Participation(
        round=round_,
        assignment=assignment,
        state=Participation.State.ASKED if online else Participation.State.LOST,
        state_reason="" if online else f"{node.name} is away: {node.state_reason}"[:2000],
        state_changed_at=now if online else node.state_changed_at,
        asked_at=now,
        boot_id=node.boot_id,
    )


def counted_rounds(job_id: int, spec: JobSpec, clients: Collection[int]) -> dict[int, int]:
    """Return, by client index, the last closed round of the job that has the client's update in it; without those that have none.

    One query for all clients, over all attempts; none where clients keep nothing that would have to fit. While a round is
    open no other closes, so that whoever is asked again hears the same.
    """
    if not keeps_something(federated_of(spec)):
        return {}
    returned = Participation.objects.filter(
        round__attempt__job=job_id,
        round__state=Round.State.CLOSED,
        state=Participation.State.RETURNED,
        assignment__index__in=clients,
    )
    last = returned.order_by().values("assignment__index").annotate(number=Max("round__number"))
    return dict(last.values_list("assignment__index", "number"))


def send_work(participations: Sequence[Participation], spec: JobSpec) -> None:
    """On commit, tell the clients' nodes to train; where the clients have agreed on masks, what the round's phase asks of them.

    All are of one attempt, and of one round but under FedBuff, each with `round.attempt.job` and `assignment.node` loaded.
    """
    if not participations:
        return
    round_, clients = participations[0].round, [p.assignment.index for p in participations]
    if not secure.takes_newcomers(round_):
        secure.send_phase(round_, clients)
        return
    counted = counted_rounds(round_.attempt.job_id, spec, clients)
    for participation in participations:
        _send_training(participation, spec, counted)


def _send_training(participation: Participation, spec: JobSpec, counted: dict[int, int]) -> None:
    round_, assignment, federated = participation.round, participation.assignment, federated_of(spec)
    memory = secure.memory_sent(round_, federated)
    message = TrainRound(
        job_id=round_.attempt.job_id,
        attempt_id=round_.attempt_id,
        round=round_.number,
        spec=spec,
        client=assignment.index,
        num_clients=federated.clients.total,
        weights=blobs.ref_of(round_.weights_digest),
        memory=blobs.ref_of(memory) if memory else None,
        evaluate=is_evaluated(federated, round_.number, round_.attempt.job.progress_total),
        counted_round=counted.get(assignment.index, 0),
        masking=secure.terms_of(round_),
    )
    send_to_node(node=assignment.node, message=message)


def federated_of(spec: JobSpec) -> Federated:
    assert spec.federated is not None  # the spec's validators leave exactly the section of its mode
    return spec.federated
