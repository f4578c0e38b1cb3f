"""Fills a Memoria database with seeded data: the same seed and size give the same bytes."""
