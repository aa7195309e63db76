"""Names of images: Docker's grammar, its short forms, and complaints that help."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.images.errors import BadReference
from swarmlet.images.reference import (
    Digest,
    Reference,
    digest_of,
    parse_digest,
    parse_reference,
)

DIGEST = digest_of(b"")


@pytest.mark.parametrize(
    ("text", "canonical", "familiar"),
    [
        ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("index.docker.io/library/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("grafana/grafana:11.0", "docker.io/grafana/grafana:11.0", "grafana/grafana:11.0"),
        ("localhost/web", "localhost/web:latest", "localhost/web:latest"),
        ("localhost:5000/web:1", "localhost:5000/web:1", "localhost:5000/web:1"),
        ("[::1]:5000/web", "[::1]:5000/web:latest", "[::1]:5000/web:latest"),
        ("ghcr.io/a/b/c__d-e.f:X_1", "ghcr.io/a/b/c__d-e.f:X_1", "ghcr.io/a/b/c__d-e.f:X_1"),
        ("Registry/web", "Registry/web:latest", "Registry/web:latest"),
        (f"web@{DIGEST}", f"docker.io/library/web@{DIGEST}", f"web@{DIGEST}"),
        (f"a.b/web:1@{DIGEST}", f"a.b/web:1@{DIGEST}", f"a.b/web:1@{DIGEST}"),
        ("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
        ("docker.io/localhost/x", "docker.io/localhost/x:latest", "docker.io/localhost/x:latest"),
        ("cafe", "docker.io/library/cafe:latest", "cafe:latest"),
    ],
)
def test_name_is_read_as_docker_reads_it(text: str, canonical: str, familiar: str) -> None:
    reference = parse_reference(text)
    assert str(reference) == canonical
    assert reference.familiar == familiar


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "needs a name"),
        ("Web", "try 'web'"),
        ("a.b/Web", "no capitals"),
        ("web:", "no tag"),
        ("web:.1", "no tag"),
        ("web:" + "x" * 129, "no tag"),
        ("web:ä", "no tag"),
        ("web@sha256:12", "no digest"),
        ("web@", "no digest"),
        ("web@md5:" + "0" * 32, "no digest"),
        (f"web@{DIGEST.upper()}", "no digest"),
        ("a//b", "part of a repository"),
        ("/web", "part of a repository"),
        ("web/", "part of a repository"),
        ("a.b/", "names no repository"),
        ("-a/web", "part of a repository"),
        ("we b", "part of a repository"),
        ("web\n", "part of a repository"),
        ("a___b", "part of a repository"),
        ("a..b/web", "host name"),
        ("host:port/web", "host name"),
        ("a.b:123456/web", "host name"),
        ("http://a.b/web", "host name"),
        ("0" * 64, "image id"),
        ("x" * 300, "longer"),
        ("x" * 5000, "longer"),
        ("a.b/../etc/passwd", "part of a repository"),
        ("wébb", "part of a repository"),
    ],
)
def test_bad_name_is_refused_with_the_reason(text: str, complaint: str) -> None:
    with pytest.raises(BadReference, match=complaint):
        parse_reference(text)


component = st.from_regex(r"[a-z0-9]{1,6}((\.|_|__|-{1,3})[a-z0-9]{1,6}){0,2}", fullmatch=True)
registry = st.one_of(
    st.just("docker.io"),
    st.just("localhost"),
    st.from_regex(r"[a-z0-9]{1,5}(\.[A-Za-z0-9]{1,5}){1,3}(:[0-9]{1,5})?", fullmatch=True).filter(
        lambda text: text != "index.docker.io"
    ),
)
tag = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
digest = st.binary().map(digest_of)


@st.composite
def references(draw: st.DrawFn) -> Reference:
    host = draw(registry)
    parts = draw(st.lists(component, min_size=1, max_size=4))
    path = "/".join(parts)
    if host == "docker.io" and len(parts) == 1:
        path = f"library/{path}"
    chosen = draw(st.none() | digest)
    return Reference(host, path, draw(tag if chosen is None else st.none() | tag), chosen)


@given(references())
def test_both_forms_mean_the_reference_they_came_from(reference: Reference) -> None:
    assert parse_reference(str(reference)) == reference
    assert parse_reference(reference.familiar) == reference


@given(st.text(max_size=80) | st.from_regex(r"[a-zA-Z0-9./:@_-]{0,60}", fullmatch=True))
def test_any_text_is_a_reference_or_a_complaint(text: str) -> None:
    try:
        reference = parse_reference(text)
    except BadReference:
        return
    assert parse_reference(str(reference)) == reference
    assert not set(str(reference)) & set(" \n\t\0\\")
    assert ".." not in str(reference).split("/")


@given(st.text(max_size=80))
def test_digest_is_sha256_and_nothing_else(text: str) -> None:
    with pytest.raises(BadReference):
        parse_digest(text)
    assert parse_digest(DIGEST) == Digest(DIGEST)


def test_pinning_and_tagging() -> None:
    reference = parse_reference("web:1")
    assert str(reference.at(DIGEST)) == f"docker.io/library/web:1@{DIGEST}"
    assert parse_reference(f"web@{DIGEST}").tagged == parse_reference("web")
