//! The data plane against real private PostgreSQL servers, one for each test: every major that is installed below
//! `/usr/lib/postgresql`, at least one. As root the servers run as the user `postgres`.

mod cluster;
mod digest;
mod schema;
