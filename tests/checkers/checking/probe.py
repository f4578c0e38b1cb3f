"""Does the next insert work? Copies one row of every table with a serial key, without its key, and rolls back."""

import json

from checking.catalogue import RELATIONS
from checking.outcome import Reasons
from checking.postgres import PINNED
from checking.psql import Session

# Serial and identity keys; for each unique index a column to change in the copy that no foreign key needs.
TABLES = f"""
SELECT json_build_object('schema', n.nspname, 'name', format('%I.%I', n.nspname, c.relname), 'key', quote_ident(k.attname),
  'columns', (SELECT json_agg(json_build_array(quote_ident(a.attname), format_type(a.atttypid, a.atttypmod)) ORDER BY a.attnum)
    FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attnum <> k.attnum AND a.attgenerated = ''),
  'unique', (SELECT json_agg((SELECT json_agg(quote_ident(a.attname) ORDER BY a.attnum DESC) FROM pg_attribute a
      WHERE a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
      AND NOT EXISTS (SELECT FROM pg_constraint f WHERE f.conrelid = c.oid AND f.contype = 'f' AND a.attnum = ANY (f.conkey))))
    FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND NOT i.indisprimary))
FROM pg_attribute k JOIN pg_class c ON c.oid = k.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_attrdef ad ON ad.adrelid = k.attrelid AND ad.adnum = k.attnum
WHERE c.oid IN (SELECT c.oid FROM {RELATIONS} AND c.relkind = 'r') AND k.attnum > 0
AND (k.attidentity <> '' OR pg_get_expr(ad.adbin, ad.adrelid) LIKE 'nextval(%') ORDER BY 1::text
"""


def probe(prefix: str, ignored_schemas: list[str], reasons: Reasons) -> dict[str, str]:
    """Table → "inserted" or "empty"; a refused insert is a reason."""
    with Session(prefix) as session:
        session.run("".join(f"SET {name} = {value};" for name, value in PINNED.items()))
        tables = [json.loads(line) for line in session.lines(TABLES.strip() + ";")]
        found: dict[str, str] = {}
        for table in tables:
            if table["schema"] not in ignored_schemas:
                found[table["name"]] = _insert(session, table, reasons)
        return found


def _insert(session: Session, table: dict, reasons: Reasons) -> str:
    changed = {columns[0] for columns in table["unique"] or [] if columns}
    names = [name for name, _ in table["columns"]]
    values = [_changed(table["name"], name, kind) if name in changed else name for name, kind in table["columns"]]
    insert = f"INSERT INTO {table['name']} ({', '.join(names)}) SELECT {', '.join(values)} FROM {table['name']} LIMIT 1"
    # The server's refusal is wanted as text, and psql would end at an error: a block catches it.
    block = f"""
BEGIN;
DO $probe$ DECLARE inserted bigint; said text;
BEGIN
  {insert};
  GET DIAGNOSTICS inserted = ROW_COUNT;
  PERFORM set_config('checkers.outcome', CASE inserted WHEN 1 THEN 'inserted' ELSE 'empty' END, true);
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS said = MESSAGE_TEXT;
  PERFORM set_config('checkers.outcome', said, true);
END $probe$;
SELECT to_json(current_setting('checkers.outcome'));
ROLLBACK;"""
    (line,) = session.lines(block)
    outcome = json.loads(line)
    if outcome not in ("inserted", "empty"):
        reasons.add("insert", f"table {table['name']}: the next insert is refused: {outcome}")
        return "refused"
    return outcome


def _changed(table: str, name: str, kind: str) -> str:
    if kind in ("integer", "bigint", "smallint"):
        return f"(SELECT max({name}) + 1 FROM {table})"
    return f"{name} || '-probe'" if kind in ("text", "character varying") else name
