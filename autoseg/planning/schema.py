"""The JSON Schema of a plan file, for editors and for programs in other languages."""

from __future__ import annotations

from typing import Any

from autoseg.planning.plan import Plan

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def plan_schema() -> dict[str, Any]:
    """The schema of what `Plan.save` writes. It knows no checks across keys: `make_plan` does."""
    schema = Plan.model_json_schema(mode="validation")
    schema["description"] = schema["description"].partition("\n\n>>>")[0]  # no Python in it
    written = {"type": "string", "description": "counted anew on reading: for people only"}
    schema["properties"] = {"id": written, **schema["properties"]}
    return {"$schema": DIALECT, **schema}
