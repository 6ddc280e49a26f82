"""An exported classifier in 8-bit integers, by ONNX Runtime's static quantization.

Weights have 7 bits, one scale for each output channel, and activations 8 bits. A processor without
VNNI adds two products of a weight and an activation in 16 bits: 2 x 64 x 255 = 32,640 fits, and
with weights of 8 bits the sum would saturate there and not on processors with VNNI. So all of them
add up the same integers.

The first convolution decides most about the error of the logits. It reads gray levels without an
error, as integers of 7 bits (`export`'s `split_gray`), so its weights can have 8: 2 x 127 x 127 =
32,258. In float32 it would take longer than all the rest, since ONNX Runtime 1.32 then pools bytes
in an order that its kernels are slow in (SqueezeNet: 8.3 ms an image, and 2.8 so).

What follows the last convolution, but for hidden dense layers, is computed in float32. Weights of
few bits shift all logits by nearly the same number, which the bias of the last layer takes back; in
an ensemble that of each member.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from cxr.errors import CheckpointError
from cxr.models.session import open_session
from cxr.recipes import Normalization

NUM_CALIBRATION: Final = 256
"""Training images whose activations set the scales. Standard deviation of the logits' error with 64
and with 256, SqueezeNet on radiographs: 0.53 and 0.48, where that of the logits is 5.6. Percentiles
instead of extremes gained nothing: 0.53 at 99.999, 0.62 at 99.99, 1.24 at 99.9."""

BATCH_SIZE: Final = 8

DENSE: Final = ("Gemm", "MatMul")
"""The nodes of dense layers."""


def quantize(
    content: bytes, pixels: NDArray[np.uint8], normalization: Normalization, threads: int
) -> bytes:
    """Quantize an exported classifier.

    Args:
        content: as `export.export` gives it with `split_gray`.
        pixels: of training images, uint8 (N, S, S); N should be `NUM_CALIBRATION`.
        normalization: of the recipe.
        threads: that compute.

    Returns:
        A file with the same inputs and outputs, without metadata.

    Raises:
        CheckpointError: ONNX Runtime cannot quantize the network.
    """
    with tempfile.TemporaryDirectory(prefix="cxr-int8-") as scratch, _quiet():
        source, prepared, target = (Path(scratch, f"{i}.onnx") for i in range(3))
        source.write_bytes(content)
        try:
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            graph = onnx.load(prepared).graph
            quantize_static(
                str(prepared),
                str(target),
                _Reader(pixels),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
                nodes_to_exclude=_in_float32(graph),
                extra_options={"TensorQuantOverrides": _gray_levels(graph, normalization)},
            )
            model = onnx.load(target)
        except Exception as error:  # ONNX Runtime's errors have no common class.
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise CheckpointError(
                f"int8: ONNX Runtime cannot quantize this network ({reason}). Use it in float32."
            ) from None
    expected = _logits(content, pixels, threads)
    shift = expected - _logits(model.SerializeToString(), pixels, threads)
    _add_to_logits(model.graph, shift.mean(axis=0))
    del model.metadata_props[:]
    return bytes(model.SerializeToString())


def _in_float32(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes before the first convolution, and of those that lead to none.

    Of the latter, hidden dense layers are left out.
    """
    first = next(i for i, node in enumerate(graph.node) if node.op_type == "Conv")
    to_convolution = _leading_to(graph, ("Conv",))
    to_dense = _leading_to(graph, DENSE)
    before = [node.name for node in graph.node[:first]]
    return before + [
        node.name
        for node, convolved, dense in zip(graph.node, to_convolution, to_dense, strict=True)
        if not convolved
        and node.op_type not in ("Conv", "Relu")
        and not (node.op_type in DENSE and dense)
    ]


def _leading_to(graph: onnx.GraphProto, types: Sequence[str]) -> list[bool]:
    """Whether the outputs of each node reach a node of some types."""
    leading: list[bool] = []
    needed: set[str] = set()
    for node in reversed(graph.node):
        leading.append(not needed.isdisjoint(node.output))
        if leading[-1] or node.op_type in types:
            needed.update(node.input)
    return leading[::-1]


def _gray_levels(graph: onnx.GraphProto, normalization: Normalization) -> dict[str, Any]:
    """Settings that keep the planes of the first convolution as they are, and 8 bits of weights.

    In an ensemble, several first convolutions may read the same planes.
    """
    if normalization == "per_image":
        return {}  # Not integers.
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    planes = convolutions[0].input[0]
    unscaled = {"scale": np.array(1.0, np.float32), "zero_point": np.array(0, np.uint8)}
    signed = {"quant_type": QuantType.QInt8, "symmetric": True, "reduce_range": False, "axis": 0}
    weights = [node.input[1] for node in convolutions if node.input[0] == planes]
    return {planes: [unscaled], **{weight: [signed] for weight in weights}}


def _add_to_logits(graph: onnx.GraphProto, shift: NDArray[np.float32]) -> None:
    """Add to the bias of each member's last dense layer: float32 (members, 2), or (2,) for one."""
    biases = {initializer.name: initializer for initializer in graph.initializer}
    for dense, own in zip(_last_dense(graph), np.atleast_2d(shift), strict=True):
        bias = numpy_helper.to_array(biases[dense.input[2]]) + own
        # Under a name of its own: equal biases of other layers may share the old one.
        name = f"{dense.output[0]}.bias"
        old, dense.input[2] = dense.input[2], name
        graph.initializer.append(numpy_helper.from_array(bias.astype(np.float32), name))
        if not any(old in node.input for node in graph.node):
            graph.initializer.remove(biases[old])


def _last_dense(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that compute the logits of each member, in their order."""
    source = {output: node for node in graph.node for output in node.output}
    if "members" not in source:
        return [source["logits"]]
    # Each is made an array with an axis more, and these are joined.
    return [source[source[name].input[0]] for name in source["members"].input]


def _logits(content: bytes, pixels: NDArray[np.uint8], threads: int) -> NDArray[np.float32]:
    """Of each member, float32 (N, members, 2); of a single classifier (N, 2)."""
    session = open_session(content, threads)
    output = "members" if "members" in {o.name for o in session.get_outputs()} else "logits"
    batches = (inputs for inputs in iter(_Reader(pixels).get_next, None))
    return np.concatenate([session.run([output], inputs)[0] for inputs in batches])


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Pixels in batches, as ONNX Runtime asks for them."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        starts = range(0, len(pixels), BATCH_SIZE)
        self.batches = iter([pixels[start : start + BATCH_SIZE, None] for start in starts])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"pixels": batch}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer's advice on its own use from the console."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
