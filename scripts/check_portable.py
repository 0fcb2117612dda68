"""Check that a Python file calls nothing that some system lacks, but where it says so.

Usage: python scripts/check_portable.py [FOLDER]

Windows and macOS lack what is listed in `LACKING`; a use is accepted below a test of the system
(`hasattr`, `os.name`, `sys.platform`, an expected ImportError or AttributeError) in the same
function, or after a comment `# portable: why`. Text files need an encoding.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

LACKING = {
    "os": {
        *("fork", "forkpty", "getuid", "geteuid", "getgid", "getegid", "getgroups", "chown"),
        *("lchown", "mkfifo", "mknod", "uname", "getpgid", "killpg", "setsid", "setpgid", "nice"),
        *("sched_getaffinity", "sched_setaffinity", "getloadavg", "statvfs", "sysconf", "wait"),
        *("WIFSIGNALED", "WTERMSIG", "register_at_fork", "pread", "pwrite", "sync", "O_DIRECTORY"),
        *("memfd_create", "posix_fadvise", "sendfile", "getxattr", "setxattr", "ctermid"),
    },
    "signal": {
        *("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGCHLD", "SIGQUIT"),
        *("SIGSTOP", "SIGCONT", "SIGTSTP", "SIGXCPU", "alarm", "setitimer", "pthread_sigmask"),
        *("sigwait", "pthread_kill"),
    },
    "socket": {"AF_UNIX"},
    "time": {"tzset", "clock_gettime"},
}
MODULES = {"fcntl", "grp", "pwd", "resource", "termios", "pty", "tty", "syslog", "posix", "msvcrt"}
PATHS = ("/proc", "/dev/", "/sys/", "/tmp", "/etc/", "/var/", "/usr/")
TESTS = ("hasattr", "ImportError", "AttributeError", "os.name", "sys.platform", "platform.system")
MARK = "# portable:"
OPENERS = {"open", "read_text", "write_text"}


def problems(source: str) -> Iterator[tuple[int, str]]:
    """Line and description of each use that needs a reason."""
    lines = source.splitlines()
    for node, above in _nodes(ast.parse(source), ()):
        found = _problem(node)
        if found is None or any(test in ast.unparse(each) for each in above for test in TESTS):
            continue
        line = getattr(node, "lineno", 1)
        if not any(MARK in text for text in lines[max(0, line - 2) : line]):
            yield line, found


def _nodes(
    node: ast.AST, above: tuple[ast.AST, ...]
) -> Iterator[tuple[ast.AST, tuple[ast.AST, ...]]]:
    """Every node with the functions and conditions around it."""
    yield node, above
    if isinstance(node, ast.FunctionDef | ast.If | ast.IfExp | ast.Try):
        above = (*above, node)
    for child in ast.iter_child_nodes(node):
        yield from _nodes(child, above)


def _problem(node: ast.AST) -> str | None:
    match node:
        case ast.Attribute(value=ast.Name(id=module), attr=name) if name in LACKING.get(module, ()):
            return f"{module}.{name} is missing on some systems"
        case ast.Import(names=names) if any(each.name in MODULES for each in names):
            return f"import of {', '.join(each.name for each in names)}, which some systems lack"
        case ast.ImportFrom(module=str(module)) if module in MODULES:
            return f"import of {module}, which some systems lack"
        case ast.Constant(value=str(text)) if text.startswith(PATHS) and " " not in text:
            return f"path {text!r}, which some systems lack"
        case ast.Call(func=ast.Attribute(attr=name), keywords=keywords) if name in OPENERS:
            return _without_encoding(node, name, {each.arg for each in keywords})
    return None


def _without_encoding(call: ast.Call, name: str, keywords: set[str | None]) -> str | None:
    modes = [a.value for a in call.args if isinstance(a, ast.Constant)]
    if name == "read_text" and call.args:
        return None
    is_text = name != "open" or any(isinstance(m, str) and m in ("r", "w", "a", "x") for m in modes)
    if is_text and "encoding" not in keywords:
        return f"{name} without an encoding, which differs between systems"
    return None


def main() -> int:
    """Print the problems of all files; the exit status is 1 if there are any."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "autoseg")
    found = [
        f"{path}:{line}: {problem}"
        for path in sorted(folder.rglob("*.py"))
        for line, problem in problems(path.read_text(encoding="utf-8"))
    ]
    print("\n".join(found) or "portable")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
