"""The packed form is always the list's own, whatever was done to it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchline.runtime.core.packed_ids import PackedIds

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=8)


@given(first=IDS, changes=st.lists(st.one_of(IDS, st.sampled_from(["pop", "packed", "copy"]))))
def test_packed_ids_are_the_lists(first: list[int], changes: list[list[int] | str]) -> None:
    ids, plain = PackedIds(first), list(first)
    for change in changes:
        if change == "pop":
            if plain:
                assert ids.pop() == plain.pop()
        elif change == "copy":
            before, ids = ids, ids.copy()
            before.append(7)
            before.packed()
        elif change == "packed":
            assert ids.packed().tolist() == plain
        else:
            assert isinstance(change, list)
            ids.extend(change)
            plain.extend(change)
        assert ids == plain
    assert ids.packed().tolist() == plain
    assert ids.packed().itemsize == 4
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(ids)) == plain


def test_what_is_no_id_is_refused_when_it_is_packed() -> None:
    with pytest.raises(OverflowError):
        PackedIds([1 << 31]).packed()
    with pytest.raises(ValueError, match="only the last"):
        PackedIds([1, 2]).pop(0)
