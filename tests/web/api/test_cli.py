"""`trainmaster submit | jobs | logs | cancel | resume` against a real server."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import yaml
from typer.testing import CliRunner

from tests.conftest import free_port
from tests.web.api.conftest import SPEC
from trainer.cli import app
from trainer.commands import jobs as commands
from webapp.jobs.models import Job
from webapp.teams.services import create_api_token
from webapp.telemetry.models import LogLine


@pytest.fixture
def run(live_server, owner, monkeypatch, tmp_path):
    """`run("jobs")` runs a command as the owner and returns its result."""
    _, token = create_api_token(user=owner, name="cli")
    monkeypatch.setenv("TRAINMASTER_URL", live_server.url)
    monkeypatch.setenv("TRAINMASTER_TOKEN", token)
    monkeypatch.setenv("HOME", str(tmp_path))
    return lambda *args: CliRunner().invoke(app, [str(a) for a in args])


@pytest.fixture
def spec_file(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    return path


class TestSubmit:
    def test_it_prints_the_jobs_address(self, run, team, spec_file, live_server):
        result = run("submit", spec_file)
        job = Job.objects.get()
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout == f"Job {job.pk}: {live_server.url}/jobs/{job.pk}/\n"
        assert job.submission_key != ""

    def test_json(self, run, team, spec_file):
        assert json.loads(run("submit", spec_file, "--json").stdout)["name"] == "Digits"

    def test_each_wrong_field_is_a_line(self, run, team, tmp_path):
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump({**SPEC, "seed": -1}))
        result = run("submit", path)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.splitlines()[0] == "The spec needs corrections: seed."
        assert result.stderr.splitlines()[1].startswith("  seed: ")

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("name: [", "is not YAML: line 1"),
            ("- a\n- b", "does not hold a spec"),
            ("", "does not hold a spec"),
            ("name: .nan", "holds what a spec cannot"),
            ("name: &a [*a]", "holds what a spec cannot"),
            ("!!python/object/apply:os.system [ls]", "is not YAML"),
            ("a: \x00", "is not YAML"),
        ],
    )
    def test_a_file_that_is_no_spec(self, run, tmp_path, text, sentence):
        path = tmp_path / "job.yaml"
        path.write_text(text)
        result = run("submit", path)
        assert (result.exit_code, result.stdout) == (1, "")
        assert sentence in result.stderr

    def test_a_file_that_is_not_there(self, run, tmp_path):
        result = run("submit", tmp_path / "no.yaml")
        assert (result.exit_code, result.stderr) == (
            1,
            f"{tmp_path}/no.yaml cannot be read: No such file or directory.\n",
        )


class TestJobs:
    def test_a_table(self, run, parts):
        lines = run("jobs").stdout.splitlines()
        assert lines[0].split()[:5] == ["ID", "NAME", "MODE", "STATE", "PROGRESS"]
        cells = [str(parts.job.pk), "Digits", "federated", "running", "1/3", "rounds", "owner", "cardiology"]
        assert lines[1].split()[:8] == cells

    def test_one_that_stopped_early(self, run, parts):
        Job.objects.update(state="finished", progress_done=2, progress_total=2, progress_planned=20)
        assert "2/20 rounds, stopped early" in run("jobs").stdout

    def test_names_are_no_markup(self, run, parts):
        Job.objects.update(name="[red]loud[/red]")
        assert "[red]loud[/red]" in run("jobs").stdout

    def test_filters(self, run, parts):
        assert json.loads(run("jobs", "--state", "failed", "--json").stdout)["total"] == 0
        found = run("jobs", "--state", "running", "--state", "failed", "--mode", "federated", "-q", "digi", "--json")
        assert json.loads(found.stdout)["total"] == 1

    def test_a_wrong_filter(self, run, parts):
        result = run("jobs", "--state", "asleep")
        sentence = "'state' is queued, running, finished, failed or cancelled.\n"
        assert (result.exit_code, result.stderr) == (1, sentence)


class TestLogs:
    @pytest.fixture
    def line(self, parts):
        return LogLine.objects.create(attempt=parts.attempt, source="node-1", level="warning", text="Rank 0 [slow]")

    def test_all_lines(self, run, parts, line):
        result = run("logs", parts.job.pk)
        assert result.exit_code == 0
        assert result.stdout.endswith("node-1 | warning: Rank 0 [slow]\n")

    def test_more_than_a_page(self, run, parts, monkeypatch):
        monkeypatch.setattr(commands, "PAGE_LINES", 2)
        for number in range(5):
            LogLine.objects.create(attempt=parts.attempt, source="node-1", level="info", text=f"line {number}")
        assert [text.split("| ")[1] for text in run("logs", parts.job.pk).stdout.splitlines()] == [
            f"line {number}" for number in range(5)
        ]

    @pytest.mark.parametrize(("state", "code"), [("finished", 0), ("failed", 1), ("cancelled", 1)])
    def test_following_ends_with_the_job(self, run, parts, line, monkeypatch, state, code):
        def pause(seconds):
            LogLine.objects.create(attempt=parts.attempt, source="node-1", level="info", text="the last line")
            Job.objects.update(state=state, state_reason="It ended so.")

        monkeypatch.setattr(commands.time, "sleep", pause)
        result = run("logs", "-f", parts.job.pk)
        assert result.exit_code == code
        assert [text.rsplit("| ")[-1] for text in result.stdout.splitlines()] == [
            "warning: Rank 0 [slow]",
            "the last line",
        ]
        assert result.stderr.splitlines() == [
            f"Job {parts.job.pk} is running: 1 of 3 rounds",
            f"Job {parts.job.pk} is {state}: It ended so.",
        ]

    def test_somebody_elses_job(self, run, parts):
        result = run("logs", "987654")
        assert (result.exit_code, result.stderr) == (1, "There is no job 987654 that you may see.\n")


class TestCancel:
    def test_it_says_so(self, run, parts):
        result = run("cancel", parts.job.pk)
        assert (result.exit_code, result.stdout) == (0, f"Job {parts.job.pk} is cancelled.\n")
        assert Job.objects.get().state == "cancelled"

    def test_a_teammates_job(self, run, parts, teammate):
        Job.objects.update(owner=teammate)
        result = run("cancel", parts.job.pk)
        assert result.exit_code == 1
        assert "teammate" in result.stderr

    def test_a_job_that_is_not_there(self, run, team):
        result = run("cancel", "999")
        assert (result.exit_code, result.stderr) == (1, "There is no job 999 that you may see.\n")


class TestResume:
    def test_it_says_so(self, run, parts):
        run("cancel", parts.job.pk)
        result = run("resume", parts.job.pk)
        assert (result.exit_code, result.stdout) == (0, f"Job {parts.job.pk} is queued.\n")
        assert Job.objects.get().state == "queued"

    def test_more_rounds(self, run, parts):
        run("cancel", parts.job.pk)
        before = Job.objects.get().progress_total
        assert run("resume", parts.job.pk, "--rounds", "4").exit_code == 0
        assert Job.objects.get().progress_total == before + 4

    def test_a_running_job(self, run, parts):
        result = run("resume", parts.job.pk, "--json")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.endswith(".\n")


class TestConfiguration:
    def test_the_file(self, run, parts, monkeypatch, tmp_path, live_server, owner):
        _, token = create_api_token(user=owner, name="file")
        for name in ("TRAINMASTER_URL", "TRAINMASTER_TOKEN"):
            monkeypatch.delenv(name)
        folder = tmp_path / ".config"
        folder.mkdir()
        (folder / "trainmaster.toml").write_text(f'url = "{live_server.url}"\ntoken = "{token}"\n')
        assert run("jobs").exit_code == 0
        (folder / "trainmaster.toml").write_text("url = ")
        assert "trainmaster.toml cannot be read" in run("jobs").stderr

    def test_nothing_set(self, run, monkeypatch):
        monkeypatch.delenv("TRAINMASTER_TOKEN")
        result = run("jobs")
        assert result.exit_code == 1
        assert result.stderr.startswith("Set TRAINMASTER_URL and TRAINMASTER_TOKEN")

    def test_a_wrong_token(self, run, monkeypatch):
        monkeypatch.setenv("TRAINMASTER_TOKEN", "tma_wrong")
        result = run("jobs")
        assert (result.exit_code, result.stderr[:24]) == (1, "Send a valid API token a")

    def test_no_server(self, run, monkeypatch):
        monkeypatch.setenv("TRAINMASTER_URL", f"http://127.0.0.1:{free_port()}")
        result = run("jobs")
        assert result.exit_code == 3
        assert "Is the server running" in result.stderr

    @pytest.mark.parametrize("url", ["example.org", "ftp://example.org", "http://[", "http://", "http://a:x"])
    def test_no_address(self, run, monkeypatch, url):
        monkeypatch.setenv("TRAINMASTER_URL", url)
        result = run("jobs")
        assert result.exit_code == 1
        assert "must read http://HOST:PORT" in result.stderr


class Hiccup(BaseHTTPRequestHandler):
    """A server that breaks at the first request for a job, and finished it by the second."""

    def do_GET(self):
        self.server.count += 1
        broken = self.server.count == 1
        body = (
            {"id": 7, "state": "finished", "state_reason": "", "waiting_for": None}
            if "logs" not in self.path
            else {"lines": []}
        )
        text = b"upstream is away" if broken else json.dumps(body).encode()
        self.send_response(502 if broken else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        pass


def test_following_waits_for_a_server_that_went_away(monkeypatch):
    with HTTPServer(("127.0.0.1", 0), Hiccup) as server:
        server.count = 0
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("TRAINMASTER_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("TRAINMASTER_TOKEN", "tma_x")
        monkeypatch.setattr(commands, "PAUSE_WHILE_AWAY_SECONDS", 0.01)
        result = CliRunner().invoke(app, ["logs", "-f", "7"])
        server.shutdown()
    assert result.exit_code == 0
    assert "answered 502" in result.stderr
    assert result.stderr.endswith("Trying again.\nJob 7 is finished\n")


def test_a_command_starts_in_half_a_second():
    def start() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "trainer.cli", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Seconds of the processor, not of the clock: the machine may be busy with other things.
    assert min(start() for _ in range(3)) < 0.5
