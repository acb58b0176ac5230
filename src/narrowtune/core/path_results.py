"""How a run's training computes: what of the fast path it takes, and how that compares."""

from __future__ import annotations

from narrowtune.core.values import Value


class SharingEstimate(Value):
    """What the rows of a micro-batch share, and what it saves: means over some drawn batches.

    Attributes:
        positions: that the model computes; `positions_plain` row by row, padding included.
        pictures: that go through the tower; `pictures_plain` row by row. 0 where what the tower
            makes of a picture is kept while training.
        factor: FLOPs of a training pass row by row, in those of the pass as it is laid out. The
            tower is in both, unless what it makes of a picture is kept.
    """

    positions: float
    positions_plain: float
    pictures: float
    pictures_plain: float
    factor: float


class FastPath(Value):
    """What a run's training takes where it is exact and quicker.

    Attributes:
        packing: rows laid out anew, where that is cheaper; without it the rest is off but pictures.
        products: attention by plain products, on short lines.
        pictures_kept: what a frozen tower makes of a picture is looked up.
        compiled: the language model's layers.
    """

    packing: bool
    products: bool
    pictures_kept: bool
    compiled: bool


class Comparison(Value):
    """A way of computing beside the plain path: used where `error` is within `limit`.

    The relative difference of the first rows' loss or of their gradients, whichever is larger.
    `float32_error` is that in fp32, asked where bf16's is beyond its limit; then it decides.
    """

    used: bool
    error: float
    limit: float
    seconds: float
    float32_error: float | None = None
