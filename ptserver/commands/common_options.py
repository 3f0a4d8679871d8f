"""Options that several commands have."""

import click

#: How long another connection is waited for.
DEFAULT_WAIT_SECONDS = 120

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

#: How long a session may be kept.
max_wait_option = click.option(
    "--max-wait",
    "max_wait_seconds",
    type=click.IntRange(0, 1_000_000),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="Keep a session whose connection is lost for that long at most, if the other side asks for it "
    "(--on-lost=wait). 0: never.",
)


class OnLost(click.ParamType):  # type: ignore[type-arg]
    """What is to happen when a connection is lost: (panic or kill, for how many seconds another is waited for)."""

    name = "panic|kill|wait[:SECONDS]"

    def convert(
        self, value: str | tuple[str, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Return what *value* says."""
        if isinstance(value, tuple):
            return value
        if value in ("panic", "kill"):
            return value, 0
        word, colon, seconds = value.partition(":")
        if word == "wait" and not colon:
            return "panic", DEFAULT_WAIT_SECONDS
        if word == "wait" and seconds.isdecimal() and 0 < int(seconds) <= 1_000_000:
            return "panic", int(seconds)
        raise click.BadParameter(f"{value!r} is none of panic, kill, wait and wait:SECONDS", ctx, param)
