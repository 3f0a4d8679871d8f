"""The filter's verdict equals what its rules say, for any rules, numbers, architectures and arguments."""

import errno

from hypothesis import given
from hypothesis import strategies as st

from ptserver.hosts.policy import MAPPING_CALLS, REACHES_SELF_ONLY, filter_rules, interest_in
from stepping.seccomp import Rule, Verdict, assemble
from stepping.syscalls import SYSCALLS, Arch, OnlyIf, Sysno
from tests import bpf

AUDIT: dict[Arch, int] = {"amd64": 0xC000003E, "arm64": 0xC00000B7}
U32 = (1 << 32) - 1

arches = st.sampled_from(sorted(AUDIT))
numbers = st.integers(0, 520) | st.integers(0xFFE0, 0xFFFF) | st.integers(0, U32)
registers = st.integers(0, (1 << 64) - 1) | st.integers(0, 0x100)
conditions = st.builds(
    OnlyIf, arg=st.integers(0, 5), mask=st.integers(0, U32) | st.integers(0, 255), value=st.integers(0, 255)
)
rules = st.lists(
    st.builds(
        Rule,
        sysno=st.integers(0, 520).map(Sysno) | st.integers(0xFFE0, 0xFFFF).map(Sysno),
        verdict=st.sampled_from(Verdict),
        only_if=st.none() | conditions,
        errno=st.integers(1, 4095),
    ),
    max_size=60,
)


def by_rules(chosen: list[Rule], arch: Arch, nr: int, audit: int, args: list[int]) -> int:
    """What the documentation of `assemble` and `Rule` promises, by the shortest way."""
    if not chosen:
        return Verdict.ALLOW.value
    if audit != AUDIT[arch] or nr >= 0x40000000:
        return Verdict.DENY.value | errno.ENOSYS
    for rule in chosen:
        if rule.sysno == nr:
            only = rule.only_if
            if only is not None and (args[only.arg] & U32) & only.mask != only.value:
                return Verdict.ALLOW.value
            return rule.verdict.value | (rule.errno if rule.verdict is Verdict.DENY else 0)
    return Verdict.ALLOW.value


@given(data=st.data(), chosen=rules, arch=arches, args=st.lists(registers, min_size=6, max_size=6))
def test_verdicts(data: st.DataObject, chosen: list[Rule], arch: Arch, args: list[int]) -> None:
    program = assemble(chosen, arch)
    ruled = [rule.sysno for rule in chosen]
    near = st.sampled_from(ruled).flatmap(lambda n: st.integers(max(0, n - 1), n + 1)) if ruled else numbers
    for nr in data.draw(st.lists(near | numbers, min_size=1, max_size=10)):
        for audit in (AUDIT[arch], data.draw(st.sampled_from([*AUDIT.values(), 0x40000003, 0]))):
            verdict = bpf.run(program, bpf.seccomp_data(nr, audit, 0x401000, args))
            assert verdict == by_rules(chosen, arch, nr, audit, args)


interests = st.dictionaries(
    st.sampled_from(sorted(SYSCALLS)), st.sampled_from(["ignore", "observe", "serve"]), max_size=40
)


@given(
    interest=interests,
    default=st.sampled_from(["ignore", "serve"]),
    arch=arches,
    args=st.lists(registers, min_size=6, max_size=6),
)
def test_the_filter_takes_what_the_policy_says(interest, default, arch, args) -> None:  # type: ignore[no-untyped-def]
    """Every call of the table, under any interest: taken if wanted, else untouched or looked at by the host."""
    rules_ = filter_rules(interest, default, arch)
    program = assemble(rules_, arch)
    for row in SYSCALLS.values():
        if arch not in row.numbers:
            continue
        verdict = bpf.run(program, bpf.seccomp_data(row.numbers[arch], AUDIT[arch], 0, args))
        wanted = interest_in(row, interest, default) != "ignore"
        if wanted and row.only_if is not None and row.name not in interest:
            wanted = args[row.only_if.arg] & U32 & row.only_if.mask == row.only_if.value
        if row.name == "clone3" and default != "ignore":
            assert verdict == Verdict.DENY.value | errno.ENOSYS
        elif wanted:
            assert verdict == Verdict.NOTIFY.value, row.name
        elif default == "ignore":
            assert verdict == Verdict.ALLOW.value, row.name
        else:
            kept = row.name in REACHES_SELF_ONLY | MAPPING_CALLS
            assert verdict == (Verdict.NOTIFY if kept else Verdict.ALLOW).value, row.name
