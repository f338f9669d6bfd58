"""The masked sum is the plain one, to the bit, whoever drops out while enough are left; with fewer there is nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.secure.clients import MaskedRound, plain_sum, random_updates, terms
from trainer.secure.messages import MaskingTerms, Unmasking
from trainer.secure.unmask import UnmaskFailed

NOTHING, KEYS, SHARES, UPDATE, ANSWER = range(5)
"""The last thing that a client does in a round."""


def reached(lasts: tuple[int, ...], step: int) -> list[int]:
    return [client for client, last in enumerate(lasts) if last >= step]


def is_borne(lasts: tuple[int, ...], given: MaskingTerms) -> bool:
    return len(reached(lasts, UPDATE)) >= max(3, given.threshold) and len(reached(lasts, ANSWER)) >= given.threshold


def run(folder: Path, given: MaskingTerms, lasts: tuple[int, ...], seed: int) -> None:
    masked = MaskedRound(given, reached(lasts, KEYS), reached(lasts, SHARES))
    updates = random_updates(given.num_clients, seed)
    survivors = reached(lasts, UPDATE)
    paths = {client: masked.deliver(folder, client, updates[client]) for client in survivors}
    total = masked.unmask(paths, masked.answers(survivors, reached(lasts, ANSWER)))
    for name, expected in plain_sum(updates, survivors).items():
        np.testing.assert_array_equal(total[name], expected, strict=True)


@pytest.mark.parametrize("num", [3, 4])
def test_every_set_of_dropouts_that_the_threshold_bears(tmp_path: Path, num: int) -> None:
    cases = [lasts for lasts in product(range(5), repeat=num) if is_borne(lasts, terms(num))]
    assert len(cases) > num
    for seed, lasts in enumerate(cases):
        run(tmp_path, terms(num), lasts, seed)


def drawn(num: int, given: MaskingTerms, rng: random.Random) -> Iterator[tuple[int, ...]]:
    while True:
        lasts = tuple(rng.choices(range(5), (1, 1, 2, 2, 9), k=num))
        if is_borne(lasts, given):
            yield lasts


@pytest.mark.parametrize("num", [5, 6, 7, 8])
@pytest.mark.parametrize("seed", range(4))
def test_dropouts_at_any_step_among_more_clients(tmp_path: Path, num: int, seed: int) -> None:
    rng = random.Random(100 * num + seed)
    given = terms(num, rng.randint(num // 2 + 1, num))
    for lasts, _ in zip(drawn(num, given, rng), range(5), strict=False):
        run(tmp_path, given, lasts, seed)


def test_one_answer_too_few_unmasks_nothing(tmp_path: Path) -> None:
    masked, paths = five_clients(tmp_path)
    answers = masked.answers(range(4), range(2))
    with pytest.raises(UnmaskFailed, match=r"^2 clients have answered .*, and 3 are needed"):
        masked.unmask(paths, answers)
    # The same answer twice is one.
    twice = [*answers, answers[0].model_copy(update={"client": 4})]
    with pytest.raises(UnmaskFailed, match="2 clients have answered"):
        masked.unmask(paths, twice)


def five_clients(folder: Path) -> tuple[MaskedRound, dict[int, Path]]:
    """Five have shared, three are needed, the last is not in."""
    masked = MaskedRound(terms(5, 3), range(5), range(5))
    updates = random_updates(5, 0)
    return masked, {client: masked.deliver(folder, client, updates[client]) for client in range(4)}


@pytest.mark.parametrize("kind", ["self_masks", "masking_keys"])
def test_answers_that_lack_a_share_unmask_nothing(tmp_path: Path, kind: str) -> None:
    masked, paths = five_clients(tmp_path)
    answers = [answer.model_copy(update={kind: {}}) for answer in masked.answers(range(4), range(3))]
    with pytest.raises(
        UnmaskFailed, match=r"^The masks of node-\d cannot be put together .*: There are 0 shares, and 3 are"
    ):
        masked.unmask(paths, answers)


def swapped(answer: Unmasking) -> Unmasking:
    """An answer whose shares belong to other clients."""
    return answer.model_copy(update={"self_masks": {**answer.self_masks, 0: answer.self_masks[1]}})


def test_one_wrong_share_among_more_than_needed_is_noticed(tmp_path: Path) -> None:
    masked, paths = five_clients(tmp_path)
    answers = masked.answers(range(4), range(4))
    for wrong in range(4):
        given = [swapped(each) if each.client == wrong else each for each in answers]
        with pytest.raises(UnmaskFailed, match=r"The masks of node-0 .*: The shares do not belong together"):
            masked.unmask(paths, given)


def test_a_wrong_share_of_a_masking_key_is_noticed_without_spare_ones(tmp_path: Path) -> None:
    masked, paths = five_clients(tmp_path)
    answers = masked.answers(range(4), range(3))
    wrong = answers[0].model_copy(update={"masking_keys": {4: answers[0].self_masks[0]}})
    with pytest.raises(UnmaskFailed, match=r"node-4.*(do not give that key|do not belong together)"):
        masked.unmask(paths, [wrong, *answers[1:]])


@pytest.mark.parametrize("share", ["", "AAAA", "/" * 44])
def test_a_share_that_is_none_is_noticed(tmp_path: Path, share: str) -> None:
    masked, paths = five_clients(tmp_path)
    answers = masked.answers(range(4), range(3))
    wrong = answers[0].model_copy(update={"self_masks": {**answers[0].self_masks, 2: share}})
    with pytest.raises(UnmaskFailed, match=r"The masks of node-2 cannot be put together .*: A share is not a number"):
        masked.unmask(paths, [wrong, *answers[1:]])


def test_more_clients_than_files_and_generators_run_side_by_side(tmp_path: Path) -> None:
    run(tmp_path, terms(70, 36), (ANSWER,) * 68 + (SHARES,) * 2, 0)
