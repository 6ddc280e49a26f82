"""Validation of Kubernetes objects by the structural schema of a custom resource definition.

As the API server does it with `kubectl apply --validate=strict`: a field that the schema does not
list is refused, where an operator without it would prune a misspelt one without a word. Not
evaluated are rules in CEL (`x-kubernetes-validations`).
"""

from collections.abc import Iterator
from typing import Any

import jsonschema
from jsonschema import validators

Schema = dict[str, Any]

INTEGERS = {"int32": 2**31, "int64": 2**63}


def object_schema(definition: dict[str, Any], version: str) -> Schema:
    """The schema of the objects of a version of a custom resource definition.

    Raises:
        KeyError: the definition has no such version that is served.
    """
    versions = {item["name"]: item for item in definition["spec"]["versions"] if item["served"]}
    schema: Schema = versions[version]["schema"]["openAPIV3Schema"]
    names = definition["spec"]["names"]
    properties = {
        **schema["properties"],
        "apiVersion": {"enum": [f"{definition['spec']['group']}/{version}"]},
        "kind": {"enum": [names["kind"]]},
        # The schema leaves it to the API server.
        "metadata": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "namespace": {"type": "string"},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
            },
            "required": ["name"],
        },
    }
    return {
        **schema,
        "properties": properties,
        "required": ["apiVersion", "kind", "metadata", "spec"],
    }


def validate(value: object, schema: Schema) -> None:
    """Check an object.

    Raises:
        jsonschema.ValidationError: it does not fit.
    """
    error = jsonschema.exceptions.best_match(STRICT(schema).iter_errors(value))
    if error is not None:
        raise error


def _type(validator: Any, expected: str, value: object, schema: Schema) -> Iterator[Any]:
    if value is None and schema.get("nullable"):
        return
    yield from jsonschema.Draft7Validator.VALIDATORS["type"](validator, expected, value, schema)
    if not isinstance(value, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    if "additionalProperties" not in schema:
        for name in value.keys() - schema.get("properties", {}).keys():
            yield jsonschema.ValidationError(f"unknown field {name!r}")


def _format(validator: Any, name: str, value: object, schema: Schema) -> Iterator[Any]:
    limit = INTEGERS.get(name)
    if limit and isinstance(value, int) and not -limit <= value < limit:
        yield jsonschema.ValidationError(f"{value} is no {name}")


def _int_or_string(validator: Any, on: bool, value: object, schema: Schema) -> Iterator[Any]:
    if on and (isinstance(value, bool) or not isinstance(value, int | str)):
        yield jsonschema.ValidationError(f"{value!r} is neither an integer nor text")


def _list_map_keys(validator: Any, keys: list[str], value: object, schema: Schema) -> Iterator[Any]:
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        found = [tuple(item.get(key) for key in keys) for item in value]
        if len(set(found)) < len(found):
            yield jsonschema.ValidationError(f"two items with the same {', '.join(keys)}")


def _list_type(validator: Any, name: str, value: object, schema: Schema) -> Iterator[Any]:
    if name == "set" and isinstance(value, list) and len(set(map(str, value))) < len(value):
        yield jsonschema.ValidationError("an item stands twice in a set")


STRICT = validators.extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft7Validator,
    {
        "type": _type,
        "format": _format,
        "x-kubernetes-int-or-string": _int_or_string,
        "x-kubernetes-list-map-keys": _list_map_keys,
        "x-kubernetes-list-type": _list_type,
    },
)
"""JSON Schema with Kubernetes' extensions."""
