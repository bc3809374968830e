"""As much of JSON Schema as the schemas beside this file use."""

import re
from typing import Any

TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}


def problems(value: Any, schema: dict[str, Any], path: str = "") -> list[str]:
    wanted = TYPES[schema["type"]]
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        return [f"{path}: found {value!r}, expected {schema['type']}"]
    out = []
    if "enum" in schema and value not in schema["enum"]:
        out.append(f"{path}: found {value!r}, expected one of {schema['enum']}")
    if "pattern" in schema and not re.fullmatch(schema["pattern"], value):
        out.append(f"{path}: found {value!r}, expected {schema['pattern']}")
    if "minimum" in schema and value < schema["minimum"]:
        out.append(f"{path}: found {value}, expected at least {schema['minimum']}")
    if isinstance(value, list):
        out += [p for i, item in enumerate(value) for p in problems(item, schema["items"], f"{path}.{i}")]
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        out += [f"{path}.{name}: missing" for name in schema.get("required", ()) if name not in value]
        for name, item in value.items():
            if name in known:
                out += problems(item, known[name], f"{path}.{name}")
            elif others:
                out += problems(item, others, f"{path}.{name}")
            else:
                out.append(f"{path}.{name}: no such field")
    return out
