"""What transformers answers on tiny-chat, in float32: the reference of every test that serves that model."""

import warnings
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from nanovllm.checkpoint import resolve_model
from nanovllm.testing import assert_same_tokens

__all__ = ["NUM_TOKENS", "QUESTIONS", "Reference", "tiny_chat_reference"]

NEAR_TIE = 1e-3
NUM_TOKENS = 40

QUESTIONS = (
    "What is the capital of France?",
    "what is the capital of france",
    "Which country has Tokyo as its capital?",
    "Please give me the capital city of Peru.",
    "What language do they speak in Brazil?",
    "What is the currency of Japan?",
    "Where is Kenya?",
    "Tell me about France.",
    "Tell me about the United States.",
    "What is 7 + 5?",
    "How much is 15 minus 6?",
    "Which is bigger, 12 or 9?",
    "Count down from 10.",
    "Write the 7 times table.",
    "List three animals.",
    "Give me a list of five colours.",
    "What colour is the sky?",
    "What is a bicycle?",
    "Can you explain what a volcano is?",
    "What is the opposite of hot?",
    "What day comes after Tuesday?",
    "Spell the word banana.",
    "Tell me a story about a cat.",
    "Who are you?",
)


@dataclass(frozen=True)
class Reference:
    """Prompts as token ids, what transformers continues them with, and its logits for both together."""

    prompts: list[list[int]]
    continuations: list[list[int]]
    logits: list[npt.NDArray[np.float32]]  # each (num_tokens, vocab_size)

    def check(self, continuations: list[list[int]]) -> None:
        """Equal token by token; where a near-tie of the logits parts the two, equal until there."""
        num_exact = 0
        for prompt, expected, logits, actual in zip(
            self.prompts, self.continuations, self.logits, continuations, strict=True
        ):
            num_exact += actual == expected
            if actual != expected:
                chosen_by = logits[len(prompt) - 1 : -1]
                assert_same_tokens(chosen_by, prompt, actual[: len(expected)], near_tie=NEAR_TIE)
        assert num_exact >= len(continuations) - 1, "more than one near-tie: look at the model or the runner"


@cache
def tiny_chat_reference() -> Reference:
    """Each of QUESTIONS as a chat of its own, answered greedily; computed once."""
    checkpoint = resolve_model("tiny-chat")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers and what it imports
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        reference = Reference([], [], [])
        for question in QUESTIONS:
            messages = [{"role": "user", "content": question}]
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                output = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NUM_TOKENS)[0].tolist()
                reference.logits.append(model(torch.tensor([output])).logits[0].numpy())
            reference.prompts.append(prompt)
            reference.continuations.append(output[len(prompt) :])
    return reference
