"""Epsilon: the library's own accountant is the reference, and closed forms where there are some."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, get_epsilon_gaussian
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from trainer.federated.privacy import epsilon_after, noise_within, rounds_within
from trainer.sections.clients import Clients
from trainer.sections.privacy import AdaptiveClip, CentralPrivacy

EVERYONE = Clients(num=50)
SAMPLED = Clients(num=1000, per_round=50)


@pytest.mark.parametrize("rounds", [1, 7, 200])
@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
def test_all_clients_is_the_plain_gaussian(noise: float, rounds: int) -> None:
    reference = RdpAccountant().compose(GaussianDpEvent(noise), rounds).get_epsilon(1e-5)
    assert epsilon_after(CentralPrivacy(noise_multiplier=noise), EVERYONE, rounds) == pytest.approx(
        reference, rel=1e-12
    )


@pytest.mark.parametrize("rounds", [1, 7, 200])
@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
def test_a_share_is_the_sampled_gaussian(noise: float, rounds: int) -> None:
    event = PoissonSampledDpEvent(0.05, GaussianDpEvent(noise))
    reference = RdpAccountant().compose(event, rounds).get_epsilon(1e-5)
    assert epsilon_after(CentralPrivacy(noise_multiplier=noise), SAMPLED, rounds) == pytest.approx(reference, rel=1e-9)


def test_rounds_of_the_gaussian_are_one_of_less_noise() -> None:
    """n releases with z cost as much as one with z / sqrt(n)."""
    once = epsilon_after(CentralPrivacy(noise_multiplier=0.5), EVERYONE, 1)
    assert epsilon_after(CentralPrivacy(noise_multiplier=1.5), EVERYONE, 9) == pytest.approx(once, rel=1e-12)


def test_it_bounds_the_exact_epsilon() -> None:
    """Renyi accounting is an upper bound, and a good one: at most a fifth above the exact figure here."""
    epsilon = epsilon_after(CentralPrivacy(noise_multiplier=2.0), EVERYONE, 10)
    exact = get_epsilon_gaussian(2.0 / math.sqrt(10), 1e-5)
    assert exact < epsilon < 1.2 * exact


def test_it_bounds_another_accountant() -> None:
    epsilon = epsilon_after(CentralPrivacy(noise_multiplier=1.0), SAMPLED, 100)
    other = PLDAccountant().compose(PoissonSampledDpEvent(0.05, GaussianDpEvent(1.0)), 100).get_epsilon(1e-5)
    assert other < epsilon < 1.2 * other


def test_no_round_costs_nothing() -> None:
    assert epsilon_after(CentralPrivacy(), EVERYONE, 0) == 0.0


def test_redrawing_is_paid_from_delta() -> None:
    """The chance that a redraw gives a client away, over all rounds, is no longer there for the accountant."""
    clients, rounds = Clients(num=60, per_round=12), 20
    alone = 0.2 * 0.8**59 / (1 - 0.8**60)
    assert clients.chance_alone == pytest.approx(alone, rel=1e-12)
    event = PoissonSampledDpEvent(0.2, GaussianDpEvent(1.0))
    accountant = RdpAccountant().compose(event, rounds)
    epsilon = epsilon_after(CentralPrivacy(), clients, rounds)
    assert epsilon == pytest.approx(accountant.get_epsilon(1e-5 - rounds * alone), rel=1e-12)
    assert epsilon > accountant.get_epsilon(1e-5)


def test_nothing_is_promised_beyond_delta() -> None:
    assert epsilon_after(CentralPrivacy(), Clients(num=10, per_round=2), 20) == math.inf


@pytest.mark.parametrize("clients", [EVERYONE, SAMPLED])
def test_rounds_within(clients: Clients) -> None:
    last = rounds_within(CentralPrivacy(max_epsilon=8.0), clients, 500)
    assert 0 < last < 500
    assert epsilon_after(CentralPrivacy(), clients, last) <= 8.0 < epsilon_after(CentralPrivacy(), clients, last + 1)


def test_rounds_within_no_limit() -> None:
    assert rounds_within(CentralPrivacy(), EVERYONE, 500) == 500
    assert rounds_within(CentralPrivacy(max_epsilon=1000), EVERYONE, 20) == 20
    assert rounds_within(CentralPrivacy(max_epsilon=0.01), EVERYONE, 20) == 0


@pytest.mark.parametrize("clients", [EVERYONE, SAMPLED])
def test_noise_within(clients: Clients) -> None:
    noise = noise_within(CentralPrivacy(max_epsilon=4.0), clients, 100)
    assert noise is not None
    enough = CentralPrivacy(noise_multiplier=noise)
    assert epsilon_after(enough, clients, 100) <= 4.0
    assert epsilon_after(CentralPrivacy(noise_multiplier=noise / 1.02), clients, 100) > 4.0


def test_noise_within_what_the_spec_takes() -> None:
    assert noise_within(CentralPrivacy(), EVERYONE, 20) is None
    assert noise_within(CentralPrivacy(max_epsilon=1e-6), EVERYONE, 20) is None
    adaptive = CentralPrivacy(max_epsilon=1.0, clip=AdaptiveClip(name="adaptive"))
    assert noise_within(adaptive, EVERYONE, 1) == pytest.approx(4.2, rel=0.05)
    assert noise_within(adaptive, EVERYONE, 100) is None


@pytest.mark.parametrize("noise", [1e-6, 1000])
@pytest.mark.parametrize("clients", [EVERYONE, SAMPLED])
def test_the_spec_s_limits_give_a_number(noise: float, clients: Clients) -> None:
    epsilons = [epsilon_after(CentralPrivacy(noise_multiplier=noise), clients, rounds) for rounds in (1, 100_000)]
    assert all(math.isfinite(epsilon) and epsilon >= 0 for epsilon in epsilons)
    assert epsilons[0] <= epsilons[1]


def test_it_is_imported_at_the_call() -> None:
    """The accountant brings scipy.stats, a second, which no process pays at its start; and it brings no torch at all."""
    code = (
        "import sys, trainer.federated.privacy as p, trainer.sections.federated as s;"
        "print(*sorted({'scipy', 'dp_accounting', 'randomgen', 'torch'} & set(sys.modules)));"
        "p.epsilon_after(s.CentralPrivacy(), s.Clients(), 1); p.noise_rng();"
        "print(*sorted({'scipy', 'dp_accounting', 'randomgen', 'torch'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.splitlines() == ["", "dp_accounting randomgen scipy"]


def test_the_library_keeps_its_warnings() -> None:
    """It complains of orders that it leaves out; the log of a worker needs none of that."""
    code = (
        "import trainer.federated.privacy as p, trainer.sections.federated as s;"
        "p.epsilon_after(s.CentralPrivacy(), s.Clients(num=100, per_round=10), 1)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stderr == ""
