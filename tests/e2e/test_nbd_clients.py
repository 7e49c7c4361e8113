"""The clients people really use, against the NBD server: libnbd's tools, qemu's, and fio."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nbd.certificates import Authority
from tests.nbd.memory import MemoryExport, MemoryExports
from tests.nbd.serving import Serving
from tests.tools import require_tool

pytestmark = pytest.mark.e2e
MIB = 2**20


def run(tool: str, *arguments: str, status: int | None = 0) -> str:
    """Run a tool and return what it printed; its exit status must be as said (None: anything but 0)."""
    done = subprocess.run([require_tool(tool), *arguments], capture_output=True, text=True, timeout=120)
    said = f"{tool} {' '.join(arguments)}\n{done.stdout}{done.stderr}"
    assert done.returncode == status if status is not None else done.returncode != 0, said
    return done.stdout + done.stderr


@pytest.fixture
def disk() -> MemoryExport:
    """32 MiB of nothing."""
    return MemoryExport(32 * MIB)


@pytest.fixture
def serving(disk: MemoryExport, tmp_path: Path) -> Iterator[Serving]:
    """A server of `disk` alone, on a unix socket and on TCP with durable acknowledgements."""
    with Serving(MemoryExports(disk=disk), tmp_path) as started:
        yield started


@pytest.fixture(params=["unix", "tcp"])
def uri(request: pytest.FixtureRequest, serving: Serving) -> str:
    """The disk by either way."""
    return f"nbd+unix:///disk?socket={serving.path}" if request.param == "unix" else tcp_uri(serving, "disk")


def tcp_uri(serving: Serving, name: str, scheme: str = "nbd") -> str:
    """The URI of an export over TCP."""
    return f"{scheme}://localhost:{serving.address[1]}/{name}"


def fill(disk: MemoryExport, seed: int, offset: int, length: int) -> None:
    """Random data without the protocol's help."""
    disk.data[offset : offset + length] = random.Random(seed).randbytes(length)
    disk.holes[offset // 512 : (offset + length) // 512] = bytes(length // 512)


def test_nbdinfo_lists_exports(tmp_path: Path) -> None:
    """--list names each export and its size."""
    exports = MemoryExports(a=MemoryExport(MIB), b=MemoryExport(2 * MIB, read_only=True))
    with Serving(exports, tmp_path) as serving:
        listed = json.loads(run("nbdinfo", "--list", "--json", serving.uri))
        found = {export["export-name"]: (export["export-size"], export["is_read_only"]) for export in listed["exports"]}
        assert found == {"a": (MIB, False), "b": (2 * MIB, True)}
        assert "for the default export" in run("nbdinfo", serving.uri, status=None)


def test_nbdinfo_describes_the_export(uri: str) -> None:
    """What the export can do and its block sizes, by name and as the default."""
    told = json.loads(run("nbdinfo", "--json", uri))
    assert told["structured"]
    (export,) = told["exports"]
    assert export["contexts"] == ["base:allocation"]
    expected = {
        "export-size": 32 * MIB,
        "is_read_only": False,
        "can_flush": True,
        "can_fua": True,
        "can_df": True,
        "can_multi_conn": True,
        "can_trim": True,
        "can_zero": True,
        "can_fast_zero": False,
        "can_cache": False,
        "block_size_minimum": 512,
        "block_size_preferred": 4096,
        "block_size_maximum": 32 * MIB,
    }
    assert {name: export[name] for name in expected} == expected


def test_nbdinfo_maps_holes(uri: str, disk: MemoryExport, seed: int) -> None:
    """--map shows data where data was written and holes elsewhere."""
    fill(disk, seed, 4 * MIB, MIB)
    extents = json.loads(run("nbdinfo", "--map", "--json", uri))
    assert [(extent["offset"], extent["length"], extent["type"]) for extent in extents] == [
        (0, 4 * MIB, 3),
        (4 * MIB, MIB, 0),
        (5 * MIB, 27 * MIB, 3),
    ]


def test_qemu_io_writes_patterns_zeroes_and_discards(uri: str, disk: MemoryExport) -> None:
    """Every change of qemu-io is seen by qemu-io, and durable after its flush."""
    commands = [
        "write -P 0xa5 0 1M",
        "write -P 0x5a -f 1M 64k",
        "write -z 64k 64k",
        "write -z -u 128k 64k",
        "discard 192k 64k",
        "flush",
        "read -P 0xa5 0 64k",
        "read -P 0 64k 192k",
        "read -P 0xa5 256k 768k",
        "read -P 0x5a 1M 64k",
    ]
    told = run("qemu-io", "-f", "raw", *[word for command in commands for word in ("-c", command)], uri)
    assert "Pattern verification failed" not in told
    assert told.count("ops;") == len(commands) - 1  # flush prints nothing
    assert disk.durable[:MIB] == b"\xa5" * 65536 + bytes(3 * 65536) + b"\xa5" * (MIB - 4 * 65536)
    sectors = {offset: disk.holes[offset // 512] for offset in (0, 65536, 131072, 196608)}
    assert sectors == {0: 0, 65536: 0, 131072: 1, 196608: 1}  # only -u and discard let holes be made


def test_qemu_io_at_the_edges(uri: str) -> None:
    """A request past the end fails; qemu rounds an unaligned one to our blocks itself."""
    assert "failed" in run("qemu-io", "-f", "raw", "-c", f"write {32 * MIB - 512} 1k", uri, status=None)
    told = run("qemu-io", "-f", "raw", "-c", "write -P 7 100 100", "-c", "read -P 7 100 100", uri)
    assert "failed" not in told


def test_unaligned_requests_of_a_client_that_does_not_care_are_errors(uri: str, serving: Serving) -> None:
    """fio does not ask for block sizes: its unaligned write is refused with EINVAL, and the server serves on."""
    job = ["--name=odd", "--ioengine=nbd", f"--uri={uri}", "--rw=write", "--bs=1000", "--size=10000"]
    assert "Invalid argument" in run("fio", *job, status=None)
    assert "disk" in run("nbdinfo", uri)
    assert serving.errors == []


def test_a_read_only_export_cannot_be_written(tmp_path: Path) -> None:
    """qemu is told so at once, and reads."""
    with Serving(MemoryExports(disk=MemoryExport(MIB, read_only=True)), tmp_path) as serving:
        uri = f"nbd+unix:///disk?socket={serving.path}"
        assert "Permission denied" in run("qemu-io", "-f", "raw", "-c", "write 0 512", uri, status=None)
        assert "512" in run("qemu-io", "-r", "-f", "raw", "-c", "read -P 0 0 512", uri)


def test_qemu_img_converts_both_ways(uri: str, disk: MemoryExport, tmp_path: Path, seed: int) -> None:
    """An image goes in and comes out the same; holes stay holes."""
    image, back = tmp_path / "image.qcow2", tmp_path / "back.raw"
    raw = tmp_path / "image.raw"
    content = random.Random(seed).randbytes(3 * MIB)
    with raw.open("wb") as file:
        file.truncate(32 * MIB)
        file.seek(9 * MIB)
        file.write(content)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image))
    run("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", str(image), uri)
    assert disk.data[9 * MIB : 12 * MIB] == content
    assert disk.holes.count(0) == 3 * MIB // 512
    assert json.loads(run("qemu-img", "info", "--output=json", "-f", "raw", uri))["virtual-size"] == 32 * MIB
    mapped = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", uri))
    assert [(extent["start"], extent["data"]) for extent in mapped] == [(0, False), (9 * MIB, True), (12 * MIB, False)]
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, str(back))
    assert back.read_bytes() == raw.read_bytes()
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", uri, str(image))


def test_nbdcopy_with_many_connections(uri: str, disk: MemoryExport, tmp_path: Path, seed: int) -> None:
    """Four connections at once, in and out; --flush makes it durable."""
    raw, back = tmp_path / "image.raw", tmp_path / "back.raw"
    raw.write_bytes(random.Random(seed).randbytes(16 * MIB) + bytes(16 * MIB))
    run("nbdcopy", "--connections=4", "--flush", str(raw), uri)
    assert disk.durable == raw.read_bytes()
    disk.slow_reads = True
    run("nbdcopy", "--connections=4", "--request-size=1048576", uri, str(back))
    assert back.read_bytes() == raw.read_bytes()


@pytest.mark.parametrize("block", ["512", "4k", "64k", "1m"])
def test_fio_verifies_what_it_wrote(uri: str, disk: MemoryExport, block: str) -> None:
    """Random writes of each size, with flushes between, read back by checksum."""
    size = 32 * MIB if block in ("64k", "1m") else 2 * MIB
    job = [
        "--name=verify",
        "--ioengine=nbd",
        f"--uri={uri}",
        "--rw=randwrite",
        f"--bs={block}",
        "--iodepth=32",
        f"--size={size}",
        "--fsync=64",
        "--verify=crc32c",
        "--verify_state_save=0",
        "--do_verify=1",
        "--output-format=json",
    ]
    told = run("fio", *job)
    (result,) = json.loads(told[told.index("{") : told.rindex("}") + 1])["jobs"]
    assert result["error"] == 0
    assert result["write"]["io_bytes"] == result["read"]["io_bytes"] == size


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority that has issued certificates for the server and a client."""
    folder = tmp_path / "tls"
    folder.mkdir()
    made = Authority(folder)
    made.issue("server")
    made.issue("client")
    return made


def test_tls_is_required_and_works_with_libnbd(authority: Authority, disk: MemoryExport, tmp_path: Path) -> None:
    """nbd:// is turned away where TLS is required; nbds:// verifies the server and copies a disk."""
    tls = authority.server_context(clients_prove_themselves=False)
    raw = tmp_path / "image.raw"
    raw.write_bytes(random.Random(1).randbytes(8 * MIB))
    with Serving(MemoryExports(disk=disk), tmp_path, tls=tls) as serving:
        assert "TLS" in run("nbdinfo", tcp_uri(serving, "disk"), status=None)
        uri = tcp_uri(serving, "disk", "nbds") + f"?tls-certificates={authority.folder}"
        assert json.loads(run("nbdinfo", "--json", uri))["TLS"]
        run("nbdcopy", "--flush", "--connections=2", str(raw), uri)
        assert disk.durable[: 8 * MIB] == raw.read_bytes()
        back = tmp_path / "back.raw"
        run("nbdcopy", "--request-size=1048576", uri, str(back))
        assert back.read_bytes()[: 8 * MIB] == raw.read_bytes()


def test_tls_clients_prove_themselves_to_a_server_that_asks(
    authority: Authority, disk: MemoryExport, tmp_path: Path
) -> None:
    """qemu with a client certificate is served, without one it is not, and the server goes on."""
    tls = authority.server_context(clients_prove_themselves=True)
    nobody = tmp_path / "nobody"
    nobody.mkdir()
    (nobody / "ca-cert.pem").write_bytes((authority.folder / "ca-cert.pem").read_bytes())
    with Serving(MemoryExports(disk=disk), tmp_path, tls=tls) as serving:
        for folder, status in ((nobody, None), (authority.folder, 0)):
            run(
                "qemu-io",
                "--object",
                f"tls-creds-x509,id=tls0,dir={folder},endpoint=client,verify-peer=yes",
                "--image-opts",
                "-c",
                "write -P 3 0 1M",
                "-c",
                "read -P 3 0 1M",
                f"driver=nbd,host=localhost,port={serving.address[1]},export=disk,tls-creds=tls0",
                status=status,
            )
        assert disk.data[:MIB] == b"\3" * MIB


def test_an_authority_the_client_does_not_know_is_refused(
    authority: Authority, disk: MemoryExport, tmp_path: Path
) -> None:
    """A client that trusts another authority ends the handshake; nothing is served in plain instead."""
    other = tmp_path / "other"
    other.mkdir()
    Authority(other)
    tls = authority.server_context(clients_prove_themselves=False)
    with Serving(MemoryExports(disk=disk), tmp_path, tls=tls) as serving:
        run("nbdinfo", tcp_uri(serving, "disk", "nbds") + f"?tls-certificates={other}", status=None)
        assert disk.clients == []
