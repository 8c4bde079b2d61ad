"""How each op of the Graph is said in ONNX: one entry of EMIT per op, with the same inputs and attributes as its meaning.

A rule adds ONNX nodes by calling the emitter, `e("Relu", x)`, and returns the name of its result (a tuple of names when the op
has several). What ONNX has no op for is composed of ops it has; ONNX Runtime fuses much of it again.
"""

from abridged.targets.onnx_emitter import EMIT
from abridged.targets.onnx_ops import elementwise, layers, places, reductions

__all__ = ["EMIT", "elementwise", "layers", "places", "reductions"]
