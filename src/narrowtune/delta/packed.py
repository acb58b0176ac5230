"""Bits packed without loss, so that a delta is small to ship.

Training moves most weights by little: of tuned XOR base, the upper bytes are almost all zero and
the lower ones hold a few bits. Bytes of equal rank are laid together and deflated (zlib, RFC 1950),
which comes close to the entropy of the bits (docs/delta.md). Base values are not needed. In bytes
that are close to random, what occurred before is found by chance alone, at a cost in time and room:
every segment is deflated by the strategy that is best on pieces of it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from narrowtune.core.errors import DeltaError

_LEVEL = 6
_STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE)
_SEGMENT, _PIECE = 2**20, 2**15
_HEADER = b"\x78\x9c"
_MOST = 1100  # bytes that one byte of a deflated stream can stand for: 1032, and a little


def pack(bits: Tensor) -> Tensor:
    """Return integers of any shape and width as one row of bytes; `unpack` gives them back."""
    flat = bits.reshape(-1).numpy()
    planes = flat.view(np.uint8).reshape(flat.size, flat.itemsize).T
    return torch.frombuffer(bytearray(_deflated(list(planes))), dtype=torch.uint8)


def _deflated(planes: Sequence[np.ndarray]) -> bytes:
    """Return one stream of all planes, each segment deflated by the strategy that suits it."""
    parts, checksum = [_HEADER], zlib.adler32(b"")
    for plane in planes:
        data = memoryview(plane.tobytes())
        for start in range(0, len(data), _SEGMENT):
            segment = data[start : start + _SEGMENT]
            parts.append(_blocks(segment, _strategy(segment)))
            checksum = zlib.adler32(segment, checksum)
    end = _blocks(b"", zlib.Z_DEFAULT_STRATEGY, last=True)
    return b"".join([*parts, end, checksum.to_bytes(4, "big")])


def _strategy(segment: memoryview) -> int:
    """Return what deflates pieces from a segment's beginning, middle and end best."""
    places = {0, (len(segment) - _PIECE) // 2, len(segment) - _PIECE}
    pieces = [segment[max(0, place) : max(0, place) + _PIECE] for place in sorted(places)]
    sizes = {each: sum(len(_blocks(piece, each)) for piece in pieces) for each in _STRATEGIES}
    return min(_STRATEGIES, key=lambda each: sizes[each])


def _blocks(data: bytes | memoryview, strategy: int, *, last: bool = False) -> bytes:
    """Return blocks without header and checksum, to which others can be joined unless `last`."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
    return stream.compress(data) + stream.flush(zlib.Z_FINISH if last else zlib.Z_FULL_FLUSH)


def pack_all(bits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return every tensor packed, several at a time: deflating needs no interpreter."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        # By name, so that each is read, or unpacked, when its turn comes.
        return dict(zip(bits, pool.map(lambda name: pack(bits[name]), bits), strict=True))


def is_plausible(num_packed: int, num_bytes: int) -> bool:
    """Whether so many packed bytes can stand for `num_bytes`: nothing is unpacked to find out."""
    return num_bytes <= _MOST * num_packed


class PackedBits(Mapping[str, Tensor]):
    """Packed tensors by name, each unpacked when it is asked for, and not kept.

    Args:
        packed: rows of bytes, by name.
        shapes: of the tensors.
        dtypes: integer dtypes of the tensors.
        source: the file that they are from, for errors.
    """

    def __init__(
        self,
        packed: Mapping[str, Tensor],
        shapes: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, torch.dtype],
        source: str,
    ) -> None:
        self._packed, self._shapes, self._dtypes = packed, shapes, dtypes
        self._source = source

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._packed)

    def __iter__(self) -> Iterator[str]:
        """Iterate over names."""
        return iter(self._packed)

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of that name; nothing is unpacked to find out."""
        return name in self._packed

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor's bits.

        Raises:
            KeyError: there is none of that name.
            DeltaError: the packed bytes are damaged.
        """
        shape, dtype = self._shapes[name], self._dtypes[name]
        num_bytes = math.prod(shape) * dtype.itemsize
        stream = zlib.decompressobj()
        try:
            # One more than is wanted, so that a stream that goes on is seen.
            planes = stream.decompress(self._packed[name].numpy().tobytes(), num_bytes + 1)
            if len(planes) != num_bytes or not stream.eof or stream.unused_data:
                raise zlib.error("not as many bytes as are declared")
        except zlib.error as problem:
            raise DeltaError(
                asked=f"unpack {name} of the delta {self._source}",
                found=str(problem),
                do="fetch the delta again from where it was published",
            ) from None
        ranks = np.frombuffer(planes, np.uint8).reshape(dtype.itemsize, math.prod(shape))
        flat = torch.from_numpy(ranks.T.copy()).reshape(-1)
        return flat.view(dtype).reshape(shape)
