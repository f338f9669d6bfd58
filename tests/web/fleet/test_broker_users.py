"""A node's broker user: what it may do, and that nothing else gives."""

from __future__ import annotations

import threading
import time

import pytest
import redis

from tests.web.fleet.helpers import enrol
from webapp.fleet import services
from webapp.fleet.broker_users import user_name
from webapp.fleet.models import Node

pytestmark = pytest.mark.django_db(transaction=True)


def node_client(node: Node, secret: str, broker_url: str) -> redis.Redis:
    address = broker_url.rpartition("@")[2]
    return redis.Redis.from_url(f"redis://{user_name(node.pk)}:{secret}@{address}", socket_timeout=5)


@pytest.fixture
def pair(admin, broker, broker_url):
    """Two approved nodes; the first one's client is the hostile one."""
    (one, secret), (other, _) = enrol(admin, "node-1"), enrol(admin, "node-2")
    with node_client(one, secret, broker_url) as client:
        yield one, other, client


def test_a_node_works_in_its_own_corner(pair, broker):
    node, _, client = pair
    own = f"n:{node.pk}:"
    assert client.xadd(own + "telemetry", {"kind": "heartbeat"}, id="1-1") == b"1-1"
    assert client.memory_usage(own + "telemetry") > 0
    broker.lpush(own + "tasks", "work")
    assert client.brpop([own + "tasks"], timeout=1) == (f"{own}tasks".encode(), b"work")
    assert client.eval("return redis.call('set', KEYS[1], ARGV[1])", 1, own + "lock", "x") == b"OK"
    with client.pubsub() as listener:
        listener.psubscribe(f"{own}/0.celery.pidbox")
        assert listener.get_message(timeout=2)["type"] == "psubscribe"


HOSTILE = {
    "another's queue": lambda c, other: c.brpop([f"n:{other}:tasks"], timeout=1),
    "forging another's task": lambda c, other: c.lpush(f"n:{other}:tasks", "x"),
    "forging another's telemetry": lambda c, other: c.xadd(f"n:{other}:telemetry", {"kind": "report"}),
    "reading another's telemetry": lambda c, other: c.xread({f"n:{other}:telemetry": 0}),
    "another's unacked tasks": lambda c, other: c.hgetall(f"n:{other}:unacked"),
    "the conductor's queue": lambda c, other: c.lpush("conductor", "x"),
    "the conductor's bindings": lambda c, other: c.smembers("_kombu.binding.conductor"),
    "ingest's sign of life": lambda c, other: c.set("ingest:alive", "x"),
    "another's key from a script": lambda c, other: c.eval(f"return redis.call('get', 'n:{other}:x')", 0),
    "copying into another's": lambda c, other: c.execute_command("COPY", "a", f"n:{other}:x"),
    "a page's channel": lambda c, other: c.publish("live__group__job-1", "x"),
    "another's pidbox": lambda c, other: c.publish(f"n:{other}:/0.celery.pidbox", "x"),
    "listening to pages": lambda c, other: c.execute_command("SUBSCRIBE", "live__group__job-1"),
    "listening to everything": lambda c, other: c.execute_command("PSUBSCRIBE", "*"),
    "CONFIG": lambda c, other: c.config_get("*"),
    "FLUSHALL": lambda c, other: c.flushall(),
    "FLUSHDB": lambda c, other: c.flushdb(),
    "ACL LIST": lambda c, other: c.acl_list(),
    "ACL SETUSER": lambda c, other: c.execute_command("ACL", "SETUSER", "evil", "on", "nopass", "+@all", "~*"),
    "KEYS": lambda c, other: c.keys("*"),
    "CLIENT LIST": lambda c, other: c.client_list(),
    "CLIENT KILL": lambda c, other: c.execute_command("CLIENT", "KILL", "USER", "default"),
    "MONITOR": lambda c, other: c.execute_command("MONITOR"),
    "DEBUG": lambda c, other: c.execute_command("DEBUG", "SLEEP", "1"),
    "SHUTDOWN": lambda c, other: c.execute_command("SHUTDOWN", "NOSAVE"),
    "REPLICAOF": lambda c, other: c.execute_command("REPLICAOF", "127.0.0.1", "1"),
    "MODULE": lambda c, other: c.execute_command("MODULE", "LIST"),
    "SCAN": lambda c, other: c.scan(),
    "RANDOMKEY": lambda c, other: c.randomkey(),
    "DBSIZE": lambda c, other: c.dbsize(),
    "PUBSUB CHANNELS": lambda c, other: c.pubsub_channels(),
    "SCRIPT FLUSH": lambda c, other: c.script_flush(),
    "FUNCTION FLUSH": lambda c, other: c.function_flush(),
    "CLIENT TRACKING": lambda c, other: c.execute_command("CLIENT", "TRACKING", "on", "BCAST"),
    "SORT with foreign keys": lambda c, other: c.execute_command("SORT", f"n:{other}:x"),
}


@pytest.mark.parametrize("attack", list(HOSTILE))
def test_everything_else_is_denied(pair, attack):
    _, other, client = pair
    with pytest.raises(redis.ResponseError, match=r"(?i)no permission|can't run this command|not allowed"):
        HOSTILE[attack](client, other.pk)


def test_a_waiting_node_has_no_user(admin, broker, broker_url):
    node, secret = enrol(admin, preapproved=False)
    with node_client(node, secret, broker_url) as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    services.approve_node(node=node, actor=admin)
    with node_client(node, secret, broker_url) as client:
        assert client.ping()


def test_revoking_cuts_a_blocked_connection(pair, admin, broker, broker_url):
    node, other, client = pair
    ended: list[float] = []

    def wait_for_work() -> None:
        try:
            client.brpop([f"n:{node.pk}:tasks"], timeout=4)
        except redis.RedisError:
            ended.append(time.monotonic())

    waiter = threading.Thread(target=wait_for_work)
    waiter.start()
    while not any(c["cmd"] == "brpop" for c in broker.client_list()):
        time.sleep(0.01)
    revoked_at = time.monotonic()
    services.revoke_node(node=node, actor=admin)
    waiter.join()
    assert ended
    assert ended[0] - revoked_at < 2
    assert user_name(node.pk) not in broker.acl_users()
    assert user_name(other.pk) in broker.acl_users()


def test_revoking_empties_its_corner_only(pair, admin, broker):
    node, other, client = pair
    client.xadd(f"n:{node.pk}:telemetry", {"kind": "points"})
    broker.lpush(f"n:{other.pk}:tasks", "work")
    services.revoke_node(node=node, actor=admin)
    assert broker.keys("n:*") == [f"n:{other.pk}:tasks".encode()]


def test_sync_makes_what_is_missing_and_removes_what_is_unknown(pair, admin, broker):
    node, other, _ = pair
    waiting, _ = enrol(admin, "node-3", preapproved=False)
    broker.execute_command("ACL", "DELUSER", user_name(node.pk))
    broker.execute_command("ACL", "SETUSER", user_name(waiting.pk), "on", "nopass", "+@all", "~*")
    broker.execute_command("ACL", "SETUSER", "grafana", "on", "nopass", "+ping")
    services.sync_broker_users()
    users = set(broker.acl_users())
    assert {user_name(node.pk), user_name(other.pk), "grafana", "default"} <= users
    assert user_name(waiting.pk) not in users
    broker.execute_command("ACL", "DELUSER", "grafana")


def test_sync_takes_away_what_was_added(pair, broker):
    node, _, client = pair
    broker.execute_command("ACL", "SETUSER", user_name(node.pk), "+@all", "~*")
    assert client.config_get("port")
    services.sync_broker_users()
    with pytest.raises(redis.exceptions.NoPermissionError):
        client.config_get("port")


def test_users_are_saved_for_the_brokers_restart(pair, broker):
    node, _, _ = pair
    acl_file = broker.config_get("aclfile")["aclfile"]
    with open(acl_file) as file:
        saved = file.read()
    assert f"user {user_name(node.pk)} on" in saved
    assert node.secret_hash in saved


def test_a_broker_that_is_away_does_not_break_approval(admin, settings, broker):
    settings.BROKER_URL = "redis://127.0.0.1:1/0"
    node, _ = enrol(admin)
    assert Node.objects.get(pk=node.pk).state == "offline"
