"""What the server takes of clients that train with local privacy: none without its price."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.web.jobs.far_end import FEDERATED, spec_with
from trainer.federated.row_privacy import sampling_of
from trainer.protocol import UpdateOffer
from trainer.sources import BUILTIN_SOURCES
from trainer.spec import JobSpec
from webapp.jobs.claims import why_false
from webapp.jobs.planner import PlanNode, QueuedJob, plan, why_waiting
from webapp.jobs.scheduling import needs_of

PRIVATE = spec_with(FEDERATED, data={"scaling": "none"}, federated={"local_privacy": {}})


NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def why(spec: JobSpec = PRIVATE, **claims: Any) -> str:
    offer = UpdateOffer.model_validate({"digest": "0" * 64, "num_examples": 100, **claims})
    return why_false(offer, spec, BUILTIN_SOURCES["digits"], node_name="node-1", weights_bytes=1000)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1e9])  # 0: of so much noise that delta alone covers it
def test_a_price(epsilon: float) -> None:
    assert why(epsilon=epsilon) == ""


def test_the_steps_of_dp_sgd_are_believed() -> None:
    for num_rows in (1, 15, 16, 31, 100, 719):
        steps = sampling_of(num_rows, PRIVATE.training.batch_size).steps
        assert why(num_examples=num_rows, num_steps=steps, epsilon=1.0) == ""


@pytest.mark.parametrize(
    ("claims", "sentence"),
    [
        (
            {},
            "The job trains with local differential privacy, and the update does not say what it cost: update the node.",
        ),
        ({"epsilon": float("inf")}, "The update's epsilon is inf, and must be finite."),
    ],
)
def test_no_price(claims: dict[str, Any], sentence: str) -> None:
    assert why(**claims) == sentence


def test_nodes_with_a_budget_are_left_to_jobs_with_a_bound() -> None:
    fleet = [
        PlanNode(id=name, name=name, slots=1, free_slots=1, budgets=frozenset(budgets))
        for name, budgets in (("a", ["digits"]), ("b", ["ward"]), ("c", []))
    ]
    plain, private = (QueuedJob(1, needs_of(spec, 1), NOW) for spec in (FEDERATED, PRIVATE))
    assert [placement.node_id for placement in plan([plain], fleet, now=NOW)] == ["b", "c"]
    assert [placement.node_id for placement in plan([private], fleet, now=NOW)] == ["a", "b"]
    what, _ = why_waiting(plain, fleet[:2])
    assert what == (
        "It needs 2 nodes with a free slot each, and only 1 is enrolled (b). With a privacy budget for 'digits', which takes only "
        "jobs with local differential privacy: a."
    )


def test_a_price_of_a_job_without_privacy() -> None:
    assert why(FEDERATED, epsilon=1.0) == "The update claims local privacy, and the job has none."
