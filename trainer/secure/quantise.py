"""Updates as whole numbers, whose sum is exact and can be masked: Z_2^32, 4 bytes a parameter as float32 has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.federated.encoding import blocks_of
from trainer.secure.messages import MaskingTerms
from trainer.secure.prg import Ring
from trainer.weights import Weights

LARGEST = 2**31 - 1
"""Of what a sum may reach, in either direction: it is read as a signed number of 32 bits."""


class NotFinite(ValueError):
    """An update holds NaN or infinite values, and no number stands for those. The text is a sentence."""


class Quantiser:
    """q = round(clip(w * delta, -clip, clip) * step) with step = floor((2^31 - 1) / num_clients) / clip.

    Of the clients that were asked all can be at the clip and the sum does not overflow. A sum of quantised updates is
    exact; what it decodes to is off by half of 1 / step for each client at most, and by what was cut.
    """

    def __init__(self, terms: MaskingTerms, clip: float) -> None:
        """`clip` is the largest change of a parameter, `SecureAggregation.clip`."""
        self.clip = clip
        self.step = LARGEST // terms.num_clients / clip

    def encode(self, delta: Mapping[str, npt.NDArray[Any]], factor: float) -> tuple[dict[str, Ring], int]:
        """Return `factor` * `delta` quantised, by name, and how many elements were cut to the clip.

        Memory: the result, as large as float32 is. Raises NotFinite.
        """
        encoded, num_saturated = {}, 0
        for name in sorted(delta):
            encoded[name] = np.empty(delta[name].shape, dtype=np.uint32)
            for source, target in zip(blocks_of(delta[name]), blocks_of(encoded[name]), strict=True):
                values = source.astype(np.float64)
                if not np.isfinite(values).all():
                    raise NotFinite(
                        f"Tensor '{name}' of the update holds NaN or infinite values: lower the learning rate."
                    )
                values *= factor
                num_saturated += int(np.count_nonzero(np.abs(values) > self.clip))
                np.clip(values, -self.clip, self.clip, out=values)
                values *= self.step
                target[:] = np.rint(values, out=values).astype(np.int32).view(np.uint32)
        return encoded, num_saturated

    def decode(self, total: Mapping[str, Ring]) -> Weights:
        """Return the sum of w_i * delta_i of a sum of quantised updates, float64."""
        decoded: Weights = {}
        for name, values in total.items():
            decoded[name] = np.asarray(values, order="C").view(np.int32).astype(np.float64)
            decoded[name] /= self.step
        return decoded
