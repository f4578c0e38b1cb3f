//! memoria-operator: upgrades Memoria deployments and, when an upgrade fails, takes image and data back.
//!
//! The map of the house: [`api`] is what users write and read, [`upgrade`] decides (and nothing else decides), the
//! controller observes, acts (by [`cluster`]) and records, and [`job`] is what runs inside the attempt's Jobs.

pub mod api;
pub mod cluster;
pub mod commands;
pub mod config;
pub mod controller;
pub mod job;
pub mod rescue;
pub mod snapshot;
pub mod telemetry;
pub mod upgrade;
