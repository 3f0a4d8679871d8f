"""Which runtime structures, and which fields of them, this package reads: the one list of such assumptions.

A path with dots reaches into embedded structs. A field marked as optional exists in some versions only; who
reads it asks whether it is there (`Layout.has`), never for the version. Every other field must be in every
supported version: the generated table is checked for it, and so is each binary's DWARF.

Source: runtime/runtime2.go, runtime/chan.go, runtime/map.go, internal/runtime/maps, Go 1.21 to 1.27.
"""

from typing import NamedTuple


class StructSpec(NamedTuple):
    """A struct by our short name: DWARF names to try in turn, needed fields, fields of some versions.

    `optional`: the struct itself exists in some versions only.
    """

    name: str
    dwarf_names: tuple[str, ...]
    fields: tuple[str, ...]
    optional_fields: tuple[str, ...] = ()
    optional: bool = False


STRUCTS: tuple[StructSpec, ...] = (
    StructSpec(
        "g",
        ("runtime.g",),
        (
            *("stack.lo", "stack.hi", "stackguard0", "m", "sched.sp", "sched.pc", "sched.lr", "sched.bp"),
            *("syscallsp", "syscallpc", "param", "atomicstatus", "goid", "schedlink", "waitsince"),
            *("waitreason", "preempt", "asyncSafePoint", "lockedm", "sig", "sigcode0", "sigpc"),
            *("parentGoid", "gopc", "startpc", "waiting", "labels"),
        ),
        (
            "syscallbp",  # Since Go 1.23
            "sleepWhen",  # Since Go 1.23; before, a sleeper's time is in its timer alone
            "parkingOnChan",
            "runnableTime",
            "trackingStamp",
            "gcAssistBytes",
        ),
    ),
    StructSpec(
        "m",
        ("runtime.m",),
        (
            *(
                "g0",
                "procid",
                "gsignal",
                "curg",
                "p",
                "nextp",
                "oldp",
                "id",
                "locks",
                "mallocing",
                "throwing",
            ),
            *(
                "spinning",
                "blocked",
                "incgo",
                "isextra",
                "ncgocall",
                "alllink",
                "lockedg",
                "vdsoSP",
                "vdsoPC",
            ),
        ),
        ("tls",),
    ),
    StructSpec(
        "p",
        ("runtime.p",),
        (
            *("id", "status", "schedtick", "syscalltick", "m", "runqhead", "runqtail", "runq", "runnext"),
            "preempt",
        ),
    ),
    StructSpec(
        "sched",
        ("runtime.schedt",),
        (
            "goidgen",
            "lastpoll",
            "nmidle",
            "nmidlelocked",
            "mnext",
            "nmsys",
            "gcwaiting",
            "runq.head",
            "npidle",
        ),
        (
            "runqsize",  # Until Go 1.25
            "runq.size",  # Since Go 1.26
        ),
    ),
    StructSpec(
        "sudog",
        ("runtime.sudog",),
        ("g", "next", "prev", "elem", "isSelect", "waitlink", "c"),
        (
            # Since Go 1.26 both may be hidden from the collector, and the second word is the one to read.
            "elem.vu",
            "c.maybeTraceablePtr.vu",
        ),
    ),
    StructSpec(
        "hchan",
        ("runtime.hchan",),
        (
            *("qcount", "dataqsiz", "buf", "elemsize", "closed", "elemtype", "sendx", "recvx"),
            *("recvq.first", "recvq.last", "sendq.first", "sendq.last"),
        ),
    ),
    # Maps until Go 1.23.
    StructSpec(
        "hmap",
        ("runtime.hmap",),
        ("count", "flags", "B", "noverflow", "hash0", "buckets", "oldbuckets", "nevacuate"),
        optional=True,
    ),
    # Maps since Go 1.24.
    StructSpec(
        "swissmap",
        ("internal/runtime/maps.Map",),
        ("used", "seed", "dirPtr", "dirLen", "globalDepth"),
        optional=True,
    ),
    StructSpec(
        "swisstable",
        ("internal/runtime/maps.table",),
        ("used", "capacity", "index", "groups.data", "groups.lengthMask"),
        optional=True,
    ),
    StructSpec(
        "rtype",
        ("internal/abi.Type", "runtime._type"),
        ("Size_", "PtrBytes", "Hash", "TFlag", "Align_", "FieldAlign_", "Kind_", "Str", "PtrToThis"),
    ),
    StructSpec("itab", ("internal/abi.ITab", "runtime.itab"), (), ("Type", "_type"), optional=True),
)

GLOBALS: tuple[str, ...] = ("runtime.allgs", "runtime.allm", "runtime.allp", "runtime.sched")
"""The package-level variables that lead to everything else."""

WAIT_REASONS = "runtime.waitReasonStrings"
"""The array of strings that `g.waitreason` indexes."""

HARMLESS_EXPERIMENTS = frozenset(
    {
        *(
            "regabi",
            "regabiwrappers",
            "regabiargs",
            "coverageredesign",
            "loopvar",
            "rangefunc",
            "aliastypeparams",
        ),
        *("newinliner", "exectracer2", "cacheprog", "heapminimum512kib", "synctest", "jsonv2", "nodwarf5"),
        *("dwarf5", "greenteagc", "nogreenteagc", "goroutineleakprofile", "simd", "norandomizedheapbase64"),
        *("boringcrypto", "preemptibleloops", "unified", "cgocheck2", "nocoverageredesign", "noloopvar"),
    }
)
"""GOEXPERIMENTs, as the version string names them, that move no field listed here."""
