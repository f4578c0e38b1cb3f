"""Helpers of the conformance suite. They know Memoria only from outside: processes, HTTP, SQL."""
