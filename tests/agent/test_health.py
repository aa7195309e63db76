"""Health checks that connect instead of running a command, from within the container's network."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import pytest

from swarmlet.agent.health import URL, Health, Verdict, watch_health
from swarmlet.model import Healthcheck
from swarmlet.runtime.supervisor import Supervisor
from tests.runtime.lab import Lab, make_layer, wait_for_output

SERVE = """
while :; do
  printf 'HTTP/1.1 %s\\r\\nContent-Length: 0\\r\\n\\r\\n' "$(cat /status)" | nc -l -p 80
done
"""


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("http://:8080/ready?x=1", ("http", "", "8080", "/ready?x=1")),
        ("http://localhost", ("http", "localhost", None, None)),
        ("tcp://10.0.0.1:5432", ("tcp", "10.0.0.1", "5432", None)),
        ("curl -f http://localhost/", None),
        ("http://example.com/", None),
        ("https://:8443/", None),
        ("http://:8080/ || exit 1", None),
    ],
)
def test_a_line_that_is_a_url_is_one(line: str, parts: tuple[str | None, ...] | None) -> None:
    found = URL.fullmatch(line)
    assert (found.groups() if found else None) == parts


async def verdict(supervisor: Supervisor, lab: Lab, line: str) -> Verdict:
    check = Healthcheck(
        test=("CMD-SHELL", line), interval=0.05, timeout=10, retries=1, start_interval=0.05
    )
    watching = watch_health(supervisor, "c", lab.spec("true"), check)
    async with aclosing(watching) as verdicts:
        return await anext(verdicts)


@pytest.mark.level4
async def test_containers_are_asked_in_their_own_network(tmp_path: Path) -> None:
    lab = Lab(tmp_path, make_layer(tmp_path / "layer"))
    try:
        async with lab.supervisor() as supervisor:
            script = f"echo '200 OK' > /status; echo ready; {SERVE}"
            await supervisor.create("c", lab.spec("sh", "-c", script), start=True)
            await wait_for_output(supervisor, "c", "ready")
            refused = await verdict(supervisor, lab, "tcp://:81")
            assert refused == Verdict(Health.UNHEALTHY, "127.0.0.1:81: Connection refused")
            for line, port in (("tcp://:70000", 70000), ("tcp://localhost", 0)):
                none = await verdict(supervisor, lab, line)
                assert none == Verdict(Health.UNHEALTHY, f"{line}: there is no port {port}")
            assert (await healthy(supervisor, lab, "http://:80/")).health is Health.HEALTHY
            assert (await healthy(supervisor, lab, "tcp://localhost:80")).health is Health.HEALTHY
            session = await supervisor.exec(
                "c", lab.spec("sh", "-c", "echo '503 Busy' > /status").process
            )
            async with session:
                await session.wait()
            # The answer that is under way may be the one before.
            for _ in range(100):
                found = await verdict(supervisor, lab, "http://:80/")
                if found.output == "HTTP/1.1 503 Busy":
                    break
            assert found == Verdict(Health.UNHEALTHY, "HTTP/1.1 503 Busy")
            await supervisor.remove("c", force=True)
    finally:
        lab.clean()


async def healthy(supervisor: Supervisor, lab: Lab, line: str) -> Verdict:
    """Ask until it is: between two answers this server listens to nobody."""
    for _ in range(200):
        found = await verdict(supervisor, lab, line)
        if found.health is Health.HEALTHY:
            break
    return found
