"""Programs written for mistral.rs: its page's two, its options by name, its responses."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import mlx.nn as nn
import pytest

from convert import Wishes, convert
from mlx_qwenvl import OptionError, QwenVL
from mlx_qwenvl.compat import (
    ChatCompletionChunkResponse,
    ChatCompletionRequest,
    ChatCompletionResponse,
    CompletionRequest,
    IsqType,
    ModelDType,
    Runner,
    TextMessageRole,
    ToolChoice,
    VisionLoaderType,
    VisionMessages,
    VisionModelBuilder,
    Which,
)
from mlx_qwenvl.compat.answering import Answering
from mlx_qwenvl.compat.responses import Usage
from mlx_qwenvl.compat.said import settle
from mlx_qwenvl.engine.reply import Chunk
from mlx_qwenvl.inputs import fetch
from mlx_qwenvl.weights.recipes import RECIPES, read_recipe
from mlx_qwenvl.weights.resolve import DEMO_FOLDER
from tests.clients.asking import PICTURES, QUESTION, SEEDS_ANSWER, SEEDS_PICTURE, SHOWN, seen

ROOT = Path(__file__).parent.parent
WORD, SHAPES = PICTURES / SEEDS_PICTURE, PICTURES / "shapes.png"
SHAPES_ANSWER = SHOWN[SHAPES.name]
PAGES_URL = "https://www.nhmagazine.com/content/uploads/2019/05/mtwashingtonFranconia-2-19-18-108-Edit-Edit.jpg"

# The page that this project began with, word by word.
SNIPPET = """
from mistralrs import Runner, Which, ChatCompletionRequest, VisionArchitecture

MODEL_ID = "lamm-mit/Cephalo-Llama-3.2-11B-Vision-Instruct-128k"

runner = Runner(
    which=Which.VisionPlain(
        model_id="MODEL_ID",
        arch=VisionArchitecture.VLlama,
    ),
)

res = runner.send_chat_completion_request(
    ChatCompletionRequest(
        model="llama-vision",
        messages=[
            {
                "role": "user",
                "content": [
                    {
                        "type": "image_url",
                        "image_url": {
                            "url": "https://www.nhmagazine.com/content/uploads/2019/05/mtwashingtonFranconia-2-19-18-108-Edit-Edit.jpg"
                        },
                    },
                    {
                        "type": "text",
                        "text": "What is shown in this image? Write a detailed response analyzing the scene.",
                    },
                ],
            }
        ],
        max_tokens=256,
        presence_penalty=1.0,
        top_p=0.1,
        temperature=0.1,
    )
)
print(res.choices[0].message.content)
print(res.usage)
"""  # noqa: E501

# Its Rust example, in Python.
RUSTS_TWIN = """
from mlx_qwenvl.compat import (
    IsqType, TextMessageRole, VisionLoaderType, VisionMessages, VisionModelBuilder,
)

model = (
    VisionModelBuilder(MODEL_ID, VisionLoaderType.VLlama)
    .with_isq(IsqType.Q4K)
    .with_logging()
    .build()
)
messages = VisionMessages().add_vllama_image_message(
    TextMessageRole.User, "What is depicted here? Please describe the scene in detail.", image
)
response = model.send_chat_request(messages)
print(response.choices[0].message.content)
print(response.usage.avg_prompt_tok_per_sec, response.usage.avg_compl_tok_per_sec)
"""

# The arguments that mistral.rs 0.4.0 and 0.9.5 have, from their signatures.
CHAT = """
    messages model logprobs n_choices logit_bias top_logprobs max_tokens presence_penalty
    frequency_penalty repetition_penalty stop_seqs temperature top_p top_k stream grammar
    grammar_type adapters min_p tool_schemas tool_choice dry_multiplier dry_base dry_allowed_length
    dry_sequence_breakers web_search_options enable_thinking truncate_sequence reasoning_effort
    max_tool_rounds tool_dispatch_url enable_code_execution enable_shell shell_skills
    agent_permission agent_approval_callback code_execution_permission session_id files input_files
    ignore_eos adapter
"""
COMPLETION = """
    prompt model best_of echo_prompt presence_penalty frequency_penalty repetition_penalty
    logit_bias max_tokens n_choices stop_seqs temperature top_p suffix top_k grammar grammar_type
    adapters min_p tool_schemas tool_choice dry_multiplier dry_base dry_allowed_length
    dry_sequence_breakers truncate_sequence ignore_eos adapter
"""
VISION = """
    model_id arch tokenizer_json topology write_uqff from_uqff dtype max_edge calibration_file
    auto_map_params imatrix hf_cache_path matformer_config_path matformer_slice_name organization
    encoder_cache_memory_bytes
"""
RUNNER = """
    which max_seqs no_kv_cache prefix_cache_n token_source speculative_gamma which_draft
    chat_template num_device_layers in_situ_quant anymoe_config pa_gpu_mem pa_gpu_mem_usage
    pa_ctxt_len pa_blk_size no_paged_attn paged_attn prompt_batchsize seed mtp_model mtp_n_predict
    jinja_explicit memory_goal pa_cache_type enable_search search_embedding_model search_callback
    tool_callbacks mcp_client_config code_execution_config shell_config
"""
SIGNATURES = [
    ("Which.VisionPlain", Which.VisionPlain, VISION),
    ("Runner", Runner, RUNNER),
    ("ChatCompletionRequest", ChatCompletionRequest, CHAT),
    ("CompletionRequest", CompletionRequest, COMPLETION),
]
by_name = pytest.mark.parametrize(
    ("name", "kind", "there"), SIGNATURES, ids=[name for name, _, _ in SIGNATURES]
)


@pytest.fixture(scope="module")
def runner() -> Runner:
    return Runner(Which.VisionPlain("demo"))


def ask(runner: Runner, **wishes: Any) -> ChatCompletionResponse:
    given: dict[str, Any] = {"messages": seen(str(SHAPES)), "temperature": 0} | wishes
    response = runner.send_chat_completion_request(ChatCompletionRequest(**given))
    assert isinstance(response, ChatCompletionResponse)
    return response


def hear(runner: Runner, **wishes: Any) -> list[ChatCompletionChunkResponse]:
    given: dict[str, Any] = {"messages": seen(str(SHAPES)), "temperature": 0} | wishes
    request = ChatCompletionRequest(**given, stream=True)
    pieces = runner.send_chat_completion_request(request)
    assert isinstance(pieces, Iterator)
    return list(pieces)


def serve_word(url: str, **_: Any) -> bytes:
    assert url == PAGES_URL
    return WORD.read_bytes()


def test_the_pages_program_runs_with_another_import_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "MODEL_ID").symlink_to(DEMO_FOLDER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fetch, "fetch", serve_word)
    program = SNIPPET.replace("from mistralrs import", "from mlx_qwenvl.compat import", 1)
    exec(compile(program, "llama_vision.py", "exec"), {})
    answer, _, usage = capsys.readouterr().out.partition("\n")
    assert answer == SEEDS_ANSWER
    figures = dict(re.findall(r"^    (\w+): ([\d.e+-]+),$", usage, flags=re.MULTILINE))
    assert list(figures) == [field.name for field in fields(Usage)]
    assert usage.startswith("Usage {\n") and usage.endswith("\n}\n")
    assert all(float(figure) > 0 for figure in figures.values())


def test_the_pages_rust_program_has_a_twin(
    capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    logger = logging.getLogger("mlx_qwenvl")
    before = logger.level, logger.handlers[:]
    exec(compile(RUSTS_TWIN, "main.py", "exec"), {"MODEL_ID": "demo", "image": WORD.read_bytes()})
    answer, rates = capsys.readouterr().out.splitlines()
    assert "STOP" in answer
    assert all(float(rate) > 0 for rate in rates.split())
    assert (logger.level, logger.handlers) == before


def test_with_logging_tells_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    VisionModelBuilder("demo").with_isq("Q8_0").build()
    silent = capsys.readouterr().err
    VisionModelBuilder("demo").with_isq("Q8_0").with_logging().build()
    told = capsys.readouterr().err
    assert "loaded QwenVL('demo'" in told and "loaded" not in silent


@by_name
def test_each_of_its_options_may_be_named(name: str, kind: type, there: str) -> None:
    assert {field.name for field in fields(kind)} - {"_"} == set(there.split())


@by_name
def test_the_table_says_what_becomes_of_each_option(name: str, kind: type, there: str) -> None:
    text = (ROOT / "docs" / "compat.md").read_text(encoding="utf-8")
    section = re.search(rf"^## `{re.escape(name)}`.*?(?=^## )", text, re.DOTALL | re.MULTILINE)
    assert section is not None
    rows = re.findall(r"^\| (`[^|]*) \| (.*) \|$", section[0], flags=re.MULTILINE)
    told = {option: row for names, row in rows for option in re.findall(r"`(\w+)`", names)}
    for field in fields(kind):
        row = told[field.name]
        assert ("refused" in field.metadata) == row.startswith("Refused"), field.name
        assert ("ignored" in field.metadata) == row.startswith("Ignored"), field.name


def test_its_names_of_the_family_are_known() -> None:
    """As the enumeration in its source spells them, and its page besides."""
    there = {
        "VLlama": "vllama",
        "Qwen2VL": "qwen2vl",
        "Qwen2_5VL": "qwen2_5vl",
        "Qwen3VL": "qwen3vl",
        "Qwen3VLMoE": "qwen3vlmoe",
    }
    assert {each.name: each.value for each in VisionLoaderType} == there


def of_fate(fate: str) -> list[Any]:
    return [
        pytest.param(kind, field, id=f"{name}.{field.name}")
        for name, kind, _ in SIGNATURES
        for field in fields(kind)
        if fate in field.metadata
    ]


def use(kind: type, option: str, value: object, runner: Runner) -> None:
    """Give an option a value, and go as far as it takes to be noticed."""
    given: dict[str, Any] = {option: value}
    if kind is Runner:
        Runner(Which.VisionPlain("demo"), **given)
    elif kind is Which.VisionPlain:
        Runner(Which.VisionPlain("demo", **given))
    elif kind is ChatCompletionRequest:
        ask(runner, messages="Hello!", max_tokens=1, **given)
    else:
        runner.send_completion_request(CompletionRequest("The", max_tokens=1, **given))


@pytest.mark.parametrize(("kind", "field"), of_fate("refused"))
def test_what_would_change_the_answer_is_refused_by_name(
    kind: type, field: Field[Any], runner: Runner
) -> None:
    with pytest.raises(OptionError, match=f"^{field.name} is not supported; ") as error:
        use(kind, field.name, "a value", runner)
    assert error.value.param == field.name and "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "field"), of_fate("ignored"))
def test_what_would_not_is_ignored_in_one_line_that_hides_its_value(
    kind: type, field: Field[Any], runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "mlx_qwenvl"):
        use(kind, field.name, "literal:hf_secret", runner)
    assert [line.partition(":")[0] for line in caplog.messages] == [f"{field.name} is ignored"]
    assert "hf_secret" not in caplog.text


@by_name
def test_its_defaults_and_none_pass_without_a_word(
    name: str, kind: type, there: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = Which.VisionPlain("demo") if kind is Runner else "demo"
    of_another_fate = [field for field in fields(kind) if field.metadata]
    with caplog.at_level(logging.WARNING, "mlx_qwenvl"):
        settle(kind(first, **{field.name: field.default for field in of_another_fate}))
        settle(kind(first, **{field.name: None for field in of_another_fate}))
    assert caplog.messages == []


def test_harmless_values_pass_without_a_word(
    runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "mlx_qwenvl"):
        ask(
            runner,
            messages="Hello!",
            adapters=[],
            enable_thinking=False,
            reasoning_effort="off",
            dry_multiplier=0.0,
        )
        Runner(Which.VisionPlain("demo"), no_paged_attn=True, max_seqs=32)
    assert caplog.messages == []


def test_a_picture_may_be_a_url_a_path_a_data_url_or_base64(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "fetch", serve_word)
    bare = base64.b64encode(WORD.read_bytes()).decode()
    sources = [PAGES_URL, str(WORD), WORD.as_uri(), f"data:image/png;base64,{bare}", bare]
    answers = {ask(runner, messages=seen(s)).choices[0].message.content for s in sources}
    assert len(answers) == 1 and "STOP" in str(answers)


def test_a_stream_is_the_answer_in_pieces(runner: Runner) -> None:
    *pieces, last = hear(runner)
    text = "".join(piece.choices[0].delta.content for piece in [*pieces, last])
    assert text == SHAPES_ANSWER == ask(runner).choices[0].message.content
    assert len(pieces) > 5
    assert {piece.choices[0].finish_reason for piece in pieces} == {None}
    assert last.choices[0].finish_reason == "stop"
    assert {piece.usage for piece in pieces} == {None}
    assert last.usage is not None and last.usage.completion_tokens == len(pieces)
    assert len({piece.id for piece in [*pieces, last]}) == 1


def test_a_stream_refuses_before_its_first_piece(runner: Runner) -> None:
    with pytest.raises(OptionError, match="top_p is 2"):
        runner.send_chat_completion_request(
            ChatCompletionRequest(messages="Hello!", top_p=2, stream=True)
        )


def test_counts_add_up_and_an_answer_may_be_cut(runner: Runner) -> None:
    response = ask(runner, max_tokens=3)
    usage = response.usage
    assert response.choices[0].finish_reason == "length"
    assert usage.completion_tokens == 3
    assert usage.total_tokens == usage.prompt_tokens + 3
    assert usage.total_time_sec == pytest.approx(
        usage.total_prompt_time_sec + usage.total_completion_time_sec
    )
    assert usage.avg_prompt_tok_per_sec == pytest.approx(
        usage.prompt_tokens / usage.total_prompt_time_sec
    )


def test_usage_prints_as_there() -> None:
    usage = Usage(24, 12_345_678, 12_345_702, 51.5, 120.25, 30.0, 0.125, 0.1, 0.025)
    first, *lines, last = str(usage).splitlines()
    assert (first, last) == ("Usage {", "}")
    assert lines[:4] == [
        "    completion_tokens: 24,",
        "    prompt_tokens: 12345678,",
        "    total_tokens: 12345702,",
        "    avg_tok_per_sec: 51.5,",
    ]


def test_several_choices_share_a_prompt(runner: Runner) -> None:
    one = ask(runner).usage
    response = ask(runner, n_choices=2)
    assert [choice.index for choice in response.choices] == [0, 1]
    assert {choice.message.content for choice in response.choices} == {SHAPES_ANSWER}
    assert response.usage.prompt_tokens == one.prompt_tokens
    assert response.usage.completion_tokens == 2 * one.completion_tokens
    pieces = hear(runner, n_choices=2)
    assert [p.choices[0].index for p in pieces if p.choices[0].finish_reason] == [0, 1]
    assert [piece.usage is not None for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    for bad in (0, True, 129, "2"):
        with pytest.raises(OptionError, match="n_choices"):
            ask(runner, n_choices=bad)


def test_a_seed_repeats_a_program_and_not_an_answer() -> None:
    def program() -> list[str | None]:
        runner = Runner(Which.VisionPlain("demo"), seed=5)
        wishes: dict[str, Any] = {"messages": "Hello!", "temperature": 5.0, "max_tokens": 8}
        first = ask(runner, **wishes, n_choices=2)
        second = ask(runner, **wishes)
        return [choice.message.content for choice in [*first.choices, *second.choices]]

    answers = program()
    assert answers == program()
    assert len(set(answers)) == 3


def test_log_probabilities_have_its_form(runner: Runner) -> None:
    choice = ask(runner, logprobs=True, top_logprobs=2).choices[0]
    assert choice.logprobs is not None
    tokens = choice.logprobs.content
    assert bytes(b for token in tokens for b in token.bytes).decode() == SHAPES_ANSWER
    for token in tokens:
        first, second = token.top_logprobs
        assert isinstance(first.token, int) and first.bytes == token.token
        assert first.logprob == pytest.approx(token.logprob) and second.logprob <= first.logprob
    assert ask(runner).choices[0].logprobs is None
    streamed = [p.choices[0].logprobs for p in hear(runner, logprobs=True)]
    assert [entry.token for entry in streamed if entry] == [token.token for token in tokens]


@pytest.mark.parametrize(
    ("kind", "text", "fits"),
    [
        ("regex", "[a-c]{5}", lambda said: set(said) <= set("abc")),
        ("lark", 'start: "left" | "right"', ("left", "right").__contains__),
        ("json_schema", '{"enum": ["up", "down"]}', ('"up"', '"down"').__contains__),
        (
            "llguidance",
            json.dumps({"grammars": [{"lark_grammar": 'start: "up" | "down"'}]}),
            ("up", "down").__contains__,
        ),
    ],
)
def test_its_grammars_hold(runner: Runner, kind: str, text: str, fits: Any) -> None:
    said = ask(runner, grammar=text, grammar_type=kind).choices[0].message.content
    assert fits(said), said


@pytest.mark.parametrize("wrong", [{"grammar": "a"}, {"grammar_type": "regex"}])
def test_a_grammar_needs_its_type(runner: Runner, wrong: dict[str, str]) -> None:
    with pytest.raises(OptionError, match=r"grammar_type is .* expected one of regex, lark"):
        ask(runner, **wrong)


WEATHER = json.dumps(
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
)


class Scripted:
    """A model that says what it is told to, and remembers what it was asked."""

    name = "scripted"

    def __init__(self, demo: QwenVL, text: str) -> None:
        self.tokenizer = demo.tokenizer
        last = list(demo.stream("Hello!", temperature=0))[-1]
        self._chunks = [*(Chunk(letter, (0,)) for letter in text), last]
        self.asked: dict[str, Any] = {}

    def stream(self, **asked: Any) -> Iterator[Chunk]:
        self.asked = asked
        return iter(self._chunks)


CALLING = (
    'Let me see. <tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
)


def test_calls_of_tools_have_its_form(demo: QwenVL) -> None:
    scripted = Scripted(demo, CALLING)
    answering = Answering(scripted)  # type: ignore[arg-type]
    request = ChatCompletionRequest(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Rain?"}],
        tool_schemas=[WEATHER],
        tool_choice=ToolChoice.Auto,
    )
    choice = answering.chat(request).choices[0]
    call = choice.message.tool_calls[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Let me see."
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "get_weather",
        {"city": "Oslo"},
    )
    assert call.type is call.tp and call.tp.value == "function" and call.index == 0
    system, user = scripted.asked["messages"]
    assert system["content"].startswith("Be brief.") and "get_weather" in system["content"]
    assert user["content"] == "Rain?"
    assert scripted.asked["grammar"].kind == "tools"
    *pieces, last = answering.stream(request)
    assert "".join(p.choices[0].delta.content for p in pieces) == "Let me see."
    assert [c.function for c in last.choices[0].delta.tool_calls] == [call.function]


def test_a_call_that_is_cut_off_is_none(demo: QwenVL) -> None:
    answering = Answering(Scripted(demo, CALLING[:-30]))  # type: ignore[arg-type]
    message = answering.chat(ChatCompletionRequest("Rain?", tool_schemas=[WEATHER])).choices[0]
    assert message.message.tool_calls == [] and message.finish_reason == "stop"


def test_no_tools_are_told_of_where_none_may_be_called(demo: QwenVL) -> None:
    scripted = Scripted(demo, "Hello!")
    request = ChatCompletionRequest(
        "Hello!", tool_schemas=[WEATHER], tool_choice=ToolChoice.NoTools
    )
    Answering(scripted).chat(request)  # type: ignore[arg-type]
    assert scripted.asked["messages"] == "Hello!" and scripted.asked["grammar"] is None


def test_tools_that_are_none_are_refused(runner: Runner) -> None:
    with pytest.raises(OptionError, match=r"tool_schemas\[0\] is no JSON text"):
        ask(runner, tool_schemas=["{"])
    with pytest.raises(OptionError, match="cannot be had together"):
        ask(runner, tool_schemas=[WEATHER], grammar="a", grammar_type="regex")


def test_a_completion_goes_on_with_bare_text(runner: Runner) -> None:
    request = CompletionRequest(prompt="The image shows", model="any", temperature=0, max_tokens=4)
    response = runner.send_completion_request(request)
    tokens = runner.tokenize_text("The image shows", add_special_tokens=True)
    assert response.usage.prompt_tokens == len(tokens)
    assert response.object == "text_completion"
    text = response.choices[0].text
    assert text and response.choices[0].finish_reason in ("length", "stop")
    echoed = CompletionRequest("The image shows", temperature=0, max_tokens=4, echo_prompt=True)
    assert runner.send_completion_request(echoed).choices[0].text == "The image shows" + text


def test_text_becomes_tokens_and_text_again(runner: Runner) -> None:
    text = "<|im_start|>user\nHello!<|im_end|>"
    tokens = runner.tokenize_text(text, add_special_tokens=False, enable_thinking=None)
    assert runner.detokenize_text(tokens, skip_special_tokens=False) == text
    assert runner.detokenize_text(tokens, skip_special_tokens=True) == "user\nHello!"
    assert runner.max_sequence_length() == runner.vlm.config.text.max_position_embeddings


def test_each_of_its_quantizations_has_a_recipe() -> None:
    assert {read_recipe(isq.value).name for isq in IsqType} <= set(RECIPES) - {"none"}


@pytest.mark.parametrize(("isq", "bits"), [("Q4K", 4), ("afq8", 8), ("8", 8)])
def test_in_situ_quantization_is_that_of_load(isq: str, bits: int) -> None:
    runner = Runner(Which.VisionPlain("demo"), in_situ_quant=isq)
    layers = [m for _, m in runner.vlm.model.named_modules() if hasattr(m, "bits")]
    assert {layer.bits for layer in layers} == {bits}
    assert "circle" in str(ask(runner).choices[0].message.content)


def test_a_stored_quantization_is_chosen_by_its_name(tmp_path: Path) -> None:
    convert(DEMO_FOLDER, tmp_path / "all", Wishes(("4bit", "8bit")))
    runner = Runner(Which.MultimodalPlain(str(tmp_path / "all"), from_uqff="Q8_0"))
    layers = [m for _, m in runner.vlm.model.named_modules() if hasattr(m, "bits")]
    assert {layer.bits for layer in layers} == {8}


@pytest.mark.parametrize("name", ["q4k-0.uqff", ["a-0.uqff", "a-1.uqff"]])
def test_a_uqff_file_is_refused_with_the_way_out(name: Any) -> None:
    with pytest.raises(OptionError, match=r"which MLX cannot read; .*mlx-qwenvl convert"):
        Runner(Which.VisionPlain("demo", from_uqff=name))


def test_a_topology_and_a_dtype_reach_the_loader(tmp_path: Path) -> None:
    file = tmp_path / "isq.yml"
    file.write_text("0-2:\n  isq: Q8_0\n", encoding="utf-8")
    which = Which.VisionPlain("demo", topology=str(file), dtype=ModelDType.F32)
    model = Runner(which).vlm.model.model
    assert not isinstance(model.layers[2].mlp.down_proj, nn.QuantizedLinear)
    assert model.layers[1].mlp.down_proj.bits == 8


def test_the_longest_edge_bounds_the_pixels(runner: Runner) -> None:
    small = Runner(Which.VisionPlain("demo", max_edge=84))
    assert ask(small).usage.prompt_tokens < ask(runner).usage.prompt_tokens
    assert ask(small).choices[0].message.content


def test_without_a_prefix_cache_nothing_is_kept(runner: Runner) -> None:
    bare = Runner(Which.VisionPlain("demo", encoder_cache_memory_bytes=0), prefix_cache_n=0)
    for each, is_kept in ((runner, True), (bare, False)):
        ask(each)
        again = each.vlm.generate(messages=seen(str(SHAPES)), temperature=0)
        assert (again.usage.cached_tokens > 0) == is_kept


def test_a_draft_changes_no_answer() -> None:
    drafted = Runner(Which.VisionPlain("demo"), which_draft=Which.VisionPlain("demo"))
    assert drafted.vlm.draft is not None
    assert ask(drafted).choices[0].message.content == SHAPES_ANSWER


def test_a_small_prompt_batch_changes_no_answer() -> None:
    stepped = Runner(Which.VisionPlain("demo"), prompt_batchsize=16)
    assert ask(stepped).choices[0].message.content == SHAPES_ANSWER


def test_a_builder_and_messages_leave_what_was_before() -> None:
    builder, messages = VisionModelBuilder("demo"), VisionMessages()
    builder.with_isq(IsqType.Q4K), messages.add_message(TextMessageRole.User, "Hello!")
    assert builder == VisionModelBuilder("demo")
    assert messages.messages == ()
    assert messages.add_message(TextMessageRole.User, "Hello!").clear() == messages


def test_every_step_of_the_builder_reaches_the_loader(tmp_path: Path) -> None:
    file = tmp_path / "isq.yml"
    file.write_text("0: 8bit\n", encoding="utf-8")
    model = (
        VisionModelBuilder("demo", VisionLoaderType.Qwen2VL)
        .with_isq("AFQ4")
        .with_dtype(ModelDType.F32)
        .with_topology(file)
        .with_prompt_batchsize(32)
        .with_prefix_cache_n(0)
        .from_max_edge(84)
        .build()
    )
    layers = model.vlm.model.model.layers
    assert [layer.mlp.down_proj.bits for layer in layers[:2]] == [8, 4]
    messages = (
        VisionMessages()
        .add_message(TextMessageRole.User, "Hello!")
        .add_message(TextMessageRole.Assistant, "Hello! How can I help you?")
        .add_image_message(TextMessageRole.User, QUESTION, [str(SHAPES)])
    )
    usage = model.send_chat_request(messages).usage
    assert usage.prompt_tokens < 60
    assert model.vlm.generate(messages=messages.messages, max_tokens=1).usage.cached_tokens == 0
    *_, last = model.stream_chat_request(ChatCompletionRequest(messages.messages, max_tokens=2))
    assert last.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("step", "option"),
    [
        (lambda builder: builder.with_token_source("literal:hf_secret"), "token_source"),
        (lambda builder: builder.with_max_num_seqs(4), "max_num_seqs"),
        (lambda builder: builder.with_device_mapping("0:16"), "device_mapping"),
        (lambda builder: builder.with_force_cpu(), "force_cpu"),
    ],
)
def test_a_step_without_effect_says_so(
    step: Any, option: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "mlx_qwenvl"):
        step(VisionModelBuilder("demo")).build()
    assert [line.partition(" ")[0] for line in caplog.messages] == [option]
    assert "hf_secret" not in caplog.text


def test_the_documented_twin_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "compat.md").read_text(encoding="utf-8")
    block = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)[-1]
    exec(compile(block, "compat.md", "exec"), {})
    assert "green star" in capsys.readouterr().out
