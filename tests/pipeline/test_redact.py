"""Secrets of URIs are redacted in any text."""

from __future__ import annotations

import pytest

from pipeline.redact import redact

SECRET = "s3cr:t/#?p@ss"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"https://me:{SECRET}@host:5000/x", "https://***@host:5000/x"),
        (
            "postgresql://me:pw@db/mlflow?sslmode=require",
            "postgresql://***@db/mlflow?sslmode=require",
        ),
        ("https://ghp_token@host/x", "https://***@host/x"),
        ("https://host/x?token=abc&page=2", "https://host/x?token=***&page=2"),
        ("https://host/x?page=2&Access_Token=abc", "https://host/x?page=2&Access_Token=***"),
        ("https://host/x?api-key=abc#top", "https://host/x?api-key=***#top"),
        ("s3://bucket/x?X-Amz-Signature=abc", "s3://bucket/x?X-Amz-Signature=***"),
        ("('https://a:b@c/d', 'http://e:f@g')", "('https://***@c/d', 'http://***@g')"),
        ("retry https://a:b@c/d in 2 s", "retry https://***@c/d in 2 s"),
    ],
)
def test_what_is_secret_is_hidden(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/me@lab/runs/mlflow.db",
        "https://host:5000/x?page=2&sort=name",
        "databricks",
        "mail me@host or call 1:2@3",
        "file:///runs/a:b",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert redact(text) == text
