"""The recipe of `models/tiny-chat`: facts in, a trained Qwen2-architecture chat model in Hugging Face format out.

It knows nothing about the engine; it needs torch, transformers, tokenizers, safetensors and numpy.
Run it with `python -m models.tiny_chat_recipe --output models/tiny-chat`.
"""
