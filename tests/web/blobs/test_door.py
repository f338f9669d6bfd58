"""Who gets to the blobs at all."""

from __future__ import annotations

import httpx
import pytest

from webapp.fleet import services as fleet

URL = f"blobs/{'0' * 64}"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
@pytest.mark.parametrize("header", [None, "Bearer tms_wrong", "Basic dXNlcjpwYXNz", "Bearer"])
def test_nobody(server_url, method, header):
    headers = {"Authorization": header} if header else {}
    answer = httpx.request(method, server_url + URL, headers=headers, trust_env=False)
    assert answer.status_code == 401
    if method != "HEAD":
        assert "not known here" in answer.json()["detail"]


def test_a_waiting_node(join):
    _, client = join("node-1", preapproved=False)
    answer = client.put(URL, content=b"x")
    assert answer.status_code == 403
    assert "waits for approval" in answer.json()["detail"]


def test_a_revoked_node(join, admin):
    node, client = join("node-1")
    fleet.revoke_node(node=node, actor=admin)
    answer = client.put(URL, content=b"x")
    assert answer.status_code == 401
    assert "node-1 is out of the fleet (revoked by admin)" in answer.json()["detail"]


@pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH"])
def test_other_methods(join, method):
    _, client = join("node-1")
    answer = client.request(method, URL)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD, PUT"


@pytest.mark.parametrize("name", ["abc", "A" * 64, "..%2F..%2Fetc%2Fpasswd", "0" * 65])
def test_a_name_that_is_no_digest(join, name):
    _, client = join("node-1")
    assert client.get(f"blobs/{name}").status_code in (400, 404)
