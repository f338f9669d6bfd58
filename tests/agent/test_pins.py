"""Keys that last: the node's own, and those that it has seen of others."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.trainer.secure.clients import session, terms
from trainer.agent.home import AgentError, Home, Identity
from trainer.agent.pins import Pins
from trainer.agent.signing import load_signing_key
from trainer.cli import app
from trainer.secure.keys import BadKeys, fingerprint, public_key
from trainer.secure.messages import PublicKeys


def seen(client: int) -> PublicKeys:
    """A client's keys, with an identity that nobody has met."""
    return session(client, terms(3)).public_keys()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def trainmaster(home: Home, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["node", *words, "--home", str(home.path)])
    return result.exit_code, result.output


def test_the_signing_key_is_made_once_and_its_owners_alone(home: Home) -> None:
    key = load_signing_key(home)
    assert public_key(load_signing_key(home)) == public_key(key)
    assert [(file.name, file.stat().st_mode & 0o777) for file in home.path.glob("signing*")] == [("signing.pem", 0o600)]


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_damaged_signing_key_is_not_made_anew(home: Home, content: bytes) -> None:
    (home.path / "signing.pem").write_bytes(content)
    with pytest.raises(
        AgentError, match=r"signing\.pem cannot be read as this node's key: bring it back from a backup"
    ):
        load_signing_key(home)
    assert (home.path / "signing.pem").read_bytes() == content


def test_the_first_key_of_a_node_is_trusted_and_no_other(home: Home) -> None:
    pins, first, other = Pins(home, "node-0"), seen(1), seen(1)
    pins.meet([first])
    pins.meet([first])
    with pytest.raises(BadKeys, match=r"node-1 signs with a key that node-0 does not know") as refusal:
        pins.meet([seen(2), other])
    assert fingerprint(first.identity) in str(refusal.value)
    assert fingerprint(other.identity) in str(refusal.value)
    # Nobody is met in a round that is refused.
    assert {pin.node: pin.identity for pin in Pins(home, "node-0").read().values()} == {"node-1": first.identity}


def test_no_other_node_takes_a_known_ones_name_until_its_key_is_forgotten(home: Home) -> None:
    pins, first = Pins(home, "node-0"), seen(1)
    pins.meet([first])
    other = seen(1).model_copy(update={"node_id": "id-9"})
    with pytest.raises(
        BadKeys, match="node-1 comes as a new node, and node-0 knows another one of that name"
    ) as refusal:
        pins.meet([other])
    assert str(refusal.value).endswith(f"trainmaster node forget {fingerprint(first.identity)}")
    assert pins.read().keys() == {"id-1"}
    code, said = trainmaster(home, "forget", fingerprint(first.identity))
    assert (code, f"{fingerprint(first.identity)} of node-1 is forgotten" in said) == (0, True)
    pins.meet([other])
    assert pins.read().keys() == {"id-9"}


def test_damaged_pins_trust_nobody(home: Home) -> None:
    (home.path / "pins.json").write_text('{"id-1": {"node": "node-1"}}')
    with pytest.raises(AgentError, match=r"pins\.json cannot be read"):
        Pins(home, "node-0").meet([seen(1)])
    assert trainmaster(home, "status")[0] == 1


def test_a_forgotten_key_gives_way_to_the_next(home: Home) -> None:
    pins, first, other, third = Pins(home, "node-0"), seen(1), seen(1), seen(2)
    pins.meet([first, third])
    code, said = trainmaster(home, "forget", "node-1")
    assert (code, fingerprint(first.identity) in said) == (0, True)
    pins.meet([other, third])
    assert pins.read()["id-1"].identity == other.identity


def test_forgetting_who_was_never_met_names_those_who_were(home: Home) -> None:
    assert trainmaster(home, "forget", "node-9") == (
        1,
        "trainmaster: This node knows no key of 'node-9'. It knows those of: nobody.\n",
    )
    Pins(home, "node-0").meet([seen(2), seen(1)])
    assert trainmaster(home, "forget", "node-9")[1].endswith("It knows those of: node-1, node-2.\n")


def test_status_shows_the_fingerprints(home: Home) -> None:
    other = seen(1)
    Pins(home, "node-0").meet([other])
    assert "(not joined yet)" in trainmaster(home, "status")[1]
    home.save_identity(Identity(node_id="id-0", name="node-0", secret="tms_secret", server_url="http://server"))
    code, said = trainmaster(home, "status")
    assert code == 0
    assert "tms_secret" not in said
    lines = {" ".join(line.split()) for line in said.splitlines()}
    assert f"Fingerprint {fingerprint(public_key(load_signing_key(home)))}" in lines
    assert f"Knows {fingerprint(other.identity)} node-1" in lines
