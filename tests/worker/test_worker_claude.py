"""How the program is called, and what its end means."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomd.worker.claude import (
    CUT_NOTE,
    ERROR_LENGTH,
    Answered,
    Failed,
    SessionGone,
    clean,
    command,
    environment,
    is_session,
    secrets,
    verdict,
    without,
)
from bloomd.worker.limits import Limit
from bloomd.worker.process import Ended

ANSWER = {
    "type": "result", "subtype": "success", "is_error": False, "result": "4", "session_id": "0d5c-41",
    "total_cost_usd": 0.25, "usage": {"input_tokens": 7, "output_tokens": 5, "cache_read_input_tokens": 900,
              "cache_creation_input_tokens": 100, "service_tier": "standard"},
}  # fmt: skip


def judge(stdout: object = "", stderr: str = "", exit_code: int = 0, *, session: str | None = None, **more: bool):
    text = stdout if isinstance(stdout, str) else json.dumps(stdout)
    ended = Ended(exit_code, **{"timed_out": False, **more}, stdout=text.encode(), stderr=stderr.encode())
    return verdict(ended, session=session, seconds=9, now=1759300000.0)


def test_the_command_has_no_word_of_the_prompt():
    options = ["--print", "--output-format", "json"]
    assert command(("claude", "--model", "opus"), None) == ["claude", "--model", "opus", *options]
    assert command(("claude",), "s-1") == ["claude", *options, "--resume", "s-1"]


@pytest.mark.parametrize("text", ["", "-x", "--help", "a b", "a\nb", "x" * 129, "../x"])
def test_what_could_be_an_option_is_no_conversation(text):
    assert not is_session(text)


def test_the_environment_has_nothing_of_ours():
    ours = {
        "HOME": "/h", "PATH": "/bin", "LANG": "C", "LC_ALL": "C", "ANTHROPIC_API_KEY": "k", "CLAUDE_CONFIG_DIR": "/c",
        "DATABASE_URL": "postgresql://u:secret@h/d", "RUNTIME_API_KEY": "s", "MEMBRIDGE_ADMIN_KEY": "s",
        "SESSION_SECRET": "s", "MINIO_SECRET_KEY": "s", "CLAUDECODE": "1", "NODE_OPTIONS": "--require x",
    }  # fmt: skip
    assert set(environment(ours)) == {"HOME", "PATH", "LANG", "LC_ALL", "ANTHROPIC_API_KEY", "CLAUDE_CONFIG_DIR"}


def test_a_secret_of_the_environment_is_in_nothing_that_is_stored():
    key = "sk-ant-0123456789"
    known = secrets({"ANTHROPIC_API_KEY": key, "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "64000", "HOME": "/a-long-directory"})
    assert known == [key]
    assert without(Answered(f"it is {key}!"), known) == Answered("it is ****!")
    assert without(Failed(key), known) == Failed("****")
    assert without(Limit(f"invalid api key {key}"), known) == Limit("invalid api key ****")
    assert without(SessionGone(), known) == SessionGone()


def test_an_answer():
    assert judge(ANSWER) == Answered("4", tokens=1012, cost_usd=0.25, session="0d5c-41")


def test_an_answer_after_other_lines_or_at_the_end_of_a_list():
    assert judge("warning: old\n" + json.dumps(ANSWER) + "\n") == judge(ANSWER)
    assert judge([{"type": "system"}, ANSWER]) == judge(ANSWER)


@pytest.mark.parametrize("text", ["plain words", '{"a": 1}', "[1, 2]", "{", "[" * 100_000, '"4"', "null"])
def test_what_is_not_of_the_protocol_is_an_answer_in_plain_text(text):
    assert judge(text) == Answered(text)


@pytest.mark.parametrize(
    ("fields", "tokens", "cost"),
    [
        ({"usage": None, "total_cost_usd": None}, None, None),
        ({"usage": {"input_tokens": True, "output_tokens": 5}, "total_cost_usd": True}, 5, None),
        ({"usage": {"input_tokens": -4, "output_tokens": "9"}, "total_cost_usd": -1}, None, None),
        ({"usage": [1], "total_cost_usd": 10**400}, None, None),
        ({"usage": {"cache_read_input_tokens": 4, "cache_creation_input_tokens": 3}, "total_cost_usd": None}, 7, None),
        ({"usage": {"input_tokens": 10**300}, "total_cost_usd": 0}, 1 << 53, 0.0),
    ],
)
def test_numbers_that_are_none_are_not_counted(fields, tokens, cost):
    assert judge(ANSWER | fields) == Answered("4", tokens, cost, "0d5c-41")


def test_a_result_that_is_no_text_is_its_json():
    assert judge(ANSWER | {"result": {"x": ["ü"]}}).output == '{"x": ["ü"]}'


def test_an_error_is_said_in_the_words_of_the_result():
    failed = judge(ANSWER | {"is_error": True, "result": "no such tool"})
    assert failed == Failed("no such tool", tokens=1012, cost_usd=0.25)
    assert judge({"is_error": True, "subtype": "error_max_turns"}).message == "error_max_turns"
    assert judge({"is_error": True, "errors": ["one", "two"]}, exit_code=1).message == "exit code 1; one; two"


def test_a_crash_is_said_in_the_words_of_stderr():
    assert judge("half an ans", "Traceback\nboom\n", 3).message == "exit code 3; Traceback\nboom"
    assert judge("all there is", "", 3).message == "exit code 3; all there is"
    assert judge("", "", -9).message == "ended by SIGKILL"
    assert judge("", "", -63).message == "ended by signal 63"
    assert len(judge("", "x" * 100_000 + "the end", 1).message) <= ERROR_LENGTH + 20
    assert judge("", "x" * 100_000 + "the end", 1).message.endswith("the end")


def test_no_answer_at_all_is_an_error():
    assert judge("  \n", "why not") == Failed("it ended without an answer: why not")


def test_too_late_is_too_late_whatever_was_said():
    assert judge(ANSWER, timed_out=True, exit_code=-15).message == "it did not finish within 9 s (policy.timeout_sec)"


def test_what_was_cut_says_so():
    assert judge("x" * 10, cut=True) == Answered("x" * 10 + CUT_NOTE, cut=True)


@pytest.mark.parametrize(
    "ended",
    [
        {"stdout": {"is_error": True, "result": "Claude AI usage limit reached|1759330800"}, "exit_code": 1},
        {"stdout": {"is_error": True, "result": "Claude AI usage limit reached|1759330800"}},
        {"stdout": "Claude AI usage limit reached|1759330800", "exit_code": 1},
        {"stderr": "Claude AI usage limit reached|1759330800", "exit_code": 1},
        {"stderr": "(node:7) a warning\nClaude AI usage limit reached|1759330800\n", "exit_code": 1},
        {"stderr": "x" * 9000 + "\nClaude AI usage limit reached|1759330800\n", "exit_code": 1},
    ],
)
def test_a_limit_wherever_it_is_said(ended):
    assert judge(**ended) == Limit("Claude AI usage limit reached", 1759330800.0)


def test_a_limit_that_only_its_status_tells():
    assert judge({"is_error": True, "api_error_status": 429, "result": "busy"}, exit_code=1) == Limit("busy")


def test_an_answer_about_limits_is_an_answer():
    assert judge(ANSWER | {"result": "usage limit reached|1759330800"}).output == "usage limit reached|1759330800"


@pytest.mark.parametrize(
    "ended",
    [
        {"stdout": {"is_error": True, "result": "no"}, "stderr": "Claude AI usage limit reached|1759330800"},
        {"stdout": {"is_error": True, "result": "Context limit reached · /compact or /clear to continue"}},
        {"stdout": {"is_error": True, "result": "max tokens limit reached"}},
        {"stdout": {"is_error": True, "result": "the log says: Claude AI usage limit reached|1759330800"}},
        {"stderr": "gh: API rate limit exceeded for user ID 1\nnpm ERR!\n"},
        {"stderr": "gh: not logged in"},
    ],
)
def test_what_a_tool_says_of_limits_is_the_tasks_own(ended):
    assert isinstance(judge(**ended, exit_code=1), Failed)


@pytest.mark.parametrize(
    "ended",
    [
        {"stderr": "No conversation found with session ID: 0d5c"},
        {"stdout": {"is_error": True, "errors": ["No conversation found with session ID: 0d5c"]}},
        {"stderr": "Error: --resume requires a valid session ID when used with --print"},
        {"stdout": {"is_error": True, "result": "Prompt is too long"}},
        {"stdout": {"is_error": True, "result": "Context limit reached · /compact or /clear to continue"}},
        {"stdout": {"is_error": True, "result": "API Error: 400 input length and max_tokens exceed context limit: 1"}},
    ],
)
def test_a_conversation_that_is_gone_or_full(ended):
    assert judge(**ended, exit_code=1, session="s-1") == SessionGone()
    assert isinstance(judge(**ended, exit_code=1), Failed)


@given(st.text() | st.text(alphabet=st.characters(categories=["Cs", "Cc"])))
def test_a_clean_text_can_be_stored(text):
    assert "\0" not in clean(text)
    clean(text).encode()


@given(st.binary(max_size=200), st.binary(max_size=200), st.integers(-64, 255), st.booleans())
def test_whatever_a_program_does_it_means_something(stdout, stderr, exit_code, timed_out):
    said = verdict(Ended(exit_code, timed_out, stdout, stderr), session=None, seconds=9, now=1759300000.0)
    assert isinstance(said, Answered | Failed | SessionGone | Limit)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=6,
    ),
    st.sampled_from(["result", "usage", "total_cost_usd", "session_id", "errors", "subtype", "api_error_status"]),
    st.booleans(),
)
def test_whatever_stands_in_a_field_it_means_something(value, field, is_error):
    said = judge(ANSWER | {field: value, "is_error": is_error})
    assert isinstance(said, Answered | Failed | SessionGone | Limit)
    if isinstance(said, Answered):
        assert said.session is None or is_session(said.session)
        assert said.tokens is None or 0 <= said.tokens <= 1 << 53
