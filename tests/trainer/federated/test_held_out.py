"""The server's own measurement: on a built-in set the clients' test rows, of its own file all rows."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.data.files import describe_file
from trainer.data.prepare import prepare_client
from trainer.data.source import Source, SourceError
from trainer.federated.held_out import HeldOut, held_out_rows
from trainer.losses import build_objective
from trainer.models import build_model, load_weights, weights_of
from trainer.sources import BUILTIN_SOURCES
from trainer.spec import JobSpec
from trainer.training import evaluate


def spec_on(source: str, **federated: object) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "-",
            "mode": "federated",
            "model": {"name": "linear"},
            "data": {"source": source},
            "federated": {"clients": {"num": 3}, **federated},
        }
    )


@pytest.mark.parametrize("name", sorted(BUILTIN_SOURCES))
def test_of_a_built_in_set_it_has_the_clients_test_rows(name: str) -> None:
    spec, source = spec_on(name), Source(description=BUILTIN_SOURCES[name])
    x, y = held_out_rows(spec, source)
    client = prepare_client(spec, source, 1, 3)
    assert torch.equal(x, client.test_x)
    assert torch.equal(y, client.test_y)


@pytest.mark.parametrize(("name", "score"), [("digits", "accuracy"), ("diabetes", "r2")])
def test_it_measures_what_a_client_would(name: str, score: str) -> None:
    spec, source = spec_on(name), Source(description=BUILTIN_SOURCES[name])
    model = build_model(spec.model, source.description, seed=7)
    client = prepare_client(spec, source, 0, 3)
    objective = build_objective("auto", source.description.task)
    theirs = evaluate(model, objective, client.test_x, client.test_y, precision="float32")
    ours = HeldOut(spec, source).measure(weights_of(model))
    assert ours == {"server/loss": theirs["loss"], f"server/{score}": theirs[score]}


def _csv(path: Path, rows: int = 5) -> Source:
    lines = [f"{row},{row * row},{'no' if row % 2 else 'yes'}" for row in range(rows)]
    path.write_text("a,b,ill\n" + "\n".join(lines) + "\n")
    return Source(description=describe_file("held-out", path, "ill", "classification"), path=path)


def test_a_file_of_its_own_is_taken_whole_and_scaled_by_itself(tmp_path: Path) -> None:
    source = _csv(tmp_path / "held-out.csv")
    x, y = held_out_rows(spec_on("ward", server_data="held-out"), source)
    np.testing.assert_allclose(x.mean(dim=0), 0, atol=1e-6)
    np.testing.assert_allclose(x.std(dim=0, unbiased=False), 1, rtol=1e-6)
    assert y.tolist() == [1, 0, 1, 0, 1]


def test_unscaled_it_is_as_it_is(tmp_path: Path) -> None:
    source = _csv(tmp_path / "held-out.csv", rows=3)
    spec = spec_on("ward", server_data="held-out")
    raw = spec.model_copy(update={"data": spec.data.model_copy(update={"scaling": "none"})})
    assert held_out_rows(raw, source)[0].tolist() == [[0, 0], [1, 1], [2, 4]]


def test_a_file_that_has_changed_its_shape_is_a_sentence(tmp_path: Path) -> None:
    source = _csv(tmp_path / "held-out.csv")
    (tmp_path / "held-out.csv").write_text("a,ill\n1,yes\n2,no\n")
    with pytest.raises(SourceError, match="'held-out' has changed or gone"):
        HeldOut(spec_on("ward", server_data="held-out"), source)


def test_weights_of_another_model_are_refused() -> None:
    held_out = HeldOut(spec_on("digits"), Source(description=BUILTIN_SOURCES["digits"]))
    with pytest.raises(ValueError, match="do not fit"):
        held_out.measure({"other": np.zeros(3, np.float32)})


def test_threads_take_turns() -> None:
    spec, source = spec_on("digits"), Source(description=BUILTIN_SOURCES["digits"])
    held_out = HeldOut(spec, source)
    models = [weights_of(build_model(spec.model, source.description, seed=seed)) for seed in range(4)]
    alone = [held_out.measure(weights) for weights in models]
    found: dict[int, list[dict[str, float]]] = {}

    def measure(index: int) -> None:
        found[index] = [held_out.measure(models[index]) for _ in range(5)]

    threads = [threading.Thread(target=measure, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {index: [alone[index]] * 5 for index in range(4)}


def test_the_weights_that_are_measured_stay_as_they_are() -> None:
    spec, source = spec_on("digits"), Source(description=BUILTIN_SOURCES["digits"])
    model = build_model(spec.model, source.description, seed=1)
    weights = {name: array.copy() for name, array in weights_of(model).items()}
    HeldOut(spec, source).measure(weights)
    load_weights(model, weights)
    assert all(np.array_equal(weights[name], array) for name, array in weights_of(model).items())
