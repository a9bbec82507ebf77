from __future__ import annotations

import time

import pytest

from rewards.batches import text_of
from rewards.grading.extraction import Opening, opening_of, readings
from rewards.sandbox.choice import chosen

PROMPT = "import math\n\ndef f(x):\n    '''The square.'''\n"
BARE = "# the square\ndef f(x):\n"
WHOLE = "def f(x):\n    return x * x\n"
BODY = "    return x * x\n"


def result(completion: str, prompt: str | None = None, x: int = 3) -> object:
    """What f(3) is in the program that is taken from a completion."""
    opening = None if prompt is None else opening_of(prompt, "f")
    found = [(reading.program, reading.part) for reading in readings(completion, opening)]
    namespace: dict = {"print": lambda *values: None}
    exec(chosen(found, "f"), namespace)
    return namespace["f"](x)


def fenced(code: str, mark: str = "python") -> str:
    return f"```{mark}\n{code}```\n"


EXAMPLE = "print(f(2))\n"


@pytest.mark.parametrize(
    "completion",
    [
        WHOLE,
        WHOLE + "\nprint(f(2))",
        fenced(WHOLE),
        fenced(WHOLE, "py"),
        fenced(WHOLE, ""),
        fenced(WHOLE, "Python title=x"),
        f"~~~python\n{WHOLE}~~~",
        f"Sure!\n\n{fenced(WHOLE)}\nThis squares.",
        f"Sure!\n\n{fenced(WHOLE)}\nUse it:\n{fenced(EXAMPLE)}",
        f"{fenced(WHOLE.replace('*', '+'))}\nBetter:\n{fenced(WHOLE)}",
        f"{fenced(WHOLE)}\n{fenced('f(2) is 4', 'text')}",
        f"{fenced(WHOLE)}\nand\n```python\ndef f(x):\n    return (x",  # cut off
        f"Sure:\n```python\n{WHOLE}",  # cut off after its end
        f"{WHOLE}```\nThat is all.",  # inside a fence that the prompt has opened
        "1. First:\n\n   ```python\n   def f(x):\n       return x * x\n   ```\n",
        fenced(WHOLE, "text"),
        fenced("if True:\n    def f(x):\n        return x * x\n"),
        fenced("f = lambda x: x * x\n"),
    ],
)
@pytest.mark.parametrize("prompt", [None, PROMPT, BARE])
def test_a_whole_function_is_found_with_every_prompt(completion: str, prompt: str | None) -> None:
    assert result(completion, prompt) == 9


@pytest.mark.parametrize(
    "completion",
    [
        BODY,
        BODY + "\nprint(f(2))\n",
        BODY + "\ndef g():\n    pass\n",
        fenced(BODY),
        fenced("return x * x\n"),
        f"{BODY}```\nThat is all.",
        f"{BODY}```\n\n{fenced(EXAMPLE)}",
    ],
)
@pytest.mark.parametrize("prompt", [PROMPT, BARE, f"Complete this:\n{fenced(PROMPT)}"])
def test_a_body_goes_on_from_the_prompt(completion: str, prompt: str) -> None:
    assert result(completion, prompt) == 9


def test_a_completion_may_begin_in_the_middle_of_a_line() -> None:
    assert result(" x * x", "def f(x):\n    return") == 9


def test_a_whole_function_may_use_the_imports_of_the_prompt() -> None:
    completion = fenced("def f(x):\n    return math.floor(x * x)\n")
    assert result(completion, PROMPT) == 9
    with pytest.raises(NameError):
        result(completion)


def test_future_imports_need_the_completion_to_stand_alone() -> None:
    assert result(fenced("from __future__ import annotations\n" + WHOLE), PROMPT) == 9


def test_text_after_the_body_is_kept_and_can_break_the_program() -> None:
    with pytest.raises(SyntaxError):
        result(BODY + "\nThis returns the square.\n", PROMPT)


def test_an_empty_completion_is_a_function_without_a_body() -> None:
    assert result("", PROMPT) is None


@pytest.mark.parametrize(
    "prompt", ["Write a function f(x).", "f", "def g(x):\n    pass\n", "def f(x:"]
)
def test_a_prompt_that_does_not_begin_the_function_is_no_opening(prompt: str) -> None:
    assert opening_of(prompt, "f") is None


def test_an_opening_compiles_by_itself_once_it_has_a_body() -> None:
    assert opening_of(BARE, "f") == Opening(BARE, BARE + "    pass\n")
    assert opening_of(PROMPT, "f") == Opening(PROMPT, PROMPT)


def test_the_text_of_messages_is_that_of_the_last_one() -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert text_of(messages) == "a"
    assert text_of("a") == "a"
    assert text_of(None) is None
    assert text_of([]) is None


@pytest.mark.parametrize(
    "text",
    [
        "`" * 200_000,
        ("~" * 200_000) + "`",
        "```" + " " * 200_000 + "`",
        "```\n" * 50_000,
        " " * 200_000,
    ],
    ids=["backticks", "tildes", "spaces", "fences", "blank"],
)
def test_taking_a_completion_apart_takes_linear_time(text: str) -> None:
    start = time.process_time()
    readings(text, Opening(PROMPT, PROMPT))
    assert time.process_time() - start < 1


@pytest.mark.parametrize("text", ["1+" * 200_000 + "1", "[a " + "for a in b " * 100_000 + "]"])
def test_a_text_that_overflows_the_stack_of_a_parser_is_taken_apart_all_the_same(text: str) -> None:
    assert readings(text)[-1].program == text
