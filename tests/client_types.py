"""The data's types of `static/client.d.ts`: `uv run python -m tests.client_types` writes them.

They come from the OpenAPI document, and stand below what is written by hand.
"""

from typing import Any

import main
from settings import PROJECT

FILE = PROJECT / "static" / "client.d.ts"
MARK = "\n// Below: generated from the OpenAPI document by tests/client_types.py.\n"

NAMES = {
    "TaskRead": "Task",
    "TaskCreate": "NewTask",
    "TaskPatch": "TaskChanges",
    "TagRead": "Tag",
    "TagCreate": "NewTag",
    "TagPatch": "TagChanges",
    "TagInput": "TagInput",
    "TagObject": "TagObject",
    "UserRead": "User",
    "Priority": "Priority",
    "Status": "Status",
    "Sort": "Sort",
    "Updated": "Updated",
    "Deleted": "Deleted",
    "InvalidMember": "InvalidMember",
}

Schema = dict[str, Any]


def type_of(schema: Schema) -> str:
    """Write a schema as a type."""
    if "$ref" in schema:
        return NAMES[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        return " | ".join(type_of(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(f'"{value}"' for value in schema["enum"])
    if schema["type"] == "array":
        item = type_of(schema["items"])
        return f"({item})[]" if " " in item else f"{item}[]"
    name: str = schema["type"]
    return "number" if name == "integer" else name


def comment(schema: Schema, indent: str = "") -> str:
    """Write what a schema is described as."""
    return f"{indent}/** {schema['description']} */\n" if "description" in schema else ""


def interface(name: str, schema: Schema) -> str:
    """Write an object's type."""
    required = schema.get("required", [])
    members = [
        f"{comment(member, '  ')}  {key}{'' if key in required else '?'}: {type_of(member)};\n"
        for key, member in schema["properties"].items()
    ]
    return f"{comment(schema)}export interface {name} {{\n{''.join(members)}}}\n"


def generated(document: Schema) -> str:
    """Write the types of all data."""
    schemas = document["components"]["schemas"]
    query = {
        parameter["name"]: {"description": parameter["description"]} | parameter["schema"]
        for parameter in document["paths"]["/api/tasks"]["get"]["parameters"]
        if parameter["in"] == "query"
    }
    parts = [
        interface("TaskQuery", {"description": "Which tasks, in which order.", "properties": query})
    ]
    for name, ours in NAMES.items():
        schema = schemas[name]
        if "properties" in schema:
            parts.append(interface(ours, schema))
        else:
            parts.append(f"{comment(schema)}export type {ours} = {type_of(schema)};\n")
    return "\n".join(["", *parts])


def whole(text: str) -> str:
    """Return the file with the types that the document has now."""
    return text.partition(MARK)[0] + MARK + generated(main.app.openapi())


if __name__ == "__main__":
    FILE.write_text(whole(FILE.read_text()))
