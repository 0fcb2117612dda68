"""Write the JSON Schema of a plan to plans/schema.json; run this after changing the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoseg.common.files import write_json
from autoseg.plan.plan import Plan
from autoseg.plan.sections import FIELDS

PATH = Path(__file__).resolve().parent.parent / "plans" / "schema.json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def plan_schema() -> dict[str, Any]:
    """The JSON Schema of a plan file, for editors and programs in other languages.

    It does not cover checks across keys; `make_plan` does.
    """
    schema = Plan.model_json_schema()
    for name, fields in FIELDS.items():
        properties = (schema if name == "Plan" else schema["$defs"][name])["properties"]
        for key, words in fields.items():
            properties[key] = dict(sorted((properties[key] | words).items()))
    schema["description"] = schema["description"].partition("\n\n>>>")[0]  # without the doctest
    id_schema = {"type": "string", "description": "informative; recomputed when a plan is read"}
    schema["properties"] = {"id": id_schema, **schema["properties"]}
    return {"$schema": DIALECT, **schema}


if __name__ == "__main__":
    write_json(PATH, plan_schema())
    print(PATH)
