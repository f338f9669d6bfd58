"""What lies in a node's home, and what leaves it again."""

from __future__ import annotations

import os
import time
from pathlib import Path

from trainer.agent.home import Home
from trainer.agent.sweep import KEPT_DAYS, sweep_state


def kept(home: Home, job_id: int) -> Path:
    folder = home.job_state(job_id)
    folder.mkdir()
    (folder / "client-0-round-1.safetensors").write_bytes(b"")
    return folder


def test_what_clients_keep_goes_after_a_month_without_a_round(tmp_path: Path) -> None:
    home = Home(tmp_path)
    old, new = kept(home, 1), kept(home, 2)
    now = time.time()
    os.utime(old, (now, now - KEPT_DAYS * 86_400 - 60))
    os.utime(new, (now, now - KEPT_DAYS * 86_400 + 60))
    sweep_state(home.state)
    assert list(home.state.iterdir()) == [new]


def test_what_a_virtual_client_keeps_counts_for_its_job(tmp_path: Path) -> None:
    home = Home(tmp_path)
    live = kept(home, 1)
    (live / "client-0").mkdir()
    long_ago = time.time() - KEPT_DAYS * 86_400 - 60
    os.utime(live, (long_ago, long_ago))
    sweep_state(home.state)
    assert list(home.state.iterdir()) == [live]
    os.utime(live / "client-0", (long_ago, long_ago))
    sweep_state(home.state)
    assert list(home.state.iterdir()) == []


def test_another_server_means_other_jobs(tmp_path: Path) -> None:
    home = Home(tmp_path)
    kept(home, 1)
    home.forget_jobs()
    assert list(home.state.iterdir()) == []
    assert home.state.stat().st_mode & 0o777 == 0o700
