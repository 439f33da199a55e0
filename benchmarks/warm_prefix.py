"""Time to the first token of a prompt that begins as an earlier one: what the prefix cache saves.

    python benchmarks/warm_prefix.py FOLDER [--prefix 1000] [--own 32] [--rounds 7]

Each round has a prefix of its own: a prompt of it comes first (cold), then the same prompt again, then the prefix with
`own` other tokens behind it. Prints medians in milliseconds and their ratios to the cold one.
"""

import argparse
import random
import statistics
import time

from nanovllm import LLM, SamplingParams

ONE_TOKEN = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--prefix", type=int, default=1000, metavar="TOKENS")
    parser.add_argument("--own", type=int, default=32, metavar="TOKENS")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    randomness = random.Random(0)
    with LLM(options.folder, max_model_len=options.prefix + options.own + 1, kv_cache_memory_bytes=2**30) as llm:

        def tokens(count: int) -> list[int]:
            return [randomness.randrange(llm.model_info.vocab_size) for _ in range(count)]

        def first_token_ms(prompt: list[int]) -> float:
            start = time.perf_counter()
            llm.generate(prompt, ONE_TOKEN, progress=False)
            return 1e3 * (time.perf_counter() - start)

        first_token_ms(tokens(16))
        rows = []
        for _ in range(options.rounds):
            prefix = tokens(options.prefix)
            own = tokens(options.own)
            rows.append([first_token_ms(prompt) for prompt in (prefix, prefix, prefix + own)])
    cold, again, other = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"cold {cold:.1f} ms; the same again {again:.1f} ms, 1/{cold / again:.0f}; ", end="")
    print(f"the prefix with {options.own} tokens of its own {other:.1f} ms, 1/{cold / other:.0f}")


if __name__ == "__main__":
    main()
