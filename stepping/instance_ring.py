"""The ring in instances: what becomes of the goroutines that run there, recorded in memory of each instance alone.

An instance is not attached to for it, as other programs are (`ring_inject.py`), for it is traced from its beginning
to its end: the routine and the memory are mapped before it runs, and stay. They are at the same addresses in all
instances of a program, so a page with the routine that was made for one is good for all. Only probes of functions
record; the program's calls pass untouched.

All functions are for the thread that traces.
"""

import struct
from typing import NamedTuple

from goabi.errors import GoAbiError
from stepping.errors import SteppingError
from stepping.instance import Instance
from stepping.maps import PAGE_BYTES
from stepping.ring import Ring
from stepping.ring_inject import Installed, RingPage
from stepping.ring_layout import CODE_OFFSET, LIMIT_OFFSET, Parameters, decode_parameters
from stepping.ring_probes import Patch, Probes, decode_patches
from stepping.ring_site import NoRingError, RingSite, find_site

#: Where the ring's memory is, in every instance: far from what Go, the kernel and C libraries choose.
_RING = 0x6000_4000_0000
#: How far behind the program's code the routine is: beyond the heap of a C library, within reach of a jump.
_DISTANCE = 1 << 30
_SLOTS = 1 << 13


class InstanceRing(NamedTuple):
    """What instances of a program need for a ring. address: of *code*, the routines.

    load_bias: of the program; goid_offset: where a g has its number.
    """

    address: int
    code: bytes
    load_bias: int
    goid_offset: int

    @property
    def patches(self) -> list[Patch]:
        """What is to be changed in the program's code so that it records."""
        return decode_patches(self.code[PAGE_BYTES:])


def plan_ring(instance: Instance, probes: Probes) -> InstanceRing:
    """Return what the instances of the program of *instance* need for *probes*.

    Raises:
        NoRingError: it is no program for the ring.
    """
    try:
        site = find_site(instance.pid, with_c_code=True)
    except GoAbiError as error:
        raise NoRingError(str(error)) from error
    page = (site.entry + _DISTANCE) & -PAGE_BYTES
    _, code = RingPage(site, [], _SLOTS, 0, probes).fill(_RING, page)
    return InstanceRing(page, code, site.load_bias, site.goid_offset)


def put_ring(instance: Instance, address: int, code: bytes) -> Ring:
    """Have the routines *code* at *address* in an instance that has not run; return the reader of what they record.

    Nothing is recorded before `InstanceRing.patches` are applied.

    Raises:
        NoRingError: it cannot be had in this process.
    """
    parameters = decode_parameters(code[:CODE_OFFSET])
    if parameters is None:
        raise NoRingError("its routine is not one of these")
    try:
        fd = instance.add_routines(address, code, parameters.ring, parameters.ring_bytes)
    except SteppingError as error:
        raise NoRingError(str(error)) from error
    instance.memory.write(parameters.ring + LIMIT_OFFSET, struct.pack("<Q", parameters.index_mask + 1))
    return Ring(Installed(instance.pid, _site_of(parameters), address, parameters, fd, 0.0), ())


def _site_of(parameters: Parameters) -> RingSite:
    return RingSite(
        parameters.entry, parameters.goid_offset, parameters.m_offset, parameters.procid_offset, 0, ""
    )
