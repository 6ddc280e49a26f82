"""Many files made of a few."""

import itertools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path


def repeat(originals: Sequence[Path], num_files: int, folder: Path) -> list[Path]:
    """So many files in a new folder: the originals in turn, each time under a new name.

    The first round is copied where it cannot be linked; of later ones hard links take no space.
    """
    folder.mkdir()
    paths: list[Path] = []
    for number, original in zip(range(num_files), itertools.cycle(originals), strict=False):
        path = folder / f"{number:06}-{original.name}"
        first = original if number < len(originals) else paths[number % len(originals)]
        try:
            os.link(first.resolve(), path)
        except OSError:
            shutil.copyfile(first, path)
        paths.append(path)
    return paths
