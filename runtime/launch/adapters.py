"""The adapters' side of an engine: how many slots, of which rank, and what is loaded at the start.

Invariant: an adapter that is named at the start is loaded, or the engine does not start. Knows no
scheduler.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

from branchline.runtime.config.sections import LoraSection
from branchline.runtime.core.adapters import AdapterInfo
from branchline.runtime.errors import AdapterTooLarge, BranchlineError, InvalidRequest
from branchline.runtime.executor.torch_threads import start_with_torch_threads
from branchline.runtime.ipc.messages import KeptAdapter
from branchline.runtime.launch.decisions import Decision
from branchline.runtime.launch.workers import Loaded
from branchline.runtime.loading.adapters import adapter_folder
from branchline.runtime.lora.adapter_files import config_of
from branchline.runtime.lora.layout import SlotLayout
from branchline.runtime.lora.manager import AdapterManager
from branchline.runtime.lora.peft_config import MAX_RANK
from branchline.runtime.lora.slots import Slots
from branchline.runtime.memory.sizing import free_memory

logger = logging.getLogger(__name__)

USUAL_SLOTS = 8
USUAL_RANK = 16
_MIB = 1 << 20


def make_slots(settings: LoraSection, loaded: Loaded, decisions: list[Decision]) -> Slots | None:
    """Slots of the device, seen by the model's layers; None where none are wanted.

    Call it before anything is measured or recorded that runs the model.

    Raises:
        AdapterTooLarge: the slots need more memory than there is.
        InvalidRequest: adapters are named, and there shall be no slots.
        AdapterError: the settings of one that is named cannot be read.
    """
    named = settings.adapters or {}
    if settings.max_adapter_rank is not None and settings.max_adapter_rank > MAX_RANK:
        raise InvalidRequest(
            "max_adapter_rank is larger than any adapter's",
            value=settings.max_adapter_rank,
            hint=f"Use at most {MAX_RANK}.",
        )
    count = settings.adapter_slots
    if count == 0 and named:
        raise InvalidRequest(
            "adapters are named, but adapter_slots is 0",
            value=", ".join(named),
            hint="Leave adapter_slots out, or set it to 1 or more.",
        )
    host = loaded.device.type == "cpu"
    why = "as told"
    if count is None:
        count = USUAL_SLOTS if host or named else 0
        why = "the usual number" if count else "on CUDA they are made where adapters are named"
    if count == 0:
        decisions.append(Decision("adapter_slots", "0", why))
        return None
    rank = settings.max_adapter_rank or max(
        (config_of(adapter_folder(path)).largest_rank for path in named.values()),
        default=USUAL_RANK,
    )
    sites, targets = list(loaded.model.lora_sites()), _targets(settings)
    layout = SlotLayout(sites, max(rank, USUAL_RANK), loaded.adapter_dtype, targets)
    there = {name.rpartition(".")[2] for name in (*layout.modules, *layout.left_out)}
    if targets is not None and not targets <= there:
        raise InvalidRequest(
            "adapter_targets names modules that the model does not have",
            value=", ".join(sorted(targets - there)),
            hint=f"It has {', '.join(sorted(there))}.",
        )
    size = count * layout.slot_bytes
    # on a CPU memory is taken as slots are filled
    if not host and size > free_memory(loaded.device):
        raise AdapterTooLarge(
            f"{count} adapter slots of rank {layout.max_rank} need {size // _MIB} MiB, but only "
            f"{free_memory(loaded.device) // _MIB} are free",
            value=count,
            hint="Lower adapter_slots or max_adapter_rank.",
        )
    decisions.append(
        Decision(
            "adapter_slots",
            str(count),
            f"{why}; each takes {layout.slot_bytes / 1e6:.0f} MB at rank {layout.max_rank}",
        )
    )
    return Slots(layout, count, loaded.device)


def _targets(settings: LoraSection) -> set[str] | None:
    if settings.adapter_targets is None:
        return None
    return {name.strip() for name in settings.adapter_targets.split(",")}


def load_adapters(
    settings: LoraSection, slots: Slots, call_soon: Callable[[Callable[[], None]], None]
) -> AdapterManager:
    """A manager of the slots, with the adapters that are named at the start.

    Raises:
        AdapterError, InvalidRequest: one of them cannot be loaded.
    """
    start = partial(start_with_torch_threads, count=1)
    manager = AdapterManager(slots, settings.adapter_host_mb * _MIB, call_soon, start)
    for name, path in (settings.adapters or {}).items():
        manager.load_now(name, path)
    return manager


def restore(manager: AdapterManager, wanted: Sequence[KeptAdapter]) -> list[AdapterInfo]:
    """Have the adapters that a scheduler before this one had; nothing runs yet. One that cannot be
    had any more is left out, and said so in the log."""
    names = {kept.name for kept in wanted}
    for info in manager.infos():
        if info.name not in names:
            manager.unload(info.name, lambda _: None)
    there = {info.name: info for info in manager.infos()}
    for kept in wanted:
        own = there.get(kept.name)
        if own is not None and (own.path, own.version) == (kept.path, kept.version):
            continue
        try:
            manager.load_now(
                kept.name, kept.path, pin=kept.pin, number=kept.version, sent=kept.sent
            )
        except BranchlineError as error:
            logger.error("the adapter %s is lost with the scheduler: %s", kept.name, error)
            if own is not None:
                manager.unload(kept.name, lambda _: None)
    return manager.infos()
