"""The precisions in which a classifier can compute. Needs neither PyTorch nor ONNX Runtime."""

from typing import Final, Literal

from cxr.errors import SettingsError

Precision = Literal["float32", "int8"]

ONNX_FILES: Final[dict[Precision, str]] = {"float32": "model.onnx", "int8": "model.int8.onnx"}
"""The network of each precision in a checkpoint's folder."""


def check_precision(precision: Precision, gpu: str) -> None:
    """Refuse 8-bit integers on a GPU.

    Args:
        precision: that is asked for.
        gpu: the setting of `cluster.use_gpu`.

    Raises:
        SettingsError: GPUs are asked for as well.
    """
    if precision == "int8" and gpu == "on":
        raise SettingsError(
            "precision: int8 is for CPUs, and --gpu on asks for GPUs. Leave one of them out."
        )
