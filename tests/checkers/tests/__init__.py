"""The checkers' own tests: they must say "no" to every seeded corruption, and find every planted canary."""
