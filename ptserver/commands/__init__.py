"""The subcommands of the command line, one module each; `cli` imports them when they are called."""
