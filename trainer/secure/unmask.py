"""The server's part: masked updates at the door, and the plain sum of those that are in. Torch-free."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from trainer.federated.aggregate import FILES_AT_A_TIME, blocks
from trainer.federated.check import UpdateRefused, check_header
from trainer.federated.encoding import expected_update
from trainer.sections.federated import Federated
from trainer.secure.keys import agree, public_key
from trainer.secure.messages import MaskingTerms, PublicKeys, Unmasking
from trainer.secure.prg import Mask, Ring, add_masks
from trainer.secure.shamir import join
from trainer.weights import Header, NotSafetensors, map_weights, read_header

MASK_PURPOSE = b"trainmaster secure aggregation pairwise mask v1"


class UnmaskFailed(ValueError):
    """The sum cannot be had from these answers. The text is a sentence for the job's page."""


def expected_masked(weights: Header, federated: Federated) -> Header:
    """Return what a masked update to these weights must hold, to the byte: as a plain one, in elements of Z_2^32."""
    return {name: ("U32", shape) for name, (_, shape) in expected_update(weights, federated).items()}


def check_masked(path: Path, expected: Header) -> None:
    """Raise UpdateRefused unless the file holds the tensors of `expected_masked`.

    Their values look random whatever was masked: that they are finite, the client has checked, and how long they are nobody knows.
    """
    try:
        header = read_header(path)
    except NotSafetensors as error:
        raise UpdateRefused(f"The update is not a safetensors file: {error.__cause__}.") from error
    check_header(header, expected)


def pairwise_mask(own: int, masking: X25519PrivateKey, other: PublicKeys) -> Mask:
    """Return the mask that client `own` adds for another: both have the same key, and the signs cancel in the sum.

    Raises ValueError where the other's key is unusable.
    """
    return Mask(agree(masking, other.masking, MASK_PURPOSE), 1 if own < other.client else -1)


def unmasked_sum(
    paths: Mapping[int, Path],
    roster: Sequence[PublicKeys],
    shared: set[int],
    survivors: Sequence[int],
    answers: Sequence[Unmasking],
    terms: MaskingTerms,
) -> dict[str, Ring]:
    """Return the sum of the survivors' quantised updates, exactly (Bonawitz et al. 2017, figure 4, round 4).

    `paths` are the survivors' masked updates by client, which have passed `check_masked`. `roster` are the keys that all clients
    saw, `shared` the clients whose shares all others got: each has masked with every one of them. `answers` are what survivors
    gave for `survivors`. Of each survivor the self mask is taken away, and of each that has dropped out after sharing what the
    survivors' masks with it left. Raises UnmaskFailed where shares are too few or do not belong together.

    Memory: the sum, as large as one float32 copy of the update; files are mapped.
    """
    keys = {each.client: each for each in roster}
    given = sorted((each for each in answers if each.client in set(survivors)), key=lambda each: each.client)
    if len(given) < terms.threshold:
        raise UnmaskFailed(
            f"{len(given)} clients have answered with their shares of the masks, and {terms.threshold} are needed to unmask the sum."
        )
    masks = [
        Mask(_secret(keys[client], {each.client: each.self_masks.get(client) for each in given}, terms), -1)
        for client in sorted(survivors)
    ]
    for dropped in sorted(shared.difference(survivors)):
        shares = {each.client: each.masking_keys.get(dropped) for each in given}
        masking = X25519PrivateKey.from_private_bytes(_secret(keys[dropped], shares, terms))
        if public_key(masking) != keys[dropped].masking:
            raise UnmaskFailed(
                f"The shares of {keys[dropped].node}'s masking key do not give that key: a client has sent a wrong one."
            )
        # What the dropped client would have added for each survivor is minus what that one has added for it.
        masks += [pairwise_mask(dropped, masking, keys[survivor]) for survivor in sorted(survivors)]
    total = _sum_files([paths[client] for client in sorted(survivors)])
    add_masks(total, masks)
    return total


def _secret(owner: PublicKeys, given: Mapping[int, str | None], terms: MaskingTerms) -> bytes:
    try:
        return join({holder: b64decode(share) for holder, share in given.items() if share is not None}, terms.threshold)
    except ValueError as error:
        raise UnmaskFailed(f"The masks of {owner.node} cannot be put together from its shares: {error}") from None


def _sum_files(paths: Sequence[Path]) -> dict[str, Ring]:
    """Add the files' tensors in Z_2^32, many files at a time, block by block, as `weighted_sum` does."""
    header = read_header(paths[0])
    total: dict[str, Ring] = {name: np.zeros(shape, dtype=np.uint32) for name, (_, shape) in header.items()}
    for first in range(0, len(paths), FILES_AT_A_TIME):
        files = [map_weights(path) for path in paths[first : first + FILES_AT_A_TIME]]
        for name, values in total.items():
            flat = values.reshape(-1)
            flats = [file[name].reshape(-1) for file in files]
            for start, stop in blocks(flat.size):
                for each in flats:
                    flat[start:stop] += each[start:stop]
    return total
