"""Masks: the same for whoever has the key, random for all others, and in pieces of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.trainer.secure.clients import session, terms
from trainer.secure.prg import Mask, Ring, add_masks
from trainer.secure.quantise import Quantiser

KEY = bytes(range(32))


def zeros(*sizes: int) -> dict[str, Ring]:
    return {f"t{i}": np.zeros(size, np.uint32) for i, size in enumerate(sizes)}


def test_a_mask_is_aes_ctr_over_all_tensors_in_the_order_of_their_names() -> None:
    sizes = (3, 0, 70_001, 1)  # more than one block, and no whole number of them
    tensors = dict(reversed(zeros(*sizes).items()))
    add_masks(tensors, [Mask(KEY, 1)])
    stream = Cipher(algorithms.AES(KEY), modes.CTR(bytes(16))).encryptor().update(bytes(4 * sum(sizes)))
    got = np.concatenate([tensors[name] for name in sorted(tensors)])
    np.testing.assert_array_equal(got, np.frombuffer(stream, "<u4"))


def test_opposite_signs_cancel_among_any_number_of_masks() -> None:
    keys = [i.to_bytes(32) for i in range(70)]  # more than run side by side
    tensors = zeros(100)
    add_masks(tensors, [Mask(key, 1) for key in keys])
    assert tensors["t0"].any()
    add_masks(tensors, [Mask(key, -1) for key in reversed(keys)])
    assert not tensors["t0"].any()


def chi_square(tensors: dict[str, Ring]) -> float:
    """Of the bytes against equal chances: 255 on average, standard deviation 22.6."""
    counts = np.bincount(np.concatenate([t.reshape(-1).view(np.uint8) for t in tensors.values()]), minlength=256)
    expected = counts.sum() / 256
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("value", [0.0, 1e-3])
def test_a_masked_update_looks_like_nothing(tmp_path: Path, value: float) -> None:
    given = terms(3)
    sessions = [session(client, given) for client in range(3)]
    roster = [each.public_keys() for each in sessions]
    boxes = [each.seal_shares(roster).sealed for each in sessions]
    sessions[0].take_shares({1: boxes[1][0], 2: boxes[2][0]})
    plain, _ = Quantiser(given, 4.0).encode({"w": np.full((250, 400), value, np.float32)}, 1.0)
    masked = {name: values.copy() for name, values in plain.items()}
    sessions[0].mask(masked)
    assert chi_square(plain) > 1e6
    assert chi_square(masked) < 400  # keys are fresh: by chance, once in 10 ** 8 runs
    assert (masked["w"] == plain["w"]).mean() < 1e-3
