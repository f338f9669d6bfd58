import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.protocol import Points, SeriesHead
from webapp.telemetry.packing import (
    CHUNK_POINTS,
    Pack,
    from_columns,
    join_packs,
    json_values,
    split_pack,
    to_chunk,
    unpack_points,
)

points = st.tuples(
    st.integers(0, 2**32 - 1), st.integers(0, 2**52), st.floats(allow_nan=True, allow_infinity=True, width=64)
)


def pack_of(rows: list[tuple[int, int, float]]) -> Pack:
    steps, times, values = zip(*rows, strict=True)
    return Pack(np.array(steps, np.uint32), np.array(times, np.int64), np.array(values, np.float64))


def assert_same(left: Pack, right: Pack) -> None:
    assert left.steps.tolist() == right.steps.tolist()
    assert left.times_ms.tolist() == right.times_ms.tolist()
    assert left.values.tobytes() == right.values.tobytes()  # NaN payloads and signed zeros too


@given(st.lists(points, min_size=1, max_size=60))
def test_chunks_give_back_the_same_points_bit_by_bit(rows):
    pack = pack_of(rows)
    chunks = [to_chunk(piece, series_id=1, seq=1) for piece in split_pack(pack)]
    back = join_packs([from_columns(c.base_time_ms, c.steps, c.times, c.values) for c in chunks])
    assert_same(back, pack)
    assert sum(c.count for c in chunks) == len(pack)
    assert min(c.first_step for c in chunks) == pack.steps.min()
    assert max(c.last_step for c in chunks) == pack.steps.max()


def test_a_long_pack_is_cut_into_equal_rows():
    n = CHUNK_POINTS + 1
    pack = Pack(np.arange(n, dtype=np.uint32), np.arange(n, dtype=np.int64), np.zeros(n))
    assert [len(piece) for piece in split_pack(pack)] == [CHUNK_POINTS // 2 + 1, CHUNK_POINTS // 2]


def test_the_layout_of_the_wire_is_steps_times_values():
    data = (
        np.array([1, 2], "<u4").tobytes()
        + np.array([10, 20], "<u4").tobytes()
        + np.array([0.5, np.nan], "<f8").tobytes()
        + np.array([7], "<u4").tobytes()
        + np.array([30], "<u4").tobytes()
        + np.array([-np.inf], "<f8").tobytes()
    )
    heads = [SeriesHead(name="a", source="s", count=2), SeriesHead(name="b", source="s", count=1)]
    (a, _, first), (b, _, second) = unpack_points(Points(attempt_id=1, base_time_ms=1000, series=heads), data)
    assert (a, b) == ("a", "b")
    assert_same(first, pack_of([(1, 1010, 0.5), (2, 1020, np.nan)]))
    assert_same(second, pack_of([(7, 1030, -np.inf)]))


@pytest.mark.parametrize(("size", "base"), [(15, 0), (17, 0), (0, 0), (16, -1), (16, 2**53)])
def test_data_that_does_not_fit_its_head_is_refused(size, base):
    head = Points(attempt_id=1, base_time_ms=base, series=[SeriesHead(name="a", source="s", count=1)])
    with pytest.raises(ValueError, match=r"bytes of points|no Unix time"):
        unpack_points(head, bytes(size))


def test_json_has_words_for_what_is_no_number():
    assert json_values(np.array([1.5, np.nan, np.inf, -np.inf])) == [1.5, "NaN", "Infinity", "-Infinity"]
