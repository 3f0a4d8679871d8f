"""The shadow: a remote program's operating-system state on the server's machine, and the calls made there."""
