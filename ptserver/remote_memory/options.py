"""What the command line says about remote variables; `ptserver.remote_memory.variables` says what it means."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wanted:
    """What is to be remote: *variables* by name, *ranges* as text, and all variables of some *types* of Go."""

    variables: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()
    types: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.variables or self.ranges or self.types)
