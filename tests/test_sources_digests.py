"""What was listed before is recognized in a few bytes each, in whatever pieces it came."""

from cxr.sources import Digests, digest


def test_a_name_is_new_once() -> None:
    known = Digests()
    assert known.add(digest(["a", "b", "a"])).tolist() == [True, True, False]
    assert known.add(digest(["c", "b"])).tolist() == [True, False]
    assert known.contain(digest(["a", "b", "c", "d", ""])).tolist() == [True] * 3 + [False] * 2
    assert len(known) == 3


def test_pieces_of_any_size_are_the_same_set() -> None:
    names = [f"s3://bucket/{number % 7}/{number}.dcm" for number in range(5_000)]
    known, start = Digests(), 0
    for size in (1, 0, 999, 3, 1_500, 1, 1, 2_000):
        assert known.add(digest(names[start : start + size])).all()
        assert not known.add(digest(names[:start])).any()
        start += size
    assert known.contain(digest(names)).tolist() == [True] * start + [False] * (5_000 - start)
    assert len(known) == start


def test_no_text_fails() -> None:
    assert len(digest([])) == 0
    assert Digests().contain(digest(["caf\udce9"])).tolist() == [False]
