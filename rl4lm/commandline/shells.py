"""The scripts with which bash, zsh and fish complete a command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

from rl4lm.builtin import BUILTIN_MODELS

# What a value is: one of the words that are known, a file, a folder, or anything.
Kind = Literal["words", "file", "folder", "any", "nothing"]


@dataclasses.dataclass(frozen=True)
class Offer:
    """What may be typed at one place: an option with its values, or a word without an option."""

    name: str  # with its dashes; empty for a word that stands alone
    meaning: str
    kind: Kind
    words: tuple[str, ...]  # values that are known
    many: bool  # several values may follow


# Verb -> what it is for, and what it takes.
Verbs: TypeAlias = Mapping[str, tuple[str, Sequence[Offer]]]

_BASH = """\
# Completion of rl4lm in bash: source <(rl4lm completion bash)
_rl4lm() {
  local word=${COMP_WORDS[COMP_CWORD]} verb=${COMP_WORDS[1]} option= i
  local last=$((COMP_CWORD - 1)) options= words= kind= IFS=$' \\t\\n'
  COMPREPLY=()
  # bash makes words of = and : too; put together again what was typed as one.
  while ((last > 1)) && [[ $word == :* || ${COMP_WORDS[last]} == : ]]; do
    word=${COMP_WORDS[last]}$word
    ((last--))
  done
  [[ $word == = ]] && word=
  [[ ${COMP_WORDS[last]} == = ]] && ((last--))
  if ((COMP_CWORD == 1)); then
    COMPREPLY=($(compgen -W "@VERBS@" -- "$word"))
    return
  fi
  case $verb in
@OPTIONS@
  esac
  if [[ $word == -* ]]; then
    COMPREPLY=($(compgen -W "$options" -- "$word"))
    return
  fi
  for ((i = last; i > 1; i--)); do
    [[ ${COMP_WORDS[i]} == --* ]] && { option=${COMP_WORDS[i]}; break; }
  done
  ((i < last)) && option=$option...  # behind the first value only what takes several goes on
  case "$verb $option" in
@VALUES@
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  IFS=$'\\n'  # names of files may hold blanks
  case $kind in
    file) COMPREPLY+=($(compgen -f -- "$word")); compopt -o filenames 2>/dev/null ;;
    folder) COMPREPLY+=($(compgen -d -- "$word")); compopt -o filenames 2>/dev/null ;;
  esac
  if [[ $word == *:* && $COMP_WORDBREAKS == *:* ]]; then
    local front=${word%"${word##*:}"}
    COMPREPLY=("${COMPREPLY[@]#"$front"}")
  fi
}
complete -F _rl4lm rl4lm"""

_ZSH = """\
#compdef rl4lm
# Completion of rl4lm in zsh: source <(rl4lm completion zsh), after compinit
_rl4lm_models() {
  compadd -- @MODELS@
  _files
}
_rl4lm() {
  local -a verbs
  verbs=(
@VERBS@
  )
  if ((CURRENT == 2)); then
    _describe verb verbs
    return
  fi
  local verb=${words[2]}
  shift words
  ((CURRENT--))
  case $verb in
@OPTIONS@
  esac
}
if [[ ${funcstack[1]} == _rl4lm ]]; then _rl4lm "$@"; else compdef _rl4lm rl4lm; fi"""


def bash(verbs: Verbs) -> str:
    """A script for bash."""
    options = [
        f'    {verb}) options="{" ".join(o.name for o in offers if o.name)}" ;;'
        for verb, (_, offers) in verbs.items()
    ]
    values = [line for verb, (_, offers) in verbs.items() for line in _bash_values(verb, offers)]
    script = _BASH.replace("@VERBS@", " ".join(verbs)).replace("@OPTIONS@", "\n".join(options))
    return script.replace("@VALUES@", "\n".join(values))


def _bash_values(verb: str, offers: Sequence[Offer]) -> Iterator[str]:
    """What follows each option of a verb, and last what stands alone."""
    for offer in offers:
        if offer.name and offer.kind != "nothing":
            where = f'"{verb} {offer.name}"'
            where += f' | "{verb} {offer.name}..."' if offer.many else ""
            yield f'    {where}) words="{" ".join(offer.words)}" kind={offer.kind} ;;'
    for offer in offers:
        if not offer.name:
            words = " ".join(offer.words)
            yield f'    "{verb} "*) words="{words}" kind={offer.kind} ;;'


def zsh(verbs: Verbs) -> str:
    """A script for zsh."""
    named = [f"    '{verb}:{meaning}'" for verb, (meaning, _) in verbs.items()]
    options = []
    for verb, (_, offers) in verbs.items():
        specs = " \\\n".join(f"      {_zsh_spec(offer)}" for offer in offers)
        options.append(f"    {verb}) _arguments \\\n{specs} ;;")
    script = _ZSH.replace("@VERBS@", "\n".join(named)).replace("@MODELS@", " ".join(BUILTIN_MODELS))
    return script.replace("@OPTIONS@", "\n".join(options))


def _zsh_spec(offer: Offer) -> str:
    words = " ".join(word.replace(":", "\\:") for word in offer.words)
    values = {"file": "_files", "folder": "_files -/", "words": f"({words})", "any": " "}
    action = values.get(offer.kind, "")
    if offer.kind == "file" and words:
        action = "_rl4lm_models"
    if not offer.name:
        return f"'*:{offer.meaning.replace(':', ' ')}:{action}'"
    if offer.kind == "nothing":
        return f"'{offer.name}[{offer.meaning}]'"
    several = "*" if offer.many else ""
    return f"'{several}{offer.name}=[{offer.meaning}]:value:{action}'"


def fish(verbs: Verbs) -> str:
    """A script for fish."""
    lines = [
        "# Completion of rl4lm in fish: rl4lm completion fish > "
        "~/.config/fish/completions/rl4lm.fish",
        "complete -c rl4lm -f",
    ]
    for verb, (meaning, offers) in verbs.items():
        lines.append(f"complete -c rl4lm -n __fish_use_subcommand -a {verb} -d '{meaning}'")
        lines += [_fish_line(verb, offer) for offer in offers]
    return "\n".join(lines)


def _fish_line(verb: str, offer: Offer) -> str:
    parts = [f"complete -c rl4lm -n '__fish_seen_subcommand_from {verb}'"]
    parts += [f"-l {offer.name[2:]}"] if offer.name else []
    if offer.name and offer.kind != "nothing":
        parts.append("-r")
    if offer.kind == "file":
        parts.append("-F")
    folders = " (__fish_complete_directories)" if offer.kind == "folder" else ""
    if offer.words or folders:
        parts.append(f"-a '{' '.join(offer.words)}{folders}'")
    return " ".join([*parts, f"-d '{offer.meaning}'"])


SCRIPTS: Mapping[str, Callable[[Verbs], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
