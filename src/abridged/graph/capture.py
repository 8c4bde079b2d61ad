"""From a module to a Graph, by way of torch.export. The only place that knows torch.export."""

from __future__ import annotations

import io
import logging
import operator
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

from abridged.errors import InputError, UnsupportedError
from abridged.graph.archive import data_alone
from abridged.graph.aten import Lowering
from abridged.graph.aten.places import WRITE_BACK
from abridged.graph.aten.table import arguments, rule_of
from abridged.graph.graph import Graph, Structure, Value
from abridged.graph.source import blame, line_of
from abridged.graph.structure import flatten

Example = Tensor | tuple[Any, ...]

MUTATIONS = (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION)

# What only checks what is true anyway, or says nothing about values.
NOTHING = frozenset({"_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range_for_size"})

# What reads a tensor's shape and dtype, never its elements: the result is known at capture.
FACTORIES = frozenset(
    ["new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like", "empty_like"]
)

# What may return its input itself, although its schema does not say so.
MAYBE_SAME = frozenset({"dropout", "feature_dropout", "alpha_dropout", "type_as", "meshgrid"})


def capture(model: nn.Module | ExportedProgram, example: Example | None = None) -> Graph:
    """What a module computes for inputs like `example` (a tensor, or a tuple of its positional inputs), in evaluation mode.

    Weights are referenced, never copied; the training mode of every submodule stays as it was. An ExportedProgram brings its
    own example. Raises `InputError` when the module cannot be traced with that example, `UnsupportedError` when it
    uses an op that the Graph does not have; both name the line of the user's code."""
    program = model if isinstance(model, ExportedProgram) else _export(model, example)
    try:
        return _multiplied(_Reading(program, functional=False).graph())
    except _NeedsRewritingError:
        return _multiplied(_Reading(_rewritten(program), functional=True).graph())


def _multiplied(graph: Graph) -> Graph:
    """The graph, if what it multiplies has one dtype: torch.export does not notice integers times floats, forward does."""
    for node in graph.nodes:
        if node.op in ("linear", "matmul", "conv", "conv_transpose"):
            x, weight = (str(graph.values[str(name)].dtype).removeprefix("torch.") for name in node.inputs[:2])
            if x != weight:
                where = " ".join(part for part in (node.path, node.source) if part) or "the model"
                raise InputError(f"{where}: forward does not accept the example: {node.op} of {x} and {weight}")
    return graph


def load_program(path: Path | str) -> ExportedProgram:
    """A program saved by torch.export.save. Raises `InputError` if it cannot be read without running code of its maker."""
    archive = data_alone(Path(path))
    with _quietly():
        try:
            return torch.export.load(archive)
        except Exception as error:  # whatever torch says of a file that it cannot read
            raise InputError(f"{path}: not a program of torch.export: {_first_line(error)}") from error


def runnable(program: ExportedProgram) -> nn.Module:
    """The program as a module; its mode is that of its export, and what asks it for another is not refused."""
    module = program.module()
    for name in ("train", "eval"):
        vars(module).pop(name, None)
    return module


class _NeedsRewritingError(Exception):
    """The program changes a tensor that is read under another name later, or uses an op that PyTorch can express by others."""


# ---- torch.export ----------------------------------------------------------------------------------------------------


def _export(model: nn.Module, example: Example | None) -> ExportedProgram:
    if not isinstance(model, nn.Module):
        raise InputError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
    args = _arguments(example)
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with _quietly(), torch.no_grad():
            return torch.export.export(model, args, strict=False)
    except Exception as error:  # whatever the user's forward raises, or torch says of it
        raise _refusal(model, args, error) from error
    finally:
        for module, mode in training.items():
            module.training = mode


def _arguments(example: Example | None) -> tuple[Any, ...]:
    args = (example,) if isinstance(example, Tensor) else example
    if not isinstance(args, tuple):
        raise InputError(f"the example must be a tensor or a tuple of the model's inputs, not {type(example).__name__}")
    for leaf in flatten(args)[0]:
        if not isinstance(leaf, Tensor):
            raise InputError(f"the example holds a {type(leaf).__name__}: the model's inputs must be tensors")
    return args


def _refusal(model: nn.Module, args: tuple[Any, ...], error: Exception) -> InputError:
    """Whose fault it was: the example's, if the forward does not run with it either; else the line's that cannot be traced."""
    try:
        with _quietly(), torch.no_grad():
            model(*args)
    except Exception as own:  # whatever the user's forward raises
        return InputError(f"{blame(own, model)}: forward does not accept the example: {_first_line(own)}")
    why = _first_line(error)
    if "DataDependent" in type(error).__name__:
        why = "what runs, or a shape, depends on the values in a tensor; use torch.where and fixed sizes"
    return InputError(f"{blame(error, model)}: torch.export cannot trace this line: {why}")


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


@contextmanager
def _quietly() -> Iterator[None]:
    """No logs and warnings of torch about its own insides, and no fused kernels in place of the modules' own forward."""
    fast, disabled = torch.backends.mha.get_fastpath_enabled(), logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # it prints the whole program when it gives up
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            logging.disable(disabled)


def _rewritten(program: ExportedProgram) -> ExportedProgram:
    """The same without changes in place, and with PyTorch's own definition of every op that we have no rule for."""
    definitions = torch.export.default_decompositions()
    replaced: set[OpOverload] = set()
    while True:
        graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, fx.GraphModule)]
        ops = {node.target for graph in graphs for node in graph.nodes if isinstance(node.target, OpOverload)}
        unknown = {op for op in ops if rule_of(op) is None and op in definitions}
        if replaced and unknown <= replaced:
            return program
        replaced |= unknown
        with _quietly():
            program = program.run_decompositions({op: definitions[op] for op in replaced})
        if not unknown:
            return program


# ---- reading a program -----------------------------------------------------------------------------------------------


class _Reading:
    """One walk through a program. What is known at capture (masks made of zeros, ranges) is computed on the way with
    PyTorch's own ops, so `known` holds a Value for what flows, and a tensor, number or None for what is known."""

    def __init__(self, program: ExportedProgram, *, functional: bool) -> None:
        self.program = program
        self.functional = functional
        self.build = Lowering()
        self.known: dict[fx.Node, Any] = {}
        self.roots: dict[fx.Node, fx.Node] = {}  # whose memory a result may share
        self.literals: dict[tuple[fx.Node, int], Value] = {}
        self.weights: dict[object, Value] = {}
        self.keys: defaultdict[object, list[str]] = defaultdict(list)  # of the same tensor
        for key, tensor in program.state_dict.items():
            if isinstance(tensor, Tensor):
                self.keys[_identity(tensor)].append(key)

    def graph(self) -> Graph:
        if mutated := [spec.target for spec in self.program.graph_signature.output_specs if spec.kind in MUTATIONS]:
            raise UnsupportedError(
                f"forward changes '{mutated[0]}' in place: a deployed network keeps no state; return it"
            )
        given = self._placeholders()
        results = self._block(self.program.graph_module, given)
        count = len(self.program.graph_signature.output_specs)
        inputs, input_structure = self._structure(self.program.call_spec.in_spec, self.user_inputs, "input")
        outputs, output_structure = self._structure(self.program.call_spec.out_spec, results[:count], "output")
        self.build.inputs = [value.name for value in inputs]
        return self.build.finish(outputs, input_structure["tuple"][0], output_structure)

    # -- inputs and outputs --------------------------------------------------------------------------------------------

    def _placeholders(self) -> list[Any]:
        """What each placeholder of the program stands for."""
        self.user_inputs: list[Any] = []
        given: list[Any] = []
        nodes = self.program.graph.find_nodes(op="placeholder")
        for node, spec in zip(nodes, self.program.graph_signature.input_specs, strict=True):
            if spec.kind == InputKind.USER_INPUT:
                given.append(self._user_input(node) if isinstance(spec.arg, TensorArgument) else spec.arg.value)
                self.user_inputs.append(given[-1])
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                given.append(self._weight(str(spec.target)))
            elif spec.kind == InputKind.CONSTANT_TENSOR:
                given.append(self.program.constants[str(spec.target)].detach().clone())
            else:
                raise UnsupportedError(f"forward uses '{spec.target}', which is neither a tensor nor a module")
        return given

    def _user_input(self, node: fx.Node) -> Value:
        ((shape, dtype),) = self._results(node)
        return self.build.input(node.name, shape, dtype)

    def _weight(self, key: str) -> Value:
        """The Constant of a parameter or buffer: one for all keys of the same tensor."""
        state = self.program.state_dict
        tensor = state[key] if key in state else self.program.constants[key]
        same = _identity(tensor)
        if same not in self.weights:
            self.weights[same] = self.build.constant(tensor, tuple(self.keys[same]), name=key)
        return self.weights[same]

    def _structure(self, spec: pytree.TreeSpec, leaves: Sequence[Any], which: str) -> tuple[list[Value], Structure]:
        """The Values among the leaves in the order in which the user's structure names them, and that structure."""
        tree = pytree.tree_unflatten([_Leaf(leaf) if leaf is not None else None for leaf in leaves], spec)
        found, structure = flatten(tree)
        values = [self._value(leaf.content) if isinstance(leaf, _Leaf) else None for leaf in found]
        for value, leaf in zip(values, found, strict=True):
            if not isinstance(value, Value):
                raise UnsupportedError(
                    f"an {which} of forward is a {_kind(leaf)}: it must be a tensor, or nested tensors"
                )
        if which == "input" and structure["tuple"][1] != {"dict": {}}:
            raise UnsupportedError("the program takes keyword arguments: export it with positional ones")
        return [value for value in values if value is not None], structure

    def _value(self, content: Any, memo: tuple[fx.Node, int] | None = None) -> Any:
        """A Value for what is known, too: a literal constant, which later changes in place cannot reach."""
        if not isinstance(content, Tensor):
            return content
        if memo is None:
            return self.build.constant(content.detach().clone())
        if memo not in self.literals:
            self.literals[memo] = self._value(content)
        return self.literals[memo]

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def _block(self, module: fx.GraphModule, given: Sequence[Any]) -> list[Any]:
        """Walk through one graph of the program; its outputs."""
        inputs = iter(given)
        for position, node in enumerate(module.graph.nodes):
            self._locate(node)
            if node.op == "placeholder":
                self.known[node] = next(inputs)
            elif node.op == "get_attr":
                self.known[node] = operator.attrgetter(node.target)(module)
            elif node.op == "output":
                return list(fx.node.map_arg(node.args[0], lambda n: self._read(n)))
            elif node.target is operator.getitem:
                self._getitem(node)
            elif isinstance(node.target, HigherOrderOperator):
                self.known[node] = self._nested(node)
            elif isinstance(node.target, OpOverload):
                self._call(node, node.target, position)
            else:
                raise self._dynamic()
            self.roots.setdefault(node, self._root(node))
        raise AssertionError("a graph of torch.export ends with its output")

    def _locate(self, node: fx.Node) -> None:
        stack = node.meta.get("nn_module_stack")
        self.build.path = str(list(stack.values())[-1][0]).partition("@")[0] if stack else ""
        self.build.source = line_of(node.meta.get("stack_trace") or "")

    def _read(self, node: fx.Node) -> Any:
        """What a node's result is, with a Value for every tensor."""
        content = self.known[node]
        return self._value(content, (node, content._version)) if isinstance(content, Tensor) else content

    def _getitem(self, node: fx.Node) -> None:
        if not node.users:  # statistics that nobody reads
            return
        items, index = self.known[node.args[0]], node.args[1]  # type: ignore[index]
        if index >= len(items):  # type: ignore[operator]
            raise self.build.refuse(f"result {index} of {node.args[0]} is not in the op set")
        self.known[node] = items[index]

    def _nested(self, node: fx.Node) -> list[Any]:
        """A block under no_grad, or under autocast that is off: its nodes, in place."""
        name = str(node.target)
        if name == "wrap_with_set_grad_enabled":
            _, submodule, *args = node.args
        elif name == "wrap_with_autocast" and not node.args[2]:
            *_, submodule = node.args[:5]
            args = list(node.args[5:])
        else:
            raise self.build.refuse(f"{name} is not in the op set")
        return self._block(self.known[submodule], [self.known[arg] for arg in args])  # type: ignore[index]

    def _call(self, node: fx.Node, op: OpOverload, position: int) -> None:
        args = arguments(op, node.args, node.kwargs)
        contents = [self.known[n] for n in node.all_input_nodes]
        name = _name(node)
        if name in NOTHING:
            return
        if name in FACTORIES or not any(isinstance(c, Value | tuple | list) for c in contents):
            self.known[node] = self._evaluate(node, op)
            return
        target = _written(op, args)
        if target is None:
            self.known[node] = self._apply_rule(node, op, args)
        else:
            others = self._seen_later(target, position)
            changed = self.build.cast(self._apply_rule(node, op, args), self._dtype(target))
            self.known[node] = self.known[target] = changed
            if others:
                self._write_back(target)
                self._look_again(target, others, position)

    def _evaluate(self, node: fx.Node, op: OpOverload) -> Any:
        """Run an op whose result is known now."""
        if torch.Tag.nondeterministic_seeded in op.tags:
            raise self.build.refuse(f"{op} draws random numbers: a deployed network must be deterministic")

        def plain(n: fx.Node) -> Any:
            content = self.known[n]
            return torch.empty(content.shape, dtype=content.dtype) if isinstance(content, Value) else content

        result = op(*fx.node.map_arg(node.args, plain), **fx.node.map_arg(node.kwargs, plain))
        return result.zero_() if "empty" in op._schema.name else result

    def _apply_rule(self, node: fx.Node, op: OpOverload, args: Mapping[str, Any]) -> Any:
        rule = rule_of(op)
        if rule is None:
            if not self.functional:
                raise _NeedsRewritingError
            raise self.build.refuse(f"{op} is not in the op set")
        results = self._results(node)
        self.build.shapes, self.build.dtypes = tuple(s for s, _ in results), tuple(d for _, d in results)
        try:
            values = rule(self.build, op, fx.node.map_arg(dict(args), self._read))
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            why = str(error).partition("\n")[0]  # a form of the op that its rule was not written for
            raise self.build.refuse(f"this form of {op} is not in the op set: {why}") from error
        self._check_results(op, values, results)
        return values

    def _check_results(
        self, op: OpOverload, values: Any, results: Sequence[tuple[tuple[int, ...], torch.dtype]]
    ) -> None:
        """What the rule made has the shape and dtype that PyTorch says, or the rule is wrong."""
        for value, (shape, dtype) in zip(values if isinstance(values, tuple) else (values,), results, strict=False):
            same = value.shape == shape and (value.dtype == dtype or op._schema.is_mutable)
            if not same:
                made, said = f"{value.dtype} {value.shape}", f"{dtype} {shape}"
                raise self.build.refuse(f"{op}: the rule makes {made}, PyTorch {said}; please report this")

    def _results(self, node: fx.Node) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each tensor that a node gives."""
        tensors = [t for t in pytree.tree_leaves(node.meta["val"]) if isinstance(t, Tensor)]
        if any(not isinstance(size, int) for t in tensors for size in t.shape):
            raise self._dynamic()
        return [(tuple(t.shape), t.dtype) for t in tensors]

    def _dtype(self, node: fx.Node) -> torch.dtype:
        return self._results(node)[0][1]

    def _dynamic(self) -> InputError:
        where = self.build.source or "the program"
        return InputError(f"{where}: a shape depends on the values in a tensor, or is dynamic; use fixed sizes")

    # -- changes in place ----------------------------------------------------------------------------------------------

    def _root(self, node: fx.Node) -> fx.Node:
        """The node whose memory a result may share."""
        if not node.all_input_nodes or not self._aliases(node):
            return node
        return self.roots[node.all_input_nodes[0]]

    def _aliases(self, node: fx.Node) -> bool:
        if not isinstance(node.target, OpOverload):
            return True
        return _name(node) in MAYBE_SAME or any(r.alias_info for r in node.target._schema.returns)

    def _seen_later(self, target: fx.Node, position: int) -> list[fx.Node]:
        """The other names of a changed tensor's memory, if one of them is read after the change; each must be a sure view."""
        root = self.roots[target]
        order = {n: i for i, n in enumerate(target.graph.nodes)}
        others = [n for n, r in self.roots.items() if r is root and n is not target]
        read = any(order.get(user, -1) > position for n in others for user in n.users)
        sure = all(n is root or _name(n) in WRITE_BACK or _name(n).endswith("_") for n in (*others, target))
        if root.op == "placeholder" or (read and not sure):
            if self.functional:
                raise self.build.refuse(f"'{target}' is changed in place, and read under another name")
            raise _NeedsRewritingError
        return others if read else []

    def _write_back(self, view: fx.Node) -> None:
        """Put a view's new content into what it views, up to the root."""
        while view is not self.roots[view]:
            whole = view.all_input_nodes[0]
            args = arguments(view.target, view.args, view.kwargs)  # type: ignore[arg-type]
            if not _name(view).endswith("_"):
                back = WRITE_BACK[_name(view)]
                self.known[whole] = back(self.build, self._read(whole), self._read(view), *list(args.values())[1:])
            else:
                self.known[whole] = self.known[view]
            view = whole

    def _look_again(self, changed: fx.Node, others: Sequence[fx.Node], position: int) -> None:
        """Take every other view of a changed root anew."""
        for node in others:
            if node is self.roots[node] or self._views(changed, node):
                continue
            if _name(node).endswith("_"):
                self.known[node] = self.known[node.all_input_nodes[0]]
            else:
                self._call(node, node.target, position)  # type: ignore[arg-type]

    def _views(self, view: fx.Node, whole: fx.Node) -> bool:
        """Is `whole` on the way from a view to its root: it has its new content already."""
        while view is not self.roots[view] and view is not whole:
            view = view.all_input_nodes[0]
        return view is whole


class _Leaf:
    """A leaf that no pytree and no structure looks into."""

    def __init__(self, content: Any) -> None:
        self.content = content


def _kind(leaf: Any) -> str:
    return type(leaf.content if isinstance(leaf, _Leaf) else leaf).__name__


def _identity(tensor: Tensor) -> object:
    """Equal for the same elements in the same memory."""
    pointer = tensor.data_ptr()
    return (pointer, tensor.shape, tensor.stride(), tensor.dtype) if pointer else id(tensor)


def _name(node: fx.Node) -> str:
    """The name of an ATen op, without its overload; empty for anything else."""
    return node.target._schema.name.partition("::")[2] if isinstance(node.target, OpOverload) else ""


def _written(op: OpOverload, args: Mapping[str, Any]) -> fx.Node | None:
    """The argument that an op changes in place."""
    names = (a.name for a in op._schema.arguments if a.alias_info is not None and a.alias_info.is_write)
    return next((args[name] for name in names), None)
