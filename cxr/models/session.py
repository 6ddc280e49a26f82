"""ONNX Runtime sessions on ONNX files. Needs no PyTorch."""

from typing import Final

import onnxruntime

from cxr.errors import CheckpointError

MIN_RUNTIME: Final = (1, 19)
"""The oldest ONNX Runtime that is used: the first one for NumPy 2."""


def open_session(
    content: bytes, threads: int, source: str = "model.onnx"
) -> onnxruntime.InferenceSession:
    """Load a network into ONNX Runtime, on the CPU.

    Args:
        content: an ONNX file.
        threads: that compute one batch.
        source: what the file is called in an error.

    Raises:
        CheckpointError: ONNX Runtime is too old, or cannot load the file: it is damaged, or of an
            operator set that this version does not know.
    """
    version = onnxruntime.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_RUNTIME:
        oldest = ".".join(map(str, MIN_RUNTIME))
        raise CheckpointError(
            f"ONNX Runtime {version} is too old: {oldest} or newer is needed. Run: pip install"
            " --upgrade onnxruntime"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A thread that waits for work must not take a core from the processes beside this one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # Errors; a warning would be printed by every process.
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common class.
        reason = str(error).splitlines()[0].rpartition(" : ")[2][:200]
        raise CheckpointError(
            f"{source}: ONNX Runtime {version} cannot load it ({reason}). Update onnxruntime, or"
            " export the checkpoint again."
        ) from None
