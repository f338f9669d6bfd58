"""What DP-SGD costs, against Opacus' own accountants."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings

import pytest

from trainer.federated.row_privacy import Cost, epsilon_of, round_cost, sampling_of
from trainer.sections.federated import Federated

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from opacus.accountants import PRVAccountant, RDPAccountant


def test_sampling_makes_one_pass_on_average() -> None:
    assert sampling_of(100, 32) == (0.32, 3)
    assert sampling_of(64, 32) == (0.5, 2)
    assert sampling_of(10, 32) == (1.0, 1)  # all rows, each time
    assert sampling_of(1, 1) == (1.0, 1)


@pytest.mark.parametrize("num_rows", range(1, 60))
def test_steps_stay_within_what_the_server_believes(num_rows: int) -> None:
    """`webapp/jobs/claims.py` takes at most a step for each started batch."""
    assert all(1 <= sampling_of(num_rows, size).steps <= math.ceil(num_rows / size) for size in range(1, 70))


def test_a_round_has_all_its_epochs() -> None:
    federated = Federated.model_validate({"local_epochs": 4, "local_privacy": {"noise_multiplier": 1.5}})
    assert round_cost(federated, 20, 100) == Cost(1.5, 0.2, 20)


@pytest.mark.parametrize(
    ("noise", "rate", "steps"), [(1.0, 0.01, 1000), (0.8, 0.1, 100), (4.0, 0.5, 300), (1.1, 1.0, 10)]
)
def test_epsilon_is_that_of_opacus(noise: float, rate: float, steps: int) -> None:
    """Both accountants bound Renyi divergences at orders of their own, which leaves a few per cent between them."""
    ours = epsilon_of([Cost(noise, rate, steps)], 1e-5)
    opacus = RDPAccountant()
    opacus.history = [(noise, rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its best order at an end of its list
        assert ours == pytest.approx(opacus.get_epsilon(1e-5), rel=0.05)


def test_epsilon_holds() -> None:
    """It is above the nearly exact one, by numerical composition of privacy loss (Gopi et al. 2021), and not by much."""
    exact = PRVAccountant()
    exact.history = [(1.0, 0.05, 200)]
    epsilon = epsilon_of([Cost(1.0, 0.05, 200)], 1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert exact.get_epsilon(1e-5) < epsilon < 1.3 * exact.get_epsilon(1e-5)


def test_costs_of_different_jobs_add_up_as_divergences() -> None:
    both = [Cost(1.0, 0.1, 50), Cost(2.0, 0.3, 20)]
    opacus = RDPAccountant()
    opacus.history = [tuple(cost) for cost in both]
    joint = epsilon_of(both, 1e-5)
    assert joint == pytest.approx(opacus.get_epsilon(1e-5), rel=0.05)
    apart = [epsilon_of([cost], 1e-5) for cost in both]
    assert max(apart) < joint < sum(apart)


def test_the_ends() -> None:
    assert epsilon_of([], 1e-5) == 0.0
    assert epsilon_of([Cost(1e-3, 1.0, 1)], 1e-5) > 1e5  # the least noise that a spec takes: nothing is hidden
    assert math.isfinite(epsilon_of([Cost(1e-3, 0.01, 1000)], 1e-5))


def test_nobody_pays_for_the_accountant_before_it_is_asked() -> None:
    code = (
        "import sys, trainer.federated.row_privacy, trainer.federated.client;"
        "print(*sorted({'dp_accounting', 'opacus'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == ""
