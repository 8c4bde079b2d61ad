"""The rules that turn PyTorch's ops into ours; importing the package fills the table."""

from abridged.graph.aten import elements, layers, places
from abridged.graph.aten.table import ATEN, Lowering

__all__ = ["ATEN", "Lowering", "elements", "layers", "places"]
