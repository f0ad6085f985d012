"""Slots: each belongs to one version, what is in use stays, and nobody waits for ever."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from branchline.runtime.core.adapters import AdapterVersion
from branchline.runtime.lora.residency import Residency


def versions(count: int) -> list[AdapterVersion]:
    return [AdapterVersion(f"a{i}", 1) for i in range(count)]


def bring(residency: Residency, version: AdapterVersion, *, urgent: bool = False) -> bool:
    if residency.choose(version, urgent=urgent) is None:
        return False
    residency.arrived(version)
    return True


def test_the_least_recently_used_version_goes() -> None:
    residency, (a, b, c, d) = Residency(3), versions(4)
    for version in (a, b, c):
        assert bring(residency, version)
        residency.enter(version)
        residency.leave(version)
    residency.enter(a)
    residency.leave(a)
    assert bring(residency, d)
    assert [v.slot >= 0 for v in (a, b, c, d)] == [True, False, True, True]
    assert residency.evictions == 1


def test_what_rows_use_what_is_pinned_and_what_is_on_its_way_stays() -> None:
    residency, (a, b, c, d) = Residency(3), versions(4)
    assert bring(residency, a) and bring(residency, b)
    residency.enter(a)
    residency.pin(b)
    assert residency.choose(c, urgent=False) is not None
    assert not bring(residency, d, urgent=True)
    residency.leave(a)
    assert bring(residency, d)
    assert (a.slot, d.slot >= 0) == (-1, True)


def test_what_was_just_brought_for_somebody_is_not_put_out_before_it_was_used() -> None:
    residency, (a, b) = Residency(1), versions(2)
    a.sequences = b.sequences = 1
    assert bring(residency, a)
    assert not bring(residency, b)
    assert bring(residency, b, urgent=True), "unless the need is urgent"
    b.sequences = 0
    assert bring(residency, a), "or nobody waits for it any more"


def test_one_slot_is_never_pinned() -> None:
    residency, (a, b, c) = Residency(3), versions(3)
    for version in (a, b):
        assert residency.can_pin(None)
        residency.pin(version)
    assert not residency.can_pin(None)
    assert residency.can_pin(a), "in place of another one"
    assert not Residency(1).can_pin(None)
    residency.remove(a)
    assert residency.can_pin(None)
    residency.pin(c)
    assert residency.unpinned_wait() in (b, c)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), count=st.integers(1, 4))
def test_whatever_happens_slots_are_disjoint_and_used_ones_stay(
    data: st.DataObject, count: int
) -> None:
    residency, known = Residency(count), versions(6)
    loading: set[AdapterVersion] = set()
    for _ in range(data.draw(st.integers(1, 60))):
        version = data.draw(st.sampled_from(known))
        action = data.draw(st.sampled_from(["choose", "arrive", "enter", "leave", "remove"]))
        in_use = {v: v.slot for v in known if v.rows}
        if action == "choose" and version.slot < 0 and version not in loading:
            if residency.choose(version, urgent=data.draw(st.booleans())) is not None:
                loading.add(version)
        elif action == "arrive" and version in loading:
            residency.arrived(version)
            loading.discard(version)
        elif action == "enter" and version.slot >= 0:
            residency.enter(version)
        elif action == "leave" and version.rows:
            residency.leave(version)
        elif action == "remove" and not version.rows:
            residency.remove(version)
            loading.discard(version)
        slots = [v.slot for v in known if v.slot >= 0]
        assert len(set(slots)) == len(slots) and all(0 <= slot < count for slot in slots)
        assert len(slots) + len(loading) == residency.used <= count
        assert all(v.slot == slot for v, slot in in_use.items()), "a used slot moved"
        assert all(residency.is_loading(v) == (v in loading) for v in known)
