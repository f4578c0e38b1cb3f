//! memoria-operator: upgrades Memoria deployments and, when an upgrade fails, takes image and data back.
