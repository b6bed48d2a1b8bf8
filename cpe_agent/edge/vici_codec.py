"""How do nested messages become VICI's bytes and back, and what may charon's answers look like?

In: mappings of text, numbers, flags, lists and sections. Out: packets; and from payloads, text again (bytes where a
value is none). Pure: the vici package's codec does the framing of elements, and what it lets through is caught here (it
would write "True" and "None", and would take a message that was cut off for a whole one). The errors of the VICI edge
are here too, beside what raises the first of them.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from vici.exception import DeserializationException
from vici.protocol import Message, Packet

from cpe_agent.ports import EdgeError

TARGET = "charon"
# charon's own limit on a message, both ways.
MAX_PACKET_BYTES = 512 * 1024
# Keys whose value is no text: the DER of list-certs.
BINARY_KEYS = frozenset({"data"})

_BAD_BYTES = (struct.error, DeserializationException, UnicodeDecodeError)

Scalar: TypeAlias = str | bytes | bool | int
Outgoing: TypeAlias = Scalar | Sequence[Scalar] | Mapping[str, "Outgoing"]
Reply: TypeAlias = dict[str, "Value"]
Value: TypeAlias = str | bytes | list[str] | dict[str, "Value"]


class ViciError(EdgeError):
    """A call to charon failed. `op` is the command or event, `cause` says why."""

    def __init__(self, op: str, cause: str) -> None:
        super().__init__(TARGET, op, cause)


class ViciRefused(ViciError):
    """charon is well but said no (or was never asked: the message was no VICI message)."""


class ViciLost(ViciError):
    """There is no working connection. Whether charon acted is unknown: read its state before repeating a command."""


def text(message: Mapping[str, Value], key: str, default: str = "") -> str:
    """The value of `key` as text; `default` if charon left it out. Raises ViciError if it is something else."""
    value = message.get(key, default)
    if not isinstance(value, str):
        raise ViciError(key, f"expected text, got {type(value).__name__}")
    return value


def texts(message: Mapping[str, Value], key: str) -> tuple[str, ...]:
    """The list under `key`; empty if charon left it out. Raises ViciError if it is something else."""
    value = message.get(key, [])
    if not isinstance(value, list):
        raise ViciError(key, f"expected a list, got {type(value).__name__}")
    return tuple(value)


def section(message: Mapping[str, Value], key: str) -> Reply:
    """The section under `key`; empty if charon left it out. Raises ViciError if it is something else."""
    value = message.get(key, {})
    if not isinstance(value, dict):
        raise ViciError(key, f"expected a section, got {type(value).__name__}")
    return value


def encode_request(command: str, message: Mapping[str, Outgoing]) -> bytes:
    """Raises ViciRefused if the message does not fit the protocol, TypeError for what no message may hold (None)."""
    try:
        packet = bytes(Packet.request(command, Message.serialize(_plain_section(message))))
    except (struct.error, UnicodeEncodeError) as error:
        # Names carry one length byte, values two.
        raise ViciRefused(command, f"the message cannot be encoded: {error}") from error
    if len(packet) > MAX_PACKET_BYTES:
        raise ViciRefused(command, f"the message has {len(packet)} bytes, {MAX_PACKET_BYTES} are allowed")
    return packet


def encode_subscription(event: str, wanted: bool) -> bytes:
    """The packet that registers for `event`, or no longer. Raises ViciRefused if no event can have that name."""
    try:
        return bytes(Packet.register_event(event) if wanted else Packet.unregister_event(event))
    except (struct.error, UnicodeEncodeError) as error:
        raise ViciRefused(event, f"the event's name cannot be encoded: {error}") from error


def decode_packet(op: str, packet: bytes) -> tuple[int, str, bytes]:
    """A packet as (type, event name or "", payload). Raises ViciLost."""
    try:
        parsed = Packet.parse(packet)
        name = parsed.event_type.decode() if parsed.response_type == Packet.EVENT else ""
        return int(parsed.response_type), str(name), bytes(parsed.payload.read())
    except _BAD_BYTES as error:
        raise ViciLost(op, f"charon sent a packet that cannot be read: {error}") from error


def decode_message(op: str, payload: bytes) -> Reply:
    """A payload as nested text. Raises ViciLost: after one bad message the next cannot be trusted either."""
    try:
        return _decoded_section(Message.deserialize(_ExactReader(payload)))
    except _BAD_BYTES as error:
        raise ViciLost(op, f"charon sent a message that cannot be read: {error}") from error


def _plain_section(message: Mapping[str, Outgoing]) -> dict[str, object]:
    return {key: _plain(key, value) for key, value in message.items()}


def _plain(key: str, value: Outgoing) -> object:
    if isinstance(value, Mapping):
        return _plain_section(value)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_plain_scalar(key, item) for item in value]
    return _plain_scalar(key, value)


def _plain_scalar(key: str, value: object) -> bytes:
    """What charon reads: the codec alone would write "True" and "None"."""
    if isinstance(value, bool):
        return b"yes" if value else b"no"
    if isinstance(value, int):
        return str(value).encode()
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytes):
        return value
    raise TypeError(f"{key}: VICI has no way to say {value!r}")


def _decoded_section(raw: Mapping[str, object]) -> Reply:
    return {key: _decoded(key, value) for key, value in raw.items()}


def _decoded(key: str, value: object) -> Value:
    if isinstance(value, Mapping):
        return _decoded_section(value)
    if isinstance(value, list):
        return [_decoded_text(item) for item in value]
    assert isinstance(value, bytes)
    return value if key in BINARY_KEYS else _decoded_text(value)


def _decoded_text(value: bytes) -> str:
    # Identities come from the peer and may hold any bytes: nothing is lost, and nothing raises.
    return value.decode("utf-8", "surrogateescape")


class _ExactReader(io.BytesIO):
    """What the codec reads from. The package's own gives short reads: a cut-off last value would pass."""

    def has_more(self) -> bool:
        return self.tell() < self.getbuffer().nbytes

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if size is not None and len(data) < size:
            raise struct.error(f"{size} bytes announced, {len(data)} left")
        return data
