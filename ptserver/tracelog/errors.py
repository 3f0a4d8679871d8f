"""The errors of the trace log."""

from ptserver.errors import PtServerError


class FilterError(PtServerError):
    """An expression of `-e` names a call or set that does not exist, or does not follow the grammar."""

    exit_status = 64


class TraceFormatError(PtServerError):
    """A file is not a trace that this version can read."""

    exit_status = 65


class TraceOutputError(PtServerError):
    """The trace cannot be written where it should be."""

    exit_status = 73


class TraceSourceError(PtServerError):
    """The source that was asked for cannot trace this program; the message says why."""

    exit_status = 69
