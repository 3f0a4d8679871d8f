"""Why the kernel may have refused to let this process trace a thread.

Source: ptrace(2), "Ptrace access mode checking" and "/proc/sys/kernel/yama/ptrace_scope".
"""

import os


def explain_refusal(tid: int) -> str:
    """Say in one line why the kernel may have refused to let this process trace *tid*, and what to do."""
    fields = _status_fields(tid)
    tracer = int(fields.get("TracerPid", "0"))
    if tracer:
        return f"it is already traced by process {tracer} ({_command(tracer)}); detach that first"
    if fields.get("State", "").startswith(("Z", "X")):
        return "it has already exited"
    if int(fields.get("Tgid", "0")) == os.getpid():
        return "it is this process itself"
    if fields.get("Kthread") == "1" or not fields.get("VmSize"):
        return "it is a kernel thread"
    if _has_cap_sys_ptrace():
        return "the kernel or a security module forbids it, although this process has CAP_SYS_PTRACE"
    owner = fields.get("Uid", "").split()
    if owner and any(uid != str(os.geteuid()) for uid in owner[:3]):
        return f"it belongs to user {owner[0]}; CAP_SYS_PTRACE is needed (run ptserver as root or that user)"
    scope = _yama_scope()
    if scope == 1:
        return (
            "yama lets processes trace their own children only (ptrace_scope is 1); "
            "run as root, or: sysctl kernel.yama.ptrace_scope=0"
        )
    if scope == 2:
        return "yama demands CAP_SYS_PTRACE (ptrace_scope is 2); run ptserver as root"
    if scope == 3:
        return "yama forbids all tracing until the next boot (ptrace_scope is 3)"
    return "it is not dumpable or a sandbox forbids ptrace; CAP_SYS_PTRACE is needed (run ptserver as root)"


def _status_fields(tid: int) -> dict[str, str]:
    try:
        with open(f"/proc/{tid}/status", encoding="utf-8", errors="replace") as file:
            lines = [line.partition(":") for line in file]
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in lines}


def _command(pid: int) -> str:
    return _status_fields(pid).get("Name", "unknown")


def _has_cap_sys_ptrace() -> bool:
    return bool(int(_status_fields(os.getpid()).get("CapEff", "0"), 16) >> 19 & 1)


def _yama_scope() -> int:
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope", encoding="ascii") as file:
            return int(file.read())
    except OSError:
        return 0
