"""A bad value in the environment stops a process at its start, with a sentence that names it and repeats no password."""

import runpy
from typing import Any

import pytest
from channels_redis.utils import create_pool
from django.core.exceptions import ImproperlyConfigured

VARIABLES = (
    "TRAINMASTER_PUBLIC_URL", "DATABASE_URL", "BROKER_URL", "NODE_BROKER_URL", "BROKER_CA_FILE",
    "TRAINMASTER_MAX_BLOB_BYTES", "TRAINMASTER_LOG_LEVEL",
)  # fmt: skip


@pytest.fixture
def load(monkeypatch, tmp_path):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRAINMASTER_SECRET_KEY", "only-for-tests")
    monkeypatch.setenv("TRAINMASTER_HOME", str(tmp_path))

    def run(**environment: str) -> dict[str, Any]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return runpy.run_path("webapp/settings.py")

    return run


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRAINMASTER_PUBLIC_URL", "train.example.org"),
        ("TRAINMASTER_PUBLIC_URL", "http://train.example.org:http"),
        ("DATABASE_URL", "nonsense"),
        ("DATABASE_URL", "mysql://me:hush@db/x"),
        ("BROKER_URL", "amqp://me:hush@host"),
        ("BROKER_URL", "redis://me:hush@host:port/0"),
        ("NODE_BROKER_URL", "broker:6379"),
        ("NODE_BROKER_URL", "redis://me:hush@host/0"),
        ("BROKER_CA_FILE", "/nowhere/ca.pem"),
        ("TRAINMASTER_MAX_BLOB_BYTES", "64 GB"),
        ("TRAINMASTER_MAX_BLOB_BYTES", "0"),
        ("TRAINMASTER_MAX_BLOB_BYTES", "-1"),
        ("TRAINMASTER_LOG_LEVEL", "LOUD"),
    ],
)
def test_a_bad_value_is_named(load, name, value):
    with pytest.raises(ImproperlyConfigured) as error:
        load(**{name: value})
    assert str(error.value).startswith(name)
    assert "hush" not in str(error.value)


def test_without_a_key_the_sentence_says_where_it_would_be(load, tmp_path, monkeypatch):
    monkeypatch.delenv("TRAINMASTER_SECRET_KEY")
    with pytest.raises(ImproperlyConfigured, match="TRAINMASTER_SECRET_KEY is not set"):
        load()
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "django").write_text("kept\n")
    assert load()["SECRET_KEY"] == "kept"


def test_the_sockets_check_the_brokers_certificate_by_its_own_authority(load, tmp_path):
    authority = tmp_path / "ca.pem"
    authority.write_text("")
    found = load(BROKER_URL="rediss://:hush@broker:6379/0", BROKER_CA_FILE=str(authority))
    (host,) = found["CHANNEL_LAYERS"]["default"]["CONFIG"]["hosts"]
    options = create_pool(host).connection_kwargs
    assert (options["ssl_cert_reqs"], options["ssl_ca_certs"]) == ("required", str(authority))
    assert options["password"] == "hush"
