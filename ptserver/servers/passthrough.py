"""The default server: the program's own machine, or the server's machine as it is."""

from ptserver.server import RuntimeServer


class PassThrough(RuntimeServer):
    """Wants nothing: on the same machine the program runs natively, over a connection all is the server's."""

    name = "passthrough"
