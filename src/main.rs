//! The binary's subcommands.

fn main() {}
