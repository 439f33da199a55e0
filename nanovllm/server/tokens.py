"""Routes of the tokenizer: /tokenize, /detokenize, /tokenizer_info as vLLM's, /v1/tokenize and /v1/detokenize."""

import asyncio

from fastapi import APIRouter

from nanovllm.server.answers import answer_docs
from nanovllm.server.context import ServerContext
from nanovllm.server.conversation import render
from nanovllm.server.errors import ApiError
from nanovllm.server.json_route import JsonRoute
from nanovllm.server.prompts import encode
from nanovllm.server.protocol.tokens import (
    Detokenized,
    DetokenizeRequest,
    StepText,
    StepTokens,
    TextOfTokens,
    TokenizedText,
    TokenizeRequest,
    TokenizerInfo,
    TokensOfText,
)

__all__ = ["tokens_router"]


def tokens_router(context: ServerContext) -> APIRouter:
    router = APIRouter(route_class=JsonRoute, tags=["Tokenizer"])
    tokenizer, info = context.llm.tokenizer, context.llm.model_info

    def shown(token_id: int | None) -> str | None:
        return None if token_id is None else tokenizer.decode([token_id], skip_special_tokens=False)

    def texts_of(token_ids: list[int]) -> list[str]:
        return [tokenizer.decode([token_id], skip_special_tokens=False) for token_id in token_ids]

    def checked(token_ids: list[int], param: str) -> list[int]:
        for token_id in token_ids:
            if token_id >= tokenizer.vocab_size:
                message = f"{param} holds {token_id}; the tokenizer's ids are 0 to {tokenizer.vocab_size - 1}."
                raise ApiError(400, message, param=param)
        return token_ids

    @router.post("/tokenize", responses=answer_docs(TokenizedText))
    async def tokenize(body: TokenizeRequest) -> TokenizedText:
        """The token ids of a prompt, or of a conversation in the form of the chat template."""
        context.model_name(body.model)
        context.check_fields(body)
        tokens = await _token_ids(body, context)
        texts = await asyncio.to_thread(texts_of, tokens) if body.return_token_strs else None
        return TokenizedText(
            count=len(tokens), max_model_len=context.llm.max_model_len, tokens=tokens, token_strs=texts
        )

    @router.post("/detokenize", responses=answer_docs(Detokenized))
    async def detokenize(body: DetokenizeRequest) -> Detokenized:
        """The text of token ids, special ones included."""
        context.model_name(body.model)
        context.check_fields(body)
        ids = checked(body.tokens, "tokens")
        return Detokenized(prompt=await asyncio.to_thread(tokenizer.decode, ids, skip_special_tokens=False))

    @router.get("/tokenizer_info", responses=answer_docs(TokenizerInfo))
    async def tokenizer_info() -> TokenizerInfo:
        """What a client needs to count tokens as the server does."""
        return TokenizerInfo(
            tokenizer_class=type(tokenizer).__name__,
            vocab_size=tokenizer.vocab_size,
            model_max_length=context.llm.max_model_len,
            bos_token=shown(info.bos_token_id),
            eos_token=shown(info.eos_token_ids[0] if info.eos_token_ids else None),
            pad_token=shown(info.pad_token_id),
            chat_template=context.settings.chat_template or context.llm.chat_template,
        )

    @router.post("/v1/tokenize", responses=answer_docs(StepTokens))
    async def tokenize_text(body: TokensOfText) -> StepTokens:
        """The token ids of a text."""
        context.check_fields(body)
        special = body.add_special_tokens is not False
        return StepTokens(token_ids=await encode(tokenizer, body.text, add_special_tokens=special))

    @router.post("/v1/detokenize", responses=answer_docs(StepText))
    async def text_of_tokens(body: TextOfTokens) -> StepText:
        """The text of token ids."""
        context.check_fields(body)
        ids = checked(body.token_ids, "token_ids")
        skips = body.skip_special_tokens is not False
        return StepText(text=await asyncio.to_thread(tokenizer.decode, ids, skip_special_tokens=skips))

    return router


async def _token_ids(body: TokenizeRequest, context: ServerContext) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give either prompt or messages.", param="prompt")
    text = body.prompt
    if body.messages is not None:
        text = await asyncio.to_thread(
            render,
            context.llm,
            body.messages,
            chat_template=context.settings.chat_template,
            tools=body.tools,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            variables=body.chat_template_kwargs,
        )
    assert text is not None, "one of the two was given"
    special = body.messages is None if body.add_special_tokens is None else body.add_special_tokens
    return await encode(context.llm.tokenizer, text, add_special_tokens=special)
