"""Bodies of the routes that load and unload adapters, named as in vLLM and SGLang."""

from __future__ import annotations

import msgspec

from branchline.runtime.server.fields import Json


class LoadBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/load_lora_adapter`: an adapter that lies on the server's machine.

    Attributes:
        lora_path: a folder in PEFT's format.
        pinned: it keeps its slot of the device whatever else is wanted there.
        load_inplace: load it as the next version where the name is in use.
    """

    lora_name: str
    lora_path: str
    pinned: bool = False
    load_inplace: bool = False

    lora_id: None = None
    is_3d_lora_weight: None = None


class LoadTensorsBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /load_lora_adapter_from_tensors`: an adapter that is sent.

    Attributes:
        config_dict: contents of adapter_config.json.
        serialized_tensors: a file of safetensors in base64; nothing pickled is read.
    """

    lora_name: str
    config_dict: Json
    serialized_tensors: str
    pinned: bool = False
    load_inplace: bool = False

    lora_id: None = None
    load_format: None = None
    added_tokens_config: None = None


class UnloadBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/unload_lora_adapter`.

    Attributes:
        drain: wait until nothing uses it, and take no more requests for it.
    """

    lora_name: str
    drain: bool = False

    lora_int_id: int | None = None
    lora_id: None = None
