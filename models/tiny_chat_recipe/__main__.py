"""The command line of the recipe: tokenizer, training, evaluation, files."""

import argparse
import random
import sys
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from models.tiny_chat_recipe.card import model_card
from models.tiny_chat_recipe.checkpoint import (
    model_config,
    round_to_bfloat16,
    save_model,
    save_tokenizer,
)
from models.tiny_chat_recipe.conversation import render
from models.tiny_chat_recipe.corpus import CorpusWriter
from models.tiny_chat_recipe.evaluate import evaluate, table
from models.tiny_chat_recipe.tokenizer import train_tokenizer
from models.tiny_chat_recipe.train import TrainingConfig, build_model, train

VOCAB_SIZE = 2048
_NUM_TOKENIZER_DOCUMENTS = 20000
_NUM_CHECKED_DOCUMENTS = 200


def _report(line: str) -> None:
    print(line, flush=True)


def _check_template(folder: Path, tokenizer: Tokenizer) -> None:
    """Assert that the saved chat template renders what training reads, and that both tokenizers agree on its ids."""
    saved = AutoTokenizer.from_pretrained(folder)
    for document in islice(CorpusWriter(random.Random(9)).documents(long=True), _NUM_CHECKED_DOCUMENTS):
        if isinstance(document, str):
            continue
        messages = [{"role": m.role, "content": m.content} for m in document]
        text = saved.apply_chat_template(messages, tokenize=False)
        assert text == render(document)
        assert saved(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text).ids


def main(arguments: list[str]) -> None:
    """Make the model in the folder given by `--output`."""
    defaults = TrainingConfig()
    parser = argparse.ArgumentParser(prog="python -m models.tiny_chat_recipe", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("models/tiny-chat"), help="folder to write (%(default)s)")
    parser.add_argument("--steps", type=int, default=defaults.num_steps, help="optimizer steps (%(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="seed of weights and corpus (%(default)s)")
    options = parser.parse_args(arguments)
    config = TrainingConfig(seed=options.seed, num_steps=options.steps)
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)

    documents = CorpusWriter(random.Random(f"{config.seed} tokenizer")).documents(long=False)
    tokenizer = train_tokenizer(islice(documents, _NUM_TOKENIZER_DOCUMENTS), VOCAB_SIZE)
    save_tokenizer(tokenizer, folder)
    _check_template(folder, tokenizer)

    model = build_model(model_config(tokenizer), config.seed)
    torch.use_deterministic_algorithms(True)
    training_time = train(model, tokenizer, config, _report)
    round_to_bfloat16(model)
    save_model(model, tokenizer, folder)

    scores = evaluate(model, tokenizer)
    _report(table(scores))
    for score in scores:
        for question, answer in score.mistakes[:3]:
            _report(f"{score.topic}: {question!r} -> {answer!r}")
    (folder / "README.md").write_text(model_card(config, model, scores, training_time), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
