"""Rules of what is whose: which one decides."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptserver.errors import RulesError
from ptserver.rules.rules import Rule, Rules, Side, load_rules, normalise, parse_rule


def rules(*texts: str) -> Rules:
    """Rules as "local /etc"."""
    made = []
    for text in texts:
        side, _, rule = text.partition(" ")
        made.append(parse_rule("local" if side == "local" else "remote", rule, "test"))
    return Rules(made)


@pytest.mark.parametrize(
    ("subject", "side", "by"),
    [
        ("/etc/ssl", "local", "/etc/ssl"),
        ("/etc/ssl/certs/ca.pem", "local", "/etc/ssl"),
        ("/etc/ssl/private", "remote", "/etc/ssl/private"),
        ("/etc/ssl/private/../certs", "local", "/etc/ssl"),
        ("//etc/./ssl/", "local", "/etc/ssl"),
        ("/etc/sslx", "remote", None),
        ("/etc", "remote", None),
        ("/", "remote", None),
        ("env:AWS_KEY", "local", "env:AWS_*"),
        ("env:AWS_REGION", "remote", "env:AWS_REGION"),
        ("env:aws_key", "remote", None),
        ("connect:5432", "local", "connect:5432"),
        ("connect:5433", "remote", "connect:5000-6000"),
        ("connect:80", "remote", None),
        ("listen:5432", "remote", None),
        ("listen:8080", "local", "listen:8080"),
        ("stdio", "local", "stdio"),
    ],
)
def test_the_most_specific_rule_decides(subject: str, side: str, by: str | None) -> None:
    decision = rules(
        "remote /etc/ssl/private",
        "local /etc/ssl/",
        "local env:AWS_*",
        "remote env:AWS_REGION",
        "local connect:5432",
        "remote connect:5000-6000",
        "local listen:8080",
        "local stdio",
    ).explain(subject)
    assert decision.side == side
    assert (decision.rule.text if decision.rule else None) == by
    assert decision.text.count("\n") == 0
    assert side in decision.text


def test_of_two_alike_the_later_one_decides() -> None:
    for texts in (
        ("local /a", "remote /a"),
        ("local env:A*", "remote env:*A"),
        ("local stdio", "remote stdio"),
    ):
        subject = {"/": "/a", "e": "env:A", "s": "stdio"}[texts[0].partition(" ")[2][0]]
        assert rules(*texts).explain(subject).side == "remote"
        assert rules(*reversed(texts)).explain(subject).side == "local"
    assert rules("local /", "remote /x").explain("/y").side == "local"


def test_without_rules_everything_is_the_servers() -> None:
    empty = rules()
    assert not empty.has_local
    assert not rules("local env:X", "remote /").has_local
    assert rules("local connect:1").has_local
    for subject in ("/", "env:PATH", "connect:1", "listen:1", "stdio"):
        assert empty.explain(subject).side == "remote"
        assert empty.explain(subject).rule is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "etc",
        "env:",
        "env:A=b",
        "connect:",
        "connect:0",
        "connect:70000",
        "connect:9-8",
        "listen:x",
        "stdin",
        "port:5",
    ],
)
def test_rules_that_are_none(text: str) -> None:
    with pytest.raises(RulesError, match=re.escape(repr(text))):
        parse_rule("local", text, "test")


@pytest.mark.parametrize("subject", ["", "etc", "env:", "connect:x", "stdin"])
def test_what_rules_are_not_about(subject: str) -> None:
    with pytest.raises(RulesError, match="is nothing that rules are about"):
        rules().explain(subject)


def test_a_file_of_rules(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text('local = ["/etc/ssl", "env:AWS_*"]\nremote = ["/etc/ssl/private"]\n')
    loaded = load_rules(path)
    assert [(rule.side, rule.text, rule.origin) for rule in loaded] == [
        ("local", "/etc/ssl", str(path)),
        ("local", "env:AWS_*", str(path)),
        ("remote", "/etc/ssl/private", str(path)),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("local = 1", "local must be a list of strings"),
        ("local = [1]", "local must be a list of strings"),
        ("[local]\na = 1", "local must be a list of strings"),
        ("locals = []", "not 'locals'"),
        ("local = [", "is no file of rules"),
        ('local = ["x"]', "'x' is no rule"),
        ("\0", "is no file of rules"),
        (None, "No such file or directory"),
    ],
)
def test_files_that_are_not_in_order(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "rules.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RulesError, match=re.escape(said)):
        load_rules(path)


names = st.sampled_from(["a", "b", "c", "ab", ".x"])
paths = st.lists(names, max_size=4).map(lambda parts: "/" + "/".join(parts))
sides: st.SearchStrategy[Side] = st.sampled_from(["local", "remote"])


@given(st.lists(st.tuples(sides, paths), max_size=8), paths)
def test_a_path_is_decided_by_its_longest_prefix(given_rules: list[tuple[Side, str]], path: str) -> None:
    made = Rules(parse_rule(side, text, "test") for side, text in given_rules)
    covering = [
        (len(text), number, side)
        for number, (side, text) in enumerate(given_rules)
        if text == "/" or path == text or path.startswith(text + "/")
    ]
    assert made.path(path).side == (max(covering)[2] if covering else "remote")


@given(st.text(alphabet="/.ab", max_size=20), paths)
def test_a_normal_path_stays_as_it_is(path: str, folder: str) -> None:
    normal = normalise(path, folder)
    assert normal.startswith("/")
    assert normalise(normal) == normal
    assert not {"", ".", ".."} & set(normal[1:].split("/")) or normal == "/"


@given(
    st.lists(st.tuples(sides, st.text(alphabet="AB*?", min_size=1, max_size=4)), max_size=6),
    st.text("AB", max_size=4),
)
def test_a_name_is_decided_by_a_glob_that_matches_it(given_rules: list[tuple[Side, str]], name: str) -> None:
    decision = Rules(Rule(side, "env", glob) for side, glob in given_rules).env(name)
    if decision.rule is not None:
        pattern = re.escape(decision.rule.pattern).replace(r"\*", ".*").replace(r"\?", ".")
        assert re.fullmatch(pattern, name)
    else:
        assert decision.side == "remote"


@given(st.lists(st.tuples(sides, st.integers(1, 60), st.integers(1, 60)), max_size=6), st.integers(1, 60))
def test_a_port_is_decided_by_the_narrowest_range(
    given_rules: list[tuple[Side, int, int]], port: int
) -> None:
    made = [Rule(side, "connect", ports=(min(a, b), max(a, b))) for side, a, b in given_rules]
    covering = [rule.ports[1] - rule.ports[0] for rule in made if rule.ports[0] <= port <= rule.ports[1]]
    decision = Rules(made).port("connect", port)
    assert (decision.rule is None) == (not covering)
    if decision.rule is not None:
        assert decision.rule.ports[1] - decision.rule.ports[0] == min(covering)
