"""Who was trained on, who validated and who is tested on, in digests that name no patient.

A run and its checkpoints keep such a table, so that an evaluation takes exactly the patients that
were held out, and recognizes those that were not. Digests are salted: those of two data sets cannot
be compared. Whoever holds a table can still try out short patient numbers one by one.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cxr.sources import texts

Role = Literal["train", "validation", "test"]

SPLITS: Final = pa.schema(
    [
        ("role", pa.string()),
        ("patient", pa.string()),
        ("sha256", pa.string()),
        ("pixels_sha256", pa.string()),
    ]
)
"""`patient` is a salted digest; the checksums are the beginnings of those of `Shards.table`, empty
for patients whose images were not decoded."""

_SALT: Final = b"salt"
"""Where the metadata of a table have the salt."""

CHECKSUMS: Final = ("sha256", "pixels_sha256")

CHECKSUM_DIGITS: Final = 16
"""64 bits: among a million images two others share them with a probability of 3e-8."""


@dataclass(frozen=True)
class Splits:
    """The roles of patients and images in a run."""

    table: pa.Table
    """Of schema `SPLITS`, with the salt in its metadata."""

    def patients(self, *roles: Role) -> frozenset[str]:
        """Salted digests of the patients in some roles."""
        return frozenset(self._rows(roles)["patient"].to_pylist())

    def has_patient(self, digests: pa.ChunkedArray, *roles: Role) -> NDArray[np.bool_]:
        """Whether each patient, by `patient_digest`, is in one of some roles, (N,)."""
        salt = (self.table.schema.metadata or {})[_SALT].decode()
        codes, distinct = texts.encode(digests)
        salted = texts.compute(lambda digest: _salted(digest, salt), distinct)
        is_known = pc.is_in(salted, self._rows(roles)["patient"])
        return np.asarray(is_known, dtype=bool)[codes]

    def has_image(self, images: pa.Table, *roles: Role) -> NDArray[np.bool_]:
        """Whether each image, by `sha256` or `pixels_sha256`, is in one of some roles, (N,)."""
        own = self._rows(roles)
        is_known = np.zeros(len(images), dtype=bool)
        for name in CHECKSUMS:
            known = own[name].filter(pc.not_equal(own[name], ""))
            is_known |= np.asarray(pc.is_in(_shorten(images[name]), known), dtype=bool)
        return is_known

    def _rows(self, roles: Sequence[str]) -> pa.Table:
        return self.table.filter(pc.is_in(self.table["role"], pa.array(roles, pa.string())))


def collect(images: pa.Table, listing: pa.Table, test: pa.Table, fold: int | None) -> Splits:
    """The roles in a run.

    Args:
        images: of the listing, as `Shards.table` has them.
        listing: what was trained and validated on, of schema `sources.LISTING`.
        test: what was held out, of the same schema; may be empty.
        fold: that validated; None where each fold validated one member of an ensemble and trained
            the others: then every image is one of training.
    """
    codes, digests = texts.encode(listing["patient_digest"].take(images["row"]))
    own = digests.take(np.unique(codes))
    held_out = pc.unique(test["patient_digest"]).cast(pa.string()).sort()
    salt = _salt(pa.chunked_array([own, held_out]))
    salted = texts.compute(lambda digest: _salted(digest, salt), digests)
    is_validation = np.asarray(images["fold"]) == (-1 if fold is None else fold)
    table = pa.table(
        {
            "role": pa.array(np.where(is_validation, "validation", "train")),
            "patient": salted.take(codes),
            **{name: _shorten(images[name]) for name in CHECKSUMS},
        },
        schema=SPLITS,
    )
    empty = pa.repeat("", len(held_out))
    tested = texts.compute(lambda digest: _salted(digest, salt), held_out)
    columns = [pa.repeat("test", len(held_out)), tested, empty, empty]
    table = pa.concat_tables([table, pa.table(columns, schema=SPLITS)])
    order = [(name, "ascending") for name in SPLITS.names]
    return Splits(table.sort_by(order).replace_schema_metadata({_SALT: salt}))


def _shorten(checksums: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.utf8_slice_codeunits(checksums, 0, CHECKSUM_DIGITS)


def _salt(digests: pa.ChunkedArray) -> str:
    """Of the data alone, so that the same run writes the same table."""
    _, distinct = texts.rank(digests)
    return hashlib.sha256("\n".join(distinct.to_pylist()).encode()).hexdigest()[:32]


def _salted(digest: str, salt: str) -> str:
    return hashlib.sha256(f"{salt} {digest}".encode()).hexdigest()[:32]
