"""`--change`: Dockerfile instructions on the configuration of an image."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.images.changes import apply_changes
from swarmlet.images.config import Healthcheck, ImageConfig
from swarmlet.images.errors import BadChange

PLAIN = ImageConfig("amd64", env=("PATH=/bin", "HOME=/root"), working_dir="/srv")


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ('CMD ["httpd", "-f"]', "cmd", ("httpd", "-f")),
        ("CMD httpd -f", "cmd", ("/bin/sh", "-c", "httpd -f")),
        ("cmd []", "cmd", ()),
        ("CMD [not json", "cmd", ("/bin/sh", "-c", "[not json")),
        ('ENTRYPOINT ["/x"]', "entrypoint", ("/x",)),
        ("ENV A=1", "env", ("PATH=/bin", "HOME=/root", "A=1")),
        ("ENV PATH=/opt:$PATH", "env", ("PATH=/opt:/bin", "HOME=/root")),
        ("ENV A=1 B='x $PATH' C=\"y $PATH\"", "env", (*PLAIN.env, "A=1", "B=x $PATH", "C=y /bin")),
        ("ENV A one two", "env", (*PLAIN.env, "A=one two")),
        (r"ENV A=one\ two", "env", (*PLAIN.env, "A=one two")),
        (r'ENV A="a\"b\n"', "env", (*PLAIN.env, 'A=a"b\\n')),
        ("ENV A=${NONE:-x}${PATH:+y}${NONE:+z}", "env", (*PLAIN.env, "A=xy")),
        (r"ENV A=\$PATH", "env", (*PLAIN.env, "A=$PATH")),
        ("ENV A=5$", "env", (*PLAIN.env, "A=5$")),
        ("EXPOSE 80 53/udp 80", "exposed_ports", ("53/udp", "80/tcp")),
        ("EXPOSE 8000-8002", "exposed_ports", ("8000/tcp", "8001/tcp", "8002/tcp")),
        ("LABEL a=b c='d e'", "labels", {"a": "b", "c": "d e"}),
        ("ONBUILD RUN make", "on_build", ("RUN make",)),
        ("STOPSIGNAL SIGQUIT", "stop_signal", "SIGQUIT"),
        ("STOPSIGNAL 9", "stop_signal", "9"),
        ("USER 1000:1000", "user", "1000:1000"),
        ('VOLUME ["/a b", "/c"]', "volumes", ("/a b", "/c")),
        ("VOLUME /d /c", "volumes", ("/c", "/d")),
        ("WORKDIR /a/../b", "working_dir", "/b"),
        ("WORKDIR www", "working_dir", "/srv/www"),
        ("WORKDIR $HOME", "working_dir", "/root"),
        (
            "HEALTHCHECK --interval=1m30s --retries=3 CMD wget -q localhost",
            "healthcheck",
            Healthcheck(("CMD-SHELL", "wget -q localhost"), interval=90 * 10**9, retries=3),
        ),
        ('HEALTHCHECK CMD ["true"]', "healthcheck", Healthcheck(("CMD", "true"))),
        ("HEALTHCHECK NONE", "healthcheck", Healthcheck(("NONE",))),
    ],
)
def test_instruction_changes_its_field_alone(change: str, field: str, expected: Any) -> None:
    changed = apply_changes(PLAIN, [change])
    assert getattr(changed, field) == expected
    for other in ImageConfig.__dataclass_fields__:
        assert other == field or getattr(changed, other) == getattr(PLAIN, other)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("RUN rm -rf /", "'RUN' is no instruction"),
        ("", "no instruction"),
        ("CMD", "CMD needs an argument"),
        ("ENV A", "has no value; write A=VALUE"),
        ("ENV =x", "needs a name"),
        ("ENV A='x", "a ' is not closed"),
        ("ENV A=${PATH", "not closed"),
        ("ENV A=${", "name of a variable"),
        ("ENV A=${PATH/a/b}", "no modifier"),
        ("EXPOSE 70000", "no range"),
        ("EXPOSE 0", "no range"),
        ("EXPOSE http", "is no port"),
        ("EXPOSE 1-60000", "no range"),
        ("USER a b", "one argument is wanted, 2 are there"),
        ("STOPSIGNAL !", "no signal"),
        ("HEALTHCHECK wget", "write HEALTHCHECK CMD"),
        ("HEALTHCHECK --interval=x CMD true", "no duration"),
        ("HEALTHCHECK --color=red CMD true", "no option"),
        ('CMD ["a\\u0000"]', "NUL"),
        ("CMD a\0b", "NUL"),
    ],
)
def test_bad_change_is_refused_with_the_reason(change: str, complaint: str) -> None:
    with pytest.raises(BadChange, match=complaint):
        apply_changes(PLAIN, [change])


def test_changes_build_on_each_other() -> None:
    changed = apply_changes(PLAIN, ["ENV A=1", "ENV B=$A$A", "WORKDIR x", "WORKDIR y"])
    assert changed.env == (*PLAIN.env, "A=1", "B=11")
    assert changed.working_dir == "/srv/x/y"


@given(
    st.sampled_from(
        ["CMD", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "USER", "VOLUME", "WORKDIR"]
    ),
    st.text(max_size=40) | st.text(alphabet="ab=\"'\\$ {}:-+[],/1", max_size=40),
)
def test_any_text_is_a_change_or_a_complaint(word: str, rest: str) -> None:
    with contextlib.suppress(BadChange):
        apply_changes(PLAIN, [f"{word} {rest}"])


@given(st.text(st.characters(exclude_characters="'\0", exclude_categories=["Cs"]), min_size=1))
def test_single_quotes_keep_everything(text: str) -> None:
    assert dict(apply_changes(PLAIN, [f"LABEL x='{text}'"]).labels) == {"x": text}
