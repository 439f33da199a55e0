"""The model card. In: what the run measured; out: Markdown."""

from collections.abc import Iterable

from transformers import Qwen2ForCausalLM

from models.tiny_chat_recipe.evaluate import Score, table
from models.tiny_chat_recipe.train import TrainingConfig, TrainingTime

_WEAK_BELOW = 0.9


def _weak_spots(scores: Iterable[Score]) -> str:
    weak = [f"{s.topic} ({s.held_out})" for s in scores if s.num_right / s.num_examples < _WEAK_BELOW]
    return f"Below {_WEAK_BELOW:.0%}, so do not rely on these: {'; '.join(weak)}." if weak else ""


def model_card(
    config: TrainingConfig, model: Qwen2ForCausalLM, scores: list[Score], training_time: TrainingTime
) -> str:
    """Return README.md of the model's folder."""
    wall, cpu = f"{training_time.wall_s / 60:.1f}", f"{training_time.cpu_s / 60:.1f}"
    num_tokens = config.num_steps * config.num_tokens_per_step
    shape = model.config
    return f"""---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
---

# tiny-chat

A chat model of {model.num_parameters() / 1e6:.1f} million parameters with exactly the Qwen2 architecture, small enough
to live in a source repository. It was trained from nothing on a corpus that its recipe generates; no text and no
weights of others went in. It is what tests, demos and machines without a network run. It answers short English
questions about the topics in the table below, and says that it does not know when it recognizes that; on anything
else it is wrong, and often sounds sure.

```
user:      What is the capital of France?
assistant: The capital of France is Paris.
```

## Shape

{shape.num_hidden_layers} layers, hidden size {shape.hidden_size}, {shape.num_attention_heads} heads,
{shape.num_key_value_heads} key-value heads, feed-forward size {shape.intermediate_size}, vocabulary
{shape.vocab_size} (byte-level BPE with Qwen2's split pattern), tied embedding, {shape.max_position_embeddings}
positions, bfloat16. The chat template is ChatML without a default system message.

## Remake it

```
python -m models.tiny_chat_recipe --output models/tiny-chat
```

It needs torch, transformers, tokenizers, safetensors and numpy. Seed {config.seed}; {config.num_steps} steps of
{config.num_tokens_per_step} tokens ({num_tokens / 1e6:.1f} million in all) took {wall} minutes of wall
time and {cpu} minutes of processor time on {config.num_threads} CPU threads (bfloat16 autocast).
The same seed on the same versions, processor and thread count gives the same weights. Rows hold several
conversations in lengths from 128 to 2048 tokens; the loss is on the assistant's turns, and on all of the plain
sentences (so that raw completion works too).

## Accuracy

Greedy decoding with the rounded bfloat16 weights computed in fp32. An answer counts only if it equals the expected
one letter by letter. "Phrasings" means question templates never seen in training (about facts that were);
"operands", "names" and "pairs" mean that these were never seen either.

{table(scores)}

{_weak_spots(scores)}

## Licence

MIT.
"""
