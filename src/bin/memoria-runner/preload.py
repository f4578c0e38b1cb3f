"""Imports a module once, and runs it as `python -m` would each time that memoria-runner asks, in a fork of this process.

Arguments: memoria-runner's socket, the module. The first connection takes requests, a line of JSON each (a number and
the module's arguments), and tells what becomes of them. A fork opens two more, which are its standard output and error.
"""

import importlib
import json
import os
import runpy
import socket
import sys

PLACE, MODULE = sys.argv[1:3]


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


def serve(requests):
    """Returns the arguments in each fork. This process itself never returns."""
    for line in requests:
        number, arguments = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become_group(0)
            requests.close()
            control.close()
            for name, descriptor in (("out", 1), ("err", 2)):
                stream = connect(f"{name} {number}")
                os.dup2(stream.fileno(), descriptor)
                stream.close()
            return arguments
        become_group(pid)
        tell(f"pid {number} {pid}")
        _, status = os.waitpid(pid, 0)
        tell(f"ended {number} {os.waitstatus_to_exitcode(status)}")
    os._exit(0)


def tell(line):
    control.sendall(f"{line}\n".encode())


# As `python -m` has it.
sys.path[0] = os.getcwd()
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
