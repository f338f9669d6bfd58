"""What is said of a simulation's spec before any node is asked."""

from __future__ import annotations

import pytest

from tests.web.jobs.far_end import spec_with
from tests.web.jobs.simulator import SIMULATED
from trainer.sources import SourceSchema, check_fit
from trainer.spec import JobSpec
from webapp.jobs.selectors import check_spec

pytestmark = pytest.mark.django_db


def problems(team, **changes) -> dict[tuple, str]:
    raw = SIMULATED.model_dump(mode="json", exclude_none=True)
    for section, values in changes.items():
        raw[section] = {**raw[section], **values}
    found = check_spec(team=team, raw=raw)
    return {} if isinstance(found, JobSpec) else {problem.loc: problem.message for problem in found}


def test_a_good_one_passes(team):
    assert problems(team) == {}


def test_each_client_needs_a_row(team):
    (said,) = problems(team, federated={"clients": {"simulate": 1439, "per_round": 10}}).items()
    assert said == (
        ("data", "test_fraction"),
        "'digits' leaves 1438 training rows for 1,439 participants: each needs at least one.",
    )


def test_the_natural_partition_deals_nothing():
    schema = SourceSchema(name="digits", task="classification", shape=(1, 8, 8), num_rows=1797, num_classes=10)
    spec = spec_with(SIMULATED, data={"partition": {"scheme": "natural"}})
    (problem,) = check_fit(spec, schema)
    assert problem.loc == ("data", "partition", "scheme")
    assert "each would have all of them" in problem.message


def test_a_goal_is_one_that_the_source_has(team):
    (said,) = problems(team, federated={"stop": {"metric": "server/r2", "target": 0.5}}).values()
    assert said == "'digits' is a classification, which has no server/r2: choose server/accuracy or server/loss."


@pytest.mark.parametrize(
    ("federated", "word"),
    [
        ({"clients": {"processes": 2}}, "clients.processes"),
        ({"clients": {"simulate": 2, "num": 3}}, "clients.simulate"),
        ({"stop": {"metric": "test/loss", "target": 1}}, "stop.metric"),
    ],
)
def test_fields_that_do_not_go_together_are_named(team, federated, word):
    (said,) = problems(team, federated=federated).values()
    assert word in said
