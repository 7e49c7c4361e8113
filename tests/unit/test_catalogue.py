"""The catalogue: identities, ownership, what is refused, and what a retry gets."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, text

from dpac_api.errors import Conflict, Corruption, Invalid, NotFound, Temporary, Unsupported
from dpac_api.models import DirectorySpec, Group, GroupSpec, Owner, PutGroup, PutTarget, VolumeSpec
from dpac_engine.control.assignment import WorkerAssignment
from dpac_engine.control.auth import Authenticator, CreateToken, create_token
from dpac_engine.control.catalogue import REQUEST_AGE_MAX, Catalogue, recall, remember
from dpac_engine.control.catalogue_groups import (
    assignment,
    delete_group,
    forget_group,
    group_row,
    purge_expired,
    put_group,
)
from dpac_engine.control.catalogue_rebuild import rebuild
from dpac_engine.control.catalogue_schema import Base, GroupRow, RequestRow, TargetRow
from dpac_engine.control.catalogue_targets import collect_retired, delete_target, get_target, put_target
from dpac_engine.control.member_identity import Identity, assign
from dpac_engine.control.site import Site as GroupFolders
from tests.unit.control_fakes import SITE, World

NOW = datetime(2027, 1, 15, 8, tzinfo=UTC)
SHOP = Owner(project="shop", stack="prod")
OTHER = Owner(project="other", stack="prod")


class Site:
    """A catalogue with the target `copies`, and verbs that are one transaction each."""

    def __init__(self, root: Path, workers: int = 1) -> None:
        self.world = World(root, workers)
        self.catalogue = Catalogue.open(self.world.data / "catalogue.sqlite")
        self.host = self.world.host()
        self.put_target("copies")

    def put_target(self, name: str, path: str | None = None, owner: Owner | None = None, adopt: bool = False) -> object:
        spec = {"kind": "filesystem", "path": path or str(self.world.root / name)}
        put = PutTarget.model_validate({"request_id": "r" * 8, "owner": owner, "adopt": adopt, "spec": spec})
        with self.catalogue.write() as session:
            return put_target(session, name, put, data=self.world.data, site_uid=SITE.site_uid, now=NOW)

    def put_bucket(self, name: str, **changes: object) -> object:
        spec = {"kind": "s3", "bucket": "shop-copies", **changes}
        put = PutTarget.model_validate({"request_id": "r" * 8, "spec": spec})
        with self.catalogue.write() as session:
            return put_target(session, name, put, data=self.world.data, site_uid=SITE.site_uid, now=NOW)

    def put(self, name: str = "shop", owner: Owner | None = SHOP, adopt: bool = False, **changes: object) -> Group:
        spec = GroupSpec.model_validate(self.world.group_spec(**changes))
        put = PutGroup(request_id="r" * 8, owner=owner, adopt=adopt, spec=spec)
        with self.catalogue.write() as session:
            return put_group(session, name, put, self.host, NOW)

    def delete(self, name: str = "shop", on_destroy: str | None = None) -> None:
        with self.catalogue.write() as session:
            delete_group(session, name, on_destroy, NOW)  # type: ignore[arg-type]

    def ordinals(self, name: str = "shop") -> dict[str, int]:
        with self.catalogue.read() as session:
            told = assignment(session, group_row(session, name), self.host)
        return {member: identity.ordinal for member, identity in told.members.items()}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.catalogue.close()


def members(site: Site, **changes: object) -> dict[str, object]:
    spec = site.world.group_spec()["members"]
    assert isinstance(spec, dict)
    return {**spec, **changes}


# ------------------------------------------------------------------ the file


def test_migrations_make_exactly_the_tables_of_the_schema(site: Site) -> None:
    """A column added to the schema without a migration fails here."""
    with site.catalogue.read() as session:
        assert compare_metadata(MigrationContext.configure(session.connection()), Base.metadata) == []


def test_what_was_committed_is_there_after_opening_again(site: Site) -> None:
    """The catalogue outlives its process."""
    group = site.put()
    again = Catalogue.open(site.world.data / "catalogue.sqlite")
    with again.read() as session:
        assert group_row(session, "shop").uid == group.uid
    again.close()


def test_a_file_that_is_no_database_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """A damaged catalogue is Corruption, not a traceback."""
    path = tmp_path / "catalogue.sqlite"
    path.write_bytes(b"not a database at all, but long enough to be looked at" * 100)
    with pytest.raises(Corruption, match="dpac catalogue rebuild"):
        Catalogue.open(path)


def test_a_page_that_breaks_at_work_is_corruption_and_remembered(site: Site) -> None:
    """Control ends then and comes back saying so; a statement's own error is not taken for it."""
    site.put()
    path = site.world.data / "catalogue.sqlite"
    site.catalogue.close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))
    with pytest.raises(Corruption, match="is damaged"), site.catalogue.read() as session:
        session.scalars(select(GroupRow)).all()
    assert site.catalogue.damaged


def test_a_catalogue_of_a_newer_version_is_unsupported(site: Site) -> None:
    """It is neither migrated nor taken for damaged."""
    with site.catalogue.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Unsupported, match="newer dpac"):
        Catalogue.open(site.world.data / "catalogue.sqlite")


# ------------------------------------------------------------------ rebuilding


def write_assignments(site: Site) -> GroupFolders:
    """What the reconciler writes for every group; returns the site that they are of."""
    made = GroupFolders("5" * 32, "fra", site.world.data, site.world.data / "run")
    made.mounts.mkdir(exist_ok=True)
    with site.catalogue.read() as session:
        for row in session.scalars(select(GroupRow)):
            made.group(row.uid).mkdir(parents=True, exist_ok=True)
            told = assignment(session, row, site.host)
            (made.group(row.uid) / "assignment.json").write_text(told.model_dump_json())
    return made


def everything(path: Path) -> list[object]:
    """All that a catalogue says of groups, members and targets, but for what was confirmed by workers."""
    catalogue = Catalogue.open(path)
    with catalogue.read() as session:
        rows = [*session.scalars(select(GroupRow)), *session.scalars(select(TargetRow))]
        found = [row for group in rows if isinstance(group, GroupRow) for row in group.members] + rows
        said = [
            {c.key: getattr(row, c.key) for c in row.__table__.columns if c.key != "applied_generation"}
            for row in found
        ]
    catalogue.close()
    return sorted(said, key=repr)


def test_a_rebuilt_catalogue_says_what_the_lost_one_said(site: Site) -> None:
    """Owners, ordinals of removed members, past targets, expiry, retired targets, generations: to the column."""
    site.put_target("copies", owner=SHOP, adopt=True)
    site.put_target("more", owner=OTHER)
    site.put(replication={"copies": {"target": "copies"}, "more": {"target": "more"}})
    site.put(members={"disk": members(site)["disk"]}, owner=OTHER, adopt=True)
    logs = VolumeSpec(path=str(site.world.root / "logs.raw"), size="1MiB").model_dump(mode="json")
    site.put("old", members={"logs": logs}, replication={"more": {"target": "more"}})
    site.delete("old", "expire")
    with site.catalogue.write() as session:
        delete_target(session, "more")
    file = site.world.data / "catalogue.sqlite"
    before = everything(file)
    folders = write_assignments(site)
    site.catalogue.close()
    file.unlink()
    done = rebuild(folders, lambda _: [], NOW)
    assert (done.groups, done.retained, done.targets, done.notes) == (["shop"], ["old"], ["copies", "more"], [])
    assert everything(file) == before


def test_a_group_whose_assignment_is_lost_comes_from_its_target(site: Site) -> None:
    """At work if its journal is here, else retained; another site's groups at the same target are left alone."""
    site.put()
    logs = VolumeSpec(path=str(site.world.root / "logs.raw"), size="1MiB").model_dump(mode="json")
    site.put("other", members={"logs": logs})
    folders = write_assignments(site)
    told = {
        uid: WorkerAssignment.model_validate_json((folders.group(uid) / "assignment.json").read_text())
        for uid in os.listdir(folders.groups)
    }
    (kept,) = (each for each in told.values() if each.name == "other")
    (lost,) = (each for each in told.values() if each.name == "shop")
    foreign = lost.model_copy(update={"site_uid": "9" * 32, "group_uid": "8" * 32, "name": "theirs"})
    gone = lost.model_copy(update={"group_uid": "7" * 32, "name": "gone"})
    unreadable = "6" * 32
    stored = {each.group_uid: each for each in (kept, lost, foreign, gone)} | {unreadable: NotFound("no key.")}
    (folders.group(lost.group_uid) / "assignment.json").write_text("{")
    (folders.group(lost.group_uid) / "spool").mkdir()
    site.catalogue.close()
    (site.world.data / "catalogue.sqlite").unlink()
    done = rebuild(folders, lambda _: stored.items(), NOW)
    assert (done.groups, done.retained) == (["other", "shop"], ["gone"])
    assert any(unreadable in note for note in done.notes)
    assert not any("theirs" in note for note in done.notes)


# ------------------------------------------------------------------ identity


def test_a_group_gets_ordinals_from_one_and_never_uses_one_twice(site: Site) -> None:
    """Ordinal 0 is the group's own; a removed member's ordinal stays its own for ever."""
    site.put()
    assert site.ordinals() == {"disk": 1, "orders": 2}
    site.put(members={"disk": members(site)["disk"]})
    site.put()
    assert site.ordinals() == {"disk": 1, "orders": 3}


def test_a_member_whose_path_changes_is_a_new_member(site: Site) -> None:
    """The old one's ordinal is retired, and the membership version rises."""
    before = site.put()
    moved = VolumeSpec(path=str(site.world.root / "other.raw"), size="1MiB").model_dump(mode="json")
    after = site.put(members=members(site, disk=moved))
    assert site.ordinals() == {"disk": 3, "orders": 2}
    assert after.membership_version == before.membership_version + 1


def test_a_changed_blueprint_keeps_the_member(site: Site) -> None:
    """How a directory is quiesced is not who it is."""
    before = site.put()
    plain = DirectorySpec(path=str(site.world.root / "orders")).model_dump(mode="json")
    after = site.put(members=members(site, orders=plain))
    assert site.ordinals() == {"disk": 1, "orders": 2}
    assert (after.generation, after.membership_version) == (before.generation + 1, before.membership_version)


@given(st.lists(st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["/x", "/y", "/z"]), max_size=4), max_size=12))
def test_no_history_of_changes_gives_two_members_one_ordinal(history: list[dict[str, str]]) -> None:
    """Whatever comes and goes, (name, path) keeps its ordinal while it stays, and no ordinal has two owners."""
    present: list[Identity] = []
    owners: dict[int, tuple[str, str, int]] = {}
    ordinal_next = 1
    for step, wanted in enumerate(history):
        specs = {name: DirectorySpec(path=path) for name, path in wanted.items()}
        change = assign(present, specs, ordinal_next, lambda: "0" * 32)
        ordinal_next += len(change.added)
        assert all((i.name, i.path) == owners[i.ordinal][:2] for i in change.kept)
        for identity in change.added:
            assert identity.ordinal not in owners
            owners[identity.ordinal] = (identity.name, identity.path, step)
        present = [*change.kept, *change.added]
        assert {i.name: i.path for i in present} == wanted


def test_the_same_spec_again_changes_nothing(site: Site) -> None:
    """An upsert of what is there already does not even raise the generation."""
    assert site.put() == site.put()


def test_groups_go_to_the_worker_with_fewest_and_stay_there(tmp_path: Path) -> None:
    """The worker is in the NBD URI, so it is decided once."""
    site = Site(tmp_path, workers=2)
    uris = []
    for name in ("one", "two", "three"):
        spec = {"disk": {"kind": "volume", "path": str(tmp_path / f"{name}.raw"), "size": "1MiB"}}
        uris.append(site.put(name, members=spec).members["disk"].nbd_uri)
    assert [uri.split("nbd-")[1] for uri in uris] == ["0.sock", "1.sock", "0.sock"]
    site.delete("one")
    spec = {"disk": {"kind": "volume", "path": str(tmp_path / "three.raw"), "size": "2MiB"}}
    assert site.put("three", members=spec).members["disk"].nbd_uri == uris[2]


def test_a_volumes_uri_is_escaped_and_a_directory_has_none(site: Site) -> None:
    """Applications take the URI as it is."""
    group = site.put()
    assert group.members["disk"].nbd_uri == f"nbd+unix:///shop/disk?socket={site.world.data}/run/nbd-0.sock"
    assert group.members["orders"].nbd_uri == ""


# ------------------------------------------------------------------ ownership


def test_another_owner_is_told_whose_group_it_is_and_how_to_adopt_it(site: Site) -> None:
    """Two programs do not fight over one group."""
    site.put()
    with pytest.raises(Conflict, match=r"organization/shop/prod.*adopt=True"):
        site.put(owner=OTHER)
    assert site.put(owner=OTHER, adopt=True).owner == OTHER


def test_the_cli_changes_a_group_without_becoming_its_owner(site: Site) -> None:
    """Owner None keeps whoever owns it."""
    site.put()
    assert site.put(owner=None, journal={"history": "2d"}).owner == SHOP


def test_a_group_made_by_the_cli_is_adopted_only_when_asked(site: Site) -> None:
    """It has no owner, but it is somebody's."""
    site.put(owner=None)
    with pytest.raises(Conflict, match="made by the CLI"):
        site.put()
    assert site.put(adopt=True).owner == SHOP


def test_a_retained_group_is_resumed_by_its_owner_under_the_same_uid(site: Site) -> None:
    """Destroy and `up` again: the recovery points belong to it as before."""
    before = site.put()
    site.delete()
    with pytest.raises(NotFound, match="retained"), site.catalogue.read() as session:
        group_row(session, "shop")
    with pytest.raises(Conflict, match="belongs to"):
        site.put(owner=OTHER)
    after = site.put()
    assert (after.uid, after.members) == (before.uid, before.members)
    assert after.lifecycle == "active"
    assert site.ordinals() == {"disk": 1, "orders": 2}


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("member", "spec", "path", "says"),
    [
        ("disk", {"kind": "volume", "path": "{root}/missing.raw"}, "disk.size", "Give a size"),
        ("disk", {"kind": "volume", "path": "{root}/no/disk.raw", "size": "1MiB"}, "disk.path", "does not exist"),
        ("disk", {"kind": "volume", "path": "{root}/folder", "size": "1MiB"}, "disk.path", "not a regular file"),
        ("orders", {"kind": "directory", "path": "{root}/nowhere"}, "orders.path", "Create the directory first"),
        ("orders", {"kind": "directory", "path": "{root}/file"}, "orders.path", "not a directory"),
        ("orders", {"kind": "directory", "path": "{root}/site/run"}, "orders.path", "data folder"),
        ("orders", {"kind": "directory", "path": "{root}"}, "orders.path", "overlaps"),
        ("disk", {"kind": "volume", "path": "{root}/copies/d.raw", "size": "1MiB"}, "disk.path", "target 'copies'"),
        ("disk", {"kind": "volume", "path": "{root}/orders/d.raw", "size": "1MiB"}, "path", "overlaps with member"),
        ("disk", {"kind": "volume", "path": "{root}/odd.raw"}, "disk.size", "multiple of 512"),
    ],
)
def test_a_member_that_cannot_be_attached_is_refused_by_its_property(
    site: Site, member: str, spec: dict[str, str], path: str, says: str
) -> None:
    """Each of a user's mistakes names the property and what to do."""
    root = site.world.root
    (root / "file").write_text("x")
    (root / "odd.raw").write_bytes(b"x" * 1000)
    (root / "folder").mkdir()
    (site.world.data / "run").mkdir()
    wanted = {key: value.format(root=root) for key, value in spec.items()}
    with pytest.raises(Invalid, match=says) as caught:
        site.put(members=members(site, **{member: wanted}))
    assert caught.value.property_path is not None
    assert caught.value.property_path.startswith("spec.members.")
    assert caught.value.property_path.endswith(path)
    with site.catalogue.read() as session:
        assert session.scalars(select(GroupRow)).all() == []


def test_a_path_through_a_symbolic_link_is_the_same_path(site: Site) -> None:
    """Two spellings of one directory are one directory."""
    (site.world.root / "alias").symlink_to(site.world.data)
    with pytest.raises(Invalid, match="data folder"):
        site.put(members={"x": {"kind": "directory", "path": str(site.world.root / "alias")}})


def test_two_groups_cannot_claim_one_path(site: Site) -> None:
    """The second is told which group has it."""
    site.put()
    with pytest.raises(Conflict, match="member 'disk' of group 'shop'") as caught:
        site.put("bakery", members={"d": members(site)["disk"]})
    assert caught.value.property_path == "spec.members.d.path"


def test_a_volume_grows_but_never_shrinks(site: Site) -> None:
    """A smaller size than was declared is refused when the file is larger."""
    disk = site.world.root / "disk.raw"
    site.put()
    disk.write_bytes(bytes(2**20))
    grown = {"kind": "volume", "path": str(disk), "size": "2MiB"}
    site.put(members=members(site, disk=grown))
    disk.write_bytes(bytes(2 * 2**20))
    with pytest.raises(Invalid, match="never shrinks") as caught:
        site.put(members=members(site, disk={**grown, "size": "1MiB"}))
    assert caught.value.property_path == "spec.members.disk.size"


def test_a_leg_to_an_unknown_target_names_those_there_are(site: Site) -> None:
    """So do two legs to one target."""
    with pytest.raises(Invalid, match="there is: copies") as caught:
        site.put(replication={"far": {"target": "moon"}})
    assert caught.value.property_path == "spec.replication.far.target"
    with pytest.raises(Invalid, match="One leg per target"):
        site.put(replication={"a": {"target": "copies"}, "b": {"target": "copies"}})


# ------------------------------------------------------------------ targets


def test_a_used_target_refuses_to_go_or_to_move_and_names_its_groups(site: Site) -> None:
    """Recovery points stay where they are known to be."""
    site.put()
    with pytest.raises(Conflict, match="used by shop"), site.catalogue.write() as session:
        delete_target(session, "copies")
    with pytest.raises(Conflict, match="cannot move") as caught:
        site.put_target("copies", str(site.world.root / "elsewhere"))
    assert caught.value.property_path == "spec.path"


def test_a_target_of_a_retained_group_retires_and_comes_back_as_itself(site: Site) -> None:
    """`pulumi destroy` may delete group and target; the next `up` finds both again."""
    before = site.put_target("copies")
    site.put()
    site.delete()
    with site.catalogue.write() as session:
        delete_target(session, "copies")
    with pytest.raises(NotFound), site.catalogue.read() as session:
        get_target(session, SITE.site_uid, "copies")
    with pytest.raises(Conflict, match="shop"):
        site.put_target("copies", str(site.world.root / "elsewhere"))
    assert site.put_target("copies").uid == before.uid  # type: ignore[attr-defined]
    assert site.put().lifecycle == "active"


def test_a_retired_target_goes_once_nothing_lies_there(site: Site) -> None:
    """After the purge of the last group nobody needs it."""
    group = site.put()
    site.delete()
    with site.catalogue.write() as session:
        delete_target(session, "copies")
    with site.catalogue.write() as session:
        forget_group(session, group.uid)
        session.flush()
        collect_retired(session)
    with site.catalogue.read() as session:
        assert session.scalars(select(TargetRow)).all() == []


@pytest.mark.parametrize(
    ("path", "error", "says"),
    [
        ("{root}/no/where", Invalid, "does not exist"),
        ("{root}/site/copies", Invalid, "data folder"),
        ("{root}/orders/copies", Invalid, "member 'orders'"),
        ("{root}/copies/deeper", Conflict, "target 'copies'"),
    ],
)
def test_a_target_in_a_wrong_place_is_refused(site: Site, path: str, error: type[Exception], says: str) -> None:
    """Copies never lie in what they are copies of."""
    site.put()
    (site.world.root / "orders" / "x").mkdir()
    with pytest.raises(error, match=says):
        site.put_target("second", path.format(root=site.world.root))


def test_how_a_used_bucket_is_reached_may_change_but_not_where_it_is(site: Site) -> None:
    """New credentials or another proxy move nothing; another bucket, prefix or server would leave recovery points behind."""
    site.put_bucket("cloud", prefix="dpac")
    site.put(replication={"b": {"target": "cloud"}})
    changed = site.put_bucket("cloud", prefix="dpac", credentials="profile:new", storage_class="STANDARD_IA")
    assert changed.spec.credentials == "profile:new"  # type: ignore[attr-defined]
    for elsewhere in ({"bucket": "other"}, {"prefix": "other"}, {"prefix": "dpac", "endpoint": "http://minio:9000"}):
        with pytest.raises(Conflict, match="cannot move") as caught:
            site.put_bucket("cloud", **elsewhere)
        assert caught.value.property_path == "spec.bucket"


def test_two_targets_do_not_share_a_place_in_a_bucket(site: Site) -> None:
    """A prefix within another target's would be listed, and purged, with it."""
    site.put_bucket("cloud", prefix="a/b")
    site.put_bucket("apart", prefix="a/bc")
    for prefix in ("a/b", "a/b/c", "a", ""):
        with pytest.raises(Conflict, match=r"target 'cloud'|target 'apart'"):
            site.put_bucket("second", prefix=prefix)


def test_certificates_that_are_not_there_are_refused(site: Site) -> None:
    """Before anything changes, with the property."""
    with pytest.raises(Invalid, match=r"cannot be read") as caught:
        site.put_bucket("cloud", ca_file="/nowhere/ca.pem")
    assert caught.value.property_path == "spec.ca_file"


def test_a_leg_removed_leaves_its_target_known(site: Site) -> None:
    """Recovery points of a removed leg are still found, and purged with the rest."""
    site.put()
    site.put_target("second")
    site.put(replication={"b": {"target": "second"}})
    with site.catalogue.write() as session:
        delete_target(session, "copies")
        assert session.scalars(select(TargetRow.lifecycle).where(TargetRow.name == "copies")).one() == "retired"


# ------------------------------------------------------------------ deleting


def test_expire_sets_a_deadline_by_what_was_asked_to_be_kept(site: Site) -> None:
    """The longest retention of any leg decides; then the group is purged, not before."""
    site.put(replication={"copies": {"target": "copies", "retention": {"weekly": 8, "tagged": "1d"}}})
    site.delete(on_destroy="expire")
    with site.catalogue.write() as session:
        assert purge_expired(session, NOW + timedelta(days=55)) == []
        assert len(purge_expired(session, NOW + timedelta(days=57))) == 1


def test_a_resumed_group_no_longer_expires(site: Site) -> None:
    """Declaring it again takes back the deadline."""
    site.put()
    site.delete(on_destroy="expire")
    site.put()
    with site.catalogue.write() as session:
        assert purge_expired(session, NOW + timedelta(days=4000)) == []


def test_a_group_being_purged_cannot_be_declared_again_yet(site: Site) -> None:
    """Temporary: the client tries again until it is gone."""
    site.put()
    site.delete(on_destroy="purge")
    with pytest.raises(Temporary, match="purged"):
        site.put()


# ------------------------------------------------------------------ request ids and tokens


def test_an_answer_is_recalled_for_its_request_only(site: Site) -> None:
    """The same id for something else is a Conflict."""
    with site.catalogue.write() as session:
        remember(session, "request-1", "put shop", {"uid": "1"}, NOW)
    with site.catalogue.read() as session:
        assert recall(session, "request-1", "put shop") == {"uid": "1"}
        assert recall(session, "request-2", "put shop") is None
        with pytest.raises(Conflict, match="different request"):
            recall(session, "request-1", "put bakery")


def test_answers_are_forgotten_by_age(site: Site) -> None:
    """The table does not grow for ever."""
    with site.catalogue.write() as session:
        remember(session, "request-1", "a", {}, NOW)
    with site.catalogue.write() as session:
        remember(session, "request-2", "b", {}, NOW + REQUEST_AGE_MAX + timedelta(seconds=1))
    with site.catalogue.read() as session:
        assert [row.id for row in session.scalars(select(RequestRow))] == ["request-2"]


def test_a_change_that_fails_leaves_nothing_behind(site: Site) -> None:
    """Change and answer are one transaction."""

    def interrupted() -> None:
        with site.catalogue.write() as session:
            remember(session, "request-1", "a", {}, NOW)
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        interrupted()
    with site.catalogue.read() as session:
        assert recall(session, "request-1", "a") is None


def test_of_a_token_only_a_digest_is_kept(site: Site) -> None:
    """The file never holds the secret, yet the secret opens the door."""
    with site.catalogue.write() as session:
        token = create_token(session, CreateToken(name="ci", scope="read"), NOW)
    authenticator = Authenticator(site.catalogue, site.world.data / "tokens" / "admin")
    authenticator.require(f"Bearer {token.secret}", "read", NOW)
    site.catalogue.close()
    files = site.world.data.glob("catalogue.sqlite*")
    assert not any(token.secret.encode() in file.read_bytes() for file in files)
