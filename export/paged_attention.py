"""`nanovllm::PagedAttention_v1` and its variants for smaller pools: the contract, and bodies for CPU out of stock
operators.

Contract. T tokens of S sequences are packed one after the other; sequence i owns tokens query_start[i] ..
query_start[i + 1] and has context_lens[i] tokens in the cache from earlier steps. The node

1. rotates the first rotary_dim features of each head of query and key by the token's position,
2. writes each token's rotated key and its value into the pools at slot_mapping (block * block_size + offset),
3. lets every token attend to its sequence, found through block_tables, from the first token up to itself.

    inputs   query          float   (T, num_heads * head_dim)
             key, value     float   (T, num_kv_heads * head_dim)
             key_cache, value_cache float (num_blocks, block_size, num_kv_heads, head_dim)
             query_start    int32   (S + 1,)
             context_lens   int32   (S,)
             block_tables   int32   (S, max_blocks); entries past a sequence's length are not read for it
             slot_mapping   int32   (T,)
             positions      int64   (T,)
             cos, sin       float   (max_positions, rotary_dim / 2); a layer without rotation gets cos = 1, sin = 0
             block_size     int64   (1,), the pools' second axis: one value for all layers, so that what a body draws
                                    from it is computed once a step
    outputs  output         float   (T, num_heads * head_dim)
             key_cache_out, value_cache_out: the pools after the writes
    attributes, all present
             num_heads, num_kv_heads   int; query head h reads KV head h * num_kv_heads // num_heads
             scale                     float, factor on the scores
             rotary_dim                int
             rotary_interleaved        int; 0: feature i turns with i + rotary_dim / 2, 1: feature 2 i with 2 i + 1
             window                    int, a token sees this many latest tokens, itself included; 0: all
             softcap                   float, scores s become softcap * tanh(s / softcap); 0: off

The caller binds the pools' inputs and outputs to the same memory, so that they are updated in place; a kernel whose
pointers differ copies first. The name carries the version: it changes with anything said here.

Smaller pools. A kernel stands for a body by its name alone, and every name has its own types. What is written is
rounded once, and read back by every token, its own included. The arithmetic is float, but for what is said of int8.

    PagedAttentionBFloat16_v1   the pools are bfloat16: a feature is rounded to the nearest, ties to even
    PagedAttentionInt8_v2       the pools are int8, with two inputs and two outputs more:
             key_scale, value_scale         float (num_blocks, block_size, num_kv_heads), behind block_size
             key_scale_out, value_scale_out after the writes, behind value_cache_out
        Of each token and head, scale = max(max |x| / 127, 2 ** -100), and the pool holds x / scale, rounded to the
        nearest, ties to even: -127 .. 127. What is read is the stored integer times scale. What becomes of features
        that are not finite is not said.

        An implementation may compute in float, as the body does, or multiply integers. Then it rounds, and no more:
        a. every rotated query head by itself: scale = max(max |x| / 127, 2 ** -100), and x * (1 / scale) to the
           nearest integer, ties to even, in float32; scores are exact sums of integers times both scales;
        b. weights times value scales, by at most 2 ** -14 of the largest weight times the largest value scale among
           the keys that the token sees, of 128 that stand together from a multiple of 128 on.

The stock body pads: its cost is S * longest query * longest block table. What it reads in padding (block 0 and stale
slots) it multiplies by weights of zero, so pools start zeroed. Everything index-like is computed in the body; ONNX
Runtime inlines it and merges the repeats across layers, so this is done once a step.
"""

from typing import Literal, get_args

from onnx import FunctionProto, TensorProto, helper

from export.nodes import Nodes, Ref

__all__ = [
    "ATTRIBUTES",
    "DOMAIN",
    "DOMAIN_VERSION",
    "INPUTS",
    "KV_DTYPES",
    "OPSET",
    "OP_TYPE",
    "OP_TYPES",
    "OUTPUTS",
    "SCALE_INPUTS",
    "SCALE_OUTPUTS",
    "KVDType",
    "paged_attention_function",
]

DOMAIN = "nanovllm"
DOMAIN_VERSION = 1
OP_TYPE = "PagedAttention_v1"
KVDType = Literal["float32", "bfloat16", "int8"]
KV_DTYPES: tuple[KVDType, ...] = get_args(KVDType)
OP_TYPES: dict[KVDType, str] = {
    "float32": OP_TYPE,
    "bfloat16": "PagedAttentionBFloat16_v1",
    "int8": "PagedAttentionInt8_v2",
}
OPSET = 23  # the first with Attention, RotaryEmbedding and RMSNormalization

INPUTS = (
    *("query", "key", "value", "key_cache", "value_cache"),
    *("query_start", "context_lens", "block_tables", "slot_mapping", "positions", "cos", "sin", "block_size"),
)
OUTPUTS = ("output", "key_cache_out", "value_cache_out")
SCALE_INPUTS = ("key_scale", "value_scale")
SCALE_OUTPUTS = ("key_scale_out", "value_scale_out")
ATTRIBUTES = ("num_heads", "num_kv_heads", "scale", "rotary_dim", "rotary_interleaved", "window", "softcap")


_LEAST_SCALE = 2.0**-100


def paged_attention_function(*, windows: bool, kv_dtype: KVDType = "float32") -> FunctionProto:
    """The model-local function for CPU. windows: whether any node of the model has a window; else none is looked at."""
    body = Nodes()
    starts, ends, query_rows = _query_rows(body)
    query, key = (_rotated(body, name, heads) for name, heads in (("query", "num_heads"), ("key", "num_kv_heads")))
    _write_cache(body, key, kv_dtype)
    padded = body.add("Gather", [query, query_rows], axis=0)  # (S, longest, num_heads * head_dim)
    keys, values = (_read_cache(body, name, kv_dtype) for name in ("key", "value"))
    attended = body.add(
        "Attention",
        [padded, keys, values, _mask(body, query_rows, windows=windows)],
        q_num_heads=Ref("num_heads"),
        kv_num_heads=Ref("num_kv_heads"),
        scale=Ref("scale", is_float=True),
        softcap=Ref("softcap", is_float=True),
    )
    _unpad(body, attended, starts, ends)
    inputs, outputs = (INPUTS, OUTPUTS) if kv_dtype != "int8" else (INPUTS + SCALE_INPUTS, OUTPUTS + SCALE_OUTPUTS)
    return helper.make_function(
        DOMAIN, OP_TYPES[kv_dtype], inputs, outputs, body.protos, [helper.make_opsetid("", OPSET)], list(ATTRIBUTES)
    )


def _int64(body: Nodes, name: str) -> str:
    return body.add("Cast", [name], to=TensorProto.INT64)


def _size(body: Nodes, name: str, axis: int) -> str:
    """The size of one axis, int64, 1-D."""
    return body.add("Shape", [name], start=axis, end=axis + 1)


def _attribute(body: Nodes, name: str) -> str:
    """An integer attribute of the function, int64, 1-D."""
    return body.add("Unsqueeze", [body.add("Constant", [], value_int=Ref(name)), body.ints(0)])


def _num_keys(body: Nodes) -> str:
    """Slots that a row of block_tables names, int64, 1-D."""
    return body.add("Mul", [_size(body, "block_tables", 1), "block_size"])


def _query_rows(body: Nodes) -> tuple[str, str, str]:
    """First packed row of each sequence and the row past its last, int64 (S,); and the packed row of each padded
    query, int64 (S, longest), which for padding is some row that exists."""
    bounds = _int64(body, "query_start")
    starts = body.add("Slice", [bounds, body.ints(0), body.ints(-1)])
    ends = body.add("Slice", [bounds, body.ints(1), body.ints(2**31 - 1)])
    longest = body.add("ReduceMax", [body.add("Sub", [ends, starts])], keepdims=0)
    steps = body.add("Range", [body.scalar(0), longest, body.scalar(1)], "query_steps")
    rows = body.add("Add", [body.add("Unsqueeze", [starts, body.ints(1)]), steps])
    last = body.add("Sub", [_size(body, "positions", 0), body.ints(1)])
    return starts, ends, body.add("Min", [rows, last])


def _rotated(body: Nodes, name: str, num_heads: str) -> str:
    """Query or key rotated, (T, features)."""
    batched = body.add("Unsqueeze", [name, body.ints(0)])
    positions = body.add("Unsqueeze", ["positions", body.ints(0)])
    rotated = body.add(
        "RotaryEmbedding",
        [batched, "cos", "sin", positions],
        num_heads=Ref(num_heads),
        rotary_embedding_dim=Ref("rotary_dim"),
        interleaved=Ref("rotary_interleaved"),
    )
    return body.add("Squeeze", [rotated, body.ints(0)])


def _write_cache(body: Nodes, key: str, kv_dtype: KVDType) -> None:
    slots = _int64(body, "slot_mapping")
    block, offset = (body.add(operator, [slots, "block_size"]) for operator in ("Div", "Mod"))
    one = body.ints(1)
    places = body.add(  # (T, 2)
        "Concat", [body.add("Unsqueeze", [block, one]), body.add("Unsqueeze", [offset, one])], axis=1
    )
    shape = body.add("Concat", [body.ints(0), _attribute(body, "num_kv_heads"), body.ints(-1)], axis=0)
    for name, rows in (("key", key), ("value", "value")):
        by_head = body.add("Reshape", [rows, shape])  # (T, num_kv_heads, head_dim)
        if kv_dtype == "bfloat16":
            by_head = body.add("Cast", [by_head], to=TensorProto.BFLOAT16)
        elif kv_dtype == "int8":
            by_head, scale = _quantized(body, by_head)
            body.add("ScatterND", [f"{name}_scale", places, scale], f"{name}_scale_out")
        body.add("ScatterND", [f"{name}_cache", places, by_head], f"{name}_cache_out")


def _quantized(body: Nodes, rows: str) -> tuple[str, str]:
    """Features as int8, and the scale of each row, (T, num_kv_heads)."""
    last = body.ints(-1)
    largest = body.add("ReduceMax", [body.add("Abs", [rows]), last], keepdims=1)
    scale = body.add("Max", [body.add("Div", [largest, body.number(127.0)]), body.number(_LEAST_SCALE)])
    whole = body.add("Round", [body.add("Div", [rows, scale])])
    return body.add("Cast", [whole], to=TensorProto.INT8), body.add("Squeeze", [scale, last])


def _read_cache(body: Nodes, name: str, kv_dtype: KVDType) -> str:
    """The sequences' blocks one after the other, float (S, max_blocks * block_size, num_kv_heads * head_dim)."""
    blocks = body.add("Gather", [f"{name}_cache_out", "block_tables"], axis=0)
    if kv_dtype != "float32":
        blocks = body.add("Cast", [blocks], to=TensorProto.FLOAT)
    if kv_dtype == "int8":
        scale = body.add("Gather", [f"{name}_scale_out", "block_tables"], axis=0)
        blocks = body.add("Mul", [blocks, body.add("Unsqueeze", [scale, body.ints(-1)])])
    shape = body.add("Concat", [body.ints(0), _num_keys(body), body.ints(-1)], axis=0)
    return body.add("Reshape", [blocks, shape])


def _mask(body: Nodes, query_rows: str, *, windows: bool) -> str:
    """Which keys each padded query sees, bool (S, 1, longest, max_blocks * block_size). Padding sees some keys."""
    context = body.add("Unsqueeze", [_int64(body, "context_lens"), body.ints(1)])
    place = body.add("Unsqueeze", [body.add("Add", [context, "query_steps"]), body.ints(1, 3)])  # (S, 1, longest, 1)
    keys = body.add("Range", [body.scalar(0), body.add("Squeeze", [_num_keys(body)]), body.scalar(1)])
    mask = body.add("LessOrEqual", [keys, place])
    if not windows:
        return mask
    window = body.add("Constant", [], value_int=Ref("window"))
    endless = body.add("Equal", [window, body.scalar(0)])
    reach = body.add("Where", [endless, body.scalar(2**31), window])
    return body.add("And", [mask, body.add("Greater", [keys, body.add("Sub", [place, reach])])])


def _unpad(body: Nodes, attended: str, starts: str, ends: str) -> None:
    """From (S, longest, features) back to the packed (T, features)."""
    num_tokens = body.add("Squeeze", [_size(body, "positions", 0)])
    rows = body.add("Range", [body.scalar(0), num_tokens, body.scalar(1)])
    one = body.ints(1)
    past = body.add("GreaterOrEqual", [body.add("Unsqueeze", [rows, one]), ends])  # (T, S)
    sequence = body.add("ReduceSum", [_int64(body, past), one], keepdims=0)  # the index of each token's own
    within = body.add("Sub", [rows, body.add("Gather", [starts, sequence])])
    places = body.add("Concat", [body.add("Unsqueeze", [i, one]) for i in (sequence, within)], axis=1)
    packed = body.add("GatherND", [attended, places])
    # Shape inference sees no attribute of a function, so it takes the width of `attended` for 0: say what it is.
    body.add("Reshape", [packed, body.add("Shape", ["query"])], "output")
