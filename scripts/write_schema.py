"""Write the JSON Schema of a plan to plans/schema.json; run this after changing the plan."""

from __future__ import annotations

from pathlib import Path

from autoseg.common.files import write_json
from autoseg.plan.plan import plan_schema

PATH = Path(__file__).resolve().parent.parent / "plans" / "schema.json"

if __name__ == "__main__":
    write_json(PATH, plan_schema())
    print(PATH)
