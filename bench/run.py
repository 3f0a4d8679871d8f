"""`python -m bench.run [--json] [--quick] [--repeat N] [--only NAME]`: every benchmark, one after the other.

Each module prints a table of medians and ratios, and what its targets are; a target that is missed is said there. The
exit status is 1 if a module did not come to its end, and says nothing of targets.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

#: The modules of this package that measure, in order, and what.
MODULES = {
    "calls": "running programs: calls, requests, starts, memory",
    "tracing": "tracing: calls, attaching, reading a ring, events of goroutines",
    "attach": "looking into programs: goroutines and names, beside delve",
    "watched": "servers that are traced, beside strace",
    "borrow": "what a borrowed machine must reach, in one table",
    "latency": "another machine, beside ssh and rsync",
    "sessions": "what 500 sessions leave of a server",
    "emulation": "emulated programs, beside qemu-user",
    "stepping": "basic blocks and single steps",
    "remote_memory": "remote variables",
    "spread": "programs spread over hosts",
    "spread_far": "programs spread over two machines, near and apart",
    "spread_straight": "pages of programs that are spread over hosts, straight and through the home",
    "spread_hosts": "programs spread over more hosts than there are here, by a model",
}


def main() -> None:
    """Run them; exit with 1 if one failed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.run", description="Measure everything.", epilog=f"modules: {', '.join(MODULES)}"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="little of everything, once: does it work?")
    parser.add_argument("--repeat", metavar="N", help="rounds (default: each module's own)")
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        choices=list(MODULES),
        help="only this module; may be repeated",
    )
    given = parser.parse_args()
    words = [*(["--quick"] if given.quick else []), *(["--repeat", given.repeat] if given.repeat else [])]
    found, failed = {}, []
    for name in given.only or MODULES:
        if not given.json:
            print(f"\n== {name}: {MODULES[name]}", flush=True)
        began = time.monotonic()
        command = [sys.executable, "-m", f"bench.{name}", *words, *(["--json"] if given.json else [])]
        done = subprocess.run(
            command,
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.PIPE if given.json else None,
            check=False,
        )
        if done.returncode:
            failed.append(name)
        if given.json:
            found[name] = json.loads(done.stdout) if done.returncode == 0 else None
        else:
            how = f"FAILED with exit status {done.returncode}" if done.returncode else "done"
            print(f"== {name}: {how} after {time.monotonic() - began:.0f} s", flush=True)
    if given.json:
        print(json.dumps(found, indent=2))
    elif failed:
        print(f"\nfailed: {', '.join(failed)}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
