"""libnbd's own features, one by one, against the NBD server: what is negotiated, what is sent, and what may not be.

Scripts run in nbdsh, a Python of Debian's with libnbd's module; what a script finds out it prints as JSON. With libnbd's
strict mode off it sends what the protocol or this server forbids: each such request is refused, and the connection stays.
"""

from __future__ import annotations

import errno
import json
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.nbd.certificates import Authority
from tests.nbd.client import Client, go, option
from tests.nbd.memory import MemoryExport, MemoryExports
from tests.nbd.serving import Serving, until
from tests.tools import require_tool

pytestmark = pytest.mark.e2e
MIB = 2**20
SIZE = 8 * MIB
SECONDS_MAX = 120
_BEGIN = """
import errno, json, nbd
def tell(**found): print(json.dumps(found))
def refused(request):
    try:
        request()
    except nbd.Error as error:
        return errno.errorcode.get(error.errnum, error.errnum)
    return "done"
def connected(uri):
    handle = nbd.NBD()
    handle.set_uri_allow_local_file(True)
    handle.connect_uri(uri)
    return handle
def opting(uri):
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.set_uri_allow_local_file(True)
    handle.connect_uri(uri)
    return handle
"""


def ask(script: str, **values: object) -> Any:
    """Run a script in nbdsh with some names set; what it told."""
    named = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    done = subprocess.run(
        [require_tool("nbdsh"), "-n", "-c", "-"],
        input=_BEGIN + named + textwrap.dedent(script),
        # nbdsh takes the first python3 on the PATH, and the module belongs to the system's.
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    return json.loads(done.stdout)


@pytest.fixture
def disk() -> MemoryExport:
    """8 MiB of nothing."""
    return MemoryExport(SIZE)


@pytest.fixture
def serving(disk: MemoryExport, tmp_path: Path) -> Iterator[Serving]:
    """A server of `disk` and of the read-only `still`."""
    with Serving(MemoryExports(disk=disk, still=MemoryExport(MIB, read_only=True)), tmp_path) as started:
        yield started


@pytest.fixture(params=["unix", "tcp"])
def uri_of(request: pytest.FixtureRequest, serving: Serving) -> Callable[[str], str]:
    """The URI of an export by either way."""
    if request.param == "unix":
        return lambda name: f"nbd+unix:///{name}?socket={serving.path}"
    return lambda name: f"nbd://localhost:{serving.address[1]}/{name}"


# ---------------------------------------------------------------------- negotiation


def test_options_are_answered_one_by_one(uri_of: Callable[[str], str]) -> None:
    """LIST, INFO, metadata contexts and GO on one connection, in opt mode; an unknown export leaves it as it was."""
    found = ask(
        """
        h = opting(uri)
        names = []
        h.opt_list(lambda name, description: names.append(name) or 0)
        h.set_export_name("nothing")
        unknown = [refused(h.opt_info), refused(h.opt_go)]
        h.set_export_name("disk")
        h.set_full_info(True)
        h.opt_info()
        size_by_info = h.get_size()
        contexts = []
        h.opt_list_meta_context(lambda name: contexts.append(name) or 0)
        h.add_meta_context("base:allocation")
        h.add_meta_context("x-nobody:context")
        h.opt_go()
        tell(names=names, unknown=unknown, sizes=[size_by_info, h.get_size()], contexts=contexts,
             chosen=[h.can_meta_context("base:allocation"), h.can_meta_context("x-nobody:context")],
             name=h.get_canonical_export_name(), protocol=h.get_protocol(), structured=h.get_structured_replies_negotiated())
        h.shutdown()
        """,
        uri=uri_of(""),
    )
    assert found == {
        "names": ["disk", "still"],
        "unknown": ["ENOENT", "ENOENT"],
        "sizes": [SIZE, SIZE],
        "contexts": ["base:allocation"],
        "chosen": [True, False],
        "name": "disk",
        "protocol": "newstyle-fixed",
        "structured": True,
    }


def test_a_negotiation_can_be_ended(uri_of: Callable[[str], str], serving: Serving) -> None:
    """ABORT closes the connection, and the server keeps nothing of it."""
    assert ask("h = opting(uri); h.opt_abort(); tell(closed=h.aio_is_closed())", uri=uri_of("disk")) == {"closed": True}
    until(lambda: not serving.server._connections, "the connection is gone", SECONDS_MAX)


def test_what_is_offered_is_what_is_documented(uri_of: Callable[[str], str]) -> None:
    """The flags and block sizes of a volume and of a read-only export."""
    script = """
        h = nbd.NBD()
        h.add_meta_context("base:allocation")
        h.connect_uri(uri)
        tell(**{name: getattr(h, name)() for name in (
            "is_read_only", "is_rotational", "can_flush", "can_fua", "can_trim", "can_zero", "can_fast_zero", "can_df",
            "can_multi_conn", "can_cache")},
            sizes=[h.get_block_size(kind) for kind in (nbd.SIZE_MINIMUM, nbd.SIZE_PREFERRED, nbd.SIZE_MAXIMUM)])
        """
    common = {"is_rotational": False, "can_flush": True, "can_fua": True, "can_df": True, "can_multi_conn": True}
    absent = {"can_fast_zero": False, "can_cache": False, "sizes": [512, 4096, 32 * MIB]}
    writable = {"is_read_only": False, "can_trim": True, "can_zero": True}
    assert ask(script, uri=uri_of("disk")) == common | absent | writable
    still = ask(script, uri=uri_of("still"))
    assert still["is_read_only"]
    assert still["sizes"] == absent["sizes"]


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("handshake", ["all", "no zeroes off", "old style export name"])
def test_older_clients_are_served(uri_of: Callable[[str], str], structured: bool, handshake: str) -> None:
    """Without structured replies, with the 124 zeroes, and by EXPORT_NAME alone: reads, writes and errors all the same."""
    found = ask(
        """
        h = nbd.NBD()
        h.set_request_structured_replies(structured)
        if handshake == "no zeroes off":
            h.set_handshake_flags(nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE)
        elif handshake == "old style export name":
            h.set_handshake_flags(0)
        h.connect_uri(uri)
        h.pwrite(b"x" * 4096, 8192)
        h.set_strict_mode(0)
        beyond = refused(lambda: h.pread(512, h.get_size()))
        tell(read=h.pread(4096, 8192) == bytearray(b"x" * 4096), beyond=beyond, size=h.get_size(),
             structured=h.get_structured_replies_negotiated(), protocol=h.get_protocol())
        """,
        uri=uri_of("disk"),
        structured=structured,
        handshake=handshake,
    )
    fixed = handshake != "old style export name"
    assert found == {
        "read": True,
        "beyond": "EINVAL",
        "size": SIZE,
        "structured": structured and fixed,
        "protocol": "newstyle-fixed" if fixed else "newstyle",
    }


def test_extended_headers_are_refused_and_the_handshake_goes_on(serving: Serving) -> None:
    """Option 11, of the newest libnbd: UNSUP, so that the client goes on with structured replies. With data it is no less so."""
    with Client(serving.path) as client:
        client.greet()
        unsupported = 2**31 + 1
        assert [reply.kind for reply in client.ask(option(11))] == [unsupported]
        assert [reply.kind for reply in client.ask(option(11, b"data"))] == [unsupported]
        assert client.ask(option(8))[-1].kind == 1
        assert client.ask(go("disk"))[-1].kind == 1


# ---------------------------------------------------------------------- replies


def test_reads_come_in_chunks_and_holes_are_told(uri_of: Callable[[str], str]) -> None:
    """pread_structured gives all bytes in data chunks, with and without DF; block status tells data, zeroes and holes."""
    found = ask(
        """
        h = nbd.NBD()
        h.add_meta_context("base:allocation")
        h.connect_uri(uri)
        h.pwrite(b"d" * 65536, 65536)
        h.zero(65536, 131072, nbd.CMD_FLAG_NO_HOLE)
        h.trim(65536, 65536 * 4)
        def whole(flags):
            got = bytearray(262144)
            def chunk(data, offset, status, error):
                assert status in (nbd.READ_DATA, nbd.READ_HOLE)
                if status == nbd.READ_DATA:
                    got[offset:offset + len(data)] = data
            h.pread_structured(len(got), 0, chunk, flags)
            return got == bytes(65536) + b"d" * 65536 + bytes(131072)
        extents, one = [], []
        h.block_status(393216, 0, lambda context, offset, entries, error: extents.extend(entries))
        h.block_status(32768, 65536, lambda context, offset, entries, error: one.extend(entries), nbd.CMD_FLAG_REQ_ONE)
        tell(whole=[whole(0), whole(nbd.CMD_FLAG_DF)], extents=extents, one=one)
        """,
        uri=uri_of("disk"),
    )
    assert found["whole"] == [True, True]
    assert found["extents"] == [65536, 3, 131072, 0, 196608, 3]
    assert found["one"] == [32768, 0]


def test_hundreds_of_requests_under_way_are_each_answered(uri_of: Callable[[str], str], disk: MemoryExport) -> None:
    """Asynchronous writes and reads of one connection, 512 at a time, whatever order their answers have."""
    found = ask(
        """
        h = connected(uri)
        pending = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([n % 251 + 1]) * 4096), n * 4096) for n in range(512)]
        while h.aio_in_flight():
            h.poll(-1)
        written = all(h.aio_command_completed(cookie) for cookie in pending)
        buffers = [nbd.Buffer(4096) for _ in range(512)]
        pending = [h.aio_pread(buffer, n * 4096) for n, buffer in enumerate(buffers)]
        while h.aio_in_flight():
            h.poll(-1)
        read = all(h.aio_command_completed(cookie) for cookie in pending)
        same = all(bytes(buffer.to_bytearray()) == bytes([n % 251 + 1]) * 4096 for n, buffer in enumerate(buffers))
        h.shutdown()
        tell(written=written, read=read, same=same)
        """,
        uri=uri_of("disk"),
    )
    assert found == {"written": True, "read": True, "same": True}
    assert disk.data[:4096] == b"\x01" * 4096


def test_a_flush_on_one_connection_covers_all(uri_of: Callable[[str], str], disk: MemoryExport) -> None:
    """What multi-conn promises: writes on four connections, FLUSH on a fifth, and all of it is durable and seen everywhere."""
    found = ask(
        """
        handles = [connected(uri) for _ in range(5)]
        for n, h in enumerate(handles[:4]):
            h.pwrite(bytes([n + 1]) * 4096, n * 4096)
        handles[4].flush()
        seen = [[h.pread(512, n * 4096)[0] for n in range(4)] for h in handles]
        tell(multi=handles[0].can_multi_conn(), seen=seen)
        """,
        uri=uri_of("disk"),
    )
    assert found == {"multi": True, "seen": [[1, 2, 3, 4]] * 5}
    assert disk.durable[: 4 * 4096] == b"".join(bytes([number]) * 4096 for number in (1, 2, 3, 4))


def test_fua_is_answered_when_durable(uri_of: Callable[[str], str], disk: MemoryExport) -> None:
    """On writes, trims and zeroes; without a FLUSH."""
    ask(
        """
        h = connected(uri)
        h.pwrite(b"f" * 4096, 0, nbd.CMD_FLAG_FUA)
        h.pwrite(b"f" * 8192, 8192, nbd.CMD_FLAG_FUA)
        h.trim(4096, 8192, nbd.CMD_FLAG_FUA)
        h.zero(4096, 12288, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)
        tell()
        """,
        uri=uri_of("disk"),
    )
    assert disk.durable[:16384] == b"f" * 4096 + bytes(12288)


# ---------------------------------------------------------------------- what is forbidden

FORBIDDEN = {
    "an unaligned read": ("h.pread(100, 1)", "EINVAL"),
    "an unaligned write": ("h.pwrite(b'x' * 100, 0)", "EINVAL"),
    "an empty read": ("h.pread(0, 0)", "EINVAL"),
    "an empty write": ("h.pwrite(b'', 0)", "EINVAL"),
    "an empty trim": ("h.trim(0, 0)", "EINVAL"),
    "a read past the end": ("h.pread(512, h.get_size())", "EINVAL"),
    "a read across the end": ("h.pread(1024, h.get_size() - 512)", "EINVAL"),
    "a write past the end": ("h.pwrite(b'x' * 512, h.get_size())", "ENOSPC"),
    "a zeroing past the end": ("h.zero(512, h.get_size())", "ENOSPC"),
    "a trim past the end": ("h.trim(512, h.get_size())", "EINVAL"),
    "an offset of 2^63 - 512": ("h.pread(512, 2**63 - 512)", "EINVAL"),
    "a status past the end": ("h.block_status(512, h.get_size(), lambda *_: 0)", "EINVAL"),
    "a cache request, which is not offered": ("h.cache(512, 0)", "EINVAL"),
    "a fast zero, which is not offered": ("h.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO)", "EINVAL"),
    "NO_HOLE on a read": ("h.pread(512, 0, nbd.CMD_FLAG_NO_HOLE)", "EINVAL"),
    "DF on a write": ("h.pwrite(b'x' * 512, 0, nbd.CMD_FLAG_DF)", "EINVAL"),
    "REQ_ONE on a flush": ("h.flush(nbd.CMD_FLAG_REQ_ONE)", "EINVAL"),
    "a flag that nobody knows": ("h.pread(512, 0, 1 << 9)", "EINVAL"),
}


def test_what_is_forbidden_is_refused_and_the_connection_stays(
    uri_of: Callable[[str], str], disk: MemoryExport
) -> None:
    """Each request that strict mode would have kept from being sent; between them good ones are answered as ever."""
    found = ask(
        """
        h = nbd.NBD()
        h.add_meta_context("base:allocation")
        h.connect_uri(uri)
        h.set_strict_mode(0)
        answers = {}
        for name, (request, _) in requests.items():
            answers[name] = refused(lambda: eval(request))
            assert h.aio_is_ready(), name
            h.pwrite(b"g" * 512, 4096)
            assert h.pread(512, 4096) == b"g" * 512, name
        tell(**answers)
        """,
        uri=uri_of("disk"),
        requests=FORBIDDEN,
    )
    assert found == {name: error for name, (_, error) in FORBIDDEN.items()}
    assert bytes(disk.data) == bytes(4096) + b"g" * 512 + bytes(SIZE - 4608)


def test_what_was_not_negotiated_is_refused(uri_of: Callable[[str], str]) -> None:
    """Block status without its context, DF without structured replies, changes of a read-only export."""
    found = ask(
        """
        def free(**how):
            h = nbd.NBD()
            h.set_request_structured_replies(how.get("structured", True))
            h.connect_uri(how["uri"])
            h.set_strict_mode(0)
            return h
        plain, simple, still = free(uri=disk), free(uri=disk, structured=False), free(uri=still)
        tell(status=refused(lambda: plain.block_status(512, 0, lambda *_: 0)),
             fragment=refused(lambda: simple.pread(512, 0, nbd.CMD_FLAG_DF)),
             write=refused(lambda: still.pwrite(b"x" * 512, 0)), trim=refused(lambda: still.trim(512, 0)),
             zero=refused(lambda: still.zero(512, 0)), read=refused(lambda: still.pread(512, 0)))
        """,
        disk=uri_of("disk"),
        still=uri_of("still"),
    )
    perm = errno.errorcode[errno.EPERM]
    refused = {"status": "EINVAL", "fragment": "EINVAL", "write": perm, "trim": perm, "zero": perm}
    assert found == refused | {"read": "done"}


# ---------------------------------------------------------------------- TLS


def test_every_feature_is_there_behind_tls(tmp_path: Path, disk: MemoryExport) -> None:
    """After STARTTLS all is negotiated anew: listing, contexts, requests of a page and of a mebibyte, FLUSH across connections."""
    folder = tmp_path / "authority"
    folder.mkdir()
    authority = Authority(folder)
    authority.issue("server")
    authority.issue("client")
    tls = authority.server_context(clients_prove_themselves=True)
    with Serving(MemoryExports(disk=disk), tmp_path, tls=tls) as serving:
        found = ask(
            """
            h = opting(uri)
            names = []
            h.opt_list(lambda name, description: names.append(name) or 0)
            h.set_export_name("disk")
            h.add_meta_context("base:allocation")
            h.opt_go()
            other = connected(uri.replace("/?", "/disk?"))
            h.pwrite(b"t" * 4096, 0)
            h.pwrite(b"T" * 2**20, 2**20)
            other.flush()
            tell(tls=h.get_tls_negotiated(), names=names, context=h.can_meta_context("base:allocation"),
                 read=h.pread(2**20, 2**20) == b"T" * 2**20,
                 plain=refused(lambda: connected(plain)))
            """,
            uri=f"nbds://localhost:{serving.address[1]}/?tls-certificates={authority.folder}",
            plain=f"nbd://localhost:{serving.address[1]}/disk",
        )
    assert found["tls"]
    assert found["names"] == ["disk"]
    assert found["context"]
    assert found["read"]
    assert found["plain"] != "done"
    assert disk.durable[:4096] == b"t" * 4096
