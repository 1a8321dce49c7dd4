"""Sends the mixed requests to vLLM's two gRPC services: that of ``vllm serve --grpc`` and that of its Rust frontend.

Only the fields used here are declared, by their numbers in the services' definitions: ``vllm_engine.proto`` of
``smg-grpc-proto`` 0.4.28, and ``rust/proto/inference.proto`` of vLLM 0.32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from integration.harness.frontends.mixed import Answer, Request

_AT_ONCE = 16
_Field = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "string": _Field.TYPE_STRING,
    "uint32": _Field.TYPE_UINT32,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "float": _Field.TYPE_FLOAT,
    "bool": _Field.TYPE_BOOL,
}

_ENGINE = {
    "SamplingParams": {
        "temperature": (1, "optional float"), "top_p": (2, "float"), "repetition_penalty": (7, "float"),
        "max_tokens": (8, "optional uint32"), "min_tokens": (9, "uint32"), "stop": (10, "repeated string"),
        "ignore_eos": (14, "bool"), "n": (15, "uint32"), "seed": (24, "optional int32"),
        "include_stop_str_in_output": (25, "bool"),
    },
    "GenerateRequest": {
        "request_id": (1, "string"), "text": (3, "string"), "sampling_params": (4, "SamplingParams"),
        "stream": (5, "bool"),
    },
    "GenerateStreamChunk": {"token_ids": (1, "repeated uint32"), "index": (7, "uint32")},
    "GenerateComplete": {
        "output_ids": (1, "repeated uint32"), "finish_reason": (2, "string"), "index": (8, "uint32"),
    },
    "GenerateResponse": {"chunk": (1, "GenerateStreamChunk"), "complete": (2, "GenerateComplete")},
}  # fmt: skip
_INFERENCE = {
    "RandomSampling": {"seed": (5, "optional int64")},
    "StoppingCriteria": {
        "max_new_tokens": (1, "uint32"), "min_new_tokens": (2, "uint32"), "stop_strings": (4, "repeated string"),
        "include_stop_strings": (5, "bool"), "ignore_eos": (6, "bool"),
    },
    "GenerateRequest": {
        "request_id": (1, "string"), "model": (2, "string"), "text": (3, "string"),
        "temperature": (5, "optional float"), "sampling": (6, "RandomSampling"), "stopping": (8, "StoppingCriteria"),
    },
    "FinishInfo": {"num_output_tokens": (1, "uint32"), "finish_reason": (2, "uint32")},
    "SequenceOutput": {"text": (2, "string"), "finish_info": (8, "FinishInfo")},
    "GenerateResponse": {"outputs": (2, "SequenceOutput")},
}  # fmt: skip
_INFERENCE_REASONS = {1: "length", 2: "stop", 3: "abort"}


def _messages(package: str, declared: dict[str, dict[str, tuple[int, str]]]) -> dict[str, Any]:
    """Message classes of a package."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for name, fields in declared.items():
        message = file.message_type.add(name=name)
        for field_name, (number, kind) in fields.items():
            label, _, base = kind.rpartition(" ")
            field = message.field.add(name=field_name, number=number)
            field.label = _Field.LABEL_REPEATED if label == "repeated" else _Field.LABEL_OPTIONAL
            if base in _TYPES:
                field.type = _TYPES[base]
            else:
                field.type, field.type_name = _Field.TYPE_MESSAGE, f".{package}.{base}"
            if label == "optional":
                field.proto3_optional = True
                field.oneof_index = len(message.oneof_decl)
                message.oneof_decl.add(name=f"_{field_name}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in declared}


Decode = Callable[[list[int]], str]


class Engine:
    """A client of ``vllm serve --grpc``, which answers in tokens.

    Args:
        decode: the text of tokens, as the server would decode them.
    """

    def __init__(self, channel: grpc.Channel, decode: Decode) -> None:
        messages = _messages("vllm.grpc.engine", _ENGINE)
        self._request = messages["GenerateRequest"]
        self._decode = decode
        self._call = channel.unary_stream(
            "/vllm.grpc.engine.VllmEngine/Generate",
            request_serializer=self._request.SerializeToString,
            response_deserializer=messages["GenerateResponse"].FromString,
        )

    def send(self, request: Request) -> Answer:
        answer = Answer(request.name, request.name)
        message = self._request(request_id=request.name, text=request.prompt + "\n", stream=request.stream)
        asked = {"top_p": 1.0, "repetition_penalty": 1.0, "n": 1, **request.params}
        for name, value in asked.items():
            if isinstance(value, list):
                getattr(message.sampling_params, name).extend(value)
            else:
                setattr(message.sampling_params, name, value)
        tokens: dict[int, list[int]] = {}
        call = self._call(message, timeout=request.leave_s or 120)
        try:
            for number, response in enumerate(call, 1):
                if response.HasField("complete"):
                    complete = response.complete
                    answer.finish_reasons[complete.index] = complete.finish_reason
                    if not request.stream:  # a stream has already sent them
                        tokens[complete.index] = list(complete.output_ids)
                else:
                    tokens.setdefault(response.chunk.index, []).extend(response.chunk.token_ids)
                if number == request.chunks:
                    call.cancel()
                    break
        except grpc.RpcError as error:
            if request.leave_s is None or error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
        answer.texts = {index: self._decode(ids) for index, ids in tokens.items()}
        if not request.hangs_up:
            answer.output_tokens = sum(map(len, tokens.values()))
        return answer


class Inference:
    """A client of the Rust frontend's gRPC service, for requests that are not streamed."""

    def __init__(self, channel: grpc.Channel, model: str) -> None:
        messages = _messages("vllm", _INFERENCE)
        self._model = model
        self._request = messages["GenerateRequest"]
        self._call = channel.unary_unary(
            "/vllm.Inference/Generate",
            request_serializer=self._request.SerializeToString,
            response_deserializer=messages["GenerateResponse"].FromString,
        )

    def send(self, request: Request) -> Answer:
        params = request.params
        message = self._request(
            request_id=request.name, model=self._model, text=request.prompt + "\n", temperature=params["temperature"]
        )
        if "seed" in params:
            message.sampling.seed = params["seed"]
        message.stopping.max_new_tokens = params["max_tokens"]
        message.stopping.min_new_tokens = params.get("min_tokens", 0)
        message.stopping.stop_strings.extend(params.get("stop", ()))
        message.stopping.include_stop_strings = params.get("include_stop_str_in_output", False)
        outputs = self._call(message, timeout=120).outputs
        reason = _INFERENCE_REASONS[outputs.finish_info.finish_reason]
        tokens = outputs.finish_info.num_output_tokens
        return Answer(request.name, request.name, {0: outputs.text}, {0: reason}, tokens)


def send(client: Engine | Inference, requests: Iterable[Request]) -> list[Answer]:
    """Send all of them, sixteen at a time."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(client.send, requests))
