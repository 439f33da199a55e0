"""Small Qwen2 graphs with dense past and present, as other tools export them, from any checkpoint of `tiny_config`.

Two styles: "concat" joins past and new tokens with stock operators (optimum), "gqa" uses GroupQueryAttention over a
shared buffer (onnxruntime-genai's model builder). Written by hand, so that no exporter is needed to run these tests.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from nanovllm.checkpoint import Checkpoint

MAX_POSITIONS = 512
Layout = Literal["genai", "optimum", "community"]


@dataclass(frozen=True)
class Style:
    """positions: whether position_ids is an input. last_row_only: logits of the last token alone. half: cache,
    attention and logits in float16. num_logits: an input num_logits_to_keep, of how many rows there are."""

    attention: Literal["gqa", "concat"]
    positions: bool = False
    last_row_only: bool = False
    half: bool = False
    num_logits: bool = False


STYLES = {
    "gqa": Style("gqa"),
    "gqa with unused positions": Style("gqa", positions=True),
    "gqa in float16": Style("gqa", half=True),
    "gqa, last row only": Style("gqa", last_row_only=True),
    "concat": Style("concat", positions=True),
    "concat without positions": Style("concat"),
    "concat in float16": Style("concat", positions=True, half=True),
    "concat, num_logits_to_keep": Style("concat", positions=True, num_logits=True),
}


def write_folder(
    checkpoint: Path, folder: Path, style: Style, layout: Layout | None = None, *, file: str = "model.onnx"
) -> Path:
    """A folder with the graph of `checkpoint` and configs in that layout, by default the style's own."""
    layout = layout or ("genai" if style.attention == "gqa" else "optimum")
    place = folder / "onnx" if layout == "community" else folder
    place.mkdir(parents=True, exist_ok=True)
    save(make_model(checkpoint, style), place / file)
    if layout == "genai":
        config = json.loads((checkpoint / "config.json").read_text())
        (folder / "genai_config.json").write_text(json.dumps(genai_config(config, file)))
    else:
        shutil.copy(checkpoint / "config.json", folder)
    return folder


def genai_config(config: dict[str, Any], file: str) -> dict[str, Any]:
    """As the model builder writes it, and with keys that nobody knows yet."""
    return {
        "model": {
            "bos_token_id": 1,
            "context_length": config["max_position_embeddings"],
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": file,
                "head_size": config["head_dim"],
                "hidden_size": config["hidden_size"],
                "num_attention_heads": config["num_attention_heads"],
                "num_hidden_layers": config["num_hidden_layers"],
                "num_key_value_heads": config["num_key_value_heads"],
                "sliding_window": {"a key of tomorrow": True},
            },
            "eos_token_id": [config["eos_token_id"], 7],
            "pad_token_id": 0,
            "type": config["model_type"],
            "vocab_size": config["vocab_size"],
            "a key of tomorrow": [1, {"x": None}],
        },
        "search": {"do_sample": False, "top_k": 50, "past_present_share_buffer": True, "max_length": 99},
        "engine": {"a key of tomorrow": "x"},
    }


def make_model(checkpoint: Path, style: Style) -> Any:
    return _Builder(Checkpoint(checkpoint), style).model()


class _Builder:
    def __init__(self, checkpoint: Checkpoint, style: Style) -> None:
        self.config, self.checkpoint, self.style = checkpoint.config, checkpoint, style
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.heads: int = self.config["num_attention_heads"]
        self.kv_heads: int = self.config["num_key_value_heads"]
        self.dim: int = self.config["head_dim"]
        self.kv_type = TensorProto.FLOAT16 if style.half else TensorProto.FLOAT

    def model(self) -> Any:
        layers = range(self.config["num_hidden_layers"])
        self.prepare()
        x = self.op("Gather", [self.weight("model.embed_tokens.weight"), "input_ids"])
        for layer in layers:
            x = self.layer(x, layer)
        x = self.norm(x, "model.norm.weight")
        if self.style.last_row_only or self.style.num_logits:
            keep = "num_logits_to_keep" if self.style.num_logits else self.const(np.array(1, np.int64))
            start = self.op("Unsqueeze", [self.op("Neg", [keep]), self.const(np.array([0]))])
            x = self.op("Slice", [x, start, self.const(np.array([2**31])), self.const(np.array([1]))])
        logits = self.op("MatMul", [x, self.weight("model.embed_tokens.weight", transpose=True)])
        self.op("Cast", [logits], out="logits", to=self.kv_type)
        rows = 1 if self.style.last_row_only else "rows"
        inputs = [
            self.tensor("input_ids", TensorProto.INT64, ["batch", "tokens"]),
            self.tensor("attention_mask", TensorProto.INT64, ["batch", "total"]),
        ]
        if self.style.positions:
            inputs.append(self.tensor("position_ids", TensorProto.INT64, ["batch", "tokens"]))
        if self.style.num_logits:
            inputs.append(self.tensor("num_logits_to_keep", TensorProto.INT64, []))
        outputs = [self.tensor("logits", self.kv_type, ["batch", rows, self.config["vocab_size"]])]
        heads: str | int = self.kv_heads if self.style.attention == "concat" else "heads"  # left open by the builder
        for layer in layers:
            for kind in ("key", "value"):
                inputs.append(self.cache(f"past_key_values.{layer}.{kind}", heads, "past"))
                outputs.append(self.cache(f"present.{layer}.{kind}", heads, "present"))
        graph = helper.make_graph(self.nodes, "decoder", inputs, outputs, self.weights)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def prepare(self) -> None:
        """What all layers share: lengths, positions, the mask, the rotary tables."""
        angles = np.arange(MAX_POSITIONS)[:, None] * self.config["rope_theta"] ** (
            -np.arange(0, self.dim, 2) / self.dim
        )
        self.dtype = np.float16 if self.style.half else np.float32
        if self.style.attention == "gqa":
            ones = self.op("ReduceSum", ["attention_mask", self.const(np.array([1]))], keepdims=0)
            self.lens = self.cast(self.op("Sub", [ones, self.const(np.array(1))]), TensorProto.INT32)
            total = self.op("Gather", [self.op("Shape", ["attention_mask"]), self.const(np.array(1))])
            self.total = self.cast(total, TensorProto.INT32)
            self.cos, self.sin = (self.const(f(angles).astype(self.dtype)) for f in (np.cos, np.sin))
            return
        zero, one = self.const(np.array(0)), self.const(np.array(1))
        total = self.op("Gather", [self.op("Shape", ["attention_mask"]), one])
        first = self.op("Sub", [total, self.op("Gather", [self.op("Shape", ["input_ids"]), one])])
        queries = self.op("Range", [first, total, one])
        keys = self.op("Range", [zero, total, one])
        causal = self.op("LessOrEqual", [keys, self.op("Unsqueeze", [queries, self.const(np.array([1]))])])
        real = self.op("Unsqueeze", [self.cast("attention_mask", TensorProto.BOOL), self.const(np.array([1, 2]))])
        self.mask = self.op("And", [causal, real])
        positions = "position_ids"
        if not self.style.positions:
            positions = self.op("Unsqueeze", [queries, self.const(np.array([0]))])
        both = np.concatenate([angles, angles], -1).astype(np.float32)
        self.cos, self.sin = (
            self.op("Unsqueeze", [self.op("Gather", [self.const(f(both)), positions]), self.const(np.array([1]))])
            for f in (np.cos, np.sin)
        )

    def layer(self, x: str, layer: int) -> str:
        prefix = f"model.layers.{layer}"
        normed = self.norm(x, f"{prefix}.input_layernorm.weight")
        q, k, v = (self.linear(normed, f"{prefix}.self_attn.{name}_proj", bias=True) for name in "qkv")
        attention = self.gqa if self.style.attention == "gqa" else self.concat_attention
        x = self.op("Add", [x, self.linear(attention(q, k, v, layer), f"{prefix}.self_attn.o_proj")])
        normed = self.norm(x, f"{prefix}.post_attention_layernorm.weight")
        gate, up = (self.linear(normed, f"{prefix}.mlp.{name}_proj") for name in ("gate", "up"))
        silu = self.op("Mul", [gate, self.op("Sigmoid", [gate])])
        return self.op("Add", [x, self.linear(self.op("Mul", [silu, up]), f"{prefix}.mlp.down_proj")])

    def gqa(self, q: str, k: str, v: str, layer: int) -> str:
        past = [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        out = f"attention.{layer}"
        qkv = [self.cast(x, self.kv_type) for x in (q, k, v)]
        self.nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [*qkv, *past, self.lens, self.total, self.cos, self.sin],
                [out, f"present.{layer}.key", f"present.{layer}.value"],
                domain="com.microsoft",
                num_heads=self.heads,
                kv_num_heads=self.kv_heads,
                do_rotary=1,
            )
        )
        return self.cast(out, TensorProto.FLOAT)

    def concat_attention(self, q: str, k: str, v: str, layer: int) -> str:
        query, key, value = (
            self.split_heads(*pair) for pair in ((q, self.heads), (k, self.kv_heads), (v, self.kv_heads))
        )
        query, key = self.rotate(query), self.rotate(key)
        caches = []
        for kind, new in (("key", key), ("value", value)):
            new = self.cast(new, self.kv_type)
            present = self.op("Concat", [f"past_key_values.{layer}.{kind}", new], out=f"present.{layer}.{kind}", axis=2)
            five = self.op("Unsqueeze", [self.cast(present, TensorProto.FLOAT), self.const(np.array([2]))])
            groups = self.const(np.array([1, 1, self.heads // self.kv_heads, 1, 1]))
            shape = self.const(np.array([0, self.heads, -1, self.dim]))
            caches.append(self.op("Reshape", [self.op("Tile", [five, groups]), shape]))
        key, value = caches
        scores = self.op("MatMul", [query, self.op("Transpose", [key], perm=[0, 1, 3, 2])])
        scores = self.op("Mul", [scores, self.const(np.float32(self.dim**-0.5))])
        scores = self.op("Where", [self.mask, scores, self.const(np.float32(-1e30))])
        mixed = self.op("MatMul", [self.op("Softmax", [scores], axis=-1), value])
        joined = self.op("Transpose", [mixed], perm=[0, 2, 1, 3])
        return self.op("Reshape", [joined, self.const(np.array([0, 0, self.heads * self.dim]))])

    def split_heads(self, x: str, heads: int) -> str:
        shaped = self.op("Reshape", [x, self.const(np.array([0, 0, heads, self.dim]))])
        return self.op("Transpose", [shaped], perm=[0, 2, 1, 3])

    def rotate(self, x: str) -> str:
        half = self.const(np.array([self.dim // 2, self.dim // 2]))
        a, b = f"{x}.a", f"{x}.b"
        self.nodes.append(helper.make_node("Split", [x, half], [a, b], axis=-1))
        turned = self.op("Concat", [self.op("Neg", [b]), a], axis=-1)
        return self.op("Add", [self.op("Mul", [x, self.cos]), self.op("Mul", [turned, self.sin])])

    def norm(self, x: str, name: str) -> str:
        squares = self.op("ReduceMean", [self.op("Mul", [x, x]), self.const(np.array([-1]))])
        root = self.op("Sqrt", [self.op("Add", [squares, self.const(np.float32(self.config["rms_norm_eps"]))])])
        return self.op("Mul", [self.op("Div", [x, root]), self.weight(name)])

    def linear(self, x: str, name: str, *, bias: bool = False) -> str:
        y = self.op("MatMul", [x, self.weight(f"{name}.weight", transpose=True)])
        return self.op("Add", [y, self.weight(f"{name}.bias")]) if bias else y

    def weight(self, name: str, *, transpose: bool = False) -> str:
        values = self.checkpoint.tensor(name).read_float32()
        return self.const(np.ascontiguousarray(values.T) if transpose else values)

    def const(self, value: Any) -> str:
        name = f"const.{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def cast(self, x: str, to: int) -> str:
        return self.op("Cast", [x], to=to)

    def op(self, kind: str, inputs: list[str], *, out: str | None = None, **attributes: Any) -> str:
        out = out or f"{kind}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out], **attributes))
        return out

    def cache(self, name: str, heads: str | int, length: str) -> Any:
        return self.tensor(name, self.kv_type, ["batch", heads, length, self.dim])

    def tensor(self, name: str, dtype: int, shape: list[str | int]) -> Any:
        return helper.make_tensor_value_info(name, dtype, shape)
