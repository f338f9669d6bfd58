"""Masked equals plain: what each strategy makes of the sum is what it makes of the single updates, but for the rounding."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.federated.rounds import write_updates
from tests.trainer.secure.clients import MaskedRound, terms
from trainer.federated.aggregate import Aggregate, ClientUpdate
from trainer.federated.check import UpdateRefused
from trainer.federated.strategy import State, build_strategy
from trainer.secure.quantise import Quantiser
from trainer.secure.unmask import check_masked, expected_masked
from trainer.secure.weigh import factor_of, mean_of, privacy_factor
from trainer.spec import JobSpec
from trainer.weights import Weights, map_weights, read_header, write_weights

CLIP = 2.0
EXAMPLES, STEPS = [100, 1, 31, 64, 100], [4, 1, 1, 2, 4]
SHAPES = {"0.weight": (3, 4), "0.bias": (3,), "1.norm.weight": (3,), "scale": ()}


def secure_spec(num: int = 5, **federated: Any) -> JobSpec:
    """The model has a norm, for FedBN; the weights of these tests are not its."""
    optimizer = federated.pop("optimizer", {"name": "sgd", "lr": 0.1})
    return JobSpec.model_validate(
        {
            "name": "test",
            "mode": "federated",
            "model": {"name": "mlp", "options": {"norm": "layer"}},
            "data": {"source": "digits"},
            "training": {"batch_size": 32, "optimizer": optimizer},
            "federated": {"clients": {"num": num}, "secure_aggregation": {"clip": CLIP}, **federated},
        }
    )


def draw(rng: np.random.Generator) -> Weights:
    return {name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in SHAPES.items()}


def masked_mean(spec: JobSpec, folder: Path, updates: list[ClientUpdate], survivors: list[int]) -> Aggregate:
    """What clients, as the agent does, and then the server make of plain updates."""
    assert spec.federated is not None
    num = len(updates)
    given = terms(num, max_examples=100)
    quantiser = Quantiser(given, CLIP)
    masked = MaskedRound(given, range(num), range(num))
    paths = {}
    for update in (updates[client] for client in survivors):
        tensors = map_weights(update.path)
        said = {"client": update.client, "num_examples": update.num_examples, "num_steps": update.num_steps}
        factor = factor_of(spec, given, **said)
        if spec.federated.privacy:
            factor *= privacy_factor(tensors, spec.federated.privacy, quantiser)
        encoded, num_saturated = quantiser.encode(tensors, factor)
        assert num_saturated == 0
        paths[update.client] = masked.deliver(folder, update.client, encoded)
        weights = {name: ("F32", shape) for name, shape in SHAPES.items()}
        check_masked(paths[update.client], expected_masked(weights, spec.federated))
    total = masked.unmask(paths, masked.answers(survivors, survivors))
    return mean_of(spec, given, quantiser.decode(total), [updates[client] for client in survivors])


STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox": {"strategy": {"name": "fedprox", "mu": 0.1}},
    "fedbn": {"strategy": {"name": "fedbn"}},
    "scaffold": {"strategy": {"name": "scaffold"}},
    "fednova": {"strategy": {"name": "fednova"}},
    "fednova with momentum": {
        "strategy": {"name": "fednova"},
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    },
    "fusion by examples": {"strategy": {"name": "fusion"}},
    "fusion": {"strategy": {"name": "fusion", "weights": [3, 0, 1, 0.5, 7]}},
    "one_shot": {"strategy": {"name": "one_shot", "weights": [3, 1, 1, 0.5, 7]}, "rounds": 1},
    "private": {"privacy": {"clip": {"name": "fixed", "norm": 0.8}, "noise_multiplier": 1e-6, "delta": 1e-5}},
}


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("survivors", [[0, 1, 2, 3, 4], [1, 2, 4]], ids=["all", "three of five"])
def test_masked_equals_plain(tmp_path: Path, name: str, survivors: list[int]) -> None:
    spec = secure_spec(**STRATEGIES[name])
    assert spec.federated is not None
    strategy = spec.federated.strategy.name
    rng = np.random.default_rng(0)
    deltas, variates = [draw(rng) for _ in EXAMPLES], [draw(rng) for _ in EXAMPLES]
    if strategy == "fedbn":
        for delta in deltas:
            del delta["1.norm.weight"]
    beside = variates if strategy == "scaffold" else None
    updates = write_updates(tmp_path, deltas, variates=beside, num_examples=EXAMPLES, num_steps=STEPS)

    got = masked_mean(spec, tmp_path, updates, survivors)
    state = State({name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()})
    plain = build_strategy(spec).aggregate(state, [updates[client] for client in survivors])

    assert got.delta.keys() == plain.delta.keys()
    assert got.facts.weights == pytest.approx(plain.facts.weights, rel=1e-12)
    assert (got.facts.norms, got.facts.num_clipped) == (None, None)
    assert (got.facts.clip_norm, got.facts.noise_std) == (plain.facts.clip_norm, plain.facts.noise_std)
    # Rounding is half a step of each client, and FedNova's factors are down to a hundredth; private noise is 8e-7 / 5.
    for tensor, expected in plain.delta.items():
        assert got.delta[tensor].dtype == np.float64
        np.testing.assert_allclose(got.delta[tensor], expected, rtol=0, atol=3e-6 if spec.federated.privacy else 2e-7)
    assert (got.variate is None) == (strategy != "scaffold")
    for tensor, expected in (plain.variate or {}).items():
        assert got.variate is not None
        np.testing.assert_allclose(got.variate[tensor], expected, rtol=0, atol=5e-9)
    build_strategy(spec).step(state, got)


def test_private_noise_is_added_once_to_the_mean() -> None:
    spec = secure_spec(privacy={"clip": {"name": "fixed", "norm": 0.5}, "noise_multiplier": 2.0, "delta": 1e-5})
    updates = [ClientUpdate(Path("none"), client, num_examples=1) for client in range(4)]
    aggregate = mean_of(spec, terms(5), {"w": np.full(40_000, 5.0)}, updates)
    expected_std = 2.0 * 0.5 / 5
    assert aggregate.facts.noise_std == expected_std
    assert aggregate.facts.weights == [0.25] * 4
    # Divided by the five that were expected, not by the four that came. Seven standard errors.
    assert abs(aggregate.delta["w"].mean() - 1.0) < 7 * expected_std / math.sqrt(40_000)
    assert abs(aggregate.delta["w"].std() - expected_std) < 7 * expected_std / math.sqrt(80_000)


@pytest.mark.parametrize("length", [0.01, 0.5, 50.0])
def test_a_private_update_is_no_longer_than_the_clip_norm_when_it_has_been_rounded(length: float) -> None:
    spec = secure_spec(privacy={"clip": {"name": "fixed", "norm": 0.5}, "noise_multiplier": 1.0, "delta": 1e-5})
    assert spec.federated is not None
    assert spec.federated.privacy is not None
    quantiser = Quantiser(terms(1000, max_examples=100), 1000.0)  # coarse: a step is 0.0005
    rng = np.random.default_rng(1)
    delta = rng.normal(size=(10, 100)).astype(np.float32)
    delta *= length / np.linalg.norm(delta)
    factor = privacy_factor({"w": delta}, spec.federated.privacy, quantiser)
    arrived = quantiser.decode(quantiser.encode({"w": delta}, factor)[0])["w"]
    assert np.linalg.norm(arrived) <= 0.5
    if length == 0.01:
        assert factor == 1
    if length == 50:
        assert np.linalg.norm(arrived) > 0.48


def test_rounding_that_leaves_nothing_of_the_clip_norm_is_refused() -> None:
    spec = secure_spec(privacy={"clip": {"name": "fixed", "norm": 0.001}, "noise_multiplier": 1.0, "delta": 1e-5})
    assert spec.federated is not None
    assert spec.federated.privacy is not None
    quantiser = Quantiser(terms(1000), 1000.0)
    with pytest.raises(ValueError, match=r"rounding them alone exceeds privacy\.clip\.norm"):
        privacy_factor({"w": np.zeros(10_000, np.float32)}, spec.federated.privacy, quantiser)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("rows", [1, 31, 32, 33, 64, 99, 100])
def test_factors_stay_in_range(name: str, rows: int) -> None:
    spec = secure_spec(**STRATEGIES[name])
    assert spec.federated is not None
    steps = math.ceil(rows / 32) * spec.federated.local_epochs
    for client in range(5):
        assert 0 <= factor_of(spec, terms(5), client=client, num_examples=rows, num_steps=steps) <= 1


def test_fednova_bears_a_batch_with_a_row_more() -> None:
    """Batch normalisation lets a last row of its own join the batch before it."""
    spec = secure_spec(strategy={"name": "fednova"}, local_epochs=3)
    assert factor_of(spec, terms(5), client=0, num_examples=33, num_steps=3) == 1.0
    with pytest.raises(ValueError, match=r"says that it made 3 steps on 64 rows, which is fewer than its batches"):
        factor_of(spec, terms(5), client=0, num_examples=64, num_steps=3)
    with pytest.raises(ValueError, match="the client made none"):
        factor_of(spec, terms(5), client=0, num_examples=64, num_steps=0)


@pytest.mark.parametrize("name", STRATEGIES)
def test_more_rows_than_any_client_was_said_to_have(name: str) -> None:
    with pytest.raises(ValueError, match="Client 2 trained on 101 rows, and the data sources were said to have 100"):
        factor_of(secure_spec(**STRATEGIES[name]), terms(5), client=2, num_examples=101, num_steps=4)


def test_no_weights_is_a_sentence() -> None:
    spec = secure_spec(strategy={"name": "fusion", "weights": [0, 0, 0, 1, 1]})
    updates = [ClientUpdate(Path("none"), client, num_examples=1) for client in range(3)]
    with pytest.raises(ValueError, match="all have the weight 0"):
        mean_of(spec, terms(5), {"w": np.zeros(3)}, updates)


def test_the_door_takes_ring_elements_of_the_right_names_and_shapes_alone(tmp_path: Path) -> None:
    spec = secure_spec()
    assert spec.federated is not None
    expected = expected_masked({name: ("F32", shape) for name, shape in SHAPES.items()}, spec.federated)
    assert set(expected.values()) == {("U32", shape) for shape in SHAPES.values()}
    path = tmp_path / "masked.safetensors"
    good: Weights = {name: np.zeros(shape, np.uint32) for name, shape in SHAPES.items()}
    write_weights(path, good)
    assert read_header(path) == expected
    check_masked(path, expected)
    cases: list[tuple[Weights, str]] = [
        ({**good, "scale": np.zeros((), np.float32)}, "Tensor 'scale' of the update has the type F32, not U32"),
        ({**good, "0.bias": np.zeros(4, np.uint32)}, r"Tensor '0.bias' of the update has the shape \[4\], not \[3\]"),
        ({**good, "more": np.zeros(4, np.uint32)}, "holds tensor 'more'"),
        ({"scale": good["scale"]}, "lacks 3 tensors"),
    ]
    for wrong, sentence in cases:
        write_weights(path, wrong)
        with pytest.raises(UpdateRefused, match=sentence):
            check_masked(path, expected)
    path.write_bytes(b"no")
    with pytest.raises(UpdateRefused, match="not a safetensors file"):
        check_masked(path, expected)
