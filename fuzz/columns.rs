//! Columns of every kind that is read and written in a way of its own.

#![allow(dead_code, reason = "no target needs all of them")]

use memoria_operator::snapshot::{portable, schema, sqlite};

pub fn postgres() -> Vec<portable::postgres::Field> {
    fields(&["boolean", "bigint", "double precision", "json", "timestamp with time zone", "text"])
}

/// Those that hold any text.
pub fn postgres_text() -> Vec<portable::postgres::Field> {
    fields(&["text", "numeric", "text[]"])
}

/// Those that hold any JSON.
pub fn postgres_json() -> Vec<portable::postgres::Field> {
    fields(&["json", "jsonb"])
}

fn fields(types: &[&str]) -> Vec<portable::postgres::Field> {
    let column = |data_type: &&str, nullable| {
        let column = schema::Column { data_type: (*data_type).to_owned(), nullable, ..Default::default() };
        (format!("{data_type} {nullable}"), column)
    };
    let columns = types.iter().flat_map(|data_type| [column(data_type, true), column(data_type, false)]).collect();
    portable::postgres::Field::all(&schema::Relation { columns, ..Default::default() })
}

/// A column that cannot be NULL holds none, so every one of these can.
pub fn sqlite() -> Vec<portable::sqlite::Field> {
    let column = |data_type: &&str| {
        let column =
            sqlite::schema::Column { data_type: (*data_type).to_owned(), nullable: true, ..Default::default() };
        ((*data_type).to_owned(), column)
    };
    let columns = ["boolean", "json", "datetime", "varchar", ""].iter().map(column).collect();
    portable::sqlite::Field::all(&sqlite::schema::Table { columns, ..Default::default() })
}
