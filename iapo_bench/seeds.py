"""Every random number comes from one seed through named, independent streams.

Data order, sampling, initialisation and a method's own random draws must not share a stream: otherwise a method that
draws one number more than another would see other data, and the comparison between them would be one of luck.
"""

import zlib
from typing import TYPE_CHECKING

import numpy as np

from iapo_bench.errors import UserError

if TYPE_CHECKING:
    import torch


def stream_seed(seed: int, stream: str, *keys: int) -> int:
    """A 63-bit seed for `stream` (a name such as "data") at `keys` (step, rank, round, ...). Raises UserError for a
    negative seed."""
    if seed < 0:
        raise UserError(f"the seed {seed} is below 0: choose a whole number from 0")
    sequence = np.random.SeedSequence([seed, zlib.crc32(stream.encode()), *keys])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def numpy_stream(seed: int, stream: str, *keys: int) -> np.random.Generator:
    """A NumPy generator for the stream."""
    return np.random.default_rng(stream_seed(seed, stream, *keys))


def torch_stream(seed: int, stream: str, *keys: int) -> "torch.Generator":
    """A CPU torch generator for the stream."""
    import torch  # here: measuring needs streams but not torch

    return torch.Generator().manual_seed(stream_seed(seed, stream, *keys))


def row_uniforms(row_seeds: list[int], width: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 (rows, width); a row depends on its own seed only.

    A row's first numbers are the same for every width: neither padding nor the other rows of a batch can change them.
    """
    out = np.empty((len(row_seeds), width))
    for row, row_seed in enumerate(row_seeds):
        out[row] = np.random.default_rng(row_seed).random(width)
    return out
