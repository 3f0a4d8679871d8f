"""A suite of checks that any server of the API can be run against: `python -m ptserver.conformance ADDR`.

The suite plays a stub host without a program: it says hello and makes calls as threads of a program would, so it
needs nothing of the machine that it runs on. What it finds is by the protocol's description in `docs/protocol/`;
a check that a server's welcome makes meaningless is skipped, and says why.

`checks` holds what a check is, `client` and `caller` the stub host that it plays; the checks themselves are in
`handshake`, `framing`, `calls`, `files`, `streams` and `memory`. Nothing that the server sends is trusted; a server
that does not answer costs a check its timeout.
"""
