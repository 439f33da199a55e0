"""JSON schemas as they are met in the wild, small."""

from typing import Any

_NAME = {"type": "string", "minLength": 1, "maxLength": 12}


def _object(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


SCHEMAS: dict[str, dict[str, Any]] = {
    "anything": {},
    "null": {"type": "null"},
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "string": {"type": "string"},
    "several types": {"type": ["string", "integer", "null"]},
    "constant": {"const": {"kind": "circle", "radius": [1, 2.5, None]}},
    "enum of strings": {"enum": ["red", "green", "blue", "red-green"]},
    "enum of mixed values": {"enum": [1, "1", None, True, {"a": []}, [0]]},
    "unicode enum": {"enum": ["héllo", "日本語", "😀", 'quo"te', "back\\slash", "line\nend"]},
    "integer range": {"type": "integer", "minimum": -17, "maximum": 1305},
    "exclusive integer range": {"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 21},
    "number range": {"type": "number", "minimum": -0.5, "maximum": 99.95},
    "exclusive number": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "multiple of": {"type": "integer", "minimum": 0, "maximum": 500, "multipleOf": 7},
    "string length": {"type": "string", "minLength": 3, "maxLength": 8},
    "anchored pattern": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
    "loose pattern": {"type": "string", "pattern": "[0-9]{2}", "maxLength": 20},
    "pattern and length": {"type": "string", "pattern": "^[a-z_]+$", "minLength": 2, "maxLength": 9},
    "date": {"type": "string", "format": "date"},
    "uuid": {"type": "string", "format": "uuid"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "email": {"type": "string", "format": "email"},
    "array of integers": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}},
    "bounded array": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [_NAME, {"type": "number"}], "items": False, "minItems": 2},
    "open object": {"type": "object"},
    "map of integers": {"type": "object", "additionalProperties": {"type": "integer"}},
    "pattern properties": {
        "type": "object",
        "patternProperties": {"^n_[a-z]+$": {"type": "integer"}, "^s_": {"type": "string"}},
        "additionalProperties": False,
    },
    "min properties": {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1},
    "person": _object("name", "age", name=_NAME, age={"type": "integer", "minimum": 0, "maximum": 150}),
    "all optional": _object(a={"type": "integer"}, b={"type": "string"}, c={"type": "null"}),
    "optional between required": _object("a", "d", a={}, b={"type": "null"}, c={"type": "null"}, d={"type": "null"}),
    "open object with properties": {
        "type": "object",
        "properties": {"id": {"type": "integer"}, "ok": {"type": "boolean"}},
        "required": ["id"],
    },
    "unicode keys": _object("naïve", "名前", **{"naïve": {"type": "boolean"}, "名前": _NAME, "a b": {"type": "null"}}),
    "nested": _object(
        "order",
        order=_object(
            "id",
            "lines",
            id={"type": "string", "pattern": "^ord-[0-9]+$"},
            lines={
                "type": "array",
                "minItems": 1,
                "maxItems": 3,
                "items": _object("sku", "count", sku=_NAME, count={"type": "integer", "minimum": 1, "maximum": 99}),
            },
            address=_object("city", city=_NAME, zip={"type": "string", "pattern": "^[0-9]{5}$"}),
        ),
    ),
    "any of": {"anyOf": [{"type": "integer"}, _object("x", x={"type": "number"}), {"type": "array", "maxItems": 1}]},
    "tagged union": {
        "anyOf": [
            _object("kind", "radius", kind={"const": "circle"}, radius={"type": "number", "minimum": 0}),
            _object("kind", "side", kind={"const": "square"}, side={"type": "number", "minimum": 0}),
        ]
    },
    "one of": {"oneOf": [{"type": "string", "maxLength": 4}, {"type": "null"}]},
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"a": {"minimum": 3, "maximum": 5}, "b": {"type": "boolean"}}},
        ]
    },
    "reference": {
        "$defs": {"point": _object("x", "y", x={"type": "number"}, y={"type": "number"})},
        **_object("from", "to", **{"from": {"$ref": "#/$defs/point"}, "to": {"$ref": "#/$defs/point"}}),
    },
    "recursive tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": _object(
                "value",
                "children",
                value={"type": "integer"},
                children={"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
            )
        },
    },
    "recursive list": {
        "$ref": "#/$defs/list",
        "$defs": {
            "list": {"anyOf": [{"type": "null"}, _object("head", "tail", head={}, tail={"$ref": "#/$defs/list"})]}
        },
    },
    "pydantic optional": _object(
        "title", title={"type": "string"}, note={"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}
    ),
    "function call": _object(
        "name",
        "arguments",
        name={"enum": ["get_weather"]},
        arguments=_object("city", city=_NAME, unit={"enum": ["celsius", "fahrenheit"]}),
    ),
}
