"""A traced call as models of OpenVINO's, for a CPU: a set for each module, its weights inside.

OpenVINO knows values and no places, so a trace is cut where it writes into a tensor: what lies
between is OpenVINO's, the writing is torch's, in the order of the trace. A trace is converted once,
and compiled for each module with its weights as constants, which OpenVINO lays out anew: a second
copy of them in memory. Its own backend of torch.compile is not used: it cannot take a step of ours
(torch 2.13, OpenVINO 2026.4), and computes in few bits unless told otherwise.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.split_module import split_module

Tensors = list[torch.Tensor]
_TYPES = {
    torch.float32: "f32",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "boolean",
}
_SAMPLE = 256  # numbers of a weight that are looked at for whether it is still the same


class OpenVino:
    """Compiles by OpenVINO.

    Raises:
        ImportError: it is not installed.
    """

    name = "openvino"
    by_sums = False

    def __init__(self) -> None:
        import openvino.frontend.pytorch.fx_decoder  # noqa: F401

    def ways(self) -> dict[Any, Callable[..., Any]]:
        """What a trace is to make of operators: it leaves them as they are."""
        return {}

    def make(
        self, graph: fx.GraphModule, stand_ins: Sequence[Any], weights: int
    ) -> Callable[[nn.Module, Tensors], Callable[..., Any]]:
        """What makes a module's call of its weights, which are the last `weights` inputs.

        Raises:
            NotImplementedError: a trace that cannot be cut.
            Exception: whatever OpenVINO raises at what it does not know.
        """
        inputs = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
        places = {name: place for place, name in enumerate(inputs[len(inputs) - weights :])}
        precision = _TYPES[stand_ins[0].dtype]
        whole = _cut(graph)
        converted = {
            node.target: _Converted.of(
                getattr(whole, node.target),
                [places.get(each.name) for each in node.args],
                precision,
            )
            for node in whole.graph.nodes
            if node.op == "call_module" and _is_pure(getattr(whole, node.target))
        }
        made: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()

        def bind(module: nn.Module, own: Tensors) -> Callable[..., Any]:
            mark = [_mark(weight) for weight in own]
            if module not in made or made[module][0] != mark:
                inside: dict[str, Any] = dict(whole.named_children())
                inside |= {name: each.compiled(own) for name, each in converted.items()}
                made[module] = mark, fx.GraphModule(inside, whole.graph)
            run = made[module][1]
            return lambda *tensors: run(*tensors, *own)

        return bind


@dataclass(frozen=True)
class _Converted:
    """A piece of a trace as OpenVINO's model.

    Attributes:
        model: `openvino.Model`, its weights as inputs.
        weights: of each input, its place among a module's weights; None for what is no weight.
        precision: in which it computes.
    """

    model: Any
    weights: list[int | None]
    precision: str

    @classmethod
    def of(cls, piece: fx.GraphModule, weights: list[int | None], precision: str) -> _Converted:
        import openvino
        from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

        frontend = openvino.frontend.FrontEndManager().load_by_framework("pytorch")
        decoder = TorchFXPythonDecoder(piece)  # must live until the conversion has been made
        try:
            model = frontend.convert(frontend.load(decoder))
        except Exception as error:  # of a kind of its own, which has moved between versions
            missing = re.search(r"No conversion rule found for operations: (.*)", str(error))
            what = missing[1] if missing else "a part of the step"
            raise NotImplementedError(f"OpenVINO cannot convert {what}") from error
        stand_ins = [node.meta["val"] for node in piece.graph.nodes if node.op == "placeholder"]
        for place, value in zip(model.inputs, stand_ins, strict=True):
            shape = [size if isinstance(size, int) else -1 for size in value.shape]
            place.get_node().set_element_type(getattr(openvino.Type, _TYPES[value.dtype]))
            place.get_node().set_partial_shape(openvino.PartialShape(shape))
        model.validate_nodes_and_infer_types()
        return cls(model, weights, precision)

    def compiled(self, own: Tensors) -> _Compiled:
        """The same with a module's weights as constants."""
        import openvino

        model = self.model.clone()
        for place, number in zip(list(model.inputs), self.weights, strict=True):
            if number is None:
                continue
            constant = openvino.op.Constant(_shared(own[number]), shared_memory=True)
            parameter = place.get_node()
            for reader in place.get_target_inputs():
                reader.replace_source_output(constant.output(0))
            model.remove_parameter(parameter)
        model.validate_nodes_and_infer_types()
        settings = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = openvino.Core().compile_model(model, "CPU", settings)
        return _Compiled(compiled, [place for place, n in enumerate(self.weights) if n is None])


class _Compiled(nn.Module):
    """Called as the piece of the trace was, with all of its inputs."""

    def __init__(self, compiled: Any, given: list[int]) -> None:
        super().__init__()
        self.request = compiled.create_infer_request()
        self.given = given

    def forward(self, *tensors: torch.Tensor) -> Any:
        """What the piece gives: a tensor, or a tuple of them."""
        for place, number in enumerate(self.given):
            self.request.set_input_tensor(place, _shared(tensors[number]))
        self.request.infer()
        found = tuple(_read(tensor) for tensor in self.request.output_tensors)
        return found[0] if len(found) == 1 else found


def _shared(tensor: torch.Tensor) -> Any:
    """OpenVINO's view of a tensor's memory; of a copy where it does not lie in order."""
    import openvino

    bits = tensor.detach().contiguous()
    if bits.dtype == torch.bfloat16:  # numpy has none
        bits = bits.view(torch.float16)
    kind = getattr(openvino.Type, _TYPES[tensor.dtype])
    return openvino.Tensor(bits.numpy(), list(tensor.shape), kind)


def _read(tensor: Any) -> torch.Tensor:
    """A copy of what OpenVINO has computed: the next call computes into the same memory."""
    data = tensor.data
    if tensor.element_type.get_type_name() == "bf16":
        return torch.from_numpy(data.view("int16")).view(torch.bfloat16).clone()
    return torch.from_numpy(data).clone()


def _mark(weight: torch.Tensor) -> tuple[Any, ...]:
    """Tells whether a weight is still what it was: its place, and some of its numbers."""
    flat = weight.detach().reshape(-1)
    some = flat[:: max(1, len(flat) // _SAMPLE)].contiguous()
    return weight.data_ptr(), tuple(weight.shape), bytes(some.view(torch.uint8).numpy())


def _cut(graph: fx.GraphModule) -> fx.GraphModule:
    """The same as calls of pieces, every second of which writes and does nothing else.

    Raises:
        NotImplementedError: what is written lies in a view that was made before.
    """
    stages: dict[fx.Node, int] = {}
    now = 0
    for node in graph.graph.nodes:
        if node.op == "call_function":
            now += _writes(node) != bool(now % 2)
            stages[node] = now
    _count_again(graph.graph, stages)
    whole = split_module(graph, graph, lambda node: stages[node], keep_original_order=True)
    written = {_memory(node.args[0]) for node in stages if _writes(node) and _memory(node.args[0])}
    piece: Any
    for piece in whole.children():
        if _is_pure(piece):
            (last,) = [node for node in piece.graph.nodes if node.op == "output"]
            if any(_memory(node) in written for node in last.all_input_nodes):
                raise NotImplementedError("a view of the cache is made before it is written")
    return whole


def _count_again(graph: fx.Graph, stages: dict[fx.Node, int]) -> None:
    """Let every piece find out sizes for itself: they are no tensors that could be handed over."""
    for node in reversed(list(graph.nodes)):
        if node not in stages or isinstance(node.meta.get("val"), torch.Tensor):
            continue
        for user in list(node.users):
            if stages.get(user, stages[node]) != stages[node]:
                with graph.inserting_before(user):
                    other = graph.node_copy(node)
                stages[other] = stages[user]
                user.replace_input_with(node, other)


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _is_pure(piece: Any) -> bool:
    return not any(_writes(node) for node in piece.graph.nodes)


def _memory(node: Any) -> int | None:
    """Tells where a stand-in would lie."""
    value = getattr(node, "meta", {}).get("val")
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None
