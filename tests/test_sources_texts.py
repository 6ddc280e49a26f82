"""Columns of text are computed in batches, numbered and compared without a hash of all of them."""

import pyarrow as pa
import pytest

from cxr.sources import texts

NAMES = ["b", "a", "é", "b", "", "a", "b"]


def column(*chunks: list[str]) -> pa.ChunkedArray:
    return pa.chunked_array(list(chunks), pa.string())


@pytest.mark.parametrize("chunks", [(NAMES,), (NAMES[:3], NAMES[3:]), ([], NAMES)])
def test_texts_are_numbered_and_found(chunks: tuple[list[str], ...]) -> None:
    codes, distinct = texts.encode(column(*chunks))
    assert codes.tolist() == [0, 1, 2, 0, 3, 1, 0]
    assert distinct.to_pylist() == ["b", "a", "é", ""]
    ranks, ordered = texts.rank(column(*chunks))
    assert ranks.tolist() == [2, 1, 3, 2, 0, 1, 2]
    assert ordered.to_pylist() == ["", "a", "b", "é"]
    assert texts.share(ranks, ordered).to_pylist() == NAMES
    assert texts.find_first(column(*chunks)).tolist() == [0, 1, 2, 0, 4, 1, 0]


def test_an_empty_column_has_no_texts() -> None:
    for number in (texts.encode, texts.rank):
        codes, distinct = number(column())
        assert (len(codes), len(distinct)) == (0, 0)
    assert len(texts.find_first(column())) == 0
    assert len(texts.compute(str.upper, column())) == 0


def test_cells_are_computed_row_by_row_over_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "BATCH_ROWS", 2)
    numbers = pa.array(range(len(NAMES)))
    computed = texts.compute(lambda name, number: f"{name}{number}", column(NAMES), numbers)
    assert computed.to_pylist() == [f"{name}{number}" for number, name in enumerate(NAMES)]
    assert [len(rows) for rows in texts.batches(numbers)] == [2, 2, 2, 1]
