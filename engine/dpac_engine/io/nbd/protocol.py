"""The numbers of the NBD protocol and how an operating system's error becomes one of its errors."""

from __future__ import annotations

import errno
import struct
from typing import Final

# Handshake
INIT_MAGIC: Final = b"NBDMAGIC"
OPTION_MAGIC: Final = b"IHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
FLAG_FIXED_NEWSTYLE: Final = 1 << 0  # the server's flag and the client's have the same bits
FLAG_NO_ZEROES: Final = 1 << 1
OPTION_HEADER: Final = struct.Struct(">8sII")
OPTION_REPLY_HEADER: Final = struct.Struct(">QIII")
NAME_BYTES_MAX: Final = 4096

OPT_EXPORT_NAME: Final = 1
OPT_ABORT: Final = 2
OPT_LIST: Final = 3
OPT_STARTTLS: Final = 5
OPT_INFO: Final = 6
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_LIST_META_CONTEXT: Final = 9
OPT_SET_META_CONTEXT: Final = 10

REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERR_UNSUP: Final = 2**31 + 1
REP_ERR_POLICY: Final = 2**31 + 2
REP_ERR_INVALID: Final = 2**31 + 3
REP_ERR_TLS_REQD: Final = 2**31 + 5
REP_ERR_UNKNOWN: Final = 2**31 + 6
REP_ERR_SHUTDOWN: Final = 2**31 + 7
REP_ERR_TOO_BIG: Final = 2**31 + 9

INFO_EXPORT: Final = 0
INFO_NAME: Final = 1
INFO_BLOCK_SIZE: Final = 3

META_ALLOCATION: Final = "base:allocation"
META_ALLOCATION_ID: Final = 1

# What an export can do
TRANSMISSION_HAS_FLAGS: Final = 1 << 0
TRANSMISSION_READ_ONLY: Final = 1 << 1
TRANSMISSION_SEND_FLUSH: Final = 1 << 2
TRANSMISSION_SEND_FUA: Final = 1 << 3
TRANSMISSION_SEND_TRIM: Final = 1 << 5
TRANSMISSION_SEND_WRITE_ZEROES: Final = 1 << 6
TRANSMISSION_SEND_DF: Final = 1 << 7
TRANSMISSION_CAN_MULTI_CONN: Final = 1 << 8

BLOCK_BYTES_MIN: Final = 512
BLOCK_BYTES_PREFERRED: Final = 4096
PAYLOAD_BYTES_MAX: Final = 32 * 2**20

# Transmission
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF
REQUEST: Final = struct.Struct(">IHH8sQI")  # magic, flags, command, cookie, offset, length
REQUEST_BYTES: Final = REQUEST.size
SIMPLE_REPLY: Final = struct.Struct(">II8s")  # magic, error, cookie
CHUNK: Final = struct.Struct(">IHH8sI")  # magic, flags, type, cookie, bytes of payload

CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7

CMD_FLAG_FUA: Final = 1 << 0
CMD_FLAG_NO_HOLE: Final = 1 << 1
CMD_FLAG_DF: Final = 1 << 2
CMD_FLAG_REQ_ONE: Final = 1 << 3

CHUNK_DONE: Final = 1 << 0
CHUNK_NONE: Final = 0
CHUNK_OFFSET_DATA: Final = 1
CHUNK_BLOCK_STATUS: Final = 5
CHUNK_ERROR: Final = 2**15 + 1

STATE_HOLE: Final = 1 << 0
STATE_ZERO: Final = 1 << 1

EPERM: Final = 1
EIO: Final = 5
ENOMEM: Final = 12
EINVAL: Final = 22
ENOSPC: Final = 28
EOVERFLOW: Final = 75
ESHUTDOWN: Final = 108

_ERRORS: Final = {
    errno.EPERM: EPERM,
    errno.EACCES: EPERM,
    errno.EROFS: EPERM,
    errno.ENOMEM: ENOMEM,
    errno.EINVAL: EINVAL,
    errno.ENOSPC: ENOSPC,
    errno.EDQUOT: ENOSPC,
    errno.EFBIG: ENOSPC,
    errno.ESHUTDOWN: ESHUTDOWN,
}


def error_number(error: BaseException) -> int:
    """The protocol's error for what an export raised; whatever it has no number for is an I/O error."""
    number = error.errno if isinstance(error, OSError) else None
    return _ERRORS.get(number, EIO) if number is not None else EIO


class ProtocolViolation(Exception):
    """The client broke a rule after which its stream cannot be understood: the connection is dropped."""
