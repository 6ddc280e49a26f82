"""The writing stage: from the scores of parts to their files."""

from collections.abc import Iterable
from typing import Any

from ray.data import Datasink

from cxr import storage
from cxr.scoring.parts import part_file, unpack


class PartSink(Datasink[None]):
    """Writes each part of a stream as a Parquet file of its own: {part, rows: packed SCORES}."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def write(self, blocks: Iterable[Any], ctx: Any) -> None:  # noqa: ARG002
        for block in blocks:
            for part, rows in zip(
                block["part"].to_pylist(), block["rows"].to_pylist(), strict=True
            ):
                storage.write_table(part_file(self.folder, part), unpack(rows))
