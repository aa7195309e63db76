"""Golden scripts of the command line: what is typed, and all that is printed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.cli.world import open_shell
from tests.golden import run_script

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with open_shell(tmp_path, monkeypatch) as shell:

        def execute(line: str) -> list[str]:
            # `down h3`: the node is lost; `silent h3`: gossip buries it; `copied`: a second h2;
            # `containers`: every task gets its container.
            word, *rest = shlex.split(line)
            names = {node.status.name: id_ for id_, node in shell.fake.nodes.items()}
            match word:
                case "down":
                    shell.fake.cluster.set_down(names[rest[0]])
                    shell.fake.cluster.settle()
                    return []
                case "silent":
                    shell.neighbourhood.lose(names[rest[0]])
                    return []
                case "copied":
                    shell.neighbourhood.conflict = "10.0.0.9:7947"
                    return []
                case "containers":
                    shell.fake.run_containers()
                    return []
                case "bad":
                    shell.fake.cluster.bad_images.update(rest)
                    return []
                case _:
                    return shell.execute(line)

        run_script(path, execute, rewrite=request.config.getoption("--rewrite"))
