"""The handshake of the NBD server, without a socket."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpac_engine.io.nbd.negotiation import OPTION_BYTES_MAX, Close, Enter, Negotiation, StartTls, Step, TlsMode
from tests.nbd.client import ACK, OptionReply, go, meta_context, option, option_replies
from tests.nbd.memory import MemoryExport, MemoryExports

SERVER, INFO, META = 2, 3, 4
UNSUP, POLICY, INVALID, TLS_REQD, UNKNOWN, SHUTDOWN, TOO_BIG = (2**31 + n for n in (1, 2, 3, 5, 6, 7, 9))
FLAGS = struct.pack(">I", 3)


def negotiation(tls: TlsMode = TlsMode.OFF, flags: bytes = FLAGS, **exports: MemoryExport) -> Negotiation:
    """A handshake whose client has sent its flags."""
    started = Negotiation(MemoryExports(**(exports or {"disk": MemoryExport()})), tls)
    assert started.receive(memoryview(flags)) == Step(4, b"", None)
    return started


def say(started: Negotiation, raw: bytes) -> tuple[list[OptionReply], object]:
    """What a whole message is answered."""
    step = started.receive(memoryview(raw))
    assert step.consumed == len(raw)
    return option_replies(step.reply), step.outcome


def kinds(started: Negotiation, raw: bytes) -> list[int]:
    """The types of the answers."""
    return [reply.kind for reply in say(started, raw)[0]]


def test_the_greeting_offers_fixed_newstyle() -> None:
    """The greeting is fixed newstyle with NO_ZEROES."""
    assert negotiation().greeting == b"NBDMAGICIHAVEOPT\x00\x03"


def test_go_enters_the_only_export_by_the_empty_name() -> None:
    """With one export the empty name means that one."""
    export = MemoryExport(1024)
    replies, outcome = say(negotiation(disk=export), go(""))
    assert [reply.kind for reply in replies] == [INFO, ACK]
    assert outcome == Enter(export, "disk", structured=False, block_status=False)


def test_the_empty_name_means_nothing_among_several() -> None:
    """With two exports there is no default, and the answer says so."""
    replies, outcome = say(negotiation(a=MemoryExport(), b=MemoryExport()), go(""))
    assert replies[0].kind == UNKNOWN
    assert b"name it" in replies[0].data
    assert outcome is None


def test_an_unknown_export_leaves_the_handshake_going() -> None:
    """After an unknown name the client may choose another."""
    started = negotiation()
    assert kinds(started, go("other")) == [UNKNOWN]
    assert isinstance(say(started, go("disk"))[1], Enter)


def test_info_tells_size_flags_name_and_block_sizes() -> None:
    """INFO gives what is asked for and stays in the handshake."""
    replies, outcome = say(negotiation(disk=MemoryExport(1536 + 100)), go("", 1, 3, number=6))
    assert [reply.kind for reply in replies] == [INFO, INFO, INFO, ACK]
    infos = {struct.unpack_from(">H", reply.data)[0]: reply.data[2:] for reply in replies[:-1]}
    flags = 0b1_0110_1101  # has flags, flush, FUA, trim, write zeroes, multi-conn; DF only with structured replies
    assert struct.unpack(">QH", infos[0]) == (1536, flags)
    assert infos[1] == b"disk"
    assert struct.unpack(">III", infos[3]) == (512, 4096, 32 * 2**20)
    assert outcome is None


def test_a_read_only_export_offers_no_changes() -> None:
    """READ_ONLY is set, TRIM and WRITE_ZEROES are not."""
    replies, _ = say(negotiation(disk=MemoryExport(read_only=True)), go(""))
    (flags,) = struct.unpack_from(">H", replies[0].data, 10)
    assert flags & 0b0110_0010 == 0b10


def test_structured_replies_bring_dont_fragment() -> None:
    """SEND_DF is offered with structured replies, and the session is told."""
    started = negotiation()
    assert kinds(started, option(8)) == [ACK]
    replies, outcome = say(started, go(""))
    assert struct.unpack_from(">H", replies[0].data, 10)[0] & 1 << 7
    assert isinstance(outcome, Enter)
    assert outcome.structured


@pytest.mark.parametrize(("flags", "zeroes"), [(3, 0), (1, 124), (0, 124), (2, 0)])
def test_export_name_is_answered_without_header(flags: int, zeroes: int) -> None:
    """EXPORT_NAME gets size and flags, padded unless the client waived that; even without fixed newstyle."""
    started = negotiation(disk=MemoryExport(1024), flags=struct.pack(">I", flags))
    step = started.receive(memoryview(option(1, b"disk")))
    assert isinstance(step.outcome, Enter)
    assert struct.unpack_from(">Q", step.reply) == (1024,)
    assert len(step.reply) == 10 + zeroes


def test_export_name_of_nothing_ends_the_session() -> None:
    """EXPORT_NAME cannot be answered by an error."""
    assert isinstance(negotiation().receive(memoryview(option(1, b"other"))).outcome, Close)


def test_list_names_every_export() -> None:
    """LIST gives each name, then ACK; with data it is refused."""
    started = negotiation(a=MemoryExport(), b=MemoryExport())
    replies, _ = say(started, option(3))
    assert [(reply.kind, reply.data[4:]) for reply in replies] == [(SERVER, b"a"), (SERVER, b"b"), (ACK, b"")]
    assert kinds(started, option(3, b"x")) == [INVALID]


def test_abort_is_acknowledged() -> None:
    """ABORT, with whatever data, is answered and ends the session."""
    replies, outcome = say(negotiation(), option(2, b"ignored"))
    assert [reply.kind for reply in replies] == [ACK]
    assert isinstance(outcome, Close)


def test_an_unknown_option_does_not_confuse_what_follows() -> None:
    """Each unknown option is UNSUP, its data skipped."""
    started = negotiation()
    assert kinds(started, option(11) + option(4711, b"some data") + option(8)) == [UNSUP, UNSUP, ACK]


def test_unknown_client_flags_end_the_session() -> None:
    """A flag we did not offer means we would misunderstand each other."""
    started = Negotiation(MemoryExports())
    assert isinstance(started.receive(memoryview(struct.pack(">I", 4))).outcome, Close)


def test_options_need_fixed_newstyle() -> None:
    """A client that did not agree to fixed newstyle cannot read option replies."""
    assert isinstance(negotiation(flags=bytes(4)).receive(memoryview(option(3))).outcome, Close)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0\4dis",
        struct.pack(">I4sH", 4, b"disk", 1),
        struct.pack(">I4sHHH", 4, b"disk", 1, 3, 3),
        struct.pack(">I4sH", 4, b"d\xffsk", 0),
        struct.pack(">I4sH", 4, b"d\0sk", 0),
        struct.pack(">IH", 2**32 - 1, 0),
    ],
)
def test_malformed_go_is_refused(data: bytes) -> None:
    """Fields that do not fit the data are INVALID, and the handshake goes on."""
    started = negotiation()
    assert kinds(started, option(7, data)) == [INVALID]
    assert isinstance(say(started, go("disk"))[1], Enter)


def test_long_option_data_is_skipped() -> None:
    """Data over the limit is TOO_BIG however it arrives, and the next option is understood."""
    started = negotiation()
    raw = option(7, bytes(OPTION_BYTES_MAX + 1)) + option(8)
    at, answers = 0, b""
    while at < len(raw):
        step = started.receive(memoryview(raw)[at : at + 5000])
        at += step.consumed
        answers += step.reply
        assert step.consumed
    assert [reply.kind for reply in option_replies(answers)] == [TOO_BIG, ACK]


def test_absurd_option_data_ends_the_session() -> None:
    """Four gigabytes of option data are an attack."""
    raw = struct.pack(">8sII", b"IHAVEOPT", 7, 2**32 - 1)
    assert isinstance(negotiation().receive(memoryview(raw)).outcome, Close)


def test_meta_contexts_need_structured_replies() -> None:
    """Block status cannot be answered by simple replies."""
    assert kinds(negotiation(), meta_context("disk", "base:allocation")) == [INVALID]


@pytest.mark.parametrize(
    ("queries", "listed", "selected"),
    [
        ((), True, False),
        (("base:",), True, False),
        (("base:allocation",), True, True),
        (("x-dpac:any", "base:allocation"), True, True),
        (("base:other", "qemu:dirty-bitmap:b"), False, False),
    ],
)
def test_meta_context_queries(queries: tuple[str, ...], listed: bool, selected: bool) -> None:
    """Which queries list, and which select, base:allocation."""
    started = negotiation()
    say(started, option(8))
    assert kinds(started, meta_context("disk", *queries, number=9)) == [META] * listed + [ACK]
    assert kinds(started, meta_context("disk", *queries)) == [META] * selected + [ACK]
    outcome = say(started, go("disk"))[1]
    assert isinstance(outcome, Enter)
    assert outcome.block_status is selected


def test_a_query_without_namespace_is_invalid() -> None:
    """A query needs its colon; what was selected before is void even so."""
    started = negotiation()
    say(started, option(8))
    say(started, meta_context("disk", "base:allocation"))
    assert kinds(started, meta_context("disk", "allocation")) == [INVALID]
    assert say(started, go("disk"))[1] == Enter(started._exports.find("disk"), "disk", True, False)


def test_a_meta_context_belongs_to_its_export() -> None:
    """What was selected for one export does not hold for another."""
    started = negotiation(a=MemoryExport(), b=MemoryExport())
    say(started, option(8))
    assert kinds(started, meta_context("a", "base:allocation")) == [META, ACK]
    outcome = say(started, go("b"))[1]
    assert isinstance(outcome, Enter)
    assert not outcome.block_status
    assert kinds(started, meta_context("c", "base:allocation")) == [UNKNOWN]


def test_without_tls_starttls_is_against_policy() -> None:
    """A plain address says so."""
    assert kinds(negotiation(), option(5)) == [POLICY]


@pytest.mark.parametrize("asked", [go("disk"), go("disk", number=6), option(3), option(8), option(99)])
def test_required_tls_comes_first(asked: bytes) -> None:
    """Every other option is TLS_REQD until TLS is on, existing or not."""
    started = negotiation(TlsMode.REQUIRED)
    assert kinds(started, asked) == [TLS_REQD]


def test_export_name_without_required_tls_ends_the_session() -> None:
    """EXPORT_NAME cannot be told TLS_REQD; ABORT is allowed."""
    step = negotiation(TlsMode.REQUIRED).receive(memoryview(option(1, b"disk")))
    assert isinstance(step.outcome, Close)
    assert step.reply == b""
    assert kinds(negotiation(TlsMode.REQUIRED), option(2)) == [ACK]


@pytest.mark.parametrize("mode", [TlsMode.OPTIONAL, TlsMode.REQUIRED])
def test_starttls_forgets_what_was_agreed_in_plain(mode: TlsMode) -> None:
    """After TLS nothing said before counts, a second STARTTLS is invalid, and the export can be entered."""
    started = negotiation(mode)
    say(started, option(8))
    replies, outcome = say(started, option(5))
    assert [reply.kind for reply in replies] == [ACK]
    assert isinstance(outcome, StartTls)
    started.secured()
    assert kinds(started, option(5)) == [INVALID]
    entered = say(started, go("disk"))[1]
    assert isinstance(entered, Enter)
    assert not entered.structured


def test_a_stopping_server_refuses_options() -> None:
    """Options are SHUTDOWN while the server stops; ABORT still works."""
    started = negotiation()
    started.stopping = True
    assert kinds(started, go("disk")) == [SHUTDOWN]
    assert kinds(started, option(2)) == [ACK]


def test_bytes_after_go_are_left_for_the_session() -> None:
    """What a client sends behind its last option is not eaten."""
    raw = go("disk")
    step = negotiation().receive(memoryview(raw + b"request"))
    assert step.consumed == len(raw)


OPTIONS = st.one_of(
    st.builds(option, st.integers(0, 12), st.binary(max_size=40)),
    st.sampled_from([go("disk"), go("x", 0, 1, 2, 3), option(8), option(3), meta_context("disk", "base:allocation")]),
    st.binary(min_size=1, max_size=60),
)


def _replay(raw: bytes, cuts: list[int]) -> tuple[bytes, object]:
    """Everything answered to `raw` when it arrives in pieces."""
    export = MemoryExport()
    started = Negotiation(MemoryExports(disk=export), TlsMode.OPTIONAL)
    answers, at = b"", 0
    for end in [*sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]:
        step = started.receive(memoryview(raw)[at:end])
        assert 0 <= step.consumed <= end - at
        answers += step.reply
        at += step.consumed
        if step.outcome is not None:
            return answers, type(step.outcome)
    return answers, None


@given(st.lists(OPTIONS, max_size=6), st.lists(st.integers(0, 10_000), max_size=8))
def test_how_bytes_are_cut_changes_nothing(messages: list[bytes], cuts: list[int]) -> None:
    """Whatever comes, in whatever pieces, has one answer and never raises."""
    raw = FLAGS + b"".join(messages)
    assert _replay(raw, cuts) == _replay(raw, [])
