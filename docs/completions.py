"""Completions for bash, zsh and fish: the commands, the options of each, and what of their values is known.

They are complete in themselves: no shell has to start Python or to ask a daemon while somebody types.

bash and fish have no notion of commands within commands. So the words before the cursor are walked through: the value
of an option is passed over, a command leads on to itself, and any other word leads nowhere. `path` is where the walk
has arrived, such as `bloomd-ctl task add`.
"""

from collections import Counter
from collections.abc import Iterator

from docs.commands import Command, Option, Value

_NOTE = "Made from the parser of the command line; `make docs` renews it."

# A value that starts with @ is no list of words: @default are files, @dirnames directories, and of @ nothing is known.
_BASH = """\
# @NOTE@

@FUNCTION@() {
    local -A options=(
@OPTIONS@
    )
    local -A words=(
@WORDS@
    )
    local current=${COMP_WORDS[COMP_CWORD]} path=@PROGRAM@ value='' word
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        if [[ $word == = ]]; then # --option=value is three words
            continue
        elif [[ $value ]]; then
            value=''
            continue
        fi
        case "$path $word" in
@VALUES@
            *) [[ ${options["$path $word"]-} ]] && path+=" $word" ;;
        esac
    done
    if [[ $current == = ]]; then
        current=''
    elif [[ ! $value && $current == -* ]]; then
        value=${options[$path]}
    fi
    COMPREPLY=()
    case ${value:=${words[$path]-@}} in
        @) ;;
        @*) compopt -o "${value#@}" ;;
        *) mapfile -t COMPREPLY < <(compgen -W "$value" -- "$current") ;;
    esac
}
complete -F @FUNCTION@ @PROGRAM@
"""
_BASH_KINDS = {"file": "@default", "directory": "@dirnames", "word": "@"}

_FISH = """\
# @NOTE@

function @FUNCTION@_at -d 'Whether the words before the cursor lead to this command'
    set -l path @PROGRAM@
    set -l value no
    for word in (commandline -opc)[2..-1]
        if test $value = yes
            set value no
            continue
        end
        switch "$path $word"
@VALUES@
            case @COMMANDS@
                set path "$path $word"
        end
    end
    test "$path" = "$argv"
end

complete -c @PROGRAM@ -f
@COMPLETE@
"""
_FISH_KINDS = {"file": "-r -F", "directory": "-x -a '(__fish_complete_directories)'", "word": "-x"}

_ZSH_GROUP = """\
@FUNCTION@() {
    local curcontext=$curcontext state line ret=1
    local -A opt_args
    local -a commands=(
@WORDS@
    )
    _arguments -C \\
@OPTIONS@
        '(-): :->command' '(-)*:: :->rest' && ret=0
    case $state in
        command) _describe -t commands command commands && ret=0 ;;
        rest) (($+functions[@FUNCTION@_$words[1]])) && @FUNCTION@_$words[1] && ret=0 ;;
    esac
    return ret
}
"""
_ZSH_COMMAND = """\
@FUNCTION@() {
    _arguments \\
@OPTIONS@
}
"""
_ZSH_KINDS = {"file": "_files", "directory": "_files -/", "word": " "}


def bash(program: Command) -> str:
    options: list[str] = []
    words: list[str] = []
    values: list[str] = []
    for command in program.all():
        options.append(f"        ['{_path(command)}']='{' '.join(_strings(command))}'")
        if offered := _offered(command):
            words.append(f"        ['{_path(command)}']='{' '.join(offered)}'")
    for patterns, value in _values(program):
        anywhere = (f"*'{pattern[1:]}'" if pattern.startswith("*") else f"'{pattern}'" for pattern in patterns)
        expected = f"value={_quoted(' '.join(value.choices) or _BASH_KINDS[value.kind])} " if value else ""
        values.append(f"            {' | '.join(anywhere)}) {expected};;")
    return _filled(
        _BASH,
        function=f"_{program.name.replace('-', '_')}",
        program=program.name,
        options=options,
        words=words,
        values=values,
    )


def fish(program: Command) -> str:
    function = f"__{program.name.replace('-', '_')}"
    values: list[str] = []
    complete: list[str] = []
    for patterns, value in _values(program):
        values.append(f"            case {' '.join(map(_quoted, patterns))}")
        values += ["                set value yes"] if value else []
    for command in program.all():
        begin = f"complete -c {program.name} -n '{function}_at {_path(command)}'"
        for word, summary in _offered(command).items():
            complete.append(f"{begin} -a {word}" + (f" -d {_quoted(summary)}" if summary else ""))
        for option in command.options:
            names = " ".join(f"-l {s[2:]}" if s.startswith("--") else f"-s {s[1:]}" for s in option.strings)
            complete.append(f"{begin} {names} {_fish_value(option)}-d {_quoted(option.help)}")
    return _filled(
        _FISH,
        function=function,
        program=program.name,
        values=values,
        commands=" ".join(f"'{_path(command)}'" for command in program.all() if command is not program),
        complete=complete,
    )


def _fish_value(option: Option) -> str:
    if option.value is None or option.value_may_be_missing:
        return ""
    choices = option.value.choices
    return (f"-x -a '{' '.join(choices)}'" if choices else _FISH_KINDS[option.value.kind]) + " "


def zsh(program: Command) -> str:
    parts = [f"#compdef {program.name}", f"# {_NOTE}", ""]
    for command in program.all():
        specs = [spec for option in command.options for spec in _zsh_option(option)]
        for argument in command.arguments:
            many = "*" if argument.repeatable else "" if argument.required else ":"
            specs.append(f"{many}:{_zsh_value(argument.value)}")
        options = " \\\n".join(f"        {_quoted(spec)}" for spec in specs)
        words = [f"        {_quoted(f'{word}:{of.summary}')}" for word, of in command.commands.items()]
        parts.append(
            _filled(
                _ZSH_GROUP if words else _ZSH_COMMAND,
                function="_" + _path(command).replace(" ", "_"),
                options=options + " \\" if words else options,
                words=words,
            )
        )
    return "\n".join([*parts, f'_{program.name} "$@"']) + "\n"


def _zsh_option(option: Option) -> Iterator[str]:
    others = "*" if option.repeatable else f"({' '.join(option.strings)})"
    about = option.help.replace("[", r"\[").replace("]", r"\]")
    for string in option.strings:
        if option.value is None:
            yield f"{others}{string}[{about}]"
        else:
            attached = "=" if string.startswith("--") else "+"
            missing = ":" if option.value_may_be_missing else ""
            yield f"{others}{string}{attached}[{about}]{missing}:{_zsh_value(option.value)}"


def _zsh_value(value: Value) -> str:
    choices = f"({' '.join(value.choices)})" if value.choices else ""
    return f"{value.name}:{choices or _ZSH_KINDS[value.kind]}"


def _path(command: Command) -> str:
    return " ".join([command.name, *command.words])


def _strings(command: Command) -> list[str]:
    return [string for option in command.options for string in option.strings]


def _offered(command: Command) -> dict[str, str]:
    """The words that may come next, options apart, with what is said of each."""
    commands = {word: of.summary for word, of in command.commands.items()}
    return commands or dict.fromkeys((word for argument in command.arguments for word in argument.value.choices), "")


def _values(program: Command) -> Iterator[tuple[list[str], Value | None]]:
    """Which word is followed by a value: patterns for the path with the word, and the value.

    Most options are the same wherever there are any of that name: `* --file`. Those that are not come first, with the
    command that they belong to.
    """
    every = [
        (_path(command), option.strings, None if option.value_may_be_missing else option.value)
        for command in program.all()
        for option in command.options
    ]
    counted: dict[str, Counter[Value | None]] = {}
    for _, strings, value in every:
        for string in strings:
            counted.setdefault(string, Counter())[value] += 1
    usual = {string: values.most_common(1)[0][0] for string, values in counted.items()}
    for path, strings, value in every:
        if others := [f"{path} {string}" for string in strings if usual[string] != value]:
            yield others, value
    told: set[str] = set()  # one command may have -c alone where the others have --config for it, too
    for _, strings, value in every:
        common = [string for string in strings if string not in told and usual[string] == value]
        if value and common:
            told.update(common)
            yield [f"* {string}" for string in common], value


def _quoted(text: str) -> str:
    """For bash and zsh; fish reads the same where no backslash is in it."""
    return "'" + text.replace("'", "'\\''") + "'"


def _filled(template: str, **parts: str | list[str]) -> str:
    text = template.replace("@NOTE@", _NOTE)
    for name, part in parts.items():
        text = text.replace(f"@{name.upper()}@", part if isinstance(part, str) else "\n".join(part))
    return text
