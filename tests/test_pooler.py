"""Through a real PgBouncer, whose transactions each may run on another connection."""

import asyncio
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

import db
import live
import queries
from revocations import Revocations
from settings import Settings
from tests.conftest import Person
from tests.test_revisions import ADA
from tests.test_tasks import create

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = pytest.mark.skipif(
    not PGBOUNCER and "CI" not in os.environ, reason="PgBouncer is not installed"
)


@pytest.fixture
def pooler(database: db.Database, folder: Path) -> Iterator[str]:
    """Run a PgBouncer with fewer connections than the service; give its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (server,) = parse_qs(urlsplit(database.url).query)["host"]
    (folder / "users").write_text('"todo" ""')
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(
        f"""
        [databases]
        postgres = host={server} port=5432
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = trust
        auth_file = {folder}/users
        pool_mode = transaction
        default_pool_size = 3
        """
    )
    assert PGBOUNCER
    user = Path(server).stat().st_uid if os.geteuid() == 0 else None
    running = subprocess.Popen([PGBOUNCER, "-q", configuration], user=user, cwd="/")
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield f"postgresql://todo@127.0.0.1:{port}/postgres"
    running.terminate()
    running.wait()


@pytest.mark.parametrize("said", [None, True, False])
async def test_no_call_fails_whether_or_not_the_pooler_is_known(
    ada: Person, bob: Person, configured: Settings, pooler: str, said: bool | None
) -> None:
    settings = configured.model_copy(update={"database_pooler": said, "migrate_on_start": True})
    async with db.connect(settings, pooler):
        task, other = await create(ada, tags=["home"]), await create(bob)
        calls = [
            call
            for number in range(50)
            for call in (
                ada.get("/api/tasks"),
                ada.patch(f"/api/tasks/{task['id']}/complete"),
                ada.put(f"/api/tasks/{task['id']}", json={"title": f"{number}", "tags": ["new"]}),
                bob.post("/api/tasks", json={"title": "x"}),
                bob.get(f"/api/tasks/{other['id']}"),
            )
        ]
        answers = await asyncio.gather(*calls)
        found = db.is_pooled()

    statuses = [answer.status_code for answer in answers]
    if said is False:  # told wrongly, it may fail, but never runs another's statement
        assert set(statuses) <= {200, 201, 503}
    else:
        assert found
        assert {*statuses} == {200, 201}
    assert len(statuses) == 250


async def test_a_server_without_a_pooler_is_known_as_such(
    configured: Settings, database: db.Database
) -> None:
    async with db.connect(configured, database.url):
        assert not db.is_pooled()


async def test_a_transaction_of_two_statements_stays_together(
    configured: Settings, pooler: str, ada: Person, ada_id: str
) -> None:
    await create(ada)
    other = await asyncpg.connect(pooler, statement_cache_size=0)
    async with db.connect(configured, pooler):
        async with other.transaction():
            await other.execute("SELECT FROM users WHERE id = $1 FOR NO KEY UPDATE", ada_id)
            bulk = asyncio.create_task(
                queries.COMPLETE_TASKS.one(owner=ada_id, match=None, status="all", completed=True)
            )
            await asyncio.sleep(0.2)
            assert not bulk.done()
        assert await bulk == {"updated": 1}
    await other.close()


async def test_changes_are_polled_for_where_notifications_do_not_arrive(
    configured: Settings, pooler: str, log_lines: Callable[[], str]
) -> None:
    """Told that there is no pooler, the service listens, and finds out that it hears nothing."""
    settings = configured.model_copy(update={"database_pooler": False})
    deaf = live.Live(pooler, Revocations(configured))
    async with db.connect(settings, pooler):
        with deaf.place(ADA, 0) as place:
            for _ in range(3):
                await asyncio.wait_for(place.woken.wait(), 2.5)
                place.woken.clear()
            async with asyncio.timeout(10):
                while "notifications do not arrive" not in log_lines():
                    await asyncio.sleep(0.1)
