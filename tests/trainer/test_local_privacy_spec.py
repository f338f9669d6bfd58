"""What a spec refuses of local differential privacy: choices by which more would leave the rows than the noise covers."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from trainer.sources import BUILTIN_SOURCES, check_fit, count_client_rows
from trainer.spec import JobSpec

MLP = {"name": "mlp", "options": {"norm": "layer"}}


def spec_with(model: dict[str, Any] = MLP, *, local: Any = (), data: Any = (), **federated: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "t",
            "mode": "federated",
            "model": model,
            "data": {"source": "digits", "scaling": "none", **dict(data)},
            "federated": {"local_privacy": dict(local), **federated},
        }
    )


@pytest.mark.parametrize("model", [{"name": "linear"}, MLP, {"name": "cnn", "options": {"norm": "group"}}])
@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fusion"])
def test_what_goes_together(model: dict[str, Any], strategy: str) -> None:
    assert spec_with(model, strategy={"name": strategy}).federated


@pytest.mark.parametrize("strategy", ["fedavg", "fedbn"])
def test_batch_normalisation_is_refused(strategy: str) -> None:
    with pytest.raises(ValidationError, match=r"mixes the rows of a batch.*set model\.options\.norm to layer or group"):
        spec_with({"name": "mlp", "options": {"norm": "batch"}}, strategy={"name": strategy})


def test_scaling_by_the_rows_themselves_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"would come from the rows without any: set data\.scaling to none"):
        spec_with(data={"scaling": "standard"})


def test_delta_must_be_below_one_over_a_clients_rows() -> None:
    digits = BUILTIN_SOURCES["digits"]
    spec = spec_with(local={"delta": 0.002})  # 719 of 1,438 rows
    assert count_client_rows(spec, digits) == 719
    [problem] = check_fit(spec, digits)
    assert problem.loc == ("federated", "local_privacy", "delta")
    assert problem.message.startswith("A client has about 719 rows of 'digits', and the delta must be below 0.0014")
    assert check_fit(spec_with(local={"delta": 0.001}), digits) == []
    # A node's own rows are all its own.
    natural = spec_with(local={"delta": 0.001}, data={"partition": {"scheme": "natural"}})
    assert count_client_rows(natural, digits) == 1438
    assert len(check_fit(natural, digits)) == 1
