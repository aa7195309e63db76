"""`docker pull` and `swarmlet image pull` from a real registry, with and without credentials."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest

from tests.api.serving import Api
from tests.images.making import make_image, oci_archive, tar_of
from tests.images.registries import HTPASSWD, running_registry
from tests.images.test_registry import push

pytestmark = [
    pytest.mark.level5,
    pytest.mark.skipif(
        not (shutil.which("docker-registry") and shutil.which("skopeo")),
        reason="needs the packages docker-registry and skopeo",
    ),
]

IMAGE = make_image(tar_of(("a", b"1")))


def told(text: bytes) -> list[dict[str, str]]:
    return [json.loads(line) for line in text.splitlines()]


async def test_image_is_pulled_by_name_and_by_digest(api: Api, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    archive.write_bytes(oci_archive(IMAGE))
    with running_registry(tmp_path / "registry") as registry:
        push(archive, f"{registry.host}/team/web:1")
        name = f"{registry.host}/team/web"
        first, *_, last = told(
            (await api.call("POST", f"/images/create?fromImage={name}&tag=1")).text
        )
        assert first == {"status": "Pulling from team/web", "id": "1"}
        assert last == {"status": f"Status: Downloaded image for {name}:1"}
        assert (await api.call("GET", f"/images/{name}:1/json")).json["Id"] == IMAGE.id
        await api.call("DELETE", f"/images/{name}:1")
        target = f"/images/create?fromImage={name}&tag={IMAGE.digest}"
        assert "error" not in told((await api.call("POST", target)).text)[-1]
        assert (await api.call("GET", f"/images/{name}@{IMAGE.digest}/json")).status == 200
        reply = await api.call("POST", f"/images/create?fromImage={name}&tag=none")
        assert "team/web:none" in told(reply.text)[-1]["error"]


async def test_credentials_of_the_client_are_used(api: Api, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    archive.write_bytes(oci_archive(IMAGE))
    passwords = tmp_path / "htpasswd"
    passwords.write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "r", "path": str(passwords)}}
    with running_registry(tmp_path / "registry", auth=auth) as registry:
        push(archive, f"{registry.host}/web:1", "--dest-creds", "max:hunter2")
        target = f"/images/create?fromImage={registry.host}/web:1"
        assert "error" in told((await api.call("POST", target)).text)[-1]
        document = json.dumps({"username": "max", "password": "hunter2"}).encode()
        headers = (("X-Registry-Auth", base64.urlsafe_b64encode(document).decode()),)
        lines = told((await api.call("POST", target, headers=headers)).text)
        assert "error" not in lines[-1]
        headers = (("X-Registry-Auth", "{{{"),)
        assert (await api.call("POST", target, headers=headers)).status == 403
