"""The published schema of snapshots is the one of the classes."""

import json

import jsonschema

from ptserver.attach.snapshot import encoder, schema_text
from tests.gofixtures import ROOT
from tests.unit.attach.test_attach_view import SNAPSHOT

PUBLISHED = ROOT / "docs/attach.schema.json"


def test_the_published_schema_is_the_generated_one() -> None:
    assert PUBLISHED.read_text() == schema_text(), (
        "run python -m ptserver.attach.snapshot > docs/attach.schema.json"
    )


def test_it_describes_what_is_written() -> None:
    jsonschema.validate(json.loads(encoder()(SNAPSHOT)), json.loads(PUBLISHED.read_text()))
