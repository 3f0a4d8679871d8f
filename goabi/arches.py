"""The architectures by name."""

from goabi.arch import Arch
from goabi.arch_amd64 import AMD64
from goabi.arch_arm64 import ARM64
from goabi.elf_header import ArchName

ARCHES: dict[ArchName, Arch] = {"amd64": AMD64, "arm64": ARM64}
