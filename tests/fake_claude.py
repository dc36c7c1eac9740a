#!/usr/bin/env python3
"""A program that answers as the Claude CLI does, or misbehaves as it is told. Needs nothing but Python.

    PROGRAM --print --output-format json [--resume SESSION]      the prompt on stdin

Told by lines in the prompt, in their order:

    fake:say TEXT        answer this; without it the answer is the whole prompt
    fake:long KIB        answer so many KiB
    fake:env             answer its environment, arguments and directory, as JSON
    fake:tokens IN OUT   have used so many
    fake:plain TEXT      answer in plain text instead of JSON
    fake:raw TEXT        write this to stdout (\\n is a line end, \\0 a NUL), and no answer
    fake:noise           a line before the answer
    fake:slow SECONDS    take so long, and say on stderr how far it is
    fake:hang            never end; `fake:stubborn`: not even when asked to (TERM)
    fake:crash TEXT      exit code 3, the text on stderr
    fake:killed          end by a signal
    fake:flood MIB       write so much to stdout
    fake:fork            leave a child behind, whose pid is in `child`; `fake:fork-stubborn`: one that ignores TERM;
                         `fake:fork-away`: one that leaves the process group
    fake:error TEXT      an answer that is an error
    fake:full            the conversation is too long to go on; `fake:tired`: no conversation that goes on succeeds
    fake:limit TEXT      refuse, as at a usage limit; without a text it resets in a second
    fake:retry-limit     refuse as long as there is no file `worked-before`, which it makes

Told by the environment: CLAUDE_FAKE_DIR names a directory in which `log` gets one JSON line for each start, and
`sessions` has the conversations that there are. Without it every conversation that it has named is there.
A file `limit` in it holds the refusal to everything. `twice` gets a prompt that is worked on at two places at once.
"""

import fcntl
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

DIRECTORY = Path(os.environ["CLAUDE_FAKE_DIR"]) if "CLAUDE_FAKE_DIR" in os.environ else None


def main() -> None:
    started = time.time()
    prompt = sys.stdin.read()
    session, turn = conversation(prompt)
    answer = {"type": "result", "subtype": "success", "is_error": False, "result": prompt, "session_id": session,
              "num_turns": turn, "total_cost_usd": 0.25, "usage": {"input_tokens": 7, "output_tokens": 5}}  # fmt: skip
    if DIRECTORY:
        alone(prompt)
        with (DIRECTORY / "log").open("a") as log:
            told = {"at": started, "argv": sys.argv[1:], "pid": os.getpid(), "cwd": os.getcwd(), "prompt": prompt}
            log.write(json.dumps(told | {"session": session, "turn": turn}) + "\n")
        if (DIRECTORY / "limit").exists():
            refuse(answer, (DIRECTORY / "limit").read_text())
    for line in prompt.splitlines():
        if line.startswith("fake:"):
            word, _, text = line.removeprefix("fake:").partition(" ")
            obey(word, text, answer)
    keep(session, prompt)
    print(json.dumps(answer))


def alone(prompt: str) -> None:
    """Say so if somebody is working on this prompt; nobody else is without saying so as long as this process lives."""
    (DIRECTORY / "running").mkdir(exist_ok=True)
    held = os.open(DIRECTORY / "running" / hashlib.sha256(prompt.encode()).hexdigest(), os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with (DIRECTORY / "twice").open("a") as file:
            file.write(json.dumps(prompt) + "\n")


def conversation(prompt: str) -> tuple[str, int]:
    """The conversation's id, and which turn of it this is."""
    if "--resume" not in sys.argv:
        return f"fake-{os.getpid()}-{time.time_ns()}", 1
    session = sys.argv[sys.argv.index("--resume") + 1]
    file = DIRECTORY / "sessions" / session if DIRECTORY else None
    if not session.startswith("fake-") or (file and not file.exists()):
        fail(f"No conversation found with session ID: {session}", 1)
    return session, len(file.read_text().splitlines()) + 1 if file else 2


def keep(session: str, prompt: str) -> None:
    if DIRECTORY:
        (DIRECTORY / "sessions").mkdir(exist_ok=True)
        with (DIRECTORY / "sessions" / session).open("a") as file:
            file.write(json.dumps(prompt) + "\n")


def obey(word: str, text: str, answer: dict) -> None:
    match word:
        case "say":
            answer["result"] = text
        case "long":
            answer["result"] = "0123456789abcde\n" * (int(text) * 64)
        case "env":
            here = {"environ": dict(os.environ), "argv": sys.argv, "cwd": os.getcwd()}
            answer["result"] = json.dumps(here)
        case "tokens":
            answer["usage"] = dict(zip(("input_tokens", "output_tokens"), map(int, text.split()), strict=True))
        case "plain":
            print(text)
            sys.exit()
        case "raw":
            sys.stdout.write(text.replace("\\n", "\n").replace("\\0", "\0"))
            sys.exit()
        case "noise":
            print("warning: something is not as it should be", flush=True)
        case "slow":
            for step in range(1, 11):
                time.sleep(float(text) / 10)
                print(f"{step * 10} % done", file=sys.stderr, flush=True)
        case "hang" | "stubborn":
            hang(stubborn=word == "stubborn")
        case "crash":
            fail(text or "boom", 3)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "flood":
            for _ in range(int(text) * 16):
                sys.stdout.write("flood " * 10922 + "end\n")
        case "fork" | "fork-stubborn" | "fork-away":
            fork(word)
        case "error":
            answer |= {"is_error": True, "result": text}
        case "full" | "tired" if "--resume" in sys.argv:
            refuse(answer, "Prompt is too long" if word == "full" else "no more")
        case "full" | "tired":
            pass
        case "limit":
            refuse(answer, text or f"Claude AI usage limit reached|{int(time.time()) + 2}")
        case "retry-limit":
            if not os.path.exists("worked-before"):
                Path("worked-before").touch()
                refuse(answer, f"Claude AI usage limit reached|{int(time.time()) + 2}")
        case _:
            fail(f"what is fake:{word}?", 64)


def refuse(answer: dict, text: str) -> None:
    print(json.dumps(answer | {"is_error": True, "result": text}))
    sys.exit(1)


def fail(text: str, code: int) -> None:
    print(text, file=sys.stderr)
    sys.exit(code)


def hang(*, stubborn: bool) -> None:
    if stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path("hanging").write_text(str(os.getpid()))
    while True:
        time.sleep(60)


def fork(how: str) -> None:
    if os.fork() == 0:
        if how == "fork-stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if how == "fork-away":
            os.setsid()
        Path("child.new").write_text(str(os.getpid()))
        os.rename("child.new", "child")
        while True:
            time.sleep(60)
    while not os.path.exists("child"):
        time.sleep(0.005)


if __name__ == "__main__":
    main()
