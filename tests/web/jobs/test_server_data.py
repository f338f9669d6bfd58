"""Evaluation on the server's data: which sources it has, who may name them, and what a round's row and curves say."""

from pathlib import Path

import pytest

from tests.web.jobs.far_end import FEDERATED, spec_with
from trainer.sources import SourceSchema
from webapp.jobs import aggregation, server_data, services
from webapp.jobs.models import Job, Round
from webapp.jobs.selectors import check_spec
from webapp.telemetry.models import LogLine, Series

pytestmark = pytest.mark.django_db(transaction=True)

WARD = SourceSchema(
    name="ward", task="classification", shape=(2,), num_rows=40, num_classes=2, columns=("a", "b"), label="ill"
)


@pytest.fixture(autouse=True)
def data_file(settings, tmp_path: Path) -> Path:
    settings.DATA_FILE = tmp_path / "data.toml"
    return settings.DATA_FILE


@pytest.fixture
def held_out(data_file: Path) -> Path:
    """The server declares a table that is like the clients'."""
    table = data_file.with_name("held-out.csv")
    table.write_text("a,b,ill\n" + "".join(f"{row},{-row},{row % 2}\n" for row in range(6)))
    data_file.write_text(
        '[[sources]]\nname = "held-out"\npath = "held-out.csv"\nlabel = "ill"\ntask = "classification"\n'
    )
    return table


@pytest.fixture
def train(team, owner, nodes, conductor):
    """Submit a job and answer so many of its rounds."""

    def run(spec, num_rounds: int) -> Job:
        job = services.submit_job(team=team, owner=owner, spec=spec)
        for _ in range(num_rounds):
            conductor.work()
            for node in nodes:
                node.deliver(node.asked(), value=0.01, num_examples=10)
        conductor.work()
        job.refresh_from_db()
        return job

    return run


def problems(team, **federated: object) -> list[str]:
    spec = spec_with(FEDERATED, federated=federated)
    found = check_spec(team=team, raw=spec.model_dump(mode="json", exclude_none=True))
    if not isinstance(found, list):
        return []
    assert all(problem.loc == ("federated", "server_data") for problem in found)
    return [problem.message for problem in found]


def test_new_weights_are_measured_drawn_at_the_rounds_end_and_by_the_server(train, monkeypatch):
    measured = []
    inner = aggregation.aggregate

    def watch(*args, **kwargs):
        result = inner(*args, **kwargs)
        measured.append(result.weights.digest)
        return result

    monkeypatch.setattr(aggregation, "aggregate", watch)
    spec = spec_with(FEDERATED, federated={"rounds": 2, "local_epochs": 3, "server_data": "digits"})
    assert train(spec, 2).state == "finished"
    rounds = list(Round.objects.all())
    assert [round_.metrics.keys() for round_ in rounds] == [{"server/loss", "server/accuracy"}] * 2
    assert [round_.result_digest for round_ in rounds] == measured
    series = Series.objects.get(name="server/accuracy")
    assert (series.source, series.count, series.last_step) == ("server", 2, 6)
    assert series.last_value == rounds[-1].metrics["server/accuracy"]


def test_only_evaluated_rounds_and_the_last_are_measured(train):
    spec = spec_with(FEDERATED, federated={"rounds": 3, "evaluate_every": 2, "server_data": "digits"})
    train(spec, 3)
    assert [bool(round_.metrics) for round_ in Round.objects.all()] == [False, True, True]


def test_a_job_stops_by_what_the_server_measures(train):
    stop = {"metric": "server/accuracy", "target": 0.0}
    job = train(spec_with(FEDERATED, federated={"server_data": "digits", "stop": stop}), 1)
    assert job.state == "finished"
    assert job.state_reason.startswith("Stopped after round 1 of 3: server/accuracy is ")


def test_a_file_of_the_servers_own_is_measured(make_node, train, nodes, held_out):
    nodes[:] = [make_node(f"ward-{number}", sources=(WARD,)) for number in (1, 2)]
    spec = spec_with(FEDERATED, data={"source": "ward"}, federated={"rounds": 1, "server_data": "held-out"})
    assert train(spec, 1).state == "finished"
    assert Round.objects.get().metrics.keys() == {"server/loss", "server/accuracy"}


def test_data_that_vanishes_is_said_in_the_log_and_the_job_goes_on(make_node, train, nodes, held_out, data_file):
    nodes[:] = [make_node(f"ward-{number}", sources=(WARD,)) for number in (1, 2)]
    data_file.write_text("")
    spec = spec_with(FEDERATED, data={"source": "ward"}, federated={"rounds": 1, "server_data": "held-out"})
    assert train(spec, 1).state == "finished"
    assert Round.objects.get().metrics == {}
    line = LogLine.objects.get(source="server")
    assert (line.level, line.text) == (
        "warning",
        "The weights of round 1 were not measured on the server's data: "
        "The server does not declare the data source 'held-out' any more.",
    )


def test_a_source_is_checked_when_the_job_is_submitted(team, held_out):
    assert problems(team, server_data="digits") == []
    assert problems(team, server_data="diabetes") == [
        "The clients train on 'digits', and 'diabetes' is another built-in data set: choose 'digits' here, or leave it empty."
    ]
    assert problems(team, server_data="scans") == [
        "The server has no data source 'scans'. For this job there are: 'digits', 'held-out'. An administrator declares others in "
        "its data.toml."
    ]
    assert problems(team, server_data="held-out") == [
        "'held-out' is a classification of shape [2] with 2 outputs, and 'digits' a classification of shape [1, 8, 8] with 10: "
        "choose a source that is like the clients'."
    ]


def test_columns_in_another_order_are_other_data(team, make_node, held_out):
    make_node("ward-1", sources=(WARD.model_copy(update={"columns": ("b", "a")}),))
    spec = spec_with(FEDERATED, data={"source": "ward"}, federated={"clients": {"num": 1}, "server_data": "held-out"})
    (problem,) = check_spec(team=team, raw=spec.model_dump(mode="json", exclude_none=True))
    assert problem.message.startswith("The columns of 'held-out' are not those of 'ward', in their order")


def test_a_changed_file_is_read_anew(team, held_out, data_file):
    assert set(server_data.declared_sources()) == {"held-out"}
    data_file.write_text(data_file.read_text().replace("held-out", "other").replace("other.csv", "held-out.csv"))
    assert set(server_data.declared_sources()) == {"other"}
    data_file.unlink()
    assert server_data.declared_sources() == {}


@pytest.mark.parametrize(
    "text",
    [
        "[[sources",
        '[[sources]]\nname = "x"\n',
        '[[sources]]\nname = "digits"\npath = "held-out.csv"\nlabel = "ill"\ntask = "classification"\n',
        '[[sources]]\nname = "x"\npath = "gone.csv"\nlabel = "ill"\ntask = "classification"\n',
    ],
)
def test_what_cannot_be_used_is_left_out_and_the_servers_log_says_why(held_out, data_file, caplog, text):
    data_file.write_text(text)
    assert server_data.declared_sources() == {}
    assert len(caplog.records) == 1
