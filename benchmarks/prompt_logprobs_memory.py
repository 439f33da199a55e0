"""What log-probabilities of a long prompt cost in memory: peak RSS over that of the same prompt without them.

    python benchmarks/prompt_logprobs_memory.py FOLDER [--prompt 2000] [--limits 80 256 2048]

Each limit (`max_num_logits`) is run in a process of its own. A row of logits of a 151,936-token vocabulary is 0.6 MB,
so a prompt of 4,000 tokens taken at once would be 2.4 GB.
"""

import argparse
import subprocess
import sys

RUN = """
import resource, sys
from nanovllm import LLM, SamplingParams
folder, num_tokens, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
llm = LLM(folder, max_num_logits=limit, max_num_seqs=16, max_model_len=num_tokens + 8, max_num_batched_tokens=2048)
prompt = [(i * 7919) % 30000 for i in range(num_tokens)]
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
llm.generate([prompt], SamplingParams(temperature=0, max_tokens=1), progress=False)
before = peak()
steps = llm.stats().num_steps
(output,) = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1), progress=False)
assert len(output.prompt_logprobs) == num_tokens
print(f"{limit:>8} {before:>12.0f} {peak() - before:>10.0f} {llm.stats().num_steps - steps:>7}")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--prompt", type=int, default=2000, help="tokens (default: 2000)")
    parser.add_argument("--limits", type=int, nargs="+", default=[80, 256, 2048])
    options = parser.parse_args()
    print("   limit  without, MiB  more, MiB   steps")
    for limit in options.limits:
        subprocess.run([sys.executable, "-c", RUN, options.folder, str(options.prompt), str(limit)], check=True)


if __name__ == "__main__":
    main()
