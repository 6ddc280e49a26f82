"""Who was trained on, who validated and who is tested on, in digests that name no patient.

A run and its checkpoints keep such a table, so that an evaluation takes exactly the patients that
were held out, and recognizes those that were not. Digests are salted: those of two data sets cannot
be compared. Whoever holds a table can still try out short patient numbers one by one.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import pyarrow as pa
import pyarrow.compute as pc

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

    def has_patient(self, digests: Iterable[str], *roles: Role) -> list[bool]:
        """Whether each patient, by `patient_digest`, is in one of some roles."""
        known = self.patients(*roles)
        salt = (self.table.schema.metadata or {})[_SALT].decode()
        return [_salted(digest, salt) in known for digest in digests]

    def has_image(self, images: pa.Table, *roles: Role) -> list[bool]:
        """Whether each image, by `sha256` or `pixels_sha256`, is in one of some roles."""
        own = self._rows(roles)
        known = [set(own[name].to_pylist()) - {""} for name in ("sha256", "pixels_sha256")]
        columns = [images[name].to_pylist() for name in ("sha256", "pixels_sha256")]
        return [
            any(text[:CHECKSUM_DIGITS] in names for text, names in zip(pair, known, strict=True))
            for pair in zip(*columns, strict=True)
        ]

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
    digests = listing["patient_digest"].take(images["row"]).to_pylist()
    test_digests = sorted(set(test["patient_digest"].to_pylist()))
    salt = _salt([*digests, *test_digests])
    roles = ["validation" if k == fold else "train" for k in images["fold"].to_pylist()]
    checksums = {
        name: [text[:CHECKSUM_DIGITS] for text in images[name].to_pylist()]
        for name in ("sha256", "pixels_sha256")
    }
    num_test = len(test_digests)
    table = pa.table(
        {
            "role": roles + ["test"] * num_test,
            "patient": [_salted(digest, salt) for digest in (*digests, *test_digests)],
            **{name: texts + [""] * num_test for name, texts in checksums.items()},
        },
        schema=SPLITS,
    )
    order = [(name, "ascending") for name in SPLITS.names]
    return Splits(table.sort_by(order).replace_schema_metadata({_SALT: salt}))


def _salt(digests: Sequence[str]) -> str:
    """Of the data alone, so that the same run writes the same table."""
    return hashlib.sha256("\n".join(sorted(set(digests))).encode()).hexdigest()[:32]


def _salted(digest: str, salt: str) -> str:
    return hashlib.sha256(f"{salt} {digest}".encode()).hexdigest()[:32]
