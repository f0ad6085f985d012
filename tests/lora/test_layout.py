"""What lies in a slot is the adapter, at places that layers and copies agree about."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from branchline.kernels.lora import LoraBatch, LoraWeight
from branchline.kernels.reference import ReferenceOps
from branchline.runtime.layers.lora_site import LoraSite
from branchline.runtime.lora.host_tier import HostTier
from branchline.runtime.lora.layout import ALIGN, PART_ALIGN, LowRank, Packed, SlotLayout
from branchline.runtime.lora.slots import Slots, copy_in_pieces
from branchline.runtime.models.base import Model

CPU = torch.device("cpu")


def random_matrices(layout: SlotLayout, seed: int, rank: int) -> dict[str, LowRank]:
    generator = torch.Generator().manual_seed(seed)
    return {
        module.name: LowRank(
            torch.randn(rank, module.columns, generator=generator),
            torch.randn(module.rows, rank, generator=generator),
            0.5 + module.part,
        )
        for module in layout.modules.values()
    }


def recorded(model: Model) -> tuple[list[LoraSite], dict[str, LoraWeight]]:
    """The model's sites, and what each is given, by its first part's name."""
    given: dict[str, LoraWeight] = {}

    def put(name: str, weight: LoraWeight | None) -> None:
        if weight is None:
            given.pop(name, None)
        else:
            given[name] = weight

    sites = []
    for site in model.lora_sites():
        name = site.parts[0][0]
        sites.append(
            LoraSite(site.kind, site.columns, site.parts, lambda w, name=name: put(name, w))
        )
    return sites, given


def test_every_layer_sees_its_own_matrices_in_every_slot(model: Model) -> None:
    sites, given = recorded(model)
    layout = SlotLayout(sites, 5, torch.float32)
    assert layout.max_rank == 16
    slots = Slots(layout, 3, CPU)
    adapters = {0: random_matrices(layout, 1, 5), 2: random_matrices(layout, 2, 16)}
    for slot, matrices in adapters.items():
        slots.write(slot, layout.pack(matrices))
    ops = ReferenceOps()
    for site in sites:
        weight = given[site.parts[0][0]]
        assert weight.ranks[1].tolist() == [0] * len(site.parts)
        for slot, matrices in adapters.items():
            batch = LoraBatch(torch.tensor([slot], dtype=torch.int32))
            y = torch.zeros(1, site.rows)
            if site.kind == "embedding":
                ids = torch.tensor([3], dtype=torch.int32)
                ops.lora_embedding(y, ids, weight, batch)
                low = matrices[site.parts[0][0]]
                want = low.scale * low.b @ low.a[:, 3]
            else:
                x = torch.randn(1, site.columns)
                ops.lora_add(y, x, weight, batch)
                want = torch.cat(
                    [
                        matrices[n].scale * matrices[n].b @ (matrices[n].a @ x[0])
                        for n, _ in site.parts
                    ]
                )
            torch.testing.assert_close(y[0], want, rtol=1e-4, atol=1e-4)
    layout.detach()
    assert not given


def test_modules_without_a_place_take_no_memory(model: Model) -> None:
    sites, given = recorded(model)
    whole = SlotLayout(sites, 16, torch.float32)
    layout = SlotLayout(sites, 16, torch.float32, {"q_proj", "o_proj"})
    assert {name.rpartition(".")[2] for name in layout.modules} == {
        "q_proj",
        "k_proj",  # of the same product
        "v_proj",
        "o_proj",
    }
    assert {*layout.modules, *layout.left_out} == set(whole.modules)
    own = sum(16 * (m.rows + m.columns) for m in layout.modules.values())
    assert layout.elements == own
    Slots(layout, 2, CPU)
    assert len(given) == len(layout.sites) == 2 * model.spec.num_layers
    layout.detach()
    assert not given


def test_a_slot_is_one_piece_and_matrices_are_aligned(model: Model) -> None:
    sites, given = recorded(model)
    layout = SlotLayout(sites, 16, torch.bfloat16)
    slots = Slots(layout, 2, CPU)
    assert layout.elements % ALIGN == 0
    assert layout.slot_bytes == layout.elements * 2 + layout.parts * 8
    for weight in given.values():
        for tensor in (weight.a, weight.b):
            assert tensor[0].is_contiguous()
            assert tensor.stride(0) == layout.elements
            assert tensor.storage_offset() % ALIGN == 0
        # as all layers, so that they share their kernels
        assert weight.ranks.storage_offset() % PART_ALIGN == 0
        assert weight.scales.storage_offset() == weight.ranks.storage_offset()
    assert layout.parts % PART_ALIGN == 0
    places = sorted(
        (tensor.storage_offset(), tensor[0].numel())
        for weight in given.values()
        for tensor in (weight.a, weight.b)
    )
    ends = [start + size for start, size in places]
    assert all(end <= start for end, (start, _) in zip(ends, places[1:], strict=False))
    assert ends[-1] <= layout.elements
    assert slots.values.shape == (2, layout.elements)


def test_a_slot_that_is_written_again_holds_nothing_of_before(model: Model) -> None:
    sites, given = recorded(model)
    layout = SlotLayout(sites, 16, torch.float32)
    slots = Slots(layout, 1, CPU)
    name = "model.layers.0.self_attn.q_proj"
    slots.write(0, layout.pack(random_matrices(layout, 1, 16)))
    slots.write(0, layout.pack({name: random_matrices(layout, 2, 2)[name]}))
    assert given[name].ranks[0].tolist() == [2, 0, 0]
    assert [w.ranks.sum().item() for n, w in given.items() if n != name] == [0] * (len(sites) - 1)


def packed(size: int) -> Packed:
    return Packed(torch.zeros(size), torch.zeros(0), torch.zeros(0))


@pytest.mark.parametrize("limit", [0, 399, 400, 1200])
def test_the_host_tier_stays_within_its_bound_and_forgets_the_least_used(limit: int) -> None:
    tier = HostTier(limit)
    order: list[str] = []  # the oracle: least recently used first
    for step in range(60):
        key = "abcdefg"[step * 5 % 7]
        if step % 3 and key in order:
            assert tier.get(key) is not None
            order.remove(key)
            order.append(key)
        else:
            tier.put(key, packed(100))
            order = [k for k in order if k != key]
            while order and (len(order) + 1) * 400 > limit:
                order.pop(0)
            order.append(key)
        assert [key in tier for key in "abcdefg"] == [key in order for key in "abcdefg"]
        assert tier.nbytes == 400 * len(order)
    tier.drop(order[0])
    tier.drop("nobody")
    assert len(tier) == len(order) - 1


@pytest.mark.parametrize("count", [0, 1, 4, 5, 8, 11, 23])
def test_an_adapter_arrives_in_pieces_of_which_one_at_a_time_is_on_its_way(count: int) -> None:
    """On a device a copy is queued and happens later; a buffer must not be filled before."""
    queued: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Target:
        """Copies when it is waited for, as late as may be."""

        def __init__(self, values: torch.Tensor) -> None:
            self.values = values

        def __getitem__(self, place: slice) -> Target:
            return Target(self.values[place])

        def copy_(self, piece: torch.Tensor, *, non_blocking: bool) -> None:
            assert non_blocking and not queued, "two pieces are on their way"
            queued.append((self.values, piece))

    def mark() -> Callable[[], None]:
        def wait() -> None:
            for values, piece in queued:
                values.copy_(piece)
            queued.clear()

        return wait

    source, values = torch.arange(1.0, count + 1), torch.zeros(count)
    pieces = [torch.zeros(4), torch.zeros(4)]
    copy_in_pieces(Target(values), source, pieces, mark)  # type: ignore[arg-type]
    mark()()
    assert torch.equal(values, source)
