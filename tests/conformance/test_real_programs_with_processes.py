"""Programs that people use, from Debian, with children, signals or a terminal, each against what it does natively.

restic backs up and restores the server's files, shells run a script with pipes, fzf asks at a terminal and starts
programs.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conformance.modes import base_environment, serving
from tests.leftovers import none_left
from tests.running import Ended, started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PATIENCE_SECONDS = 300.0

#: What is waited for, and what is typed then.
Talk = Sequence[tuple[str, bytes]]

SCRIPT = """
set -u
echo one | tr a-z A-Z | cat
x=$(echo sub; echo shell); echo "$x"
(exit 3); echo $?
for i in 1 2 3; do echo $i; done | wc -l
sleep 0.1 & wait $!; echo waited $?
trap 'echo got usr1' USR1; kill -USR1 $$; echo after
sh -c 'kill -TERM $$'; echo $?
seq 1 20000 | sort -rn | head -n 3
mkdir -p tree/a/b; for n in 1 2 3 4 5; do echo $n > tree/a/b/$n; done
find tree -type f | sort | xargs cat | paste -sd+ - | tr -d '\\n'; echo
tar cf - tree | tar tf - | sort
cat <<END | sort
b
a
END
exec sh -c 'echo replaced; exit 9'
"""


def executable(name: str) -> Path:
    found = shutil.which(name, path="/usr/bin:/bin")
    if found is None:
        pytest.skip(f"needs the Debian package of {name}")
    return Path(found)


def run(
    name: str, *args: str, work: Path, served: bool, env: dict[str, str] | None = None, talk: Talk = ()
) -> Ended:
    """Run a program in the folder *work*, natively or at a server there; with a *talk*, at a terminal."""
    path = executable(name)
    env = base_environment() | {"HOME": str(work)} | (env or {})
    command: list[str | Path] = [path, *args]
    if not served:
        return finish(command, path, env, work, talk)
    log = work.with_name("server-log")
    with none_left(), serving("passthrough", "127.0.0.1:0", cwd=work, env=env, log=log) as (address, _):
        command = ["ptserver", "run", "--server", address, *command]
        return finish(command, path, base_environment() | {"TERM": env.get("TERM", "")}, Path("/"), talk)


def finish(command: list[str | Path], path: Path, env: dict[str, str], cwd: Path, talk: Talk) -> Ended:
    with started(command, path, env=env, cwd=cwd, terminal=bool(talk)) as child:
        for awaited, keys in talk:
            child.expect(awaited)
            child.send(keys)
        return child.finish(seconds=PATIENCE_SECONDS)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_restic_backs_up_and_restores_the_servers_files(work: Path) -> None:
    source = work / "source"
    for number in range(60):
        file = source / f"folder{number % 7}" / f"file{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes([number]) * (number * 1013) + str(number).encode())
        file.chmod(0o600 + number % 64)
    env = {"RESTIC_PASSWORD": "a secret", "RESTIC_REPOSITORY": str(work / "repository")}

    def restic(*args: str, served: bool = True) -> str:
        ended = run("restic", *args, work=work, served=served, env=env)
        assert ended.status == 0, ended.stderr.decode()
        return ended.stdout.decode()

    restic("init")
    restic("backup", "source")
    assert "no errors were found" in restic("check", "--read-data", served=False)
    restic("restore", "latest", "--target", str(work / "restored"))
    assert tree(work / "restored" / "source") == tree(source)


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_a_script_does_in_a_shell_what_it_does_natively(shell: str, work: Path) -> None:
    native, served = work / "native", work / "served"
    for folder in (native, served):
        folder.mkdir()
        (folder / "script").write_text(SCRIPT)
    expected = run(shell, "script", work=native, served=False)
    assert expected.status == 9
    assert run(shell, "script", work=served, served=True) == expected
    assert tree(served) == tree(native)


def test_fzf_at_a_terminal(work: Path) -> None:
    """It starts a shell for its list and another for its preview, and draws what is chosen by keys."""
    env = {"TERM": "xterm", "FZF_DEFAULT_COMMAND": "printf 'apple\\nbanana\\ncherry\\n'"}
    options = ("--no-height", "--preview", "echo seen {}")
    ended = [
        run("fzf", *options, work=work, served=served, env=env, talk=(("seen apple", b"ban"), ("1/3", b"\r")))
        for served in (False, True)
    ]
    for one in ended:
        assert one.status == 0
        assert one.stdout.rstrip().endswith(b"banana")
