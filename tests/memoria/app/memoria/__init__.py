"""A stand-in for Memoria that keeps its contract, habits good and bad, so that upgrades can be tested on something real."""
