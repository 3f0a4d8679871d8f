"""Options that several commands have."""

import click

#: How long the other side of a connection may be silent.
keepalive_option = click.option(
    "--keepalive",
    "keepalive_seconds",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Give the other side up when it has been silent for that long, although it was asked whether it is there. "
    "0: never.",
)
