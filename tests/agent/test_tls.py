"""A node behind TLS with an authority of one's own: https:// to the server, rediss:// to a real broker, both checked."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import redis
import trustme
from kombu.exceptions import OperationalError

from tests.agent.conftest import AgentUnderTest, eventually
from tests.agent.far_end import FarEnd
from tests.agent.jobs import federated_spec, weights_for
from tests.agent.tls_front import tls_front
from trainer.agent.broker import connect, make_celery_app
from trainer.agent.home import Identity
from trainer.agent.server import Server
from trainer.protocol import RunReport, StopAttempt, TrainRound

NOBODY = Identity(node_id="n", name="n", secret="s", server_url="")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def context(authority: trustme.CA) -> ssl.SSLContext:
    """The certificate of a server named localhost; its address is not in it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture(scope="module")
def broker_port(broker_url: str, context: ssl.SSLContext) -> Iterator[int]:
    with tls_front(urlsplit(broker_url).port or 0, context) as port:
        yield port


@pytest.fixture
def web_port(far_end: FarEnd, context: ssl.SSLContext) -> Iterator[int]:
    with tls_front(urlsplit(far_end.url).port or 0, context) as port:
        yield port


def test_a_round_runs_over_tls(
    make_agent: Callable[..., AgentUnderTest],
    far_end: FarEnd,
    attempt_id: int,
    web_port: int,
    broker_port: int,
    ca_file: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(far_end, "broker_url", f"rediss://localhost:{broker_port}/0")
    agent = make_agent(start=False, server_url=f"https://localhost:{web_port}")
    agent.start(TRAINMASTER_CA_FILE=ca_file)
    spec = federated_spec()
    weights = far_end.add_blob(weights_for(spec))
    agent.send(
        TrainRound(job_id=1, attempt_id=attempt_id, round=1, spec=spec, client=0, num_clients=2, weights=weights)
    )
    eventually(lambda: far_end.updates)
    agent.send(StopAttempt(attempt_id=attempt_id))
    eventually(lambda: agent.told(RunReport, kind="released", attempt_id=attempt_id))


@pytest.mark.parametrize(
    ("host", "trusted", "sentence"),
    [
        ("localhost", False, "self-signed certificate in certificate chain|unable to get local issuer certificate"),
        ("127.0.0.1", True, "certificate is not valid for '127.0.0.1'"),
    ],
    ids=["a stranger's authority", "another's name"],
)
def test_no_certificate_goes_unchecked(
    host: str,
    trusted: bool,
    sentence: str,
    web_port: int,
    broker_port: int,
    ca_file: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    monkeypatch.setenv("TRAINMASTER_CA_FILE", ca_file if trusted else str(other))
    url = f"rediss://default:secret@{host}:{broker_port}/0"
    with connect(url) as client, pytest.raises(redis.ConnectionError, match=sentence):
        client.ping()
    with make_celery_app(url, NOBODY, 1).connection() as connection, pytest.raises(OperationalError, match=sentence):
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
    server = Server(f"https://{host}:{web_port}", "s")
    with server.http, pytest.raises(httpx.ConnectError, match=sentence):
        server.me()
