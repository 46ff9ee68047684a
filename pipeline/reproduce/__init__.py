"""The rows of the papers' tables: who claims what, what making them takes, and what came out."""
