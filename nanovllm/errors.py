"""Every exception that this project raises on purpose.

    NanoVLLMError
    |-- ConfigError(ValueError)              an engine or backend option is unknown or out of range
    |-- RequestError(ValueError)             one request cannot be served; others are not concerned
    |   |-- SamplingParamsError              a sampling parameter is out of range
    |   |-- PromptError                      the prompt is empty, too long or holds unknown token ids
    |   `-- ChatTemplateError                the chat template is missing, broken or refuses the messages
    |-- ModelError                           a model folder cannot be used
    |   |-- ModelNotFoundError               no model where the user pointed
    |   |-- CheckpointError                  config.json or the weights are broken or contradict each other
    |   |-- ModelInfoError                   model_info.json is missing, broken or of a newer schema
    |   |-- UnsupportedModelError            a model_type that no architecture file defines
    |   `-- ExportError                      the export could not be made or written
    |-- PluginError                          a plugin is broken or two claim one name
    |   `-- PluginNotFoundError              no plugin of that name, or none that can load the model
    |-- KVCacheError                         the memory given holds not even one sequence
    `-- BackendError                         a model runner failed while it was running
        `-- BackendLostError                 ... and cannot run again: the engine ends

A user's mistake raises from this tree; an `AssertionError` means a defect of ours. An exception of a library
never leaves a backend unwrapped. Each message says what is wrong, what was given, what is allowed and what to do.
"""

__all__ = [
    "BackendError",
    "BackendLostError",
    "ChatTemplateError",
    "CheckpointError",
    "ConfigError",
    "ExportError",
    "KVCacheError",
    "ModelError",
    "ModelInfoError",
    "ModelNotFoundError",
    "NanoVLLMError",
    "PluginError",
    "PluginNotFoundError",
    "PromptError",
    "RequestError",
    "SamplingParamsError",
    "UnsupportedModelError",
]


class NanoVLLMError(Exception):
    """Root of the tree: catch this to catch everything that the project raises on purpose."""


class ConfigError(NanoVLLMError, ValueError):
    """An engine or backend option is unknown, of the wrong type or out of range."""


class RequestError(NanoVLLMError, ValueError):
    """One request cannot be served. It was refused before it touched any other request."""


class SamplingParamsError(RequestError):
    """A sampling parameter is out of range or contradicts another."""


class PromptError(RequestError):
    """The prompt is empty, too long for the model or holds token ids that the model does not have."""


class ChatTemplateError(RequestError):
    """The chat template is missing, does not compile, or raised for the given messages."""


class ModelError(NanoVLLMError):
    """A model folder cannot be used."""


class ModelNotFoundError(ModelError):
    """There is no model at the path or hub id that was given."""


class CheckpointError(ModelError):
    """config.json or the weight files are missing, broken or contradict each other."""


class ModelInfoError(ModelError):
    """model_info.json is missing, broken or of a schema newer than this version reads."""


class UnsupportedModelError(ModelError):
    """The checkpoint's model_type is none of the architectures that this version defines."""


class ExportError(ModelError):
    """An export could not be made or written; nothing half-written is left behind."""


class PluginError(NanoVLLMError):
    """A plugin is broken, or two plugins claim the same name."""


class PluginNotFoundError(PluginError):
    """No plugin has the requested name, or no plugin can load the given model."""


class KVCacheError(NanoVLLMError):
    """The KV cache cannot hold even one sequence with the memory or the blocks that it was given."""


class BackendError(NanoVLLMError):
    """A model runner failed while running a step."""


class BackendLostError(BackendError):
    """A model runner can run no step any more, such as one that has lost a process of its own. The engine ends."""
