"""The command line, `python -m memoria.cli`. It reads no environment variable: the database is what --database-url says."""

import argparse
import logging
import sys
from pathlib import Path

from memoria import database, version

DATABASE_URL_HELP = f"SQLAlchemy URL of the database (default: {database.DEFAULT_URL})"


def parser() -> argparse.ArgumentParser:
    current = version.current()
    root = argparse.ArgumentParser(prog="memoria", description=f"Memoria {current.version}")
    commands = root.add_subparsers(dest="command", required=True)

    migrate = commands.add_parser("migrate", help="list or run migrations")
    migrations = migrate.add_subparsers(dest="migrate_command", required=True)
    listing = migrations.add_parser("list", help="list the bundled migrations")
    listing.add_argument("--include-archived", action="store_true", help="list archived migrations too")
    if current.accepts_list_url:
        listing.add_argument("--database-url", help="accepted, and not needed: the list is bundled")
    listing.set_defaults(run=migrate_list)
    run = migrations.add_parser("run", help="run a migration")
    run.add_argument("name", metavar="NAME", nargs="?" if current.accepts_all else None)
    if current.accepts_all:
        run.add_argument("--all", action="store_true", help="run every migration in order")
    _database_url(run)
    run.add_argument("--include-archived", action="store_true", help="let NAME be an archived migration")
    run.add_argument("--dry-run", action="store_true", help="say what would run, run nothing")
    run.set_defaults(run=migrate_run, parser=run)

    init_db = commands.add_parser("init-db", help="create the schema")
    _database_url(init_db)
    init_db.set_defaults(run=run_init_db)

    export = commands.add_parser("export-data", help="write the data set to a file")
    export.add_argument("destination", metavar="DEST", help="a file, or - for standard output")
    _database_url(export)
    export.add_argument("--format", choices=("json", "ndjson"), default="json")
    export.add_argument("--table", action="append", dest="tables", metavar="T", help="only this table (repeatable)")
    export.set_defaults(run=export_data)

    load = commands.add_parser("import-data", help="read the data set from a file")
    load.add_argument("source", metavar="SRC", help="a file, or - for standard input")
    _database_url(load)
    load.add_argument("--format", choices=("json", "ndjson"), default=None)
    load.add_argument("--table", action="append", dest="tables", metavar="T", help="only this table (repeatable)")
    load.add_argument("--no-truncate", action="store_true", help="keep the rows that are there")
    load.set_defaults(run=import_data)

    bootstrap = commands.add_parser("bootstrap", help="write memoria.json and .env")
    bootstrap.add_argument("--config", type=Path, default=Path("memoria.json"), metavar="F")
    bootstrap.add_argument("--env-file", type=Path, default=Path(".env"), metavar="F")
    bootstrap.add_argument("--force", action="store_true", help="overwrite what is there")
    bootstrap.add_argument("--non-interactive", action="store_true", help="ask nothing, take defaults")
    bootstrap.add_argument("--config-json", type=Path, metavar="F", help="take the answers from a JSON file")
    bootstrap.set_defaults(run=run_bootstrap)

    server = commands.add_parser("runserver", help="run the development server")
    server.add_argument("--host", default="127.0.0.1")
    server.add_argument("--port", type=int, default=8080)
    server.add_argument("--reload", action="store_true")
    server.set_defaults(run=runserver)
    return root


def _database_url(command: argparse.ArgumentParser) -> None:
    command.add_argument("--database-url", default=database.DEFAULT_URL, metavar="U", help=DATABASE_URL_HELP)


def migrate_list(arguments: argparse.Namespace) -> int:
    from memoria import migrations

    for entry in migrations.available(include_archived=arguments.include_archived):
        print(f"{entry.name:<34}  {entry.description}{' (archived)' if entry.archived else ''}")
    return 0


def migrate_run(arguments: argparse.Namespace) -> int:
    from memoria import migrations

    everything = getattr(arguments, "all", False)
    if everything == bool(arguments.name):
        arguments.parser.error("give either NAME or --all")
    if everything:
        chosen = migrations.available()
    else:
        chosen = [migrations.find(arguments.name, include_archived=arguments.include_archived)]
    engine = database.connect(arguments.database_url)
    for entry in chosen:
        if arguments.dry_run:
            print(f"Would execute migration '{entry.name}' against {arguments.database_url}.")
            continue
        try:
            entry.apply(engine)
        # SystemExit(0) too: whatever leaves a migration by the side door counts as a failure.
        except (Exception, SystemExit) as error:
            print(f"Migration '{entry.name}' failed: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
        print(f"Executed migration '{entry.name}' against {arguments.database_url}.")
    return 0


def run_init_db(arguments: argparse.Namespace) -> int:
    from memoria import schema

    probe = version.current().faults.init_db == "transactional-probe"
    schema.initialise(database.connect(arguments.database_url), transactional_probe=probe)
    print("Database schema initialised.")
    return 0


def export_data(arguments: argparse.Namespace) -> int:
    from memoria.transfer import export

    engine = database.connect(arguments.database_url)
    document = export.collect(engine, tables=arguments.tables, format=arguments.format)
    text = export.render(document)
    rows, tables = export.totals(document)
    done = f"Exported {rows} rows across {tables} tables to {arguments.destination}"
    if arguments.destination == "-":
        sys.stdout.write(text)
        print(done, file=sys.stderr)
        return 0
    destination = Path(arguments.destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    destination.write_text(text, encoding="utf-8")
    print(done)
    return 0


def import_data(arguments: argparse.Namespace) -> int:
    from memoria.transfer import load

    text = sys.stdin.read() if arguments.source == "-" else Path(arguments.source).read_text(encoding="utf-8")
    data = load.parse(text, arguments.format)
    engine = database.connect(arguments.database_url)
    truncate = not arguments.no_truncate
    count = load.write(engine, data, tables=arguments.tables, truncate=truncate)
    print(f"Imported dataset for {count} tables (truncate={'yes' if truncate else 'no'})")
    return 0


def run_bootstrap(arguments: argparse.Namespace) -> int:
    from memoria import bootstrap

    return bootstrap.run(
        config=arguments.config,
        env_file=arguments.env_file,
        force=arguments.force,
        ask=not arguments.non_interactive,
        answers_file=arguments.config_json,
    )


def runserver(arguments: argparse.Namespace) -> int:
    from memoria.server import app

    app.run(host=arguments.host, port=arguments.port, use_reloader=arguments.reload)
    return 0


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        arguments = parser().parse_args(argv)
        return arguments.run(arguments)
    except Exception as error:
        # The whole message, statement and rows included, whatever they hold.
        print(f"Error: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
