"""What authors and users of backends test with: the laws of a runner, the numpy oracle, and the rule by which two
implementations agree."""

from nanovllm.testing.builders import NumberTokenizer, make_engine, run_requests, teacher_forced_logits
from nanovllm.testing.checkpoints import tiny_config, write_checkpoint
from nanovllm.testing.conformance import ModelRunnerConformance
from nanovllm.testing.parity import ParityReport, ReferenceLogits, assert_same_tokens
from nanovllm.testing.reference import ReferenceModel, reference_logits

__all__ = [
    "ModelRunnerConformance",
    "NumberTokenizer",
    "ParityReport",
    "ReferenceLogits",
    "ReferenceModel",
    "assert_same_tokens",
    "make_engine",
    "reference_logits",
    "run_requests",
    "teacher_forced_logits",
    "tiny_config",
    "write_checkpoint",
]
