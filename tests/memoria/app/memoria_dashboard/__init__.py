"""The dashboard: shows what the server says over HTTP, and keeps nothing."""
