"""Managed projects: repositories of which the worker machines have clones. Create them, look at them, forget them.

Whoever looks first ends what has been under way for too long (`clonings.py`), so nobody ever sees a state that will not
change any more.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from bloomd.runtime import clonings
from bloomd.runtime.database import Database
from bloomd.runtime.ids import Id
from bloomd.runtime.pages import Page
from bloomd.runtime.refusals import Invalid, NotFound

CloneStatus = Literal["pending", "cloning", "cloned", "failed", "propagating", "synced"]

NAME_LIMIT = 256
URL_LIMIT = 2048
PATH_LIMIT = 1024

# The contract's characters, and at least one that is neither a dot nor a space: it becomes a directory.
NAME_PATTERN = r"\A[. ]*[A-Za-z0-9_-][A-Za-z0-9_.\- ]*\Z"
# No two dots in a row, and nothing that a terminal or a shell would take for something else than a character.
PATH_PATTERN = r"\A(\.?[^.\x00-\x1f\x7f])*\.?\Z"

_HOST = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"
_PATH = r"[A-Za-z0-9._~/%+@:,=-]"
URL_PATTERN = (
    rf"\A(https?://({_HOST}|\[[0-9A-Fa-f:.]+\])(:[0-9]{{1,5}})?(/{_PATH}*)?|git@{_HOST}:[A-Za-z0-9._~/]{_PATH}*)\Z"
)

# What stands before the host of a URL. Nobody can make a project with it any more; the Node.js runtime took it.
_CANONICAL_ID = re.compile(r"[0-9a-f]{16}")
_USER = re.compile(r"(?<=://)[^/@\s]*@")

ADD = """
WITH project AS (
    INSERT INTO managed_projects (name, repo_url, canonical_id, target_path, created_at, updated_at)
    SELECT %(name)s, %(repo_url)s, %(canonical_id)s, %(target_path)s, now_ms, now_ms
      FROM bloom_now_ms() AS now_ms
    RETURNING *
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), created_at, 'project.created', 'project', id, %(actor)s, name || ' of ' || repo_url
      FROM project
)
SELECT * FROM project
"""

LIST = """
SELECT *
  FROM managed_projects
 WHERE (created_at, id) < (%(at)s, %(before)s)
 ORDER BY created_at DESC, id DESC
 LIMIT %(limit)s
"""

ONE = """
SELECT * FROM managed_projects WHERE id = %(id)s
"""

NODES = """
SELECT * FROM project_node_status WHERE project_id = %(id)s ORDER BY node_id
"""

# What is known of its nodes goes with it.
REMOVE = """
WITH project AS (
    DELETE FROM managed_projects WHERE id = %(id)s RETURNING id, name
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'project.removed', 'project', id, %(actor)s, name FROM project
)
SELECT id FROM project
"""


class Project(msgspec.Struct, frozen=True):
    id: str
    name: str
    repo_url: str
    canonical_id: str
    """By which Membridge knows it."""
    target_path: str | None
    clone_status: CloneStatus
    primary_node_id: str | None
    created_at: int
    updated_at: int
    error_message: str | None


class NodeStatus(msgspec.Struct, frozen=True):
    """What is known of a project on one node."""

    id: str
    project_id: str
    node_id: str
    clone_status: CloneStatus
    last_sync_at: int | None
    error_message: str | None
    repo_path: str | None


class NewProject(msgspec.Struct, frozen=True):
    """What a client says to create a project. What the values may be, `flaws` says in sentences."""

    name: Annotated[str, Meta(extra_json_schema={"pattern": NAME_PATTERN, "minLength": 1, "maxLength": NAME_LIMIT})]
    repo_url: Annotated[str, Meta(extra_json_schema={"pattern": URL_PATTERN, "maxLength": URL_LIMIT})]
    """By http, https or ssh (`git@host:path`), without a user name, a password or a query."""
    target_path: Annotated[str, Meta(extra_json_schema={"pattern": PATH_PATTERN, "maxLength": PATH_LIMIT})] | None = (
        None
    )
    """Where the nodes put it; without one, where each has its repositories."""


def flaws(new: NewProject) -> Iterator[tuple[str, str]]:
    """What is wrong with a new project: for each field a sentence that goes on from its name, and repeats no value."""
    if len(new.name) > NAME_LIMIT or not re.match(NAME_PATTERN, new.name):
        yield "name", f"must be 1 to {NAME_LIMIT} of the characters A-Z a-z 0-9 _ . - and space, and more than dots"
    if problem := url_problem(new.repo_url):
        yield "repo_url", problem
    if new.target_path is not None:
        if ".." in new.target_path:
            yield "target_path", "must not have `..` in it"
        elif len(new.target_path) > PATH_LIMIT or not re.match(PATH_PATTERN, new.target_path):
            yield "target_path", f"must be up to {PATH_LIMIT} characters, none of them a control character"


def url_problem(url: str) -> str | None:
    """What is wrong with the address of a repository, as the end of a sentence that begins with the field, if anything.

    Whoever may look at a project, and every machine that clones it, would see a password in its address.
    """
    if _USER.search(url):
        return (
            "must not hold a user name, password or token, which everybody would see who looks at the project: "
            "give the machines a credential helper, or use git@host:path"
        )
    if "?" in url or "#" in url:
        return "must end with its path: no `?` and no `#`"
    if len(url) > URL_LIMIT or not re.match(URL_PATTERN, url):
        return "must be such as https://host.example.org/team/project.git, or git@host.example.org:team/project.git"
    return None


def canonical_id(name: str) -> str:
    """By which Membridge knows a project of this name."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def is_canonical_id(text: str) -> bool:
    return _CANONICAL_ID.fullmatch(text) is not None


def without_users(text: str) -> str:
    """The text, with nothing before the hosts of its URLs."""
    return _USER.sub("****@", text)


def _shown(project: Project) -> Project:
    """The project as anybody may see it: a password that was adopted with it stays here."""
    error = project.error_message and without_users(project.error_message)
    return msgspec.structs.replace(project, repo_url=without_users(project.repo_url), error_message=error)


async def create(database: Database, new: NewProject, *, actor: str) -> Project:
    """Make a project known. Nothing is cloned by that.

    Raises:
        Invalid: by `flaws`.
    """
    if found := list(flaws(new)):
        raise Invalid("; ".join(f"{field} {message}" for field, message in found))
    [project] = await database.change(
        Project,
        ADD,
        name=new.name,
        repo_url=new.repo_url,
        canonical_id=canonical_id(new.name),
        target_path=new.target_path or None,
        actor=actor,
    )
    return project


async def listing(database: Database, page: Page) -> list[Project]:
    """A page of projects, the latest created first."""
    await clonings.end_overdue(database)
    found = await database.listing(Project, LIST, at=page.at, before=page.id, limit=page.limit)
    return [_shown(project) for project in found]


async def whole(database: Database, id: str) -> Project:
    """One project with its address as it is, for those who clone it.

    Raises:
        NotFound: there is none with this id.
    """
    await clonings.end_overdue(database)
    if project := await database.row(Project, ONE, id=id):
        return project
    raise NotFound("Project not found")


async def one(database: Database, id: str) -> Project:
    """One project.

    Raises:
        NotFound: there is none with this id.
    """
    return _shown(await whole(database, id))


async def nodes(database: Database, id: str) -> list[NodeStatus]:
    """What is known of a project's nodes, in order of their names."""
    found = await database.rows(NodeStatus, NODES, id=id)
    return [
        msgspec.structs.replace(node, error_message=node.error_message and without_users(node.error_message))
        for node in found
    ]


async def remove(database: Database, id: str, *, actor: str) -> None:
    """Forget a project. Its clones stay where they are, and what is under way comes to nothing here.

    Raises:
        NotFound: there is none with this id.
    """
    if not await database.change(Id, REMOVE, id=id, actor=actor):
        raise NotFound("Project not found")
