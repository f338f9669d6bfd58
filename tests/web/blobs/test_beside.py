"""What lies beside the blobs under /node/v1: Django's views, reached without a browser's middleware."""

from __future__ import annotations

import httpx


def test_a_node_is_answered_by_its_secret(join):
    node, client = join("node-1")
    assert client.get("me").json()["name"] == node.name
    stray = client.post("attempts/1/rounds/1/update", json={"digest": "0" * 64, "num_examples": 1})
    assert (stray.status_code, stray.json()["accepted"]) == (200, False)
    assert "Set-Cookie" not in stray.headers


def test_errors_are_sentences(join, server_url):
    _, client = join("node-1")
    assert client.post("attempts/1/rounds/1/update", json={}).status_code == 422
    assert client.get("nowhere").status_code == 404
    stranger = httpx.get(f"{server_url}me", headers={"Authorization": "Bearer tms_none"})
    assert (stranger.status_code, "enrolment token" in stranger.json()["detail"]) == (401, True)


def test_pages_keep_their_middleware(server_url):
    page = httpx.get(server_url.removesuffix("node/v1/") + "sign-in", follow_redirects=True)
    assert page.status_code == 200
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert "Content-Security-Policy" in page.headers
