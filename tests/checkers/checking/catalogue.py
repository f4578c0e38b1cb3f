"""The queries that read what a PostgreSQL database is made of. Each gives one JSON value a line.

Out of scope: system schemas, and members of extensions (the extension itself is an object). Grants are expanded, so that a
default that was never written down equals the same grants written down.
"""

SCHEMAS = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"


def _not_of_extension(catalogue: str, oid: str) -> str:
    return (
        f"NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = '{catalogue}'::regclass AND d.objid = {oid} AND d.deptype = 'e')"
    )


def _acl(acl: str, kind: str, owner: str) -> str:
    return f"""(SELECT coalesce(json_agg(entry ORDER BY entry COLLATE "C"), '[]') FROM (
      SELECT CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(g.grantee) END || ' ' || g.privilege_type
        || CASE WHEN g.is_grantable THEN ' with grant option' ELSE '' END || ' by ' || pg_get_userbyid(g.grantor) AS entry
      FROM aclexplode(coalesce({acl}, acldefault('{kind}', {owner}))) g) entries)"""


def _entry(kind: str, name: str, /, **definition: str) -> str:
    pairs = ", ".join(f"'{key}', {value}" for key, value in definition.items())
    return f"SELECT json_build_object('kind', {kind}, 'name', {name}, 'definition', json_build_object({pairs}))"


RELATION = "format('%I.%I', n.nspname, c.relname)"
RELATIONS = f"pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {SCHEMAS} AND {_not_of_extension('pg_class', 'c.oid')}"

IDENTITY = """
SELECT json_build_object('serverVersion', current_setting('server_version'), 'database', current_database(),
  'systemIdentifier', (SELECT system_identifier::text FROM pg_control_system()))
"""

RELATION_OBJECTS = (
    _entry(
        "CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'S' THEN 'sequence' "
        "WHEN 'f' THEN 'foreign table' WHEN 'c' THEN 'composite type' ELSE 'table' END",
        RELATION,
        owner="pg_get_userbyid(c.relowner)",
        grants=f"CASE c.relkind WHEN 'S' THEN {_acl('c.relacl', 's', 'c.relowner')} "
        f"WHEN 'c' THEN '[]' ELSE {_acl('c.relacl', 'r', 'c.relowner')} END",
        persistence="c.relpersistence",
        partitioned="c.relkind = 'p'",
        bound="pg_get_expr(c.relpartbound, c.oid)",
        parents="(SELECT json_agg(i.inhparent::regclass::text ORDER BY i.inhseqno) FROM pg_inherits i WHERE i.inhrelid = c.oid)",
        rowSecurity="c.relrowsecurity::text || c.relforcerowsecurity::text",
        replicaIdentity="c.relreplident",
        options="to_json(c.reloptions)",
        query="CASE WHEN c.relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END",
        comment="obj_description(c.oid, 'pg_class')",
    )
    + f" FROM {RELATIONS} AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c') ORDER BY n.nspname, c.relname",
    _entry(
        "'column'",
        f"{RELATION} || '.' || quote_ident(a.attname)",
        type="format_type(a.atttypid, a.atttypmod)",
        notNull="a.attnotnull",
        default="pg_get_expr(ad.adbin, ad.adrelid)",
        identity="a.attidentity",
        generated="a.attgenerated",
        collation="CASE WHEN a.attcollation <> t.typcollation THEN a.attcollation::regcollation::text END",
        storage="a.attstorage",
        # PostgreSQL 15.20 and its siblings stamp each column with pg_attver, a counter of their own: no property of it.
        options="(SELECT to_json(array_agg(o)) FROM unnest(a.attoptions) AS o WHERE o NOT LIKE 'pg_attver=%')",
        grants=_acl("a.attacl", "c", "c.relowner"),
        comment="col_description(c.oid, a.attnum)",
        position="(SELECT count(*) FROM pg_attribute b WHERE b.attrelid = c.oid AND b.attnum BETWEEN 1 AND a.attnum AND NOT b.attisdropped)",
    )
    + " FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_attrdef ad ON ad.adrelid = a.attrelid AND ad.adnum = a.attnum "
    f"JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {SCHEMAS} "
    f"AND {_not_of_extension('pg_class', 'c.oid')} AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c') AND a.attnum > 0 AND NOT a.attisdropped "
    "ORDER BY n.nspname, c.relname, a.attnum",
    _entry(
        "'constraint'",
        f"{RELATION} || '.' || quote_ident(o.conname)",
        definition="pg_get_constraintdef(o.oid)",
        validated="o.convalidated",
        comment="obj_description(o.oid, 'pg_constraint')",
    )
    + " FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
    f"WHERE {SCHEMAS} AND {_not_of_extension('pg_class', 'c.oid')} AND o.contype <> 't' ORDER BY n.nspname, c.relname, o.conname",
    _entry(
        "'index'",
        RELATION,
        definition="pg_get_indexdef(c.oid)",
        valid="i.indisvalid",
        clustered="i.indisclustered",
        comment="obj_description(c.oid, 'pg_class')",
    )
    + " FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
    f"WHERE {SCHEMAS} AND {_not_of_extension('pg_class', 'i.indrelid')} ORDER BY n.nspname, c.relname",
    _entry("'trigger'", f"{RELATION} || '.' || quote_ident(g.tgname)", definition="pg_get_triggerdef(g.oid)", enabled="g.tgenabled")
    + " FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
    f"WHERE {SCHEMAS} AND NOT g.tgisinternal ORDER BY n.nspname, c.relname, g.tgname",
    _entry("'rule'", f"{RELATION} || '.' || quote_ident(r.rulename)", definition="pg_get_ruledef(r.oid)", enabled="r.ev_enabled")
    + " FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace "
    f"WHERE {SCHEMAS} AND {_not_of_extension('pg_class', 'c.oid')} AND r.rulename <> '_RETURN' ORDER BY n.nspname, c.relname, r.rulename",
    _entry(
        "'policy'",
        f"{RELATION} || '.' || quote_ident(p.polname)",
        command="p.polcmd",
        permissive="p.polpermissive",
        roles="(SELECT json_agg(CASE role WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(role) END ORDER BY 1) FROM unnest(p.polroles) role)",
        using="pg_get_expr(p.polqual, p.polrelid)",
        check="pg_get_expr(p.polwithcheck, p.polrelid)",
    )
    + " FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
    f"WHERE {SCHEMAS} ORDER BY n.nspname, c.relname, p.polname",
    _entry("'statistics'", "format('%I.%I', n.nspname, s.stxname)", definition="pg_get_statisticsobjdef(s.oid)")
    + f" FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace WHERE {SCHEMAS} ORDER BY n.nspname, s.stxname",
)

OTHER_OBJECTS = (
    _entry("'schema'", "quote_ident(n.nspname)", owner="pg_get_userbyid(n.nspowner)", grants=_acl("n.nspacl", "n", "n.nspowner"))
    + f" FROM pg_namespace n WHERE {SCHEMAS} AND {_not_of_extension('pg_namespace', 'n.oid')} ORDER BY n.nspname",
    _entry(
        "'type'",
        "format('%I.%I', n.nspname, t.typname)",
        kind="t.typtype",
        owner="pg_get_userbyid(t.typowner)",
        grants=_acl("t.typacl", "T", "t.typowner"),
        labels="(SELECT json_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid)",
        base="CASE t.typtype WHEN 'd' THEN format_type(t.typbasetype, t.typtypmod) END",
        notNull="t.typnotnull",
        default="t.typdefault",
        checks="(SELECT json_agg(pg_get_constraintdef(o.oid) ORDER BY o.conname) FROM pg_constraint o WHERE o.contypid = t.oid)",
    )
    + f" FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE {SCHEMAS} AND t.typtype IN ('e', 'd', 'r') "
    f"AND {_not_of_extension('pg_type', 't.oid')} ORDER BY n.nspname, t.typname",
    _entry(
        "'function'",
        "format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid))",
        owner="pg_get_userbyid(p.proowner)",
        grants=_acl("p.proacl", "f", "p.proowner"),
        definition="CASE WHEN p.prokind <> 'a' THEN pg_get_functiondef(p.oid) END",
    )
    + f" FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {SCHEMAS} AND {_not_of_extension('pg_proc', 'p.oid')} "
    "ORDER BY n.nspname, p.proname, p.oid",
    _entry("'extension'", "quote_ident(x.extname)", version="x.extversion", schema="x.extnamespace::regnamespace::text")
    + " FROM pg_extension x ORDER BY x.extname",
    _entry(
        "'default grants'",
        "pg_get_userbyid(d.defaclrole) || ' ' || coalesce(quote_ident(n.nspname), '') || ' ' || d.defaclobjtype::text",
        grants=_acl("d.defaclacl", "r", "d.defaclrole"),
    )
    + " FROM pg_default_acl d LEFT JOIN pg_namespace n ON n.oid = d.defaclnamespace ORDER BY d.oid",
    _entry("'publication'", "quote_ident(p.pubname)", owner="pg_get_userbyid(p.pubowner)", all="p.puballtables")
    + " FROM pg_publication p ORDER BY p.pubname",
    # Without its name: a restored copy under another name is still the same.
    _entry(
        "'database'",
        "'itself'",
        owner="pg_get_userbyid(d.datdba)",
        grants=_acl("d.datacl", "d", "d.datdba"),
        encoding="pg_encoding_to_char(d.encoding)",
        collation="d.datcollate || ' ' || d.datctype",
        connectionLimit="d.datconnlimit",
        allowsConnections="d.datallowconn",
        settings="(SELECT json_agg(json_build_array(CASE s.setrole WHEN 0 THEN 'all' ELSE pg_get_userbyid(s.setrole) END, s.setconfig) "
        "ORDER BY s.setrole) FROM pg_db_role_setting s WHERE s.setdatabase = d.oid)",
    )
    + " FROM pg_database d WHERE d.datname = current_database()",
    _entry(
        "'role'",
        "quote_ident(r.rolname)",
        attributes="concat_ws(' ', CASE WHEN r.rolsuper THEN 'superuser' END, CASE WHEN r.rolinherit THEN 'inherit' END, "
        "CASE WHEN r.rolcreaterole THEN 'createrole' END, CASE WHEN r.rolcreatedb THEN 'createdb' END, "
        "CASE WHEN r.rolcanlogin THEN 'login' END, CASE WHEN r.rolreplication THEN 'replication' END, "
        "CASE WHEN r.rolbypassrls THEN 'bypassrls' END)",
        connectionLimit="r.rolconnlimit",
        validUntil="r.rolvaliduntil",
        settings="to_json(r.rolconfig)",
        memberOf="(SELECT json_agg(pg_get_userbyid(m.roleid) ORDER BY 1) FROM (SELECT DISTINCT roleid FROM pg_auth_members WHERE member = r.oid) m)",
    )
    + " FROM pg_roles r WHERE r.rolname !~ '^pg_' ORDER BY r.rolname",
)

OBJECTS = RELATION_OBJECTS + OTHER_OBJECTS

SEQUENCES = f"SELECT to_json({RELATION}) FROM {RELATIONS} AND c.relkind = 'S' ORDER BY n.nspname, c.relname"
SEQUENCE = """
SELECT json_build_object('next', CASE WHEN s.is_called THEN s.last_value + p.seqincrement ELSE s.last_value END,
  'increment', p.seqincrement, 'start', p.seqstart, 'min', p.seqmin, 'max', p.seqmax, 'cycle', p.seqcycle, 'cache', p.seqcache,
  'type', format_type(p.seqtypid, NULL),
  'ownedBy', (SELECT format('%s.%I', d.refobjid::regclass, a.attname) FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid
     AND a.attnum = d.refobjsubid WHERE d.classid = 'pg_class'::regclass AND d.objid = p.seqrelid AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0))
FROM {name} s, pg_sequence p WHERE p.seqrelid = '{name}'::regclass
"""

TABLES = f"""
SELECT json_build_object('name', {RELATION}, 'table', c.relname,
  'columns', (SELECT json_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
  'quoted', (SELECT json_agg(quote_ident(a.attname) ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
  'key', (SELECT coalesce(json_agg(a.attname ORDER BY k.place), '[]') FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k(attnum, place), pg_attribute a
    WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid AND a.attnum = k.attnum))
FROM {RELATIONS} AND c.relkind IN ('r', 'm') ORDER BY n.nspname, c.relname
"""

LARGE_OBJECTS = "COPY (SELECT oid, encode(sha256(lo_get(oid)), 'hex') FROM pg_largeobject_metadata ORDER BY oid) TO STDOUT;"
