"""Imports a module once, and runs it as `python -m` would each time that memoria-runner asks, in a fork of this process.

Arguments: memoria-runner's socket, the module. The first connection takes requests, a line of JSON each (a number and
the module's arguments), and tells what becomes of them. A fork opens two more, which are its standard output and error.

What libraries a command imported later on, the next ones find imported, too. The application's own modules are left to
each command: one that migrates when it is imported must do so once.
"""

import atexit
import importlib
import importlib.metadata
import json
import os
import runpy
import signal
import socket
import sys
import sysconfig

PLACE, MODULE = sys.argv[1:3]
# How long importing a command's libraries may take, in seconds.
LEARNING = 20
# What a command may say of them, in bytes: what a pipe takes without a reader.
LEARNED = 32768


def connect(greeting):
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(PLACE)
    stream.sendall(f"{greeting}\n".encode())
    return stream


def why_unfit():
    """Why a fork of this process would not be like a new process; None where it would."""
    if len(os.listdir("/proc/self/task")) > 1:
        return "importing it starts threads"
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            continue
        if target.startswith("socket:") and int(descriptor) != control.fileno():
            return "importing it opens connections"
    return None


def become_group(pid):
    """Called on both sides of the fork, so that the group is there whoever looks first."""
    try:
        os.setpgid(pid, pid)
    except OSError:
        pass


def installed(name):
    """Whether a module comes with the interpreter or with an installed package."""
    origin = getattr(getattr(sys.modules.get(name), "__spec__", None), "origin", None) or ""
    if origin in ("built-in", "frozen"):
        return True
    places = set(sysconfig.get_paths().values())
    places |= {place for place in sys.path if os.path.basename(place) in ("site-packages", "dist-packages")}
    return origin.startswith(tuple(place + os.sep for place in places if place))


def tell_imports(known, pipe):
    """At the end of a command: what it imported."""
    try:
        # What was printed does not wait for this.
        sys.stdout.flush()
        text = json.dumps([name for name in list(sys.modules) if name not in known and installed(name)]).encode()
        if len(text) <= LEARNED:
            os.write(pipe, text)
    except Exception:
        # The command has done its work, and the next one imports for itself.
        pass


def libraries(names):
    """Those that are not the application's, which may be an installed package too."""
    own = MODULE.partition(".")[0]
    packages = importlib.metadata.packages_distributions()
    distributions = set(packages.get(own, ()))

    def is_library(top):
        return not top.startswith((own, "__main__")) and distributions.isdisjoint(packages.get(top, ()))

    return [name for name in names if is_library(name.partition(".")[0])]


def learn(text):
    """Imports what a command imported; first in a fork, because what is unfit there would be unfit here for good."""
    names = libraries([name for name in json.loads(text or b"[]") if name not in sys.modules and name not in tried])
    if not names:
        return
    tried.update(names)
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(LEARNING)
            import_all(names)
            os._exit(1 if why_unfit() else 0)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status) == 0:
        import_all(names)


def import_all(names):
    for name in names:
        importlib.import_module(name)


def serve(requests):
    """Returns the arguments in each fork. This process itself never returns."""
    for line in requests:
        number, arguments = json.loads(line)
        heard, said = os.pipe()
        pid = os.fork()
        if pid == 0:
            become_group(0)
            requests.close()
            control.close()
            os.close(heard)
            atexit.register(tell_imports, frozenset(sys.modules), said)
            for name, descriptor in (("out", 1), ("err", 2)):
                stream = connect(f"{name} {number}")
                os.dup2(stream.fileno(), descriptor)
                stream.close()
            return arguments
        become_group(pid)
        os.close(said)
        tell(f"pid {number} {pid}")
        _, status = os.waitpid(pid, 0)
        tell(f"ended {number} {os.waitstatus_to_exitcode(status)}")
        # What it left behind may still hold the other end.
        os.set_blocking(heard, False)
        try:
            learn(os.read(heard, LEARNED))
        except Exception:
            # Nothing was heard, or not learned: the next one imports for itself.
            pass
        os.close(heard)
    os._exit(0)


def tell(line):
    control.sendall(f"{line}\n".encode())


# As `python -m` has it.
sys.path[0] = os.getcwd()
tried = set()
control = connect("control")
try:
    importlib.import_module(MODULE)
    unfit = why_unfit()
except BaseException as error:
    unfit = f"importing it raises {type(error).__name__}"
if unfit:
    tell(f"unfit {unfit}")
    os._exit(0)
tell("ready")
arguments = serve(control.makefile("r"))
# It is run under another name, as the main program.
sys.modules.pop(MODULE, None)
sys.argv[1:] = arguments
runpy.run_module(MODULE, run_name="__main__", alter_sys=True)
