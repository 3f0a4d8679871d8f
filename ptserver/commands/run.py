"""`ptserver run`: execute a program, by itself, under a server, or traced."""

import click

from ptserver.commands.common_options import OnLost, keepalive_option
from ptserver.commands.trace_arguments import OptionalValueCommand, trace_arguments
from ptserver.tracelog.options import TraceOptions


@click.command(
    "run",
    cls=OptionalValueCommand,
    context_settings={"allow_interspersed_args": False},
    no_args_is_help=True,
)
@click.option(
    "--server",
    metavar="NAME|MODULE:CLASS|ADDR",
    default="passthrough",
    show_default=True,
    help="Who answers the program's calls: a server that comes with ptserver, a class of your own, or the address "
    "of one that `ptserver serve` runs (HOST:PORT, [HOST]:PORT or unix:PATH).",
)
@click.option(
    "--on",
    metavar="ADDR|listen:ADDR",
    help="Execute the program on another host, where `ptserver remote` waits, with the files, streams, terminal, "
    "network and environment of this machine; with listen: on the first host that connects to ADDR, by `ptserver "
    "remote --server`.",
)
@click.option(
    "--spread",
    metavar="HOST[,HOST...]",
    default="",
    help="Execute the program on this host and others at once, as one process with one memory. HOST is an address "
    "where `ptserver remote` waits, `local` for one more process here, or `agent` for one that is kept as another "
    "machine would keep it, to try that.",
)
@click.option(
    "--place",
    metavar="POLICY",
    default="idle",
    show_default=True,
    help="With --spread: which threads go where. idle: those that compute, to idle hosts; together: the same, but "
    "goroutines that talk much are brought together; stay: only as the program or an operator says; random:SEED: all "
    "of them anywhere, for tests; module:Class: as a class of your own says.",
)
@click.option(
    "--cpu",
    type=click.Choice(["same", "common"]),
    default="same",
    show_default=True,
    help="With --spread: refuse hosts whose processors cannot do all that this one can and Go uses; or have the "
    "program use only what all can do.",
)
@click.option(
    "--adapt",
    metavar="NAMES",
    default="all",
    show_default=True,
    help="With --spread: what to change in Go's runtime, in memory only, so that hosts fetch less from each other: "
    "all, none, or some of sysmon, slices, wakeups, collections, stacks (docs/spread.md).",
)
@click.option(
    "--straight",
    type=click.Choice(("far", "all", "none")),
    default="far",
    show_default=True,
    help="With --spread: between which hosts memory goes straight, by connections of their own: those of which at "
    "least one is on another machine, all, or none, so that all of it passes through here.",
)
@click.option(
    "--fault-log",
    metavar="FILE",
    type=click.Path(dir_okay=False, writable=True),
    help="With --spread: write to FILE what threads wait for, and when they get it, one JSON object a line.",
)
@click.option(
    "--check-memory",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    default=None,
    help="With --spread: check so often, and at the end, that all hosts have the same memory. For tests.",
)
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False),
    help="File that holds the token of the server, or of the host.",
)
@click.option(
    "--keys",
    metavar="DIR",
    envvar="PTSERVER_KEYS",
    help="Speak TLS with the keys in DIR, which `ptserver keys` made; addresses of other machines need it. Default: "
    "what PTSERVER_KEYS says.",
)
@keepalive_option
@click.option(
    "--on-lost",
    type=OnLost(),
    default="panic",
    show_default=True,
    help="When the connection to the server, or the host, is lost: panic lets a program with the stub panic, with "
    "the traces of its goroutines, and kills any other; kill kills all; wait tries to connect anew, for 120 s or so "
    "many SECONDS, and goes on as if nothing had happened; else it is as panic.",
)
@click.option(
    "--local",
    metavar="RULE",
    multiple=True,
    help="With an address: this is of this machine all the same. RULE is a path (a file, or all below a folder), "
    "env:GLOB, connect:PORTS, listen:PORTS or stdio. Repeat it.",
)
@click.option(
    "--remote",
    "remote_rules",
    metavar="RULE",
    multiple=True,
    help="This is the server's, as all is that no rule says is local.",
)
@click.option("--rules", "rules_file", metavar="FILE", help="A TOML file with lists named local and remote.")
@click.option(
    "--explain",
    metavar="PATH|env:NAME|...",
    help="Say which rule decides on that, and who serves it; run nothing. With --json as an object.",
)
@click.option(
    "--sync",
    is_flag=True,
    help="Between machines, make each call when the program makes it: no reading ahead, and nothing is known for a "
    "second; see docs/latency.md.",
)
@click.option(
    "--clock",
    "whose_time",
    type=click.Choice(["host", "server"]),
    default="host",
    show_default=True,
    help="With an address: whose time of day the program is told; a look at the server's costs a round trip.",
)
@click.option("--argv0", metavar="NAME", help="What the program finds in argv[0], instead of PROGRAM.")
@click.option("--stub", is_flag=True, hidden=True, help="The program's own stub calls: report as it would.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "native", "step", "emulate"]),
    default="auto",
    show_default=True,
    help="What executes the program: the processor (native), the processor one instruction at a time (step), or an "
    "emulated one, of the program's own architecture. auto: the processor, or an emulated one if it must be.",
)
@click.option(
    "--seed", type=int, help="Make an emulated run repeatable: clocks, randomness, order of threads."
)
@click.option(
    "--remote-var",
    "remote_variables",
    metavar="NAME",
    multiple=True,
    help="A variable of the program, such as main.counter, that lives at the server: every access to it is served. "
    "May be given several times.",
)
@click.option(
    "--remote-type",
    "remote_types",
    metavar="TYPE",
    multiple=True,
    help="As --remote-var, for all package-level variables of a type of Go, such as main.Gauge.",
)
@click.option(
    "--remote-range",
    "remote_ranges",
    metavar="[NAME=]START-END",
    multiple=True,
    help="As --remote-var, for addresses as the program was linked, in hexadecimal.",
)
@click.option(
    "--remote-trace", metavar="FILE", help="Log the accesses to remote variables, to standard error for -."
)
@trace_arguments
@click.argument("program", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run_command(
    ctx: click.Context,
    server: str,
    on: str | None,
    spread: str,
    place: str,
    cpu: str,
    check_memory: float | None,
    adapt: str,
    fault_log: str | None,
    straight: str,
    token_file: str | None,
    keys: str | None,
    keepalive_seconds: float,
    on_lost: tuple[str, int],
    local: tuple[str, ...],
    remote_rules: tuple[str, ...],
    rules_file: str | None,
    explain: str | None,
    whose_time: str,
    sync: bool,
    argv0: str | None,
    stub: bool,
    engine: str,
    seed: int | None,
    remote_variables: tuple[str, ...],
    remote_types: tuple[str, ...],
    remote_ranges: tuple[str, ...],
    remote_trace: str | None,
    trace: TraceOptions | None,
    program: str | None,
    arguments: tuple[str, ...],
    explain_in_json: bool = False,
) -> None:
    """Execute PROGRAM with ARGUMENTS.

    Without --server it runs natively on this machine, as if started directly. With the name of a server, just the
    calls which that server wants are taken. With an address, the program's files, standard streams, environment,
    and working directory are those of the server; its memory, threads and timers stay here.

    With --on the program is executed by another host, to which it is sent, and everything else is of this machine:
    its files, standard streams, terminal, environment, working directory, network, and place among a shell's jobs.

    With --spread its threads, and so its goroutines, run on several hosts at once; its files, sockets and children
    are here. A --server then hears of its goroutines and says where they run; it answers no calls. See docs/spread.md
    for which programs gain by it.

    With --local some of it stays here: `--local /etc/ssl --local env:AWS_* --local connect:5432`; see docs/rules.md.

    With --trace every call that reaches outside the program is logged; under a server, those that it takes.

    \b
    ptserver run ./main -v
    ptserver run --server fake_hosts ./main
    ptserver run --server mymodule:MyServer ./main
    ptserver run --server db1:11235 --keys ~/keys/client ./main
    ptserver run --on big1:11235 --keys ~/keys/client ./main
    ptserver run --spread big1:11235,big2:11235 --keys ~/keys/client ./main
    ptserver run --trace -e trace=openat,%network ./main
    ptserver run --trace=calls.jsonl --json ./main
    ptserver run --trace -c ./main
    ptserver run ./main-arm64
    ptserver run --engine=emulate --seed 7 ./main
    ptserver run --server db1:11235 --remote-var main.counter ./main
    """
    from ptserver.remote_memory.options import Wanted
    from ptserver.running.run import RunOptions, run

    rules = None
    if local or remote_rules or rules_file is not None or explain is not None:
        from ptserver.rules.rules import chosen_rules

        rules = chosen_rules(rules_file, local, remote_rules)
        if explain is not None:
            click.echo(rules.explain(explain).as_json() if explain_in_json else rules.explain(explain).text)
            return
    if program is None:
        raise click.UsageError("Missing argument 'PROGRAM'.")
    remote = Wanted(remote_variables, remote_ranges, remote_types)
    if seed is not None and engine != "emulate":
        raise click.UsageError("--seed belongs to --engine=emulate")
    if spread and (on is not None or engine == "emulate" or trace is not None):
        raise click.UsageError("--spread goes with none of --on, --engine=emulate and --trace")
    if (check_memory or fault_log) and not spread:
        raise click.UsageError("--check-memory and --fault-log belong to --spread")
    if engine == "step" and (server != "passthrough" or on is not None or spread or trace is not None):
        raise click.UsageError("--engine=step goes with none of --server, --on, --spread and --trace")
    if on is not None and (engine == "emulate" or trace is not None):
        raise click.UsageError("--on goes with neither --engine=emulate nor --trace")
    if on is not None and on.startswith("listen:") and on_lost[1]:
        raise click.UsageError("--on-lost=wait needs a host to connect to, not --on listen:ADDR")
    if remote and (on is not None or engine == "step" or spread):
        raise click.UsageError("remote variables go with neither --on, --spread nor --engine=step")
    if remote and trace is not None and server == "passthrough" and engine != "emulate":
        raise click.UsageError(
            "--trace with remote variables needs a --server; --remote-trace logs the accesses"
        )
    if remote_trace is not None and not remote:
        raise click.UsageError("--remote-trace belongs to --remote-var, --remote-type and --remote-range")
    ctx.exit(
        run(
            RunOptions(
                program,
                arguments,
                server,
                argv0,
                token_file,
                keys,
                stub,
                trace,
                engine == "emulate",
                seed,
                on,
                keepalive_seconds,
                *on_lost,
                tuple(spread.split(",")) if spread else (),
                place,
                check_memory or 0.0,
                cpu == "common",
                adapt,
                fault_log or "",
                straight,
                engine,
                remote,
                remote_trace,
                rules,
                sync,
                whose_time,
            )
        )
    )
