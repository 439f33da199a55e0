"""`python -m nanovllm`: the command line."""

from nanovllm.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
