"""Writes a Hugging Face folder of a known shape with random weights, so that every engine can load the same model.

    python benchmarks/make_checkpoint.py Qwen/Qwen2-0.5B-Instruct /tmp/qwen2-0.5b [--seed 0]

In the folder: config.json, generation_config.json, model.safetensors in bf16, and a byte-level BPE trained on made-up
text and padded to the model's vocabulary. The weights are those that `python -m export --random-weights` draws from the
same seed. Needs no network and neither torch nor transformers; memory does not grow with the model.
"""

import argparse
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from nanovllm.architectures import decoder_from_config
from nanovllm.known_shapes import KNOWN_SHAPES
from nanovllm.random_weights import RandomCheckpoint
from nanovllm.testing.checkpoints import weights_of

_SLICE_BYTES = 16 * 2**20
_NUM_TRAINED = 4096  # tokens of the tokenizer that are learned; the rest fill up the vocabulary
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(KNOWN_SHAPES), metavar="SHAPE", help=", ".join(sorted(KNOWN_SHAPES)))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_folder(options.folder, KNOWN_SHAPES[options.shape], options.seed)


def write_folder(folder: Path, config: dict[str, Any], seed: int) -> None:
    """Writes the whole folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**config, "torch_dtype": "bfloat16"}
    eos = config.get("eos_token_id")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}) + "\n", encoding="utf-8")
    _write_tokenizer(folder, config["vocab_size"], eos, seed)
    _write_weights(folder / "model.safetensors", RandomCheckpoint(config, seed=seed))


def _write_weights(path: Path, checkpoint: RandomCheckpoint) -> None:
    """The format is described in `nanovllm.safetensors_file`."""
    shapes = {weight.name: weight.shape for weight in weights_of(decoder_from_config(checkpoint.config))}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        num_bytes = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, position + num_bytes]}
        position += num_bytes
    text = json.dumps(header).encode()
    with path.open("wb") as file, tqdm(total=position, unit="B", unit_scale=True, desc="Writing") as bar:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            tensor = checkpoint.tensor(name, shape)
            rows = max(1, _SLICE_BYTES // (tensor.num_bytes // shape[0]))
            for start in range(0, shape[0], rows):
                bar.update(file.write(tensor.read(start, start + rows).tobytes()))


def _write_tokenizer(folder: Path, vocab_size: int, eos_token_id: int, seed: int) -> None:
    """A trained byte-level BPE. Its end of text is at the model's end-of-sequence id; unused ids have filler tokens."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=_NUM_TRAINED, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    trained.train_from_iterator(_text(seed), trainer)
    document = json.loads(trained.to_str())
    vocabulary = dict(document["model"]["vocab"])
    special = {token: eos_token_id - len(_SPECIAL) + 1 + i for i, token in enumerate(_SPECIAL)}
    free = set(range(len(vocabulary), vocab_size)) - set(special.values())
    vocabulary.update({f"<|unused_{i}|>": i for i in sorted(free)})
    moved = {token: i for token, i in vocabulary.items() if i in special.values()}
    for token, i in zip(moved, sorted(free)[-len(moved) :] if moved else (), strict=True):
        del vocabulary[f"<|unused_{i}|>"]
        vocabulary[token] = i
    vocabulary.update(special)
    merges = [tuple(pair) for pair in document["model"]["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": _SPECIAL[2],
        "pad_token": _SPECIAL[0],
        "chat_template": _TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _text(seed: int) -> Iterator[str]:
    """Lines of made-up words, the short ones more often."""
    randomness = random.Random(seed)
    syllables = [a + b for a in "bcdfghjklmnpqrstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "is", "on", "ul")]
    words = ["".join(randomness.choices(syllables, k=randomness.randint(1, 4))) for _ in range(6000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    for _ in range(4000):
        yield " ".join(randomness.choices(words, weights, k=12)) + "."


if __name__ == "__main__":
    main()
