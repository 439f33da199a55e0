"""Tensor parallelism: one model computed by several processes, each with a part of every layer and, where there are
CUDA devices, a device of its own.

    engine's process                         other processes
    ParallelRunner  -- steps, as bytes -->   worker
      TorchRunner   <-- sums of results -->    TorchRunner      (or DeviceRunner, on devices)
      its weights, its KV heads                its weights, its KV heads

Steps go through a socket pair (`messages`), sums and parts of logits through a `Collective`.
"""
