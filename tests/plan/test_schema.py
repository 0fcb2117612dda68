from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from autoseg.common.files import to_json
from autoseg.plan.reading import plan_schema
from tests.plan.test_plan import full_plan

FILE = Path(__file__).parents[2] / "plans" / "schema.json"


def test_the_file_is_current() -> None:
    assert FILE.read_text(encoding="utf-8") == to_json(plan_schema()), (
        "the plan has changed: run scripts/write_schema.py"
    )


def test_it_is_the_same_every_time() -> None:
    assert to_json(plan_schema()) == to_json(plan_schema())


def test_it_tells_what_a_plan_is_and_nothing_of_python() -> None:
    schema = plan_schema()
    assert schema["description"].startswith("Everything that changes a result")
    assert ">>>" not in to_json(schema)


def check(value: Any, schema: dict[str, Any], definitions: dict[str, Any]) -> None:
    """A small part of JSON Schema: objects, their keys, lists, alternatives, and constants."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "discriminator" in schema:
        field = schema["discriminator"]["propertyName"]
        schema = definitions[schema["discriminator"]["mapping"][value[field]].rpartition("/")[2]]
    if isinstance(value, dict) and "properties" in schema:
        assert schema["additionalProperties"] is False
        assert set(schema.get("required", ())) <= value.keys() <= schema["properties"].keys()
        for key, entry in value.items():
            check(entry, schema["properties"][key], definitions)
    if isinstance(value, list) and "items" in schema:
        for entry in value:
            check(entry, schema["items"], definitions)
    if "enum" in schema:
        assert value in schema["enum"]
    if "pattern" in schema:
        assert re.search(schema["pattern"], value)


def test_a_saved_plan_fits_it(tmp_path: Path) -> None:
    full_plan().save(tmp_path / "plan.json")
    schema = json.loads(FILE.read_text(encoding="utf-8"))
    saved = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    check(saved, schema, schema["$defs"])
    assert saved.keys() == schema["properties"].keys()
