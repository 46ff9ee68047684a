"""Submits, watches and requeues jobs through Submitit, without importing torch."""
