#!/usr/bin/env python3
"""Does a secret stand anywhere where it must not? Prints the places, never the secret."""

import argparse
import json
from pathlib import Path

from checking import files, outcome, processes, secrets
from checking.objects import Cluster


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--secrets-file", type=Path, metavar="F", help="JSON object of name → secret, or one secret a line")
    parser.add_argument("--secrets-of", action="append", default=[], metavar="NAMESPACE", help="also every value of its Secrets")
    parser.add_argument("--kubectl", default="kubectl", metavar="COMMAND")
    parser.add_argument("--namespace", action="append", default=[], metavar="NS")
    parser.add_argument("--extra-dir", action="append", default=[], type=Path, metavar="DIR")
    parser.add_argument("--argv", action="store_true", help="the command lines of all processes of this machine")
    parser.add_argument("--environ-of", metavar="REGEX", help="the environment of processes whose command line matches")
    parser.add_argument("--only-cgroup", metavar="REGEX", help="only processes whose /proc/PID/cgroup matches")
    parser.add_argument("--watched", action="append", default=[], type=Path, metavar="FILE", help="what --watch-argv wrote")
    parser.add_argument("--watch-argv", type=float, metavar="SECONDS", help="watch command lines instead, until TERM at the latest")
    parser.add_argument("--watch-logs", action="append", default=[], type=Path, metavar="DIR", help="and log files below DIR")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where --watch-argv writes")
    arguments = parser.parse_args()
    known = secrets.read_file(arguments.secrets_file) if arguments.secrets_file else {}
    cluster = Cluster(arguments.kubectl)
    for namespace in arguments.secrets_of:
        known |= cluster.secrets(namespace)
    if not known:
        parser.error("no secrets: give --secrets-file or --secrets-of")
    findings = secrets.Findings(secrets.Finder(known))
    if arguments.watch_argv is not None:
        if arguments.out is None:
            parser.error("--watch-argv needs --out")
        processes.Watch(findings, arguments.out, arguments.only_cgroup, arguments.watch_logs).run(arguments.watch_argv)
        return _code(findings)
    if not (arguments.namespace or arguments.extra_dir or arguments.argv or arguments.environ_of or arguments.watched):
        parser.error("nothing to search: give --namespace, --extra-dir, --argv, --environ-of or --watched")
    if arguments.namespace:
        cluster.search(arguments.namespace, findings)
    for directory in arguments.extra_dir:
        files.search(directory, findings)
    if arguments.argv or arguments.environ_of:
        processes.search(findings, argv=arguments.argv, environ_of=arguments.environ_of, only_cgroup=arguments.only_cgroup)
    for path in arguments.watched:
        _watched(path, findings)
    outcome.answer({**findings.result(), "secrets": len(known)})
    return _code(findings)


def _watched(path: Path, findings: secrets.Findings) -> None:
    try:
        watched = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise outcome.CannotAsk(f"{path} is not what --watch-argv writes: {error}") from error
    findings.places += watched["places"]
    findings.searched["commandLines"] = findings.searched.get("commandLines", 0) + watched["searched"].get("commandLines", 0)
    if not watched["finished"]:
        findings.unsearched.append(f"{path}: the watch has not ended; send it TERM and wait")


def _code(findings: secrets.Findings) -> int:
    if findings.places:
        return outcome.NO
    return outcome.INCOMPLETE if findings.unsearched else outcome.YES


if __name__ == "__main__":
    outcome.finish(main)
