"""The subset of Go's templates, checked against what Docker's client prints for the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.cli.template import Template, TemplateError

VALUE: dict[str, Any] = {
    "ID": "abcdef",
    "Name": "web",
    "Spec": {"Labels": {"b": "2", "a": "1"}, "Args": ["x", "y"], "Empty": [], "None": None},
    "Count": 3,
    "Flag": True,
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{.ID}}", "abcdef"),
        ("{{ .Name }}: {{.Spec.Labels.a}}", "web: 1"),
        ("{{json .Spec.Labels}}", '{"b":"2","a":"1"}'),
        ("{{.Spec.Labels}}", "map[a:1 b:2]"),
        ("{{.Spec.Args}}", "[x y]"),
        ("{{.Flag}} {{.Count}} {{.Spec.None}}", "true 3 <no value>"),
        ('{{join .Spec.Args ", "}}', "x, y"),
        ('{{index .Spec.Labels "b"}}{{index .Spec.Args 0}}', "2x"),
        ("{{len .Spec.Args}}{{upper .Name}}{{title .Name}}", "2WEBWeb"),
        ("{{.Name | upper | json}}", '"WEB"'),
        ("{{range .Spec.Args}}<{{.}}>{{end}}", "<x><y>"),
        ("{{range .Spec.Empty}}x{{else}}none{{end}}", "none"),
        ("{{range .Spec.Labels}}{{.}}{{$.Name}} {{end}}", "1web 2web "),
        ("{{if .Spec.Empty}}yes{{else}}no{{end}}", "no"),
        ('{{if eq .Name "web"}}it is{{end}}', "it is"),
        ("{{with .Spec}}{{len .Args}}{{end}}", "2"),
        ("a {{- .Name -}} b", "awebb"),
        (r"{{.ID}}\t{{.Name}}", "abcdef\tweb"),
        ('{{truncate .ID 3}}{{"q"}}', "abcq"),
        ("{{println .ID .Count}}", "abcdef 3\n"),
        ("{{range $k, $v := .Spec.Labels}}{{$k}}={{$v}}{{.}} {{end}}", "a=11 b=22 "),
        ("{{range $i, $a := .Spec.Args}}{{$i}}{{$a}}{{$.Name}} {{end}}", "0xweb 1yweb "),
        ("{{with $s := .Spec}}{{len $s.Args}}{{end}}", "2"),
        ('{{(index .Spec.Args 1)}}{{(index . "Spec").Labels.b}}', "y2"),
        ('{{if and .Flag (eq .Name "web")}}both{{end}}', "both"),
        ('{{if eq .Name "x"}}a{{else if gt .Count 2}}b{{else}}c{{end}}', "b"),
        ('{{printf "%-5s|%d|%q|%v%%" .Name .Count .ID .Spec.Args}}', 'web  |3|"abcdef"|[x y]%'),
        ('{{or .Spec.None "none"}}{{not .Flag}}', "nonefalse"),
    ],
)
def test_rendered(template: str, text: str) -> None:
    assert Template(template).render(VALUE) == text


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{.Nope}}", "there is no field 'Nope'; there are Count, Flag, ID, Name, Spec"),
        ("{{.Name.X}}", "'web' has no field 'X'"),
        ("{{nope .}}", "function 'nope' is not known"),
        ("{{.ID", "{{ without }}"),
        ("{{range .Spec.Args}}", "{{range}} has no {{end}}"),
        ("{{end}}", "{{end}} ends nothing"),
        ("{{(.Name}}", "a ( too many"),
        ("{{.Name)}}", "a ) too many"),
        ("{{$k}}", "there is no variable $k"),
        ("{{}}", "is empty"),
        ("{{.ID | }}", "is empty"),
        ("{{range .Name}}{{end}}", "which is no list"),
        ("{{upper}}", "upper:"),
        ("{{.ID .Name}}", "is no function and takes no argument"),
        ("{{if x}}" * 30, "nested too deep"),
    ],
)
def test_refused(template: str, reason: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Template(template).render(VALUE)
    assert reason in str(caught.value) or "not known" in str(caught.value)


PIECES = ["{{", "}}", ".", ".ID", "json ", "range ", "if ", "end", "else", "|", '"', "-", " ", "x"]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_any_template_renders_or_is_a_template_error(text: str) -> None:
    try:
        Template(text).render(VALUE)
    except TemplateError:
        return
