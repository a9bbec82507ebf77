"""The command line and YAML: text in, one `ReinforceConfig` out, for every verb and recipe.

argparse only splits the command line and prints the help; every value stays text, or what YAML
made of it, until `ReinforceConfig` converts it. Precedence, from weak to strong: defaults, settings
that the model brings, the caller's own settings, the YAML file, the command line.
"""

from __future__ import annotations

import argparse
import functools
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import yaml

from rl4lm.config import OPTIONS, ReinforceConfig
from rl4lm.errors import ConfigError
from rl4lm.settings.refusals import asks_for_nothing, unknown_option
from rl4lm.settings.schema import Option

Settings: TypeAlias = Mapping[str, Any]

_WIDEST = 98  # columns of the help
_METAVARS = {int: "N", float: "X", str: "TEXT", bool: "true|false"}


class _Layout(argparse.HelpFormatter):
    """argparse's layout, but for names with a hyphen, which stay whole and can be copied."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class OptionParser(argparse.ArgumentParser):
    """argparse without abbreviations, names with `-` or `_` alike, and errors as `ConfigError`."""

    def __init__(self, *, prog: str, description: str, usage: str | None = None) -> None:
        """Make a parser without options; `add_config_arguments` adds those of training."""
        columns = shutil.get_terminal_size((_WIDEST + 2, 24)).columns
        width = min(_WIDEST, columns - 2)
        layout = functools.partial(_Layout, width=width, max_help_position=width // 3)
        super().__init__(
            prog=prog,
            description=description,
            usage=usage or "%(prog)s [--config FILE] [--option value ...]",
            allow_abbrev=False,
            formatter_class=layout,
        )
        # argparse's own pattern takes -0.5 for a value, but -1e-5 for an option.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")

    # argparse declares overloads for namespaces of other types, which nobody hands in here.
    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse a command line; `ConfigError` for whatever is unknown, malformed or left over."""
        tokens = sys.argv[1:] if args is None else args
        found, rest = self.parse_known_args([_with_underscores(each) for each in tokens], namespace)
        if rest:
            raise ConfigError(self._refusal(rest))
        return found

    def error(self, message: str) -> NoReturn:
        """Raise, where argparse prints and exits: the caller decides on the exit code."""
        raise ConfigError(message.removeprefix("argument "))

    def lacks(self, advice: str) -> ConfigError:
        """What to raise where something is missing that has no default: the advice, and how."""
        return ConfigError(f"{advice}; usage: {self.format_usage()[7:].strip()}")

    def _refusal(self, rest: Sequence[str]) -> str:
        """Say what is wrong with the first thing that no option takes."""
        option = next((each.partition("=")[0] for each in rest if each.startswith("--")), None)
        if option is None:
            return f"unexpected argument {rest[0]!r}; options are written --name value"
        if option[2:] in OPTIONS:
            return f"{option} is an option of training; `{self.prog}` does not take it"
        known = [each for each in self._option_string_actions if each.startswith("--")]
        return unknown_option(option, known)


def _with_underscores(token: str) -> str:
    """Spell the name of an option, and only the name, with underscores."""
    name, equals, value = token.partition("=")
    if re.fullmatch(r"--\w[\w-]*", name):
        name = "--" + name[2:].replace("-", "_")
    return name + equals + value


def add_config_arguments(
    parser: argparse.ArgumentParser,
    names: Iterable[str] | None = None,
    base: Settings | None = None,
    brought: Settings | None = None,
) -> None:
    """Add `--config` and options of `ReinforceConfig`, in a group for each theme.

    Args:
        parser: gains the options; what is not given leaves no trace in its namespace.
        names: the fields that this verb takes, in any order; ``None`` stands for all of them.
        base: settings that the help shows as defaults; see `config_from`.
        brought: settings of the default model, shown beside the defaults that other models get.
    """
    wanted = set(OPTIONS if names is None else names)
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="YAML file of `option: value` lines; the command line overrides it",
    )
    groups: dict[str, Any] = {}
    for name in (each for each in OPTIONS if each in wanted):
        theme = OPTIONS[name].theme
        if theme not in groups:
            groups[theme] = parser.add_argument_group(theme)
        option = OPTIONS[name]
        shown = _shown(option, (base or {}).get(name, option.default))
        if brought and name in brought and brought[name] != option.default:
            shown += f", {_shown(option, brought[name])} with the default model"
        _add_argument(groups[theme], option, shown)


def _add_argument(group: Any, option: Option, default: str) -> None:
    """Add one option as text; conversion and checks come later, in one place."""
    common: dict[str, Any] = {"dest": option.name, "default": argparse.SUPPRESS}
    if option.kind is bool:
        group.add_argument(
            f"--no_{option.name}",
            action="store_const",
            const="false",
            help=argparse.SUPPRESS,
            **common,
        )
        common |= {"nargs": "?", "const": "true"}
    elif option.many:
        common |= {"nargs": "*", "action": "extend"}
    common["metavar"] = "NAME" if option.choices else _METAVARS[option.kind]
    group.add_argument(f"--{option.name}", help=_help(option, default), **common)


def _help(option: Option, default: str) -> str:
    """Meaning, range, default and off value of an option."""
    off, told = option.off, ""
    if off is not None and not re.search(rf"\b{off}( or \w+)* = ", option.help):
        told = f"; {off} = off"
    return f"{option.help} [{option.expected}; default {default}{told}]".replace("%", "%%")


def add_output_arguments(
    parser: argparse.ArgumentParser, json: str, quiet: str | None = None
) -> None:
    """Add `--json` and, where ``quiet`` says what remains of the screen, `--quiet`."""
    parser.add_argument("--json", action="store_true", help=f"print {json} as JSON")
    if quiet is not None:
        parser.add_argument("--quiet", action="store_true", help=f"show only {quiet}")


def _shown(option: Option, value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, list):
        return " ".join(map(str, value)) or "empty"
    shown = "none" if value is None else str(value)
    return shown.lower() if option.kind is bool else shown


def config_from(
    namespace: argparse.Namespace,
    *,
    base: Settings | None = None,
    base_for: Callable[[Settings], Settings] | None = None,
) -> ReinforceConfig:
    """Make the configuration from a parsed command line and the file that its `--config` names.

    Args:
        namespace: what a parser with `add_config_arguments` returned; its other entries are left
            to the caller.
        base: settings of the caller, a recipe for instance; the user's settings override them. A
            `dataset_config` among them belongs to their `dataset_name`, and goes with it.
        base_for: given the defaults overlaid with all that was given (values still unconverted),
            returns settings that the chosen model brings; everything given overrides them.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: a file that cannot be read, an unknown option, or a value or combination that
            cannot be meant.
    """
    typed = vars(namespace)
    filed = read_yaml(typed["config"]) if "config" in typed else {}
    given = {**filed, **{k: v for k, v in typed.items() if k in OPTIONS}}
    given = {**_still_meant(base or {}, given), **given}
    defaults = {name: option.default for name, option in OPTIONS.items()}
    brought = base_for({**defaults, **given}) if base_for else {}
    config = ReinforceConfig(**{**brought, **given})
    config.weights_for(len(config.reward_funcs))
    return config


def _still_meant(base: Settings, given: Settings) -> Settings:
    """The caller's settings, without the configuration of data that others take the place of."""
    if given.get("dataset_name", base.get("dataset_name")) == base.get("dataset_name"):
        return base
    return {name: value for name, value in base.items() if name != "dataset_config"}


def parse_options(
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    base: Settings | None = None,
    base_for: Callable[[Settings], Settings] | None = None,
) -> ReinforceConfig:
    """Read the command line of a verb or recipe that takes every option of training.

    Args:
        argv: the words after the program's name.
        prog: the program's name in the help.
        description: what the help says above the options.
        base: see `config_from`.
        base_for: see `config_from`.

    Returns:
        The checked configuration; ``--help`` prints the options and exits with 0 instead.

    Raises:
        ConfigError: see `config_from`.
    """
    parser = OptionParser(prog=prog, description=description)
    defaults = {name: option.default for name, option in OPTIONS.items()} | dict(base or {})
    brought = dict(base_for(defaults)) if base_for else {}
    for name in base or {}:  # the caller's own settings override those
        brought.pop(name, None)
    add_config_arguments(parser, base=base, brought=brought)
    return config_from(parser.parse_args(argv), base=base, base_for=base_for)


def read_yaml(path: str) -> dict[str, Any]:
    """Read a flat YAML file of options; `ConfigError` names the file and what is wrong with it."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or not a date
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--config {path}: cannot be read: {reason}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(
            f"--config {path}: not valid YAML: {error}\n"
            "write a line `option: value` for each option"
        ) from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"--config {path}: expected lines of `option: value`, no other structure")
    keys = [str(key.value) for key, _ in node.value]
    content = {k: v for k, v in content.items() if k in OPTIONS or not asks_for_nothing(str(k), v)}
    problems = [unknown_option(str(key), OPTIONS) for key in content if key not in OPTIONS]
    problems += [f"{key} is given twice" for key in OPTIONS if keys.count(key) > 1]
    if problems:
        raise ConfigError("\n".join(f"--config {path}: {problem}" for problem in problems))
    return content
