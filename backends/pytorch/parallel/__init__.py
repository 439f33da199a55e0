"""Tensor parallelism: one model computed by several processes, each with a part of every layer.

    engine's process                         other processes
    ParallelRunner  -- steps, as bytes -->   worker
      TorchRunner   <-- sums of results -->    TorchRunner
      its weights, its KV heads                its weights, its KV heads

Steps go through a socket pair (`messages`), sums and parts of logits through a `Collective`.
"""
