"""All factorization methods: importing this fills the table."""

from abridged.factorization import cp, spatial, svd, tt, tucker
from abridged.factorization.decomposition import METHODS

__all__ = ["METHODS", "cp", "spatial", "svd", "tt", "tucker"]
