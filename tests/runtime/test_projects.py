"""Managed projects: their rules, and what is under way for them, also when whoever does it is killed."""

import msgspec
import psycopg
import pytest
import trio

from bloomd.postgres import Pool
from bloomd.postgres.migrate import migrate
from bloomd.runtime import audit, clonings, projects, workers
from bloomd.runtime.clonings import BUSY_SECONDS, Operation, Outcome, Target
from bloomd.runtime.database import Database
from bloomd.runtime.pages import Page
from bloomd.runtime.projects import NewProject, flaws
from bloomd.runtime.refusals import Conflict, Invalid, NotFound
from bloomd.runtime.schema import MIGRATIONS

HOUR = 3_600_000


@pytest.fixture
def new_project(db):
    async def create(name="bloom", **fields):
        fields = {"repo_url": "https://git.example.org/bloom.git", **fields}
        return await projects.create(db, NewProject(name=name, **fields), actor="test")

    return create


class Order(msgspec.Struct):
    """An entry and its number: several may be of one moment."""

    id: str
    seq: int


async def told(db, project):
    """What the audit trail tells of a project, oldest first."""
    entries = await audit.listing(db, Page(), entity_id=project.id)
    order = {row.id: row.seq for row in await db.rows(Order, "SELECT id, seq FROM audit_logs")}
    return [(entry.action, entry.detail) for entry in sorted(entries, key=lambda entry: order[entry.id])]


async def states(db, project):
    return {node.node_id: node.clone_status for node in await projects.nodes(db, project.id)}


def cloning(project, id="o1"):
    return Operation(id, project.id, "cloned")


def propagating(project, id="o1"):
    return Operation(id, project.id, "synced")


async def test_a_project_is_created_shown_and_removed(db, new_project):
    made = await new_project("My project 1.0", target_path="/srv/my project")
    assert made.canonical_id == "0e2c5dda31a8d73b"  # printf 'My project 1.0' | sha256sum
    assert (made.clone_status, made.primary_node_id, made.error_message) == ("pending", None, None)
    assert made.created_at == made.updated_at
    assert await projects.one(db, made.id) == made
    await clonings.begin(db, cloning(made), ["w1"], actor="test")
    await projects.remove(db, made.id, actor="test")
    assert await projects.nodes(db, made.id) == []
    assert [action for action, _ in await told(db, made)] == ["project.created", "project.cloning", "project.removed"]
    for look in (projects.one(db, made.id), projects.remove(db, made.id, actor="test")):
        with pytest.raises(NotFound, match="Project not found"):
            await look


async def test_they_are_listed_newest_first_in_pages(db, sql, new_project):
    made = [await new_project(f"p{n}") for n in range(5)]
    sql("UPDATE managed_projects SET created_at = 7 + greatest(0, right(name, 1)::integer - 2)")  # three at one moment
    expected = ["p4", "p3", *[p.name for p in sorted(made[:3], key=lambda p: p.id, reverse=True)]]
    page, names = Page(limit=2), []
    while page:
        rows = await projects.listing(db, page)
        names += [project.name for project in rows]
        cursor = page.next(rows, lambda project: (project.created_at, project.id))
        page = Page.after(cursor, 2) if cursor else None
    assert names == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("name", name) for name in ("", "a/b", "a\n", "..", ".", ". .", " ", "ä", "a" * 257)],
        *[("target_path", path) for path in ("/srv/../etc", "..", "a..b", "a\x00", "a\nb", "a" * 1025)],
        *[("repo_url", url) for url in (
            "", "x", "ftp://h/x", "file:///etc/passwd", "ext::sh -c id", "-oProxyCommand=id", "https://", "https:///x",
            "https://h/x y", "https://h/$(id)", "https://h/x\n", "git@", "git@-oProxyCommand=id:x", "git@h", "git@h:-x",
            "ssh://git@h/x", "https://h/x?token=abc", "https://h/x#abc", "https://h:99999999/x",
            "https://h/" + "a" * 2048,
        )],
    ],
)  # fmt: skip
async def test_what_a_project_may_not_be(db, field, value):
    new = NewProject(**{"name": "ok", "repo_url": "https://h/x", field: value})
    assert [name for name, _ in flaws(new)] == [field]
    with pytest.raises(Invalid, match=f"^{field} must "):
        await projects.create(db, new, actor="test")


@pytest.mark.parametrize("url", ["https://token-3f@h/x", "https://u:token-3f@h/x", "http://:token-3f@h", "https://u@h"])
def test_an_address_with_a_secret_is_refused_and_not_repeated(url):
    [(field, message)] = flaws(NewProject(name="ok", repo_url=url))
    assert field == "repo_url"
    assert "must not hold a user name, password or token" in message
    assert "token-3f" not in message


@pytest.mark.parametrize(
    "url",
    ["https://h", "http://10.0.0.1:3000/a/b.git", "https://[fd00::1]/x", "https://h/@scope/x", "git@h:a/b.git",
     "git@h.example.org:/srv/git/b"],
)  # fmt: skip
def test_what_an_address_may_be(url):
    assert list(flaws(NewProject(name="a_b-c. D", repo_url=url, target_path="/srv/.hidden/a.b."))) == []


async def test_a_cloning_that_goes_well(db, new_project, new_worker):
    project = await new_project()
    await new_worker("w1", url="http://10.0.0.1:8001")
    assert await clonings.begin(db, cloning(project), ["w1"], actor="ann") == {"w1"}
    assert (await projects.one(db, project.id)).clone_status == "cloning"
    assert await states(db, project) == {"w1": "cloning"}
    await clonings.settle(db, cloning(project), "w1", Outcome(path="/srv/bloom"), actor="ann")
    await clonings.end(db, cloning(project), actor="ann")
    after = await projects.one(db, project.id)
    assert (after.clone_status, after.primary_node_id, after.error_message) == ("cloned", "w1", None)
    [node] = await projects.nodes(db, project.id)
    assert (node.clone_status, node.repo_path, node.error_message) == ("cloned", "/srv/bloom", None)
    assert abs(node.last_sync_at - after.updated_at) < 10_000
    assert (await told(db, project))[1:] == [
        ("project.cloning", "to w1"),
        ("project.cloned", "node w1, in /srv/bloom"),
        ("project.ended", "now cloned"),
    ]


async def test_a_cloning_that_fails_keeps_the_error_until_the_next_one_begins(db, new_project):
    project = await new_project()
    await clonings.begin(db, cloning(project), ["w1"], actor="ann")
    await clonings.settle(db, cloning(project), "w1", Outcome(error="disk full"), actor="ann")
    await clonings.end(db, cloning(project), actor="ann")
    failed = await projects.one(db, project.id)
    assert (failed.clone_status, failed.error_message) == ("failed", "node w1: disk full")
    assert failed.primary_node_id is None
    [node] = await projects.nodes(db, project.id)
    assert (node.clone_status, node.error_message, node.last_sync_at) == ("failed", "disk full", None)
    await clonings.begin(db, cloning(project, "o2"), ["w1"], actor="ann")
    assert (await projects.one(db, project.id)).error_message is None
    [again] = await projects.nodes(db, project.id)
    assert (again.id, again.clone_status, again.error_message) == (node.id, "cloning", None)


@pytest.mark.parametrize(
    ("known", "errors", "status", "error"),
    [
        ([], [None, None, None], "synced", None),
        ([], [None, "x", None], "cloned", "1 of 3 nodes failed; node w1: x"),
        ([], ["x", "y", "z"], "failed", "node w0: x"),
        (["w9"], ["x", "y", "z"], "cloned", "node w0: x"),
    ],
)
async def test_what_a_propagation_makes_of_a_project(db, new_project, known, errors, status, error):
    project = await new_project()
    for node in known:
        await clonings.begin(db, cloning(project, "before"), [node], actor="ann")
        await clonings.settle(db, cloning(project, "before"), node, Outcome(), actor="ann")
        await clonings.end(db, cloning(project, "before"), actor="ann")
    nodes = [f"w{n}" for n in range(len(errors))]
    await clonings.begin(db, propagating(project), nodes, actor="ann")
    assert (await projects.one(db, project.id)).clone_status == "propagating"
    async with trio.open_nursery() as nursery:
        for node, each in zip(nodes, errors, strict=True):
            nursery.start_soon(settle, db, propagating(project), node, Outcome(each))
    await clonings.end(db, propagating(project), actor="ann")
    after = await projects.one(db, project.id)
    assert (after.clone_status, after.error_message) == (status, error)
    assert {node: state for node, state in (await states(db, project)).items() if node not in known} == {
        node: "failed" if each else "synced" for node, each in zip(nodes, errors, strict=True)
    }


async def test_a_node_of_which_nothing_is_known_has_failed_for_the_project(db, new_project):
    project = await new_project()
    await clonings.begin(db, cloning(project), ["w1"], actor="ann")
    await clonings.end(db, cloning(project), actor="ann")
    after = await projects.one(db, project.id)
    assert (after.clone_status, after.error_message) == ("failed", "node w1: nobody knows what came of it")
    assert after.primary_node_id is None


async def settle(db, operation, node, outcome):
    await clonings.settle(db, operation, node, outcome, actor="test")


async def test_of_many_who_begin_at_once_on_one_node_one_does(db, new_project):
    project = await new_project()
    begun, refused = [], []

    async def begin(n):
        try:
            begun.append(await clonings.begin(db, cloning(project, f"o{n}"), ["w1"], actor="test"))
        except Conflict as error:
            refused.append(str(error))

    async with trio.open_nursery() as nursery:
        for n in range(12):
            nursery.start_soon(begin, n)
    assert begun == [{"w1"}]
    assert len(refused) == 11
    assert "already" in refused[0]
    assert len([action for action, _ in await told(db, project) if action == "project.cloning"]) == 1
    # Elsewhere it may begin, and where it is under way it does not begin again.
    assert await clonings.begin(db, propagating(project, "other"), ["w1", "w2"], actor="test") == {"w2"}


async def test_what_nobody_is_at_any_more_has_failed_for_whoever_looks_next(db, new_project, shift_clock):
    """As it is after a `kill -9`: nothing but the rows is left."""
    project = await new_project()
    await clonings.begin(db, propagating(project), ["w1", "w2"], actor="ann")
    await settle(db, propagating(project), "w2", Outcome())
    shift_clock(int(BUSY_SECONDS * 1000) - 5000)
    assert (await projects.one(db, project.id)).clone_status == "propagating"
    shift_clock(int(BUSY_SECONDS * 1000) + 1000)
    [shown] = await projects.listing(db, Page())
    assert (shown.clone_status, "interrupted" in shown.error_message) == ("failed", True)
    assert await states(db, project) == {"w1": "failed", "w2": "synced"}
    assert (await told(db, project))[-1] == ("project.interrupted", "on w1")
    before = await told(db, project)
    assert (await projects.one(db, project.id)) == shown
    assert await told(db, project) == before


async def test_the_next_one_begins_where_nobody_is_at_it_any_more(db, new_project, shift_clock):
    project = await new_project()
    await clonings.begin(db, cloning(project), ["w1"], actor="ann")
    shift_clock(int(BUSY_SECONDS * 1000) + 1000)
    assert await clonings.begin(db, cloning(project, "o2"), ["w1"], actor="ann") == {"w1"}
    with pytest.raises(Conflict, match="Another operation"):
        await settle(db, cloning(project), "w1", Outcome(error="too late"))
    await clonings.end(db, cloning(project), actor="ann")
    assert (await projects.one(db, project.id)).clone_status == "cloning"
    await settle(db, cloning(project, "o2"), "w1", Outcome())
    await clonings.end(db, cloning(project, "o2"), actor="ann")
    assert (await projects.one(db, project.id)).clone_status == "cloned"


async def test_an_outcome_counts_also_when_it_was_given_up(db, new_project, shift_clock):
    """The database was away for a while, and nobody could say that the cloning goes on."""
    project = await new_project()
    await clonings.begin(db, cloning(project), ["w1"], actor="ann")
    shift_clock(HOUR)
    assert (await projects.one(db, project.id)).clone_status == "failed"
    await clonings.renew(db, cloning(project))
    assert (await projects.one(db, project.id)).clone_status == "failed"
    await settle(db, cloning(project), "w1", Outcome())
    await clonings.end(db, cloning(project), actor="ann")
    after = await projects.one(db, project.id)
    assert (after.clone_status, after.error_message) == ("cloned", None)


async def test_what_is_renewed_goes_on_for_as_long_as_it_takes(db, new_project, shift_clock):
    project = await new_project()
    await clonings.begin(db, cloning(project), ["w1"], actor="ann")
    for part in range(1, 5):
        shift_clock(part * 20_000)
        await clonings.renew(db, cloning(project))
        assert (await projects.one(db, project.id)).clone_status == "cloning"
    assert await states(db, project) == {"w1": "cloning"}


async def test_a_project_that_is_removed_meanwhile_leaves_nothing(db, sql, new_project, held):
    project = await new_project()

    async def remove():
        await projects.remove(db, project.id, actor="ann")

    # A cloning begins, and commits, while the removal waits for it.
    row = "INSERT INTO project_node_status (project_id, node_id) VALUES ({id}, 'w1')"
    async with held(row.format(id=f"'{project.id}'"), remove):
        pass
    assert sql("SELECT count(*) FROM project_node_status") == [(0,)]
    with pytest.raises(NotFound):
        await clonings.begin(db, cloning(project), ["w1"], actor="ann")
    with pytest.raises(NotFound):
        await settle(db, cloning(project), "w1", Outcome())
    with pytest.raises(NotFound):
        await clonings.note_sync(db, project.id, "w1", "push", None, actor="ann")
    await clonings.end(db, cloning(project), actor="ann")
    assert sql("SELECT count(*) FROM project_node_status") == [(0,)]


async def test_who_is_asked(db, new_project, new_worker, sql):
    project = await new_project()
    with pytest.raises(Invalid, match="no worker with a URL is online"):
        await clonings.best(db, project.id)
    for name, room, fields in (
        ("small", 1, {}), ("large", 4, {}), ("larger", 8, {"status": "offline"}), ("no-url", 9, {"url": None}),
        ("cordoned", 9, {}),
    ):  # fmt: skip
        await new_worker(name, max_concurrency=room, **{"url": f"http://{name}:8001", **fields})
    await workers.cordon(db, "cordoned", actor="ann")
    assert await clonings.best(db, project.id) == Target("large", "http://large:8001")
    assert [each.id for each in await clonings.others(db, project.id)] == ["cordoned", "large", "small"]
    sql("UPDATE managed_projects SET primary_node_id = 'larger'")
    assert (await clonings.best(db, project.id)).id == "larger"
    sql("UPDATE managed_projects SET primary_node_id = 'large'")
    assert [each.id for each in await clonings.others(db, project.id)] == ["cordoned", "small"]
    sql("UPDATE managed_projects SET primary_node_id = 'gone'")
    assert (await clonings.best(db, project.id)).id == "large"
    sql("UPDATE workers SET node_id = 'machine-7' WHERE id = 'small'")
    assert (await clonings.named(db, "machine-7")).id == "small"
    assert (await clonings.named(db, "no-url", with_url=False)).id == "no-url"
    with pytest.raises(Invalid, match="no-url has no URL"):
        await clonings.named(db, "no-url")
    with pytest.raises(Invalid, match="no worker 'nobody'"):
        await clonings.named(db, "nobody")


async def test_another_primary_takes_the_place_of_one_that_is_gone(db, new_project, new_worker, sql):
    project = await new_project()
    await new_worker("w2", url="http://w2:8001")
    sql("UPDATE managed_projects SET primary_node_id = 'w1'")
    for operation, worker, primary in (("o1", "w2", "w2"), ("o2", "w3", "w2")):
        await clonings.begin(db, cloning(project, operation), [worker], actor="ann")
        await settle(db, cloning(project, operation), worker, Outcome())
        await clonings.end(db, cloning(project, operation), actor="ann")
        assert (await projects.one(db, project.id)).primary_node_id == primary


async def test_a_sync_of_the_memory_is_noted_beside_the_clone(db, new_project):
    project = await new_project()
    await clonings.note_sync(db, project.id, "w1", "push", "no such agent", actor="ann")
    [node] = await projects.nodes(db, project.id)
    assert (node.clone_status, node.last_sync_at, node.error_message) == ("pending", None, "no such agent")
    await clonings.note_sync(db, project.id, "w1", "pull", None, actor="ann")
    [node] = await projects.nodes(db, project.id)
    assert (node.clone_status, node.last_sync_at is None, node.error_message) == ("pending", False, None)
    assert (await told(db, project))[1:] == [
        ("project.memory-push-failed", "node w1: no such agent"),
        ("project.memory-pull", "node w1"),
    ]
    await clonings.begin(db, cloning(project), ["w1"], actor="ann")
    await settle(db, cloning(project), "w1", Outcome(error="disk full"))
    await clonings.note_sync(db, project.id, "w1", "push", None, actor="ann")
    [node] = await projects.nodes(db, project.id)
    assert (node.clone_status, node.error_message) == ("failed", "disk full")


TODAYS = """
CREATE TABLE managed_projects (id varchar PRIMARY KEY DEFAULT gen_random_uuid(), name varchar, repo_url varchar,
    canonical_id varchar, target_path varchar, clone_status varchar, primary_node_id varchar, created_at bigint,
    updated_at bigint, error_message text);
CREATE TABLE project_node_status (id varchar PRIMARY KEY DEFAULT gen_random_uuid(), project_id varchar, node_id varchar,
    clone_status varchar, last_sync_at bigint, error_message text, repo_path varchar);
INSERT INTO managed_projects VALUES
    ('good', 'bloom', 'https://u:token-3f@h/x', 'e5', '/srv', 'cloned', 'w1', 5, 6, 'see https://u:token-3f@h/x'),
    ('busy', 'b', 'git@h:x', 'e6', NULL, 'propagating', NULL, 7, 7, NULL),
    ('null', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO project_node_status VALUES
    ('n1', 'good', 'w1', 'cloned', 10, NULL, '/old'), ('n2', 'good', 'w1', 'synced', 20, NULL, '/new'),
    ('n3', 'good', 'w1', 'failed', NULL, 'x', NULL), ('n4', 'good', 'w2', NULL, NULL, NULL, NULL),
    ('n5', 'busy', 'w1', 'cloning', NULL, NULL, NULL), ('n6', 'gone', 'w1', 'cloned', NULL, NULL, NULL),
    ('n7', 'good', NULL, 'cloned', NULL, NULL, NULL);
"""


async def test_projects_of_todays_runtime_are_adopted_and_the_repairs_reported(database):
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(TODAYS)
    report: list[str] = []
    async with Pool(database, size=2) as pool:
        async with pool.connection() as connection:
            await migrate(connection, MIGRATIONS, report=report.append)
        db = Database()
        db.open(pool)
        found = {project.id: project for project in await projects.listing(db, Page())}
        assert {id: project.clone_status for id, project in found.items()} == {
            "good": "cloned", "busy": "failed", "null": "pending",
        }  # fmt: skip
        assert (found["null"].name, found["null"].canonical_id) == ("", "e3b0c44298fc1c14")
        assert found["good"].repo_url == "https://****@h/x"
        assert found["good"].error_message == "see https://****@h/x"
        assert (await projects.whole(db, "good")).repo_url == "https://u:token-3f@h/x"
        kept = {node.id: node for node in await projects.nodes(db, "good")}
        assert {id: (node.node_id, node.clone_status) for id, node in kept.items()} == {
            "n2": ("w1", "synced"), "n4": ("w2", "pending"),
        }  # fmt: skip
        assert await states(db, found["busy"]) == {"w1": "failed"}
        # What the Node.js runtime would write goes on being written.
        await db.execute(
            "INSERT INTO managed_projects (name, repo_url, canonical_id, clone_status, created_at, updated_at) "
            "VALUES ('new', 'https://h/new', 'e7', 'pending', 9, 9)"
        )
    assert report == [
        "1 projects had missing or impossible values: defaults filled in",
        "1 projects were being cloned or propagated: now failed",
        "2 states of nodes belonged to no project or no node: deleted",
        "2 states beside a later one of the same project and node: deleted",
        "2 states of nodes were unknown or under way: now pending or failed",
    ]
