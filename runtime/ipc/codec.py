"""Frames to messages and back. Bytes that are no frame are a typed error, whatever they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec

from branchline.runtime.errors import CorruptMessage

M = TypeVar("M")


class Codec(Generic[M]):
    """One direction of one socket.

    Args:
        union: the messages it carries, a union of `runtime.ipc.messages`.
        name: of the direction, for errors.
    """

    def __init__(self, union: Any, name: str) -> None:
        self.name = name
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[list[M]] = msgspec.msgpack.Decoder(list[union])

    def encode(self, messages: Sequence[M]) -> bytes:
        """One frame."""
        return self._encoder.encode(messages)

    def decode(self, frame: bytes) -> list[M]:
        """The messages of a frame.

        Raises:
            CorruptMessage: it is not msgpack, or not of the schema.
        """
        try:
            return self._decoder.decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise CorruptMessage(
                f"a message to the {self.name} cannot be read: {error}",
                value=f"{len(frame)} bytes",
                hint="It was dropped. Processes of one engine must be of the same version.",
            ) from error
