import numpy as np

from webapp.telemetry.packing import Pack
from webapp.telemetry.thinning import thin


def curve(values) -> Pack:
    n = len(values)
    return Pack(np.arange(n, dtype=np.uint32), np.arange(n, dtype=np.int64), np.asarray(values, np.float64))


def test_a_short_curve_stays_as_it_is():
    pack = curve([1.0, 2.0, 3.0])
    assert thin(pack, 8) is pack


def test_the_ends_and_a_single_peak_survive():
    values = np.sin(np.arange(100_000) / 500)
    values[31_415] = 40.0
    few = thin(curve(values), 200)
    assert len(few) <= 200
    assert 31_415 in few.steps
    assert few.steps[0] == 0
    assert few.steps[-1] == 99_999


def test_where_a_curve_breaks_is_still_seen():
    values = np.zeros(10_000)
    values[4_000:4_500] = np.nan
    values[7_000] = np.inf
    values[7_001] = -np.inf
    few = thin(curve(values), 100)
    odd = ~np.isfinite(few.values)
    assert few.steps[odd].tolist() == [4_000, 4_499, 7_000, 7_001]
    assert len(few) <= 100


def test_a_curve_of_breaks_alone_is_bounded_too():
    values = np.where(np.arange(10_000) % 2, np.nan, np.inf)
    assert len(thin(curve(values), 100)) <= 100


def test_steps_stay_sorted():
    rng = np.random.default_rng(0)
    values = rng.normal(size=5_000)
    values[rng.integers(0, 5_000, 300)] = np.nan
    few = thin(curve(values), 64)
    assert np.all(np.diff(few.steps.astype(np.int64)) > 0)
