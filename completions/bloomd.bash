# Made from the parser of the command line; `make docs` renews it.

_bloomd() {
    local -A options=(
        ['bloomd']='-h --help --version'
        ['bloomd run']='-h --help -c --config --env-file'
        ['bloomd dev']='-h --help --dir --port --bind --allow-unauthenticated --allow-host --worker --membridge-port --no-membridge'
        ['bloomd check']='-h --help -c --config --env-file --print'
        ['bloomd doctor']='-h --help -c --config --env-file -o --output -v --verbose --objects --fix'
        ['bloomd migrate']='-h --help -c --config --env-file --status --to --yes'
        ['bloomd backup']='-h --help -c --config --env-file -o --output --verify --dir --memory --no-objects --force'
        ['bloomd restore']='-h --help --env-file -c --into --dir --dry-run --replace --memory --no-objects --config'
        ['bloomd worker']='-h --help -c --config --server --name --token-file --max-concurrency --label --root'
    )
    local -A words=(
        ['bloomd']='run dev check doctor migrate backup restore worker'
    )
    local current=${COMP_WORDS[COMP_CWORD]} path=bloomd value='' word
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        if [[ $word == = ]]; then # --option=value is three words
            continue
        elif [[ $value ]]; then
            value=''
            continue
        fi
        case "$path $word" in
            'bloomd backup -o' | 'bloomd backup --output') value='@default' ;;
            'bloomd restore --config') value='@dirnames' ;;
            *' -c' | *' --config') value='@default' ;;
            *' --env-file') value='@default' ;;
            *' --dir') value='@dirnames' ;;
            *' --port') value='@' ;;
            *' --bind') value='@' ;;
            *' --allow-host') value='@' ;;
            *' --membridge-port') value='@' ;;
            *' -o' | *' --output') value='text json' ;;
            *' --to') value='@' ;;
            *' --verify') value='@default' ;;
            *' --into') value='@' ;;
            *' --server') value='@' ;;
            *' --name') value='@' ;;
            *' --token-file') value='@default' ;;
            *' --max-concurrency') value='@' ;;
            *' --label') value='@' ;;
            *' --root') value='@dirnames' ;;
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
complete -F _bloomd bloomd
