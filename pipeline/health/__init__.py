"""Supervision of a running rank: preflight, heartbeats, stop requests, hangs and failures."""
