"""Hosts with different processors."""

import pytest

from ptserver.spread.processors import ProcessorError, check, lacking, without

_OURS = ("fpu", "avx", "avx2", "sha_ni", "svm")


def test_only_what_go_looks_for_is_compared() -> None:
    assert lacking(_OURS, ("avx", "vmx")) == {"avx2", "sha_ni"}
    assert lacking(_OURS, _OURS) == lacking((), _OURS) == frozenset()


def test_a_host_that_lacks_something_is_refused_with_its_name() -> None:
    check("big1:1", ())
    with pytest.raises(ProcessorError, match="the processor of big1:1 lacks avx2, sha_ni, which"):
        check("big1:1", {"sha_ni", "avx2"})


def test_go_is_told_what_not_to_use() -> None:
    assert without([b"A=1"], ()) == [b"A=1"]
    assert without([b"A=1"], {"sha_ni", "avx2"}) == [b"A=1", b"GODEBUG=cpu.avx2=off,cpu.sha=off"]
    assert without([b"GODEBUG=madvdontneed=1", b"A=1"], {"avx"}) == [
        b"A=1",
        b"GODEBUG=madvdontneed=1,cpu.avx=off",
    ]
