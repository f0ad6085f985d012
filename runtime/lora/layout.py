"""How an adapter lies in a slot: all its matrices in one piece of memory, the same in every slot.

Invariant: a slot is one contiguous piece, so an adapter reaches the device in one copy; matrices
begin at multiples of `ALIGN` elements. What lies beyond a module's rank means nothing and is never
read. Knows nothing of files or of which adapters there are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from branchline.kernels.lora import LoraWeight
from branchline.runtime.layers.lora_site import LoraSite, SiteKind

ALIGN = 64
PART_ALIGN = 4
"""A layer's ranks and scales begin at multiples of so many: kernels are compiled anew for addresses
that 16 bytes do not divide, and all layers shall share theirs."""
RANK_STEP = 16
"""Slots hold ranks in multiples of this."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """One module's matrices: it adds `scale * b @ (a @ x)`.

    Attributes:
        a: [rank, columns]; of an embedding [rank, V].
        b: [rows, rank].
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float


@dataclass(frozen=True, slots=True)
class Module:
    """One module that can be adapted, and its place in a slot.

    Attributes:
        rows, columns: of the base weight as the product sees it; columns = V for an embedding.
        part: index into the ranks and scales of a slot.
        a_at: where its A begins.
        b_at: where the B of its whole layer begins, [max rank, width].
        width: columns there: outputs of the layer.
        first: of them, the module's first one.
    """

    name: str
    kind: SiteKind
    rows: int
    columns: int
    part: int
    a_at: int
    b_at: int
    width: int
    first: int


@dataclass(frozen=True, slots=True)
class Packed:
    """An adapter as a slot holds it.

    Attributes:
        values: [elements] of the layout's dtype.
        ranks: int32 [parts].
        scales: float32 [parts].
    """

    values: torch.Tensor
    ranks: torch.Tensor
    scales: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.values.nbytes + self.ranks.nbytes + self.scales.nbytes


class SlotLayout:
    """Places of all modules of a model.

    Args:
        sites: of the model.
        max_rank: of any module; raised to a multiple of `RANK_STEP`.
        dtype: of the matrices.
        targets: modules that there shall be places for, by the last part of their names; layers
            that share a product come together. None = all.

    Attributes:
        modules: by name.
        left_out: modules of the model that have no place, by name; where they would lie means
            nothing.
        elements: of one slot.
        parts: ranks and scales of one slot; those between layers are nobody's.
    """

    def __init__(
        self,
        sites: Iterable[LoraSite],
        max_rank: int,
        dtype: torch.dtype,
        targets: Collection[str] | None = None,
    ) -> None:
        self.sites: list[LoraSite] = []
        self.max_rank = -(-max_rank // RANK_STEP) * RANK_STEP
        self.dtype = dtype
        self.modules: dict[str, Module] = {}
        self.left_out: dict[str, Module] = {}
        self.elements = 0
        self.parts = 0
        for site in sites:
            names = [name.rpartition(".")[2] for name, _ in site.parts]
            if targets is None or not set(names).isdisjoint(targets):
                self.sites.append(site)
                a_at = self._take(len(site.parts) * self.max_rank * site.columns)
                b_at = self._take(site.rows * self.max_rank)
                for module in self._modules(site, a_at, b_at):
                    self.modules[module.name] = module
                self.parts += -(-len(names) // PART_ALIGN) * PART_ALIGN
            else:
                self.left_out |= {module.name: module for module in self._modules(site, 0, 0)}

    def _modules(self, site: LoraSite, a_at: int, b_at: int) -> Iterator[Module]:
        """The modules of a site, the matrices of the first one at `a_at` and `b_at`."""
        first = 0
        for index, (name, rows) in enumerate(site.parts):
            yield Module(
                name,
                site.kind,
                rows,
                site.columns,
                self.parts + index,
                a_at + index * self.max_rank * site.columns,
                b_at,
                width=site.rows,
                first=first,
            )
            first += rows

    def _take(self, elements: int) -> int:
        at = self.elements
        self.elements += -(-elements // ALIGN) * ALIGN
        return at

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot."""
        return self.elements * self.dtype.itemsize + self.parts * 8

    def attach(self, values: torch.Tensor, ranks: torch.Tensor, scales: torch.Tensor) -> None:
        """Give every site its view of the slots.

        Args:
            values: [S, elements].
            ranks: int32 [S, parts].
            scales: float32 [S, parts].
        """
        slots = values.shape[0]
        for site in self.sites:
            first = self.modules[site.parts[0][0]]
            count, r = len(site.parts), self.max_rank
            size = count * r * site.columns
            a = values[:, first.a_at : first.a_at + size]
            b = values[:, first.b_at : first.b_at + r * site.rows].view(slots, r, site.rows)
            shape = (site.columns, r) if site.kind == "embedding" else (count, r, site.columns)
            parts = slice(first.part, first.part + count)
            site.put(
                LoraWeight(
                    a.view(slots, *shape),
                    b,
                    ranks[:, parts],
                    scales[:, parts],
                    tuple(rows for _, rows in site.parts),
                )
            )

    def detach(self) -> None:
        """Take the views away: no adapter can be applied any more."""
        for site in self.sites:
            site.put(None)

    def pack(self, matrices: Mapping[str, LowRank]) -> Packed:
        """An adapter as a slot holds it.

        Args:
            matrices: by module, of the modules' shapes and at most `max_rank`.
        """
        values = torch.zeros(self.elements, dtype=self.dtype)
        ranks = torch.zeros(self.parts, dtype=torch.int32)
        scales = torch.zeros(self.parts, dtype=torch.float32)
        r = self.max_rank
        for name, low in matrices.items():
            module, rank = self.modules[name], low.a.shape[0]
            a = values[module.a_at : module.a_at + r * module.columns]
            if module.kind == "embedding":
                a.view(module.columns, r)[:, :rank] = low.a.T
            else:
                a.view(r, module.columns)[:rank] = low.a
            b = values[module.b_at : module.b_at + r * module.width].view(r, module.width)
            b[:rank, module.first : module.first + module.rows] = low.b.T
            ranks[module.part] = rank
            scales[module.part] = low.scale
        return Packed(values, ranks, scales)
