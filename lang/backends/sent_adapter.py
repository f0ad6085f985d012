"""An adapter on its way to a server: the two files of its folder, as a form.

Knows no connection. What the files say is for the server to judge.
"""

from __future__ import annotations

from contextlib import ExitStack
from os import PathLike

import aiohttp

from branchline.lang.errors import AdapterDamaged
from branchline.runtime.loading.adapters import adapter_folder

FILES = {"config": "adapter_config.json", "weights": "adapter_model.safetensors"}


def adapter_form(
    stack: ExitStack, name: str, source: str | PathLike[str], *, pin: bool
) -> aiohttp.FormData:
    """The form that loads an adapter, over the one of that name if there is one.

    Args:
        stack: closes the files once the form is sent.
        source: a folder in PEFT's format, or the name of one that comes with the package.

    Raises:
        AdapterDamaged: it is neither, or a file of the folder cannot be read.
    """
    folder = adapter_folder(source)
    form = aiohttp.FormData()
    form.add_field("lora_name", name)
    form.add_field("pinned", "true" if pin else "false")
    form.add_field("load_inplace", "true")
    for field, file in FILES.items():
        path = folder / file
        try:
            opened = stack.enter_context(path.open("rb"))
        except OSError as error:
            raise AdapterDamaged(
                f"a file of the adapter cannot be read: {error.strerror}",
                value=path,
                hint="Give a folder in PEFT's format.",
            ) from error
        form.add_field(field, opened, filename=file)
    return form
