"""Writes a conversation as a prompt with lm-eval's remote tokenizer. In: {"url", "key"} as JSON."""

import json
import sys

from lm_eval.utils import RemoteTokenizer

settings = json.loads(sys.argv[1])
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "日本?"}]

if __name__ == "__main__":
    tokenizer = RemoteTokenizer(f"{settings['url']}/v1/completions", auth_token=settings["key"])
    prompt = tokenizer.apply_chat_template(MESSAGES)
    tokens = tokenizer.encode(prompt)
    print(json.dumps({"messages": MESSAGES, "prompt": prompt, "tokens": tokens, "text": tokenizer.decode(tokens)}))
