"""Programs as Debian has them, dynamically linked and with cgo, over several hosts: their work is the same."""

import filecmp
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conformance.modes import base_environment, waiting
from tests.gofixtures import ROOT
from tests.leftovers import none_left
from tests.process.commands import ptserver
from tests.two_machines import skip_without_machines, two_machines

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel accesses needs privileges")

_TEMPLATE = (
    "<title>{{ .Title }}</title>{{ .Content }}{{ range .Pages }}<a href='{{ .Permalink }}'>x</a>{{ end }}"
)


def _program(name: str) -> str:
    path = f"/usr/bin/{name}"
    if not Path(path).exists():
        pytest.skip(f"needs the Debian package of {name}")
    return path


def _site(folder: Path, posts: int) -> Path:
    (folder / "content/posts").mkdir(parents=True)
    (folder / "layouts/_default").mkdir(parents=True)
    for number in range(posts):
        text = f"---\ntitle: Post {number}\ndate: 2024-01-01\n---\n# Hello {number}\n\n*text* of it\n"
        (folder / f"content/posts/{number}.md").write_text(text)
    (folder / "config.toml").write_text('baseURL = "http://example.test/"\ntitle = "a site"\n')
    for name in ("_default/single.html", "_default/list.html", "index.html"):
        (folder / "layouts" / name).write_text(_TEMPLATE)
    return folder


def _same(left: Path, right: Path) -> bool:
    names = {path.relative_to(left) for path in left.rglob("*")}
    files = [name for name in names if (left / name).is_file()]
    return (
        names == {path.relative_to(right) for path in right.rglob("*")}
        and filecmp.cmpfiles(left, right, files, shallow=False)[0] == files
    )


@pytest.mark.parametrize(
    ("hosts", "place", "posts"),
    [
        ("local", "random:1", 20),
        *(pytest.param("local,local", f"random:{seed}", 200, marks=pytest.mark.slow) for seed in range(5)),
    ],
)
def test_hugo_builds_the_same_site_over_hosts(hosts: str, place: str, posts: int, tmp_path: Path) -> None:
    hugo, site = _program("hugo"), _site(tmp_path / "site", posts)
    subprocess.run([hugo, "-s", site, "-d", tmp_path / "native"], check=True, capture_output=True)
    words = ("--spread", hosts, "--straight", "all", "--place", place, "--check-memory", "1")
    status, _, err = ptserver("run", *words, hugo, "-s", site, "-d", tmp_path / "spread", timeout=600)
    assert (status, err) == (0, "")
    assert _same(tmp_path / "native", tmp_path / "spread")


@pytest.mark.slow
@pytest.mark.timeout(0)
@skip_without_machines
def test_hugo_builds_the_same_site_over_two_machines(tmp_path: Path) -> None:
    hugo, site = _program("hugo"), _site(tmp_path / "site", 100)
    subprocess.run([hugo, "-s", site, "-d", tmp_path / "native"], check=True, capture_output=True)
    with none_left(), two_machines(tmp_path) as machines:
        address = f"{machines.there.address}:0"
        with waiting(address, tmp_path, *machines.listening_keys, popen=machines.there.popen) as (address, _):
            words = ["--spread", address, *machines.connecting_keys, "--place", "random:1"]
            command = ["ptserver", "run", *words, hugo, "-s", site, "-d", tmp_path / "spread"]
            child = machines.here.popen(command, env=base_environment(), stdout=subprocess.DEVNULL)
            assert child.wait(timeout=600) == 0
    assert _same(tmp_path / "native", tmp_path / "spread")


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("place", ["idle", "random:1", "random:2"])
def test_restic_over_three_hosts_backs_up_what_it_restores_natively(place: str, tmp_path: Path) -> None:
    restic, source = _program("restic"), tmp_path / "source"
    shutil.copytree(ROOT / "docs", source)
    env = {
        "RESTIC_PASSWORD": "a secret",
        "RESTIC_REPOSITORY": str(tmp_path / "repository"),
        "HOME": str(tmp_path),
    }

    def natively(*words: str | Path) -> str:
        return subprocess.run(
            [restic, *words], check=True, capture_output=True, text=True, env=base_environment() | env
        ).stdout

    natively("init")
    words = ("--spread", "local,local", "--straight", "all", "--place", place, "--check-memory", "1")
    status, out, err = ptserver("run", *words, restic, "backup", source, cwd=tmp_path, env=env, timeout=600)
    assert (status, err) == (0, "")
    assert "saved" in out
    assert "no errors were found" in natively("check", "--read-data")
    natively("restore", "latest", "--target", tmp_path / "restored")
    assert _same(source, tmp_path / "restored" / source.relative_to("/"))
